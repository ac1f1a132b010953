"""Calls of the Hub: what fails for a moment is repeated, and errors become sentences."""

import time
from collections.abc import Callable, Mapping
from json import JSONDecodeError
from typing import TypeVar

from huggingface_hub import CommitInfo, CommitOperationAdd, HfApi
from huggingface_hub.errors import (  # type: ignore[attr-defined]
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from conr_hf.hub.files import Content

Result = TypeVar("Result")

HUB = HfApi(library_name="conr_hf")


def create_repo(name: str, token: str | None = None, private: bool | None = None, revision: str | None = None) -> str:
    """
    Makes a model's repository unless there is one, and checks that it may be written to.

    Args:
        name (`str`): `owner/name`; without an owner, that of the token.
        token (`str`, *optional*): Unset: the one of `hf auth login` or `HF_TOKEN`.
        private (`bool`, *optional*): Whether a new one is private. Unset: as the owner's default is.
        revision (`str`, *optional*, defaults to the main branch): A branch that is there.

    Returns:
        `str`: its full id.

    Raises:
        `ValueError`: if the name is no id, the token is missing or may not write, or there is no such branch.
        `ConnectionError`: if the Hub cannot be reached.
    """
    url = _call(lambda: HUB.create_repo(name, token=token, private=private, exist_ok=True), name, revision)
    probe = [CommitOperationAdd("README.md", b"# model")]  # announced, not sent
    _call(lambda: HUB.preupload_lfs_files(url.repo_id, probe, token=token, revision=revision), url.repo_id, revision)
    return url.repo_id


def upload(
    files: Mapping[str, Content], repo: str, message: str, token: str | None = None, revision: str | None = None
) -> CommitInfo:
    """
    Commits files, by their names in the repository. Arguments and errors as in [`create_repo`].

    `HfApi.upload_folder` sends files as they are, and some here are sent without the paths that they hold on disk.
    """

    def commit() -> CommitInfo:
        operations = [CommitOperationAdd(name, content) for name, content in files.items()]
        return HUB.create_commit(repo, operations, commit_message=message, token=token, revision=revision)

    return _call(commit, repo, revision)


def _call(call: Callable[[], Result], repo: str, revision: str | None) -> Result:
    # huggingface_hub repeats its uploads by itself, but not the calls that open a repository and commit.
    for wait in (1.0, 4.0, None):
        try:
            return call()
        except (HTTPError, ConnectionError, TimeoutError, RuntimeError, ValueError) as error:
            # An upload that fails is a RuntimeError with the name of its file.
            cause = error.__cause__ if isinstance(error, RuntimeError) and error.__cause__ else error
            failure = _in_words(cause, repo, revision)
            if wait is None or isinstance(failure, ValueError):
                raise failure from error
            time.sleep(wait)
    raise AssertionError


def _in_words(error: BaseException, repo: str, revision: str | None) -> ValueError | ConnectionError:
    """A `ValueError` where the Hub refuses, a `ConnectionError` where another attempt may succeed."""
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    said = error.server_message if isinstance(error, HfHubHTTPError) else None
    reason = " ".join((said or str(error) or type(error).__name__).split()).rstrip(".")
    if isinstance(error, HFValidationError):
        sentence = f'"{repo}" cannot be the id of a model on the Hub. Write owner/name, of letters, digits, - _ and .'
    elif isinstance(error, OfflineModeIsEnabled):
        sentence = "HF_HUB_OFFLINE is set, so that nothing is sent to the Hub. Unset it, or do not push."
    elif isinstance(error, RevisionNotFoundError):
        sentence = f'"{repo}" has no branch "{revision}" on the Hub. Make it there, or name no revision.'
    elif isinstance(error, RepositoryNotFoundError):
        sentence = f'The Hub has no repository "{repo}" that this token may see. Name another, or log in anew.'
    elif status == 401:
        sentence = "A push needs a token, and the Hub does not know the token. Use hf auth login, or set HF_TOKEN."
    elif status == 403:
        sentence = f'The token may not write to "{repo}" on the Hub. Use one that may, or name another model id.'
    elif isinstance(error, ValueError) and not isinstance(error, JSONDecodeError):  # an answer cut short
        sentence = f'This cannot be sent to "{repo}": {reason}.'
    elif status in range(400, 500) and status not in (408, 429):
        sentence = f'The Hub refuses what was sent to "{repo}": {reason}.'
    else:
        return ConnectionError(f'"{repo}" did not reach the Hub: {reason}.')
    return ValueError(sentence)
