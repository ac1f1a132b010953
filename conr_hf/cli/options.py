"""
The options of `conr-hf train`, read from the source files of the configuration classes: importing these takes seconds,
too long for `--help` or a mistyped option.
"""

import ast
import difflib
import textwrap
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from conr_hf.utils.fields import argument_help

CLASSES = {  # by module; a later class overrides an earlier one, as in inheritance
    "conr_hf.cli.recipe": "Recipe",
    "transformers.training_args": "TrainingArguments",
    "conr_hf.training.config.config": "ConRConfig",
    "conr_hf.data.config": "DataConfig",
    "conr_hf.training.config.method_config": "MethodConfig",
}


class Option(NamedTuple):
    """An option of `conr-hf train`."""

    default: str  # as the source has it
    choices: list[str]  # empty where any value of the option's type is one
    help: str  # on one line; empty for an option that is TrainingArguments' own


@cache
def train_options() -> dict[str, Option]:
    """Every option of `conr-hf train` by its name."""
    options = {}
    for module, name in CLASSES.items():
        definition = _definition(name, module)
        assert isinstance(definition, ast.ClassDef)
        texts = argument_help(ast.get_docstring(definition) or "") if module.startswith("conr_hf.") else {}
        for node in definition.body:
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id[0] != "_":
                field = node.target.id
                options[field] = Option(_default(node.value), _choices(node.annotation, module), texts.get(field, ""))
    return options


def help_text() -> str:
    """What `conr-hf train --help` prints: the options of a recipe and of ConR, with their defaults."""
    lines = ["usage: conr-hf train RECIPE.yaml [--option value ...]", ""]
    lines += ["s is the standard deviation of the training labels, R their range.", ""]
    for name, option in train_options().items():
        if option.help:
            default = f" (default: {option.default})" if option.default not in ("", "None") else ""
            text = f"{f'--{name}':25} {option.help}{default}"
            lines += textwrap.wrap(text, 119, initial_indent="  ", subsequent_indent=" " * 28, break_on_hyphens=False)
    more = "and every field of transformers.TrainingArguments: --learning_rate, --num_train_epochs, --bf16, ..."
    return "\n".join([*lines, "", more])


def check_options(flags: Sequence[str], place: str) -> None:
    """
    Raises a `ValueError`, which names `place`, for an unknown option, with the nearest known one, and for a value that
    is none of an option's choices. `flags` are `--name value` or `--name=value`.
    """
    options = train_options()
    for flag, following in zip(flags, [*flags[1:], "--"], strict=False):
        if not flag.startswith("--"):
            continue
        written, _, value = flag[2:].partition("=")
        name = option_name(written)
        if name not in options:
            near = difflib.get_close_matches(name, options, n=1)
            hint = f'Did you mean "{near[0]}"?' if near else "conr-hf train --help lists them."
            raise ValueError(f'{place}: unknown option "{written}". {hint}')
        value, choices = value or following, options[name].choices
        if choices and value not in choices and not value.startswith("--"):
            raise ValueError(f'{place}: {name} is "{value}"; it must be one of {", ".join(choices)}.')


def option_name(written: str) -> str:
    """The name of an option however it is written: with dashes, or as `no_pretrained`."""
    name = written.replace("-", "_")
    return name if name in train_options() else name.removeprefix("no_")


def one_or_each(widths: Sequence[float] | None) -> float | Sequence[float] | None:
    """Bin widths as they are given to `--bin_width`: one alone is that of every label dimension."""
    return widths[0] if widths is not None and len(widths) == 1 else widths


def _default(value: ast.expr | None) -> str:
    if isinstance(value, ast.Constant):
        return str(value.value)
    if isinstance(value, ast.Call):  # field(default_factory=lambda: ...)
        return "".join(ast.unparse(word.value.body) for word in value.keywords if isinstance(word.value, ast.Lambda))
    return ast.unparse(value) if value is not None else ""


def _choices(annotation: ast.expr | None, module: str) -> list[str]:
    """The values that a type names: a `Literal` of strings, an enum, or one of them beside others."""
    match annotation:
        case ast.BinOp(left=left, right=right):
            return _choices(left, module) + _choices(right, module)
        case ast.Subscript(value=ast.Name(id="Literal"), slice=ast.Tuple(elts=parts)):
            constants = ([part.value] if isinstance(part, ast.Constant) else _choices(part, module) for part in parts)
            return [str(choice) for some in constants for choice in some]
        case ast.Name(id=name):
            match _definition(name, module):
                case ast.ClassDef(bases=bases, body=body) if any("Enum" in ast.unparse(base) for base in bases):
                    values = [node.value for node in body if isinstance(node, ast.Assign)]
                    return [str(value.value) for value in values if isinstance(value, ast.Constant)]
                case ast.expr() as alias:
                    return _choices(alias, module)
    return []


def _definition(name: str, module: str) -> ast.AST | None:
    """The class or value of a name at the top level of a module, or of the module that it is imported from."""
    for node in _statements(module):
        match node:
            case ast.ClassDef(name=found) if found == name:
                return node
            case ast.Assign(targets=[ast.Name(id=found)], value=value) if found == name:
                return value
            case ast.ImportFrom(module=str(source), names=names, level=level) if name in {one.name for one in names}:
                return _definition(name, f"{module.rpartition('.')[0]}.{source}" if level else source)
    return None


@cache
def _statements(module: str) -> list[ast.stmt]:
    package, *parts = module.split(".")
    spec = find_spec(package)  # for a module inside it, this would import the package
    if spec is None or not spec.submodule_search_locations:
        return []
    file = Path(spec.submodule_search_locations[0], *parts).with_suffix(".py")
    return ast.parse(file.read_text(encoding="utf-8")).body if file.is_file() else []
