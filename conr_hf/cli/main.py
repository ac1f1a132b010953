"""`conr-hf`: train, evaluate, correct, predict, demo, export, compare, report, card, push, inspect, split, ..."""

import argparse
import difflib
import sys
from collections.abc import Sequence
from fractions import Fraction

from conr_hf.cli import commands

EXAMPLES = """examples:
  conr-hf train recipes/quickstart.yaml --conr_gradient_share 0.15
  conr-hf evaluate runs/quickstart
  conr-hf predict runs/quickstart photos/ --output heights.csv
  conr-hf report runs/quickstart
  conr-hf demo runs/quickstart

on images of your own, with their labels in a table:
  conr-hf inspect gauges.csv --label_columns bar
  conr-hf split gauges.csv --label_columns bar --output gauges
  conr-hf train recipes/own-data.yaml --data gauges --label_columns bar --unit bar --output_dir runs/gauges
  conr-hf predict runs/gauges new.csv --interval --output readings.csv

`conr-hf train --help` lists every option of a recipe."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs a command and exits: 0 done, 2 bad input, 1 anything else, 130 interrupted, 143 terminated."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        sys.exit(_run(given))
    except ValueError as error:
        sys.exit(_print_error(error, 2))
    except KeyboardInterrupt as error:
        if not error.args:  # training has printed where it stopped
            print("\nInterrupted.", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(141)
    except (ConnectionError, FloatingPointError) as error:
        sys.exit(_print_error(error, 1))
    except OSError as error:
        if error.errno is not None:  # the system's, not a sentence of ours
            raise
        sys.exit(_print_error(error, 1))


def _print_error(error: Exception, code: int) -> int:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    if any("Traceback" in line for line in lines):  # a data-loader worker's; its last line is the sentence
        lines = [lines[-1].removeprefix("ValueError: ")]
    print(f"conr-hf: {' '.join(lines)}", file=sys.stderr)
    return code


def _run(given: list[str]) -> int:
    if given[:1] == ["train"]:
        commands.train(given[1:])
        return 0
    parser = argparse.ArgumentParser(
        prog="conr-hf",
        description="Fine-tune vision models for imbalanced regression with ConR.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    subparsers.add_parser("train", help="train a recipe: conr-hf train RECIPE.yaml [--option value ...]")

    evaluate = subparsers.add_parser("evaluate", help="errors of a saved model, per shot")
    evaluate.add_argument("model", help="run folder, checkpoint or Hub id")
    evaluate.add_argument("--split", default="test", help="which split (default: test)")
    _data_of_saved(evaluate)
    evaluate.add_argument("--output", help="folder for results.json, predictions.csv (or maps.png) and density.png")

    correct = subparsers.add_parser("correct", help="a line through a finished run's predictions, within its model")
    correct.add_argument("run", help="folder that conr-hf train wrote", metavar="RUN")
    correct.add_argument(
        "--output_dir", metavar="FOLDER", help="where the corrected run goes (default: RUN-corrected)"
    )
    correct.add_argument("--in_place", action="store_true", help="write the corrected run into its own folder")
    _data_of_saved(correct)

    predict = subparsers.add_parser("predict", help="predictions for images, or for the images of a data set")
    predict.add_argument("model", help="run folder, checkpoint or Hub id")
    what = "image files, or folders of them; or a table (.csv, .jsonl, .parquet) that names or holds images"
    predict.add_argument("images", nargs="*", help=what, metavar="IMAGE|FOLDER|TABLE")
    predict.add_argument("--data", help="in place of images: a data set, which may be a folder or a Hub id")
    predict.add_argument("--split", help="of a table or data set, this split alone (default: all)")
    _image_column(predict, default=None)
    _image_files(predict)
    predict.add_argument("--interval", action="store_true", help="the ends of each prediction's interval too")
    predict.add_argument("--output", help="write to this .csv or .json file, not the terminal; for maps, the folder")
    predict.add_argument("--batch_size", type=_positive, default=32)

    export = subparsers.add_parser("export", help="a saved model as ONNX, for torch.export or for timm")
    export.add_argument("model", help="run folder, checkpoint or Hub id")
    export.add_argument("--format", required=True, choices=("onnx", "torch-export", "timm"))
    export.add_argument("--output", metavar="FILE", help="the file (default: in the model's folder)")

    compare = subparsers.add_parser("compare", help="train methods x seeds, and set them side by side")
    compare.add_argument("comparison", help="YAML file: recipes, methods, seeds")
    where = "where runs and tables go (default: the file's)"
    compare.add_argument("--output_dir", "--output", metavar="FOLDER", help=where)

    report = subparsers.add_parser("report", help="pictures of finished runs, and what their features say")
    report.add_argument("runs", nargs="+", help="folders that conr-hf train wrote", metavar="RUN")
    report.add_argument("--split", default="test", help="which split (default: test)")
    report.add_argument("--output", help="folder to write to (default: report, in the first run)")

    card = subparsers.add_parser("card", help="write the model card of a finished run again")
    card.add_argument("run", help="folder that conr-hf train wrote", metavar="RUN")
    card.add_argument("--template", help="file with a Jinja template (default: the package's own)", metavar="FILE")

    push = subparsers.add_parser("push", help="send a finished run to the Hub")
    push.add_argument("run", help="folder that conr-hf train wrote", metavar="RUN")
    push.add_argument("model_id", nargs="?", help="owner/name on the Hub (default: the folder's name)")
    push.add_argument("--private", action="store_true", help="make the repository a private one, if it is not there")
    push.add_argument("--revision", help="branch to push to (default: the main one)")

    recipes = subparsers.add_parser("recipes", help="list, show or copy the recipes that come with the package")
    recipes.add_argument("action", nargs="?", choices=("list", "show", "copy"), default="list")
    recipes.add_argument("name", nargs="?", help="which recipe")
    recipes.add_argument("destination", nargs="?", default=".", help="where to copy it (default: here)")

    demo = subparsers.add_parser("demo", help="a saved model in the browser, or as a folder for a Space")
    demo.add_argument("model", help="run folder, checkpoint or Hub id")
    demo.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine alone)")
    demo.add_argument("--port", type=_positive, help="port to listen on (default: the first free one from 7860 on)")
    demo.add_argument("--max_size", type=_positive, default=10, metavar="MB", help="largest upload (default: 10)")
    demo.add_argument("--examples", metavar="FOLDER", help="images to choose from (default: the benchmark's)")
    demo.add_argument("--export", metavar="FOLDER", help="write a Space there instead of listening")
    demo.add_argument("--with_model", action="store_true", help="copy the model into the Space")

    inspect = subparsers.add_parser("inspect", help="what is in a data set, and what is wrong with it")
    inspect.add_argument("data", help="your own data: folder of images, table, or Hub id", metavar="DATA")
    _label_columns(inspect)
    _image_column(inspect)
    _image_files(inspect)
    _group_column(inspect)
    _bin_width(inspect)
    inspect.add_argument("--map_scale", type=float, default=1.0, help="label units in a stored number of a map")
    inspect.add_argument("--map_invalid", type=float, help="stored number of a map that means there is no label")
    inspect.add_argument(
        "--image_range", type=float, nargs=2, metavar=("LOW", "HIGH"), help="black and white of 16-bit images"
    )
    inspect.add_argument("--unit", default="", help="unit of the labels, for the figure")
    inspect.add_argument("--output", help="folder for labels.png and inspection.json (default: write nothing)")
    about = "draw so many views of six training images, by the options below, into views.png in --output"
    inspect.add_argument("--views", type=_positive, metavar="N", help=about)
    inspect.add_argument("--augmentation", choices=("none", "light", "medium", "strong"), default="light")
    for name, default in {"augment_color": True, "horizontal_flip": False, "vertical_flip": False}.items():
        inspect.add_argument(f"--{name}", type=_boolean, default=default, metavar="true|false")
    inspect.add_argument("--crop_area", type=float, help="smallest share of the area that a crop shows")
    inspect.add_argument("--crop_padding", type=float, default=1 / 14, help="largest shift, as a share of a side")
    inspect.add_argument("--image_size", type=_positive, default=224, help="pixels of a side (default: 224)")

    split = subparsers.add_parser("split", help="validation and test sets that hold rare labels like common ones")
    split.add_argument("data", help="your own data: folder of images, table, or Hub id", metavar="DATA")
    _label_columns(split)
    _image_column(split)
    _group_column(split)
    different = "column with a different value in each row, so that their order does not matter"
    split.add_argument("--id_column", "--id", metavar="COLUMN", help=different)
    where = "where the Parquet files and README.md go"
    split.add_argument("--output", "--out", required=True, metavar="FOLDER", help=where)
    split.add_argument("--cap", type=_positive, default=30, help="most rows of a bin in test (default: 30)")
    split.add_argument("--share", type=_fraction, default=1 / 3, help="largest share of a bin in test (default: 1/3)")
    _bin_width(split)
    split.add_argument("--seed", type=int, default=42)
    _image_files(split)
    split.add_argument("--overwrite", action="store_true", help="replace files that an earlier split left there")

    subparsers.add_parser("env", help="what a bug report needs")
    if given and not given[0].startswith("-"):
        _check_command(given[0], list(subparsers.choices), parser)
    options = parser.parse_args(given, argparse.Namespace(given=given))
    return getattr(commands, options.command)(options) or 0  # a function for each command, of its name


def _check_command(name: str, known: list[str], parser: argparse.ArgumentParser) -> None:
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f'Did you mean "{near[0]}"?' if near else f"Choose from {', '.join(known)}."
        parser.error(f"invalid choice: '{name}' is no command. {hint}")


# ---- Options that several commands share ----------------------------------------------------------------------------


def _data_of_saved(parser: argparse.ArgumentParser) -> None:
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--benchmark", help="a benchmark, such as earth-elevation (default: the run's own data)")
    source.add_argument("--data", help="your own data: folder of images, table, or Hub id (default: the run's own)")
    parser.add_argument("--benchmark_source", help="where you have the benchmark: folder, file or Hub id")
    parser.add_argument("--streaming", action="store_true", help="do not download the training split")
    _image_column(parser, default=None)
    _image_files(parser)
    _label_columns(parser, "columns of the label (default: the model's own)", default=None)
    parser.add_argument("--batch_size", type=_positive, default=64)
    parser.add_argument("--skip_bad_rows", action="store_true", help="leave out rows that cannot be read")
    parser.add_argument("--map_scale", type=float, help="label units in a map's stored number (default: the run's)")
    parser.add_argument("--map_invalid", type=float, help="stored number of a map's pixel without a label")


def _label_columns(
    parser: argparse.ArgumentParser,
    about: str = "columns of the label (default: label)",
    default: Sequence[str] | None = ("label",),
) -> None:
    parser.add_argument("--label_columns", "--label", nargs="+", default=default, metavar="COLUMN", help=about)


def _image_column(parser: argparse.ArgumentParser, default: str | None = "image") -> None:
    about = "column of the image (default: image)" if default else "column of the image (default: the run's, or image)"
    parser.add_argument("--image_column", default=default, metavar="COLUMN", help=about)


def _image_files(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--image_folder", help="folder that paths of images are relative to (default: the table's)")
    parser.add_argument("--image_suffix", help="ending of the images, as in .png, of names without")
    parser.add_argument("--data_config", help="which of the data's configurations, if its card names several")


def _group_column(parser: argparse.ArgumentParser) -> None:
    about = "column of what must not be in two splits: a person, a photograph"
    parser.add_argument("--group_column", "--group", metavar="COLUMN", help=about)


def _bin_width(parser: argparse.ArgumentParser) -> None:
    about = "of the label bins, one for all or one for each label column (default: a width that suits the labels)"
    parser.add_argument("--bin_width", type=_width, nargs="+", metavar="WIDTH", help=about)


def _width(text: str) -> float:
    try:
        width = float(text)
    except ValueError:
        width = 0.0
    if not 0 < width < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} must be a number greater than 0")
    return width


def _fraction(text: str) -> float:
    try:
        return float(Fraction(text))
    except (ValueError, ZeroDivisionError) as error:
        raise argparse.ArgumentTypeError(f"{text!r} must be a number or a fraction, such as 1/3") from error


def _boolean(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{text!r} must be true or false")
    return text.lower() == "true"


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number, 1 or more")
    return int(text)
