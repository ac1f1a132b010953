"""
What a sample of anchors (`conr_anchors`) adds to the noise of the gradient; run as

    python tests/benchmarks/bench_anchors.py     # some 5 minutes on one core

A small network learns heights of satellite tiles, 16 of two views and 256 pixels each. Where it stands then, the
gradients of ConR and Rank-N-Contrast in the network's parameters are taken over all rows, and over samples of them.
"""

import argparse
import dataclasses
import statistics
import tempfile

import torch
from torch import Tensor

from conr_hf import ConRConfig, ConRTrainer, load_benchmark, load_regressor
from conr_hf.training.objective.batch import Batch, Forwarded, collect_batch, forward_views, view_labels

DRAWS, BATCHES = 6, 6
WEIGHTS = {"ConR": (0.05, 0.0), "Rank-N-Contrast": (0.0, 1.0)}  # the defaults of each alone


def make_trainer(folder: str, steps: int) -> ConRTrainer:
    torch.manual_seed(0)
    model, processor = load_regressor(
        "timm/tf_efficientnet_lite0", "label", task="depth", pretrained=False, image_size=64
    )
    args = ConRConfig(
        folder,
        per_device_train_batch_size=16,
        max_steps=steps,
        num_views=2,
        conr_weight=0.05,
        conr_pixels=256,
        rnc_weight=1.0,
        learning_rate=1e-3,
        horizontal_flip=True,
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        report_to="none",
        use_cpu=True,
    )
    data = load_benchmark("earth-elevation-map")["train"]
    return ConRTrainer(model, args, train_dataset=data, processing_class=processor)


def forward(trainer: ConRTrainer, inputs: dict) -> Batch:
    labels = view_labels(inputs, is_map=True)
    outputs, predictions = forward_views(trainer.model, inputs, labels)
    samples = len(inputs["labels"])
    return collect_batch(
        inputs, Forwarded(trainer.head.take_features(), predictions, labels, outputs), [samples], None
    )


def gradient(trainer: ConRTrainer, loss: Tensor) -> Tensor:
    """In all parameters, as one vector."""
    parameters = [parameter for parameter in trainer.model.parameters() if parameter.requires_grad]
    found = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True, materialize_grads=True)
    return torch.cat([part.flatten() for part in found])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=60, help="of training before")
    parser.add_argument("--anchors", type=int, nargs="+", default=[64, 128, 256, 512, 1024])
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(folder, arguments.steps)
        trainer.train()
        trainer._hp_search_setup(None)  # the objective anew
        objective, settings = trainer.training_objective, trainer.resolved
        trainer.model.train()
        base, full = [], {name: [] for name in WEIGHTS}
        noise = {(name, count): 0.0 for name in WEIGHTS for count in arguments.anchors}
        for number, inputs in zip(range(BATCHES), trainer.get_train_dataloader(), strict=False):
            batch = forward(trainer, inputs)
            rows = objective.contrast_rows(batch)
            base.append(gradient(trainer, objective.base(batch)))

            def contrast(name, count, batch=batch, rows=rows):
                conr, rnc = WEIGHTS[name]
                changed = {"weight": conr, "rnc_weight": rnc, "conr_anchors": count}
                objective.resolved = dataclasses.replace(settings, **changed)
                return gradient(trainer, objective.regularisers(rows, batch))

            for name, gradients in full.items():
                gradients.append(contrast(name, 0))
                for count in arguments.anchors if number == 0 else ():
                    squares = []
                    for objective._epoch in range(DRAWS):
                        squares.append((contrast(name, count) - gradients[0]).square().sum().item())
                    noise[name, count] = statistics.mean(squares)
            objective._epoch = 0
        print(
            f"\nafter {arguments.steps} steps, {len(rows.labels):,} rows; variance of the gradient in the parameters\n"
        )
        print("| | anchors | of its own square | beside that between batches, its own | the step's |")
        print("|---|---|---|---|---|")
        for name, gradients in full.items():
            of_loss = torch.stack(gradients).var(0).sum().item()
            of_step = (torch.stack(base) + torch.stack(gradients)).var(0).sum().item()
            square = gradients[0].square().sum().item()
            for count in arguments.anchors:
                parts = [noise[name, count] / other for other in (square, of_loss, of_step)]
                print(f"| {name} | {count} | " + " | ".join(f"{part:.3f}" for part in parts) + " |")


if __name__ == "__main__":
    main()
