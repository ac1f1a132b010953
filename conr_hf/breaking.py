"""What breaks around a training run, in one sentence each: a disk that is full or locked, a process that is lost."""

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile

from safetensors import SafetensorError
from torch.distributed import DistError

# What the system, safetensors and torch say where a file cannot be written to its end.
_FULL = ("No space left", "quota exceeded", "File too large", "inline_container.cc", "PytorchStream", "iostream error")
# What gloo, NCCL and the store by which processes find each other say where one of them is gone, or does not answer.
_GONE = ("closed by peer", "reset by peer", "Broken pipe", "recvValue failed", "remote process", "Connection was")
_LATE = ("Timed out waiting", "collective operation timeout", "wait timeout", "Socket Timeout")


def is_full(error: Exception) -> bool:
    """Whether an error means that the disk, or what a quota allows of it, is full."""
    return any(sign in str(error) for sign in _FULL)


def told_full(folder: Path, needed: int) -> str:
    """
    What to do where a checkpoint found no room.

    Args:
        folder (`Path`): The checkpoint's.
        needed (`int`): Its size, in bytes.
    """
    free = shutil.disk_usage(folder.parent).free
    quota = ", but a quota or limit allows less" if free > needed else ""
    return (
        f'The checkpoint "{folder}" cannot be written: it needs about {needed / 1e6:,.1f} MB, and '
        f"{free / 1e6:,.1f} MB are free{quota}. The checkpoints before it are whole. Make room, keep fewer with "
        "save_total_limit, or name another output_dir; then go on with --resume_from_checkpoint true."
    )


def check_writable(folder: str | None) -> None:
    """
    Raises:
        `ValueError`: if `folder` cannot be made or written into.
    """
    try:
        os.makedirs(str(folder), exist_ok=True)
        TemporaryFile(dir=str(folder)).close()
    except OSError as error:
        raise ValueError(
            f'The output folder "{folder}" cannot be written ({error.strerror}). Name another.'
        ) from error


@contextmanager
def writing(folder: Path, mend: str = "start it again") -> Iterator[None]:
    """
    Around what a command writes.

    Args:
        folder (`Path`): Where to.
        mend (`str`): What to do when there is room.

    Raises:
        `OSError`: in a sentence, where the disk is full.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        if not is_full(error) or (isinstance(error, OSError) and error.errno is None):  # told already
            raise
        free = shutil.disk_usage(folder).free
        raise OSError(
            f'The results cannot be written to "{folder}", where {free / 1e6:,.1f} MB are free '
            f"({str(error).splitlines()[0].rstrip('.')}). Make room, and {mend}."
        ) from error


def told_lost(error: RuntimeError, timeout: int, checkpoint: Path | None) -> str | None:
    """
    What to do where another process of the run ended or hangs, if that is what an error says.

    Args:
        error (`RuntimeError`): What a collective raised.
        timeout (`int`): `ddp_timeout`, in seconds.
        checkpoint (`Path`, *optional*): The last complete one.
    """
    text = str(error)
    if not (isinstance(error, DistError) or "gloo" in text or "NCCL" in text):
        return None
    if any(sign in text for sign in _LATE):
        what = f"Another process of this run hangs: it did not answer within ddp_timeout, which is {timeout} s"
    elif any(sign in text for sign in _GONE):
        what = "Another process of this run has ended"
    else:
        return None
    where = f"The last complete checkpoint is {checkpoint}" if checkpoint else "There is no checkpoint yet"
    go_on = "; then go on with --resume_from_checkpoint true" if checkpoint else ""
    reason = re.sub(r"^\[[^]]*\] *", "", text.splitlines()[0]).split(". ")[0]  # without the line of gloo's source
    return (
        f"{what}, so that this one cannot go on ({reason.strip().rstrip('.')}). {where}. See what "
        f"that process wrote last, or whether memory ran out there{go_on}."
    )
