"""`HubMixin`: the model card of a run, and its way to the Hub."""

import os
import shutil
from concurrent.futures import Future
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
from conr_hf.hub.push import upload_run
from conr_hf.hub.upload_files import checkpoint_upload_files, upload_files
from conr_hf.training.card_data import training_summary
from conr_hf.training.config.config import ConRConfig
from conr_hf.training.conr_state import save_state
from conr_hf.training.data_module import DataModule
from conr_hf.utils.run_folder import CARD, STATE

logger = logging.get_logger(__name__)


class HubMixin(Trainer):
    """
    Writes the model card and sends to the Hub what [`upload_files`] names; with the hub strategies `"checkpoint"` and
    `"all_checkpoints"` also checkpoints to resume from. A push that fails costs nothing else.
    """

    args: ConRConfig
    data: DataModule
    is_sharded: bool
    _pushes: tuple[tuple[str, Future[None]], ...] = ()  # during training, with their messages

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """
        As in `Trainer`, but by `args.model_card_template` or the package's own, and with the first of several tasks or
        names of data sets: from the files of the run where `conr-hf train` wrote them, else from what the trainer
        knows, with the errors that were logged last (of the best checkpoint, if that was loaded).
        """
        if not self.is_world_process_zero():
            return
        folder = Path(str(self.args.output_dir))
        options = ModelCardOptions(*args, **{"model_id": self.hub_model_id or self.args.hub_model_id, **kwargs})
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
        """As in `Trainer`, but refuses what could not be sent to it after training; see [`api.create_repo`]."""
        if not self.is_world_process_zero():
            return
        args, strategy = self.args, HubStrategy(self.args.hub_strategy)
        if self.is_sharded and strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
            raise ValueError(
                f"hub_strategy is {strategy.value}, but under FSDP and DeepSpeed a checkpoint lies in parts, which "
                "are not sent. Set it to every_save or end."
            )
        token, name = token or args.hub_token, args.hub_model_id or Path(str(args.output_dir)).absolute().name
        private = args.hub_private_repo if private is None else private
        self.hub_model_id = api.create_repo(name, token, private, args.hub_revision)  # type: ignore[assignment]

    def push_to_hub(  # type: ignore[override]
        self,
        commit_message: str = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ) -> CommitInfo | Future[CommitInfo] | None:
        """As in `Trainer`. A `ValueError` (refused) or `ConnectionError` (not reached) says how to send it again."""
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        self.save_model(_internal_call=True)
        if self.hub_model_id is None:
            self.init_hf_repo(token, private)
        if not self.is_world_process_zero():
            return None
        if isinstance(self.model, PreTrainedModel) and self.model.model_tags is not None:
            kwargs["tags"] = list(dict.fromkeys([*as_list(kwargs.get("tags")), *self.model.model_tags]))
        self.create_model_card(**kwargs)
        self._finish_current_push()
        to = (str(self.hub_model_id), commit_message, token or self.args.hub_token, revision or self.args.hub_revision)
        run = (Path(str(self.args.output_dir)), *to)
        return upload_run(*run) if blocking else api.HUB.run_as_future(upload_run, *run)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        args, state, strategy = self.args, self.state, HubStrategy(self.args.hub_strategy)
        is_busy = not args.hub_always_push and any(not push.done() for _, push in self._pushes)
        if is_busy or not self.is_world_process_zero() or strategy == HubStrategy.END:
            return
        self.callback_handler.on_push_begin(args, state, self.control)
        by_step = args.save_strategy == SaveStrategy.STEPS
        where = f"step {state.global_step}" if by_step else f"epoch {int(state.epoch or 0)}"
        message = f"Training in progress, {where}"
        place = {"checkpoint": "last-checkpoint", "all_checkpoints": Path(checkpoint_folder).name}.get(strategy.value)
        # Training may delete the checkpoint before it is sent, so its files get second names.
        kept = TemporaryDirectory(prefix=".push-", dir=args.output_dir)
        checkpoint = Path(kept.name, "checkpoint")
        try:
            shutil.copytree(checkpoint_folder, checkpoint, copy_function=os.link)
        except OSError:  # a disk without links
            shutil.copytree(checkpoint_folder, checkpoint, dirs_exist_ok=True)
        save_state(kept.name, self.data.resolved, self.data.bins)  # without what only a resume needs

        def send() -> None:
            repo, branch = str(self.hub_model_id), args.hub_revision
            with kept:
                files = {**upload_files(checkpoint), STATE: Path(kept.name, STATE)}
                api.upload(files, repo, message, args.hub_token, branch)
                if place is not None:
                    files = {f"{place}/{name}": file for name, file in checkpoint_upload_files(checkpoint).items()}
                    api.upload(files, repo, f"{message}, checkpoint", args.hub_token, branch)

        self._pushes += ((message, api.HUB.run_as_future(send)),)

    def _finish_current_push(self) -> None:
        """Waits for the pushes that training began, and warns of those that failed."""
        pushes, self._pushes = self._pushes, ()
        if failed := [(message, error) for message, push in pushes if (error := push.exception()) is not None]:
            which = f'{len(failed)} of {len(pushes)} pushes during training failed, the last one "{failed[-1][0]}"'
            logger.warning(f"{which}: {failed[-1][1]}")
