"""
What a GPU shows of this project, in one Markdown table; tests/gpu.sh runs it after the tests that need a GPU:

    python tests/benchmarks/bench_gpu.py [--tests "what they said"] [--seconds 240]

Without a GPU the same runs on the CPU at toy sizes. Trainers take turns step by step, and medians are taken. Images
are noise, ready on the device, two views of each sample, so that no reading hides anything. A part that would begin
after `--seconds` is left out, and the table says so.
"""

import argparse
import gc
import platform
import statistics
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
import transformers
from bench_loss import DEVICE, SETTINGS, make_batch, peak_memory, reference, run_once, show_bytes, show_time, wait
from bench_training import OURS, VIEWS, Ready, TakesTurns, options_of, repeated, take_turns
from transformers import Trainer, TrainingArguments

from conr_hf import ConRConfig, ConRTrainer, load_regressor
from conr_hf.data.augmentation import Augmentation
from conr_hf.losses import conr_loss, rank_n_contrast

Row = tuple[str, str, str, str]  # what, at which size, ours, and what stands beside it


class Sizes(NamedTuple):
    models: tuple[str, ...]
    pixels: int
    samples: int  # of a batch, of two views each
    steps: int
    compiler: str
    losses: tuple[tuple[int, int], ...]  # rows and dimensions
    contrast: int  # samples whose views are compared, `samples` of which go through the model at once


GPU_MODELS = "timm/vit_base_patch16_224", "timm/convnext_tiny"
GPU_LOSSES = (128, 768), (512, 768), (2048, 768), (4096, 768), (16384, 768)
GPU = Sizes(GPU_MODELS, 224, 64, 20, "inductor", GPU_LOSSES, 2048)
TOY = Sizes(("timm/test_vit", "timm/test_convnext"), 32, 8, 3, "aot_eager", ((32, 16), (600, 16)), 32)


class ReadyOnDevice(Ready):
    """Noise on the device."""

    def __init__(self, rows: int, size: int) -> None:
        super().__init__(rows, size, VIEWS)
        self.pixels = self.pixels.to(DEVICE)


def plain(**batch) -> torch.Tensor:
    return reference.plain_conr_loss(**batch, **SETTINGS)


def ranked(features: torch.Tensor, labels: torch.Tensor, **_) -> torch.Tensor:
    return rank_n_contrast(features, labels)


LOSSES = {"ConR": partial(conr_loss, **SETTINGS), "Rank-N-Contrast": ranked}


def loss_rows(sizes: Sizes) -> Iterator[Row]:
    """Forward and backward of the losses alone, in float32, and their memory beyond the inputs."""
    for rows, dims in sizes.losses:
        batch = make_batch("rounded", rows, dims)
        shown = {}
        for name, function in {**LOSSES, "the plain dense form of ConR": plain}.items():
            if function is plain and rows > 8192:  # several times rows^2 numbers
                continue
            seconds = median_seconds(partial(run_once, function, batch))
            shown[name] = f"{show_time(seconds)}, {show_bytes(peak_memory(function, batch))}"
        ours = "; ".join(f"{name} {shown.pop(name)}" for name in LOSSES)
        yield "losses alone, float32", f"{rows} rows of {dims}", ours, "; ".join(map(" ".join, shown.items()))


def median_seconds(timed) -> float:
    """Of ten calls that return their seconds, after three."""
    return statistics.median([timed() for _ in range(13)][3:])


def step_rows(sizes: Sizes, folder: str, name: str, compiled: bool) -> Iterator[Row]:
    """A step with all three methods beside the stock Trainer's on the same images, and the losses' share of it."""
    options = options_of(folder, sizes.samples, sizes.steps + 3)
    options |= {"bf16": True, "dataloader_pin_memory": False}
    options |= {"torch_compile": True, "torch_compile_backend": sizes.compiler} if compiled else {}
    data = ReadyOnDevice(sizes.samples * (sizes.steps + 3), sizes.pixels)
    ours = make_ours(name, sizes, data, **options)
    arguments = TrainingArguments(**options)
    stock = Trainer(load_model(name, sizes)[0], arguments, data_collator=repeated, train_dataset=data)
    turns = {OURS: TakesTurns(), "Trainer": TakesTurns()}
    take_turns({OURS: ours, "Trainer": stock}, turns)
    mine, theirs = (turn.times[3:] for turn in turns.values())
    images, step = sizes.samples * VIEWS, statistics.median(mine)
    ratio = statistics.median(own / other for own, other in zip(mine, theirs, strict=True))
    rates = [f"{images / statistics.median(seconds):,.0f} images/s" for seconds in (mine, theirs)]
    how = f"step, bf16, {f'compiled by {sizes.compiler}' if compiled else 'eager'}"
    size = f"{name}, {sizes.pixels} px, {images} images"
    yield how, size, rates[0], f"Trainer {rates[1]}; a step of ours takes {ratio:.3f} of its time"
    if not compiled:
        batch = make_batch("rounded", images, ours.head.weight.shape[1])
        for loss, function in LOSSES.items():
            seconds = median_seconds(partial(run_once, function, batch))
            yield f"{loss} in a step", size, show_time(seconds), f"{100 * seconds / step:.1f} % of {show_time(step)}"


def load_model(name: str, sizes: Sizes):
    torch.manual_seed(0)
    return load_regressor(name, "age", pretrained=False, image_size=sizes.pixels)


def make_ours(name: str, sizes: Sizes, data: Ready, **options) -> ConRTrainer:
    model, processor = load_model(name, sizes)
    return ConRTrainer(
        model, ConRConfig(**options, num_views=VIEWS, conr_weight=0.05), train_dataset=data, processing_class=processor
    )


def contrast_rows(sizes: Sizes, folder: str, name: str) -> Iterator[Row]:
    """Memory and time of a step that compares many images, few of which go through the model at once."""
    for samples in (sizes.samples, sizes.contrast):
        options = options_of(folder, samples, 2) | {"bf16": True, "dataloader_pin_memory": False}
        data = ReadyOnDevice(2 * samples, sizes.pixels)
        trainer = make_ours(name, sizes, data, forward_batch_size=sizes.samples, **options)
        turn = TakesTurns()
        gc.collect()  # what was trained before
        if DEVICE.type != "cpu":
            torch.accelerator.reset_peak_memory_stats()
        take_turns({OURS: trainer}, {OURS: turn})
        peak = show_bytes(torch.accelerator.max_memory_allocated()) if DEVICE.type != "cpu" else "of a GPU only"
        at_once = f"{sizes.samples * VIEWS} at once"
        yield (
            "peak memory of training",
            f"{name}, {samples * VIEWS} compared, {at_once}",
            peak,
            show_time(turn.times[-1]),
        )


def view_rows(sizes: Sizes) -> Iterator[Row]:
    """Two views of each image, made on the device and on the CPU."""
    images = torch.randn(sizes.samples, 3, sizes.pixels, sizes.pixels, generator=torch.Generator().manual_seed(0))
    random = np.random.default_rng(0)
    light = Augmentation(1 / 14, horizontal_flip=True)
    draws = torch.tensor([[light.draw(images.shape[-2:], random) for _ in range(VIEWS)] for _ in images])
    made, shown = [], []
    for device in (DEVICE, torch.device("cpu")):
        there = images.to(device), draws.to(device)
        made.append(light.move(*there).cpu())

        def timed(there=there) -> float:
            wait()
            start = time.perf_counter()
            light.move(*there)
            wait()
            return time.perf_counter() - start

        shown.append(show_time(median_seconds(timed)))
    same = "the same to the last bit" if torch.equal(*made) else "NOT the same"
    yield (
        "two views of a batch",
        f"{sizes.samples} images, {sizes.pixels} px",
        shown[0],
        f"on the CPU {shown[1]}, {same}",
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tests", default="not run", help="what the tests that need a GPU said")
    parser.add_argument("--seconds", type=float, default=240.0, help="after which no further part begins")
    given = parser.parse_args()
    start, sizes = time.perf_counter(), TOY if DEVICE.type == "cpu" else GPU
    place = torch.cuda.get_device_name() if DEVICE.type == "cuda" else f"{DEVICE.type} {platform.processor()}"
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    rows: list[Row] = [("tests that need a GPU", "", given.tests, "")]
    with tempfile.TemporaryDirectory() as folder:
        parts = {
            "losses": partial(loss_rows, sizes),
            "views": partial(view_rows, sizes),
            **{name: partial(step_rows, sizes, folder, name, False) for name in sizes.models},
            "contrast": partial(contrast_rows, sizes, folder, sizes.models[0]),
            **{f"{name}, compiled": partial(step_rows, sizes, folder, name, True) for name in sizes.models},
        }
        for part, found in parts.items():
            seconds = time.perf_counter() - start
            print(f"{seconds:.0f} s: {part}", flush=True)
            try:
                late = [(part, "", "left out", f"{given.seconds:.0f} s were over")]
                for row in found() if seconds <= given.seconds else late:
                    rows.append(row)
                    print("  ".join(row), flush=True)
            except Exception as error:  # one part that fails must not cost the others
                rows.append((part, "", "failed", f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"))
    print(f"\n{place}, {versions}, {time.perf_counter() - start:.0f} s\n")
    print("| what | size | ours | beside |\n|---|---|---|---|")
    for row in rows:
        print(f"| {' | '.join(row)} |")


if __name__ == "__main__":
    main()
