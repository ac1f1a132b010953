"""Bins of the label range: where labels fall, how many training labels are there, and what is refused."""

import json
import math

import numpy as np
import pytest
import torch

from conr_hf.imbalance import Bins, label_columns, make_bins
from conr_hf.imbalance.bins import suggest_bin_width


def slow_bin(label: float, edges: np.ndarray, tolerance: float) -> int:
    """The bin by looking at every edge in turn."""
    if edges[-1] <= label <= edges[-1] + tolerance:
        return len(edges) - 2
    inside = [i for i in range(len(edges) - 1) if edges[i] - tolerance <= label < edges[i + 1] - tolerance]
    return inside[0] if inside else -1


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("offset", [0, 1, 7, -50, -101])
def test_tenths_fall_where_integers_fall(dtype, offset):
    k = np.arange(offset, offset + 101)
    tenths, integers = make_bins((k * 0.1).astype(dtype), bin_width=0.1), make_bins(k, bin_width=1)
    assert (tenths.index((k * 0.1).astype(dtype)) == integers.index(k)).all()
    assert (integers.index(k).ravel() == np.arange(101)).all()
    np.testing.assert_allclose(tenths.edges[0], integers.edges[0] * 0.1)
    # Float64 labels are found in bins of float32 training labels, and the other way round.
    assert (tenths.index(k * 0.1) == integers.index(k)).all()
    assert (tenths.index((k * 0.1).astype(np.float32)) == integers.index(k)).all()


def test_the_millionth_tenth_of_float32_falls_right():
    k = np.arange(999_000, 1_000_000)
    bins = make_bins((k * 0.1).astype(np.float32), bin_width=0.1)
    assert (bins.index((k * 0.1).astype(np.float32)).ravel() == np.arange(1000)).all()


@pytest.mark.parametrize("seed", range(20))
def test_agrees_with_a_look_at_every_edge(seed):
    rng = np.random.default_rng(seed)
    train = rng.normal(rng.normal(0, 50), 10, size=40)
    width = float(rng.uniform(0.5, 7))
    bins = make_bins(train, bin_width=width)
    labels = np.concatenate([train, rng.normal(0, 80, size=40), bins.edges[0], bins.edges[0] - 1e-3])
    expected = [slow_bin(float(y), bins.edges[0], 4 * 2**-23 * np.abs(train).max()) for y in labels]
    assert bins.index(labels).ravel().tolist() == expected
    assert bins.train_counts[0].sum() == len(train)
    assert bins.train_counts[0][0] > 0
    assert bins.train_counts[0][-1] > 0
    k = bins.edges[0] / width
    np.testing.assert_allclose(k, np.rint(k), atol=1e-9)
    assert math.isclose(k[0], math.floor(train.min() / width), abs_tol=1e-9)


@pytest.mark.parametrize(
    ("labels", "width"),
    [
        (np.arange(0, 101), 10),  # one of each: no width makes half of them common, a tenth of the range is the widest
        (np.repeat(np.arange(0, 101), 30), 1),
        (np.repeat(np.arange(0, 101), 12), 2),
        (np.repeat(np.arange(0, 900, 5), 2), 50),
        (np.repeat([0, 1, 2], 5), 1),  # whole numbers are never parted
        (np.linspace(0, 1, 5000), 0.01),
        (np.linspace(0, 0.003, 1500), 0.00005),
        (np.full(7, 3.5), 1),
    ],
)
def test_an_unset_width_is_round_and_leaves_half_of_the_labels_common(labels, width):
    assert suggest_bin_width(labels) == width
    assert np.diff(make_bins(labels).edges[0]) == pytest.approx(width)


def test_an_unset_width_follows_the_unit_and_each_dimension():
    labels = np.random.default_rng(0).exponential(1.5, 600)
    widths = [suggest_bin_width(labels * factor) for factor in (1, 10, 0.01)]
    assert widths == pytest.approx([widths[0], 10 * widths[0], 0.01 * widths[0]])
    both = make_bins(np.stack([labels, 100 * labels], axis=1))
    assert [edges[1] - edges[0] for edges in both.edges] == pytest.approx([widths[0], 100 * widths[0]])


@pytest.mark.parametrize(("labels", "edges"), [([3.7], [3, 4]), ([5, 5, 5], [5, 6]), ([0], [0, 1]), ([-0.5], [-1, 0])])
def test_a_single_label_has_one_bin_of_width_one(labels, edges):
    bins = make_bins(labels)
    assert bins.edges[0].tolist() == edges
    assert bins.train_counts[0].tolist() == [len(labels)]


def test_given_edges_close_the_last_bin_and_leave_the_rest_outside():
    bins = make_bins([1, 5, 10, 10, 20, 300], edges=[1, 10, 20])
    assert bins.train_counts[0].tolist() == [2, 3]
    assert bins.index([0.9, 1, 9.9, 10, 20, 20.1]).ravel().tolist() == [-1, 0, 0, 1, 1, -1]
    assert bins.train_count_of([0.9, 1, 20, 300]).tolist() == [0, 2, 3, 0]


def test_a_wide_open_last_bin_does_not_blur_the_narrow_ones():
    bins = make_bins([0.2, 0.999, 1.0, 5.0], edges=[0, 1, 1e9])
    assert bins.train_counts[0].tolist() == [2, 2]


def test_large_offsets_do_not_push_training_labels_out():
    stamps = 1_700_000_000 + np.arange(0, 10_001, 7)
    bins = make_bins(stamps)
    assert bins.train_counts[0].sum() == len(stamps)
    assert len(bins.train_counts[0]) in (50, 51)


def test_two_dimensions_are_binned_apart_and_as_rare_as_the_rarest():
    train = np.array([[0.5, 10], [0.5, 20], [0.5, 10], [1.5, 10]])
    bins = make_bins(train, bin_width=[1, 10])
    assert [c.tolist() for c in bins.train_counts] == [[3, 1], [3, 1]]
    labels = [[0.1, 12], [0.1, 20], [1.2, 12], [9, 12]]
    assert bins.index(labels).tolist() == [[0, 0], [0, 1], [1, 0], [-1, 0]]
    assert bins.train_counts_of(labels).tolist() == [[3, 3], [3, 1], [1, 3], [0, 3]]
    assert bins.train_count_of(labels).tolist() == [3, 1, 1, 0]
    same = make_bins(train, edges=[[0, 1, 2], [10, 20, 30]])
    assert [e.tolist() for e in same.edges] == [e.tolist() for e in bins.edges]


def test_numpy_torch_and_lists_are_the_same_labels():
    values = [0.1, 0.2, 0.7]
    expected = make_bins(values, bin_width=0.1).to_dict()
    assert make_bins(np.array(values), bin_width=0.1).to_dict() == expected
    assert (
        make_bins(torch.tensor(values, dtype=torch.float64, requires_grad=True), bin_width=0.1).to_dict() == expected
    )
    counts = [c.tolist() for c in make_bins(torch.tensor(values).to(torch.bfloat16), bin_width=0.25).train_counts]
    assert counts == [[2, 0, 1]]


def test_saved_bins_come_back():
    bins = make_bins([[0.1, 3], [0.7, 9]])
    back = Bins.from_dict(json.loads(json.dumps(bins.to_dict())))
    assert back.to_dict() == bins.to_dict()
    assert all((a == b).all() for a, b in zip(back.boundaries, bins.boundaries, strict=True))
    without = {k: v for k, v in bins.to_dict().items() if k != "tolerance"}
    assert (Bins.from_dict(without).index([[0.1, 3], [0.7, 9]]) == bins.index([[0.1, 3], [0.7, 9]])).all()


def test_thresholds_belong_to_the_bins_and_come_back():
    bins = make_bins([0.1, 0.7], bin_width=0.1, thresholds=(300, 2_000))
    assert bins.thresholds == (300, 2000)
    saved = json.loads(json.dumps(bins.to_dict()))
    assert Bins.from_dict(saved).thresholds == (300, 2000)
    del saved["thresholds"]  # as saved before there were any
    assert Bins.from_dict(saved).thresholds == make_bins([1]).thresholds == (20, 100)
    for wrong in ((100, 20), (20,), (math.nan, 20)):
        with pytest.raises(ValueError, match=r"few are below the first, many above the second\.$"):
            make_bins([1], thresholds=wrong)


def test_bins_cannot_be_written_to():
    bins = make_bins([1, 2, 3])
    with pytest.raises(ValueError, match="read-only"):
        bins.edges[0][0] = 7


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"train_labels": []}, "train_labels is empty"),
        ({"train_labels": [1.0, float("nan")]}, r"train_labels\[1\] is nan"),
        ({"train_labels": [[1.0, 2.0], [1.0, float("inf")]]}, r"train_labels\[1, 1\] is inf"),
        ({"train_labels": ["thirty"]}, "cannot be read as numbers"),
        ({"train_labels": np.zeros((2, 2, 2))}, r"shape \(2, 2, 2\)"),
        ({"train_labels": 3.0}, r"shape \(\)"),
        ({"train_labels": [0, 1], "bin_width": 0}, "must be greater than 0"),
        ({"train_labels": [0, 1], "bin_width": [1, 2]}, "one for each dimension"),
        ({"train_labels": [0, 1], "bin_width": 1, "edges": [0, 1]}, "Leave one of them out"),
        ({"train_labels": [0, 1], "edges": 5}, "or bin_width=5"),
        ({"train_labels": [0, 1], "edges": [0, 2, 1]}, "ascending"),
        ({"train_labels": [0, 1], "edges": [0, 1, float("inf")]}, "no label exceeds"),
        ({"train_labels": [0, 1], "edges": [[0, 1], [0, 1]]}, "one for each dimension"),
        (
            {"train_labels": [0, 5379], "bin_width": 0.001},
            r"bin_width 0\.001 makes 5,379,001 .* Set bin_width to 0\.00",
        ),
        ({"train_labels": [1e18, 1e18 + 4096]}, "Subtract an offset"),
    ],
)
def test_refusals_say_what_to_do(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_bins(**arguments)


def test_the_advised_width_is_enough():
    with pytest.raises(ValueError) as refusal:
        make_bins([0, 5379], bin_width=0.001)
    advised = float(str(refusal.value).split("Set bin_width to ")[1].split(" ")[0])
    assert len(make_bins([0, 5379], bin_width=advised).train_counts[0]) <= 1_000_000


def test_labels_of_other_dimensions_are_refused():
    with pytest.raises(ValueError, match="2 dimensions and the bins 1"):
        make_bins([1, 2]).index([[1, 2]])
    with pytest.raises(ValueError, match="need 1 training counts"):
        Bins((np.array([0.0, 1.0]),), (np.array([1, 2]),))


def test_label_columns_copies():
    values = np.array([1.0, 2.0])
    label_columns(values)[0] = 9
    assert values[0] == 1
