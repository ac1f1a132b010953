"""What users of 0.1.0 count on is still there: names, settings, options, and the keys of every file written."""

import contextlib
import csv
import dataclasses
import importlib
import io
import json
import os
import re
from pathlib import Path

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image
from safetensors import safe_open
from transformers.utils import logging

from conr_hf import ConRConfig
from conr_hf.cli import main

PROMISED = json.loads((Path(__file__).parent / "helpers" / "promises.json").read_text(encoding="utf-8"))
QUIET = "--disable_tqdm true --report_to none --use_cpu true"
SHORT = "--max_steps 2 --logging_strategy steps --logging_steps 1"
SMALL = f"--model timm/test_resnet --pretrained false --conr_weight 0.05 {SHORT} {QUIET}"

# What is run, one after another in one folder, so that there are files to look into.
COMMANDS = {
    "train, defaults": f"train recipes/quickstart.yaml {SMALL} --output_dir defaults",
    "train, all methods": f"train recipes/methods/all.yaml {SMALL} --output_dir all",
    "train, maps": f"train recipes/earth-elevation-map.yaml {SMALL} --conr_pixels 16 --output_dir maps",
    "train, gaze": f"train recipes/gaze.yaml {SMALL} --benchmark_source rows=100,size=16 --output_dir gaze",
    "train, state": f"train tiny.yaml {SMALL} --base_loss bmc --fds gaussian --ema_decay 0.9 --output_dir state",
    "evaluate": "evaluate defaults --benchmark earth-elevation --output evaluated",
    "evaluate, maps": "evaluate maps --benchmark earth-elevation-map --output evaluated-maps",
    "predict, json": "predict defaults photos/test --output predicted.json",
    "predict, csv": "predict gaze photos/test --output predicted.csv",
    "report": "report state --output reported",
    "inspect": "inspect photos --output inspected",
    "split": "split photos --label label --out divided --cap 2",
    "demo": "demo defaults --export space",
    "compare": "compare comparison.yaml",
}
# Where to look, and at what of it.
FILES = {
    "defaults": "names",
    "defaults/checkpoint-2": "names",
    "defaults/results.json": "keys",
    "defaults/intervals.json": "keys",
    "defaults/trainer_state.json": "log_history",
    "defaults/predictions.csv": "header",
    "defaults/recipe.yaml": "keys",
    "defaults/README.md": "metadata",
    "all/results.json": "keys",
    "all/trainer_state.json": "log_history",
    "maps": "names",
    "maps/results.json": "keys",
    "maps/trainer_state.json": "log_history",
    "maps/README.md": "metadata",
    "gaze/results.json": "keys",
    "gaze/intervals.json": "keys",
    "gaze/trainer_state.json": "log_history",
    "gaze/predictions.csv": "header",
    "state/results.json": "keys",
    "state/trainer_state.json": "log_history",
    "state/conr_state.safetensors": "tensors",
    "state/checkpoint-2/conr_state.safetensors": "tensors",
    "evaluated": "names",
    "evaluated/results.json": "keys",
    "evaluated/predictions.csv": "header",
    "evaluated-maps": "names",
    "evaluated-maps/results.json": "keys",
    "predicted.json": "keys",
    "predicted.csv": "header",
    "reported": "names",
    "reported/report.json": "keys",
    "inspected": "names",
    "inspected/inspection.json": "keys",
    "divided": "names",
    "divided/train.parquet": "columns",
    "space": "names",
    "space/page.json": "keys",
    "compared": "names",
    "compared/runs.csv": "header",
    "compared/table.md": "tables",
}


def conr(*arguments):
    """`conr-hf ARGUMENTS` in this process: its exit code, and what it printed."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    return ended.value.code or 0, out.getvalue(), err.getvalue()


# ---- What a file holds, as a list of names --------------------------------------------------------------------------


def keys(value, path=""):
    """Dotted paths of all keys; what a list holds is one thing, `[]`."""
    if isinstance(value, dict):
        return sorted({found for key, part in value.items() for found in keys(part, f"{path}.{key}".lstrip("."))})
    if isinstance(value, list):
        return sorted({found for part in value for found in keys(part, f"{path}[]")}) or [f"{path}[]"]
    return [path]


def holds(path, what):
    """The names in a file or folder that somebody may look for."""
    if what == "names":
        return sorted(file.name for file in path.iterdir())
    if what == "tensors":
        with safe_open(path, "np") as file:
            tensors = {re.sub(r"(\braw)\..*", r"\1.*", name) for name in file.keys()}  # noqa: SIM118
            told = {name: keys(json.loads(value), name) for name, value in file.metadata().items()}
        return sorted([*tensors, *(f"metadata {key}" for names in told.values() for key in names)])
    if what == "columns":
        return sorted(pq.read_schema(path).names)
    text = path.read_text(encoding="utf-8")
    if what == "header":
        return next(csv.reader(text.splitlines()))
    if what == "tables":
        return [line for line in text.splitlines() if line.startswith(("| method", "## "))]
    if what == "metadata":
        return keys(yaml.safe_load(text.split("---\n")[1]))
    content = yaml.safe_load(text) if path.suffix == ".yaml" else json.loads(text)
    return keys(content["log_history"] if what == "log_history" else content)


# ---- The data and recipes of the runs -------------------------------------------------------------------------------


def prepare(folder):
    """Few images with labels, in three splits, a recipe for them and a comparison of it."""
    random = np.random.default_rng(0)
    for split, count in (("train", 24), ("validation", 24), ("test", 24)):
        (folder / "photos" / split).mkdir(parents=True)
        rows = ["file_name,label"]
        for index in range(count):
            label = 20 + index % 8
            pixels = random.integers(0, 8 * label, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "photos" / split / f"{index:02}.png")
            rows.append(f"{index:02}.png,{label}")
        (folder / "photos" / split / "metadata.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    tiny = {"data": "photos", "model": "timm/test_resnet", "pretrained": False, "image_size": 32, "unit": "years"}
    tiny |= {"per_device_train_batch_size": 8, "max_steps": 1, "report_to": "none", "use_cpu": True}
    (folder / "tiny.yaml").write_text(yaml.safe_dump(tiny), encoding="utf-8")
    comparison = {
        "recipes": ["tiny.yaml"],
        "seeds": [1],
        "methods": {"vanilla": {"conr_weight": 0}, "conr": {}},
        "output_dir": "compared",
    }
    (folder / "comparison.yaml").write_text(yaml.safe_dump(comparison, sort_keys=False), encoding="utf-8")


def run_all(folder):
    """Runs every command in `folder`, which must be the working directory."""
    prepare(folder)
    for name, command in COMMANDS.items():
        code, out, err = conr(*command.split())
        assert code == 0, f"{name}: {out}\n{err}"


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The folder with all that the commands write."""
    folder = tmp_path_factory.mktemp("promises")
    verbosity = logging.get_verbosity()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "cache")
        if "PYTHONPATH" in os.environ:
            paths = [str(Path(path).absolute()) for path in os.environ["PYTHONPATH"].split(os.pathsep)]
            patch.setenv("PYTHONPATH", os.pathsep.join(paths))
        run_all(folder)
    yield folder
    logging.set_verbosity(verbosity)
    logging.enable_progress_bar()
    datasets.enable_progress_bars()


@pytest.mark.parametrize("name", PROMISED["files"])
def test_what_was_in_a_file_or_folder_is_in_it(written, name):
    missing = set(PROMISED["files"][name]) - set(holds(written / name, FILES[name]))
    assert not missing


def test_each_file_is_looked_at():
    assert PROMISED["files"].keys() == FILES.keys()
    assert all(PROMISED["files"].values())


# ---- Names ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("module", "name"), [(module, name) for module, names in PROMISED["names"].items() for name in names]
)
def test_a_name_is_where_it_was(module, name):
    assert getattr(importlib.import_module(module), name, None) is not None


@pytest.mark.parametrize("module", PROMISED["all"])
def test_a_module_names_what_is_public(module):
    assert set(PROMISED["all"][module]) <= set(importlib.import_module(module).__all__)


# ---- Settings -------------------------------------------------------------------------------------------------------


def default(field):
    """A dataclass field's default as text."""
    made = field.default_factory() if field.default is dataclasses.MISSING else field.default
    return repr(made)


@pytest.mark.parametrize("name", PROMISED["settings"])
def test_a_setting_has_the_default_that_it_had(name):
    fields = {field.name: field for field in dataclasses.fields(ConRConfig)}
    assert name in fields
    assert default(fields[name]) == PROMISED["settings"][name]


# ---- Options --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", PROMISED["options"])
def test_a_command_has_its_options(command):
    code, out, _ = conr(command, "--help")
    assert code == 0
    missing = [word for word in PROMISED["options"][command] if not re.search(rf"(?<![\w-]){word}(?![\w-])", out)]
    assert not missing


@pytest.mark.parametrize("command", PROMISED["arguments"])
def test_a_command_has_its_arguments(command):
    code, out, _ = conr(command, "--help")
    assert code == 0
    assert [name for name in PROMISED["arguments"][command] if name not in out] == []


def test_every_command_is_listed():
    code, out, _ = conr("--help")
    assert code == 0
    assert [name for name in (*PROMISED["options"], "train") if not re.search(rf"^ +{name}\b", out, re.M)] == []


@pytest.mark.parametrize("spelling", PROMISED["train"])
def test_train_takes_every_option(spelling, tmp_path):
    """It is told what else is wrong with the line, and no option is; one that there is not is named."""
    (tmp_path / "card.md").write_text("{{ model_name }}", encoding="utf-8")
    line = [str(tmp_path / "card.md") if word == "FILE" else word for word in PROMISED["train"][spelling]]
    code, _, err = conr("train", *line)
    assert code == 2
    assert "unknown option" not in err
    assert "belongs to no option" not in err
    assert "benchmark" in err or "model" in err
    code, _, err = conr("train", *line, "--no_such_option", "1")
    assert code == 2
    assert "no_such_option" in err


def test_train_takes_several_trackers(tmp_path):
    code, _, err = conr("train", "--report_to", "tensorboard", "wandb", "--no_such_option", "1")
    assert code == 2
    assert "no_such_option" in err


# ---- Files of the user ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("command", "kind"), [("train", "recipe"), ("compare", "comparison")])
def test_a_users_file_may_hold_what_it_could(command, kind, tmp_path):
    """It is told what it lacks, since nothing in it has a value; a key that there is not is named."""
    file = tmp_path / "file.yaml"
    for more in ([], ["no_such_key"]):
        file.write_text(yaml.safe_dump(dict.fromkeys([*more, *PROMISED["yaml"][kind]])), encoding="utf-8")
        code, _, err = conr(command, file)
        assert code == 2
        assert ("unknown" in err) == ("no_such_key" in err) == bool(more)


@pytest.mark.parametrize("name", PROMISED["recipes"])
def test_a_recipe_comes_with_the_package(name):
    code, out, _ = conr("recipes", "show", name)
    assert code == 0
    assert out.startswith("#")
