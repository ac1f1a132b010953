"""Calls of the Hub: passing failures are tried again, and errors become sentences."""

import time
from collections.abc import Callable, Mapping
from json import JSONDecodeError
from typing import TypeVar

from huggingface_hub import CommitInfo, CommitOperationAdd, HfApi, errors

from conr_hf.hub.upload_files import Content

Result = TypeVar("Result")

HUB = HfApi(library_name="conr_hf")
_FAILURES = (errors.HTTPError, ConnectionError, TimeoutError, RuntimeError, ValueError)  # type: ignore[attr-defined]


def create_repo(name: str, token: str | None = None, private: bool | None = None, revision: str | None = None) -> str:
    """Makes a model's repository unless there is one, checks that it may be written to, and returns its full id."""
    url = _call(lambda: HUB.create_repo(name, token=token, private=private, exist_ok=True), name, revision)
    probe = [CommitOperationAdd("README.md", b"# model")]  # announced, not sent
    _call(lambda: HUB.preupload_lfs_files(url.repo_id, probe, token=token, revision=revision), url.repo_id, revision)
    return url.repo_id


def upload(
    files: Mapping[str, Content], repo: str, message: str, token: str | None = None, revision: str | None = None
) -> CommitInfo:
    """Commits files, by their names in the repository: bytes too, which `HfApi.upload_folder` does not take."""

    def commit() -> CommitInfo:
        operations = [CommitOperationAdd(name, content) for name, content in files.items()]
        return HUB.create_commit(repo, operations, commit_message=message, token=token, revision=revision)

    return _call(commit, repo, revision)


def _call(call: Callable[[], Result], repo: str, revision: str | None) -> Result:
    """
    The result of a call, tried three times: huggingface_hub repeats uploads by itself, but not commits and the like.
    Raises a `ValueError` for a refusal, and a `ConnectionError` for what may pass.
    """
    waits = [1.0, 4.0]
    while True:
        try:
            return call()
        except _FAILURES as error:
            # An upload that fails is a RuntimeError with the name of its file.
            cause = error.__cause__ if isinstance(error, RuntimeError) and error.__cause__ else error
            failure = _in_words(cause, repo, revision)
            if isinstance(failure, ValueError) or not waits:
                raise failure from error
            time.sleep(waits.pop(0))


def _in_words(error: BaseException, repo: str, revision: str | None) -> ValueError | ConnectionError:
    status = error.response.status_code if isinstance(error, errors.HfHubHTTPError) else None
    answer = error.server_message if isinstance(error, errors.HfHubHTTPError) else None
    reason = " ".join((answer or str(error) or type(error).__name__).split()).rstrip(".")
    refusals: dict[type | int | None, str] = {
        errors.HFValidationError: f'"{repo}" cannot be the id of a model. Write owner/name, of letters, digits, - _ .',
        errors.OfflineModeIsEnabled: "HF_HUB_OFFLINE is set, so nothing is sent to the Hub. Unset it, or do not push.",
        errors.RevisionNotFoundError: f'"{repo}" has no branch "{revision}". Make it there, or name no revision.',
        errors.RepositoryNotFoundError: f'This token may see no repository "{repo}". Name another, or log in anew.',
        401: "A push needs a token, and the Hub does not know the token. Use hf auth login, or set HF_TOKEN.",
        403: f'The token may not write to "{repo}" on the Hub. Use one that may, or name another model id.',
    }
    if refusal := refusals.get(type(error)) or refusals.get(status):
        return ValueError(refusal)
    if isinstance(error, ValueError) and not isinstance(error, JSONDecodeError):  # an answer cut short
        return ValueError(f'This cannot be sent to "{repo}": {reason}.')
    if status in range(400, 500) and status not in (408, 429):
        return ValueError(f'The Hub refuses what was sent to "{repo}": {reason}.')
    return ConnectionError(f'"{repo}" did not reach the Hub: {reason}.')
