"""
How long it takes from a command to its first optimizer step; run as

    python tests/benchmarks/bench_startup.py first_step      # the quickstart beside a bare script with Trainer
    python tests/benchmarks/bench_startup.py second_start    # 20,000 JPEG files, read once and then known

Each start is a process of its own, in turns, timed from outside until its first step is done. The caches of Hugging
Face are in a folder of their own, so that `conr-hf` knows no image before.
"""

import argparse
import io
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import datasets
import numpy as np
from PIL import Image

import conr_hf

ROOT = Path(conr_hf.__file__).parents[1]
TILES = Path(conr_hf.__file__).parent / "data" / "benchmarks" / "earth_elevation" / "train.parquet"

ENDS_AT_FIRST_STEP = """
import os
from transformers.trainer_callback import CallbackHandler
CallbackHandler.on_step_end = lambda *_: os._exit(0)
"""

CONR = f"""{ENDS_AT_FIRST_STEP}
import sys
from conr_hf.cli import main
main(["train", *sys.argv[1:]])
"""

LOAD = "import sys, conr_hf.cli.train; from conr_hf.data.local import load_local; load_local(sys.argv[1])"

BARE = f"""{ENDS_AT_FIRST_STEP}
import sys
import timm
import torch
from datasets import load_dataset
from transformers import TimmWrapperConfig, TimmWrapperForImageClassification, TimmWrapperImageProcessor
from transformers import Trainer, TrainingArguments

cfg = timm.get_pretrained_cfg("resnet10t").to_dict() | {{"input_size": (3, 32, 32), "crop_pct": 1.0, "num_classes": 1}}
config = TimmWrapperConfig(architecture="resnet10t", pretrained_cfg=cfg, num_labels=1, problem_type="regression")
model = TimmWrapperForImageClassification(config)
processor = TimmWrapperImageProcessor(cfg, architecture="resnet10t")
rows = load_dataset("parquet", data_files=sys.argv[1], split="train")

def collate(batch):
    pixels = processor([row["image"].convert("RGB") for row in batch], return_tensors="pt")["pixel_values"]
    return {{"pixel_values": pixels, "labels": torch.tensor([row["label"] for row in batch])}}

args = TrainingArguments(sys.argv[2], per_device_train_batch_size=64, learning_rate=0.003, use_cpu=True,
                         remove_unused_columns=False, report_to="none")
Trainer(model, args, data_collator=collate, train_dataset=rows).train()
"""


def seconds(program: str, *arguments: object, home: Path) -> float:
    """From the start of a process to the end of its first step."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HOME": str(home), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", program, *map(str, arguments)]
    start = time.perf_counter()
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    took = time.perf_counter() - start
    if ended.returncode:
        raise RuntimeError(ended.stderr)
    return took


def forget_images(home: Path) -> None:
    shutil.rmtree(home / "conr_hf", ignore_errors=True)


def show_first_step(folder: Path, repeats: int) -> None:
    home = folder / "home"
    recipe = ["quickstart", "--use_cpu", "true", "--output_dir", folder / "ours"]

    def first() -> float:
        forget_images(home)
        return seconds(CONR, *recipe, home=home)

    starts = {
        "bare script, Trainer": lambda: seconds(BARE, TILES, folder / "bare", home=home),
        "conr-hf train quickstart, first time": first,
        "conr-hf train quickstart, again": lambda: seconds(CONR, *recipe, home=home),
    }
    for start in starts.values():  # programs and data come from the disk only once
        start()
    times: dict[str, list[float]] = {name: [] for name in starts}
    for _ in range(repeats):
        for name, start in starts.items():
            times[name].append(start())
    bare, *_ = times.values()
    print(f"To the first step: medians of {repeats} starts each, in turns, and of their ratios\n")
    print("| | seconds | to the bare script |")
    print("|---|---|---|")
    for name, some in times.items():
        ratio = statistics.median(mine / theirs for mine, theirs in zip(some, bare, strict=True))
        print(f"| {name} | {statistics.median(some):.2f} | {ratio:.2f} |")


# ---- Many images ----------------------------------------------------------------------------------------------------


def draw_jpegs(side: int) -> list[bytes]:
    """200 JPEG files: gradients under noise."""
    random = np.random.default_rng(0)
    across, files = np.linspace(0, 1, side), []
    for _ in range(200):
        colours = random.uniform(0, 255, (3, 3))
        pixels = colours[0] * across[:, None] + colours[1] * across[:, None, None] / 2 + colours[2] * 0.3
        noisy = (pixels + random.normal(0, 12, (side, side, 3))).clip(0, 255)
        file = io.BytesIO()
        Image.fromarray(noisy.astype(np.uint8)).save(file, "JPEG", quality=85)
        files.append(file.getvalue())
    return files


def write_files(folder: Path, files: list[bytes], labels: list[float]) -> Path:
    """A table, and a file for each of its rows."""
    Path(folder, "images").mkdir(parents=True)
    lines = ["image,label"]
    for row, label in enumerate(labels):
        Path(folder, "images", f"{row:05}.jpg").write_bytes(files[row % len(files)])
        lines.append(f"images/{row:05}.jpg,{label}")
    table = folder / "rows.csv"
    table.write_text("\n".join(lines) + "\n")
    return table


def write_parquet(folder: Path, files: list[bytes], labels: list[float]) -> Path:
    """Parquet files that hold the images."""
    folder.mkdir()
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("float32")})
    for part, start in enumerate(range(0, len(labels), 5000)):
        some = labels[start : start + 5000]
        images = [{"bytes": files[row % len(files)], "path": None} for row in range(len(some))]
        rows = datasets.Dataset.from_dict({"image": images, "label": some}, features=features)
        rows.to_parquet(folder / f"train-{part:05}.parquet")
    return folder


def show_second_start(folder: Path, rows: int, side: int) -> None:
    labels = (45 + 16 * np.random.default_rng(0).standard_normal(rows)).round().clip(1, 101).tolist()
    files = draw_jpegs(side)
    datasets.disable_progress_bars()
    data = {
        "64 files": write_files(folder / "few", files, labels[:64]),  # what any start takes
        f"{rows:,} files": write_files(folder / "files", files, labels),
        f"{rows:,} in Parquet": write_parquet(folder / "parquet", files, labels),
    }
    options = ["--model", "timm/test_resnet", "--pretrained", "false", "--image_size", 32, "--use_cpu", "true"]
    options += ["--per_device_train_batch_size", 16, "--output_dir", folder / "run"]
    home = folder / "home"
    print(f"To the first step, JPEG images of {side} x {side} pixels\n")
    print("| data | first start | second start | second to first |")
    print("|---|---|---|---|")
    for name, path in data.items():
        start = ["--data", path, *options]
        seconds(LOAD, path, home=home)  # programs, and Arrow files of Parquet ones, are there from now on
        first, second = (seconds(CONR, *start, home=home) for _ in range(2))
        print(f"| {name} | {first:.1f} s | {second:.1f} s | {second / first:.3f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["first_step", "second_start"])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--side", type=int, default=500, help="of an image, in pixels")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if arguments.what == "first_step":
            show_first_step(Path(folder), arguments.repeats)
        else:
            show_second_start(Path(folder), arguments.rows, arguments.side)


if __name__ == "__main__":
    main()
