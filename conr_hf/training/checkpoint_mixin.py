"""`KeepingTrainer`: checkpoints that a run goes on from bit for bit, and the moving average of the weights."""

import shutil
from contextlib import AbstractContextManager, nullcontext
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import EvalLoopOutput

from conr_hf.imbalance import Bins
from conr_hf.models.factory import load_weights
from conr_hf.models.peft import has_adapter
from conr_hf.training.callbacks.ema import AveragedWeights
from conr_hf.training.callbacks.nan_guard import Watch
from conr_hf.training.callbacks.skipping import StepUndo
from conr_hf.training.config.resolved_config import ResolvedConfig
from conr_hf.training.dataloaders import ImageTrainer
from conr_hf.training.errors import describe_full_disk
from conr_hf.training.objective.objective import Objective
from conr_hf.training.sharding import broadcast_buffers
from conr_hf.training.state import load_training_state, save_state
from conr_hf.utils.files import is_full


class KeepingTrainer(ImageTrainer):
    """
    What [`ConRTrainer`] keeps of a run: vanilla models, beside them the state that a resume needs, and an average of
    the weights in whose place the model is evaluated and saved.

    Args:
        args, kwargs: As in [`ConRTrainer`].
    """

    step_objective: Objective  # made when train() starts; `objective` is Trainer's, of a search

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._average: AveragedWeights | None = None
        self._training_state: dict[str, Tensor] | None = None
        self._resumed_from: str | None = None
        self.sharded_model: nn.Module | None = None  # by FSDP or DeepSpeed, from its first train() on
        super().__init__(*args, **kwargs)
        self.watch = Watch(self)
        self.add_callback(self.watch)
        self.add_callback(_Clock(self))  # behind the watch, by which it goes

    @property
    def resolved(self) -> ResolvedConfig:
        """The run's settings."""
        raise NotImplementedError

    @property
    def bins(self) -> Bins:
        """Bins of the training labels."""
        raise NotImplementedError

    @property
    def is_sharded(self) -> bool:
        """Whether FSDP or DeepSpeed holds the model in parts."""
        return self.is_fsdp_enabled or self.is_deepspeed_enabled

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        with self.averaged():
            return super().evaluate(*args, **kwargs)

    def predict(self, *args: Any, **kwargs: Any) -> Any:
        with self.averaged():
            return super().predict(*args, **kwargs)

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        if self.model is self.sharded_model or not self.is_sharded:
            return super().evaluation_loop(*args, **kwargs)
        # A model is sharded together with its optimizer only: before training it is evaluated whole.
        modes = self.is_fsdp_enabled, self.is_deepspeed_enabled
        self.is_fsdp_enabled = self.is_deepspeed_enabled = False
        try:
            return super().evaluation_loop(*args, **kwargs)
        finally:
            self.is_fsdp_enabled, self.is_deepspeed_enabled = modes

    def start_keeping(self) -> None:
        """When the model and its weights are where training starts: goes on where a checkpoint left off."""
        if self.is_sharded:
            self.sharded_model = self.model
        state: dict[str, Tensor] = {}
        if self._resumed_from is not None:
            state = load_training_state(self._resumed_from)
            self.step_objective.load(state)
        if self.args.ema_decay is not None:
            self._average = AveragedWeights(self.model, self.args.ema_decay)  # of a checkpoint, the averaged weights
        if any(name.startswith("raw.") for name in state):
            _load_raw(self.model, state)

    def finish_keeping(self) -> None:
        """After training, the model has the averaged weights, also where it was cut short."""
        average, self._average = self._average, None
        if average is not None:
            average.swap()

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Tensor:
        loss: Tensor = super().training_step(model, inputs, *args, **kwargs)
        self.watch.saw(loss, inputs)
        return loss

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm)
        if self.accelerator.scaler is None:  # which finds by itself what overflows in float16, and skips it
            self.watch.saw_gradient(norm)
        return norm

    def remember_step(self) -> StepUndo:
        """What a step that begins now may have to put back."""
        return StepUndo(self.model, self.step_objective, self._tr_loss)

    def after_step(self) -> None:
        if self.is_sharded:
            broadcast_buffers(self.model)
        if self._average is not None:
            self._average.update(self.state.global_step)

    def averaged(self) -> AbstractContextManager[None]:
        return nullcontext() if self._average is None else self._average.in_place()

    def save_model(self, *args: Any, **kwargs: Any) -> None:
        with self.averaged():
            super().save_model(*args, **kwargs)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        self.watch.read()
        self._training_state = self.step_objective.state()
        if self._average is not None:
            self._training_state |= {f"raw.{name}": tensor.detach().cpu() for name, tensor in _named(self.model)}
        folder = Path(self._get_output_dir(trial), f"checkpoint-{self.state.global_step}")
        if self.args.should_save:  # one that is written over is whole again when it is done
            Path(folder, TRAINER_STATE_NAME).unlink(missing_ok=True)
        try:
            with self.averaged():
                super()._save_checkpoint(model, trial)
        except (OSError, RuntimeError, SafetensorError) as error:
            if not is_full(error):
                raise
            shutil.rmtree(folder, ignore_errors=True)
            raise OSError(describe_full_disk(folder, self._checkpoint_size())) from error
        finally:
            self._training_state = None

    def _checkpoint_size(self) -> int:
        """Bytes of the weights, of the optimizer's state and of the state beside them."""
        assert self.optimizer is not None
        states = chain.from_iterable(state.values() for state in self.optimizer.state.values())
        tensors = chain(self.model.parameters(), self.model.buffers(), states, (self._training_state or {}).values())
        return sum(tensor.nbytes for tensor in tensors if isinstance(tensor, Tensor))

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        self.accelerator.wait_for_everyone()  # the first process then ends the checkpoint, of which this is a part

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        super()._save(output_dir, state_dict)
        if self.args.should_save and self.train_dataset is not None:
            save_state(output_dir or str(self.args.output_dir), self.resolved, self.bins, self._training_state)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if self._restores_weights():
            load_weights(self.model, resume_from_checkpoint)
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        self._average = None  # the best checkpoint holds averaged weights already
        if self._restores_weights():
            load_weights(self.model, str(self.state.best_model_checkpoint))
        else:
            super()._load_best_model()

    def _restores_weights(self) -> bool:
        whole = isinstance(self.model, PreTrainedModel) and not has_adapter(self.model)
        return whole and not self.is_sharded


class _Clock(TrainerCallback):
    """Tells the trainer when training, an epoch or a step has begun or ended."""

    def __init__(self, trainer: KeepingTrainer) -> None:
        self.trainer = trainer
        self._before: StepUndo  # of the step that goes on, where it may be skipped

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.trainer.start_keeping()

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.trainer.step_objective.begin_epoch(self.trainer.order.epoch)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.trainer.args.on_bad_loss == "skip":
            self._before = self.trainer.remember_step()

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.trainer.watch.skips:
            self._before.undo()
            kwargs["optimizer"].zero_grad()  # without gradients it has nothing to do

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        skipped = self.trainer.watch.skips or self.trainer.accelerator.optimizer_step_was_skipped
        self.trainer.step_objective.optimizer_step(skipped)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if not self.trainer.watch.skips:
            self.trainer.after_step()


def _named(model: nn.Module) -> Any:
    return chain(model.named_parameters(), model.named_buffers())


@torch.no_grad()
def _load_raw(model: nn.Module, state: dict[str, Tensor]) -> None:
    for name, tensor in _named(model):
        tensor.copy_(state[f"raw.{name}"])
