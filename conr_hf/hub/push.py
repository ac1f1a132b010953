"""Sends a finished run to the Hub."""

import os
import shlex
import shutil
from pathlib import Path

from huggingface_hub import CommitInfo

from conr_hf.hub.api import create_repo, upload
from conr_hf.hub.card_metadata import ModelCardOptions
from conr_hf.hub.files import upload_files
from conr_hf.hub.model_card import card_of, write_card
from conr_hf.utils.run_folder import CARD


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
    files = upload_files(path)
    repo = create_repo(model_id or path.absolute().name, private=private or None, revision=revision)
    _name_in_card(path, repo)
    print(f"Pushing to {repo}: {', '.join(sorted(files))}", flush=True)
    return _send_run(path, repo, "End of training", None, revision)


def _name_in_card(folder: Path, repo: str) -> None:
    """Writes the id into the snippets of a card that is as `conr-hf train` or `conr-hf card` wrote it."""
    path = folder / CARD
    if (folder / "results.json").is_file() and path.is_file() and path.read_text(encoding="utf-8") == card_of(folder):
        write_card(folder, name=Path(repo).name, told=ModelCardOptions(model_id=repo))


def _send_run(folder: Path, repo: str, message: str, token: str | None, revision: str | None) -> CommitInfo:
    files = upload_files(folder)
    try:
        return upload(files, repo, message, token, revision)
    except (ValueError, ConnectionError) as error:
        again = ["conr-hf", "push", str(folder), repo, *(["--revision", revision] if revision is not None else [])]
        raise type(error)(f"{error} The run is whole on disk; send it again with {shlex.join(again)}") from error


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # a disk without links
        shutil.copyfile(source, target)
