"""`HubMixin`: the model card of a run, and its way to the Hub."""

import shutil
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from huggingface_hub import CommitInfo
from transformers import PreTrainedModel, Trainer
from transformers.trainer_utils import HubStrategy, SaveStrategy
from transformers.utils import logging

from conr_hf.hub import api
from conr_hf.hub.card_metadata import ModelCardOptions, as_list
from conr_hf.hub.card_template import read_template
from conr_hf.hub.model_card import card
from conr_hf.hub.push import link, upload_checkpoint, upload_run
from conr_hf.training.card_data import training_summary
from conr_hf.training.config.config import ConRConfig
from conr_hf.training.data_module import DataModule
from conr_hf.training.state import save_state
from conr_hf.utils.run_folder import CARD

logger = logging.get_logger(__name__)


class HubMixin(Trainer):
    """
    Writes the model card and sends to the Hub what [`~conr_hf.hub.files.upload_files`] names; with the hub strategies
    `"checkpoint"` and `"all_checkpoints"` also checkpoints to resume from. A push that fails costs nothing else.
    """

    args: ConRConfig
    data: DataModule
    is_sharded: bool
    _pushes: tuple[tuple[str, Future[None]], ...] = ()  # during training, with their messages

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """
        Writes `README.md` into `args.output_dir`, by `args.model_card_template` or the package's own template: from
        the files of the run where `conr-hf train` wrote them, else from what the trainer knows, with the errors that
        were logged last (of the best checkpoint, if that was loaded).

        Args:
            args, kwargs: As in `Trainer`; of several tasks or names of data sets the first is used.
        """
        if not self.is_world_process_zero():
            return
        folder = Path(str(self.args.output_dir))
        options = ModelCardOptions(*args, **{"model_id": self.hub_model_id or self.args.hub_model_id, **kwargs})
        if options.model_name is None and options.model_id is not None:
            options = replace(options, model_name=Path(options.model_id).name)
        model = self.accelerator.unwrap_model(self.model)
        summary = training_summary(folder, model, self.args, self.state, self.data, self.compute_loss_func is not None)
        try:
            text = card(summary, options, read_template(self.args.model_card_template))
        except ValueError as error:  # of the user's template: no reason to lose a run or its upload
            logger.warning(f"The model card is written by the package's template: {error}")
            text = card(summary, options, read_template(None))
        folder.mkdir(parents=True, exist_ok=True)
        (folder / CARD).write_text(text, encoding="utf-8", newline="\n")

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
        self.hub_model_id = api.create_repo(  # type: ignore[assignment]
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
            commit_message, blocking, token, revision, private, kwargs (*optional*): As in `Trainer`.

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
        if isinstance(self.model, PreTrainedModel) and self.model.model_tags is not None:
            kwargs["tags"] = list(dict.fromkeys([*as_list(kwargs.get("tags")), *self.model.model_tags]))
        self.create_model_card(**kwargs)
        self._finish_current_push()
        revision = revision if revision is not None else self.args.hub_revision
        run = (Path(str(self.args.output_dir)), str(self.hub_model_id), commit_message, token, revision)
        return upload_run(*run) if blocking else api.HUB.run_as_future(upload_run, *run)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        args = self.args
        if not self.is_world_process_zero() or args.hub_strategy == HubStrategy.END:
            return
        if not args.hub_always_push and any(not push.done() for _, push in self._pushes):
            return
        self.callback_handler.on_push_begin(args, self.state, self.control)
        by_step = args.save_strategy == SaveStrategy.STEPS
        where = f"step {self.state.global_step}" if by_step else f"epoch {int(self.state.epoch or 0)}"
        message = f"Training in progress, {where}"
        # Linked, as training may delete the checkpoint before it is sent.
        kept = TemporaryDirectory(prefix=".push-", dir=args.output_dir)
        shutil.copytree(checkpoint_folder, Path(kept.name, "checkpoint"), copy_function=link)
        save_state(kept.name, self.data.resolved, self.data.bins)  # without what only a resume needs
        every = args.hub_strategy == HubStrategy.ALL_CHECKPOINTS
        place = (Path(checkpoint_folder).name if every else "last-checkpoint") if self._sends_checkpoints() else None
        to = (str(self.hub_model_id), message, args.hub_token, args.hub_revision)
        self._pushes += ((message, api.HUB.run_as_future(upload_checkpoint, kept, place, *to)),)

    def _finish_current_push(self) -> None:
        """Waits for the pushes that training began, and warns of those that failed."""
        pushes, self._pushes = self._pushes, ()
        failed = [(message, error) for message, push in pushes if (error := push.exception()) is not None]
        if failed:
            message, error = failed[-1]
            logger.warning(
                f'{len(failed)} of {len(pushes)} pushes during training failed, the last one "{message}": {error}'
            )

    def _sends_checkpoints(self) -> bool:
        return self.args.hub_strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS)
