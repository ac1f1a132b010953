"""NYUD2-DIR as its authors publish it: photographs of rooms, and the depth of every pixel."""

import csv
import os
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from datasets import Dataset
from PIL import Image

from conr_hf.data.image_paths import path_inside
from conr_hf.data.images import describe_error, open_image, to_image
from conr_hf.data.label_maps import to_map

TRAIN, TEST, MASK = "nyu2_train.csv", "nyu2_test.csv", "test_balanced_mask.npy"
SHORT_SIDE, WIDTH, HEIGHT = 240, 304, 228  # photographs are scaled to a short side of 240 pixels, then cropped
VALIDATION_ROWS, EVERY = 654, 20
METRES = {8: 10 / 255, 16: 1 / 1000}  # in a stored number, by its bits


def rooms_folder(location: Path) -> Path | None:
    """The folder of the published lists: `location` itself, or its folder `data`; `None` if neither."""
    return next((folder for folder in (location, location / "data") if (folder / TRAIN).is_file()), None)


def load_nyud2(folder: Path) -> dict[str, Dataset]:
    """
    NYUD2-DIR from its published layout: `"train"`, `"validation"` (absent if there is a single room) and `"test"`,
    with columns `image` and `label`, a float32 map in metres. Files are read when their row is.

    `nyu2_train.csv` and `nyu2_test.csv` name a photograph and its depth map on each line, without a header;
    `test_balanced_mask.npy`, of shape `(654, 228, 304)`, says which pixels of the test maps count, as many at every
    depth. Photographs are scaled to a short side of 240 pixels and cropped to the middle 304 x 228. Training maps
    (stored in 8 bits, 255 is 10 m) have half as many pixels a side, 152 x 114; test maps (16 bits, millimetres) have
    304 x 228, NaN where the mask is 0. Maps are scaled by taking the nearest pixel, twice where it is done twice, so
    that every depth is one that was measured; the published code interpolates in the second step.

    No validation split is published. Frames of a film of a room are much alike, so every twentieth room is set apart
    from training, and 654 frames spread evenly over these are the validation split.
    """
    train, test = _listed(folder, TRAIN), _listed(folder, TEST)
    mask = folder / MASK
    if not mask.is_file():
        raise ValueError(f'there is no {MASK} in "{folder}", without which the test split is not the balanced one')
    shape, needed = _mask(str(mask)).shape, (len(test), HEIGHT, WIDTH)
    if shape != needed:
        raise ValueError(f"{MASK} has shape {shape}, where {TEST} needs {needed}")
    # The room that a film shows, of which there may be parts: basement_0001a_out and basement_0001b_out.
    rooms = [re.sub(r"[a-z]?_out$", "", Path(photograph).parent.name) for photograph, _ in train]
    names = sorted(set(rooms))
    apart = set(names[::EVERY]) if len(names) > 1 else set()
    kept = [pair for pair, room in zip(train, rooms, strict=True) if room not in apart]
    validation = [pair for pair, room in zip(train, rooms, strict=True) if room in apart]
    places = _nearest(len(validation), min(len(validation), VALIDATION_ROWS))
    splits = {
        "train": _rows(kept, 8, None),
        "validation": _rows([validation[place] for place in places], 8, None),
        "test": _rows(test, 16, str(mask)),
    }
    return {split: rows for split, rows in splits.items() if len(rows) > 0}


def _listed(folder: Path, name: str) -> list[tuple[str, str]]:
    """Paths of the photograph and the map on every line of a list."""
    if not (folder / name).is_file():
        raise ValueError(f'there is no {name} in "{folder}"')
    root = os.path.abspath(folder)
    pairs = []
    with (folder / name).open(newline="", encoding="utf-8-sig") as file:
        for line, cells in enumerate(csv.reader(file), start=1):
            if len(cells) != 2:
                raise ValueError(
                    f"{name}, line {line:,}: it has {len(cells)} cells, not a photograph and its depth map"
                )
            paths = []
            for cell in cells:
                # Published paths begin with the name of the folder that the lists lie in.
                first, _, rest = cell.strip().partition("/")
                inside = rest if rest and not os.path.exists(os.path.join(root, first)) else cell.strip()
                path = path_inside(root, inside)
                if path is None:
                    raise ValueError(f'{name}, line {line:,}: "{cell}" lies outside the folder "{folder}"')
                if not os.path.isfile(path):
                    raise ValueError(f'{name}, line {line:,}: there is no file "{path}"')
                paths.append(path)
            pairs.append((paths[0], paths[1]))
    if not pairs:
        raise ValueError(f"{name} names no photograph")
    return pairs


def _mask(path: str) -> npt.NDArray[Any]:
    mask: npt.NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    return mask


def _rows(pairs: list[tuple[str, str]], bits: int, mask: str | None) -> Dataset:
    columns = {"image": [pair[0] for pair in pairs], "label": [pair[1] for pair in pairs]}
    rows = Dataset.from_dict({**columns, "frame": list(range(len(pairs)))})
    return rows.with_transform(partial(_read, bits=bits, mask=mask))


def _read(batch: Mapping[str, list[Any]], bits: int, mask: str | None) -> dict[str, list[Any]]:
    images, maps = [], []
    for photograph, depth, frame in zip(batch["image"], batch["label"], batch["frame"], strict=True):
        image, label = _frame(photograph, depth, bits, 1 if mask is not None else 2)
        if mask is not None:
            label[_mask(mask)[frame] == 0] = np.nan
        images.append(image)
        maps.append(label)
    return {"image": images, "label": maps}


def _frame(photograph: str, depth: str, bits: int, step: int) -> tuple[Image.Image, npt.NDArray[np.float32]]:
    """The middle of a photograph and of its depth in metres, NaN where it is 0, at every `step`-th pixel a side."""
    path = photograph
    try:
        image, path = to_image(photograph), depth
        stored = open_image(depth)
        metres = to_map(stored, METRES[bits], invalid=0)
    except (OSError, ValueError) as error:
        raise ValueError(f'"{path}" cannot be read: {describe_error(error)}') from error
    of_image, of_map = (f"{one.width} x {one.height}" for one in (image, stored))
    width, height = (side * SHORT_SIDE // min(image.size) for side in image.size)
    if width < WIDTH or height < HEIGHT:
        raise ValueError(f'"{photograph}" has {of_image} pixels, too narrow a shape; expected: 640 x 480')
    found = 8 if stored.mode == "L" else 16
    if found != bits:
        raise ValueError(f'"{depth}" has {found} bits a pixel, where depths of this split have {bits}')
    if stored.size != image.size:
        raise ValueError(f'"{depth}" has {of_map} pixels and its photograph {of_image}')
    left, top = round((width - WIDTH) / 2), round((height - HEIGHT) / 2)
    rows = _nearest(image.height, height)[top : top + HEIGHT][_nearest(HEIGHT, HEIGHT // step)]
    columns = _nearest(image.width, width)[left : left + WIDTH][_nearest(WIDTH, WIDTH // step)]
    scaled = image.resize((width, height), Image.Resampling.BILINEAR)
    return scaled.crop((left, top, left + WIDTH, top + HEIGHT)), metres[np.ix_(rows, columns)]


def _nearest(size: int, to: int) -> npt.NDArray[np.int64]:
    """For each of `to` pixels the one of `size` that lies at its middle."""
    return ((np.arange(to) + 0.5) * size / max(to, 1)).astype(np.int64)
