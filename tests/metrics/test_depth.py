"""Depth errors against loops over pixels, and batches against the whole."""

import math

import numpy as np
import pytest
import torch

from conr_hf.metrics import DepthErrors, depth_metrics


def slow_metrics(p, y, mask):
    pixels = [(a, b) for a, b, m in zip(p.ravel(), y.ravel(), mask.ravel(), strict=True) if m]
    n = len(pixels)
    ratios = [max(max(a, b / 1000) / b, b / max(a, b / 1000)) for a, b in pixels]
    return {
        "n": n,
        "rmse": math.sqrt(sum((a - b) ** 2 for a, b in pixels) / n),
        "mae": sum(abs(a - b) for a, b in pixels) / n,
        "abs_rel": sum(abs(a - b) / b for a, b in pixels) / n,
        "log10": sum(abs(math.log10(ratio)) for ratio in ratios) / n,
        **{f"delta{k}": sum(ratio <= 1.25**k for ratio in ratios) / n for k in (1, 2, 3)},
    }


def maps(n=6, seed=0):
    rng = np.random.default_rng(seed)
    y = rng.uniform(0.5, 10, (n, 5, 7))
    p = y * np.exp(rng.normal(0, 0.4, y.shape))
    p.flat[::11] *= -1
    mask = rng.random(y.shape) < 0.7
    return p, np.where(mask, y, 0), mask


def test_agrees_with_loops():
    p, y, mask = maps()
    found = depth_metrics(p, y, mask)
    assert found == pytest.approx(slow_metrics(p, y, mask), rel=1e-12)
    assert 0 < found["delta1"] < found["delta2"] < found["delta3"] < 1
    assert depth_metrics(p, y, y > 0) == found
    assert {type(value) for value in found.values()} == {int, float}


def test_worked_by_hand():
    found = depth_metrics([2.5, 1.0, 4.0, 0.0], [2.0, 2.0, 4.0, 1.0])
    expected = {
        "n": 4,
        "rmse": math.sqrt((0.25 + 1 + 0 + 1) / 4),
        "mae": 2.5 / 4,
        "abs_rel": (0.25 + 0.5 + 0 + 1) / 4,
        "log10": (math.log10(1.25) + math.log10(2) + 0 + 3) / 4,  # a depth of 0 counts as a thousandth
        "delta1": 0.5,  # 1.25 itself is within
        "delta2": 0.5,
        "delta3": 0.5,
    }
    assert found == pytest.approx(expected)


def test_batches_and_processes_add_up():
    p, y, mask = maps()
    whole = depth_metrics(p, y, mask)
    first, second = DepthErrors(), DepthErrors()
    first.update(p[:1], y[:1], mask[:1])
    first.update(p[1:3], y[1:3], mask[1:3])
    second.update(p[3:], y[3:], mask[3:])
    first.sums += second.sums
    assert first.compute() == pytest.approx(whole, rel=1e-12)


def test_the_sum_of_many_pixels_keeps_its_digits():
    """float32 would stop counting at 2^24."""
    errors = DepthErrors()
    errors.update(np.full(1000, 2.0), np.full(1000, 1.0))
    errors.sums *= 1e6
    errors.update([1.0], [1.0])
    assert errors.compute()["n"] == 1_000_000_001
    assert errors.compute()["mae"] == pytest.approx(1 - 1e-9, rel=1e-15)


def test_the_unit_does_not_matter():
    p, y, mask = maps()
    metres, millimetres = depth_metrics(p, y, mask), depth_metrics(1000 * p, 1000 * y, mask)
    expected = {name: value * (1000 if name in ("rmse", "mae") else 1) for name, value in metres.items()}
    assert millimetres == pytest.approx(expected)


def test_tensors_and_an_axis_of_channels():
    p, y, mask = maps()
    tensors = torch.tensor(p, dtype=torch.bfloat16)[:, None].requires_grad_(), torch.tensor(y), torch.tensor(mask)
    assert depth_metrics(*tensors) == depth_metrics(tensors[0].detach().double().numpy()[:, 0], y, mask.astype(int))
    assert depth_metrics(p[:1, 0, 0], y[:1, 0, 0], [True]).keys() == depth_metrics(p, y, mask).keys()


def test_no_pixel_has_no_errors():
    p, y, mask = maps()
    assert depth_metrics(p, y, np.zeros_like(mask)) == DepthErrors().compute() == {"n": 0}
    assert depth_metrics(np.zeros((0, 4)), np.zeros((0, 4))) == {"n": 0}


def test_what_the_mask_leaves_out_may_be_anything():
    p, y, mask = maps()
    expected = depth_metrics(p, y, mask)
    p, y = np.where(mask, p, np.nan), np.where(mask, y, -np.inf)
    assert depth_metrics(p, y, mask) == expected


@pytest.mark.parametrize(
    ("predictions", "labels", "mask", "message"),
    [
        ([[1.0, np.nan]], [[1.0, 1.0]], None, r"^predictions\[0, 1\] is nan. The model may have diverged"),
        ([[1.0, 1.0]], [[1.0, 0.0]], None, r"^labels\[0, 1\] is 0.0. Leave pixels without depth out: mask=labels > 0"),
        ([[1.0, 1.0]], [[np.nan, 1.0]], [[1, 0]], r"^labels\[0, 0\] is nan"),
        (np.ones((2, 3)), np.ones((3, 2)), None, r"^predictions is of shape \(2, 3\) and labels of \(3, 2\)"),
        (np.ones((2, 3)), np.ones((2, 3)), np.ones(3), r"^mask is of shape \(3,\) and labels of \(2, 3\)"),
        ([1.0], [1.0], [0.5], "^The mask holds other numbers than 0 and 1"),
    ],
)
def test_refusals_say_what_to_do(predictions, labels, mask, message):
    with pytest.raises(ValueError, match=message):
        depth_metrics(predictions, labels, mask)


def test_a_refused_batch_is_not_counted():
    errors = DepthErrors()
    errors.update([2.0], [1.0])
    with pytest.raises(ValueError):
        errors.update([1.0, np.nan], [1.0, 1.0])
    assert errors.compute()["n"] == 1
