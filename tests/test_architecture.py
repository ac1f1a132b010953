"""How the package hangs together: which module may import which, and what an installation has in it."""

import ast
import importlib
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import conr_hf

PACKAGE = Path(conr_hf.__file__).parent
FILES = {
    path.relative_to(PACKAGE).with_suffix("").as_posix().replace("/", ".").removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}
ROOT_MODULE = "__init__"

BELOW_TRAINING = {"utils", "losses", "imbalance", "metrics", "models", "data"}
ARROWS = {  # a folder of the package -> the other folders it may import
    "utils": set(),
    "losses": set(),
    "imbalance": set(),
    "metrics": {"imbalance"},
    "models": {"utils"},
    "plots": {"imbalance", "metrics"},
    "data": {"imbalance", "metrics", "utils"},
    "hub": {"data", "metrics", "models", "utils"},
    "training": {*BELOW_TRAINING, "hub"},
    "inference": {*BELOW_TRAINING, "training", "plots"},
    "pipeline": {"inference", "models", "data"},
    "cli": {*BELOW_TRAINING, "hub", "training", "inference", "pipeline", "plots"},
    "__main__": {"cli"},
}


def part_of(module):
    return module.split(".")[0]


def tree_of(module):
    return ast.parse(FILES[module].read_text(encoding="utf-8"))


def imported(module):
    """Full names of the modules that a module imports, those inside its functions among them."""
    names = []
    for node in ast.walk(tree_of(module)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively: write conr_hf.... instead"
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            modules = [name for name in inner if node.module == "conr_hf" or name.removeprefix("conr_hf.") in FILES]
            names += modules or [node.module]
    return names


def inner(module):
    return {name.removeprefix("conr_hf.") for name in imported(module) if name.split(".")[0] == "conr_hf"}


def outer(module):
    return {name.split(".")[0] for name in imported(module)} - {"conr_hf"} - set(sys.stdlib_module_names)


MODULES = [module for module in FILES if module != ROOT_MODULE]


def test_the_root_holds_folders():
    """A new concern is a folder; a new part of one is a file in it."""
    entries = {path.name for path in PACKAGE.iterdir() if path.name != "__pycache__"}
    folders = entries - {"__init__.py", "__main__.py", "pipeline.py", "py.typed", "recipes"}
    assert all((PACKAGE / name / "__init__.py").is_file() for name in folders), sorted(folders)
    assert len(folders) <= 12, sorted(folders)


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_folders_below_its_own(module):
    part = part_of(module)
    assert part in ARROWS, f"{part} is new: give its folder a place among the arrows"
    found = {part_of(name) for name in inner(module)} - {part}
    assert found <= ARROWS[part], f"{module} imports {', '.join(sorted(found - ARROWS[part]))}"


def test_the_arrows_make_no_circle():
    """A circle imports in one order and fails in another."""
    uses = {module: {name for name in inner(module) if name in FILES} - {module} for module in MODULES}
    done, left = set(), set(uses)
    while left:
        free = {module for module in left if uses[module] - {module} <= done}
        assert free, f"these import each other: {', '.join(sorted(left))}"
        done, left = done | free, left - free


def test_the_losses_need_torch_alone_and_rarity_numpy_beside_it():
    for module in FILES:
        if part_of(module) == "losses":
            assert outer(module) <= {"torch"}, module
        if part_of(module) == "imbalance":
            extra = {"sklearn"} if module == "imbalance.mixture" else set()  # imported where it is used
            assert outer(module) <= {"torch", "numpy"} | extra, module


def test_the_page_of_a_demo_stands_alone():
    """A Space has a copy of it, and need not have this package."""
    assert inner("cli.demo.page") == set()
    assert outer("cli.demo.page") == {"gradio", "torch"}  # imported where they are used


def test_losses_never_hold_a_model():
    """They take tensors, so that any training loop can use them."""
    for module in FILES:
        if part_of(module) == "losses":
            names = {node.attr for node in ast.walk(tree_of(module)) if isinstance(node, ast.Attribute)}
            assert not names & {"Linear", "Conv2d", "Parameter", "register_forward_hook"}, module


def test_only_the_package_and_its_heaviest_folders_load_names_on_demand():
    for module, path in FILES.items():
        names = {node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)}
        assert ("__getattr__" in names) == (module in (ROOT_MODULE, "data", "metrics", "models")), module


def test_every_public_name_is_there_and_explained():
    assert sorted(conr_hf.__all__) == sorted(conr_hf._HOME)
    assert set(conr_hf.__all__) <= set(dir(conr_hf))
    for name in conr_hf.__all__:
        found = getattr(conr_hf, name)
        assert found is getattr(importlib.import_module(f"conr_hf.{conr_hf._HOME[name]}"), name)
        text = found.__doc__ or ""
        assert len(text.strip()) > 100, name
        assert not text.startswith(f"{name}("), name  # what dataclasses write for want of a docstring
        for part in ("Args:", "Example:", "Raises:"):
            assert part in text, (name, part)


def test_an_unknown_name_is_an_attribute_error():
    """`hasattr`, `pickle` and `from conr_hf import ...` count on it."""
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = conr_hf.no_such_name
    with pytest.raises(ImportError):
        exec("from conr_hf import no_such_name")


def python(code):
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=300, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip()


def test_importing_the_package_is_instant():
    """Neither torch nor transformers is loaded before a name is used."""
    code = "import sys, conr_hf; print(sorted({'torch', 'transformers', 'datasets', 'numpy'} & set(sys.modules)))"
    assert python(code) == "[]"
    assert python("import sys, conr_hf.cli.main; print('torch' in sys.modules)") == "False"


def test_every_module_loads_in_an_installation_without_extras():
    """What `pip install conr-hf` does not bring must not be needed before it is used."""
    names = sorted(f"conr_hf.{module}" for module in MODULES if module != "__main__")
    code = f"""
import importlib, sys
for name in ("matplotlib", "gradio", "optuna", "peft", "pytest", "mypy"):
    sys.modules[name] = None
for name in {names}:
    importlib.import_module(name)
print("done")
"""
    assert python(code).endswith("done")


def test_the_package_reads_no_file_outside_itself():
    """A checkout has more around it than an installation."""
    for module, path in FILES.items():
        text = path.read_text(encoding="utf-8")
        for sign in ("parents[", ".parent.parent", "../", "getcwd", "Path.cwd"):
            assert sign not in text, (module, sign)


def test_a_wheel_holds_recipes_benchmark_and_types(tmp_path):
    pytest.importorskip("hatchling")
    project = PACKAGE.parent
    if not (project / "pyproject.toml").is_file():
        pytest.skip("conr_hf is installed; there is no project to build")
    code = f"import os; os.chdir({str(project)!r}); from hatchling.build import build_wheel; "
    wheel = tmp_path / python(code + f"print(build_wheel({str(tmp_path)!r}))").splitlines()[-1]
    names = set(zipfile.ZipFile(wheel).namelist())
    shown = {"conr_hf/py.typed", "conr_hf/recipes/quickstart.yaml", "conr_hf/hub/templates/model_card.md"}
    folders, splits = ("earth_elevation", "earth_elevation_map"), ("train", "validation", "test")
    benchmark = {f"conr_hf/data/benchmarks/{folder}/{split}.parquet" for folder in folders for split in splits}
    assert shown | benchmark <= names
    for path in FILES.values():
        assert path.relative_to(project).as_posix() in names
    assert not {name for name in names if name.startswith(("tests/", "recipes/"))}
