"""
How long a training step takes beside the plain `Trainer`, and what feeding it costs; run as

    python tests/benchmarks/bench_training.py step      # ConRTrainer, Trainer and three forwards a sample, in turns
    python tests/benchmarks/bench_training.py loader    # from encoded images to batches, alone and before a step

On an accelerator where there is one. A step is all that lies between the ends of two: batch, forward, backward,
clipping, optimizer. The trainers take turns, step by step and in random order, so that whatever else slows the machine
slows all of them.
"""

import argparse
import io
import itertools
import statistics
import tempfile
import threading
import time
from random import Random

import datasets
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from conr_hf import ConRConfig, ConRTrainer, adopt_head, load_regressor
from conr_hf.losses import conr_loss

# Model, image size in pixels and samples of a batch on a CPU; each sample has two views.
MODELS = {
    "timm/vit_small_patch16_224": (224, 8),
    "timm/convnext_atto": (224, 8),
    "small": (64, 64),
    "timm/resnet50": (224, 8),  # of convolutions, which read pixels channels last
    "timm/tf_efficientnet_lite0": (224, 8),
}
NAMES = {"small": "timm/convnext_atto"}
VIEWS = 2
OURS, OTHERS = "ConRTrainer", ["Trainer", "three forwards"]
METHODS = {
    "ConR": {"conr_weight": 0.05, "resample": "none", "rnc_weight": 0.0},  # the method of the paper alone
    "all": {"conr_weight": 0.05},  # with resampling and Rank-N-Contrast
    "no ConR": {"conr_weight": 0.0},
}


class Ready(torch.utils.data.Dataset):
    """Noise, `views` of each sample, with ages that are common at 45 and rare far from it."""

    column_names = ("pixel_values", "labels")

    def __init__(self, rows: int, size: int, views: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.pixels = torch.randn(64, views, 3, size, size, generator=generator)
        self.labels = (45 + 16 * torch.randn(rows, generator=generator)).round().clamp(1, 101)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, row: int) -> dict:
        return {"pixel_values": self.pixels[row % len(self.pixels)], "labels": self.labels[row].item()}


def stacked(rows: list[dict]) -> dict[str, Tensor]:
    """`(B, V, C, H, W)` and `(B,)`."""
    pixels = torch.stack([row["pixel_values"] for row in rows])
    return {"pixel_values": pixels, "labels": torch.tensor([row["labels"] for row in rows])}


def repeated(rows: list[dict]) -> dict[str, Tensor]:
    """The views as so many rows, `(B * V, C, H, W)`, as a user of `Trainer` would feed them."""
    batch = stacked(rows)
    pixels = batch["pixel_values"].flatten(0, 1)
    return {"pixel_values": pixels, "labels": batch["labels"].repeat_interleave(VIEWS)}


class ThreeForwards(Trainer):
    """A forward for each of two views and one for the plain image: ConR reads the first two, L1 the last."""

    def __init__(self, model, args, **options) -> None:
        super().__init__(model, args, **options)
        size = self.train_dataset.pixels.shape[-1]
        self.head = adopt_head(model, torch.zeros(1, 3, size, size))

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        labels, features, predictions = inputs["labels"], [], []
        for view in inputs["pixel_values"].unbind(1):
            predictions.append(model(pixel_values=view.contiguous()).logits[:, 0])
            features.append(self.head.take_features())
        regression = (predictions[2] - labels).abs().mean() / 16
        contrast = conr_loss(
            torch.cat(features[:2]),
            labels.repeat(2),
            torch.cat(predictions[:2]).detach(),
            None,
            window=1.0,
            push_scale=0.01,
        )
        return regression + 0.25 * contrast


class TakesTurns(TrainerCallback):
    """Stops its trainer before its first step, and after each, until it is given a turn."""

    def __init__(self) -> None:
        self.begins, self.ended = threading.Semaphore(0), threading.Semaphore(0)
        self.times: list[float] = []  # of its steps, in seconds
        self.cpu_times: list[float] = []  # what its thread had of a processor meanwhile, whatever else ran

    def on_train_begin(self, *_, **__) -> None:
        self.wait()

    def on_step_end(self, *_, **__) -> None:
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()
        self.times.append(time.perf_counter() - self.start)
        self.cpu_times.append(time.thread_time() - self.cpu_start)
        self.wait()

    def wait(self) -> None:
        self.ended.release()
        self.begins.acquire()
        self.start, self.cpu_start = time.perf_counter(), time.thread_time()


def options_of(folder: str, batch: int, steps: int) -> dict:
    return {
        "output_dir": folder,
        "per_device_train_batch_size": batch,
        "max_steps": steps,
        "save_strategy": "no",
        "logging_strategy": "no",
        "disable_tqdm": True,
        "use_cpu": not torch.accelerator.is_available(),
        "remove_unused_columns": False,
    }


def make_trainers(
    chosen: str, size: int, batch: int, steps: int, folder: str, method: str, names: list[str]
) -> dict[str, Trainer]:
    """The contenders of these names, ours first, each with a model of its own."""
    options = options_of(folder, batch, steps)

    def parts(views):
        torch.manual_seed(0)
        model, processor = load_regressor(NAMES.get(chosen, chosen), "age", pretrained=False, image_size=size)
        return model, processor, Ready(batch * (steps + 2), size, views)

    model, processor, data = parts(VIEWS)
    settings = ConRConfig(**options, **METHODS[method], num_views=VIEWS)
    trainers = {OURS: ConRTrainer(model, settings, train_dataset=data, processing_class=processor)}
    if "Trainer" in names:
        model, _, data = parts(VIEWS)
        settings = TrainingArguments(**options)
        trainers["Trainer"] = Trainer(model, settings, data_collator=repeated, train_dataset=data)
    if "three forwards" in names:
        model, _, data = parts(3)
        settings = TrainingArguments(**options)
        trainers["three forwards"] = ThreeForwards(model, settings, data_collator=stacked, train_dataset=data)
    return trainers


def take_turns(trainers: dict[str, Trainer], turns: dict[str, TakesTurns]) -> None:
    """Trains each trainer in a thread of its own, one at a time, in rounds of a turn for each, in random order."""

    def train(name: str) -> None:
        try:
            trainers[name].train()
        finally:
            running.remove(name)
            turns[name].ended.release()

    random, running = Random(0), list(trainers)
    for name in trainers:  # up to its first step each begins alone
        trainers[name].remove_callback(PrinterCallback)
        trainers[name].add_callback(turns[name])
        threading.Thread(target=train, args=[name], daemon=True).start()
        turns[name].ended.acquire()
    while running:
        for name in random.sample(running, len(running)):
            turns[name].begins.release()
            turns[name].ended.acquire()


def show_steps(folder: str, steps: int, models: list[str], batch: int | None, method: str, names: list[str]) -> None:
    print(f"{method}; medians of {steps} steps each, in turns, and of ratios, with their quartiles\n")
    others = [name for name in names if name != OURS]
    ratios = [f"to {name} | in CPU time" for name in others]
    print(f"| model | pixels | samples | {' | '.join([OURS, *others, *ratios])} |\n|" + "---|" * (4 + 3 * len(others)))
    for name in models:
        size, samples = MODELS[name][0], batch or MODELS[name][1]
        trainers = make_trainers(name, size, samples, steps + 2, folder, method, names)
        turns = {contender: TakesTurns() for contender in trainers}
        take_turns(trainers, turns)
        cells = [f"{1e3 * statistics.median(turn.times[2:]):.1f} ms" for turn in turns.values()]
        for other in others:
            mine, theirs = turns[OURS], turns[other]
            cells += [ratio(mine.times[2:], theirs.times[2:]), ratio(mine.cpu_times[2:], theirs.cpu_times[2:])]
        print(f"| {NAMES.get(name, name)} | {size} | {samples} | {' | '.join(cells)} |", flush=True)


def ratio(mine: list[float], theirs: list[float]) -> str:
    """The median of what mine are of theirs, and its quartiles."""
    low, middle, high = statistics.quantiles([own / other for own, other in zip(mine, theirs, strict=True)], n=4)
    return f"{middle:.3f} ({low:.3f} to {high:.3f})"


# ---- The loader -----------------------------------------------------------------------------------------------------


def photos(rows: int) -> datasets.Dataset:
    """JPEG files of 256 x 256 pixels in memory, smooth as photographs are."""
    random = np.random.default_rng(0)
    files = []
    for _ in range(64):
        coarse = Image.fromarray(random.integers(0, 256, (32, 32, 3), dtype=np.uint8))
        file = io.BytesIO()
        coarse.resize((256, 256), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
        files.append({"bytes": file.getvalue(), "path": None})
    labels = (45 + 16 * random.standard_normal(rows)).round().clip(1, 101)
    return datasets.Dataset.from_dict(
        {"image": [files[row % 64] for row in range(rows)], "label": labels},
        features=datasets.Features({"image": datasets.Image(), "label": datasets.Value("float32")}),
    )


class Waits(ConRTrainer):
    """Tells how long each step waits for its batch."""

    def get_batch_samples(self, *arguments):
        start = time.perf_counter()
        batches = super().get_batch_samples(*arguments)
        self.waited.append(time.perf_counter() - start)
        return batches


class StepEnds(TrainerCallback):
    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, *_, **__) -> None:
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()
        self.ends.append(time.perf_counter())


def show_loader(folder: str, steps: int, models: list[str], batch: int | None) -> None:
    print("JPEG files of 256 x 256 pixels in memory, two views each; medians\n")
    print("| model | pixels | samples | workers | a batch, loader alone | a step with its batch | of it waiting |")
    print("|---|---|---|---|---|---|---|")
    for name, workers in itertools.product(models, (0, 2)):
        size, samples = MODELS[name][0], batch or MODELS[name][1]
        torch.manual_seed(0)
        model, processor = load_regressor(NAMES.get(name, name), "age", pretrained=False, image_size=size)
        args = ConRConfig(**options_of(folder, samples, steps), num_views=VIEWS, dataloader_num_workers=workers)
        trainer = Waits(model, args, train_dataset=photos(samples * (steps + 2)), processing_class=processor)
        trainer.waited, times = [], StepEnds()
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(times)
        trainer.train()
        waits = statistics.median(trainer.waited[2:])
        step = statistics.median(after - before for before, after in itertools.pairwise(times.ends[1:]))
        alone, loader = [], iter(trainer.get_train_dataloader())
        start = time.perf_counter()
        for _ in loader:
            alone.append(time.perf_counter() - start)
            start = time.perf_counter()
        # Workers run ahead, so that a median would show the queue; the mean shows their pace.
        pace = statistics.mean(alone[2:])
        print(
            f"| {NAMES.get(name, name)} | {size} | {samples} | {workers} | {1e3 * pace:.1f} ms | {1e3 * step:.1f} ms "
            f"| {100 * waits / step:.1f} % |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["step", "loader"])
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch", type=int, help="samples of a batch, in place of those that suit a CPU")
    parser.add_argument("--method", default="all", choices=list(METHODS))
    parser.add_argument("--beside", nargs="+", default=OTHERS, choices=OTHERS)
    arguments = parser.parse_args()
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
    print(f"torch {torch.__version__}, {device}, {torch.get_num_threads()} threads\n")
    with tempfile.TemporaryDirectory() as folder:
        if arguments.what == "step":
            names = [OURS, *arguments.beside]
            show_steps(folder, arguments.steps, arguments.models, arguments.batch, arguments.method, names)
        else:
            show_loader(folder, arguments.steps, arguments.models, arguments.batch)


if __name__ == "__main__":
    main()
