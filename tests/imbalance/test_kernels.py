"""Kernels over bins: symmetric, 1 in the middle, and what their names say."""

import math

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter1d

from conr_hf.imbalance import smoothing_kernel
from conr_hf.imbalance.kernels import check_kernel

NAMES = ["gaussian", "triangular", "laplace"]


def test_worked_by_hand():
    e = math.exp
    # exp(-2 / 2), exp(-1 / 2) at sigma 2
    np.testing.assert_allclose(smoothing_kernel("laplace"), [e(-1), e(-0.5), 1, e(-0.5), e(-1)], rtol=1e-15)
    # Steps of a third: 0 would be the next entry on either side.
    np.testing.assert_allclose(smoothing_kernel("triangular"), [1 / 3, 2 / 3, 1, 2 / 3, 1 / 3], rtol=1e-15)
    # At sigma 0.5 the tails end 2 bins away. Mirrored into 3 bins, the entry 2 to the right of the middle comes back
    # onto the last bin: exp(-1 / 0.5) + exp(-4 / 0.5) there, 1 in the middle.
    ends = e(-2) + e(-8)
    np.testing.assert_allclose(smoothing_kernel("gaussian", 3, 0.5), [ends, 1, ends], rtol=1e-15)


@pytest.mark.parametrize(("size", "sigma"), [(1, 2.0), (3, 1.0), (5, 2.0), (9, 2.0), (9, 0.3), (5, 50.0)])
def test_the_gaussian_is_a_filtered_delta(size, sigma):
    """As published: a filter with mirrored ends leaves more at the ends of the kernel than the bell itself."""
    delta = np.zeros(size)
    delta[size // 2] = 1
    filtered = gaussian_filter1d(delta, sigma)
    np.testing.assert_allclose(smoothing_kernel("gaussian", size, sigma), filtered / filtered.max(), atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_symmetric_and_highest_in_the_middle(name):
    for size in (1, 3, 5, 9):
        for sigma in (0.3, 2.0, 50.0):
            kernel = smoothing_kernel(name, size, sigma)
            assert kernel.shape == (size,)
            assert kernel.dtype == np.float64
            assert kernel.max() == 1
            assert kernel[size // 2] > 0.9999  # where mirrored tails make it flat, a cut tail may be seen
            np.testing.assert_allclose(kernel, kernel[::-1], rtol=1e-12)
            assert (np.diff(kernel[size // 2 :]) < 1e-4).all()
            assert kernel.min() >= 0
    assert smoothing_kernel(name, 1).tolist() == [1.0]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("box",), '"box" is no kernel.*"triangular"'),
        (("gaussian", 4), "size is 4; it must be odd"),
        (("gaussian", 0), "size is 0; it must be odd and 1 or more"),
        (("gaussian", -1), "size is -1"),
        (("gaussian", 5, 0.0), "sigma is 0.0; it must be finite and greater than 0"),
        (("triangular", 5, math.nan), "sigma is nan"),
        (("laplace", 5, math.inf), "sigma is inf"),
    ],
)
def test_refusals_say_what_to_do(arguments, said):
    with pytest.raises(ValueError, match=said):
        smoothing_kernel(*arguments)


@pytest.mark.parametrize(
    "kernel", [[], [1, 1], [[1]], [1, 2, 3], [1, 0, 1], [-1, 3, -1], [0.5, math.nan, 0.5], 1.0, [math.inf]]
)
def test_what_is_no_kernel_is_refused(kernel):
    """A kernel with a hole in its middle would leave a bin without what lies in it."""
    with pytest.raises(ValueError, match="smoothing_kernel makes such"):
        check_kernel(kernel)
    assert check_kernel([1, 2, 1]).tolist() == [1.0, 2.0, 1.0]
