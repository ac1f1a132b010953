"""What breaks around a training run, in one sentence each: a full disk, a data-loader worker that died."""

import shutil
from pathlib import Path

# What the system, safetensors and torch say where a file cannot be written to its end.
_FULL = ("No space left", "quota exceeded", "File too large", "inline_container.cc", "PytorchStream", "iostream error")
_DIED = ("is killed by signal", "exited unexpectedly")  # torch, of a data-loader worker


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


def told_died(error: RuntimeError, workers: int) -> str | None:
    """What to do where a data-loader worker died, if that is what an error says."""
    text = str(error)
    if "DataLoader worker" not in text or not any(sign in text for sign in _DIED):
        return None
    return (
        f"A process that reads images died ({text.splitlines()[0].strip().rstrip('.')}), most often for want of "
        f"memory or shared memory. Set dataloader_num_workers, which is {workers}, lower, or allow more shared memory "
        "(/dev/shm, in a container --shm-size); then go on with --resume_from_checkpoint true."
    )
