"""Predictions of a saved model for image files, and for the images of a data set."""

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import torch
from PIL import Image
from tqdm.auto import tqdm

from conr_hf.data.columns import cell_of, check_column, undecoded
from conr_hf.data.images import describe_error, image_files, to_image
from conr_hf.inference.conformal import PredictionIntervals
from conr_hf.inference.predict_dense import predict_files
from conr_hf.models.image_processors import read_options
from conr_hf.models.saved import load_saved, saved_unit, target_names
from conr_hf.utils.environment import current_device
from conr_hf.utils.files import check_writable, writing


@dataclass
class Predictions:
    """Predictions of a saved model, and the images that they are for."""

    targets: list[str]  # T names
    images: list[dict[str, Any]] = field(default_factory=list)  # N; of each its file, or its split, row and path
    values: list[list[float]] = field(default_factory=list)  # N rows of T predictions, in label units
    unreadable: dict[str, str] = field(default_factory=dict)  # why an image cannot be read

    def columns(self, intervals: PredictionIntervals | None = None) -> dict[str, list[Any]]:
        """The images and a column for each target, ready for a table; with `intervals` also both of their ends."""
        values = np.array(self.values)
        ends: dict[str, list[Any]] = {}
        if intervals is not None:
            values, low, high = intervals.ends(values)
            for place, target in enumerate(self.targets):
                ends |= {f"{target}_low": low[:, place].tolist(), f"{target}_high": high[:, place].tolist()}
        found = {name: [image[name] for image in self.images] for name in self.images[0]}
        return {**found, **dict(zip(self.targets, values.T.tolist(), strict=True)), **ends}


def predict_images(model_name: str, places: Sequence[str], batch_size: int) -> Predictions:
    """Predictions of a saved model for image files, or folders of them, searched with their subfolders."""
    files = [str(file) for file in _image_files(places)]
    images = ((file, {"image": file}, partial(str, file)) for file in files)
    return _predict(model_name, images, len(files), batch_size)


def predict_rows(
    model_name: str, splits: Mapping[str, datasets.Dataset], image_column: str, batch_size: int
) -> Predictions:
    """Predictions of a saved model for the images in a column of a data set's splits; labels are not needed."""
    for split, rows in splits.items():
        check_column(image_column, rows.column_names, f'split "{split}"', "--image_column")
    return _predict(model_name, _images_of(splits, image_column), sum(map(len, splits.values())), batch_size)


def predict_maps(model_name: str, places: Sequence[str], output: str | None) -> tuple[int, dict[Path, str], str]:
    """Predicts a map for each image file, as [`predict_files`], and writes it into the folder `output`."""
    if output is None or Path(output).suffix in (".csv", ".json"):
        raise ValueError(f'"{model_name}" predicts maps, a file for each image. Name a folder for them with --output.')
    files = _image_files(places)
    model, processor = load_saved(model_name, maps=True)
    check_writable(output)
    with writing(Path(output)):
        return predict_files(model, processor, files, Path(output), target_names(model)[0], saved_unit(model_name))


def write_predicted(path: Path, columns: Mapping[str, Sequence[Any]]) -> None:
    """Writes columns of predictions to a CSV or JSON file, which gets its name when it is complete."""
    table, unfinished = pd.DataFrame(columns), path.with_name(path.name + ".part")
    with writing(path.parent):
        if path.suffix == ".json":
            unfinished.write_text(json.dumps(table.to_dict("records"), indent=2) + "\n", encoding="utf-8")
        else:
            table.to_csv(unfinished, index=False)
        os.replace(unfinished, path)


_Images = Iterator[tuple[str, dict[str, Any], Callable[[], Any]]]  # what messages and tables name it, and its cell


def _predict(model_name: str, images: _Images, total: int, batch_size: int) -> Predictions:
    model, processor = load_saved(model_name)
    model.eval().to(current_device())
    found, options = Predictions(target_names(model)), read_options(model.config.to_dict())
    for _ in tqdm(range(0, total, batch_size), "Predicting", disable=total <= batch_size):
        batch: list[Image.Image] = []
        for name, described, cell in islice(images, batch_size):
            try:
                batch.append(to_image(cell(), **options))
                found.images.append(described)
            except (OSError, ValueError, SyntaxError) as error:
                found.unreadable[name] = describe_error(error)
        if batch:
            pixels = processor(images=batch, return_tensors="pt")["pixel_values"]
            with torch.inference_mode():
                found.values += model(pixel_values=pixels.to(model.device)).logits.float().cpu().tolist()
    return found


def _images_of(splits: Mapping[str, datasets.Dataset], column: str) -> _Images:
    for split, rows in splits.items():
        stored: Any = undecoded(rows, [column])
        for index in range(len(rows)):
            row = stored[index]
            path = row[column].get("path") if isinstance(row[column], dict) else None
            described = {"split": split, "row": index, "image": path or ""}
            yield f"{split}, row {index:,}", described, partial(cell_of, rows, row, index, column)


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
