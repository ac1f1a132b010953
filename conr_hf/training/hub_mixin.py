"""`PushingTrainer`: a run goes to the Hub, and a push that fails costs nothing but the push."""

import shutil
from concurrent.futures import Future
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from huggingface_hub import CommitInfo
from transformers import PreTrainedModel
from transformers.trainer_utils import HubStrategy, SaveStrategy
from transformers.utils import logging

from conr_hf.hub.api import create_repo, run_in_background, upload
from conr_hf.hub.files import Content, checkpoint_upload_files, upload_files
from conr_hf.hub.push import _link, _send_run
from conr_hf.training.card_data import DescribingTrainer
from conr_hf.training.state import save_state
from conr_hf.utils.run_folder import STATE

logger = logging.get_logger(__name__)


class PushingTrainer(DescribingTrainer):
    """
    What [`ConRTrainer`] sends to the Hub: of the run's folder what [`upload_files`] names, with the hub strategies
    `"checkpoint"` and `"all_checkpoints"` also checkpoints to go on from.

    Args:
        args, kwargs: As in [`ConRTrainer`].
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._pushes: list[tuple[str, Future[None]]] = []  # during training, with their messages
        super().__init__(*args, **kwargs)

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """
        Makes the repository `hub_model_id` (unset: named as `output_dir`) unless there is one.

        Raises:
            `ValueError`: if it has no valid id, or the token is missing or gives no right to write to it.
            `ConnectionError`: if the Hub cannot be reached.
        """
        if not self.is_world_process_zero():
            return
        args = self.args
        if self._sends_checkpoints() and self.is_sharded:
            raise ValueError(
                f"hub_strategy is {HubStrategy(args.hub_strategy).value}, but under FSDP and DeepSpeed a checkpoint "
                "lies in parts, which are not sent. Set it to every_save or end."
            )
        self.hub_model_id = create_repo(  # type: ignore[assignment]
            args.hub_model_id or Path(str(args.output_dir)).absolute().name,
            token if token is not None else args.hub_token,
            private if private is not None else args.hub_private_repo,
            args.hub_revision,
        )

    def push_to_hub(  # type: ignore[override]
        self,
        commit_message: str = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ) -> CommitInfo | Future[CommitInfo] | None:
        """
        Saves the model and its card, and sends the run to the Hub.

        Args:
            commit_message (`str`, *optional*, defaults to `"End of training"`): Message of the commit.
            blocking (`bool`, *optional*, defaults to `True`): Return when it is there.
            token (`str`, *optional*): Unset: `hub_token`, or the one that is logged in.
            revision (`str`, *optional*): A branch. Unset: `hub_revision`, or the main one.
            private (`bool`, *optional*): Whether the repository is private, if it is made. Unset: `hub_private_repo`.
            kwargs (*optional*): For `create_model_card`.

        Returns:
            `CommitInfo`, or its `Future` without `blocking`; `None` on all processes but the first.

        Raises:
            `ValueError`: if the Hub refuses it; the sentence says how to send it again.
            `ConnectionError`: if the Hub cannot be reached, likewise.
        """
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        self.save_model(_internal_call=True)
        token = token if token is not None else self.args.hub_token
        if self.hub_model_id is None:
            self.init_hf_repo(token, private)
        if not self.is_world_process_zero():
            return None
        repo, folder = str(self.hub_model_id), Path(str(self.args.output_dir))
        if isinstance(self.model, PreTrainedModel) and self.model.model_tags is not None:
            given = kwargs.get("tags", [])
            tags = [given] if isinstance(given, str) else given
            kwargs["tags"] = list(dict.fromkeys([*tags, *self.model.model_tags]))
        self.create_model_card(**{"model_name": Path(repo).name, **kwargs})
        self._finish_current_push()
        revision = revision if revision is not None else self.args.hub_revision
        if blocking:
            return _send_run(folder, repo, commit_message, token, revision)
        return run_in_background(_send_run, folder, repo, commit_message, token, revision)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if not self.is_world_process_zero() or self.args.hub_strategy == HubStrategy.END:
            return
        if not self.args.hub_always_push and any(not push.done() for _, push in self._pushes):
            return
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        by_step = self.args.save_strategy == SaveStrategy.STEPS
        where = f"step {self.state.global_step}" if by_step else f"epoch {int(self.state.epoch or 0)}"
        message = f"Training in progress, {where}"
        # Linked, as training may delete the checkpoint before it is sent.
        kept = TemporaryDirectory(prefix=".push-", dir=self.args.output_dir)
        checkpoint = shutil.copytree(checkpoint_folder, Path(kept.name, "checkpoint"), copy_function=_link)
        save_state(kept.name, self.resolved, self.bins)  # without what only a resume needs
        place: str | None = None
        if self._sends_checkpoints():
            every = self.args.hub_strategy == HubStrategy.ALL_CHECKPOINTS
            place = Path(checkpoint_folder).name if every else "last-checkpoint"
        self._pushes.append((message, run_in_background(self._send_checkpoint, kept, checkpoint, place, message)))

    def _send_checkpoint(
        self, kept: TemporaryDirectory[str], checkpoint: Path, place: str | None, message: str
    ) -> None:
        repo, token, revision = str(self.hub_model_id), self.args.hub_token, self.args.hub_revision
        with kept:
            model: dict[str, Content] = {**upload_files(checkpoint), STATE: Path(kept.name, STATE)}
            upload(model, repo, message, token, revision)
            if place is not None:
                files = {f"{place}/{name}": content for name, content in checkpoint_upload_files(checkpoint).items()}
                upload(files, repo, f"{message}, checkpoint", token, revision)

    def _finish_current_push(self) -> None:
        """Waits for the pushes that training began, and warns of those that failed."""
        pushes, self._pushes = self._pushes, []
        errors = [(message, push.exception()) for message, push in pushes]
        failed = [(message, error) for message, error in errors if error is not None]
        if failed:
            message, error = failed[-1]
            logger.warning(
                f'{len(failed)} of {len(pushes)} pushes during training failed, the last one "{message}": {error}'
            )

    def _sends_checkpoints(self) -> bool:
        return self.args.hub_strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS)
