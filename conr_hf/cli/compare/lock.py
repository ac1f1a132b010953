"""
A lock that a comparison holds as long as it lives, so that no run of it goes on without it and no second one starts.
"""

import os
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

VARIABLE = "CONR_HF_LIFELINE"
_SECONDS = 0.2
_OWNER = ".owner"  # the token of who holds the lock, whose own file Windows lets nobody else read


@contextmanager
def lock_folder(folder: Path) -> Iterator[dict[str, str]]:
    """
    Within it, this process owns `folder`.

    Yields:
        `dict[str, str]`: what the environment of its child processes must have, so that they end with it, even if it
        is killed.

    Raises:
        `ValueError`: if another process owns the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock, owner, token = _lock(folder), folder / _OWNER, uuid.uuid4().hex
    try:
        lock.acquire(timeout=_SECONDS)  # a run left behind may be looking at it just now
    except Timeout as error:
        raise ValueError(f'A comparison is running in "{folder}". Wait for it, or name another folder.') from error
    try:
        if owner.is_file():
            time.sleep(4 * _SECONDS)  # what an owner that was killed left running ends by itself
        owner.write_text(token, encoding="utf-8")
        yield {VARIABLE: f"{token}:{folder.resolve()}"}
        owner.unlink()
    finally:
        lock.release()


def exit_with_owner() -> None:
    """In a child process: ends it when the owner of the lock has ended. Without an owner it does nothing."""
    token, _, folder = os.environ.get(VARIABLE, "").partition(":")
    if token:
        threading.Thread(target=_watch, args=(token, Path(folder)), daemon=True).start()


def _watch(token: str, folder: Path) -> None:
    while _owned(token, folder):
        time.sleep(_SECONDS)
    os._exit(1)


def _owned(token: str, folder: Path) -> bool:
    try:
        if (folder / _OWNER).read_text(encoding="utf-8") != token:
            return False
        with _lock(folder):
            return False
    except Timeout:
        return True
    except OSError:
        return False


def _lock(folder: Path) -> FileLock:
    return FileLock(folder / ".lock", timeout=0)
