"""
How soon ConRTrainer's defaults reach the test error that a plain fine-tune with `Trainer` ends at; run as

    python tests/benchmarks/bench_time_to_error.py --seeds 1 2 3    # timm/resnet10t from scratch, 32 px
    python tests/benchmarks/bench_time_to_error.py --weights FILE   # fine-tuned: EfficientNet-Lite0 of ImageNet, 64 px
    python tests/benchmarks/bench_time_to_error.py --results runs/times.jsonl    # adds to a file, and shows all of it

The data are `earth-elevation`. `Trainer` fits standardised labels with L1 (or `--stock_loss mse`), one view of each
image, cropped and flipped as ours are, from pixels that are ready in memory; ours reads the images. Both
have the same network, images a step, steps, optimizer and cosine schedule.

The contenders take turns of a few steps in random order, each in a thread of its own, so that whatever else slows the
machine slows all of them. Counted is what lies between the ends of two steps, in seconds of the wall clock and of the
processor; the errors on the test split are taken between turns and not counted. Errors fall when the learning rate
does, so runs of ours with fewer steps, each with its whole schedule, are the second reading (`--epochs_share`).
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from bench_training import TakesTurns, take_turns
from torch import Tensor
from transformers import Trainer, TrainingArguments

from conr_hf import ConRConfig, ConRTrainer, load_benchmark, load_regressor
from conr_hf.data.augmentation import Augmentation
from conr_hf.imbalance import make_bins
from conr_hf.metrics import shot_metrics_from_bins

IMAGES, POINTS = 128, 20  # images of a step, and evaluations of the stock run
FITS = {  # as the recipes quickstart and best
    "scratch": {"model": "timm/resnet10t", "image_size": 32, "learning_rate": 3e-3, "steps": 182},
    "fine-tuned": {"model": "timm/tf_efficientnet_lite0", "image_size": 64, "learning_rate": 1e-3, "steps": 91},
}
STOCK, OURS, ERRORS = "Trainer", "ours", ("few", "balanced")


class Ready(torch.utils.data.Dataset):
    """Pixels of images, `(N, 3, H, W)`, and their labels, `(N,)`."""

    def __init__(self, rows, processor) -> None:
        parts = [processor(images=rows[i : i + 256]["image"], return_tensors="pt") for i in range(0, len(rows), 256)]
        self.pixels = torch.cat([part["pixel_values"] for part in parts])
        self.labels = torch.tensor(rows["label"])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, row: int) -> tuple[Tensor, Tensor]:
        return self.pixels[row], self.labels[row]


class StockCollator:
    """One view of each image, and standardised labels."""

    def __init__(self, labels: Tensor, augmentation: Augmentation, seed: int) -> None:
        self.mean, self.scale, self.augmentation = labels.mean(), labels.std(), augmentation
        self.random = np.random.default_rng(seed)

    def __call__(self, rows: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
        pixels, labels = (torch.stack(column) for column in zip(*rows, strict=True))
        size = pixels.shape[-2:]
        draws = torch.tensor([[self.augmentation.draw(size, self.random)] for _ in rows])
        views = self.augmentation.move(pixels, draws)[:, 0]
        return {"pixel_values": views, "labels": (labels - self.mean) / self.scale}


class TimesErrors(TakesTurns):
    """Turns of `every` steps, after each of which the test error is taken, outside the time that is counted."""

    def __init__(self, every: int, test_errors) -> None:
        super().__init__()
        self.every, self.test_errors = every, test_errors
        self.seconds = self.cpu_seconds = 0.0  # of training so far
        self.points: list[dict[str, float]] = []

    def on_step_end(self, args, state, control, model=None, **_) -> None:
        if state.global_step % self.every and state.global_step < state.max_steps:
            return
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()
        self.seconds += time.perf_counter() - self.start
        self.cpu_seconds += time.thread_time() - self.cpu_start
        self.points.append({"seconds": self.seconds, "cpu": self.cpu_seconds, **self.test_errors(model)})
        self.wait()


def compare(fit: str, seed: int, steps: int, given: argparse.Namespace, folder: str) -> dict:
    """Trains all contenders of one seed; the points of each by its name."""
    settings, data = FITS[fit], load_benchmark("earth-elevation")
    bins = make_bins(data["train"]["label"], bin_width=200.0)  # the benchmark's
    stock_loss = torch.nn.functional.l1_loss if given.stock_loss == "l1" else torch.nn.functional.mse_loss

    def parts():
        torch.manual_seed(seed)
        weights = None if fit == "scratch" else given.weights
        return load_regressor(
            given.model or settings["model"],
            "elevation",
            pretrained=fit != "scratch",
            weights=weights,
            image_size=settings["image_size"],
        )

    def options(count: int) -> dict:
        return {
            "output_dir": folder,
            "max_steps": count,
            "learning_rate": settings["learning_rate"],
            "weight_decay": 0.05,
            "warmup_steps": round(0.1 * count),
            "lr_scheduler_type": "cosine",
            "seed": seed,
            "save_strategy": "no",
            "logging_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
            "use_cpu": not torch.accelerator.is_available(),
            "remove_unused_columns": False,
        }

    model, processor = parts()
    train, test = Ready(data["train"], processor), Ready(data["test"], processor)
    collator = StockCollator(train.labels, Augmentation(ConRConfig.crop_padding, horizontal_flip=True), seed)

    def errors_of(scale: Tensor | float, mean: Tensor | float):
        @torch.no_grad()
        def test_errors(model) -> dict[str, float]:
            model.eval()
            pixels = test.pixels.to(model.device)
            predictions = torch.cat([model(pixel_values=part).logits[:, 0] for part in pixels.split(200)]).cpu()
            model.train()
            found = shot_metrics_from_bins(predictions * scale + mean, test.labels, bins)
            return {"few": found["few"]["mae"], "balanced": found["all"]["bmae"], "all": found["all"]["mae"]}

        return test_errors

    trainers: dict[str, Trainer] = {
        STOCK: Trainer(
            model,
            TrainingArguments(per_device_train_batch_size=IMAGES, **options(steps)),
            collator,
            train,
            compute_loss_func=lambda outputs, labels, **_: stock_loss(outputs.logits[:, 0], labels),
        )
    }
    shares = {OURS: 1.0, **{f"{OURS}, {share:g} of the steps": share for share in given.epochs_share}}
    for name, share in shares.items():
        config = ConRConfig(
            per_device_train_batch_size=IMAGES,
            horizontal_flip=True,
            **options(round(share * steps)),
            **json.loads(given.settings),
        )
        model, processor = parts()
        trainers[name] = ConRTrainer(model, config, train_dataset=data["train"], processing_class=processor)
    every = max(steps // POINTS, 1)
    turns = {name: TimesErrors(every, errors_of(1.0, 0.0)) for name in trainers}
    turns[STOCK].test_errors = errors_of(collator.scale, collator.mean)
    take_turns(trainers, turns)
    labels = f"{fit}{'' if given.settings == '{}' else ' ' + given.settings}"
    return {"fit": labels, "seed": seed, "steps": steps, **{name: turn.points for name, turn in turns.items()}}


def first_at(points: list[dict[str, float]], error: str, target: float) -> dict[str, float] | None:
    """The first point at or below an error."""
    return next((point for point in points if point[error] <= target), None)


def show(runs: list[dict]) -> None:
    """Both readings: each run's, and those of whole runs."""
    print("\nWhen ours, at the full length, is first at or below the stock run's last errors (m); ratios of time\n")
    names = (
        "start, seed, stock few, stock balanced, stock time, ours few, ours balanced, few reached, balanced reached"
    )
    print_row(*(*names.split(", "), "ratio few", "ratio balanced", "of CPU time"), is_head=True)
    for fit, of_fit in by_fit(runs).items():
        ratios: dict[tuple[str, str], list[float]] = {}
        for run in of_fit:
            last, end = run[STOCK][-1], run[OURS][-1]
            found = [first_at(run[OURS], error, last[error]) for error in ERRORS]
            for error, point in zip(ERRORS, found, strict=True):
                for clock in ("seconds", "cpu"):
                    if point is not None:
                        ratios.setdefault((clock, error), []).append(point[clock] / last[clock])
            times = ["not reached" if point is None else f"{point['seconds']:.0f} s" for point in found]
            walls, cpus = (
                ["-" if point is None else f"{point[clock] / last[clock]:.2f}" for point in found]
                for clock in ("seconds", "cpu")
            )
            errors = [f"{last[error]:.0f}" for error in ERRORS], [f"{end[error]:.0f}" for error in ERRORS]
            print_row(
                fit, run["seed"], *errors[0], f"{last['seconds']:.0f} s", *errors[1], *times, *walls, ", ".join(cpus)
            )
        means = {key: spread(values, 2) for key, values in ratios.items()}
        walls, cpus = ([means.get((clock, error), "-") for error in ERRORS] for clock in ("seconds", "cpu"))
        print_row(fit, "mean of those that reach", *[""] * 7, *walls, ", ".join(cpus))
    print("\nWhole runs: their errors at the end, and their time as a share of the stock run's\n")
    print_row("start", "run", *ERRORS, "time", "CPU time", "few at or below stock's", "balanced", is_head=True)
    for fit, of_fit in by_fit(runs).items():
        for name in [name for name in of_fit[0] if name == STOCK or name.startswith(OURS)]:
            ends = [(run[name][-1], run[STOCK][-1]) for run in of_fit]
            cells = [spread([end[error] for end, _ in ends], 0) for error in ERRORS]
            cells += [spread([end[clock] / stock[clock] for end, stock in ends], 2) for clock in ("seconds", "cpu")]
            below = [f"{sum(end[error] <= stock[error] for end, stock in ends)} of {len(ends)}" for error in ERRORS]
            print_row(fit, name, *cells, *below)


def by_fit(runs: list[dict]) -> dict[str, list[dict]]:
    return {fit: [run for run in runs if run["fit"] == fit] for fit in dict.fromkeys(run["fit"] for run in runs)}


def print_row(*cells: object, is_head: bool = False) -> None:
    print("| " + " | ".join(map(str, cells)) + " |" + ("\n|" + "---|" * len(cells) if is_head else ""))


def spread(values: list[float], digits: int) -> str:
    """Mean and standard deviation."""
    deviation = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{deviation}"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--weights", help="file of ImageNet weights of the model, under timm's names: fine-tunes")
    parser.add_argument("--model", help="timm/NAME, a folder or a model id, in place of the recipes' own")
    parser.add_argument("--pretrained", action="store_true", help="fine-tune a --model that comes with its weights")
    parser.add_argument("--steps", type=int, help="of the stock run")
    parser.add_argument("--epochs_share", type=float, nargs="*", default=[0.5, 0.25], help="runs of ours so long")
    parser.add_argument("--stock_loss", choices=["l1", "mse"], default="l1")
    parser.add_argument("--settings", default="{}", help="of ours beside the defaults, as in '{\"rnc_weight\": 3}'")
    parser.add_argument("--results", help="file to which runs are added; all that it holds are shown")
    given = parser.parse_args()
    fit = "fine-tuned" if given.weights or given.pretrained else "scratch"
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {IMAGES} images a step")
    runs = []
    for seed in given.seeds:
        with tempfile.TemporaryDirectory() as folder:
            runs.append(compare(fit, seed, given.steps or FITS[fit]["steps"], given, folder))
        if given.results:
            with open(given.results, "a") as file:
                file.write(json.dumps(runs[-1]) + "\n")
    if given.results:
        runs = [json.loads(line) for line in Path(given.results).read_text().splitlines()]
    show(runs)


if __name__ == "__main__":
    main()
