"""Numbers from features, against scikit-learn, loops and cases worked by hand."""

import numpy as np
import pytest
from sklearn.neighbors import KNeighborsRegressor

from conr_hf.imbalance import Bins, make_bins
from conr_hf.metrics.features import (
    distance_pairs,
    knn_error,
    nearest,
    neighbour_bins,
    rank_correlation,
    rare_among_frequent,
)

BINS = Bins((np.array([0.0, 10.0, 20.0, 30.0]),), (np.array([150, 50, 5]),))  # many, median, few


@pytest.fixture
def random():
    return np.random.default_rng(0)


def cosine(a, b):
    return 1 - float(a @ b / np.sqrt((a @ a) * (b @ b)))


@pytest.mark.parametrize("decimals", [0, 1, 9])  # from many ties to none
def test_rank_correlation_is_that_of_ranks_counted_one_by_one(random, decimals):
    a = random.normal(size=300).round(decimals)
    b = (a + random.normal(size=300)).round(decimals)
    ranks = [[(values < v).sum() + ((values == v).sum() + 1) / 2 for v in values] for values in (a, b)]
    assert rank_correlation(a, b) == pytest.approx(np.corrcoef(*ranks)[0, 1], rel=1e-12)


def test_rank_correlation_of_a_constant_is_not_a_number_made_up():
    assert rank_correlation([1, 2, 3], [5, 5, 5]) is None
    assert rank_correlation([1], [2]) is None
    assert rank_correlation([], []) is None


@pytest.mark.parametrize("dimensions", [1, 2])
def test_distances_of_all_pairs(random, dimensions):
    features, labels = random.normal(size=(9, 4)), random.uniform(0, 50, (9, dimensions))
    expected = [
        (np.abs(labels[i] - labels[j]).mean(), cosine(features[i], features[j]))
        for i in range(9)
        for j in range(i + 1, 9)
    ]
    found = distance_pairs(features, labels if dimensions > 1 else labels[:, 0])
    np.testing.assert_allclose(np.transpose(found), expected, rtol=1e-5, atol=1e-6)


def test_of_more_pairs_a_draw_that_the_seed_repeats(random):
    features, labels = random.normal(size=(100, 3)), np.arange(100.0)
    first = distance_pairs(features, labels, most=1000)
    assert len(first[0]) == len(first[1]) == 1000
    assert (first[0] >= 1).all()  # no sample beside itself
    np.testing.assert_array_equal(first, distance_pairs(features, labels, most=1000))
    assert not np.array_equal(first, distance_pairs(features, labels, most=1000, seed=1))
    everything = distance_pairs(features, labels)
    assert rank_correlation(*first) == pytest.approx(rank_correlation(*everything), abs=0.1)


def test_no_scale_of_a_feature_vector_changes_its_distances(random):
    features, labels = random.normal(size=(20, 5)), random.uniform(0, 50, 20)
    scaled = features * random.uniform(0.1, 1e4, (20, 1))
    np.testing.assert_allclose(distance_pairs(scaled, labels), distance_pairs(features, labels), atol=1e-6)
    np.testing.assert_array_equal(nearest(scaled), nearest(features))
    assert np.isfinite(distance_pairs(np.zeros((3, 5)), [1, 2, 3])).all()


def test_nearest_are_those_of_a_loop(random):
    ours, theirs = random.normal(size=(30, 6)), random.normal(size=(50, 6))
    expected = [sorted(range(50), key=lambda i: cosine(row, theirs[i]))[:5] for row in ours]
    np.testing.assert_array_equal(nearest(ours, theirs), expected)
    others = [sorted({*range(50)} - {j}, key=lambda i: cosine(theirs[j], theirs[i]))[:5] for j in range(50)]
    np.testing.assert_array_equal(nearest(theirs), others)  # each left out of its own


def test_fewer_samples_than_neighbours(random):
    features = random.normal(size=(3, 4))
    assert nearest(features).shape == (3, 2)
    assert sorted(nearest(random.normal(size=(1, 4)), features)[0]) == [0, 1, 2]


def test_knn_error_is_that_of_scikit_learn_by_shot(random):
    train, test = random.normal(size=(200, 4)), random.normal(size=(40, 4))
    train_labels, labels = random.uniform(0, 30, 200), random.uniform(0, 30, 40)
    predicted = KNeighborsRegressor(5, metric="cosine").fit(train, train_labels).predict(test)
    found = knn_error(BINS, labels, train_labels, nearest(test, train))
    masks = {"all": labels >= 0, "many": labels < 10, "median": (labels >= 10) & (labels < 20), "few": labels >= 20}
    assert set(found) == set(masks)
    for shot, mask in masks.items():
        assert found[shot] == pytest.approx(np.abs(predicted - labels)[mask].mean(), rel=1e-6)
    two = np.stack([labels, labels], axis=1)
    two_bins = make_bins(np.stack([train_labels, train_labels], axis=1))
    both = knn_error(two_bins, two, np.stack([train_labels, train_labels], axis=1), nearest(test, train))
    assert both["all"] == pytest.approx(found["all"])


def test_rare_samples_among_frequent_ones_by_hand():
    train_labels = np.array([1.0, 2.0, 15.0, 25.0])  # many, many, median, few
    neighbours = np.array([[0, 1, 2], [2, 3, 0], [0, 1, 3], [0, 1, 2]])
    labels = np.array([24.0, 26.0, 99.0, 5.0])  # few: two of three are many; few: one; outside, so few: two; many
    found = rare_among_frequent(BINS, labels, train_labels, neighbours)
    assert found == {"samples": 3, "share": pytest.approx(2 / 3), "training_share": 0.5}
    assert rare_among_frequent(BINS, labels[3:], train_labels, neighbours[3:]) == {"samples": 0, "training_share": 0.5}


def test_which_frequent_labels_each_rare_one_lies_among_by_hand():
    train_labels = np.array([1.0, 2.0, 15.0, 25.0])
    neighbours = np.array([[0, 1], [2, 0], [3, 3], [0, 1]])
    found = neighbour_bins(BINS, np.array([24.0, 26.0, 99.0, 5.0]), train_labels, neighbours)
    outside, rare = found
    assert (outside["bin"], outside["training_samples"], outside["samples"]) == (None, 0, 1)
    assert outside["neighbours"] == [{"bin": [20.0, 30.0], "training_samples": 5, "share": 1.0}]
    assert outside["many_share"] == 0
    assert (rare["dimension"], rare["bin"], rare["training_samples"], rare["samples"]) == (0, [20.0, 30.0], 5, 2)
    assert rare["many_share"] == 0.75
    assert rare["neighbours"] == [
        {"bin": [0.0, 10.0], "training_samples": 150, "share": 0.75},
        {"bin": [10.0, 20.0], "training_samples": 50, "share": 0.25},
    ]


def test_rare_in_one_label_dimension_only():
    bins = Bins(BINS.edges * 2, BINS.train_counts * 2)
    table = neighbour_bins(bins, np.array([[5.0, 25.0]]), np.array([[5.0, 5.0]]), np.array([[0]]))
    assert [(entry["dimension"], entry["bin"], entry["many_share"]) for entry in table] == [(1, [20.0, 30.0], 1.0)]
