"""
Whether ConR ruins a network: ten networks of different size, normalisation and scale of features, each trained plainly
and with ConR, on drawn images (`ellipses`).

    OMP_NUM_THREADS=1 python recipes/study/collapse.py --output runs/collapse.json
    OMP_NUM_THREADS=1 python recipes/study/collapse.py --output runs/collapse-loop.json --plain_loop

The learning rate of each network is the best of three for plain training, by validation with the first seed. What is
compared is the error on the test split, whose labels are spread evenly, so that it is a balanced error: resampling,
one of the defaults, lowers that of the rare and raises that of the many. Labels run from 0 to 100, and the rarest are
`--imbalance` times rarer in training than the commonest. Finished runs are kept in the output, and not repeated.
"""

import argparse
import itertools
import json
import logging
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
import transformers
from datasets import DatasetDict
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel, PrinterCallback, ViTImageProcessor
from transformers.modeling_outputs import ImageClassifierOutput

from conr_hf import ConRConfig, ConRTrainer, load_benchmark, load_regressor

SIDE = 32  # pixels
WORSE = 1.05  # times the plain error
LEARNED = 0.9  # times the error of the training labels' median for all; above it plain training is no yardstick
LEARNING_RATES = (1e-3, 3e-3, 1e-2)
ALONE = {"resample": "none", "rnc_weight": 0}
METHODS: dict[str, dict[str, Any]] = {
    "plain": {"conr_weight": 0},
    "the defaults": {},
    "all three": {"conr_weight": 0.05},
    "ConR, share 0.1": {"conr_gradient_share": 0.1, **ALONE},
    "ConR, share 0.3": {"conr_gradient_share": 0.3, **ALONE},
    "ConR, weight 0.05": {"conr_weight": 0.05, **ALONE},
    "ConR, weight 1": {"conr_weight": 1.0, **ALONE},
}
PAGE = Path(__file__).parents[2] / "docs" / "your-own-loop.md"
PRINTED = "loss = base + share(criterion(features, ages, predictions), base, features)"
LOOPS = {
    "plain": "loss = base",
    "as printed": PRINTED,
    "fixed weight 0.05": "loss = base + 0.05 * criterion(features, ages, predictions)",
    "fixed weight 1": "loss = base + criterion(features, ages, predictions)",
}


class SmallConfig(PreTrainedConfig):
    model_type = "small"

    def __init__(self, kind: str = "conv", norm: str = "none", feature_scale: float = 1.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.kind, self.norm, self.feature_scale = kind, norm, feature_scale


class Small(PreTrainedModel):
    """Three convolutions, or layers over all pixels, with ReLU; the head reads their features times a number."""

    config_class = SmallConfig
    main_input_name = "pixel_values"

    def __init__(self, config: SmallConfig) -> None:
        super().__init__(config)
        norms: dict[str, Callable[[int], nn.Module]] = {
            "none": lambda width: nn.Identity(),
            "batch": nn.BatchNorm2d,
            "group": lambda width: nn.GroupNorm(8, width),
        }
        layers: list[nn.Module] = []
        if config.kind == "conv":
            for before, width in itertools.pairwise((3, 16, 32, 64)):
                layers += [nn.Conv2d(before, width, 3, 2, 1), norms[config.norm](width), nn.ReLU()]
            layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        else:
            layers = [nn.Flatten(), nn.Linear(3 * SIDE**2, 256), nn.ReLU(), nn.Linear(256, 64), nn.ReLU()]
        self.backbone = nn.Sequential(*layers)
        self.classifier = nn.Linear(64, 1)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Leaves torch's own."""

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None) -> ImageClassifierOutput:
        features = self.config.feature_scale * self.backbone(pixel_values)
        return ImageClassifierOutput(logits=self.classifier(features))


def _small(**settings: Any) -> Callable[[], tuple[PreTrainedModel, Any]]:
    size = {"height": SIDE, "width": SIDE}
    return lambda: (Small(SmallConfig(num_labels=1, **settings)), ViTImageProcessor(size=size))


def _timm(name: str, **settings: Any) -> Callable[[], tuple[PreTrainedModel, Any]]:
    return lambda: load_regressor(f"timm/{name}", "size", pretrained=False, image_size=SIDE, **settings)


NETWORKS = {
    "conv": _small(),
    "conv-x0.01": _small(feature_scale=0.01),
    "conv-x100": _small(feature_scale=100.0),
    "conv-batch-norm": _small(norm="batch"),
    "conv-group-norm": _small(norm="group"),
    "mlp": _small(kind="mlp"),
    "vit": _timm("test_vit", patch_size=8),
    "convnext": _timm("test_convnext"),
    "resnet": _timm("test_resnet"),
    "mobilenetv3": _timm("mobilenetv3_small_050"),
}


def train(network: str, method: str, rate: float, seed: int, *, epochs: int, data: DatasetDict) -> dict[str, Any]:
    """Trains once: errors on test and validation, the features' norm at first, ConR's gradient epoch by epoch."""
    start = time.process_time()
    torch.manual_seed(seed)
    model, processor = NETWORKS[network]()
    with tempfile.TemporaryDirectory() as folder:
        args = ConRConfig(
            folder,
            label_columns=["size"],
            per_device_train_batch_size=32,
            per_device_eval_batch_size=500,
            num_train_epochs=epochs,
            learning_rate=rate,
            warmup_steps=0.1,
            lr_scheduler_type="cosine",
            num_views=2,
            horizontal_flip=True,
            seed=seed,
            eval_strategy="no",
            save_strategy="no",
            logging_strategy="epoch",
            report_to="none",
            disable_tqdm=True,
            **METHODS[method],
        )
        trainer = ConRTrainer(model, args, train_dataset=data["train"], processing_class=processor)
        trainer.remove_callback(PrinterCallback)
        norms: list[float] = []
        trainer.head.register_forward_pre_hook(lambda _, inputs: norms.append(_norm(inputs[0])))
        trainer.train()
        errors = {split: trainer.predict(data[split]).metrics["test_mae"] for split in ("validation", "test")}
        gradients = [logs["conr_gradient"] for logs in trainer.state.log_history if "conr_gradient" in logs]
    seconds = time.process_time() - start
    return {**errors, "rate": rate, "norm": norms[0], "conr_gradient": gradients, "seconds": seconds}


def _norm(features: Tensor) -> float:
    return float(features.detach().flatten(1).norm(dim=1).mean())


def train_loop(_: str, loop: str, rate: float, seed: int, *, epochs: int, data: DatasetDict) -> dict[str, Any]:
    """Trains the network without norm layers once with the page's own loop, of whose lines one may be replaced."""
    snippet = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)[0]
    if PRINTED not in snippet:
        raise SystemExit(f"The first snippet of {PAGE} has no line {PRINTED}; bring this script up to date.")
    start = time.process_time()
    torch.manual_seed(seed)
    model = Small(SmallConfig())
    rows = {split: (_pixels(data[split]), torch.tensor(data[split]["size"]).float()) for split in data}
    names = {
        "backbone": model.backbone,
        "head": model.classifier,
        "optimizer": torch.optim.Adam(model.parameters(), rate),
        "loader": _two_views(*rows["train"], epochs),
    }
    norm = _norm(model.backbone(rows["validation"][0]))
    exec(snippet.replace(PRINTED, LOOPS[loop]), names)
    with torch.no_grad():
        errors = {
            split: (model(pixels).logits.squeeze(1) - labels).abs().mean().item()
            for split, (pixels, labels) in rows.items()
        }
    return {**errors, "rate": rate, "norm": norm, "seconds": time.process_time() - start}


def _pixels(split: Any) -> Tensor:
    images = torch.from_numpy(np.stack([np.asarray(image) for image in split["image"]]))
    return images.permute(0, 3, 1, 2).float() / 127.5 - 1


def _two_views(pixels: Tensor, labels: Tensor, epochs: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Two views of 64 images at a time, each flipped or not and shifted by up to 2 pixels."""
    for _ in range(epochs):
        for rows in torch.randperm(len(labels)).split(64):
            views = []
            for image in pixels[rows.repeat(2)]:
                flipped = image.flip(-1) if torch.rand(()) < 0.5 else image
                x, y = torch.randint(0, 5, (2,)).tolist()
                padded = nn.functional.pad(flipped[None], (2, 2, 2, 2), mode="replicate")[0]
                views.append(padded[:, y : y + SIDE, x : x + SIDE])
            yield torch.stack(views), labels[rows.repeat(2)]


class Runs:
    """The finished runs, in a JSON file by their network, method, learning rate and seed."""

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        self.path = path
        self.found: dict[str, Any] = {"settings": settings, "runs": {}}
        if path.exists():
            self.found = json.loads(path.read_text(encoding="utf-8"))
            if self.found["settings"] != settings:
                raise SystemExit(
                    f"{path} holds runs with {self.found['settings']}, not {settings}. Give these, or another output."
                )

    def get(
        self, network: str, method: str, rate: float, seed: int, make: Callable[[], dict[str, Any]]
    ) -> dict[str, Any]:
        key = f"{network} | {method} | {rate:g} | {seed}"
        runs = self.found["runs"]
        if key not in runs:
            runs[key] = make()
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_text(json.dumps(self.found, indent=1), encoding="utf-8")
            print(f"{key}: {runs[key]['test']:.2f} ({runs[key]['seconds']:.0f} s)", flush=True)
        run: dict[str, Any] = runs[key]
        return run


def compare(
    networks: list[str],
    methods: list[str],
    seeds: list[int],
    runs: Runs,
    run: Callable[..., dict[str, Any]],
    constant: float,
) -> str:
    """
    All runs that are not finished, and their table, in Markdown. `run` trains a network once; `constant` is the error
    of one number for all.
    """

    def of(network: str, method: str, rate: float, seed: int) -> dict[str, Any]:
        return runs.get(network, method, rate, seed, lambda: run(network, method, rate, seed))

    rates: dict[str, float] = {}
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for seed, network in itertools.product(seeds, networks):
        if network not in rates:
            tried = {rate: of(network, "plain", rate, seed)["validation"] for rate in LEARNING_RATES}
            rates[network] = min(tried, key=tried.__getitem__)
        for method in ["plain", *methods]:
            found.setdefault((network, method), []).append(of(network, method, rates[network], seed))
    lines = [f"| network | features at first | learning rate | plain | {' | '.join(methods)} |"]
    lines.append("|" + "---|" * (4 + len(methods)))
    for network in networks:
        plain = [one["test"] for one in found[network, "plain"]]
        cells = [network, f"{found[network, 'plain'][0]['norm']:.3g}", f"{rates[network]:g}", f"{fmean(plain):.2f}"]
        if fmean(plain) > LEARNED * constant:
            cells[-1] += " NOT LEARNED"
        for method in methods:
            ratio = fmean(one["test"] for one in found[network, method]) / fmean(plain)
            cells.append(f"**{ratio:.2f} WORSE**" if not ratio <= WORSE else f"{ratio:.2f}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="Errors of networks with ConR, beside their own without it.")
    parser.add_argument("--output", type=Path, required=True, help="JSON file of the finished runs")
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--methods", nargs="+", default=list(METHODS)[1:], choices=list(METHODS)[1:])
    parser.add_argument("--rows", type=int, default=2000, help="training images")
    parser.add_argument("--imbalance", type=float, default=100.0, help="1: labels spread evenly in training, too")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--plain_loop", action="store_true", help="the loop of docs/your-own-loop.md, in place of all")
    given = parser.parse_args()
    transformers.logging.set_verbosity_error()
    logging.getLogger("conr_hf").setLevel(logging.ERROR)
    torch.use_deterministic_algorithms(True)
    data = load_benchmark("ellipses", f"imbalance={given.imbalance:g}, rows={given.rows}")
    labels = np.array(data["test"]["size"])
    constant = np.abs(labels - np.median(data["train"]["size"])).mean()
    settings = {name: getattr(given, name) for name in ("rows", "imbalance", "epochs", "plain_loop")}
    runs = Runs(given.output, settings)
    run = partial(train_loop if given.plain_loop else train, epochs=given.epochs, data=data)
    networks, methods = (["conv"], list(LOOPS)[1:]) if given.plain_loop else (given.networks, given.methods)
    table = compare(networks, methods, given.seeds, runs, run, constant)
    print(
        f"\nTest MAE of plain training, and the others' in that; the median for all has {constant:.2f}; {settings}\n"
    )
    print(table)


if __name__ == "__main__":
    main()
