"""
What ConR and the other methods add to a training step; run as

    python tests/benchmarks/bench_methods.py share     # ConR's own time in a step, by profiler
    python tests/benchmarks/bench_methods.py maps      # the same over the pixels of maps
    python tests/benchmarks/bench_methods.py overhead  # each method's step time beside the plain loss, 10 minutes

Images are ready in memory, two views each, so that reading them hides nothing.
"""

import argparse
import itertools
import statistics
import tempfile
import time

import torch
import torch.nn.functional as F
from torch.profiler import ProfilerActivity, profile, record_function, schedule
from transformers import TrainerCallback

import conr_hf.training.objective.objective
from conr_hf import ConRConfig, ConRTrainer, load_regressor
from conr_hf.losses import conr_loss

MODELS = {"timm/vit_small_patch16_224": (224, 16), "timm/convnext_atto": (64, 128)}
MAP_MODELS = (
    ("timm/tf_efficientnet_lite0", 128, 1024),
    ("timm/tf_efficientnet_lite0", 128, 128),
    ("timm/convnext_atto", 224, 1024),
)
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

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, *_, **__) -> None:
        self.ends.append(time.perf_counter())

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
        **{"conr_weight": 0.0, "resample": "none", "rnc_weight": 0.0, **settings},
    )
    data = Ready(batch * steps // epochs, size)
    trainer = ConRTrainer(model, args, train_dataset=data, processing_class=processor)
    trainer.times = StepTimes()
    trainer.add_callback(trainer.times)
    return trainer


def recorded_loss(features, *arguments, **options):
    """`conr_loss`, whose forward and backward are spans of the profiler."""
    with record_function("ConR forward"):
        own = features.view_as(features)
        result = conr_loss(own, *arguments, **options)
    span = record_function("ConR backward")
    result[0].grad_fn.register_prehook(lambda *_: span.__enter__() and None)
    own.grad_fn.register_prehook(lambda *_: span.__exit__(None, None, None))
    return result


def show_share(folder: str) -> None:
    print("| model | pixels | samples | step | ConR forward | ConR backward | ConR's share |")
    print("|---|---|---|---|---|---|---|")
    conr_hf.training.objective.objective.conr_loss = recorded_loss
    for name, (size, batch) in MODELS.items():
        trainer = make_trainer(name, size, batch, 8, folder, conr_weight=0.05)
        with profile(activities=[ProfilerActivity.CPU]) as profiler:
            trainer.train()
        spans = {name: [] for name in ("ConR forward", "ConR backward")}
        for event in profiler.events():
            if event.name in spans:
                spans[event.name].append(event.time_range.elapsed_us() / 1e6)
        forward, backward = (statistics.median(times[1:]) for times in spans.values())
        step = trainer.times.median()
        print(
            f"| {name} | {size} | {batch} | {step * 1e3:.0f} ms | {forward * 1e3:.2f} ms | {backward * 1e3:.2f} ms "
            f"| {100 * (forward + backward) / step:.2f} % |",
            flush=True,
        )


class StepOf(TrainerCallback):
    """Tells a profiler where steps end."""

    def __init__(self, profiler) -> None:
        self.profiler = profiler

    def on_step_end(self, *_, **__) -> None:
        self.profiler.step()


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


def show_share_of_maps(folder: str, steps: int) -> None:
    """16 maps of two views, 64 channels: 1,024 pixels of each view, and 128."""
    print("| model | step | pixels compared | ConR forward | ConR backward | drawing pixels | ConR's share |")
    print("|---|---|---|---|---|---|---|")
    conr_hf.training.objective.objective.conr_loss = recorded_loss
    draw = conr_hf.training.objective.objective.sample_pixels

    def recorded_draw(*arguments):
        with record_function("drawing"):
            return draw(*arguments)

    conr_hf.training.objective.objective.sample_pixels = recorded_draw
    for name, size, pixels in MAP_MODELS:
        torch.manual_seed(0)
        model, processor = load_regressor(name, "depth", task="depth", pretrained=False, image_size=size)
        args = ConRConfig(
            folder,
            per_device_train_batch_size=16,
            max_steps=steps,
            conr_pixels=pixels,
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            learning_rate=1e-3,
        )
        data = ReadyMaps(16 * steps, size)
        trainer = ConRTrainer(model, args, train_dataset=data, processing_class=processor)
        trainer.times = StepTimes()
        trainer.add_callback(trainer.times)
        # The last step alone: its tiles are many events.
        with profile(
            activities=[ProfilerActivity.CPU], schedule=schedule(wait=steps - 2, warmup=1, active=1)
        ) as found:
            trainer.add_callback(StepOf(found))
            trainer.train()
        spans = dict.fromkeys(("ConR forward", "ConR backward", "drawing"), 0.0)
        for event in found.events():
            if event.name in spans:
                spans[event.name] += event.time_range.elapsed_us() / 1e6
        forward, backward, drawing = spans.values()
        step = trainer.times.median()
        print(
            f"| {name}, {size} px | {step:.2f} s | {16 * 2 * pixels:,} | {forward:.2f} s | {backward:.2f} s "
            f"| {1e3 * drawing:.0f} ms | {100 * (forward + backward + drawing) / step:.1f} % |",
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
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads\n")
    with tempfile.TemporaryDirectory() as folder:
        if arguments.what == "share":
            show_share(folder)
        elif arguments.what == "maps":
            show_share_of_maps(folder, 6)
        else:
            show_overhead(folder, arguments.rounds)


if __name__ == "__main__":
    main()
