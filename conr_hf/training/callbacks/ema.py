"""`EMACallback`: an exponential moving average of the weights, with which the model is evaluated and saved."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from conr_hf.training.callbacks.nan_guard import NanGuardCallback
from conr_hf.training.state import load_training_state

_RAW = "raw."


class EMACallback(TrainerCallback):
    """
    Keeps the moving average of a model's weights and buffers, by timm's `ModelEmaV3`, while it trains.

    Args:
        nan_guard ([`NanGuardCallback`]): Knows which steps are skipped, and so not averaged.
    """

    def __init__(self, nan_guard: NanGuardCallback) -> None:
        self.nan_guard = nan_guard
        self.checkpoint: str | None = None  # that training resumes from
        self._model: nn.Module
        self._average: ModelEmaV3 | None = None
        self._depth = 0

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        assert model is not None
        self._model = model
        decay: float | None = args.ema_decay  # type: ignore[attr-defined]
        if decay is not None:
            self._average = ModelEmaV3(model, decay, use_warmup=True)  # a checkpoint has loaded averaged weights
        saved = {} if self.checkpoint is None else load_training_state(self.checkpoint)
        if any(name.startswith(_RAW) for name in saved):
            _load_raw(model, saved)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._average is not None and not self.nan_guard.skips:
            # timm's first step copies the weights; from the second on it averages.
            self._average.update(self._model, state.global_step + 1)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within it, the model has the averaged weights, if there are any; it may be entered again inside."""
        if self._average is None:
            yield
            return
        if self._depth == 0:
            self._swap()
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
            if self._depth == 0 and self._average is not None:
                self._swap()

    def state(self) -> dict[str, Tensor]:
        """What a resumed run needs beside the averaged weights: the weights that are trained."""
        if self._average is None:
            return {}
        return {f"{_RAW}{name}": tensor.detach().cpu() for name, tensor in _named(self._model)}

    def discard(self) -> None:
        """Drops the average, where the model is given other weights."""
        self._average = None

    def finish(self) -> None:
        """After training, also where it was cut short: the model has the averaged weights."""
        if self._average is not None:
            self._swap()
            self._average = None

    def _swap(self) -> None:
        """Exchanges the model's weights and the average, without copying."""
        assert self._average is not None
        for own, average in zip(_tensors(self._model), _tensors(self._average.module), strict=True):
            own.data, average.data = average.data, own.data


def _tensors(model: nn.Module) -> Iterator[Tensor]:
    return chain(model.parameters(), model.buffers())


def _named(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    return chain(model.named_parameters(), model.named_buffers())


@torch.no_grad()
def _load_raw(model: nn.Module, saved: dict[str, Tensor]) -> None:
    for name, tensor in _named(model):
        tensor.copy_(saved[f"{_RAW}{name}"])
