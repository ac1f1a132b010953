"""`conr-hf`: train, evaluate, predict, export, compare, report, inspect, split, recipes, env."""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

EXAMPLES = """examples:
  conr-hf train recipes/quickstart.yaml --conr_weight 0.1
  conr-hf evaluate runs/quickstart --benchmark earth-elevation
  conr-hf predict runs/quickstart photos/ --output heights.csv
  conr-hf report runs/quickstart

`conr-hf train --help` lists every option of a recipe."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs a command and exits: 0 done, 2 bad input, 1 anything else, 130 interrupted."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        sys.exit(_run(given))
    except ValueError as error:
        sys.exit(_refused(error))
    except KeyboardInterrupt:
        print("\nInterrupted.", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(141)


def _refused(error: ValueError) -> int:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    # A data-loader worker's error carries the worker's traceback; its last line is the sentence.
    sentence = (
        lines[-1].removeprefix("ValueError: ") if any("Traceback" in line for line in lines) else " ".join(lines)
    )
    print(f"conr-hf: {sentence}", file=sys.stderr)
    return 2


def _run(given: list[str]) -> int:
    if given[:1] == ["train"]:
        return _train(given[1:])
    parser = argparse.ArgumentParser(
        prog="conr-hf",
        description="Fine-tune vision models for imbalanced regression with ConR.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("train", help="train a recipe: conr-hf train RECIPE.yaml [--option value ...]")

    evaluate = commands.add_parser("evaluate", help="errors of a saved model, per shot")
    evaluate.add_argument("model", help="run folder, checkpoint or Hub id")
    source = evaluate.add_mutually_exclusive_group(required=True)
    source.add_argument("--benchmark", help="a benchmark, such as earth-elevation")
    source.add_argument("--data", help="your own data: folder of images, table, or Hub id")
    evaluate.add_argument("--benchmark_source", help="where you have the benchmark: folder, file or Hub id")
    evaluate.add_argument("--streaming", action="store_true", help="do not download the training split")
    evaluate.add_argument("--split", default="test", help="which split (default: test)")
    evaluate.add_argument("--image_column", default="image")
    evaluate.add_argument("--label_columns", nargs="+", help="columns of the label (default: the model's own)")
    evaluate.add_argument("--batch_size", type=_positive, default=64)
    evaluate.add_argument("--skip_bad_rows", action="store_true", help="leave out rows that cannot be read")
    evaluate.add_argument("--output", help="folder for results.json, predictions.csv and density.png")

    predict = commands.add_parser("predict", help="predictions for images")
    predict.add_argument("model", help="run folder, checkpoint or Hub id")
    predict.add_argument("images", nargs="+", help="image files, or folders of them", metavar="IMAGE|FOLDER")
    predict.add_argument("--output", help="write to this .csv or .json file instead of the terminal")
    predict.add_argument("--batch_size", type=_positive, default=32)

    export = commands.add_parser("export", help="a saved model as ONNX, for torch.export or for timm")
    export.add_argument("model", help="run folder, checkpoint or Hub id")
    export.add_argument("--format", required=True, choices=("onnx", "torch-export", "timm"))
    export.add_argument("--output", metavar="FILE", help="the file (default: in the model's folder)")

    compare = commands.add_parser("compare", help="train methods x seeds, and set them side by side")
    compare.add_argument("comparison", help="YAML file: recipes, methods, seeds")
    compare.add_argument("--output_dir", help="where runs and tables go (default: the file's)")

    report = commands.add_parser("report", help="pictures of finished runs, and what their features say")
    report.add_argument("runs", nargs="+", help="folders that conr-hf train wrote", metavar="RUN")
    report.add_argument("--split", default="test", help="which split (default: test)")
    report.add_argument("--output", help="folder to write to (default: report, in the first run)")

    recipes = commands.add_parser("recipes", help="list, show or copy the recipes that come with the package")
    recipes.add_argument("action", nargs="?", choices=("list", "show", "copy"), default="list")
    recipes.add_argument("name", nargs="?", help="which recipe")
    recipes.add_argument("destination", nargs="?", default=".", help="where to copy it (default: here)")

    _add_inspect(commands)
    _add_split(commands)
    commands.add_parser("env", help="what a bug report needs")
    options = parser.parse_args(given, argparse.Namespace(given=given))
    run = {
        "evaluate": _evaluate,
        "predict": _predict,
        "export": _export,
        "compare": _compare,
        "report": _report,
        "recipes": _recipes,
        "env": _env,
        "inspect": _inspect,
        "split": _split,
    }[options.command]
    return run(options)


def _train(given: list[str]) -> int:
    from conr_hf.recipe import help_text, read_recipe

    if "--help" in given or "-h" in given:
        print(help_text())
        return 0
    if "CONR_HF_LIFELINE" in os.environ:  # started by a comparison
        from conr_hf.lifeline import watch

        watch()
    recipe, args, options = read_recipe(given)
    _quiet_libraries()
    from conr_hf.report import as_typed
    from conr_hf.run import train

    train(recipe, args, options, as_typed(["train", *given]))
    return 0


def _evaluate(options: argparse.Namespace) -> int:
    _quiet_libraries()
    from conr_hf.evaluation import evaluate_saved
    from conr_hf.report import as_typed

    evaluate_saved(
        options.model,
        benchmark=options.benchmark,
        benchmark_source=options.benchmark_source,
        data=options.data,
        streaming=options.streaming,
        split=options.split,
        image_column=options.image_column,
        label_columns=options.label_columns,
        batch_size=options.batch_size,
        skip_bad_rows=options.skip_bad_rows,
        output=options.output,
        command=as_typed(options.given),
    )
    return 0


def _predict(options: argparse.Namespace) -> int:
    if options.output is not None and Path(options.output).suffix not in (".csv", ".json"):
        raise ValueError(f'--output "{options.output}" must end in .csv or .json.')
    _quiet_libraries()
    from conr_hf.evaluation import predict_images, write_predicted
    from conr_hf.report import aligned
    from conr_hf.run import check_writable

    if options.output is not None:
        check_writable(str(Path(options.output).parent))
    targets, predictions, unreadable = predict_images(options.model, options.images, options.batch_size)
    if options.output is not None:
        write_predicted(Path(options.output), targets, predictions)
        print(f"{len(predictions)} prediction{'s' * (len(predictions) != 1)} written to {options.output}")
    elif predictions:
        rows = [[str(path), *(f"{value:.5g}" for value in values)] for path, values in predictions.items()]
        print(aligned([["image", *targets], *rows]))
    for path, reason in unreadable.items():
        print(f"conr-hf: {path} cannot be read: {reason}.", file=sys.stderr)
    return 2 if unreadable else 0


def _export(options: argparse.Namespace) -> int:
    _quiet_libraries()
    from conr_hf.export import export

    export(options.model, options.format, options.output)
    return 0


def _compare(options: argparse.Namespace) -> int:
    from conr_hf.comparison import read_comparison, train_all
    from conr_hf.comparison_plot import draw_comparison
    from conr_hf.comparison_table import show, write_tables
    from conr_hf.report import as_typed

    comparison = read_comparison(options.comparison, options.output_dir)
    runs, failed = train_all(comparison, lambda runs: print(f"\n{show(comparison, runs)}\n", flush=True))
    files = write_tables(comparison, runs, as_typed(options.given))
    try:
        files += draw_comparison(comparison, runs)
    except ImportError as error:
        print(f"No plot: {error}")
    print(f"\n{show(comparison, runs)}\n\nWritten: {', '.join(str(file) for file in files)}")
    for name, reason in failed.items():
        print(f"conr-hf: {name} failed: {reason}", file=sys.stderr)
    return 1 if failed else 0


def _report(options: argparse.Namespace) -> int:
    _quiet_libraries()
    from conr_hf.reporting import report

    report(options.runs, options.split, options.output)
    return 0


def _recipes(options: argparse.Namespace) -> int:
    from conr_hf import recipe

    if options.action == "list":
        for name in recipe.names():
            about = [
                line[1:].strip() for line in recipe.packaged(name).read_text("utf-8").splitlines() if line[:1] == "#"
            ]
            print(f"{name:34}{about[1] if len(about) > 1 else ''}")
        return 0
    if options.name is None:
        raise ValueError(f"conr-hf recipes {options.action} needs the name of a recipe; conr-hf recipes lists them.")
    if options.action == "show":
        print(recipe.packaged(options.name).read_text("utf-8"), end="")
    else:
        print(f"Copied to {recipe.copy(options.name, options.destination)}")
    return 0


def _env(options: argparse.Namespace) -> int:
    import platform

    from conr_hf.report import hardware, versions

    facts: dict[str, Any] = {**versions(), "platform": platform.platform(), "hardware": hardware()}
    print(json.dumps(facts, indent=2))
    return 0


def _add_inspect(commands: Any) -> None:
    parser = commands.add_parser("inspect", help="what is in a data set, and what is wrong with it")
    parser.add_argument("data", help="your own data: folder of images, table, or Hub id", metavar="DATA")
    parser.add_argument("--label_columns", nargs="+", default=["label"], metavar="COLUMN")
    parser.add_argument("--image_column", default="image")
    parser.add_argument("--group_column", help="what should not be in two splits: a person, a photograph")
    parser.add_argument("--bin_width", type=_width, nargs="+", help="of the label bins (default: one that suits them)")
    parser.add_argument("--unit", default="", help="unit of the labels, for the figure")
    parser.add_argument("--output", help="folder for labels.png and inspection.json (default: write nothing)")


def _inspect(options: argparse.Namespace) -> int:
    _quiet_libraries()
    from conr_hf.inspecting import inspect_data

    inspect_data(
        options.data,
        label_columns=options.label_columns,
        image_column=options.image_column,
        group_column=options.group_column,
        bin_width=options.bin_width,
        unit=options.unit,
        output=options.output,
    )
    return 0


def _add_split(commands: Any) -> None:
    parser = commands.add_parser("split", help="balanced validation and test sets, written as Parquet")
    parser.add_argument("data", help="your own data: folder of images, table, or Hub id", metavar="DATA")
    parser.add_argument("--label", nargs="+", required=True, metavar="COLUMN", help="columns of the label")
    parser.add_argument("--out", required=True, metavar="FOLDER", help="where the Parquet files and README.md go")
    parser.add_argument("--group", help="column of what must not be in two splits: a person, a photograph")
    parser.add_argument("--id", help="column that tells rows apart, so that their order does not matter")
    parser.add_argument("--cap", type=_positive, default=30, help="most rows of a bin in test (default: 30)")
    parser.add_argument("--share", type=_fraction, default=1 / 3, help="largest share of a bin in test (default: 1/3)")
    parser.add_argument("--bin_width", type=_width, nargs="+", help="of the label bins (default: range / 100)")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--image_column", default="image")
    parser.add_argument("--overwrite", action="store_true", help="replace files that an earlier split left there")


def _split(options: argparse.Namespace) -> int:
    _quiet_libraries()
    from dataclasses import fields

    from conr_hf.splitting import SplitOptions, write_split

    write_split(SplitOptions(**{option.name: getattr(options, option.name) for option in fields(SplitOptions)}))
    return 0


def _width(text: str) -> float:
    try:
        width = float(text)
    except ValueError:
        width = 0.0
    if not 0 < width < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} must be a number greater than 0")
    return width


def _fraction(text: str) -> float:
    from fractions import Fraction

    try:
        return float(Fraction(text))
    except (ValueError, ZeroDivisionError) as error:
        raise argparse.ArgumentTypeError(f"{text!r} must be a number or a fraction, such as 1/3") from error


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number, 1 or more")
    return int(text)


def _quiet_libraries() -> None:
    """Leaves the terminal to our own lines: no bars for loading files, no notes on what libraries do by design."""
    import datasets
    from transformers.utils import logging

    datasets.disable_progress_bars()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
