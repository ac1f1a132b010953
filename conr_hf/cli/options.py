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
from typing import Any, NamedTuple

from conr_hf.utils.fields import argument_help

CLASSES = {  # by module; a later class overrides an earlier one, as in inheritance
    "conr_hf.cli.recipe": "Recipe",
    "transformers.training_args": "TrainingArguments",
    "conr_hf.training.config.config": "ConRConfig",
    "conr_hf.data.config": "DataConfig",
    "conr_hf.training.config.method_config": "MethodConfig",
}


_FIRST = ("data", "label_columns", "image_column", "unit")  # of their group
_MODEL = ("model", "pretrained", "weights", "image_size", "head")
_OUTPUT = ("output_dir", "overwrite_output_dir", "feature_index", "model_card_template")
_COMMON = {  # of the options that are TrainingArguments' own, those that a run begins with, by group
    "Training": {
        "num_train_epochs": "Passes over the training images.",
        "max_steps": "Steps in place of epochs; -1: as many as the epochs take.",
        "per_device_train_batch_size": "Images in a step, on each device.",
        "per_device_eval_batch_size": "Images that are evaluated at once, on each device.",
        "learning_rate": "Learning rate at its highest.",
        "weight_decay": "Weight decay of the optimizer.",
        "warmup_steps": "Steps in which the learning rate rises from 0; below 1, their share of all steps.",
        "lr_scheduler_type": "How the learning rate falls.",
        "bf16": "Mixed precision in bfloat16.",
        "gradient_accumulation_steps": "Batches whose gradients make one step.",
        "dataloader_num_workers": "Processes that read images.",
        "seed": "Of the weights, the order of the images and their views.",
        "use_cpu": "Leave a GPU alone.",
    },
    "Output": {
        "output_dir": "Folder of the run. Unset: runs/NAME, after the recipe's file.",
        "resume_from_checkpoint": "true goes on from the folder's last checkpoint; or the folder of one.",
        "save_total_limit": "Checkpoints to keep, the best one among them. Unset: all.",
        "logging_steps": "Steps between the lines of training.",
        "report_to": "tensorboard, trackio, mlflow, wandb, or several of them.",
        "push_to_hub": "Send the finished run to the Hub.",
        "hub_model_id": "Where to: owner/name. Unset: the folder's name.",
    },
}
_USAGE = """\
usage: conr-hf train RECIPE.yaml [--option value ...]

Trains a recipe, a YAML file or the name of one that comes with the package (conr-hf recipes); every option beats the
file's, and null leaves one of the file's out. On images of your own, named with their labels in a table:

  conr-hf train recipes/own-data.yaml --data gauges.csv --label_columns pressure --unit bar

R is the range of the training labels, the largest less the smallest, and s their standard deviation; both are in label
units, so that 0.6 s is six tenths of a standard deviation."""


class Option(NamedTuple):
    """An option of `conr-hf train`."""

    default: str  # as the source has it
    choices: list[str]  # empty where any value of the option's type is one
    help: str  # on one line; empty for an option that is TrainingArguments' own
    kind: str  # what is written behind it
    group: str  # of the help text


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
                field, choices = node.target.id, _choices(node.annotation, module)
                kind = "{" + ",".join(choices) + "}" if 0 < len(choices) < 10 else _kind(ast.unparse(node.annotation))
                options[field] = Option(_default(node.value), choices, texts.get(field, ""), kind, _group(field, name))
    return options


def help_text() -> str:
    """What `conr-hf train --help` prints: the options of a recipe and of ConR in groups, with their defaults."""
    lines = [_USAGE]
    for group in ("Data", "Model", "ConR", "Other methods", "Training", "Output"):
        lines += ["", f"{group}:"]
        known = {name: option for name, option in train_options().items() if option.group == group}
        common = _COMMON.get(group, {})
        texts = common | {name: option.help for name, option in known.items() if option.help}
        for name, text in sorted(texts.items(), key=lambda item: item[0] not in _FIRST):
            lines += _described(name, text, train_options()[name])
    return "\n".join([*lines, "", "And every other field of transformers.TrainingArguments."])


def _described(name: str, text: str, option: Option) -> list[str]:
    default = option.default.strip("[]'").replace(" / ", "/").replace("True", "true").replace("False", "false")
    text += f" (default: {default})" if default not in ("", "None") and "Unset:" not in text else ""
    look: dict[str, Any] = {"width": 119, "subsequent_indent": " " * 28, "break_on_hyphens": False}
    head = f"  --{name} {option.kind}"
    if len(head) < 28:
        return textwrap.wrap(text, initial_indent=head.ljust(28), **look)
    return [head, *textwrap.wrap(text, initial_indent=" " * 28, **look)]


def _group(name: str, of: str) -> str:
    if name in (*_MODEL, *_OUTPUT):
        return "Model" if name in _MODEL else "Output"
    if name.startswith("conr_"):
        return "ConR"
    of_class = {"Recipe": "Data", "DataConfig": "Data", "MethodConfig": "Other methods"}
    return "Training" if name == "stage_one" else of_class.get(of, "Training")


def _kind(annotation: str) -> str:
    """What is written behind an option of a type, as help texts call it."""
    names = {"bool": "true|false", "int": "INT", "float": "NUMBER", "list[str]": "NAME ...", "list[int]": "INT ..."}
    names |= {"list[float]": "NUMBER ..."}
    first = annotation.partition(" | ")[0]
    return names.get(first, "TEXT")


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


def unsets(name: str, values: Sequence[object]) -> bool:
    """Whether the `values` of an option leave it unset: `null`, or `none` where that is none of its values."""
    option = train_options().get(name)
    if option is None or len(values) != 1:
        return False
    return values[0] == "null" or (values[0] == "none" and not option.choices and name != "report_to")


def one_or_each(widths: Sequence[float] | None) -> float | Sequence[float] | None:
    """Bin widths as they are given to `--bin_width`: one alone is that of every label dimension."""
    return widths[0] if widths is not None and len(widths) == 1 else widths


def _default(value: ast.expr | None) -> str:
    if isinstance(value, ast.Constant):
        return str(value.value)
    if isinstance(value, ast.Call):  # field(default=...) or field(default_factory=lambda: ...)
        given = {word.arg: word.value for word in value.keywords}
        made = given.get("default_factory")
        return ast.unparse(made.body) if isinstance(made, ast.Lambda) else _default(given.get("default"))
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
