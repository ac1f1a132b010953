"""Comparisons: a grid of methods, seeds and recipes, trained run by run; an interrupted one is resumed."""

import contextlib
import itertools
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Any

import yaml

from conr_hf.cli.compare.lock import lock_folder
from conr_hf.cli.compare.progress import RunProgress
from conr_hf.cli.recipe import options_of, overridden, packaged, read_recipe
from conr_hf.cli.yaml_loader import read_yaml
from conr_hf.training.checkpoints import last_complete_checkpoint
from conr_hf.utils.files import check_writable
from conr_hf.utils.run_folder import RESULTS, read_json

_KEYS = ("recipes", "methods", "seeds", "baseline", "options", "output_dir", "accelerate")


@dataclass(frozen=True)
class Comparison:
    """
    A grid of runs: every method is trained on every recipe with every seed.

    Recipes and methods are their options by name; a method's are added to the recipe's. Its `stage_one` may name an
    earlier method, whose model of the same seed it then starts from.
    """

    recipes: dict[str, dict[str, Any]]
    methods: dict[str, dict[str, Any]]
    seeds: list[int]
    baseline: str  # the method that the others are compared with
    output_dir: str
    accelerate: str | None  # a configuration file for `accelerate launch`, which then starts each run


@dataclass(frozen=True)
class Run:
    """One training run of the grid, its folder, and all its options."""

    recipe: str
    method: str
    seed: int
    folder: Path
    options: dict[str, Any]

    @property
    def name(self) -> str:
        return f"{self.recipe}, {self.method}, seed {self.seed}"

    def results(self) -> dict[str, Any] | None:
        """The content of its `results.json`; `None` if it has not finished."""
        path = self.folder / RESULTS
        return read_json(path) if path.is_file() else None


def read_comparison(path: str, output_dir: str | None = None) -> Comparison:
    """
    Reads a comparison from a YAML file, or from one that comes with the package by its name.

    Its keys: `recipes`, a list of files or packaged names, or a dictionary of names to a `recipe` and the options to
    change; `methods`, options by name; `seeds`; and optionally `baseline` (default: the first method), `options` for
    all runs (over those of the recipes' files), `output_dir` and `accelerate`.
    """
    file = Path(path) if os.path.isfile(path) else packaged(path)
    content = read_yaml(file)
    if not isinstance(content, dict):
        raise ValueError(f"{path} is no comparison. Write recipes, methods and seeds.")
    for key in content:
        if key not in _KEYS:
            raise ValueError(f'{path}: unknown key "{key}". A comparison has {", ".join(_KEYS)}.')
    seeds: Any = content.get("seeds")
    whole = isinstance(seeds, list) and seeds and all(isinstance(seed, int) for seed in seeds)
    if not whole or len(set(seeds)) < len(seeds):
        raise ValueError(f"{path}: seeds is {seeds!r}; write different whole numbers, as in seeds: [1, 2, 3].")
    recipes = _recipes(content.get("recipes"), content.get("options") or {}, path)
    methods = content.get("methods")
    if not isinstance(methods, dict) or not all(isinstance(value, dict) for value in methods.values()) or not methods:
        raise ValueError(f"{path}: methods must name options, as in methods: {{vanilla: {{conr_weight: 0}}}}.")
    for kind, names in (("recipe", recipes), ("method", methods)):
        for name in names:
            if PureWindowsPath(str(name)).name != str(name) or str(name).startswith("."):  # / and \, and C:
                raise ValueError(f'{path}: the {kind} "{name}" names a folder; use letters, digits, spaces, + and -.')
    baseline = content.get("baseline", next(iter(methods)))
    if baseline not in methods:
        raise ValueError(f'{path}: baseline is "{baseline}"; it must be one of the methods {", ".join(methods)}.')
    accelerate = content.get("accelerate")
    if accelerate is not None and not os.path.isfile(accelerate):
        accelerate = str(packaged(accelerate))
    folder = output_dir or content.get("output_dir") or f"runs/{file.stem}"
    return Comparison(recipes, methods, seeds, baseline, folder, accelerate)


def _recipes(listed: Any, of_all: dict[str, Any], path: str) -> dict[str, dict[str, Any]]:
    """Options of each recipe by its name: those of its file, then `of_all`, then its own changes."""
    if isinstance(listed, list) and listed and all(isinstance(name, str) for name in listed):
        return {Path(name).stem: overridden(options_of(name), of_all) for name in listed}
    if not isinstance(listed, dict) or not listed:
        raise ValueError(
            f"{path}: recipes is {listed!r}; it must be a list of files, as in recipes: [quickstart.yaml], or name "
            "each, as in recipes: {long: {recipe: quickstart.yaml, num_train_epochs: 24}}."
        )
    recipes = {}
    for name, changed in listed.items():
        if not isinstance(changed, dict) or not isinstance(changed.get("recipe"), str):
            raise ValueError(
                f'{path}: the recipe "{name}" is {changed!r}; it must name a recipe and what differs, as in '
                "{recipe: quickstart.yaml, num_train_epochs: 24}."
            )
        others = {option: value for option, value in changed.items() if option != "recipe"}
        recipes[str(name)] = overridden(overridden(options_of(changed["recipe"]), of_all), others)
    return recipes


def plan(comparison: Comparison) -> list[Run]:
    """
    All runs, seed by seed, so that an interrupted comparison has every method for its first seeds. The options of each
    run are checked and written to `wanted.yaml` in its folder.
    """
    runs = []
    for seed, recipe, method in itertools.product(comparison.seeds, comparison.recipes, comparison.methods):
        options = overridden(comparison.recipes[recipe], comparison.methods[method]) | {"seed": seed}
        run = Run(recipe, method, seed, _folder(comparison, recipe, method, seed), options)
        first = options.get("stage_one")
        if first in comparison.methods:  # trained earlier in this comparison
            del options["stage_one"]
            options |= {"model": str(_folder(comparison, recipe, first, seed)), "pretrained": True, "weights": None}
        runs.append(run)
    for run in runs:
        check_writable(str(run.folder))
        wanted = run.folder / "wanted.yaml"
        if not wanted.is_file():
            wanted.write_text(yaml.safe_dump(run.options, sort_keys=False), encoding="utf-8")
        elif read_yaml(wanted) != run.options:
            raise ValueError(
                f'"{run.folder}" holds a run of other options. Remove it, or name another folder with --output_dir.'
            )
        if run.seed == comparison.seeds[0]:
            read_recipe([str(wanted)])
    return runs


def train_all(comparison: Comparison, after_run: Callable[[list[Run]], None]) -> tuple[list[Run], dict[str, str]]:
    """
    Trains the unfinished runs, one after another, shows how far each is, and calls `after_run` with all runs after
    each that succeeds but the last; a run that fails does not stop the others. Returns all runs, and the names of the
    failed ones, each with its error.
    """
    failed: dict[str, str] = {}
    seconds: list[float] = []
    with lock_folder(Path(comparison.output_dir)) as environment:
        runs = plan(comparison)
        unfinished = [(number, run) for number, run in enumerate(runs, 1) if run.results() is None]
        for place, (number, run) in enumerate(unfinished, 1):
            others = len(unfinished) - place
            begun = any(last_complete_checkpoint(str(place)) for place in (run.folder, run.folder / "stage-one"))
            print(f"[{number}/{len(runs)}] {run.name}{', resumed' if begun else ''}", flush=True)
            log, start = run.folder / "log.txt", time.monotonic()
            progress = RunProgress(log, run.options, begun, others, seconds)
            code = _train(run, comparison.accelerate, begun, environment, progress)
            progress.clear()
            seconds.append(time.monotonic() - start)
            if code:
                lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
                failed[run.name] = reason = lines[-1] if lines else f"exit code {code}"
                print(f"  failed: {reason} (its output: {log})", flush=True)
            elif others:
                after_run(runs)
    return runs, failed


def _folder(comparison: Comparison, recipe: str, method: str, seed: int) -> Path:
    return Path(comparison.output_dir, "runs", recipe, method, f"seed-{seed}")


def _train(run: Run, accelerate: str | None, resume: bool, environment: dict[str, str], progress: RunProgress) -> int:
    """Trains a run in a process of its own, which prints to `log.txt` in the run's folder; returns its exit code."""
    launcher = ["-m", "accelerate.commands.launch", "--config_file", accelerate] if accelerate else []
    command = [sys.executable, *launcher, "-m", "conr_hf", "train", str(run.folder / "wanted.yaml")]
    command += ["--output_dir", str(run.folder), "--disable_tqdm", "true"]
    command += ["--resume_from_checkpoint" if resume else "--overwrite_output_dir", "true"]
    with (run.folder / "log.txt").open("a", encoding="utf-8") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=os.environ | environment)
        try:
            while process.poll() is None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=1.0)
                progress.show()
            return process.returncode
        except BaseException:  # the run must not outlive an interruption
            process.terminate()
            process.wait()
            raise
