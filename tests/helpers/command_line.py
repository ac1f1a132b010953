"""The command line in this process and in one of its own, and folders of photographs for it."""

import contextlib
import csv
import io
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np
import pytest
import yaml
from PIL import Image

import conr_hf
from conr_hf.cli.main import main

ROOT = Path(conr_hf.__file__).parents[1]


OPTIONS = {
    "model": "timm/test_resnet",
    "pretrained": False,
    "image_size": 32,
    "max_steps": 2,
    "learning_rate": 0.01,
    "logging_steps": 1,
    "disable_tqdm": True,
    "report_to": "none",
    "use_cpu": True,
}


TRAIN_LABELS = np.random.default_rng(0).permutation([30] * 101 + [40] * 20 + list(range(50, 60)))


TEST_LABELS = [30, 40, 50, 30, 40, 51, 30, 40, 52, 30, 40, 70]


@dataclass
class Ended:
    code: int
    out: str
    err: str


def conr(*arguments):
    """`conr-hf ARGUMENTS` in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as exit_:
        main([str(argument) for argument in arguments])
    return Ended(exit_.value.code or 0, out.getvalue(), err.getvalue())


def conr_process(*arguments, **environment):
    """`python -m conr_hf ARGUMENTS`."""
    ended = subprocess.run(
        [sys.executable, "-m", "conr_hf", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "PYTHONPATH": str(ROOT), "HF_DATASETS_CACHE": str(datasets.config.HF_DATASETS_CACHE)}
        | environment,
        check=False,
    )
    return Ended(ended.returncode, ended.stdout, ended.stderr)


def photos(folder, **labels):
    """A folder of images as a user has it: `folder/SPLIT/000.png`, ... and `folder/SPLIT/metadata.csv`."""
    random = np.random.default_rng(1)
    for split, values in labels.items():
        Path(folder, split).mkdir(parents=True)
        rows = ["file_name,label"]
        for index, label in enumerate(values):
            pixels = random.integers(0, 256, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(Path(folder, split, f"{index:03}.png"))
            rows.append(f"{index:03}.png,{label}")
        Path(folder, split, "metadata.csv").write_text("\n".join(rows) + "\n")
    return folder


def few_photos(folder):
    return photos(folder, train=TRAIN_LABELS[:12], validation=TEST_LABELS, test=TEST_LABELS)


def relabel(folder, row, label, split="train"):
    file = Path(folder, split, "metadata.csv")
    lines = file.read_text().splitlines()
    lines[row + 1] = f"{row:03}.png,{label}"
    file.write_text("\n".join(lines) + "\n")


def written(path, **options):
    """A recipe file."""
    kept = {name: value for name, value in {**OPTIONS, **options}.items() if value is not None}
    path.write_text(yaml.safe_dump(kept))
    return path


def table_rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))
