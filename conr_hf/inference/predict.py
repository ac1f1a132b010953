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
from conr_hf.models.image_processors import read_options
from conr_hf.models.saved import load_saved, saved_unit, target_names
from conr_hf.utils.environment import current_device
from conr_hf.utils.files import check_writable, writing


def predict_images(
    model_name: str, places: Sequence[str], batch_size: int
) -> tuple[list[str], dict[Path, list[float]], dict[Path, str]]:
    """
    Predictions of a saved model for image files, or folders of them, searched with their subfolders: the names of the
    T targets; T predictions for each file, in label units; and for each file that cannot be read, why.
    """
    files = _image_files(places)
    model, processor = load_saved(model_name)
    model.eval().to(current_device())
    targets, options = target_names(model), read_options(model.config.to_dict())
    predictions: dict[Path, list[float]] = {}
    unreadable: dict[Path, str] = {}
    for start in tqdm(range(0, len(files), batch_size), "Predicting", disable=len(files) <= batch_size):
        images: dict[Path, Image.Image] = {}
        for file in files[start : start + batch_size]:
            try:
                images[file] = to_image(str(file), **options)
            except (OSError, ValueError, SyntaxError) as error:
                unreadable[file] = describe_error(error)
        if images:
            pixels = processor(images=list(images.values()), return_tensors="pt")["pixel_values"]
            with torch.inference_mode():
                logits = model(pixel_values=pixels.to(model.device)).logits.float().cpu()
            predictions |= dict(zip(images, logits.tolist(), strict=True))
    return targets, predictions, unreadable


def predict_maps(model_name: str, places: Sequence[str], output: str | None) -> tuple[int, dict[Path, str], str]:
    """Predicts a map for each image file, as [`predict_files`], and writes it into the folder `output`."""
    if output is None or Path(output).suffix in (".csv", ".json"):
        raise ValueError(f'"{model_name}" predicts maps, a file for each image. Name a folder for them with --output.')
    files = _image_files(places)
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


def _image_files(places: Sequence[str]) -> list[Path]:
    files: list[Path] = []
    for place in map(Path, places):
        if not (place.is_file() or place.is_dir()):
            raise ValueError(f'There is no image or folder "{place}".')
        found = [place] if place.is_file() else image_files(place.rglob("*"))
        if not found:
            raise ValueError(f'The folder "{place}" holds no image.')
        files += found
    return files
