"""`Watch`: what stops a run or skips its step, on all processes at once: a signal, or a loss that is no number."""

import signal
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.utils import logging

from conr_hf.training.callbacks.interrupt import SignalHandler
from conr_hf.training.checkpoints import last_complete_checkpoint
from conr_hf.training.dataloaders import ImageTrainer
from conr_hf.utils.distributed import gather_objects, world_size

logger = logging.get_logger(__name__)

_NAMED = 32  # rows of a message at most
_SKIPPED = 10  # steps in a row at most


@dataclass
class _Step:
    """A step's micro-batches on this process, and what all processes have to say of it."""

    number: int = 0
    epoch: int = 0
    losses: list[Tensor] = field(default_factory=list)
    places: list[tuple[int, int]] = field(default_factory=list)  # first position in the epoch's order, and samples
    norm: Tensor | None = None  # of the gradient
    # The largest, over the processes, of: the number of a signal, whether a loss is bad, whether the gradient is.
    news: Tensor | None = None


class Watch(TrainerCallback):
    """
    Stops training after SIGINT or SIGTERM, when the step is done and a checkpoint of it saved; and at a loss or a
    gradient that is not finite, before the optimizer's step, so that no weight is harmed. With `on_bad_loss="skip"`
    such a step is to be skipped (`skips`) instead.

    Where `Trainer` does not read each loss (`logging_nan_inf_filter` is false) on an accelerator, the host must not
    wait for it either, unless steps may be skipped: a step is then looked at one step later, and before it is logged
    or saved.

    Args:
        trainer ([`~conr_hf.training.dataloaders.ImageTrainer`]): Whose run it is.
    """

    def __init__(self, trainer: ImageTrainer) -> None:
        self.trainer = trainer
        self.interrupts = SignalHandler()
        self._begin()

    def _begin(self) -> None:
        self._signal, self._stopping = 0, False
        self.interrupts.received = 0  # of an earlier run; a search does not begin with them
        self._step, self._unread = _Step(), _Step()
        self.skips, self._in_a_row = False, 0
        self._steps, self._skipped = 0, 0  # since the last log

    # ---- The loss ------------------------------------------------------------------------------------------------

    def saw(self, loss: Tensor, batch: dict[str, Any]) -> None:
        """Notes the loss of a micro-batch."""
        self._step.losses.append(loss)
        self._step.places.append((batch.get("position", 0), len(batch["labels"])))

    def saw_gradient(self, norm: Any) -> None:
        """Notes the norm of a step's gradient over all processes, if it is known."""
        if norm is not None:
            whole = norm.full_tensor() if isinstance(norm, DTensor) else norm
            self._step.norm = torch.as_tensor(whole, dtype=torch.float32, device=self.trainer.args.device)

    def read(self) -> None:
        """
        Looks at what was noted.

        Raises:
            `FloatingPointError`: for a loss or gradient that is not finite, unless its step is to be skipped; it names
                the rows and the last complete checkpoint.
        """
        step, self._unread = self._unread, _Step()
        if step.news is None:
            return
        number, bad_loss, bad_gradient = step.news.tolist()
        self._signal = int(number)
        if not (bad_loss or bad_gradient):
            self._in_a_row = 0
            return
        what = self._told(step, bool(bad_loss))
        skipping = self.trainer.args.on_bad_loss == "skip"
        if skipping and self._in_a_row < _SKIPPED:
            self.skips = True
            self._in_a_row += 1
            self._skipped += 1
            if self.trainer.is_world_process_zero():
                logger.warning(f"{what}. The step is skipped.")
            return
        saved = last_complete_checkpoint(str(self.trainer.args.output_dir))
        go_on = f"The last complete checkpoint is {saved}." if saved else "There is no checkpoint before it."
        before = f" The {_SKIPPED} steps before it were skipped." if skipping else ""
        raise FloatingPointError(
            f"{what}: training diverged. Lower learning_rate, or look at these rows.{before} {go_on}"
        )

    def _told(self, step: _Step, of_loss: bool) -> str:
        """What is not finite, at which step and on which rows; the same on all processes."""
        bad = [
            (float(loss), *place)
            for place, loss in zip(step.places, step.losses, strict=True)
            if not (of_loss and loss.isfinite())
        ]
        mine = [row for _, position, count in bad for row in self.trainer.rows_at(step.epoch, position, count)]
        everyone = gather_objects(([loss for loss, _, _ in bad], mine))
        if of_loss:
            what = f"The loss is {next(loss for losses, _ in everyone for loss in losses)}"
        else:
            what = f"The loss is finite, but the norm of its gradient is {step.norm:g}"
        rows = list(dict.fromkeys(row for _, rows in everyone for row in rows))
        named = ", ".join(f"{row:,}" for row in rows[:_NAMED])
        more = f" and {len(rows) - _NAMED:,} more" if len(rows) > _NAMED else ""
        place = f" in the order of epoch {step.epoch + 1}" if self.trainer.is_stream else ""
        return f"{what} at step {step.number}, on rows {named}{more} of train_dataset{place}"

    def without_skipped(self, logs: dict[str, float]) -> dict[str, float]:
        """`Trainer`'s figures of the steps since the last log, as means over those that were not skipped."""
        steps, skipped = self._steps, self._skipped
        self._steps = self._skipped = 0
        if skipped == 0:
            return logs
        logs = {name: value for name, value in logs.items() if not (self.skips and name == "grad_norm")}
        loss = logs.pop("loss") * steps
        return logs if steps == skipped else {"loss": loss / (steps - skipped), **logs}

    # ---- The run -------------------------------------------------------------------------------------------------

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._begin()
        if not state.is_hyper_param_search:  # which cannot be resumed
            self.interrupts.begin()

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        step, self._step = self._step, _Step()
        step.number, step.epoch = state.global_step + 1, self.trainer.order.epoch
        self.skips = False
        self._steps += 1
        bad_loss = ~torch.stack(step.losses).isfinite().all()
        received, bad_gradient = (  # a fill waits for no device
            torch.full((), value, device=bad_loss.device) for value in (float(self.interrupts.received), 0.0)
        )
        if step.norm is not None:
            bad_gradient = ~step.norm.isfinite()
        step.news = torch.stack([received, bad_loss.float(), bad_gradient.float()])
        if world_size() > 1:
            dist.all_reduce(step.news, dist.ReduceOp.MAX)
        if self._waits(args):
            self._unread = step
            self.read()
        else:
            self.read()
            self._unread = step

    def _waits(self, args: TrainingArguments) -> bool:
        """Whether the host waits for each step's loss anyway, or must, before the optimizer's step."""
        skips = self.trainer.args.on_bad_loss == "skip"
        return args.device.type == "cpu" or args.logging_nan_inf_filter or skips

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        # At the end of an epoch, what is due then comes first: a resumed run would not make up for it.
        if self._signal and state.epoch % 1 and not control.should_training_stop:
            self._stopping = control.should_save = True

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.read()
        if self._signal and (not state.epoch % 1 or control.should_training_stop):
            self._stopping = control.should_save = True

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.trainer.is_in_train:  # a signal that came meanwhile need not wait for another step
            self._signal = max(self._signal, *gather_objects(self.interrupts.received))
            if self._signal:
                self._stopping = control.should_save = True

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self._stopping:
            self.trainer.callback_handler.on_train_end(args, state, control)
            self._stop(Path(str(args.output_dir), f"checkpoint-{state.global_step}"))

    def end(self) -> None:
        """After training, or where it was cut short: signals do what they did before."""
        self.interrupts.end()

    def stop_if_asked(self) -> None:
        """After training, for a signal that came after its last step."""
        self._signal = max(gather_objects(self.interrupts.received))
        if self._signal:
            self._stop(last_complete_checkpoint(str(self.trainer.args.output_dir)))

    def _stop(self, checkpoint: Path | None) -> None:
        trainer = self.trainer
        trainer.accelerator.wait_for_everyone()  # the launcher ends all processes with the first
        name = signal.Signals(self._signal).name
        sentence = f"Stopped by {name} after step {trainer.state.global_step}. "
        if checkpoint is None:
            sentence += "No checkpoint was saved."
        else:
            sentence += f"The checkpoint is {checkpoint}; go on with --resume_from_checkpoint true."
        if trainer.is_world_process_zero():
            print(f"\n{sentence}", file=sys.stderr, flush=True)
        raise KeyboardInterrupt(sentence) if self._signal == signal.SIGINT else SystemExit(128 + self._signal)
