"""Labels that are maps: a number for every pixel."""

from typing import Any

import numpy as np


def is_map(cell: Any) -> bool:
    """Whether a label cell holds a map."""
    return isinstance(cell, np.ndarray | list) and np.ndim(cell) == 2


def to_map(cell: Any, scale: float = 1.0, invalid: float | None = None) -> np.ndarray:
    """The map in a cell, `(H, W)`, float32, NaN where there is no label."""
    stored = np.asarray(cell, np.float32)
    found = stored * np.float32(scale)
    return np.where(stored == invalid, np.float32(np.nan), found) if invalid is not None else found
