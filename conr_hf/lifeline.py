"""
A lock that a comparison holds as long as it lives, so that no run of it goes on without it and no second one starts.
"""

import fcntl
import os
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

VARIABLE = "CONR_HF_LIFELINE"
_SECONDS = 0.5


@contextmanager
def held(folder: Path) -> Iterator[dict[str, str]]:
    """
    Within it, this process owns `folder`.

    Yields:
        `dict[str, str]`: what the environment of its child processes must have, so that they end with it, even if it
        is killed.

    Raises:
        `ValueError`: if another process owns the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path, token = folder / ".lock", uuid.uuid4().hex
    with path.open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ValueError(f'A comparison is running in "{folder}". Wait for it, or name another folder.') from error
        file.seek(0)
        if file.read():
            time.sleep(4 * _SECONDS)  # what an owner that was killed left running ends by itself
        file.truncate(0)
        file.write(token)
        file.flush()
        yield {VARIABLE: f"{token}:{path.resolve()}"}
        file.truncate(0)


def watch() -> None:
    """In a child process: ends it when the owner of the lock has ended. Without an owner it does nothing."""
    token, _, path = os.environ.get(VARIABLE, "").partition(":")
    if token:
        threading.Thread(target=_watch, args=(token, Path(path)), daemon=True).start()


def _watch(token: str, path: Path) -> None:
    while _owned(token, path):
        time.sleep(_SECONDS)
    os._exit(1)


def _owned(token: str, path: Path) -> bool:
    try:
        with path.open(encoding="utf-8") as file:
            if file.read() != token:
                return False
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False
