"""`ObjectiveCallback`: begins, resumes and steps what is learned beside the model."""

from typing import Any

from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainerState
from transformers.trainer_utils import IntervalStrategy

from conr_hf.training.callbacks.nan_guard import NanGuardCallback
from conr_hf.training.dataloaders import DataLoaders
from conr_hf.training.objective.objective import Objective
from conr_hf.training.sharding import broadcast_buffers


class ObjectiveCallback(TrainerCallback):
    """Loads the objective's state where a run resumes, begins its epochs, and steps it with the optimizer."""

    def __init__(self, trainer: Trainer, loaders: DataLoaders, nan_guard: NanGuardCallback) -> None:
        self.loaders, self.nan_guard, self.accelerator = loaders, nan_guard, trainer.accelerator
        self.is_sharded = trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled
        self.objective: Objective  # of the run that is about to begin
        self.saved: dict[str, Tensor] | None = None  # the state of the checkpoint that it resumes from
        self.trained_model: nn.Module | None = None  # of the last training; if it is sharded, since its beginning

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, model: Any = None, **kwargs: Any) -> None:
        self.trained_model = model
        if self.saved is not None:
            self.objective.load(self.saved)
            self.saved = None

    def on_epoch_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        self.objective.begin_epoch(self.loaders.order.epoch)

    def on_step_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        step = state.global_step + 1  # gradients are measured where `Trainer` logs after it
        every = args.logging_strategy == IntervalStrategy.STEPS and step % max(int(state.logging_steps), 1) == 0
        logs = every or (step == 1 and args.logging_first_step) or step == state.max_steps
        if args.logging_strategy == IntervalStrategy.EPOCH:
            logs = step % self.loaders.steps_per_epoch() == 0
        self.objective.measures_gradients = logs

    def on_optimizer_step(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        self.objective.optimizer_step(self.nan_guard.skips or self.accelerator.optimizer_step_was_skipped)

    def on_step_end(self, args: Any, state: TrainerState, control: Any, model: Any = None, **kwargs: Any) -> None:
        if self.is_sharded and not self.nan_guard.skips:
            broadcast_buffers(model)
