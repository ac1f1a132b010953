"""`ObjectiveCallback`: begins, resumes and steps what is learned beside the model."""

from typing import Any

from accelerate import Accelerator
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import IntervalStrategy

from conr_hf.training.callbacks.nan_guard import NanGuardCallback
from conr_hf.training.dataloaders import DataLoaders
from conr_hf.training.objective.objective import Objective
from conr_hf.training.sharding import broadcast_buffers
from conr_hf.training.state import load_training_state


class ObjectiveCallback(TrainerCallback):
    """
    Loads the objective's state where a run resumes, begins its epochs, and steps it with the optimizer.

    Args:
        loaders ([`DataLoaders`]): Knows the epoch, and the steps in one.
        nan_guard ([`NanGuardCallback`]): Knows which steps are skipped.
        accelerator (`Accelerator`): Knows whether it skipped the optimizer's step, as in float16.
        is_sharded (`bool`): Whether FSDP or DeepSpeed holds the model in parts.
    """

    def __init__(
        self, loaders: DataLoaders, nan_guard: NanGuardCallback, accelerator: Accelerator, is_sharded: bool
    ) -> None:
        self.loaders, self.nan_guard, self.accelerator = loaders, nan_guard, accelerator
        self.is_sharded = is_sharded
        self.objective: Objective  # of the run that is about to begin
        self.checkpoint: str | None = None  # that it resumes from
        self.trained_model: nn.Module | None = None  # of the last training; if it is sharded, since its beginning

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        self.trained_model = model
        if self.checkpoint is not None:
            self.objective.load(load_training_state(self.checkpoint))

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.objective.begin_epoch(self.loaders.order.epoch)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.objective.measures_gradients = self._logs(args, state, state.global_step + 1)

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.objective.optimizer_step(self.nan_guard.skips or self.accelerator.optimizer_step_was_skipped)

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        if self.is_sharded and not self.nan_guard.skips:
            assert model is not None
            broadcast_buffers(model)

    def _logs(self, args: TrainingArguments, state: TrainerState, step: int) -> bool:
        """Whether `Trainer` logs after this step."""
        if args.logging_strategy == IntervalStrategy.EPOCH:
            return step % self.loaders.steps_per_epoch() == 0
        every = args.logging_strategy == IntervalStrategy.STEPS and step % max(int(state.logging_steps), 1) == 0
        return every or (step == 1 and args.logging_first_step) or step == state.max_steps
