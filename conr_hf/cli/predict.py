"""`conr-hf predict`: predictions of a saved model for images, or for the images of a data set."""

import sys
from argparse import Namespace
from pathlib import Path

from conr_hf.data.images import image_files
from conr_hf.data.local import load_local
from conr_hf.data.tables import TABLES
from conr_hf.inference.conformal import PredictionIntervals, load_intervals
from conr_hf.inference.predict import Predictions, predict_images, predict_maps, predict_rows, write_predicted
from conr_hf.models.saved import predicts_maps
from conr_hf.utils.files import check_writable
from conr_hf.utils.run_folder import INTERVALS, results_of
from conr_hf.utils.tables import format_table


def predict_saved(options: Namespace) -> int:
    """
    Predicts, and prints the predictions or writes them into `--output`; nothing is written where nothing could be
    read. Returns the exit code, 2 where an image cannot be read.
    """
    data = _data_of(options)
    if predicts_maps(options.model):
        return _write_maps(options, data)
    if options.output is not None:
        if Path(options.output).suffix not in (".csv", ".json"):
            raise ValueError(f'--output "{options.output}" must end in .csv or .json.')
        check_writable(str(Path(options.output).parent))
    intervals = _intervals(options.model) if options.interval else None
    if data is None:
        found = predict_images(options.model, options.images, options.batch_size)
    else:
        column, files = _image_files(options, data)
        splits = load_local(data, column, data_config=options.data_config, **files)
        if options.split is not None and options.split not in splits:
            raise ValueError(f'The data has no split "{options.split}"; it has {", ".join(splits)}.')
        wanted = {name: rows for name, rows in splits.items() if options.split in (None, name)}
        found = predict_rows(options.model, wanted, column, options.batch_size)
    _show(found, intervals, options.output)
    for name, reason in found.unreadable.items():
        print(f"conr-hf: {name} cannot be read: {reason}.", file=sys.stderr)
    return 2 if found.unreadable else 0


def _data_of(options: Namespace) -> str | None:
    """The data set whose images are wanted; `None` for image files."""
    tables = [place for place in options.images if _is_table(Path(place))]
    if (len(options.images) > 0) == (options.data is not None):
        raise ValueError("Name what to predict: either images, folders or a table behind the model, or --data.")
    if options.data is None and not tables:
        if options.split is not None:
            raise ValueError("--split is of a table or data set, and image files have none. Leave it out.")
        return None
    if len(options.images) > 1:
        raise ValueError(f'"{tables[0]}" is a table of images, which is predicted by itself. Name nothing beside it.')
    return options.data or tables[0]


def _image_files(options: Namespace, data: str) -> tuple[str, dict[str, str | None]]:
    """The column of the images, and how it names files: as in the run's own data, where the options do not say."""
    recipe = results_of(options.model).get("recipe", {})
    folder = recipe.get("image_folder")
    if folder is not None and not (Path(data).parent / folder).is_dir():
        folder = None
    files = {"image_folder": options.image_folder or folder}
    files["image_suffix"] = options.image_suffix or recipe.get("image_suffix")
    return options.image_column or recipe.get("image_column") or "image", files


def _is_table(place: Path) -> bool:
    """Whether it is a table of images, or a folder of Parquet files and no image."""
    if place.is_dir():
        return any(place.rglob("*.parquet")) and not image_files(place.rglob("*"))
    return place.is_file() and place.suffix.lower() in TABLES


def _intervals(model: str) -> PredictionIntervals:
    intervals = load_intervals(model)
    if intervals is None:
        raise ValueError(
            f'"{model}" has no {INTERVALS}, which conr-hf train writes beside a model where there is a validation '
            "split of 20 images or more. Leave out --interval."
        )
    return intervals


def _show(found: Predictions, intervals: PredictionIntervals | None, output: str | None) -> None:
    if len(found.values) == 0:
        print("No image could be read, so nothing is predicted.", file=sys.stderr)
        return
    columns = found.columns(intervals)
    if output is not None:
        write_predicted(Path(output), columns)
        print(f"{len(found.values)} prediction{'s' * (len(found.values) != 1)} written to {output}")
        return
    texts = [[cell if isinstance(cell, str) else f"{cell:.5g}" for cell in column] for column in columns.values()]
    print(format_table([list(columns), *map(list, zip(*texts, strict=True))]))


def _write_maps(options: Namespace, data: str | None) -> int:
    if data is not None:
        raise ValueError(
            f'"{options.model}" predicts maps, a file for each image, named as the image is. Give image files, or '
            "folders of them."
        )
    if options.interval:
        raise ValueError(f'"{options.model}" predicts maps, which have no intervals. Leave out --interval.')
    count, unreadable, no_pictures = predict_maps(options.model, options.images, options.output)
    what = "arrays (.npy)" if no_pictures else "arrays (.npy) and pictures (.png)"
    print(f"{count} map{'s' * (count != 1)} written to {options.output}, as {what}")
    if no_pictures:
        print(f"No pictures: {no_pictures}")
    for path, reason in unreadable.items():
        print(f"conr-hf: {path} cannot be read: {reason}.", file=sys.stderr)
    return 2 if unreadable else 0
