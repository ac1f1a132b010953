"""An exponential moving average of the weights, in whose place the model is evaluated and saved."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain

from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn


class AveragedWeights:
    """
    The moving average of a model's weights and buffers, by timm's `ModelEmaV3`.

    Args:
        model (`nn.Module`): The model, unwrapped; its present weights are the first average.
        decay (`float`): Share of the average that a step keeps; less in the first steps.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = model
        self._inside = 0
        self._average = ModelEmaV3(model, decay, use_warmup=True)

    def update(self, step: int) -> None:
        """Takes in the weights after optimizer step `step`, from 1."""
        # timm's first step copies the weights; from the second on it averages.
        self._average.update(self.model, step + 1)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Within it, the model has the averaged weights; it may be entered again inside."""
        if self._inside == 0:
            self.swap()
        self._inside += 1
        try:
            yield
        finally:
            self._inside -= 1
            if self._inside == 0:
                self.swap()

    def swap(self) -> None:
        """Exchanges the model's weights and the average, without copying."""
        for own, average in zip(_tensors(self.model), _tensors(self._average.module), strict=True):
            own.data, average.data = average.data, own.data


def _tensors(model: nn.Module) -> Iterator[Tensor]:
    return chain(model.parameters(), model.buffers())
