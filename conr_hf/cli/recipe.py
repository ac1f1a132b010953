"""Recipes: one YAML file a run, every option also on the command line."""

import difflib
import json
import os
import shutil
from argparse import ArgumentError
from collections.abc import Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields
from importlib.resources import files
from pathlib import Path, PureWindowsPath
from typing import Any

from transformers import HfArgumentParser

from conr_hf.cli.yaml_loader import read_yaml
from conr_hf.training.config.config import ConRConfig
from conr_hf.utils.fields import about

FOLDER = Path(str(files("conr_hf"))) / "recipes"


@dataclass
class Recipe:
    """
    What a run trains on what. Settings of the training itself are [`ConRConfig`]'s; one file holds both.

    Args:
        model (`str`): As in `load_regressor`.
        benchmark (`str`, *optional*): As in `load_benchmark`; or `data`.
        benchmark_source (`str`, *optional*): Where the benchmark is, if it does not come with the package.
        data (`str`, *optional*): A folder of images, a table, or a data set on the Hub.
        streaming (`bool`, *optional*, defaults to `False`): Read the training split as a stream, as in `load_stream`.
        shuffle_buffer (`int`, *optional*, defaults to 1000): Rows of the stream that the next one is drawn from.
        label_histogram (`str`, *optional*):
            A CSV file with columns `low`, `high` and `count`, the bins of the stream's labels and how many labels are
            in each. Unset: the stream's labels are read once.
        pretrained, weights, image_size (*optional*): As in `load_regressor`.
        target (`list[str]`, *optional*): What the predictions are called. Unset: the benchmark's, or `label_columns`.
        unit (`str`, *optional*): Unit of the labels. Unset: the benchmark's, or none.
        feature_index (`bool`, *optional*, defaults to `False`):
            Write features of up to 5,000 training images and their labels beside the model, for `conr-hf demo`.
        stage_one (`str`, *optional*):
            Options of a run before this one, as in `{reweight: none}`; all others are this run's, but for
            `retrain_head` and `freeze_backbone`. It is trained into `output_dir/stage-one`, and this run starts from
            its model.
    """

    model: str = field(default="", metadata=about("Model: Hub id, local folder or timm/NAME."))
    benchmark: str | None = field(default=None, metadata=about("Benchmark to train on, such as earth-elevation."))
    benchmark_source: str | None = field(
        default=None, metadata=about("Where it is, unless it comes with the package: folder, table, or Hub id.")
    )
    data: str | None = field(
        default=None,
        metadata=about("Your own data: folder of images with metadata, CSV, JSONL, Parquet, or Hub id."),
    )
    streaming: bool = field(
        default=False, metadata=about("Read the training split of Parquet files, or of the Hub, as a stream.")
    )
    shuffle_buffer: int = field(default=1000, metadata=about("Rows of a stream that the next one is drawn from."))
    label_histogram: str | None = field(
        default=None, metadata=about("CSV with low,high,count of a stream's labels, which then is not read for them.")
    )
    pretrained: bool = field(default=True, metadata=about("Start from pretrained weights."))
    weights: str | None = field(default=None, metadata=about("Local file of weights for a timm model."))
    image_size: int | None = field(default=None, metadata=about("Side of the model's input in pixels."))
    target: list[str] | None = field(default=None, metadata=about("What the predictions are called."))
    unit: str | None = field(default=None, metadata=about("Unit of the labels."))
    feature_index: bool = field(
        default=False, metadata=about("Keep features of training images beside the model, for conr-hf demo.")
    )
    stage_one: str | None = field(
        default=None, metadata=about("What differs in a run before this one, whose model this one starts from.")
    )


def read_recipe(arguments: Sequence[str]) -> tuple[Recipe, ConRConfig, dict[str, Any]]:
    """
    Reads `RECIPE.yaml --option value ...`; the command line beats the file.

    Args:
        arguments (`Sequence[str]`): The file first, if there is one. A recipe that is no file here is looked for among
            those that come with the package.

    Returns:
        The recipe, the settings, and by name every option that was given or is ours, but for tokens: a recipe that
        repeats the run, whatever defaults become.

    Raises:
        `ValueError`: for an unknown option, with the nearest known one, and for a value that cannot be meant.
    """
    rest = list(arguments)
    path = rest.pop(0) if rest and not rest[0].startswith("--") else None
    options = flags_of(options_of(path)) if path is not None else []
    name = PureWindowsPath(path).stem if path is not None else "run"  # of either kind of path
    parser = HfArgumentParser(
        [Recipe, ConRConfig],  # type: ignore[list-item]
        add_help=False,
        allow_abbrev=False,
        exit_on_error=False,
        conflict_handler="resolve",
    )
    parser.add_argument("--report_to", "--report-to", nargs="+", default="none")  # transformers' own takes one name
    try:
        recipe, args, unknown = parser.parse_args_into_dataclasses(
            ["--output_dir", f"runs/{name}", *options, *rest], return_remaining_strings=True, look_for_args_file=False
        )
    except ArgumentError as error:
        wrong = str(error.argument_name).partition("/")[0].removeprefix("--")
        place = "command line" if path is None or wrong in _names(rest) else path
        problem = error.message.rstrip(".")
        raise ValueError(f"{place}, {wrong}: {problem}. conr-hf train --help tells what an option takes.") from error
    if unknown and not unknown[0].startswith("--"):
        place = "command line" if path is None or unknown[0] in rest else path
        raise ValueError(f'{place}: "{unknown[0]}" belongs to no option. Write each option as --name value.')
    if unknown:
        raise ValueError(_unknown(unknown[0].removeprefix("--").partition("=")[0], "command line"))
    if not recipe.model:
        raise ValueError('No model is named. Add "model: ..." to the recipe, or --model ... behind it.')
    if (recipe.benchmark is None) == (recipe.data is None):
        raise ValueError("Name what to train on: either a benchmark or data, and not both.")
    if recipe.benchmark_source is not None and recipe.benchmark is None:
        raise ValueError(f'benchmark_source is "{recipe.benchmark_source}", but no benchmark is named. Use data.')
    if recipe.label_histogram is not None and not recipe.streaming:
        raise ValueError(
            f'label_histogram is "{recipe.label_histogram}", but streaming is false, so that the labels are read. '
            "Leave it out."
        )
    if recipe.feature_index and recipe.streaming:
        raise ValueError("feature_index is true, but streaming reads no training row twice. Leave one of them out.")
    if recipe.shuffle_buffer < 1:
        raise ValueError(f"shuffle_buffer is {recipe.shuffle_buffer}; it must be 1 or more.")
    values = {**args.to_dict(), **asdict(recipe)}
    ours = [option.name for option in fields(Recipe)] + ConRConfig.own_fields()
    kept = dict.fromkeys([*ours, *_names([*options, *rest]), "seed", "output_dir"])
    kept.pop("resume_from_checkpoint", None)  # a resumed run is the run that nothing interrupted
    told = [name for name in kept if values[name] is not None and not name.endswith("_token")]
    return recipe, args, {name: values[name] for name in told}


def help_text() -> str:
    """What `conr-hf train --help` prints: the options of a recipe and of ConR, with their defaults."""
    own = [option for option in fields(ConRConfig) if option.name in ConRConfig.own_fields()]
    lines = ["usage: conr-hf train RECIPE.yaml [--option value ...]", ""]
    for option in (*fields(Recipe), *own):
        default = option.default_factory() if option.default is MISSING else option.default  # type: ignore[operator]
        unset = "" if default in (None, "") else f" (default: {default})"
        lines.append(f"  --{option.name:24}{option.metadata['help'].replace('%%', '%')}{unset}")
    return "\n".join(
        [
            *lines,
            "",
            "and every field of transformers.TrainingArguments: --learning_rate, --num_train_epochs, --bf16, ...",
        ]
    )


def names() -> list[str]:
    """Names of the recipes that come with the package, such as `quickstart.yaml`."""
    return sorted(path.relative_to(FOLDER).as_posix() for path in FOLDER.rglob("*.yaml"))


def packaged(name: str) -> Path:
    """
    The path of a recipe that comes with the package.

    Raises:
        `ValueError`: if there is none of that name; it suggests the nearest.
    """
    wanted = PureWindowsPath(name).as_posix().removeprefix("recipes/").removesuffix(".yaml") + ".yaml"
    if wanted not in names():
        near = difflib.get_close_matches(wanted, names(), n=1)
        hint = f"Did you mean {near[0]}?" if near else "conr-hf recipes lists those that come with the package."
        raise ValueError(f'There is no recipe "{name}". {hint}')
    return FOLDER / wanted


def copy(name: str, destination: str) -> Path:
    """Copies a packaged recipe to a file or into a folder; an existing file is not replaced."""
    source, target = packaged(name), Path(destination)
    target = target / source.name if target.is_dir() else target
    if target.exists():
        raise ValueError(f'"{target}" exists. Name another file, or remove it.')
    try:
        shutil.copyfile(source, target)
    except OSError as error:
        raise ValueError(f'"{target}" cannot be written ({error.strerror}). Name another file or folder.') from error
    return target


def options_of(path: str) -> dict[str, Any]:
    """
    The options that a recipe's file sets.

    Args:
        path (`str`): A file, or the name of a recipe that comes with the package.

    Raises:
        `ValueError`: if there is no such file, it is no YAML, or an option is unknown.
    """
    file = Path(path) if os.path.isfile(path) else packaged(path)
    options = read_yaml(file) or {}
    if not isinstance(options, dict):
        raise ValueError(f"{path} is not a recipe. Write one option a line, as in name: value.")
    known = {option.name for option in (*fields(Recipe), *fields(ConRConfig)) if option.init}
    for name in options:
        if name not in known:
            raise ValueError(_unknown(str(name), path))
    return options


def flags_of(options: dict[str, Any]) -> list[str]:
    """Options as a command line has them."""
    flags = []
    for name, value in options.items():
        if value is None:
            continue
        if value is False and name.endswith("_strategy"):
            value = "no"  # what YAML reads as false
        if name == "report_to" and not value:
            value = "none"
        if isinstance(value, dict):
            value = json.dumps(value)
        values = value if isinstance(value, list) else [value]
        flags += [f"--{name}", *(str(item).lower() if isinstance(item, bool) else str(item) for item in values)]
    return flags


def _names(flags: Sequence[str]) -> list[str]:
    """Names of the options among `flags`; `--no_pretrained` sets `pretrained`."""
    known = {option.name for option in (*fields(Recipe), *fields(ConRConfig)) if option.init}
    names = [flag[2:].partition("=")[0].replace("-", "_") for flag in flags if flag.startswith("--")]
    return [name if name in known else name.removeprefix("no_") for name in names]


def _unknown(name: str, place: str) -> str:
    known = [option.name for option in (*fields(Recipe), *fields(ConRConfig)) if option.init]
    near = difflib.get_close_matches(name.replace("-", "_"), known, n=1)
    hint = f'Did you mean "{near[0]}"?' if near else "conr-hf train --help lists them."
    return f'{place}: unknown option "{name}". {hint}'
