"""What each command of `conr-hf` does, with the libraries that it needs and no others; an exit code where not 0."""

import argparse
import difflib
import gc
import json
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def train(given: list[str]) -> None:
    from conr_hf.cli.options import help_text
    from conr_hf.cli.recipe import read_recipe

    if "--help" in given or "-h" in given:
        print(help_text())
        return
    if "CONR_HF_LIFELINE" in os.environ:  # started by a comparison
        from conr_hf.cli.compare.lock import exit_with_owner

        exit_with_owner()
    with importing():
        recipe, args, options = read_recipe(given)
        quiet_libraries()
        from conr_hf.cli.train import train
        from conr_hf.utils.environment import command_line

    train(recipe, args, options, command_line(["train", *given]))


def evaluate(options: argparse.Namespace) -> None:
    check_model(options.model)
    with importing():
        quiet_libraries()
        from conr_hf.cli.evaluate import evaluate_saved

    evaluate_saved(options)


def correct(options: argparse.Namespace) -> None:
    check_run(options.run)
    with importing():
        quiet_libraries()
        from conr_hf.cli.correct import correct_saved

    correct_saved(options)


def predict(options: argparse.Namespace) -> int:
    check_model(options.model)
    with importing():
        quiet_libraries()
        from conr_hf.cli.predict import predict_saved

    return predict_saved(options)


def export(options: argparse.Namespace) -> None:
    check_model(options.model)
    quiet_libraries()
    from conr_hf.inference.export import export

    export(options.model, options.format, options.output)


def compare(options: argparse.Namespace) -> int:
    from conr_hf.cli.compare.grid import read_comparison, train_all
    from conr_hf.cli.compare.plot import draw_comparison
    from conr_hf.cli.compare.tables import show, write_tables
    from conr_hf.utils.environment import command_line

    comparison = read_comparison(options.comparison, options.output_dir)
    runs, failed = train_all(comparison, lambda runs: print(f"\n{show(comparison, runs)}\n", flush=True))
    files = write_tables(comparison, runs, command_line(options.given))
    try:
        files += draw_comparison(comparison, runs)
    except ImportError as error:
        print(f"No plot: {error}")
    print(f"\n{show(comparison, runs)}\n\nWritten: {', '.join(str(file) for file in files)}")
    for name, reason in failed.items():
        print(f"conr-hf: {name} failed: {reason}", file=sys.stderr)
    return 1 if failed else 0


def report(options: argparse.Namespace) -> None:
    for run in options.runs:
        check_run(run)
    quiet_libraries()
    from conr_hf.cli.report.report import report

    report(options.runs, options.split, options.output)


def card(options: argparse.Namespace) -> None:
    check_run(options.run)
    quiet_libraries()
    from conr_hf.hub.model_card import write_card

    print(f"Written to {write_card(options.run, options.template)}")


def push(options: argparse.Namespace) -> None:
    check_run(options.run)
    quiet_libraries()
    from conr_hf.hub.push import push_run

    print(f"Pushed to {push_run(options.run, options.model_id, options.private, options.revision).repo_url}")


def recipes(options: argparse.Namespace) -> None:
    from conr_hf.cli import recipe

    if options.action != "list" and options.name is None:
        raise ValueError(f"conr-hf recipes {options.action} needs the name of a recipe; conr-hf recipes lists them.")
    if options.action == "show":
        print(recipe.packaged(options.name).read_text(encoding="utf-8"), end="")
    elif options.action == "copy":
        print(f"Copied to {recipe.copy(options.name, options.destination)}")
    else:
        for name in recipe.names():
            lines = recipe.packaged(name).read_text(encoding="utf-8").splitlines()
            about = [line[1:].strip() for line in lines if line[:1] == "#"]
            print(f"{name:34}{about[1] if len(about) > 1 else ''}")


def env(options: argparse.Namespace) -> None:
    import platform

    from conr_hf.utils.environment import hardware, versions

    print(json.dumps({**versions(), "platform": platform.platform(), "hardware": hardware()}, indent=2))


def demo(options: argparse.Namespace) -> None:
    if options.with_model and options.export is None:
        raise ValueError("--with_model copies the model into a Space; add --export FOLDER.")
    check_model(options.model)
    quiet_libraries()
    from conr_hf.cli.demo import app

    given = {"max_size": options.max_size, "examples": options.examples}
    if options.export is not None:
        app.export(options.model, options.export, with_model=options.with_model, **given)
    else:
        app.demo(options.model, host=options.host, port=options.port, **given)


def inspect(options: argparse.Namespace) -> None:
    import datasets

    from conr_hf.cli.inspect import inspect_data

    datasets.disable_progress_bars()
    inspect_data(options)


def split(options: argparse.Namespace) -> None:
    import datasets

    from conr_hf.cli.split import write_split

    datasets.disable_progress_bars()
    write_split(options)


def check_model(name: str) -> None:
    """Refuses the name of a saved model that can only be a folder, and is none; an id on the Hub passes."""
    path = Path(name)
    could_be_an_id = not name.startswith((".", "/", "~", "\\", "runs/")) and len(path.parts) <= 2
    is_in_a_folder_here = len(path.parts) == 2 and path.parent.is_dir()
    if path.is_file():
        raise ValueError(f'"{name}" is a file, not a saved model. Give the folder of a run, or a model id.')
    if not path.exists() and (is_in_a_folder_here or not could_be_an_id):
        raise ValueError(f'There is no folder "{name}".{_near_folder(path)} Give a run folder or a model id.')


def check_run(name: str) -> None:
    """Refuses the folder of a finished run that is not there."""
    if not Path(name).is_dir():
        raise ValueError(
            f'"{name}" is not a run: there is no such folder.{_near_folder(Path(name))} Give a folder that conr-hf '
            "train wrote."
        )


def _near_folder(path: Path) -> str:
    beside = [other.name for other in path.parent.iterdir() if other.is_dir()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, beside, n=1)
    return f' Did you mean "{path.parent / near[0]}"?' if near else ""


@contextmanager
def importing() -> Iterator[None]:
    """Around imports that take seconds, a tenth of them to look for garbage in what the libraries make to stay."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
    if gc.get_freeze_count() == 0:  # nobody else in this process has chosen
        gc.freeze()  # as Trainer looks through everything when it starts


def quiet_libraries() -> None:
    """Leaves the terminal to our own lines: no progress bars of loaded files, no notes on what is meant to be so."""
    import datasets
    from transformers.utils import logging

    datasets.disable_progress_bars()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")  # of several processes
