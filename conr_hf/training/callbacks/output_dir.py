"""`OutputDirCallback`: what another run left in the output folder does not pass for this one's."""

from typing import Any

from accelerate import Accelerator
from transformers import TrainerCallback, TrainerState
from transformers.utils import logging

from conr_hf.utils.run_folder import clear_run, files_of_run

logger = logging.get_logger(__name__)


class OutputDirCallback(TrainerCallback):
    """
    Before the first step of a run that does not resume, removes what another run left in `output_dir`, with
    `overwrite_output_dir`, or else warns of it. A second `train()` of one trainer goes on in its folder.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self._own: str | None = None  # the folder that this trainer has trained into

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        folder, is_own = str(args.output_dir), self._own == str(args.output_dir)
        self._own = folder
        if is_own or state.global_step or state.is_hyper_param_search:
            return
        if args.should_save and (found := files_of_run(folder)):
            if args.overwrite_output_dir:
                clear_run(folder)
            else:
                logger.warning(
                    f'"{folder}" holds another run ({", ".join(found)}), whose files stay beside those of this one. '
                    "Name another output_dir, or set overwrite_output_dir to true, which removes them."
                )
        self.accelerator.wait_for_everyone()
