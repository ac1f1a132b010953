"""Writes a page for each module from its docstrings: `python .ci/docs.py FOLDER`."""

import pkgutil
import re
import sys
import warnings
from importlib import import_module
from pathlib import Path

import pdoc

import conr_hf


def load_all() -> None:
    """Puts all that has a page where pdoc looks for it: public names, which are loaded on first use, and modules."""
    for lazy in (conr_hf, import_module("conr_hf.data"), import_module("conr_hf.models")):
        for name in lazy.__all__:
            setattr(lazy, name, getattr(lazy, name))
    for found in pkgutil.walk_packages(conr_hf.__path__, "conr_hf."):
        package, _, name = found.name.rpartition(".")
        import_module(found.name)
        public = vars(import_module(package)).get("__all__")
        if public is not None and name not in public:
            public.append(name)


def plain_markdown(docstring: str) -> str:
    """Docstrings as Hugging Face writes them: [`name`] refers to a name, an example is code."""
    text = re.sub(r"\[(`)~?([\w.]+`)\]", r"\1\2", docstring)
    return re.sub(r"^Example:\n((?: {4}.*\n?|\n)+)", _example, text, flags=re.MULTILINE)


def _example(match: re.Match[str]) -> str:
    code = re.sub(r"^ {4}", "", match[1], flags=re.MULTILINE).strip()
    fenced = code if code.startswith("```") else f"```python\n{code}\n```"
    return f"###### Example:\n\n{fenced}\n"


def main(folder: Path) -> None:
    """
    Raises:
        `UserWarning`: where a page cannot be made as it should be.
    """
    load_all()
    convert = pdoc.render.env.filters["to_markdown"]
    pdoc.render.env.filters["to_markdown"] = pdoc.render_helpers.pass_context(
        lambda context, docstring: convert(context, plain_markdown(docstring))
    )
    pdoc.render.configure(docformat="google", footer_text=f"conr_hf {conr_hf.__version__}")
    warnings.simplefilter("error")
    pdoc.pdoc("conr_hf", output_directory=folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
