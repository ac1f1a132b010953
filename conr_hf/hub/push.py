"""Sends finished runs to the Hub."""

import shlex
from pathlib import Path

from huggingface_hub import CommitInfo

from conr_hf.hub.api import create_repo, upload
from conr_hf.hub.card_metadata import ModelCardOptions
from conr_hf.hub.model_card import card_of, write_card
from conr_hf.hub.upload_files import upload_files
from conr_hf.utils.run_folder import CARD, RESULTS


def push_run(folder: str, model_id: str | None, private: bool, revision: str | None) -> CommitInfo:
    """`conr-hf push`: sends a run to `model_id` (unset: named as its folder), on a branch; see [`upload_run`]."""
    path, card = Path(folder), Path(folder, CARD)
    names = sorted(upload_files(path))
    repo = create_repo(model_id or path.absolute().name, private=private or None, revision=revision)
    if (path / RESULTS).is_file() and card.is_file() and card.read_text(encoding="utf-8") == card_of(path):
        write_card(path, options=ModelCardOptions(model_id=repo))  # as conr-hf train or card wrote it, without its id
    print(f"Pushing to {repo}: {', '.join(names)}", flush=True)
    return upload_run(path, repo, "End of training", None, revision)


def upload_run(folder: Path, repo: str, message: str, token: str | None, revision: str | None) -> CommitInfo:
    """Sends a run as [`~conr_hf.hub.api.upload`] does; its errors end with the command that sends it again."""
    try:
        return upload(upload_files(folder), repo, message, token, revision)
    except (ValueError, ConnectionError) as error:
        again = ["conr-hf", "push", str(folder), repo, *(["--revision", revision] if revision is not None else [])]
        raise type(error)(f"{error} The run is whole on disk; send it again with {shlex.join(again)}") from error
