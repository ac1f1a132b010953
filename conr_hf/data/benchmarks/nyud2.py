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

from conr_hf.data.images import describe_error, open_image, to_image
from conr_hf.data.label_maps import to_map
from conr_hf.data.local import path_inside

TRAIN, TEST, MASK = "nyu2_train.csv", "nyu2_test.csv", "test_balanced_mask.npy"
SHORT_SIDE, WIDTH, HEIGHT = 240, 304, 228  # photographs are scaled to a short side of 240 pixels, then cropped
VALIDATION_ROWS, EVERY = 654, 20
METRES = {8: 10 / 255, 16: 1 / 1000}  # in a stored number, by its bits


def rooms_folder(location: Path) -> Path | None:
    """The folder of the published lists: `location` itself, or its folder `data`; `None` if neither."""
    return next((folder for folder in (location, location / "data") if (folder / TRAIN).is_file()), None)


def load_nyud2(folder: Path) -> dict[str, Dataset]:
    """
    NYUD2-DIR from its published layout.

    `nyu2_train.csv` and `nyu2_test.csv` name a photograph and its depth map on each line, without a header;
    `test_balanced_mask.npy`, of shape `(654, 228, 304)`, says which pixels of the test maps count, as many at every
    depth. Photographs are scaled to a short side of 240 pixels and cropped to the middle 304 x 228. Training maps
    (stored in 8 bits, 255 is 10 m) have half as many pixels a side, 152 x 114; test maps (16 bits, millimetres) have
    304 x 228, NaN where the mask is 0. Maps are scaled by taking the nearest pixel, twice where it is done twice, so
    that every depth is one that was measured; the published code interpolates in the second step.

    No validation split is published. Frames of a film of a room are much alike, so every twentieth room is set apart
    from training, and 654 frames spread evenly over these are the validation split.

    Args:
        folder (`pathlib.Path`): The folder that holds the three files.

    Returns:
        `dict`: `"train"`, `"validation"` (absent if there is a single room) and `"test"`, with columns `image` and
        `label`, a float32 map in metres. Files are read when their row is.

    Raises:
        `ValueError`: for a file that is missing or no list of these, naming its line.
    """
    train, test = _listed(folder, TRAIN), _listed(folder, TEST)
    mask = _checked_mask(folder, len(test))
    rooms = [_room(photograph) for photograph, _ in train]
    names = sorted(set(rooms))
    apart = set(names[::EVERY]) if len(names) > 1 else set()
    kept = [pair for pair, room in zip(train, rooms, strict=True) if room not in apart]
    validation = [pair for pair, room in zip(train, rooms, strict=True) if room in apart]
    places = _nearest(len(validation), min(len(validation), VALIDATION_ROWS))
    splits = {
        "train": _rows(kept, 8, None),
        "validation": _rows([validation[place] for place in places], 8, None),
        "test": _rows(test, 16, mask),
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
            paths: list[str] = []
            for cell in cells:
                path = path_inside(root, _within(root, cell.strip()))
                if path is None:
                    raise ValueError(f'{name}, line {line:,}: "{cell}" lies outside the folder "{folder}"')
                if not os.path.isfile(path):
                    raise ValueError(f'{name}, line {line:,}: there is no file "{path}"')
                paths.append(path)
            pairs.append((paths[0], paths[1]))
    if not pairs:
        raise ValueError(f"{name} names no photograph")
    return pairs


def _within(root: str, cell: str) -> str:
    """A path without the name of the folder that the lists lie in, with which published ones begin."""
    first, _, rest = cell.partition("/")
    return rest if rest and not os.path.exists(os.path.join(root, first)) else cell


def _checked_mask(folder: Path, count: int) -> str:
    path = folder / MASK
    if not path.is_file():
        raise ValueError(f'there is no {MASK} in "{folder}", without which the test split is not the balanced one')
    shape = _mask(str(path)).shape
    if shape != (count, HEIGHT, WIDTH):
        raise ValueError(f"{MASK} has shape {shape}, where {TEST} needs {(count, HEIGHT, WIDTH)}")
    return str(path)


def _mask(path: str) -> npt.NDArray[Any]:
    mask: npt.NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    return mask


def _room(photograph: str) -> str:
    """The room that a film shows, of which there may be parts: basement_0001a_out and basement_0001b_out."""
    return re.sub(r"[a-z]?_out$", "", Path(photograph).parent.name)


def _rows(pairs: list[tuple[str, str]], bits: int, mask: str | None) -> Dataset:
    columns = {"image": [pair[0] for pair in pairs], "label": [pair[1] for pair in pairs]}
    rows = Dataset.from_dict({**columns, "frame": list(range(len(pairs)))})
    return rows.with_transform(partial(_read, bits=bits, mask=mask))


def _read(batch: Mapping[str, list[Any]], bits: int, mask: str | None) -> dict[str, list[Any]]:
    images, maps = [], []
    for photograph, depth, frame in zip(batch["image"], batch["label"], batch["frame"], strict=True):
        image = _photograph(photograph)
        size = (HEIGHT, WIDTH) if mask is not None else (HEIGHT // 2, WIDTH // 2)
        label = _depth(depth, image.size, bits, size)
        if mask is not None:
            label[_mask(mask)[frame] == 0] = np.nan
        images.append(_cropped(image))
        maps.append(label)
    return {"image": images, "label": maps}


def _photograph(path: str) -> Image.Image:
    try:
        image = to_image(path)
    except (OSError, ValueError) as error:
        raise ValueError(f'"{path}" cannot be read: {describe_error(error)}') from error
    width, height = _scaled(image.size)
    if width < WIDTH or height < HEIGHT:
        raise ValueError(
            f'"{path}" has {image.width} x {image.height} pixels, too narrow a shape; expected: 640 x 480'
        )
    return image


def _depth(path: str, size: tuple[int, int], bits: int, to: tuple[int, int]) -> npt.NDArray[np.float32]:
    """The middle of a depth map in metres, NaN where it is 0, of `to` pixels (height, width)."""
    try:
        image = open_image(path)
        stored = to_map(image, METRES[bits], invalid=0)
    except (OSError, ValueError) as error:
        raise ValueError(f'"{path}" cannot be read: {describe_error(error)}') from error
    found = 8 if image.mode == "L" else 16
    if found != bits:
        raise ValueError(f'"{path}" has {found} bits a pixel, where depths of this split have {bits}')
    if image.size != size:
        raise ValueError(
            f'"{path}" has {image.width} x {image.height} pixels and its photograph {size[0]} x {size[1]}'
        )
    width, height = _scaled(size)
    left, top = _corner(width, height)
    rows = _nearest(size[1], height)[top : top + HEIGHT][_nearest(HEIGHT, to[0])]
    columns = _nearest(size[0], width)[left : left + WIDTH][_nearest(WIDTH, to[1])]
    return stored[np.ix_(rows, columns)]


def _cropped(image: Image.Image) -> Image.Image:
    width, height = _scaled(image.size)
    left, top = _corner(width, height)
    return image.resize((width, height), Image.Resampling.BILINEAR).crop((left, top, left + WIDTH, top + HEIGHT))


def _scaled(size: tuple[int, int]) -> tuple[int, int]:
    width, height = size
    short = min(size)
    return width * SHORT_SIDE // short, height * SHORT_SIDE // short


def _corner(width: int, height: int) -> tuple[int, int]:
    return round((width - WIDTH) / 2), round((height - HEIGHT) / 2)


def _nearest(size: int, to: int) -> npt.NDArray[np.int64]:
    """For each of `to` pixels the one of `size` that lies at its middle."""
    return ((np.arange(to) + 0.5) * size / max(to, 1)).astype(np.int64)
