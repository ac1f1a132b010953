"""Labels that are maps: a number for every pixel, NaN where there is none."""

import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from conr_hf.data.images import open_image, stored_numbers

SUFFIXES = (".npy", ".png", ".tif", ".tiff")
_NPY = b"\x93NUMPY"


def is_map(cell: Any) -> bool:
    """
    Whether the cell of a label column is a map, by its kind alone: nothing is read.

    An image, an array of shape `(H, W)` or `(1, H, W)`, a nested list, the dictionary of an undecoded
    `datasets.Image`, or a path that ends in .npy, .png, .tif or .tiff, are maps; anything else is none, a single row
    of numbers, of shape `(1, T)`, too.
    """
    if isinstance(cell, str | os.PathLike):
        return Path(cell).suffix.lower() in SUFFIXES
    if isinstance(cell, Mapping):
        return {"bytes", "path"} <= set(cell)
    if isinstance(cell, np.ndarray | torch.Tensor):
        return (cell.ndim == 2 and len(cell) != 1) or (cell.ndim == 3 and len(cell) == 1)
    if isinstance(cell, list | tuple):
        return len(cell) > 0 and isinstance(cell[0], list | tuple | np.ndarray) and np.ndim(cell[0]) > (len(cell) == 1)
    return isinstance(cell, Image.Image)


def to_map(cell: Any, scale: float = 1.0, invalid: float | None = None) -> npt.NDArray[np.float32]:
    """
    The map in a cell of a label column, `(H, W)`, float32, upright and in label units, NaN where there is no label.

    The cell is a grey image (of 8, 16 or 32 bits, PIL's modes L, I;16, I and F), an array, tensor or nested list of
    numbers of shape `(H, W)` or `(1, H, W)`, a path of an image or .npy file, or a dictionary with such a file's
    `bytes` or `path`. Nothing in a .npy file is unpickled. `scale` is in label units per stored number, and `invalid`
    the stored number that means "no label", besides NaN and the infinities.

    An `OSError` or `ValueError` has the reason alone as its message.

    Example:
        >>> to_map(np.array([[0, 1500], [2000, 0]], np.uint16), scale=0.001, invalid=0)
        array([[nan, 1.5],
               [2. , nan]], dtype=float32)
    """
    stored = _stored(cell)
    if stored.ndim == 3 and len(stored) == 1:
        stored = stored[0]
    if stored.ndim != 2:
        raise ValueError(
            f"it has the shape {stored.shape}, where a map has one number for every pixel: (height, width)"
        )
    if stored.dtype.kind not in "fiu":
        raise ValueError(f"it holds {stored.dtype}, where a map holds whole or floating-point numbers")
    if stored.size == 0:
        raise ValueError(f"it is empty, of shape {stored.shape}")
    missing = np.zeros(stored.shape, bool)
    if invalid is not None:
        # A float32 map holds the float32 number nearest to what was written.
        missing = stored == (np.asarray(invalid, stored.dtype) if stored.dtype.kind == "f" else invalid)
    with np.errstate(over="ignore"):  # what float32 cannot hold is no label
        values = (stored.astype(np.float64) * scale).astype(np.float32)
    values[missing | ~np.isfinite(values)] = np.nan
    return values


def _stored(cell: Any) -> npt.NDArray[Any]:
    """The numbers as they are stored."""
    if isinstance(cell, Mapping):
        cell = io.BytesIO(cell["bytes"]) if cell.get("bytes") is not None else cell["path"]
    if cell is None:
        raise ValueError("the map is missing")
    if isinstance(cell, str | os.PathLike | io.BytesIO):
        cell = _opened(cell)
    if isinstance(cell, Image.Image):
        if cell.mode not in ("L", "I", "F") and not cell.mode.startswith("I;16"):
            raise ValueError(
                f"it is an image of mode {cell.mode}, where a map has one grey value of 8 to 32 bits a pixel"
            )
        return stored_numbers(cell)
    if isinstance(cell, torch.Tensor):
        cell = cell.detach().cpu()
        return np.asarray(cell.float() if cell.dtype == torch.bfloat16 else cell)
    if isinstance(cell, np.ndarray):
        return cell
    if isinstance(cell, Sequence) and not isinstance(cell, bytes):
        try:
            return np.array(cell, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise ValueError("its rows are not numbers, or not as many in each of them") from error
    raise ValueError(f"it is {truncate(cell)}, which is no map")


def _opened(source: str | os.PathLike[str] | io.BytesIO) -> Image.Image | npt.NDArray[Any]:
    if not isinstance(source, io.BytesIO):
        if not is_map(source):
            raise ValueError(f'"{source}" is no path of a map; it would end in {", ".join(SUFFIXES)}')
        if Path(source).suffix.lower() != ".npy":
            return open_image(source)
        source = io.BytesIO(Path(source).read_bytes())
        if source.getbuffer()[: len(_NPY)] != _NPY:
            raise ValueError("it is no .npy file of one array")
    elif source.getbuffer()[: len(_NPY)] != _NPY:
        return open_image(source)
    array: npt.NDArray[Any] = np.load(source, allow_pickle=False)
    return array


def truncate(cell: Any) -> str:
    """A cell as a message quotes it, on one line and cut after 40 characters."""
    text = " ".join(str(cell).split())
    return f'"{text}"' if len(text) <= 40 else f'"{text[:40]}..."'
