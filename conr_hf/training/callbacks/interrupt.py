"""`InterruptCallback`: Ctrl-C and SIGTERM stop a run when its step is done and a checkpoint of it saved."""

import os
import signal
import sys
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

from transformers import Trainer, TrainerCallback, TrainerState

from conr_hf.training.checkpoints import last_complete_checkpoint
from conr_hf.training.dataloader_workers import quiet_worker_deaths
from conr_hf.utils.distributed import gather_objects

_SAME = 1.0  # seconds within which a signal is the first one again, as a launcher and its terminal both send it


class InterruptCallback(TrainerCallback):
    """After SIGINT or SIGTERM, stops all processes at once when the step is done and a checkpoint of it saved."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self.signals = SignalHandler()
        self._agreed, self._stopping = 0, False

    def agree(self, number: int) -> None:
        """Takes the signal that all processes agree on, 0 for none; the NaN guard reduces it with its own flags."""
        self._agreed = max(self._agreed, number)

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        self._agreed, self._stopping = 0, False
        self.signals.received = 0  # of an earlier run; a search does not begin with them
        if not state.is_hyper_param_search:  # which cannot be resumed
            self.signals.begin()

    def on_step_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        # At the end of an epoch, what is due then comes first: a resumed run would not make up for it.
        if self._agreed and state.epoch % 1 and not control.should_training_stop:
            self._stopping = control.should_save = True

    def on_epoch_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        if self._agreed and (not state.epoch % 1 or control.should_training_stop):
            self._stopping = control.should_save = True

    def on_prediction_step(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        quiet_worker_deaths()  # also where no training has done so

    def on_evaluate(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        if self.trainer.is_in_train:  # a signal that came meanwhile need not wait for another step
            self._agreed = max(self._agreed, *gather_objects(self.signals.received))
            if self._agreed:
                self._stopping = control.should_save = True

    def on_save(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        if self._stopping:
            self.trainer.callback_handler.on_train_end(args, state, control)
            self._stop(Path(str(args.output_dir), f"checkpoint-{state.global_step}"))

    def stop_if_asked(self) -> None:
        """After training, for a signal that came after its last step."""
        self._agreed = max(gather_objects(self.signals.received))
        if self._agreed:
            self._stop(last_complete_checkpoint(str(self.trainer.args.output_dir)))

    def _stop(self, checkpoint: Path | None) -> None:
        trainer = self.trainer
        trainer.accelerator.wait_for_everyone()  # the launcher ends all processes with the first
        saved = f"The checkpoint is {checkpoint}; go on with --resume_from_checkpoint true."
        end = "No checkpoint was saved." if checkpoint is None else saved
        sentence = f"Stopped by {signal.Signals(self._agreed).name} after step {trainer.state.global_step}. {end}"
        if trainer.is_world_process_zero():
            print(f"\n{sentence}", file=sys.stderr, flush=True)
        raise KeyboardInterrupt(sentence) if self._agreed == signal.SIGINT else SystemExit(128 + self._agreed)


class SignalHandler:
    """
    Notes SIGINT (Ctrl-C) and SIGTERM between `begin` and `end`, in place of the handlers that were there. A second
    signal, a second or more after the first, does at once what it did before. Signals that are ignored, as Ctrl-C is
    by a command in the background of a script, stay ignored. Python allows handlers in the main thread alone; in
    others nothing is noted.
    """

    def __init__(self) -> None:
        self.received = 0  # the number of the first signal; 0 if there was none
        self._received_at = 0.0
        self._process = os.getpid()
        self._previous: dict[int, Any] = {}

    def begin(self) -> None:
        self.end()  # Trainer begins once more where it looks for a batch size that fits
        self.received, self._process = 0, os.getpid()
        if threading.current_thread() is not threading.main_thread():
            return
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) not in (None, signal.SIG_IGN):
                self._previous[number] = signal.signal(number, self._note)

    def end(self) -> None:
        """Puts the handlers back."""
        previous, self._previous = self._previous, {}
        for number, handler in previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # forked from it: Ctrl-C is its parent's, who ends it by SIGTERM
            if number == signal.SIGTERM:
                signal.signal(number, signal.SIG_DFL)
                signal.raise_signal(number)
            return
        now = time.monotonic()
        if not self.received:
            self.received, self._received_at = number, now
        elif now - self._received_at >= _SAME:
            self.end()
            signal.raise_signal(number)
