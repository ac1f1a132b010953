"""
What ConR and the other methods add to a training step; run as

    python tests/benchmarks/bench_methods.py share     # ConR's own time in a step
    python tests/benchmarks/bench_methods.py maps      # what compares the pixels of maps, 5 minutes
    python tests/benchmarks/bench_methods.py overhead  # each method's step time beside the plain loss, 10 minutes

Images are ready in memory, two views each, so that reading them hides nothing.
"""

import argparse
import itertools
import math
import statistics
import tempfile
import time
from collections import defaultdict
from functools import partial

import torch
import torch.nn.functional as F
from transformers import TrainerCallback

from conr_hf import ConRConfig, ConRTrainer, load_regressor
from conr_hf.losses import conr_loss, rank_n_contrast
from conr_hf.training.objective import objective
from conr_hf.training.objective.objective import Objective

MODELS = {"timm/vit_small_patch16_224": (224, 16), "timm/convnext_atto": (64, 128)}
MAP_MODELS = {"timm/tf_efficientnet_lite0": 128, "timm/convnext_atto": 224}
METHODS = {
    "ConR": {"conr_weight": 0.05},
    "re-weighting": {"reweight": "sqrt_inverse"},
    "re-weighting and LDS": {"reweight": "sqrt_inverse", "lds": "gaussian"},
    "resampling": {"resample": "sqrt_inverse"},
    "FDS": {"fds": "gaussian"},
    "Focal-R": {"base_loss": "focal_l1"},
    "BMC": {"base_loss": "bmc"},
    "GAI": {"base_loss": "gai"},
    "BNI": {"base_loss": "bni"},
    "log1p": {"loss_space": "log1p"},
    "RankSim": {"ranksim_weight": 6.0},
    "Rank-N-Contrast": {"rnc_weight": 1.0},
    "C-Mixup": {"cmixup_alpha": 2.0},
    "layer decay": {"layer_decay": 0.75},
    "moving average": {"ema_decay": 0.999},
    "head alone": {"freeze_backbone": True},
    "LDS, FDS, RankSim and ConR": {
        "reweight": "sqrt_inverse",
        "lds": "gaussian",
        "fds": "gaussian",
        "ranksim_weight": 6.0,
        "conr_weight": 0.05,
    },
}


class Ready(torch.utils.data.Dataset):
    """Noise with ages that are common at 45 and rare far from it."""

    column_names = ("pixel_values", "labels")

    def __init__(self, rows: int, size: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.pixels = torch.randn(64, 2, 3, size, size, generator=generator)
        self.labels = (45 + 16 * torch.randn(rows, generator=generator)).round().clamp(1, 101)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, row: int) -> dict:
        return {"pixel_values": self.pixels[row % len(self.pixels)], "labels": self.labels[row].item()}


class StepTimes(TrainerCallback):
    """From the end of each step to the end of the next, the first few left out."""

    def __init__(self, clock=time.perf_counter) -> None:
        self.clock = clock
        self.ends: list[float] = []

    def on_step_end(self, *_, **__) -> None:
        self.ends.append(self.clock())

    def median(self) -> float:
        ends = self.ends[1:]
        return statistics.median(after - before for before, after in itertools.pairwise(ends))


def make_trainer(
    model_name: str, size: int, batch: int, steps: int, folder: str, epochs: int = 1, **settings
) -> ConRTrainer:
    torch.manual_seed(0)
    model, processor = load_regressor(model_name, "age", pretrained=False, image_size=size)
    args = ConRConfig(
        folder,
        per_device_train_batch_size=batch,
        max_steps=steps,
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        **{"num_views": 2, "conr_weight": 0.0, "resample": "none", "rnc_weight": 0.0, **settings},
    )
    data = Ready(batch * steps // epochs, size)
    trainer = ConRTrainer(model, args, train_dataset=data, processing_class=processor)
    trainer.times = StepTimes()
    trainer.add_callback(trainer.times)
    return trainer


class Stopwatch:
    """Seconds of each step by what they were spent on."""

    def __init__(self, clock=time.perf_counter) -> None:
        self.clock = clock
        self.spans: defaultdict[str, list[float]] = defaultdict(list)
        self.begun: dict[str, float] = {}

    def start(self, name: str) -> None:
        self.begun[name] = self.clock()

    def stop(self, name: str) -> None:
        self.spans[name].append(self.clock() - self.begun[name])

    def median(self, name: str) -> float:
        """Of the steps but the first."""
        return statistics.median(self.spans[name][1:])

    def timed(self, name: str, loss, features, *arguments, **options):
        """A loss whose forward and backward are spans of their own."""
        self.start(f"{name} forward")
        own = features.view_as(features)
        result = loss(own, *arguments, **options)
        self.stop(f"{name} forward")
        value = result[0] if isinstance(result, tuple) else result
        value.grad_fn.register_prehook(lambda _: self.start(f"{name} backward"))
        own.grad_fn.register_prehook(lambda _: self.stop(f"{name} backward"))
        return result


def show_share(folder: str) -> None:
    print("| model | pixels | samples | step | ConR forward | ConR backward | ConR's share |")
    print("|---|---|---|---|---|---|---|")
    for name, (size, batch) in MODELS.items():
        watch = Stopwatch()
        objective.conr_loss = partial(watch.timed, "ConR", conr_loss)
        trainer = make_trainer(name, size, batch, 8, folder, conr_weight=0.05)
        trainer.train()
        forward, backward = watch.median("ConR forward"), watch.median("ConR backward")
        step = trainer.times.median()
        print(
            f"| {name} | {size} | {batch} | {step * 1e3:.0f} ms | {forward * 1e3:.2f} ms | {backward * 1e3:.2f} ms "
            f"| {100 * (forward + backward) / step:.2f} % |",
            flush=True,
        )


class ReadyMaps(Ready):
    """Noise with a map each, whose depths are long-tailed and smooth, as those of rooms, and which lacks a tenth."""

    def __init__(self, rows: int, size: int) -> None:
        super().__init__(rows, size)
        generator = torch.Generator().manual_seed(1)
        coarse = -torch.rand(64, 1, 8, 8, generator=generator).log()
        self.maps = 1 + 2 * F.interpolate(coarse, (size // 2, size // 2), mode="bilinear")[:, 0]
        self.maps[torch.rand(self.maps.shape, generator=generator) < 0.1] = torch.nan

    def __getitem__(self, row: int) -> dict:
        return {**super().__getitem__(row), "labels": self.maps[row % len(self.maps)].numpy()}


def show_share_of_maps(folder: str, steps: int, anchors: list[int]) -> None:
    """
    16 maps of two views, 1,024 pixels of each view, 64 channels: no contrast, ConR alone over all anchors, and both of
    some. A share is that of the losses, forward and backward, and of drawing the pixels; what is gathered beside is in
    the step, which stands beside the one without contrast. Times are the processor's, so that a busy machine changes
    little.
    """
    print("| model | anchors | step | ConR | Rank-N-Contrast | drawing pixels | their share | step to without |")
    print("|---|---|---|---|---|---|---|---|")
    without = math.nan
    contrast_rows = Objective.contrast_rows
    for (name, size), count in itertools.product(MAP_MODELS.items(), [None, *anchors]):
        watch = Stopwatch(time.process_time)
        objective.conr_loss = partial(watch.timed, "ConR", conr_loss)
        objective.rank_n_contrast = partial(watch.timed, "RnC", rank_n_contrast)

        def timed_rows(self, batch, watch=watch):
            watch.start("drawing")
            rows = contrast_rows(self, batch)
            watch.stop("drawing")
            return rows

        Objective.contrast_rows = timed_rows
        torch.manual_seed(0)
        model, processor = load_regressor(name, "depth", task="depth", pretrained=False, image_size=size)
        args = ConRConfig(
            folder,
            per_device_train_batch_size=16,
            max_steps=steps,
            num_views=2,
            conr_anchors=count,
            conr_weight=0.0 if count is None else 0.05,
            rnc_weight=1.0 if count else 0.0,
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            learning_rate=1e-3,
        )
        data = ReadyMaps(16 * steps, size)
        trainer = ConRTrainer(model, args, train_dataset=data, processing_class=processor)
        trainer.times = StepTimes(time.process_time)
        trainer.add_callback(trainer.times)
        trainer.train()
        both = [
            0.0
            if f"{loss} forward" not in watch.spans
            else watch.median(f"{loss} forward") + watch.median(f"{loss} backward")
            for loss in ("ConR", "RnC")
        ]
        step = trainer.times.median()
        if count is None:
            without = step
            print(f"| {name}, {size} px | no contrast | {step:.2f} s | | | | | |", flush=True)
            continue
        drawing = watch.median("drawing")
        print(
            f"| {name}, {size} px | {count or 'all'} | {step:.2f} s | {both[0]:.3f} s | {both[1]:.3f} s "
            f"| {drawing:.3f} s | {100 * (sum(both) + drawing) / step:.1f} % | {step / without:.2f} |",
            flush=True,
        )


def show_overhead(folder: str, rounds: int) -> None:
    """Each method beside the plain loss just before or after it, since a machine's speed drifts."""
    print(f"convnext_atto at 64 pixels, 64 samples of two views, two epochs; medians of {rounds} pairs of runs\n")
    print("| method | step | beside plain | from | to |")
    print("|---|---|---|---|---|")
    for name, settings in METHODS.items():
        steps, ratios = [], []
        for turn in range(rounds):
            medians = {}
            for chosen in ("plain", name) if turn % 2 else (name, "plain"):
                changed = settings if chosen == name else {}
                trainer = make_trainer("timm/convnext_atto", 64, 64, 12, folder, epochs=2, **changed)
                trainer.train()
                medians[chosen] = trainer.times.median()
            steps.append(medians[name])
            ratios.append(medians[name] / medians["plain"])
        spread = f"{min(ratios):.2f} | {max(ratios):.2f}"
        print(
            f"| {name} | {statistics.median(steps) * 1e3:.0f} ms | {statistics.median(ratios):.2f} | {spread} |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["share", "maps", "overhead"])
    parser.add_argument("--rounds", type=int, default=3, help="of overhead")
    parser.add_argument("--anchors", type=int, nargs="+", default=[0, 128], help="of maps; 0: all, for ConR alone")
    arguments = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads\n")
    with tempfile.TemporaryDirectory() as folder:
        if arguments.what == "share":
            show_share(folder)
        elif arguments.what == "maps":
            show_share_of_maps(folder, 6, arguments.anchors)
        else:
            show_overhead(folder, arguments.rounds)


if __name__ == "__main__":
    main()
