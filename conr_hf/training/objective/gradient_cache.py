"""A contrast larger than memory: the batch's features first, and its gradients part by part."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import get_device_states, set_device_states

from conr_hf.utils.snapshot import Snapshot


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
def buffers_kept(model: nn.Module) -> Iterator[None]:
    """Puts back the model's buffers, running statistics of batch norm among them, as a forward inside left none."""
    before = Snapshot(model.buffers())
    try:
        yield
    finally:
        before.restore()


def parts_of(batch: dict[str, Any], size: int) -> list[dict[str, Any]]:
    """
    A batch in parts of `size` samples, the last perhaps smaller; what has no entry for each sample is in all of them.

    Example:
        >>> [part["labels"].tolist() for part in parts_of({"labels": torch.arange(5)}, 2)]
        [[0, 1], [2, 3], [4]]
    """
    count = len(batch["labels"])

    def part(value: Any, first: int) -> Any:
        of_samples = isinstance(value, Tensor) and value.ndim > 0 and len(value) == count
        return value[first : first + size] if of_samples else value

    return [{name: part(value, first) for name, value in batch.items()} for first in range(0, count, size)]
