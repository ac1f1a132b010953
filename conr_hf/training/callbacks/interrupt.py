"""Signals that ask a training run to stop, held back until its step is done."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from types import FrameType
from typing import Any

from torch.utils.data._utils.signal_handling import _set_SIGCHLD_handler

_SAME = 1.0  # seconds within which a signal is the first one again, as a launcher and its terminal both send it


class SignalHandler:
    """
    Notes SIGINT (Ctrl-C) and SIGTERM between `begin` and `end`, in place of the handlers that were there. A second
    signal, a second or more after the first, does at once what it did before.

    In between torch does not raise from a signal handler that a data-loader worker died, wherever the process happens
    to be: in the midst of logging it leaves a lock behind for which others wait for ever. Whoever waits for a batch of
    that worker is told within seconds anyway.

    Signals that are ignored, as Ctrl-C is by a command in the background of a script, stay ignored. Python allows
    handlers in the main thread alone; in others nothing is noted.
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
        if sys.platform != "win32":
            _set_SIGCHLD_handler()  # unless it is set, as each data loader with workers would
            handler = signal.getsignal(signal.SIGCHLD)
            if callable(handler):
                self._previous[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, partial(_call_quietly, handler))

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


def _call_quietly(handler: Callable[[int, FrameType | None], Any], number: int, frame: FrameType | None) -> None:
    with suppress(RuntimeError):  # of torch
        handler(number, frame)
