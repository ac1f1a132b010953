"""What breaks around a training run, in one sentence each: a full disk, a lost process, a dead worker."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError

from torch.distributed import DistError
from transformers import TrainingArguments

from conr_hf.models.safe_loading import reason_of
from conr_hf.training.checkpoints import last_complete_checkpoint
from conr_hf.training.dataloader_workers import describe_dead_worker, is_dead_worker
from conr_hf.utils.distributed import world_size


@contextmanager
def training_errors(args: TrainingArguments, resumed_from: str | None) -> Iterator[None]:
    """
    Around training: errors of torch that a user cannot act on end in a sentence, with torch's own as the cause.

    Args:
        args (`TrainingArguments`): The run's settings.
        resumed_from (`str`, *optional*): The checkpoint that it goes on from.

    Raises:
        `ValueError`: for a checkpoint that would run code as it is read.
        `ChildProcessError`: for a data-loader worker that died.
        `ConnectionError`: if another process of the run ended, or has not answered for `ddp_timeout` seconds.
    """
    try:
        with reading_errors(args):
            yield
    except UnpicklingError as error:
        if resumed_from is None:
            raise
        raise ValueError(f'The checkpoint "{resumed_from}" cannot be read: {reason_of(error)}.') from error
    except RuntimeError as error:
        if world_size() == 1 or not _is_of_processes(error):
            raise
        checkpoint = last_complete_checkpoint(str(args.output_dir))
        raise ConnectionError(describe_lost_process(args.ddp_timeout, checkpoint)) from error


@contextmanager
def reading_errors(args: TrainingArguments) -> Iterator[None]:
    """
    Around whatever reads batches.

    Raises:
        `ChildProcessError`: for a data-loader worker that died.
    """
    try:
        yield
    except (RuntimeError, EOFError, ConnectionError) as error:
        if args.dataloader_num_workers == 0 or not is_dead_worker(error):
            raise
        raise ChildProcessError(describe_dead_worker(args.dataloader_num_workers)) from error


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


def describe_lost_process(timeout: int, checkpoint: Path | None) -> str:
    """
    What to do where another process of the run ended or hangs.

    Args:
        timeout (`int`): `ddp_timeout`, in seconds.
        checkpoint (`Path`, *optional*): The last complete one.
    """
    where = f"The last complete checkpoint is {checkpoint}" if checkpoint else "There is no checkpoint yet"
    go_on = "; then go on with --resume_from_checkpoint true" if checkpoint else ""
    return (
        f"Another process of this run has ended, or did not answer within ddp_timeout, which is {timeout} s. {where}. "
        f"See what that process wrote last, or whether memory ran out there{go_on}."
    )


def _is_of_processes(error: RuntimeError) -> bool:
    """Whether a collective raised it; gloo's and NCCL's errors come as plain ones, too, and name their source."""
    return isinstance(error, DistError) or any(name in str(error) for name in ("gloo", "NCCL"))
