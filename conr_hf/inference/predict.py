"""Predictions of a saved model for image files."""

import json
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import torch
from PIL import Image
from tqdm.auto import tqdm

from conr_hf.data.images import describe_error, image_files, to_image
from conr_hf.inference.predict_dense import predict_files
from conr_hf.models.saved import load_saved, saved_unit, target_names
from conr_hf.utils.environment import current_device
from conr_hf.utils.files import check_writable, writing


def predict_images(
    model_name: str, places: Sequence[str], batch_size: int
) -> tuple[list[str], dict[Path, list[float]], dict[Path, str]]:
    """
    Predictions of a saved model for image files.

    Args:
        model_name (`str`): Run folder, checkpoint or Hub id.
        places (`Sequence[str]`): Image files, or folders of them, searched with their subfolders.
        batch_size (`int`): Images in a batch.

    Returns:
        Names of the T targets; T predictions for each file, in label units; for each file that cannot be read, why.

    Raises:
        `ValueError`: if there is no such model, file or folder, or no image in a folder.
    """
    files = [file for place in places for file in _image_files(Path(place))]
    model, processor = load_saved(model_name)
    model.eval().to(current_device())
    targets = target_names(model)
    predictions: dict[Path, list[float]] = {}
    unreadable: dict[Path, str] = {}
    for start in tqdm(range(0, len(files), batch_size), "Predicting", disable=len(files) <= batch_size):
        images: dict[Path, Image.Image] = {}
        for file in files[start : start + batch_size]:
            try:
                images[file] = to_image(str(file))
            except (OSError, ValueError, SyntaxError) as error:
                unreadable[file] = describe_error(error)
        if images:
            pixels = processor(images=list(images.values()), return_tensors="pt")["pixel_values"]
            with torch.inference_mode():
                logits = model(pixel_values=pixels.to(model.device)).logits.float().cpu()
            predictions |= dict(zip(images, logits.tolist(), strict=True))
    return targets, predictions, unreadable


def predict_maps(model_name: str, places: Sequence[str], output: str | None) -> tuple[int, dict[Path, str], str]:
    """
    Predicts a map for each image file and writes it into the folder `output`.

    Args:
        model_name (`str`): Run folder, checkpoint or Hub id.
        places (`Sequence[str]`): As in [`predict_images`].
        output (`str`, *optional*): The folder; created if missing.

    Returns, raises:
        As [`predict_files`]; `ValueError` also as [`predict_images`], and without a folder.
    """
    if output is None or Path(output).suffix in (".csv", ".json"):
        raise ValueError(f'"{model_name}" predicts maps, a file for each image. Name a folder for them with --output.')
    files = [file for place in places for file in _image_files(Path(place))]
    model, processor = load_saved(model_name, maps=True)
    check_writable(output)
    with writing(Path(output)):
        return predict_files(model, processor, files, Path(output), target_names(model)[0], saved_unit(model_name))


def write_predicted(path: Path, targets: Sequence[str], predictions: dict[Path, list[float]]) -> None:
    """Writes predictions to a CSV or JSON file: the image, and a column for each target."""
    rows = [[str(file), *values] for file, values in predictions.items()]
    table = pd.DataFrame(rows, columns=["image", *targets])
    with writing(path.parent):
        if path.suffix == ".json":
            path.write_text(json.dumps(table.to_dict("records"), indent=2) + "\n", encoding="utf-8")
        else:
            table.to_csv(path, index=False)


def _image_files(place: Path) -> list[Path]:
    if place.is_file():
        return [place]
    if not place.is_dir():
        raise ValueError(f'There is no image or folder "{place}".')
    if not (files := image_files(place.rglob("*"))):
        raise ValueError(f'The folder "{place}" holds no image.')
    return files
