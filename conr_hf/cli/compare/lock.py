"""A lock on a folder: one comparison at a time, whose runs end with it, even if it is killed."""

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
_OWNER = ".owner"  # holds the owner's token; on Windows nobody else can read the locked file itself


@contextmanager
def lock_folder(folder: Path) -> Iterator[dict[str, str]]:
    """This process alone owns `folder` in the block; child processes with the environment it yields end with it."""
    folder.mkdir(parents=True, exist_ok=True)
    lock, owner, token = _lock(folder), folder / _OWNER, uuid.uuid4().hex
    try:
        lock.acquire(timeout=_SECONDS)  # a run left behind may be trying the lock
    except Timeout as error:
        raise ValueError(f'A comparison is running in "{folder}". Wait for it, or name another folder.') from error
    try:
        if owner.is_file():
            time.sleep(4 * _SECONDS)  # runs left behind by a killed owner end by themselves
        owner.write_text(token, encoding="utf-8")
        yield {VARIABLE: f"{token}:{folder.resolve()}"}
        owner.unlink()
    finally:
        lock.release()


def exit_with_owner() -> None:
    """In a child process: ends it as soon as the owner of the lock has ended. Does nothing without an owner."""
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
