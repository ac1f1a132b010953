"""A contrast larger than memory: the batch's features first, and its gradients part by part."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.checkpoint import get_device_states, set_device_states

from conr_hf.training.objective.batch import Forwarded
from conr_hf.utils.tensor_snapshot import Snapshot


def cached_loss(
    inputs: dict[str, Any],
    size: int,
    forward: Callable[[dict[str, Any]], Forwarded],
    loss_of: Callable[[Forwarded], Tensor],  # of what the forward gives for the whole batch
    model: nn.Module,  # what `forward` calls, perhaps wrapped
    accelerator: Accelerator,
) -> Tensor:
    """
    The loss over a batch of which `size` samples fit in memory: features and predictions of all parts without graph;
    the loss and its gradients in them, once; then each part again, with graph, which carries these gradients on to the
    parameters. All parts but the last are gone backward through here, and the last by `Trainer`.

    Source: Gao et al., "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup", arXiv 2101.06983.
    """
    parts = parts_of(inputs, size)
    states, found = [], []
    with torch.no_grad(), restored_buffers(model):
        for part in parts:
            states.append(RandomState(part["pixel_values"]))
            found.append(forward(part)._replace(outputs=None))
    features, predictions, labels = (torch.cat([part[k] for part in found]) for k in range(3))
    leaves = features.requires_grad_(), predictions.requires_grad_()
    loss = loss_of(Forwarded(*leaves, labels))
    of_features, of_predictions = (
        torch.zeros_like(leaf) if gradient is None else gradient
        for leaf, gradient in zip(leaves, torch.autograd.grad(loss, leaves, allow_unused=True), strict=True)
    )
    first = 0
    for part, state, of_part in zip(parts, states, found, strict=True):
        own = slice(first, first + len(of_part.labels))
        first = own.stop
        is_last = first == len(labels)
        with nullcontext() if is_last else accelerator.no_sync(model):  # DDP decides in the forward
            with state.replayed():
                again = forward(part)
            carrier = (again.predictions * of_predictions[own]).sum()
            carrier = carrier + (again.features * of_features[own]).sum()
            if not is_last:
                accelerator.backward(carrier)
    return carrier + (loss - carrier).detach()


class RandomState:
    """The state of the random generators at some moment, to go through the same draws again."""

    def __init__(self, *tensors: Tensor) -> None:
        self._cpu = torch.get_rng_state()
        self._devices, self._states = get_device_states(*tensors)

    @contextmanager
    def replayed(self) -> Iterator[None]:
        """Draws inside are those that followed the moment; outside they go on as if nothing had been drawn."""
        with torch.random.fork_rng(self._devices):
            torch.set_rng_state(self._cpu)
            set_device_states(self._devices, self._states)
            yield


@contextmanager
def restored_buffers(model: nn.Module) -> Iterator[None]:
    """Puts back the model's buffers, running statistics of batch norm among them, after what is inside."""
    before = Snapshot(model.buffers())
    try:
        yield
    finally:
        before.restore()


def parts_of(batch: dict[str, Any], size: int) -> list[dict[str, Any]]:
    """A batch in parts of `size` samples; what has no entry for each sample is in all of them."""
    count = len(batch["labels"])

    def part(value: Any, first: int) -> Any:
        of_samples = isinstance(value, Tensor) and value.ndim > 0 and len(value) == count
        return value[first : first + size] if of_samples else value

    return [{name: part(value, first) for name, value in batch.items()} for first in range(0, count, size)]
