"""What a run sends to its trackers (`report_to`) beyond what `Trainer` does: its name and its pictures."""

from collections.abc import Sequence
from datetime import datetime
from importlib import import_module
from pathlib import Path

import numpy as np
from PIL import Image
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.integrations.integration_utils import (
    MLflowCallback,
    TensorBoardCallback,
    TrackioCallback,
    WandbCallback,
)


def name_run(args: TrainingArguments) -> None:
    """Names a run without a name after its folder and the time, so that Trackio keeps all its errors in one run."""
    if args.report_to and args.run_name is None:
        args.run_name = f"{Path(str(args.output_dir)).name}-{datetime.now():%Y-%m-%d-%H-%M-%S}"


def log_pictures(trainer: Trainer, pictures: Sequence[Path]) -> None:
    """
    Sends PNG files, named by their stems, to those trackers of a finished run that take pictures.

    A tracker that fails is reported on the terminal and stops nothing.
    """
    if not trainer.is_world_process_zero():
        return
    for callback in trainer.callback_handler.callbacks:
        for picture in pictures:
            try:
                _log_picture(callback, picture, trainer.state.global_step)
            except Exception as error:  # a tracker may be out of reach, or full
                print(f"{picture.name} did not reach {type(callback).__name__.removesuffix('Callback')}: {error}")


def _log_picture(callback: TrainerCallback, picture: Path, step: int) -> None:
    if isinstance(callback, TensorBoardCallback):
        # The callback has closed its writer by now; another one adds to the same folder.
        with callback._SummaryWriter(log_dir=callback.logging_dir) as writer, Image.open(picture) as image:
            writer.add_image(picture.stem, np.asarray(image.convert("RGB")), step, dataformats="HWC")
    elif isinstance(callback, MLflowCallback):
        mlflow = import_module("mlflow")
        run = mlflow.active_run() or mlflow.last_active_run()  # the callback has ended its own by now
        mlflow.MlflowClient().log_artifact(run.info.run_id, str(picture))
    elif isinstance(callback, TrackioCallback | WandbCallback):
        tracker = import_module("trackio" if isinstance(callback, TrackioCallback) else "wandb")
        tracker.log({picture.stem: tracker.Image(str(picture))})
