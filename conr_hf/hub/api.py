"""The Hub: a repository is opened, files are sent to it, and what goes wrong there is told in a sentence."""

import json
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any, TypeVar

from huggingface_hub import CommitInfo, CommitOperationAdd, HfApi, get_token
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
WAITS = (1.0, 4.0)  # seconds before another attempt, beside those that huggingface_hub makes at an upload


def create_repo(name: str, token: str | None = None, private: bool | None = None, revision: str | None = None) -> str:
    """
    Makes a model's repository unless there is one, and sees that it may be written to.

    Args:
        name (`str`): `owner/name`; without an owner, that of the token.
        token (`str`, *optional*): Unset: the one of `hf auth login` or `HF_TOKEN`.
        private (`bool`, *optional*): Whether it is private, if it is made. Unset: as the owner has it by default.
        revision (`str`, *optional*, defaults to the main branch): A branch that is there.

    Returns:
        `str`: its full id.

    Raises:
        `ValueError`: if the name is no id, the token is missing or may not write, or there is no such branch.
        `ConnectionError`: if the Hub cannot be reached.
    """
    if token is None and get_token() is None:
        raise ValueError(
            "A push to the Hub needs a token, and there is none. Log in with hf auth login, or set HF_TOKEN."
        )
    url = with_retries(lambda: HUB.create_repo(name, token=token, private=private, exist_ok=True), name, revision)
    probe = CommitOperationAdd("README.md", b"# model")  # asked for, not sent
    with_retries(
        lambda: HUB.preupload_lfs_files(url.repo_id, [probe], token=token, revision=revision), url.repo_id, revision
    )
    return url.repo_id


def upload(
    files: Mapping[str, Content], repo: str, message: str, token: str | None = None, revision: str | None = None
) -> CommitInfo:
    """
    Commits files to a repository. What passes is tried again; what already arrived is not sent again.

    Args:
        files (`Mapping`): By name in the repository a file, or its bytes.
        repo (`str`): Id of the repository.
        message (`str`): Of the commit.
        token, revision (*optional*): As in [`create_repo`].

    Raises:
        `ValueError`: if the Hub refuses them.
        `ConnectionError`: if the Hub cannot be reached.
    """

    def commit() -> CommitInfo:
        operations = [CommitOperationAdd(name, content) for name, content in files.items()]
        return HUB.create_commit(repo, operations, commit_message=message, token=token, revision=revision)

    return with_retries(commit, repo, revision)


def run_in_background(call: Callable[..., Result], *arguments: Any) -> Future[Result]:
    """Calls in the background, one call after another."""
    return HUB.run_as_future(call, *arguments)


def with_retries(call: Callable[[], Result], repo: str, revision: str | None) -> Result:
    waits = iter(WAITS)
    while True:
        try:
            return call()
        except (HTTPError, ConnectionError, TimeoutError, RuntimeError, ValueError) as error:
            cause = _cause(error)
            wait = next(waits, None) if is_transient(cause) else None
            if wait is None:
                raise as_user_error(cause, repo, revision) from error
        time.sleep(wait)


def _cause(error: BaseException) -> BaseException:
    """What an upload failed by, from the error that names the file."""
    while isinstance(error, RuntimeError) and error.__cause__ is not None:
        error = error.__cause__
    return error


def is_transient(error: BaseException) -> bool:
    """Whether another attempt may succeed: of dropped connections, timeouts and failures of the Hub itself."""
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code >= 500 or error.response.status_code in (408, 429)
    passing = (HTTPError, ConnectionError, TimeoutError, RuntimeError, json.JSONDecodeError)
    return isinstance(error, passing) and not isinstance(error, OfflineModeIsEnabled)


def as_user_error(error: BaseException, repo: str, revision: str | None) -> ValueError | ConnectionError:
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    said = error.server_message if isinstance(error, HfHubHTTPError) else None
    reason = " ".join((said or str(error) or type(error).__name__).split()).rstrip(".")
    if isinstance(error, HFValidationError):
        return ValueError(
            f'"{repo}" cannot be the id of a model on the Hub. Write it as owner/name, of letters, digits, "-", "_" '
            'and ".", with hub_model_id or behind conr-hf push RUN.'
        )
    if isinstance(error, OfflineModeIsEnabled):
        return ValueError("HF_HUB_OFFLINE is set, so that nothing is sent to the Hub. Unset it, or do not push.")
    if is_transient(error):
        return ConnectionError(f'"{repo}" did not reach the Hub: {reason}.')
    if isinstance(error, RevisionNotFoundError):
        return ValueError(f'"{repo}" has no branch "{revision}" on the Hub. Make it there, or name no revision.')
    if isinstance(error, RepositoryNotFoundError):
        return ValueError(f'The Hub has no repository "{repo}" that this token may see. Name another, or log in anew.')
    if status == 401:
        return ValueError("The Hub does not know the token. Log in anew with hf auth login, or set HF_TOKEN.")
    if status == 403:
        return ValueError(
            f'The token may not write to "{repo}" on the Hub. Use one that may, or name another model id.'
        )
    return ValueError(f'The Hub does not take what was sent to "{repo}": {reason}.')
