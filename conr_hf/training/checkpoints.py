"""Which checkpoints were written to their end, and from which of them a run goes on."""

import json
from pathlib import Path

from transformers.trainer import TRAINER_STATE_NAME
from transformers.utils import logging

logger = logging.get_logger(__name__)


def checkpoint_to_resume(wanted: str | bool | None, output_dir: str) -> str | None:
    """
    Where a run goes on: `True` and `"true"` are the last complete checkpoint in `output_dir`, `False` and `"false"`
    none, and anything else is a checkpoint's folder. A checkpoint that is not there is a `ValueError`.
    """
    if wanted in (None, False, "false", "False"):
        return None
    if wanted in (True, "true", "True"):
        last = last_complete_checkpoint(output_dir)
        if last is None:
            raise ValueError(f'"{output_dir}" holds no complete checkpoint to resume from. Train without resuming.')
        folders = _checkpoints(output_dir)
        cut_off = [folder.name for folder in folders[folders.index(last) + 1 :]]
        if cut_off:
            was = "was" if len(cut_off) == 1 else "were"
            logger.warning(f"{', '.join(cut_off)} {was} not written to the end; training goes on from {last}.")
        return str(last)
    if not _is_whole(Path(str(wanted), TRAINER_STATE_NAME)):
        why = ": it was not written to its end" if Path(str(wanted)).is_dir() else ""
        raise ValueError(
            f'resume_from_checkpoint is "{wanted}", which is no complete checkpoint{why}. Name a folder '
            "checkpoint-N, or true for the last one."
        )
    return str(wanted)


def complete_checkpoints(output_dir: str) -> list[Path]:
    """The checkpoints in `output_dir` that were written to their end, the oldest first."""
    return [folder for folder in _checkpoints(output_dir) if _is_whole(folder / TRAINER_STATE_NAME)]


def last_complete_checkpoint(output_dir: str) -> Path | None:
    """The newest checkpoint in `output_dir` that was written to its end, if there is one."""
    return next(reversed(complete_checkpoints(output_dir)), None)


def _checkpoints(output_dir: str) -> list[Path]:
    return sorted(
        (folder for folder in Path(output_dir).glob("checkpoint-*") if folder.name[11:].isdigit()),
        key=lambda folder: int(folder.name[11:]),
    )


def _is_whole(state: Path) -> bool:
    """Whether the file that a checkpoint is ended with is there to its end."""
    try:
        json.loads(state.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return True
