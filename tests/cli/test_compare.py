"""`conr-hf compare`: the whole grid, its tables, and the same tables after it was killed."""

import contextlib
import csv
import io
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from scipy import stats

from conr_hf.cli import recipe
from conr_hf.cli.compare import grid as comparison
from conr_hf.cli.compare import plot as comparison_plot
from conr_hf.cli.compare import progress
from conr_hf.cli.compare.grid import Comparison, Run
from conr_hf.cli.compare.tables import interval, rows_of, show, write_tables
from conr_hf.cli.main import main

TESTS = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A small folder of images with labels, in three splits."""
    folder = tmp_path_factory.mktemp("photos")
    random = np.random.default_rng(0)
    rows = [("file_name", "label", "split")]
    for index in range(60):
        label = 20 + index % 30
        Image.fromarray(random.integers(0, 4 * label, (32, 32, 3), dtype=np.uint8)).save(folder / f"{index}.png")
        rows.append((f"{index}.png", label, ("train", "train", "validation", "test")[index % 4]))
    table = folder / "labels.csv"
    with table.open("w", newline="") as file:
        csv.writer(file).writerows([("image", *rows[0][1:]), *rows[1:]])
    return table


def write(folder, data, **changed):
    """A recipe and a comparison of two methods of it."""
    options = {
        "data": str(data),
        "model": "timm/test_resnet",
        "pretrained": False,
        "image_size": 32,
        "per_device_train_batch_size": 8,
        "max_steps": 12,
        "save_strategy": "steps",
        "eval_strategy": "steps",
        "save_steps": 2,
        "eval_steps": 2,
        "use_cpu": True,
        "bin_width": 5.0,
    }
    (folder / "small.yaml").write_text(yaml.safe_dump(options))
    content = {
        "recipes": [str(folder / "small.yaml")],
        "seeds": [1],
        "methods": {"vanilla": {"conr_weight": 0}, "conr": {"conr_weight": 0.5}},
        "output_dir": str(folder / "out"),
        **changed,
    }
    path = folder / "comparison.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def compare(*arguments):
    with pytest.raises(SystemExit) as ended:
        main(["compare", *map(str, arguments)])
    return ended.value.code


@pytest.fixture(scope="module")
def whole(tmp_path_factory, data):
    """The folder of a comparison that nothing interrupted, and in `printed` what it showed."""
    folder = tmp_path_factory.mktemp("whole")
    methods = {
        "vanilla": {"conr_weight": 0},
        "conr": {"conr_weight": 0.5},
        "rrt": {"stage_one": "vanilla", "retrain_head": True, "reweight": "sqrt_inverse"},
    }
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert compare(write(folder, data, methods=methods)) == 0
    (folder / "printed").write_text(printed.getvalue())
    return folder / "out"


def numbers(folder):
    with (folder / "runs.csv").open() as file:
        return [row for row in csv.reader(file) if row[1] in ("method", "vanilla", "conr")]


def test_the_tables_hold_what_the_runs_found(whole):
    runs = {name: json.loads((whole / f"runs/small/{name}/seed-1/results.json").read_text()) for name in METHODS}
    for row in numbers(whole)[1:]:
        recipe, method, seed, split, shot, metric, value = row
        assert (recipe, seed) == ("small", "1")
        assert float(value) == runs[method][split][shot][metric]
    text = (whole / "table.md").read_text()
    assert "## small, test" in text
    lines = [line for line in text.splitlines() if line.startswith("| conr")]
    mae, baseline = (runs[name]["test"]["all"]["mae"] for name in ("conr", "vanilla"))
    assert f"{mae:.4g}" in lines[-1]
    assert f"{mae - baseline:+.3g}" in lines[-1]
    assert Image.open(whole / "small.png").size[0] > 800
    assert r"\begin{tabular}" in (whole / "table.tex").read_text()


METHODS = ("vanilla", "conr", "rrt")


def test_each_run_tells_how_far_it_is_and_each_table_is_shown_once(whole):
    printed = (whole.parent / "printed").read_text()
    parts = re.split(r"\[\d/3\] .*\n", printed)[1:]
    assert len(parts) == 3
    for part in parts:
        assert re.search(r"^  step \d+ of 12, about \d+ (s|min) left.*: .*MAE", part, re.MULTILINE), part
        assert part.count("small, test: MAE, mean") == 1
    assert printed.splitlines()[-1].startswith("Written: ")


def test_a_stage_is_taken_from_the_method_that_trained_it(whole):
    """RRT begins with the plain model of the same seed, which is not trained twice."""
    wanted = yaml.safe_load((whole / "runs/small/rrt/seed-1/wanted.yaml").read_text())
    assert wanted["model"] == str(whole / "runs/small/vanilla/seed-1")
    assert not (whole / "runs/small/rrt/seed-1/stage-one").exists()


def test_what_is_finished_is_not_trained_again(whole, capsys, monkeypatch):
    monkeypatch.setattr(comparison, "_train", lambda *_: pytest.fail("trained again"))
    before = (whole / "table.md").read_text()
    assert compare(whole.parent / "comparison.yaml") == 0
    assert capsys.readouterr().out.count("small, test: MAE") == 1
    assert (whole / "table.md").read_text() == before


def test_killed_in_the_middle_of_a_run_and_started_again(whole, data, tmp_path):
    """A power cut costs the steps since the last checkpoint, and no run goes on unseen beside the new one."""
    path = write(tmp_path, data)
    environment = os.environ | {"PYTHONPATH": f"{TESTS.parent}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    command = [sys.executable, "-m", "conr_hf", "compare", str(path)]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT)
    folder = tmp_path / "out/runs/small/conr/seed-1"
    deadline = time.monotonic() + 240
    while not (folder / "checkpoint-4/trainer_state.json").is_file():
        assert process.poll() is None, (tmp_path / "out").exists() and list((tmp_path / "out").rglob("log.txt"))
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (folder / "results.json").exists(), "it was too late to kill it"
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "[2/2] small, conr, seed 1, resumed" in ended.stdout
    assert "[1/2]" not in ended.stdout
    assert json.loads((folder / "results.json").read_text())["resumed"]
    assert numbers(tmp_path / "out") == numbers(whole)
    assert (folder / "log.txt").read_text().count("\ntest ") == 1, "the run that was left alone went on to its end"


def test_a_second_comparison_of_the_same_folder_is_refused(data, tmp_path, capsys):
    path = write(tmp_path, data)
    with comparison.lock_folder(tmp_path / "out"):
        assert compare(path) == 2
    assert "A comparison is running in" in capsys.readouterr().err
    with comparison.lock_folder(tmp_path / "out"):  # free again
        pass


def test_a_run_that_fails_is_named_and_the_others_are_trained(data, tmp_path, capsys):
    missing = {"broken": {"data": str(tmp_path / "nothing.csv")}, "vanilla": {"conr_weight": 0, "max_steps": 2}}
    assert compare(write(tmp_path, data, methods=missing)) == 1
    out, err = capsys.readouterr()
    assert "small, broken, seed 1 failed: conr-hf: data" in err
    assert "vanilla" in out.splitlines()[-3]
    assert (tmp_path / "out/runs/small/vanilla/seed-1/results.json").is_file()


@pytest.mark.parametrize(
    ("changed", "parts"),
    [
        ({"recipes": []}, ["recipes is []", "[quickstart.yaml]"]),
        ({"recipes": ["quickstart.yaml", {"long": {}}]}, ["must be a list of files", "or name each"]),
        ({"recipes": ["quikstart.yaml"]}, ['"quikstart.yaml"', "quickstart.yaml?"]),
        ({"recipes": {"long": {"num_train_epochs": 9}}}, ['recipe "long"', "must name a recipe"]),
        ({"recipes": {"long": {"recipe": None}}}, ['recipe "long"', "must name a recipe"]),
        ({"recipes": {"a/b": {"recipe": "quickstart.yaml"}}}, ['the recipe "a/b" names a folder']),
        ({"recipes": {"long": {"recipe": "quickstart.yaml", "num_epochs": 9}}}, ["num_epochs"]),
        ({"seeds": [1, 1]}, ["seeds is [1, 1]", "different"]),
        ({"seeds": ["a"]}, ["seeds is ['a']"]),
        ({"methods": {}}, ["methods must name options"]),
        ({"methods": {"a/b": {}}}, ['"a/b" names a folder']),
        ({"methods": {"a\\b": {}}}, ['"a\\b" names a folder']),
        ({"methods": {"c:": {}}}, ['"c:" names a folder']),
        ({"methods": {"conr": {"conr_wieght": 1}}}, ["conr_wieght", '"conr_weight"']),
        ({"methods": {"conr": {"conr_weight": -1}}}, ["conr_weight is -1.0"]),
        ({"baseline": "plain"}, ['baseline is "plain"', "vanilla, conr"]),
        ({"sedes": [1]}, ['unknown key "sedes"']),
    ],
)
def test_what_cannot_be_compared_is_refused_before_anything_is_trained(changed, parts, data, tmp_path, capsys):
    assert compare(write(tmp_path, data, **changed)) == 2
    message = capsys.readouterr().err
    assert all(part in message for part in parts), message
    assert not list(tmp_path.rglob("log.txt"))


def test_a_recipe_may_stand_twice_with_other_options(data, tmp_path):
    small = str(write(tmp_path, data).with_name("small.yaml"))
    named = {"short": {"recipe": small, "max_steps": 1}, "wide": {"recipe": small, "bin_width": 9.0}}
    of_all = {"bin_width": 7.0}  # over the file's, under a recipe's own
    runs = comparison.plan(comparison.read_comparison(str(write(tmp_path, data, recipes=named, options=of_all))))
    assert len(runs) == 2 * 2
    found = {run.recipe: (run.options["max_steps"], run.options["bin_width"]) for run in runs}
    assert found["short"] == (1, 7.0)
    assert found["wide"] == (12, 9.0)


def test_own_data_take_the_place_of_a_recipes_benchmark(data, tmp_path):
    changed = {"recipes": ["quickstart.yaml"], "options": {"data": "mine"}}
    made = comparison.read_comparison(str(write(tmp_path, data, **changed)))
    assert made.recipes["quickstart"]["data"] == "mine"
    assert "benchmark" not in made.recipes["quickstart"]


def test_a_folder_of_other_options_is_not_mixed_in(data, tmp_path, capsys):
    made = comparison.read_comparison(str(write(tmp_path, data)))
    comparison.plan(made)
    assert compare(write(tmp_path, data, options={"max_steps": 3})) == 2
    assert "holds a run of other options" in capsys.readouterr().err


# ---- Progress ------------------------------------------------------------------------------------------------------


@pytest.fixture
def clock(monkeypatch):
    """Time that passes as a test says."""
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_a_run_shows_its_last_line_and_how_long_it_takes_yet(tmp_path, clock):
    """Of 8 epochs: 20 s until the libraries are loaded and the first is done, then 10 s each."""
    log = tmp_path / "log.txt"
    log.write_text("epoch  8.00  step    80  MAE 1\n")  # of an earlier try
    run = progress.RunProgress(log, {"num_train_epochs": 8}, False, 2, [])
    assert run.text() == ""

    def after(seconds, line):
        clock[0] += seconds
        with log.open("a") as file:
            file.write(line + "\n")
        return run.text()

    assert "left" not in after(1, "Trains with base loss l1")
    first = after(19, "epoch  1.00  step    10  MAE 5.5 m (few-shot 9)")
    assert first == "  epoch 1 of 8, about 2 min left (8 min with the 2 after it): MAE 5.5 m (few-shot 9)"
    assert after(10, "epoch  2.00  step    20  MAE 5").endswith("about 1 min left (4 min with the 2 after it): MAE 5")
    assert after(10, "epoch  3.00  step    30  MAE 4").endswith("about 50 s left (4 min with the 2 after it): MAE 4")
    assert after(5, "noise").endswith("about 45 s left (4 min with the 2 after it): MAE 4")


def test_steps_stages_and_resumed_runs_are_told_too(tmp_path, clock):
    log = tmp_path / "log.txt"
    log.write_text("")
    of_steps = progress.RunProgress(log, {"max_steps": 100}, True, 0, [])
    of_stages = progress.RunProgress(log, {"num_train_epochs": 2, "stage_one": "{}"}, False, 0, [])
    clock[0] += 10
    log.write_text("Stage one\nepoch  1.00  step    60  MAE 3\n")
    assert of_steps.text() == "  step 60 of 100: MAE 3"  # resumed: nobody knows yet how fast it is
    assert of_stages.text() == "  stage 1 of 2, epoch 1 of 2, about 30 s left: MAE 3"
    clock[0] += 10
    log.write_text(log.read_text() + "\nStage two\nepoch  1.00  step    80  MAE 3\n")
    assert of_steps.text() == "  step 80 of 100, about 10 s left: MAE 3"
    assert of_stages.text() == "  stage 2 of 2, epoch 1 of 2, about 5 s left: MAE 3"


def test_where_no_line_can_be_replaced_there_is_one_a_minute(tmp_path, clock, capsys):
    log = tmp_path / "log.txt"
    log.write_text("")
    run = progress.RunProgress(log, {"max_steps": 1000}, False, 0, [])
    for second in range(130):
        log.write_text(f"epoch  1.00  step  {second + 1}  MAE 3\n")
        clock[0] += 1
        run.show()
    assert [line.split(",")[0] for line in capsys.readouterr().out.splitlines()] == [
        f"  step {step} of 1000" for step in (1, 61, 121)
    ]


# ---- Tables --------------------------------------------------------------------------------------------------------


def test_intervals_are_students():
    random = np.random.default_rng(0)
    for count in (2, 3, 5, 11, 12, 30):
        values = random.normal(3, 2, count)
        expected = stats.t.ppf(0.975, count - 1) * stats.sem(values)
        assert interval(values.tolist()) == pytest.approx(expected, rel=1e-3)
    assert np.isnan(interval([1.0]))


def test_means_deviations_and_differences_by_hand(tmp_path):
    """Two seeds: vanilla 10 and 12, conr 9 and 10: mean 11 and 9.5, differences -1 and -2."""
    maes = {"vanilla": {1: 10.0, 2: 12.0}, "conr": {1: 9.0, 2: 10.0}}
    made = Comparison({"small": {}}, {"vanilla": {}, "conr": {}}, [1, 2], "vanilla", str(tmp_path), None)
    runs = []
    for method, by_seed in maes.items():
        for seed, mae in by_seed.items():
            folder = tmp_path / f"{method}-{seed}"
            folder.mkdir()
            shots = {"all": {"n": 4, "mae": mae, "bmae": 3 * mae}, "few": {"n": 1, "mae": 2 * mae, "bmae": mae}}
            results = {"test": shots, "unit": "m", "resumed": seed == 2, "train_seconds": 90.0, "peak_memory": 2**31}
            (folder / "results.json").write_text(json.dumps(results))
            runs.append(Run("small", method, seed, folder, {}))
    header, vanilla, conr = rows_of(made, runs, "small", "test")
    assert header[:5] == ["method", "seeds", "all", "few", "balanced"]
    assert vanilla[:5] == ["vanilla", "2", f"11 ± {statistics.stdev([10, 12]):.3g}", "22 ± 2.83", "33 ± 4.24"]
    half = 12.706 * np.std([1, 2], ddof=1) / np.sqrt(2)
    assert conr[5] == f"-1.5 [{-1.5 - half:+.3g}, {-1.5 + half:+.3g}]"
    assert conr[6].startswith("-3 [")
    assert conr[7].startswith("-4.5 [")
    assert conr[8:] == ["1.5", "2.0"]
    shown = show(made, runs)
    assert "small, test: MAE [m], mean ± standard deviation over seeds" in shown
    assert max(map(len, shown.splitlines())) < 100
    changes = shown[shown.index("small, test: difference to vanilla") :].splitlines()
    assert re.split("  +", changes[1].strip()) == [
        "method",
        "Δ all (95 % CI)",
        "Δ few (95 % CI)",
        "Δ balanced (95 % CI)",
    ]
    assert [line.split()[0] for line in changes[3:]] == ["conr"]
    write_tables(made, runs, "conr-hf compare x")
    tex = (tmp_path / "table.tex").read_text()
    assert r"\caption{small, test: MAE [m], mean $\pm$ standard deviation over seeds. $\Delta$: difference to" in tex
    assert r"$\Delta$ few (95 \% CI)" in tex
    assert tex.count(r"\pm") == 1 + 2 * 3  # of deviations, and never of an interval
    assert len((tmp_path / "runs.csv").read_text().splitlines()) == 1 + 4 * 6


def test_gaze_is_compared_by_its_angle(tmp_path):
    made = Comparison({"gaze": {}}, {"vanilla": {}, "conr": {}}, [1], "vanilla", str(tmp_path), None)
    runs = []
    for method, angle in (("vanilla", 5.0), ("conr", 4.0)):
        folder = tmp_path / method
        folder.mkdir()
        shots = {"all": {"n": 4, "mae": 0.1, "bmae": 0.2, "angular_error": angle}}
        results = {"test": shots, "unit": "rad", "resumed": False, "train_seconds": 60.0, "peak_memory": 2**30}
        (folder / "results.json").write_text(json.dumps(results))
        runs.append(Run("gaze", method, 1, folder, {}))
    header, vanilla, conr = rows_of(made, runs, "gaze", "test")
    assert header == ["method", "seeds", "all", "all, to vanilla", "minutes", "GB"]
    assert vanilla[2:4] == ["5", ""]
    assert conr[2:4] == ["4", "-1"]
    assert "gaze, test: angle [deg]" in show(made, runs)
    write_tables(made, runs, "conr-hf compare x")
    assert "## gaze, test, angle [deg]" in (tmp_path / "table.md").read_text()


def test_what_a_method_changes_is_drawn_from_recipe_to_recipe(tmp_path, monkeypatch):
    """In per cent of the mean of the baseline, with the interval; no point where there are no few-shot samples."""
    made = Comparison({"a": {}, "b": {}}, {"vanilla": {}, "conr": {}}, [1, 2], "vanilla", str(tmp_path), None)
    runs = []
    for name, method, seed, mae in (
        *(("a", "vanilla", 1, 10.0), ("a", "vanilla", 2, 12.0), ("a", "conr", 1, 9.0), ("a", "conr", 2, 10.0)),
        *(("b", "vanilla", 1, 4.0), ("b", "conr", 1, 5.0)),
    ):
        folder = tmp_path / f"{name}-{method}-{seed}"
        folder.mkdir()
        shots = {"all": {"n": 4, "mae": mae, "bmae": mae}, **({"few": {"n": 1, "mae": mae}} if name == "a" else {})}
        (folder / "results.json").write_text(json.dumps({"test": shots, "unit": "m"}))
        runs.append(Run(name, method, seed, folder, {}))
    drawn = {}
    monkeypatch.setattr(comparison_plot, "save", lambda figure, path: drawn.update({path.name: figure}))
    assert [file.name for file in comparison_plot.draw_comparison(made, runs)] == ["a.png", "b.png", "recipes.png"]
    few, balanced = drawn["recipes.png"].axes
    half = 100 * 12.706 * np.std([1, 2], ddof=1) / np.sqrt(2) / 11
    for panel, means in ((few, [-100 * 1.5 / 11]), (balanced, [-100 * 1.5 / 11, 25.0])):
        line, _, (bars,) = panel.containers[0]
        assert line.get_ydata() == pytest.approx(means)
        low, high = bars.get_segments()[0][:, 1]
        assert (high - low) / 2 == pytest.approx(half, rel=1e-4)


@pytest.mark.parametrize("name", [name for name in recipe.names() if name.startswith("study/")])
def test_every_comparison_of_the_package_can_be_read(name, tmp_path):
    made = comparison.read_comparison(name, str(tmp_path))
    assert len(comparison.plan(made)) == len(made.recipes) * len(made.methods) * len(made.seeds)
