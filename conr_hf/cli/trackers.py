"""What a run sends to its trackers (`report_to`) beyond what `Trainer` does: its name and its pictures."""

from collections.abc import Callable, Sequence
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
    Sends pictures to the trackers of a finished run that take any: TensorBoard, Trackio, MLflow and Weights & Biases.

    A tracker that fails is reported on the terminal and stops nothing.

    Args:
        trainer (`Trainer`): After `train()`.
        pictures (`Sequence[pathlib.Path]`): PNG files; their stems become their names.
    """
    if not trainer.is_world_process_zero():
        return
    for callback in trainer.callback_handler.callbacks:
        log = _LOGS.get(type(callback))
        if log is None:
            continue
        for picture in pictures:
            try:
                log(callback, picture, trainer.state.global_step)
            except Exception as error:  # a tracker may be out of reach, or full
                print(f"{picture.name} did not reach {type(callback).__name__.removesuffix('Callback')}: {error}")


def _to_tensorboard(callback: TensorBoardCallback, picture: Path, step: int) -> None:
    # The callback has closed its writer by now; another one adds to the same folder.
    with callback._SummaryWriter(log_dir=callback.logging_dir) as writer, Image.open(picture) as image:
        writer.add_image(picture.stem, np.asarray(image.convert("RGB")), step, dataformats="HWC")


def _to_trackio(callback: TrackioCallback, picture: Path, step: int) -> None:
    trackio = import_module("trackio")
    trackio.log({picture.stem: trackio.Image(str(picture))})


def _to_mlflow(callback: MLflowCallback, picture: Path, step: int) -> None:
    mlflow = import_module("mlflow")
    run = mlflow.active_run() or mlflow.last_active_run()  # the callback has ended its own by now
    mlflow.MlflowClient().log_artifact(run.info.run_id, str(picture))


def _to_wandb(callback: WandbCallback, picture: Path, step: int) -> None:
    wandb = import_module("wandb")
    wandb.log({picture.stem: wandb.Image(str(picture))})


_LOGS: dict[type[TrainerCallback], Callable[..., None]] = {
    TensorBoardCallback: _to_tensorboard,
    TrackioCallback: _to_trackio,
    MLflowCallback: _to_mlflow,
    WandbCallback: _to_wandb,
}
