"""JSON files, folders that can be written, and disks that are full."""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from safetensors import SafetensorError

# What the system, safetensors and torch say where a file cannot be written to its end.
_FULL = ("No space left", "quota exceeded", "File too large", "inline_container.cc", "PytorchStream", "iostream error")


def is_full(error: Exception) -> bool:
    """Whether an error means that the disk, or what a quota allows of it, is full."""
    return any(sign in str(error) for sign in _FULL)


def check_writable(folder: str | None) -> None:
    """Makes a folder; raises a `ValueError` if it cannot be made or written into."""
    try:
        os.makedirs(str(folder), exist_ok=True)
        TemporaryFile(dir=str(folder)).close()
    except OSError as error:
        raise ValueError(
            f'The output folder "{folder}" cannot be written ({error.strerror}). Name another.'
        ) from error


@contextmanager
def writing(folder: Path, mend: str = "start it again") -> Iterator[None]:
    """Around what a command writes: a full disk becomes an `OSError` in a sentence, which ends with `mend`."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        if not is_full(error) or (isinstance(error, OSError) and error.errno is None):  # a sentence already
            raise
        free = shutil.disk_usage(folder).free
        raise OSError(
            f'The results cannot be written to "{folder}", where {free / 1e6:,.1f} MB are free '
            f"({str(error).splitlines()[0].rstrip('.')}). Make room, and {mend}."
        ) from error


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes JSON that people can read, at once; a number that JSON does not know is an error."""
    unfinished = path.with_name(path.name + ".part")
    unfinished.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(unfinished, path)
