"""
How long a training step takes beside the plain `Trainer`, and what feeding it costs; run as

    python tests/benchmarks/bench_training.py step      # ConRTrainer, Trainer and three forwards a sample, in turns
    python tests/benchmarks/bench_training.py loader    # from encoded images to batches, alone and before a step

On an accelerator where there is one. A step is all that lies between the ends of two: batch, forward, backward,
clipping, optimizer. The trainers take turns, step by step, so that whatever else slows the machine slows all of them.
"""

import argparse
import io
import itertools
import statistics
import tempfile
import threading
import time

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
METHODS = {
    "ConR": {"resample": "none", "rnc_weight": 0.0},  # the method of the paper alone
    "defaults": {},  # with resampling and Rank-N-Contrast
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
    """One step of each trainer after the other, each in a thread of its own."""

    def __init__(self, own: threading.Semaphore, following: threading.Semaphore) -> None:
        self.own, self.following, self.times = own, following, []

    def on_train_begin(self, *_, **__) -> None:
        self._wait()

    def on_step_end(self, *_, **__) -> None:
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()
        self.times.append(time.perf_counter() - self.start)
        self._wait()

    def on_train_end(self, *_, **__) -> None:
        self.following.release()

    def _wait(self) -> None:
        self.following.release()
        self.own.acquire()
        self.start = time.perf_counter()


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


def make_trainers(chosen: str, size: int, batch: int, steps: int, folder: str, method: str) -> dict[str, Trainer]:
    """The contenders, each with a model of its own."""
    options = options_of(folder, batch, steps)

    def parts(views):
        torch.manual_seed(0)
        model, processor = load_regressor(NAMES.get(chosen, chosen), "age", pretrained=False, image_size=size)
        return model, processor, Ready(batch * (steps + 2), size, views)

    model, processor, data = parts(VIEWS)
    ours = ConRTrainer(model, ConRConfig(**options, **METHODS[method]), train_dataset=data, processing_class=processor)
    model, _, data = parts(VIEWS)
    stock = Trainer(model, TrainingArguments(**options), data_collator=repeated, train_dataset=data)
    model, _, data = parts(3)
    three = ThreeForwards(model, TrainingArguments(**options), data_collator=stacked, train_dataset=data)
    return {"ConRTrainer": ours, "Trainer": stock, "three forwards": three}


def take_turns(trainers: dict[str, Trainer]) -> dict[str, list[float]]:
    """Seconds of each step of each trainer, the first few left out."""
    turns = [threading.Semaphore(0) for _ in trainers]
    pairs = zip(turns, [*turns[1:], turns[0]], strict=True)
    callbacks = [TakesTurns(own, following) for own, following in pairs]
    threads = []
    for trainer, callback in zip(trainers.values(), callbacks, strict=True):
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(callback)
        threads.append(threading.Thread(target=trainer.train))
    # Up to its first step each begins alone; the last of them passes the turn on to the first.
    for thread, own in zip(threads, [*turns[1:], turns[0]], strict=True):
        thread.start()
        own.acquire()
    turns[0].release()
    for thread in threads:
        thread.join()
    return {name: callback.times[2:] for name, callback in zip(trainers, callbacks, strict=True)}


def show_steps(folder: str, steps: int, models: list[str], batch: int | None, method: str) -> None:
    print(f"{method}; medians of {steps} steps each, in turns, and of their ratios\n")
    print("| model | pixels | samples | ConRTrainer | Trainer | three forwards | to Trainer | to three forwards |")
    print("|---|---|---|---|---|---|---|---|")
    for name in models:
        size, samples = MODELS[name][0], batch or MODELS[name][1]
        times = take_turns(make_trainers(name, size, samples, steps + 2, folder, method))
        ours, stock, three = times.values()
        to_stock, to_three = (
            statistics.median(mine / theirs for mine, theirs in zip(ours, other, strict=True))
            for other in (stock, three)
        )
        shown = " | ".join(f"{1e3 * statistics.median(some):.1f} ms" for some in (ours, stock, three))
        print(
            f"| {NAMES.get(name, name)} | {size} | {samples} | {shown} | {to_stock:.3f} | {to_three:.3f} |", flush=True
        )


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
        args = ConRConfig(**options_of(folder, samples, steps), dataloader_num_workers=workers)
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
    parser.add_argument("--method", default="ConR", choices=list(METHODS))
    arguments = parser.parse_args()
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
    print(f"torch {torch.__version__}, {device}, {torch.get_num_threads()} threads\n")
    with tempfile.TemporaryDirectory() as folder:
        if arguments.what == "step":
            show_steps(folder, arguments.steps, arguments.models, arguments.batch, arguments.method)
        else:
            show_loader(folder, arguments.steps, arguments.models, arguments.batch)


if __name__ == "__main__":
    main()
