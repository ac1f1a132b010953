"""`NanGuardCallback`: a loss or gradient that is not finite stops a run, or skips its step, in time."""

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import Trainer, TrainerCallback, TrainerState
from transformers.utils import logging

from conr_hf.training.callbacks.interrupt import InterruptCallback
from conr_hf.training.checkpoints import last_complete_checkpoint
from conr_hf.training.dataloaders import DataLoaders
from conr_hf.utils.distributed import gather_objects, world_size
from conr_hf.utils.tensor_snapshot import Snapshot

logger = logging.get_logger(__name__)

_MAX_ROWS = 32  # of a message
_MAX_SKIPPED = 10  # steps in a row


@dataclass
class _Step:
    """A step's micro-batches on this process, and the flags of all processes."""

    number: int = 0
    epoch: int = 0
    losses: list[Tensor] = field(default_factory=list)
    places: list[tuple[int, int]] = field(default_factory=list)  # first position in the epoch's order, and samples
    grad_norm: Tensor | None = None
    # The largest, over the processes, of: the number of a signal, whether a loss is bad, whether the gradient is.
    flags: Tensor | None = None


class NanGuardCallback(TrainerCallback):
    """
    Stops training at a loss or a gradient that is not finite, before the optimizer's step. With `on_bad_loss="skip"`
    it drops the gradient instead, so that the step changes no weight, and puts back the model's buffers, which batch
    norm would otherwise have filled with numbers that are not finite.

    Where `Trainer` does not read each loss (`logging_nan_inf_filter` is false) on an accelerator, the host must not
    wait for it either, unless steps may be skipped: a step is then checked one step later, and before it is logged or
    saved. The signal that the processes agree on comes with the same exchange, and goes to `interrupt`.
    """

    def __init__(self, trainer: Trainer, loaders: DataLoaders, interrupt: InterruptCallback) -> None:
        self.trainer, self.loaders, self.interrupt = trainer, loaders, interrupt
        self._begin()

    def _begin(self) -> None:
        self._step, self._unchecked = _Step(), _Step()
        self.skips = False  # the step that is under way
        self._in_a_row = 0
        self._buffers = Snapshot(())

    def record(self, loss: Tensor, batch: dict[str, Any]) -> None:
        """Notes the loss of a micro-batch."""
        self._step.losses.append(loss.detach())
        self._step.places.append((batch.get("position", 0), len(batch["labels"])))

    def record_grad_norm(self, norm: Tensor | float | None) -> None:
        """Notes the norm of a step's gradient over all processes, if it is known."""
        if norm is not None:
            whole = norm.full_tensor() if isinstance(norm, DTensor) else norm
            self._step.grad_norm = torch.as_tensor(whole, dtype=torch.float32, device=self.trainer.args.device)

    def check(self) -> None:
        """
        Raises `FloatingPointError` for a recorded loss or gradient that is not finite, unless its step is skipped.
        """
        step, self._unchecked = self._unchecked, _Step()
        if step.flags is None:
            return
        number, bad_loss, bad_gradient = step.flags.tolist()
        self.interrupt.agree(int(number))
        if not (bad_loss or bad_gradient):
            self._in_a_row = 0
            return
        message = self._message(step, bool(bad_loss))
        if self._may_skip() and self._in_a_row < _MAX_SKIPPED:
            self.skips = True
            self._in_a_row += 1
            if self.trainer.is_world_process_zero():
                logger.warning(f"{message}. The step is skipped.")
            return
        saved = last_complete_checkpoint(str(self.trainer.args.output_dir))
        go_on = f"The last complete checkpoint is {saved}." if saved else "There is no checkpoint before it."
        before = f" The {_MAX_SKIPPED} steps before it were skipped." if self._may_skip() else ""
        raise FloatingPointError(
            f"{message}: training diverged. Lower learning_rate, or look at these rows.{before} {go_on}"
        )

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        self._begin()

    def on_step_begin(self, args: Any, state: TrainerState, control: Any, model: Any = None, **kwargs: Any) -> None:
        if self._may_skip():
            self._buffers = Snapshot(model.buffers())

    def on_pre_optimizer_step(
        self, args: Any, state: TrainerState, control: Any, optimizer: Any = None, **kwargs: Any
    ) -> None:
        step, self._step = self._step, _Step()
        step.number, step.epoch = state.global_step + 1, self.loaders.order.epoch
        self.skips = False
        bad_loss = ~torch.stack(step.losses).isfinite().all()
        bad_gradient = torch.zeros_like(bad_loss) if step.grad_norm is None else ~step.grad_norm.isfinite()
        # A fill waits for no device.
        received = torch.full((), float(self.interrupt.signals.received), device=bad_loss.device)
        step.flags = torch.stack([received, bad_loss.float(), bad_gradient.float()])
        if world_size() > 1:
            dist.all_reduce(step.flags, dist.ReduceOp.MAX)
        if self._waits(args):
            self._unchecked = step
            self.check()
        else:
            self.check()
            self._unchecked = step
        if self.skips:
            optimizer.zero_grad()  # without gradients it has nothing to do
            self._buffers.restore()

    def on_epoch_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        self.check()

    def _waits(self, args: Any) -> bool:
        """Whether the host waits for each step's loss anyway, or must, before the optimizer's step."""
        return args.device.type == "cpu" or args.logging_nan_inf_filter or self._may_skip()

    def _may_skip(self) -> bool:
        return self.trainer.args.on_bad_loss == "skip"  # type: ignore[attr-defined]

    def _message(self, step: _Step, of_loss: bool) -> str:
        """What is not finite, at which step and on which rows; the same on all processes."""
        bad = [
            (float(loss), *place)
            for place, loss in zip(step.places, step.losses, strict=True)
            if not (of_loss and loss.isfinite())
        ]
        mine = [row for _, position, count in bad for row in self.loaders.rows_at(step.epoch, position, count)]
        everyone = gather_objects(([loss for loss, _, _ in bad], mine))
        if of_loss:
            what = f"The loss is {next(loss for losses, _ in everyone for loss in losses)}"
        else:
            what = f"The loss is finite, but the norm of its gradient is {step.grad_norm:g}"
        rows = list(dict.fromkeys(row for _, rows in everyone for row in rows))
        named = ", ".join(f"{row:,}" for row in rows[:_MAX_ROWS])
        more = f" and {len(rows) - _MAX_ROWS:,} more" if len(rows) > _MAX_ROWS else ""
        place = f" in the order of epoch {step.epoch + 1}" if self.loaders.data.is_stream else ""
        return f"{what} at step {step.number}, on rows {named}{more} of train_dataset{place}"
