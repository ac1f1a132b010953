"""Recipes: one YAML file a run, every option also on the command line."""

import difflib
import json
import os
import shutil
from argparse import ArgumentError
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from importlib.resources import files
from pathlib import Path, PureWindowsPath
from typing import TYPE_CHECKING, Any

from conr_hf.cli.options import check_options, option_name, unsets
from conr_hf.cli.yaml_loader import read_yaml
from conr_hf.utils.fields import warn_without_effect, with_help

if TYPE_CHECKING:
    from conr_hf.training.config.config import ConRConfig

FOLDER = Path(str(files("conr_hf"))) / "recipes"


@with_help
@dataclass
class Recipe:
    """
    The model and the data of a run. A recipe's file holds these and the settings of [`ConRConfig`].

    Args:
        model (`str`): Model: a Hub id, a local folder or timm/NAME.
        benchmark (`str`, *optional*): Benchmark to train on, such as earth-elevation.
        benchmark_source (`str`, *optional*):
            Where the benchmark is, unless it comes with the package: a folder, a table or a Hub id.
        data (`str`, *optional*):
            Your own data: a folder of images with metadata, a CSV, JSON or Parquet file, or a Hub id.
        data_config (`str`, *optional*): Which of the data's configurations, where its card names several.
        image_folder (`str`, *optional*): Folder that the data's paths of images are relative to. Unset: the table's.
        image_suffix (`str`, *optional*): Ending of the images, as in .png, where a table has their names without.
        validation_share (`float`, *optional*):
            Where the data has no split "validation": take this share of each label bin of the training rows for it, at
            most 30 rows, by the rule of `conr-hf split`; 0.15 for example, at most 0.5.
        group_column (`str`, *optional*):
            Column of what `validation_share` must not divide: a person, a photograph.
        streaming (`bool`, *optional*, defaults to `False`):
            Read the training split of Parquet files, or of the Hub, as a stream.
        shuffle_buffer (`int`, *optional*, defaults to 1000): Rows of a stream that the next one is drawn from.
        label_histogram (`str`, *optional*):
            CSV file with columns low, high and count: the bins of a stream's labels and the number of labels in each.
            Unset: the stream's labels are read once.
        pretrained (`bool`, *optional*, defaults to `True`): Start from pretrained weights.
        weights (`str`, *optional*): Local file of weights for a timm model.
        image_size (`int`, *optional*): Side of the model's input in pixels.
        target (`list[str]`, *optional*): Names of the predictions. Unset: the benchmark's, or `label_columns`.
        unit (`str`, *optional*): Unit of the labels. Unset: the benchmark's, or none.
        feature_index (`bool`, *optional*, defaults to `False`):
            Write features of up to 5,000 training images and their labels beside the model, for `conr-hf demo`.
        stage_one (`str`, *optional*):
            Options of a run before this one, as in `{reweight: none}`; the others are this run's, except for
            `retrain_head`, `freeze_backbone` and `refit_head`. It is trained into `output_dir/stage-one`, and this run
            starts from its model.
    """

    model: str = ""
    benchmark: str | None = None
    benchmark_source: str | None = None
    data: str | None = None
    data_config: str | None = None
    image_folder: str | None = None
    image_suffix: str | None = None
    validation_share: float | None = None
    group_column: str | None = None
    streaming: bool = False
    shuffle_buffer: int = 1000
    label_histogram: str | None = None
    pretrained: bool = True
    weights: str | None = None
    image_size: int | None = None
    target: list[str] | None = None
    unit: str | None = None
    feature_index: bool = False
    stage_one: str | None = None


def read_recipe(arguments: Sequence[str]) -> tuple[Recipe, "ConRConfig", dict[str, Any]]:
    """
    Reads `RECIPE.yaml --option value ...`, a file or the name of a recipe of the package; the command line overrides
    it. `--data` takes the place of the file's benchmark, and `--benchmark` that of its data; `null`, or `none` where
    that is no value of the option, leaves an option of the file out.

    Returns the recipe, the settings, and by name every option that was set or is ours, except tokens: a recipe that
    repeats the run even if defaults change. Raises a `ValueError` for an option or a value that does not exist.
    """
    rest = list(arguments)
    path = rest.pop(0) if rest and not rest[0].startswith("--") else None
    file = path or "command line"
    rest, unset = _without_unset(rest)
    check_options(rest, "command line")
    in_file = {} if path is None else options_of(path)
    left_out = (*unset, *_replaced(in_file, _names(rest)))
    options = flags_of({name: value for name, value in in_file.items() if name not in left_out})
    check_options(options, file)
    # Only now, as importing them takes seconds.
    from transformers import HfArgumentParser

    from conr_hf.training.config.config import ConRConfig

    classes: Any = [Recipe, ConRConfig]
    parser = HfArgumentParser(
        classes, add_help=False, allow_abbrev=False, exit_on_error=False, conflict_handler="resolve"
    )
    parser.add_argument("--report_to", "--report-to", nargs="+", default="none")  # transformers' own takes one name
    # It was on by default once; transformers' parser makes the negative of such options alone.
    negative = "--no_horizontal_flip", "--no-horizontal-flip"
    parser.add_argument(*negative, dest="horizontal_flip", action="store_false", default=False)
    name = PureWindowsPath(path).stem if path is not None else "run"  # of either kind of path
    try:
        recipe, args, unknown = parser.parse_args_into_dataclasses(
            ["--output_dir", f"runs/{name}", *options, *rest], return_remaining_strings=True, look_for_args_file=False
        )
    except ArgumentError as error:
        wrong = str(error.argument_name).partition("/")[0].removeprefix("--")
        problem = f"{wrong}: {error.message.rstrip('.')}. conr-hf train --help describes every option."
        raise ValueError(f"{'command line' if wrong in _names(rest) else file}, {problem}") from error
    if unknown:
        place = "command line" if unknown[0] in rest else file
        raise ValueError(f'{place}: "{unknown[0]}" belongs to no option. Write each option as --name value.')
    if not recipe.model:
        raise ValueError('No model is named. Add "model: ..." to the recipe, or --model ... behind it.')
    if (recipe.benchmark is None) == (recipe.data is None):
        raise ValueError("Name what to train on: either a benchmark or data, and not both.")
    if recipe.feature_index and recipe.streaming:
        raise ValueError("feature_index is true, but streaming reads no training row twice. Leave one of them out.")
    if recipe.validation_share is not None and not 0 < recipe.validation_share <= 0.5:
        raise ValueError(
            f"validation_share is {recipe.validation_share}; it must be above 0 and at most 0.5, as 0.15."
        )
    if recipe.validation_share is not None and recipe.streaming:
        raise ValueError(
            "validation_share is set, but of a stream no row can be had at will. Leave it out, and divide the data "
            "with conr-hf split."
        )
    if recipe.shuffle_buffer < 1:
        raise ValueError(f"shuffle_buffer is {recipe.shuffle_buffer}; it must be 1 or more.")
    warn_without_effect(
        recipe,
        {
            "benchmark_source": (recipe.benchmark is not None, "benchmark"),
            "data_config": (recipe.data is not None, "data"),
            "image_folder": (recipe.data is not None and not recipe.streaming, "data, and no streaming"),
            "image_suffix": (recipe.data is not None and not recipe.streaming, "data, and no streaming"),
            "group_column": (recipe.validation_share is not None, "validation_share"),
            "label_histogram": (recipe.streaming, "streaming"),
            "shuffle_buffer": (recipe.streaming, "streaming"),
        },
    )
    values = {**args.to_dict(), **asdict(recipe)}
    ours = [option.name for option in fields(Recipe)] + ConRConfig.own_fields()
    recorded = dict.fromkeys([*ours, *_names([*options, *rest]), "seed", "output_dir"])
    for name in ("resume_from_checkpoint", "overwrite_output_dir"):  # a resumed run equals an uninterrupted one
        recorded.pop(name, None)
    names = [name for name in recorded if values[name] is not None and not name.endswith("_token")]
    return recipe, args, {name: values[name] for name in names}


def names() -> list[str]:
    """Names of the recipes that come with the package, such as `quickstart.yaml`."""
    return sorted(path.relative_to(FOLDER).as_posix() for path in FOLDER.rglob("*.yaml"))


def packaged(name: str) -> Path:
    """The path of a recipe that comes with the package; without one of that name, a `ValueError` with the nearest."""
    wanted = PureWindowsPath(name).as_posix().removeprefix("recipes/").removesuffix(".yaml")
    if f"{wanted}.yaml" not in names():
        beside = [str(path) for path in Path(name).parent.glob("*.yaml")] if Path(name).parent.is_dir() else []
        known = {file.removesuffix(".yaml"): file for file in (*names(), *beside)}  # .yaml alone would make them alike
        near = difflib.get_close_matches(wanted, known, n=1)
        hint = f"Did you mean {known[near[0]]}?" if near else "conr-hf recipes lists those that come with the package."
        raise ValueError(f'There is no recipe "{name}". {hint}')
    return FOLDER / f"{wanted}.yaml"


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
    """The options set by a recipe, a file or the name of one of the package; raises for one that is unknown."""
    file = Path(path) if os.path.isfile(path) else packaged(path)
    options = read_yaml(file) or {}
    if not isinstance(options, dict):
        raise ValueError(f"{path} is not a recipe. Write one option a line, as in name: value.")
    check_options([f"--{name}" for name in options], path)
    return options


def overridden(options: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """
    Options with changes to them; `data` takes the place of a `benchmark`, with the flips that its labels allow, and a
    benchmark that of data.
    """
    replaced = _replaced(options, [name for name, value in changes.items() if value is not None])
    return {name: value for name, value in options.items() if name not in replaced} | changes


def _replaced(options: Mapping[str, Any], given: Sequence[str]) -> list[str]:
    """What a recipe's options say of its data that does not hold for the data that are `given` in their place."""
    if "data" in given and "benchmark" not in given:
        of_benchmark = options.get("benchmark") is not None
        return ["benchmark", "benchmark_source", *(["horizontal_flip"] if of_benchmark else [])]
    return ["data"] if "benchmark" in given and "data" not in given else []


def _without_unset(flags: Sequence[str]) -> tuple[list[str], list[str]]:
    """A command line without the options that it unsets, as in `--unit null`, and the names of these."""
    given: list[list[str]] = []  # each option with its values
    for word in flags:
        if word.startswith("--") or not given:
            given.append([])
        given[-1].append(word)
    kept, unset = list[str](), list[str]()
    for option, *values in given:
        name, _, value = option[2:].partition("=")
        if unsets(option_name(name), [value, *values] if value else values):
            unset.append(option_name(name))
        else:
            kept += [option, *values]
    return kept, unset


def flags_of(options: dict[str, Any]) -> list[str]:
    """Options as they are written on a command line."""
    flags = []
    for name, value in options.items():
        if value is None or unsets(name, [value]):
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
    return [option_name(flag[2:].partition("=")[0]) for flag in flags if flag.startswith("--")]
