"""`EMACallback`: an exponential moving average of the weights, with which the model is evaluated and saved."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerState

from conr_hf.training.callbacks.nan_guard import NanGuardCallback

_RAW = "raw."


class EMACallback(TrainerCallback):
    """
    A moving average of the model's weights and buffers (timm's `ModelEmaV3`) over the steps that are not skipped.
    """

    def __init__(self, nan_guard: NanGuardCallback) -> None:
        self.nan_guard = nan_guard
        self.saved: dict[str, Tensor] | None = None  # the state of the checkpoint that training resumes from
        self._model: nn.Module
        self._average: ModelEmaV3 | None = None
        self._depth = 0

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, model: Any = None, **kwargs: Any) -> None:
        self._model = model
        if args.ema_decay is not None:
            # Of a resumed run the model has loaded the averaged weights.
            self._average = ModelEmaV3(model, args.ema_decay, use_warmup=True)
        saved, self.saved = self.saved or {}, None
        if any(name.startswith(_RAW) for name in saved):
            with torch.no_grad():
                for name, tensor in _named_tensors(model):
                    tensor.copy_(saved[f"{_RAW}{name}"])

    def on_step_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        if self._average is not None and not self.nan_guard.skips:
            # timm's first step copies the weights; from the second on it averages.
            self._average.update(self._model, state.global_step + 1)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within it, the model has the averaged weights, if there are any; it may be entered again inside."""
        self._depth += 1
        if self._depth == 1:
            self._swap()
        try:
            yield
        finally:
            self._depth -= 1
            if self._depth == 0:
                self._swap()

    def state(self) -> dict[str, Tensor]:
        """What a resumed run needs beside the averaged weights: the weights that are trained."""
        if self._average is None:
            return {}
        return {f"{_RAW}{name}": tensor.detach().cpu() for name, tensor in _named_tensors(self._model)}

    def discard(self) -> None:
        """Drops the average, where the model is given other weights."""
        self._average = None

    def finish(self) -> None:
        """After training, also where it was cut short: the model has the averaged weights."""
        self._swap()
        self._average = None

    def _swap(self) -> None:
        """Exchanges the model's weights and the average, if there is one, without copying."""
        if self._average is None:
            return
        averages = _named_tensors(self._average.module)
        for (_, own), (_, average) in zip(_named_tensors(self._model), averages, strict=True):
            own.data, average.data = average.data, own.data


def _named_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    return chain(model.named_parameters(), model.named_buffers())
