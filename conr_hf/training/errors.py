"""What breaks around a training run, in one sentence each: a disk that is full or locked, a process that is lost."""

import re
import shutil
from pathlib import Path

from torch.distributed import DistError

# What gloo, NCCL and the store by which processes find each other say where one of them is gone, or does not answer.
_GONE = ("closed by peer", "reset by peer", "Broken pipe", "recvValue failed", "remote process", "Connection was")
_LATE = ("Timed out waiting", "collective operation timeout", "wait timeout", "Socket Timeout")


def describe_full_disk(folder: Path, needed: int) -> str:
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


def describe_lost_process(error: RuntimeError, timeout: int, checkpoint: Path | None) -> str | None:
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
