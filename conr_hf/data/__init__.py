"""Data sets for imbalanced regression. The public names are loaded on first use."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from conr_hf.data.images import to_image
    from conr_hf.data.local import load_local
    from conr_hf.data.splits import dir_split

_HOME = {"dir_split": "splits", "load_local": "local", "to_image": "images"}

__all__ = ["dir_split", "load_local", "to_image"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'conr_hf.data' has no attribute {name!r}")
    return getattr(import_module(f"conr_hf.data.{_HOME[name]}"), name)
