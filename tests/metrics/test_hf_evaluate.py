"""Shot metrics as a metric of the `evaluate` library: offline, in memory, alone and combined."""

import os
import subprocess
import sys
from pathlib import Path

import datasets
import evaluate
import numpy as np
import pytest
import torch

import conr_hf
from conr_hf.imbalance import make_bins
from conr_hf.metrics import ShotMetrics, flat, shot_metrics


@pytest.fixture
def samples():
    rng = np.random.default_rng(0)
    train, y = rng.integers(0, 20, 300), rng.integers(0, 20, 40)
    return y + rng.normal(size=40), y, train


def test_whole_and_in_batches(samples, tmp_path):
    p, y, train = samples
    expected = flat(shot_metrics(p, y, train))
    metric = ShotMetrics(cache_dir=str(tmp_path))
    assert metric.compute(predictions=p, references=y, train_labels=train) == pytest.approx(expected)
    for rows in (slice(0, 25), slice(25, 40)):  # used a second time, in batches of one column
        metric.add_batch(predictions=p[rows, None], references=y[rows])
    assert metric.compute(train_labels=train) == pytest.approx(expected)
    two = np.stack([p, p], axis=1), np.stack([y, y], axis=1), np.stack([train, train], axis=1)
    metric.add_batch(predictions=two[0], references=two[1])
    assert metric.compute(train_labels=two[2], thresholds=(5, 10)) == pytest.approx(
        flat(shot_metrics(*two, thresholds=(5, 10)))
    )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("dimensions", [1, 2])
def test_one_sample_at_a_time(samples, dimensions):
    p, y, train = (np.stack([part] * dimensions, axis=1) if dimensions > 1 else part for part in samples)
    metric = ShotMetrics()
    for prediction, reference in zip(p, y, strict=True):
        metric.add(prediction=prediction, reference=reference)
    assert metric.compute(train_labels=train) == pytest.approx(flat(shot_metrics(p, y, train)))


def test_tensors_and_lists(samples):
    p, y, train = samples
    metric = ShotMetrics()
    metric.add_batch(predictions=torch.tensor(p)[:, None].requires_grad_(), references=torch.tensor(y))
    expected = flat(shot_metrics(p, y, train))
    assert metric.compute(train_labels=torch.tensor(train)) == pytest.approx(expected)
    assert ShotMetrics().compute(predictions=p.tolist(), references=y.tolist(), train_labels=train) == expected


def test_bins_in_place_of_training_labels(samples):
    p, y, train = samples
    bins = make_bins(train, 2)
    expected = flat(shot_metrics(p, y, train, bin_width=2, thresholds=(5, 30)))
    told = [
        (ShotMetrics(), {"train_labels": train, "bin_width": 2, "thresholds": (5, 30)}),
        (ShotMetrics(), {"train_labels": train, "edges": bins.edges[0].tolist(), "thresholds": (5, 30)}),
        (ShotMetrics(), {"bins": bins, "thresholds": (5, 30)}),
        (ShotMetrics(bins, (5, 30)), {}),
        (ShotMetrics(make_bins([1.0])), {"bins": bins, "thresholds": (5, 30)}),
    ]
    for metric, options in told:
        assert metric.compute(predictions=p, references=y, **options) == expected


class Worst(evaluate.Metric):
    def _info(self):
        number = datasets.Value("float64")
        return evaluate.MetricInfo(
            description="", citation="", features=datasets.Features({"predictions": number, "references": number})
        )

    def _compute(self, predictions, references):
        return {"worst": float(np.abs(np.subtract(predictions, references)).max())}


def test_combined_with_other_metrics(samples):
    p, y, train = samples
    combined = evaluate.combine([ShotMetrics(make_bins(train)), Worst(keep_in_memory=True)])
    combined.add_batch(predictions=p[:30], references=y[:30])
    for prediction, reference in zip(p[30:], y[30:], strict=True):
        combined.add(prediction, reference)
    expected = {**flat(shot_metrics(p, y, train)), "worst": np.abs(p - y).max()}
    assert combined.compute() == pytest.approx(expected)
    both = evaluate.combine({"first": ShotMetrics(), "second": ShotMetrics()})
    found = both.compute(predictions=p, references=y, train_labels=train)
    assert found["first_mae"] == found["second_mae"] == pytest.approx(expected["mae"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "Shots need the training labels. Pass compute train_labels or bins"),
        ({"train_labels": [1], "bins": make_bins([1])}, "Both train_labels and bins are given"),
        ({"bins": make_bins([1]), "bin_width": 2}, "bin_width and edges are for bins of train_labels"),
    ],
)
def test_compute_says_what_it_needs(options, message):
    with pytest.raises(ValueError, match=message):
        ShotMetrics().compute(predictions=[1.0], references=[1.0], **options)


def test_bad_samples_are_named_by_their_place_among_all(samples):
    p, y, train = samples
    metric = ShotMetrics()
    with pytest.raises(ValueError, match="There are no samples to evaluate"):
        metric.compute(train_labels=train)
    metric.add_batch(predictions=p[:30], references=y[:30])
    metric.add(prediction=float("nan"), reference=3.0)
    with pytest.raises(ValueError, match=r"predictions\[30\] is nan"):
        metric.compute(train_labels=train)
    assert metric.compute(predictions=p, references=y, train_labels=train)["n"] == 40  # goes on after it


def test_nothing_is_downloaded_or_written(tmp_path):
    """A home that cannot be written to, and no network, as on the nodes of a cluster."""
    code = """
import socket
def refuse(*args): raise OSError("the network was asked for")
socket.socket.connect = socket.getaddrinfo = refuse
from conr_hf.metrics import ShotMetrics
metric = ShotMetrics()
metric.add_batch(predictions=[1.0, 3.0], references=[1, 1])
print(metric.compute(train_labels=[1])["mae"])
"""
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("HF_", "XDG_"))},
        "HOME": str(tmp_path),
        "PYTHONPATH": str(Path(conr_hf.__file__).parents[1]),
    }
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.stdout.strip() == "1.0", done.stderr[-2000:]
    assert not [path for path in tmp_path.rglob("*") if "metrics" in path.parts or path.is_file()]
