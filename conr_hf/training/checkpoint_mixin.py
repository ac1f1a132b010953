"""`CheckpointMixin`: vanilla checkpoints, and beside each what a run needs to go on from it bit for bit."""

import shutil
from itertools import chain
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import PreTrainedModel, Trainer
from transformers.trainer import TRAINER_STATE_NAME

from conr_hf.imbalance import Bins
from conr_hf.models.factory import check_precision, load_weights
from conr_hf.models.peft import has_adapter
from conr_hf.training.callbacks.ema import EMACallback
from conr_hf.training.callbacks.nan_guard import NanGuardCallback
from conr_hf.training.config.resolved_config import ResolvedConfig
from conr_hf.training.conr_state import save_state, warn_of_other_methods
from conr_hf.training.objective.objective import Objective
from conr_hf.utils.files import is_full


class CheckpointMixin(Trainer):
    """How [`ConRTrainer`] saves and loads: `Trainer` has no callback for the way in which a checkpoint is written."""

    # What the trainer has.
    model: PreTrainedModel
    resolved: ResolvedConfig
    bins: Bins
    is_sharded: bool
    nan_guard: NanGuardCallback
    ema: EMACallback
    training_objective: Objective

    _training_state: dict[str, Tensor] | None = None  # of the checkpoint that is being written

    def save_model(self, *args: Any, **kwargs: Any) -> None:
        check_precision(self.model)
        with self.ema.applied():
            super().save_model(*args, **kwargs)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        self.nan_guard.check()
        self._training_state = self.training_objective.state() | self.ema.state()
        folder = Path(self._get_output_dir(trial), f"checkpoint-{self.state.global_step}")
        if self.args.should_save:  # one that is written over is whole again when it is done
            Path(folder, TRAINER_STATE_NAME).unlink(missing_ok=True)
        try:
            with self.ema.applied():
                super()._save_checkpoint(model, trial)
        except (OSError, RuntimeError, SafetensorError) as error:
            if not is_full(error):
                raise
            shutil.rmtree(folder, ignore_errors=True)
            needed, free = self._checkpoint_size(), shutil.disk_usage(folder.parent).free
            quota = ", but a quota or limit allows less" if free > needed else ""
            raise OSError(
                f'The checkpoint "{folder}" cannot be written: it needs about {needed / 1e6:,.1f} MB, and '
                f"{free / 1e6:,.1f} MB are free{quota}. The checkpoints before it are whole. Make room, keep fewer "
                "with save_total_limit, or name another output_dir; then go on with --resume_from_checkpoint true."
            ) from error
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
        warn_of_other_methods(resume_from_checkpoint, self.resolved)
        if self._loads_weights():
            load_weights(self.model, resume_from_checkpoint)
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        self.ema.discard()  # the best checkpoint holds averaged weights already
        if self._loads_weights():
            load_weights(self.model, str(self.state.best_model_checkpoint))
        else:
            super()._load_best_model()

    def _loads_weights(self) -> bool:
        """Whether checkpoints hold the whole model, perhaps under older names, which `Trainer` would not find."""
        return isinstance(self.model, PreTrainedModel) and not has_adapter(self.model) and not self.is_sharded
