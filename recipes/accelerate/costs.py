"""
What a training step costs each of many devices, in memory and in bytes sent; README.md beside it has the table.

    python recipes/accelerate/costs.py vit_large_patch16_224 --samples 64 --devices 1 8 64 512

The model is a name of timm's, of which one and two images are gone through to count what is kept for the backward;
weights are not downloaded.
"""

import argparse
from typing import Any, NamedTuple

import timm
import torch

REGULARISERS = 2  # ConR and Rank-N-Contrast, as by default; each has its gradient exchanged
NODE = 8  # devices of a node


class Model(NamedTuple):
    """Parameters, features that the head reads, and bytes kept for the backward of one view."""

    parameters: int
    width: int
    view_bytes: float


def measure(name: str, bf16: bool) -> Model:
    """A timm model, in float32 or under bfloat16 autocast."""
    model: Any = timm.create_model(name, num_classes=1).train()
    kept = [_kept_bytes(model, torch.zeros(views, *model.pretrained_cfg["input_size"]), bf16) for views in (1, 2)]
    return Model(sum(p.numel() for p in model.parameters()), model.num_features, kept[1] - kept[0])


def _kept_bytes(model: torch.nn.Module, pixels: torch.Tensor, bf16: bool) -> int:
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=bf16),
    ):
        model(pixels)
    return sum(storage.nbytes() for storage in kept.values())


def state_bytes(model: Model, devices: int, sharded: bool = False) -> float:
    """
    Weights, gradients and AdamW's two moments in float32; DDP keeps the gradients in its buckets once more. Sharded by
    FSDP2 or ZeRO-3 each device has its part, and the whole weights of one layer at a time.
    """
    if sharded:
        return 16 * model.parameters / devices
    return (16 if devices == 1 else 20) * model.parameters


def activation_bytes(model: Model, samples: int, views: int) -> float:
    """What is kept of `samples` for the backward; with `forward_batch_size`, of so many."""
    return model.view_bytes * samples * views


def contrast_bytes(model: Model, peers: int, rows: int) -> float:
    """The gathered rows, their normalised copy, and what the gradients of both need: five of them at once."""
    return 5 * 4 * model.width * rows * peers


def sent_for_gradients(model: Model, devices: int, sharded: bool = False) -> float:
    """By each device in a step, in a ring: twice the gradients, or, sharded, three times the weights."""
    return (3 if sharded else 2) * 4 * model.parameters * (devices - 1) / devices


def sent_for_contrast(model: Model, peers: int, rows: int) -> float:
    """By each device in a step, in a ring: its rows to each peer, and their gradients' sums back."""
    features, all_columns = 4 * model.width * rows, 4 * (model.width + 2) * rows
    return (peers - 1) * (all_columns + REGULARISERS * (features + 8 * rows))


def tables(name: str, model: Model, devices: list[int], samples: int, views: int) -> str:
    """Memory and traffic of each device, in Markdown."""
    rows = samples * views
    memory, traffic = [], []
    for count in devices:
        state = [state_bytes(model, count, sharded) for sharded in (False, True)]
        used = [*state, activation_bytes(model, samples, views), contrast_bytes(model, count, rows)]
        memory.append([str(count), str(count * samples), str(count * rows), *map(show, used)])
        gradients = [sent_for_gradients(model, count, sharded) for sharded in (False, True)]
        sent = [*gradients, *(sent_for_contrast(model, peers, rows) for peers in (count, min(count, NODE)))]
        traffic.append([str(count), *map(show, sent)])
    return "\n".join(
        [
            f"{name}: {model.parameters / 1e6:.1f} million parameters, features of {model.width} numbers, "
            f"{model.view_bytes / 1e6:.0f} MB kept of a view; {samples} samples of {views} views on each device.",
            "",
            "| devices | samples a step | rows compared | state, DDP | state, sharded | activations | gathered rows |",
            "|" + "---|" * 7,
            *(f"| {' | '.join(cells)} |" for cells in memory),
            "",
            "| devices | gradients, DDP | weights and gradients, sharded | `conr_gather: all` | `conr_gather: node` |",
            "|" + "---|" * 5,
            *(f"| {' | '.join(cells)} |" for cells in traffic),
        ]
    )


def show(count: float) -> str:
    if count < 1e9:
        return f"{count / 1e6:.1f} MB" if count else "0"
    return f"{count / 1e9:.1f} GB"


def main() -> None:
    parser = argparse.ArgumentParser(description="Memory and bytes sent in a training step, on each of many devices.")
    parser.add_argument("name", nargs="+", help="of timm models")
    parser.add_argument("--devices", type=int, nargs="+", default=[1, 8, 64, 512])
    parser.add_argument("--samples", type=int, default=64, help="on each device")
    parser.add_argument("--views", type=int, default=2)
    parser.add_argument("--bf16", action="store_true")
    given = parser.parse_args()
    for name in given.name:
        print(tables(name, measure(name, given.bf16), given.devices, given.samples, given.views), end="\n\n")


if __name__ == "__main__":
    main()
