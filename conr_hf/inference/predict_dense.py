"""Predicted maps of images, written as arrays and pictures."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from tqdm.auto import tqdm
from transformers import BaseImageProcessor, PreTrainedModel

from conr_hf.data.images import describe_error, to_image
from conr_hf.metrics.validation import DIVERGED
from conr_hf.models.image_processors import read_options
from conr_hf.models.outputs import prediction, resized
from conr_hf.plots import map_pictures
from conr_hf.utils.environment import current_device


def predicted_map(
    model: PreTrainedModel, processor: BaseImageProcessor, image: Image.Image, size: tuple[int, int]
) -> npt.NDArray[np.float32]:
    """
    The map in label units that a dense model, in evaluation mode, predicts for an image, interpolated linearly to
    `size`, height and width.
    """
    pixels = processor(images=[image], return_tensors="pt")["pixel_values"]
    with torch.inference_mode():
        maps = prediction(model(pixel_values=pixels.to(model.device))).float()
    found: npt.NDArray[np.float32] = resized(maps, size)[0].cpu().numpy()
    return found


def predict_files(
    model: PreTrainedModel, processor: BaseImageProcessor, files: Sequence[Path], folder: Path, target: str, unit: str
) -> tuple[int, dict[Path, str], str]:
    """
    Predicts a map for each image file and writes it into `folder`, under the image's name: as `.npy`, float32 in label
    units at the image's size, and as a `.png` picture beside the image. Returns how many maps were written; for each
    file that cannot be read, why; and why there are no pictures, or `""`.

    Raises:
        `ValueError`: before anything is written, if two maps would have the same name, or a picture would replace an
            image; and at the first map that is not finite.
    """
    _check_names(files, folder)
    model.eval().to(current_device())
    options = read_options(model.config.to_dict())
    unreadable: dict[Path, str] = {}
    no_pictures = ""
    for file in tqdm(files, "Predicting", disable=len(files) == 1):
        try:
            image = to_image(str(file), **options)
        except (OSError, ValueError, SyntaxError) as error:
            unreadable[file] = describe_error(error)
            continue
        found = predicted_map(model, processor, image, (image.height, image.width))
        if not np.isfinite(found).all():
            raise ValueError(f'The model predicts NaN or infinite values for "{file}". {DIVERGED}')
        np.save(folder / f"{file.stem}.npy", found)
        try:
            path = folder / f"{file.stem}.png"
            map_pictures([image.convert("RGB")], None, [found], path, unit=unit, title=file.name, target=target)
        except ImportError as error:
            no_pictures = str(error)
    return len(files) - len(unreadable), unreadable, no_pictures


def _check_names(files: Sequence[Path], folder: Path) -> None:
    first: dict[str, Path] = {}
    for file in files:
        if file.resolve().parent == folder.resolve():
            raise ValueError(
                f'"{file}" lies in the folder "{folder}", where its picture might replace it. Name another --output.'
            )
        other = first.setdefault(file.stem, file)
        if other != file:
            raise ValueError(
                f'"{other}" and "{file}" would both be written as {file.stem}.npy. Predict them into two folders.'
            )
