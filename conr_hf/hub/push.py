"""Sends finished runs and checkpoints to the Hub."""

import os
import shlex
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

from huggingface_hub import CommitInfo

from conr_hf.hub.api import create_repo, upload
from conr_hf.hub.card_metadata import ModelCardOptions
from conr_hf.hub.files import checkpoint_upload_files, upload_files
from conr_hf.hub.model_card import card_of, write_card
from conr_hf.utils.run_folder import CARD, RESULTS, STATE


def push_run(folder: str, model_id: str | None, private: bool, revision: str | None) -> CommitInfo:
    """
    `conr-hf push`: sends a finished run to the Hub.

    Args:
        folder (`str`): The run's folder.
        model_id (`str`, *optional*): Where to. Unset: the folder's name, of the token's owner.
        private (`bool`): Make the repository a private one, if it is not there.
        revision (`str`, *optional*): A branch. Unset: the main one.

    Raises:
        `ValueError`: if the folder holds no model, or the Hub refuses it; the sentence says how to send it again.
        `ConnectionError`: if the Hub cannot be reached, likewise.
    """
    path = Path(folder)
    names = sorted(upload_files(path))
    repo = create_repo(model_id or path.absolute().name, private=private or None, revision=revision)
    card = path / CARD
    if (path / RESULTS).is_file() and card.is_file() and card.read_text(encoding="utf-8") == card_of(path):
        # As conr-hf train or card wrote it, and so without its id.
        write_card(path, options=ModelCardOptions(model_name=Path(repo).name, model_id=repo))
    print(f"Pushing to {repo}: {', '.join(names)}", flush=True)
    return upload_run(path, repo, "End of training", None, revision)


def upload_run(folder: Path, repo: str, message: str, token: str | None, revision: str | None) -> CommitInfo:
    """
    Sends what [`upload_files`] names of a run's folder. Arguments as in [`~conr_hf.hub.api.upload`].

    Raises:
        `ValueError`, `ConnectionError`: with the command that sends it again.
    """
    try:
        return upload(upload_files(folder), repo, message, token, revision)
    except (ValueError, ConnectionError) as error:
        again = ["conr-hf", "push", str(folder), repo, *(["--revision", revision] if revision is not None else [])]
        raise type(error)(f"{error} The run is whole on disk; send it again with {shlex.join(again)}") from error


def upload_checkpoint(
    kept: TemporaryDirectory[str], place: str | None, repo: str, message: str, token: str | None, revision: str | None
) -> None:
    """
    Sends the model of a checkpoint.

    Args:
        kept (`TemporaryDirectory`): With the folder `checkpoint` and the model's `conr_state.safetensors`; removed.
        place (`str`, *optional*): Folder of the repository to send all of the checkpoint to that a resume needs.
        repo, message, token, revision: As in [`~conr_hf.hub.api.upload`].
    """
    with kept as folder:
        checkpoint = Path(folder, "checkpoint")
        upload({**upload_files(checkpoint), STATE: Path(folder, STATE)}, repo, message, token, revision)
        if place is not None:
            files = {f"{place}/{name}": content for name, content in checkpoint_upload_files(checkpoint).items()}
            upload(files, repo, f"{message}, checkpoint", token, revision)


def link(source: str, target: str) -> None:
    """Gives a file a second name, under which it outlives the first."""
    try:
        os.link(source, target)
    except OSError:  # a disk without links
        shutil.copyfile(source, target)
