"""What breaks around a training run, in one sentence each: a bad checkpoint, a lost process, a dead worker."""

from collections.abc import Iterator
from contextlib import contextmanager
from pickle import UnpicklingError

from torch.distributed import DistError
from transformers import TrainingArguments

from conr_hf.models.safe_loading import reason_of
from conr_hf.training.checkpoints import last_complete_checkpoint
from conr_hf.training.dataloader_workers import is_dead_worker
from conr_hf.utils.distributed import world_size


@contextmanager
def training_errors(args: TrainingArguments, resumed_from: str | None) -> Iterator[None]:
    """
    Around training: errors of torch that a user cannot act on become one sentence, with torch's own as the cause:
    `ValueError` for a checkpoint that would run code as it is read and for a batch of one view that batch norm cannot
    normalise, `ChildProcessError` for a data-loader worker that died, `ConnectionError` for another process that
    ended, or has not answered for `ddp_timeout` seconds.
    """
    try:
        with reading_errors(args):
            yield
    except UnpicklingError as error:
        if resumed_from is None:
            raise
        raise ValueError(f'The checkpoint "{resumed_from}" cannot be read: {reason_of(error)}.') from error
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise ValueError(
            "A batch holds one view alone, which this model's batch norm cannot normalise: the last one of an epoch "
            f"is what {args.per_device_train_batch_size} samples a batch leave over. Set dataloader_drop_last to "
            "true, or per_device_train_batch_size to another number."
        ) from error
    except RuntimeError as error:
        # Gloo's and NCCL's errors come as plain ones, too, and name their source.
        of_processes = isinstance(error, DistError) or any(name in str(error) for name in ("gloo", "NCCL"))
        if world_size() == 1 or not of_processes:
            raise
        checkpoint = last_complete_checkpoint(str(args.output_dir))
        where = f"The last complete checkpoint is {checkpoint}" if checkpoint else "There is no checkpoint yet"
        go_on = "; then go on with --resume_from_checkpoint true" if checkpoint else ""
        raise ConnectionError(
            f"Another process of this run has ended, or did not answer within ddp_timeout, which is "
            f"{args.ddp_timeout} s. {where}. See what that process wrote last, or whether memory ran out there{go_on}."
        ) from error


@contextmanager
def reading_errors(args: TrainingArguments) -> Iterator[None]:
    """Around whatever reads batches: a data-loader worker that died raises a `ChildProcessError`."""
    try:
        yield
    except (RuntimeError, EOFError, ConnectionError) as error:
        workers = args.dataloader_num_workers
        if workers == 0 or not is_dead_worker(error):
            raise
        raise ChildProcessError(
            "A process that reads images (a data-loader worker) died, most often for lack of memory or shared memory. "
            f"Set dataloader_num_workers, which is {workers}, lower, or allow more shared memory (/dev/shm, in a "
            "container --shm-size); then start again, or resume with --resume_from_checkpoint true."
        ) from error
