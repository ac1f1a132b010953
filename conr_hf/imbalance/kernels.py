"""Kernels that smooth along bins."""

import math
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from conr_hf.imbalance.bins import FloatArray

KernelName = Literal["gaussian", "triangular", "laplace"]


def smoothing_kernel(name: str, size: int = 5, sigma: float = 2.0) -> FloatArray:
    """
    A symmetric kernel over neighbouring bins, whose largest entry is 1.

    With x the distance from the middle, in bins:

    - `"gaussian"`: exp(-x^2 / (2 sigma^2)), with what lies beyond the ends mirrored into the kernel;
    - `"triangular"`: falls by the same step from bin to bin, to 0 just outside the kernel, whatever sigma is;
    - `"laplace"`: exp(-|x| / sigma).

    Source: the kernels of [Delving into Deep Imbalanced Regression](https://huggingface.co/papers/2102.09554).

    Args:
        name (`str`): `"gaussian"`, `"triangular"` or `"laplace"`.
        size (`int`, *optional*, defaults to 5): Number of bins that the kernel spans, odd; 1 smooths nothing.
        sigma (`float`, *optional*, defaults to 2.0): Width, in bins.

    Returns:
        `np.ndarray` of shape `(size,)`, float64, between 0 and 1.

    Raises:
        `ValueError`: For an unknown name, an even size or one below 1, and a sigma that is not greater than 0.

    Example:
        >>> smoothing_kernel("triangular", size=3)
        array([0.5, 1. , 0.5])
    """
    if name not in get_args(KernelName):
        known = ", ".join(f'"{kernel}"' for kernel in get_args(KernelName))
        raise ValueError(f'"{name}" is no kernel. Choose one of {known}.')
    if size < 1 or size % 2 != 1:
        raise ValueError(f"The kernel's size is {size}; it must be odd and 1 or more, as in 5.")
    if not 0 < sigma < math.inf:
        raise ValueError(f"The kernel's sigma is {sigma}; it must be finite and greater than 0, in bins, as in 2.")
    half = size // 2
    distance = np.abs(np.arange(size, dtype=np.float64) - half)
    if name == "triangular":
        return 1 - distance / (half + 1)
    if name == "laplace":
        return np.exp(-distance / sigma)
    # A filtered delta, as published: the tails are cut at 4 sigma and mirrored at the ends of the kernel.
    reach = np.arange(-int(4 * sigma + 0.5), int(4 * sigma + 0.5) + 1)
    places = (half + reach) % (2 * size)
    places = np.where(places < size, places, 2 * size - 1 - places)
    filtered = np.bincount(places, np.exp(-((reach / sigma) ** 2) / 2), minlength=size)
    mirrored: FloatArray = filtered / filtered.max()
    return mirrored


def check_kernel(kernel: npt.ArrayLike) -> FloatArray:
    """A kernel of the user's own as float64; refused if it cannot be one."""
    values = np.array(kernel, dtype=np.float64)
    if (
        values.ndim != 1
        or len(values) % 2 != 1
        or not np.isfinite(values).all()
        or values.min() < 0
        or values[len(values) // 2] == 0
        or not np.allclose(values, values[::-1])
    ):
        raise ValueError(
            f"The kernel is {np.array2string(values, threshold=8)}; it must be an odd number of finite numbers, "
            "symmetric, not negative and greater than 0 in the middle. smoothing_kernel makes such ones."
        )
    return values
