"""What a comparison shows while a run of it trains: the run's last line, and the time that is left."""

import re
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_LINE = re.compile(r"^epoch +([\d.]+) +step +(\d+)  (.*)", re.MULTILINE)
_QUIET = 60.0  # seconds between lines where the output is no terminal, in which a line is replaced
_EPOCHS = 3.0  # TrainingArguments' own number of them


class RunProgress:
    """How far a run is, told from what it appends to its log; `others` runs come after it."""

    def __init__(
        self, log: Path, options: dict[str, Any], resumed: bool, others: int, seconds: Sequence[float]
    ) -> None:
        self.log, self.options, self.others, self.seconds = log, options, others, seconds
        self._start = log.stat().st_size if log.is_file() else 0
        self._begun = time.monotonic()
        self._points = [] if resumed else [(self._begun, 0.0)]  # when which share of the run was done
        self._shown, self._shown_at = "", -_QUIET

    def show(self) -> None:
        """Prints how far the run is, where there is something new."""
        text = self.text()
        if sys.stdout.isatty() and text:
            width = shutil.get_terminal_size().columns - 1
            print(f"\r{text[:width].ljust(width)}", end="", flush=True)
        elif text and text != self._shown and time.monotonic() >= self._shown_at + _QUIET:
            print(text, flush=True)
            self._shown_at = time.monotonic()
        self._shown = text

    def clear(self) -> None:
        """Ends the line that is replaced, in a terminal."""
        if sys.stdout.isatty() and self._shown:
            print(f"\r{' ' * (shutil.get_terminal_size().columns - 1)}\r", end="", flush=True)

    def text(self) -> str:
        """The last line of the log, and how long it takes yet; `""` while there is none."""
        with self.log.open("rb") as file:
            file.seek(self._start)
            written = file.read().decode("utf-8", errors="replace")
        stages = written.split("\nStage two\n")
        lines = _LINE.findall(stages[-1])
        if not lines:
            return ""
        epoch, step, found = lines[-1]
        steps, epochs = (
            int(self.options.get("max_steps") or -1),
            float(self.options.get("num_train_epochs") or _EPOCHS),
        )
        done = int(step) / steps if steps > 0 else float(epoch) / epochs
        place = f"step {step} of {steps}" if steps > 0 else f"epoch {float(epoch):g} of {epochs:g}"
        if self.options.get("stage_one"):
            place, done = f"stage {len(stages)} of 2, {place}", (len(stages) - 1 + done) / 2
        if not self._points or done > self._points[-1][1]:
            self._points.append((time.monotonic(), done))
        return f"  {place}{self._left()}: {found}"

    def _left(self) -> str:
        # The first point is before the libraries and the data are loaded, which later ones are not held back by.
        (then, before), (last, done) = self._points[1 if len(self._points) > 2 else 0], self._points[-1]
        if done <= before:
            return ""
        now = time.monotonic()
        left = max((1 - done) * (last - then) / (done - before) - (now - last), 0.0)
        known = [*self.seconds, now - self._begun + left]
        whole = left + self.others * sum(known) / len(known)
        more = f" ({_duration(whole)} with the {self.others} after it)" if self.others else ""
        return f", about {_duration(left)} left{more}"


def _duration(seconds: float) -> str:
    """
    Example:
        >>> _duration(42), _duration(170), _duration(8000)
        ('42 s', '3 min', '2 h 13 min')
    """
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
