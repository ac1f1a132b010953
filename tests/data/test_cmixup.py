"""C-Mixup: partners with similar labels, and batches that are the stated mixtures."""

import datasets
import numpy as np
import pytest
import torch
from small import images, models
from torch.utils.data import DataLoader

from conr_hf.data.augmentation import Augmentation
from conr_hf.data.cmixup import CMixup
from conr_hf.data.collator import ImageCollator, UserCollator
from conr_hf.data.dataset import SampledDataset
from conr_hf.data.sampler import SampledIndex, TrainingSampler


def probabilities(labels, row, bandwidth):
    """Of every row to be the partner of `row`, from the formula."""
    columns = np.asarray(labels, dtype=float).reshape(len(labels), -1)
    closeness = [
        np.exp(-sum((a - b) ** 2 for a, b in zip(c, columns[row], strict=True)) / 2 / bandwidth**2) for c in columns
    ]
    return np.array(closeness) / sum(closeness)


def assert_drawn_as(found, expected):
    """Counts of partners: a chi-square within five of its standard deviations, and hardly any of the unlikely ones."""
    counts, expected = np.bincount(found, minlength=len(expected)), len(found) * expected
    likely = expected > 5
    chi_square = ((counts - expected)[likely] ** 2 / expected[likely]).sum()
    assert chi_square < likely.sum() + 5 * np.sqrt(2 * likely.sum())
    rare = expected[~likely].sum()
    assert counts[~likely].sum() < rare + 5 * np.sqrt(rare) + 1


# Dense and sparse labels; ties; one far from all others, and one that is alone beside a crowd within reach.
LONE = np.concatenate([np.linspace(5.0, 5.8, 150), [0.0], [40.0]])
LABELS = {
    "spread": np.random.default_rng(0).exponential(3, size=40),
    "whole": np.random.default_rng(0).integers(20, 30, size=40),
    "crowd": LONE,
    "two dimensions": np.random.default_rng(0).normal(size=(40, 2)) * [1.0, 4.0],
}


@pytest.mark.parametrize("labels", LABELS.values(), ids=LABELS)
@pytest.mark.parametrize("many", [False, True])
def test_partners_are_drawn_in_proportion_to_closeness(labels, many):
    """By rejection where rows are many, by weighing every candidate where they are few."""
    mixing = CMixup(labels, alpha=1.0, bandwidth=1.0, seed=0)
    for row in (0, 7, len(labels) - 2, len(labels) - 1):
        if many:
            found = mixing.draw(np.full(20_000, row), epoch=0)[0]
        else:
            found = np.concatenate([mixing.draw(np.full(5, row), epoch)[0] for epoch in range(800)])
        assert_drawn_as(found, probabilities(labels, row, 1.0))


def test_both_ways_of_drawing_are_used():
    """A row alone beside a crowd is accepted once in a million draws; a row within it, nearly always."""
    labels = np.concatenate([np.linspace(5.8, 5.9, 5000), [0.0]])
    partners, _ = CMixup(labels, 1.0, 1.0, 0).draw(np.arange(5001), epoch=0)
    assert partners[-1] == 5000
    assert len(np.unique(partners)) > 2500


def test_units_do_not_matter():
    labels, rows = np.random.default_rng(0).integers(0, 64, 300) / 8, np.arange(300)
    one, other = CMixup(labels, 0.5, 0.25, 3), CMixup(1024 * labels, 0.5, 256.0, 3)
    for ours, theirs in zip(one.draw(rows, 1), other.draw(rows, 1), strict=True):
        assert np.array_equal(ours, theirs)


def test_draws_hang_on_seed_and_epoch_alone():
    """A resumed run, or one on other processes, would train on other mixtures."""
    labels, rows = np.random.default_rng(0).normal(size=500), np.random.default_rng(1).permutation(500)

    def draw(seed=3, epoch=2):
        np.random.seed(epoch)
        return CMixup(labels, 0.7, 0.2, seed).draw(rows, epoch)

    mixing = CMixup(labels, 0.7, 0.2, 3)
    mixing.draw(rows, 1)
    for partners, shares in (draw(), mixing.draw(rows, 2)):
        assert np.array_equal(partners, draw()[0])
        assert np.array_equal(shares, draw()[1])
    for other in (draw(seed=4), draw(epoch=1)):
        assert not np.array_equal(other[0], draw()[0])
        assert not np.array_equal(other[1], draw()[1])


@pytest.mark.parametrize("alpha", [0.001, 0.5, 2.0, 1000.0])
def test_shares_come_from_their_beta_distribution(alpha):
    labels = np.random.default_rng(0).normal(size=4000)
    shares = CMixup(labels, alpha, 1.0, 0).draw(np.arange(4000), 0)[1]
    assert ((shares >= 0) & (shares <= 1)).all()
    spread = 1 / np.sqrt(4 * (2 * alpha + 1))  # standard deviation of Beta(alpha, alpha)
    assert abs(shares.mean() - 0.5) < 5 * spread / np.sqrt(4000)
    assert shares.std() == pytest.approx(spread, rel=0.1)


def test_all_labels_alike_make_every_row_a_likely_partner():
    partners, _ = CMixup(np.full(50, 3.0), 1.0, 1e-3, 0).draw(np.repeat(np.arange(50), 100), 0)
    assert_drawn_as(partners, np.full(50, 1 / 50))


def test_a_row_far_from_all_others_is_mixed_with_itself():
    partners, _ = CMixup([1.0, 2.0, 3.0], 1.0, 1e-3, 0).draw(np.array([2, 0, 1]), 0)
    assert partners.tolist() == [2, 0, 1]
    assert CMixup([5.0], 1.0, 1.0, 0).draw(np.array([0]), 0)[0].tolist() == [0]
    assert len(CMixup([5.0], 1.0, 1.0, 0).draw(np.array([], dtype=np.int64), 0)[0]) == 0


@pytest.mark.parametrize(
    ("labels", "alpha", "bandwidth", "said"),
    [
        ([1.0], 0.0, 1.0, r"alpha is 0\.0; it must be finite and greater than 0"),
        ([1.0], float("nan"), 1.0, "alpha is nan"),
        ([1.0], 1.0, 0.0, r"bandwidth is 0\.0; it must be finite and greater than 0"),
        ([1.0], 1.0, float("inf"), "bandwidth is inf"),
        ([], 1.0, 1.0, "no labels"),
        ([1.0, float("nan")], 1.0, 1.0, r"labels\[1\] is nan"),
    ],
)
def test_refusals_say_what_to_do(labels, alpha, bandwidth, said):
    with pytest.raises(ValueError, match=said):
        CMixup(labels, alpha, bandwidth, 0)


# ---- Batches --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def vit_processor():
    return models["vit"]()[1]


def collator(processor, columns=("label",), flip=True, padding=0.2):
    return ImageCollator(processor, "image", columns, 2, Augmentation(padding, flip), seed=0)


def mixed_epoch(rows, mixing, multiple=1, epoch=0):
    sampler = TrainingSampler(rows, 0, True, multiple, mixing=mixing)
    sampler.epoch = epoch
    return list(sampler)


@pytest.mark.parametrize("multiple", [1, 8])
def test_mixing_gives_partners_and_leaves_the_order(multiple):
    labels = np.random.default_rng(0).normal(size=29)
    mixing = CMixup(labels, 1.0, 0.3, 5)
    draws = mixed_epoch(range(29), mixing, multiple, epoch=3)
    plain = mixed_epoch(range(29), None, multiple, epoch=3)
    assert [draw[:3] for draw in draws] == [draw[:3] for draw in plain]
    assert all(draw.partner is None and draw.share == 1 for draw in plain)
    partners, shares = mixing.draw(np.array([draw.row for draw in draws[:29]]), 3)
    assert [(draw.partner, draw.share) for draw in draws[:29]] == list(zip(partners, shares, strict=True))
    for draw in draws[29:]:  # a repeat is one of the whole draw
        assert draw[3:] == draws[draw.position - 29][3:]


def test_a_row_mixes_with_the_row_that_the_labels_say():
    """Where rows are left out, partners count the others."""
    rows = SampledDataset([{"label": index} for index in range(6)], "train_dataset", [1, 3, 4])
    draw = SampledIndex(0, 0, 0, 2, 0.5)
    assert rows[draw] == (draw._replace(row=1, partner=4), {"label": 1}, {"label": 4})


def test_pixels_and_labels_are_the_stated_mixtures(vit_processor):
    data = images(6)
    rows, collate = SampledDataset(data, "train_dataset"), collator(vit_processor, flip=False, padding=0.0)
    draws = [
        SampledIndex(0, 0, 0, 3, 0.25),
        SampledIndex(1, 0, 1, 1, 0.6),
        SampledIndex(2, 0, 2, 5, 1.0),
        SampledIndex(4, 0, 3, 2, 0.0),
    ]
    batch = collate([rows[draw] for draw in draws])
    pixels = vit_processor(images=list(data["image"]), return_tensors="pt")["pixel_values"]
    assert batch["pixel_values"].shape == (4, 2, 3, 32, 32)
    assert batch["position"] == 0
    for draw, views, label in zip(draws, batch["pixel_values"], batch["labels"], strict=True):
        own, partner = pixels[draw.row], pixels[draw.partner]
        for view in views:
            torch.testing.assert_close(view, draw.share * own + (1 - draw.share) * partner)
        expected = draw.share * data["label"][draw.row] + (1 - draw.share) * data["label"][draw.partner]
        assert label.item() == pytest.approx(expected, rel=1e-6)
    # A row mixed with itself, or by a share of 1 or 0, is a whole image with just its label.
    assert batch["labels"][1:].tolist() == [data["label"][row] for row in (1, 2, 2)]


def test_both_images_are_augmented_each_in_its_own_way(vit_processor):
    """Shifted alike, a pair would be one image to learn by heart."""
    rows, collate = SampledDataset(images(6), "train_dataset"), collator(vit_processor)
    plain = collate([rows[SampledIndex(0, 1, position)] for position in range(20)])["pixel_values"]
    own = collate([rows[SampledIndex(0, 1, position, 4, 1.0)] for position in range(20)])["pixel_values"]
    assert torch.equal(own, plain)
    itself = collate([rows[SampledIndex(0, 1, position, 0, 0.0)] for position in range(20)])["pixel_values"]
    assert (itself == plain).flatten(2).all(-1).float().mean() < 0.3
    half = collate([rows[SampledIndex(0, 1, position, 0, 0.5)] for position in range(20)])["pixel_values"]
    torch.testing.assert_close(half, (itself + plain) / 2)


def test_labels_of_two_dimensions_and_sample_weights_are_mixed_too(vit_processor):
    data = images(4, dimensions=2).add_column("sample_weight", [1.0, 2.0, 3.0, 5.0])
    rows = SampledDataset(data, "train_dataset")
    batch = collator(vit_processor, ("label0", "label1"))(
        [rows[SampledIndex(0, 0, 0, 2, 0.75)], rows[SampledIndex(1, 0, 1, 3, 0.5)]]
    )
    labels = np.stack([data["label0"], data["label1"]], axis=1)
    expected = np.stack([0.75 * labels[0] + 0.25 * labels[2], (labels[1] + labels[3]) / 2])
    np.testing.assert_allclose(batch["labels"], expected, rtol=1e-6)
    assert batch["sample_weight"].tolist() == [1.5, 3.5]


@pytest.mark.parametrize("shape", [(3, 8, 8), (2, 3, 8, 8)])
def test_rows_made_ready_by_the_user_are_mixed_as_they_are(shape):
    values = [np.full(shape, float(index)) for index in range(3)]
    rows = [{"pixel_values": value, "labels": 10 * index} for index, value in enumerate(values)]
    batch = collator(None)([(SampledIndex(0, 0, 0, 2, 0.25), rows[0], rows[2])])
    assert torch.equal(batch["pixel_values"], torch.full((1, *shape), 1.5))
    assert batch["labels"].tolist() == [15.0]


def test_loader_workers_change_nothing(vit_processor):
    data = images(13)
    rows = SampledDataset(data, "train_dataset")

    def epoch(workers):
        sampler = TrainingSampler(rows, 0, True, 1, mixing=CMixup(data["label"], 1.0, 5.0, 0))
        return list(DataLoader(rows, 4, sampler=sampler, collate_fn=collator(vit_processor), num_workers=workers))

    for alone, with_workers in zip(epoch(0), epoch(2), strict=True):
        assert alone["position"] == with_workers["position"]
        for name in ("pixel_values", "labels"):
            assert torch.equal(alone[name], with_workers[name])


def test_a_partner_that_breaks_in_the_middle_of_training_is_named(tmp_path):
    (tmp_path / "bad.png").write_text("no image")
    images(1)[0]["image"].save(tmp_path / "good.png")
    paths = [str(tmp_path / name) for name in ("good.png", "bad.png", "bad.png")]
    data = datasets.Dataset.from_dict({"image": paths}).cast_column("image", datasets.Image())
    with pytest.raises(ValueError, match=r"^train_dataset, row 2: the image cannot be read: it is not an image\.$"):
        SampledDataset(data, "train_dataset", [0, 2])[SampledIndex(0, 0, 0, 1, 0.5)]


def test_a_collator_of_the_users_cannot_mix():
    """It would train on the plain rows, and nobody would see it."""
    row = {"label": 1.0}
    collate = UserCollator(lambda rows: {"labels": torch.tensor([row["label"] for row in rows])})
    assert collate([(SampledIndex(0, 0, 0), row)])["labels"].tolist() == [1.0]
    with pytest.raises(ValueError, match=r"cannot be mixed\. Set cmixup_alpha to 0, or leave data_collator out"):
        collate([(SampledIndex(0, 0, 0, 0, 0.5), row, row)])


def test_labels_of_other_rows_are_refused():
    with pytest.raises(ValueError, match=r"3 labels to mix by and 4 rows\. Give one a row"):
        TrainingSampler(range(4), 0, True, 1, mixing=CMixup([1.0, 2.0, 3.0], 1.0, 1.0, 0))
