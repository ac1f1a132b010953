"""Saved models in use: errors on a data set, predictions for images."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from PIL import Image
from tqdm.auto import tqdm

from conr_hf.breaking import check_writable, writing
from conr_hf.config import ConRConfig
from conr_hf.data.rows import describe, label_cells, to_image
from conr_hf.map_predictions import predict_files
from conr_hf.recipe import Recipe
from conr_hf.recipe_data import load_data
from conr_hf.report import hardware, versions
from conr_hf.run import evaluate
from conr_hf.saved import load_saved, targets_of, unit_beside
from conr_hf.state import load_state
from conr_hf.trainer import ConRTrainer


def evaluate_saved(
    model_name: str,
    *,
    benchmark: str | None,
    benchmark_source: str | None = None,
    data: str | None,
    streaming: bool,
    split: str,
    image_column: str,
    label_columns: Sequence[str] | None,
    batch_size: int,
    skip_bad_rows: bool,
    map_scale: float | None,
    map_invalid: float | None,
    output: str | None,
    command: str,
) -> None:
    """
    Prints the errors of a saved model on a split, per shot, and writes them into `output` if it is given.

    Bins and shots are those saved beside the model; a model without them is judged by the data's training split. Maps
    are read as the run read its own, unless `map_scale` or `map_invalid` is given.

    Raises:
        `ValueError`: if model, data or split cannot be had.
    """
    if output is not None:
        check_writable(output)
    model, processor = load_saved(model_name, maps=True)
    saved = load_state(model_name)
    columns = label_columns or (saved[0].label_columns if saved is not None else ["label"])
    if saved is not None:
        map_scale = saved[0].map_scale if map_scale is None else map_scale
        map_invalid = saved[0].map_invalid if map_invalid is None else map_invalid
    with TemporaryDirectory() as scratch:
        args = ConRConfig(
            scratch,
            image_column=image_column,
            label_columns=list(columns),
            per_device_eval_batch_size=batch_size,
            skip_bad_rows=skip_bad_rows,
            map_scale=1.0 if map_scale is None else map_scale,
            map_invalid=map_invalid,
        )
        targets = targets_of(model)
        sets, targets, unit = load_data(
            Recipe(
                benchmark=benchmark,
                benchmark_source=benchmark_source,
                data=data,
                streaming=streaming,
                target=targets,
            ),
            args,
        )
        unit = unit or unit_beside(model_name)
        if split not in sets:
            raise ValueError(f'The data has no split "{split}"; it has {", ".join(sets)}. Name one with --split.')
        label_cells(dict.fromkeys(sets[split].column_names), args.label_columns, f'split "{split}"')
        train = sets.get("train") if saved is None else None
        trainer = ConRTrainer(model, args, train_dataset=train, processing_class=processor)
        facts = {
            "schema": 1,
            "command": command,
            "model": model_name,
            "versions": versions(),
            "hardware": hardware(),
            "unit": unit,
        }
        with writing(Path(output or scratch)):
            evaluate(trainer, {split: sets[split]}, targets, unit, facts, Path(output) if output else None)


def predict_images(
    model_name: str, places: Sequence[str], batch_size: int
) -> tuple[list[str], dict[Path, list[float]], dict[Path, str]]:
    """
    Predictions of a saved model for image files.

    Args:
        model_name (`str`): Run folder, checkpoint or Hub id.
        places (`Sequence[str]`): Image files, or folders that are searched for them.
        batch_size (`int`): Images in a batch.

    Returns:
        Names of the T targets; T predictions for each file, in label units; and for each file that is no image, why.

    Raises:
        `ValueError`: if there is no such model, file or folder, or no image in a folder.
    """
    files = [file for place in places for file in _image_files(Path(place))]
    model, processor = load_saved(model_name)
    model.eval().to(torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu")
    targets = targets_of(model)
    predictions: dict[Path, list[float]] = {}
    unreadable: dict[Path, str] = {}
    for start in tqdm(range(0, len(files), batch_size), "Predicting", disable=len(files) <= batch_size):
        images: dict[Path, Image.Image] = {}
        for file in files[start : start + batch_size]:
            try:
                images[file] = to_image(str(file))
            except (OSError, ValueError, SyntaxError) as error:
                unreadable[file] = describe(error)
        if images:
            pixels = processor(images=list(images.values()), return_tensors="pt")["pixel_values"]
            with torch.inference_mode():
                logits = model(pixel_values=pixels.to(model.device)).logits.float().cpu()
            predictions |= dict(zip(images, logits.tolist(), strict=True))
    return targets, predictions, unreadable


def predict_maps(model_name: str, places: Sequence[str], output: str | None) -> tuple[int, dict[Path, str], str]:
    """
    Maps that a saved model predicts for image files, written into the folder `output`.

    Args:
        model_name (`str`): Run folder, checkpoint or Hub id.
        places (`Sequence[str]`): As in [`predict_images`].
        output (`str`, *optional*): The folder; it is made.

    Returns, raises:
        As [`~conr_hf.map_predictions.predict_files`]; `ValueError` also as [`predict_images`], and without a folder.
    """
    if output is None or Path(output).suffix in (".csv", ".json"):
        raise ValueError(f'"{model_name}" predicts maps, a file for each image. Name a folder for them with --output.')
    files = [file for place in places for file in _image_files(Path(place))]
    model, processor = load_saved(model_name, maps=True)
    check_writable(output)
    with writing(Path(output)):
        return predict_files(model, processor, files, Path(output), targets_of(model)[0], unit_beside(model_name))


def write_predicted(path: Path, targets: Sequence[str], predictions: dict[Path, list[float]]) -> None:
    """Writes predictions to a CSV or JSON file: the image, and a column for each target."""
    rows = [{"image": str(file), **dict(zip(targets, values, strict=True))} for file, values in predictions.items()]
    if path.suffix == ".json":
        with writing(path.parent):
            path.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
        return
    with writing(path.parent), path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["image", *targets])
        writer.writeheader()
        writer.writerows(rows)


def _image_files(place: Path) -> list[Path]:
    if place.is_file():
        return [place]
    if not place.is_dir():
        raise ValueError(f'There is no image or folder "{place}".')
    known = Image.registered_extensions()
    files = sorted(file for file in place.rglob("*") if file.suffix.lower() in known)
    if not files:
        raise ValueError(f'The folder "{place}" holds no image.')
    return files
