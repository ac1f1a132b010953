"""`conr-hf`: train, evaluate, predict, report, recipes, env."""

import argparse
import json
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

    report = commands.add_parser("report", help="pictures of finished runs, and what their features say")
    report.add_argument("runs", nargs="+", help="folders that conr-hf train wrote", metavar="RUN")
    report.add_argument("--split", default="test", help="which split (default: test)")
    report.add_argument("--output", help="folder to write to (default: report, in the first run)")

    recipes = commands.add_parser("recipes", help="list, show or copy the recipes that come with the package")
    recipes.add_argument("action", nargs="?", choices=("list", "show", "copy"), default="list")
    recipes.add_argument("name", nargs="?", help="which recipe")
    recipes.add_argument("destination", nargs="?", default=".", help="where to copy it (default: here)")

    commands.add_parser("env", help="what a bug report needs")
    options = parser.parse_args(given, argparse.Namespace(given=given))
    known = {"evaluate": _evaluate, "predict": _predict, "report": _report, "recipes": _recipes, "env": _env}
    return known[options.command](options)


def _train(given: list[str]) -> int:
    from conr_hf.recipe import help_text, read_recipe

    if "--help" in given or "-h" in given:
        print(help_text())
        return 0
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
        data=options.data,
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


def _report(options: argparse.Namespace) -> int:
    _quiet_libraries()
    from conr_hf.reporting import report

    report(options.runs, options.split, options.output)
    return 0


def _recipes(options: argparse.Namespace) -> int:
    from conr_hf import recipe

    if options.action == "list":
        for name in recipe.names():
            about = [line[1:].strip() for line in recipe.packaged(name).read_text().splitlines() if line[:1] == "#"]
            print(f"{name:34}{about[1] if len(about) > 1 else ''}")
        return 0
    if options.name is None:
        raise ValueError(f"conr-hf recipes {options.action} needs the name of a recipe; conr-hf recipes lists them.")
    if options.action == "show":
        print(recipe.packaged(options.name).read_text(), end="")
    else:
        print(f"Copied to {recipe.copy(options.name, options.destination)}")
    return 0


def _env(options: argparse.Namespace) -> int:
    import platform

    from conr_hf.report import hardware, versions

    facts: dict[str, Any] = {**versions(), "platform": platform.platform(), "hardware": hardware()}
    print(json.dumps(facts, indent=2))
    return 0


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
