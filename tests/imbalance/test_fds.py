"""Feature distribution smoothing: the formula, whose statistics it goes by, and what goes on after a resume."""

import math

import numpy as np
import pytest
import reference_imbalance as reference
import torch
from safetensors.torch import load_file, save_file

from conr_hf.imbalance import Bins, FeatureSmoothing, make_bins, smoothing_kernel

TRIANGLE = [0.5, 1.0, 0.5]


def bins_of(count):
    """Bins 0 .. 1, 1 .. 2 and so on; training counts play no part."""
    return Bins((np.arange(count + 1.0),), (np.ones(count, dtype=np.int64),))


def smoothing(count=2, dims=1, kernel=TRIANGLE, **settings):
    return FeatureSmoothing(bins_of(count), dims, kernel, **settings)


def column(*values):
    return torch.tensor(values)[:, None]


def batch(random, rows, count, dims):
    """Features whose mean and spread depend on the bin; some labels lie outside the bins."""
    labels = random.integers(-1, count + 1, rows) + 0.5
    features = random.normal(labels[:, None] * np.arange(1, dims + 1), 0.3 + np.abs(labels)[:, None])
    return torch.tensor(features).float(), torch.tensor(labels).float()


@pytest.mark.parametrize("seed", range(12))
def test_agrees_with_loops_over_bins(seed):
    random = np.random.default_rng(seed)
    count, dims = int(random.integers(1, 12)), int(random.integers(1, 5))
    kernel = smoothing_kernel(("gaussian", "triangular", "laplace")[seed % 3], int(random.choice([1, 3, 5, 9])))
    momentum, clip = float(random.choice([0.0, 0.5, 0.9, 1.0])), float(random.choice([1.0, 2.0, 10.0]))
    fds = FeatureSmoothing(bins_of(count), dims, kernel, momentum, clip)
    slow = reference.FeatureSmoothing(np.arange(count + 1.0), kernel, momentum, clip)
    for _ in range(3):
        for _ in range(3):
            features, labels = batch(random, int(random.integers(0, 14)), count, dims)
            fds.add(features, labels)
            slow.add(features, labels)
        fds.end_epoch()
        slow.end_epoch()
        features, labels = batch(random, 30, count, dims)
        features.requires_grad_()
        smoothed = fds.smooth(features, labels)
        values, factors = slow.smooth(features.detach(), labels)
        assert smoothed.dtype == torch.float32
        np.testing.assert_allclose(smoothed.detach(), values, rtol=2e-5, atol=2e-5)
        (gradient,) = torch.autograd.grad(smoothed.square().sum() / 2, features)
        np.testing.assert_allclose(gradient, values * factors, rtol=1e-4, atol=1e-4)


def test_worked_by_hand():
    # Means 1 and 14, variances 2 and 32. Mirrored, each bin has the other on both sides: (m + 2 * 0.5 m') / 2 is 7.5
    # for both, and 17 the variance. Ratios 8.5, clipped to 4, and 17 / 32.
    fds = smoothing(clip=4.0)
    features, labels = column(0.0, 2.0, 10.0, 18.0), torch.tensor([0.5, 0.5, 1.5, 1.5])
    fds.add(features, labels)
    fds.end_epoch()
    narrow = 4 * math.sqrt(17 / 32)
    expected = column((0 - 1) * 2 + 7.5, (2 - 1) * 2 + 7.5, 7.5 - narrow, 7.5 + narrow)
    torch.testing.assert_close(fds.smooth(features, labels), expected)


def test_rows_added_in_blocks_are_rows_added_at_once(monkeypatch):
    features, labels = batch(np.random.default_rng(0), 20, 4, 3)
    features[7, 1] = math.nan
    once, blocks = smoothing(4, 3), smoothing(4, 3)
    once.add(features, labels)
    monkeypatch.setattr("conr_hf.imbalance.fds.NUMBERS", 20)  # six rows, and two at the end
    blocks.add(features, labels)
    assert once.state()["counts"].sum() > 5
    assert all(torch.equal(value, blocks.state()[name]) for name, value in once.state().items())


def test_a_running_mean_moves_by_what_momentum_leaves():
    # Bin 0: mean 1 and variance 2, then mean 11 and variance 8; 0.75 and 0.25 of them are 3.5 and 3.5. Bin 1 is seen
    # in the second epoch alone: its mean 7 and variance 18 count in full. Means 5.25 and variances 10.75 for both.
    fds = smoothing(momentum=0.75)
    fds.add(column(0.0, 2.0), torch.tensor([0.5, 0.5]))
    fds.end_epoch()
    fds.add(column(9.0, 13.0, 4.0, 10.0), torch.tensor([0.5, 0.5, 1.5, 1.5]))
    fds.end_epoch()
    smoothed = fds.smooth(column(4.5, 8.0), torch.tensor([0.5, 1.5]))
    torch.testing.assert_close(smoothed, column(math.sqrt(10.75 / 3.5) + 5.25, math.sqrt(10.75 / 18) + 5.25))
    # An epoch without bin 0 leaves its statistics; 7 and 18 stay as they are, moved by themselves.
    fds.add(column(4.0, 10.0), torch.tensor([1.5, 1.5]))
    fds.end_epoch()
    torch.testing.assert_close(fds.smooth(column(4.5, 8.0), torch.tensor([0.5, 1.5])), smoothed)


def test_nothing_changes_before_the_first_epoch_has_ended():
    fds = smoothing()
    features, labels = torch.randn(6, 1, requires_grad=True), torch.tensor([0.5, 1.5] * 3)
    assert fds.smooth(features, labels) is features
    fds.add(features, labels)
    assert fds.smooth(features, labels) is features
    fds.end_epoch()
    assert not torch.equal(fds.smooth(features, labels), features)


@pytest.mark.parametrize(("count", "kernel"), [(1, TRIANGLE), (1, [1.0]), (6, [1.0])])
def test_without_neighbours_there_is_nothing_to_smooth(count, kernel):
    fds = smoothing(count, 3, kernel)
    features, labels = batch(np.random.default_rng(0), 60, count, 3)
    fds.add(features, labels)
    fds.end_epoch()
    torch.testing.assert_close(fds.smooth(features, labels), features)


def test_bins_never_seen_neither_change_nor_reach_their_neighbours():
    """Their mean of 0 would draw every feature beside them towards 0."""
    # The kernel is 1/3, 2/3, 1, 2/3, 1/3. Bin 0, mirrored, has bins 2 1 0 1 2: without bin 1 its mean of 9 becomes
    # (9 + 2/3 * 14) / (5/3) = 11, and its variance of 2 becomes (2 + 2/3 * 32) / (5/3) = 14, a ratio of 7.
    fds = smoothing(3, kernel=smoothing_kernel("triangular"))
    fds.add(column(8.0, 10.0, 10.0, 18.0), torch.tensor([0.5, 0.5, 2.5, 2.5]))
    fds.end_epoch()
    smoothed = fds.smooth(column(10.0, 3.3), torch.tensor([0.5, 1.5]))
    torch.testing.assert_close(smoothed[0], torch.tensor([math.sqrt(7) + 11]))
    assert smoothed[1].item() == torch.tensor(3.3)


def test_labels_outside_all_bins_are_left_alone_and_out():
    fds, other = smoothing(), smoothing()
    features, labels = column(0.0, 2.0, 10.0, 18.0), torch.tensor([0.5, 0.5, 1.5, 1.5])
    outside = torch.tensor([-0.5, 2.5, math.nan, math.inf])
    fds.add(torch.cat([features, 100 * features]), torch.cat([labels, outside]))
    other.add(features, labels)
    fds.end_epoch()
    other.end_epoch()
    assert torch.equal(fds.smooth(features, labels), other.smooth(features, labels))
    assert torch.equal(fds.smooth(features, outside), features)


def test_one_feature_that_is_not_finite_does_not_spoil_its_bin():
    """A step that overflows in half precision is skipped, and the run goes on."""
    fds, other = smoothing(dims=2), smoothing(dims=2)
    features, labels = torch.randn(8, 2), torch.tensor([0.5, 1.5] * 4)
    bad = torch.tensor([[math.inf, 0.0], [0.0, math.nan]])
    fds.add(torch.cat([bad, features]), torch.cat([labels[:2], labels]))
    other.add(features, labels)
    fds.end_epoch()
    other.end_epoch()
    assert torch.equal(fds.smooth(features, labels), other.smooth(features, labels))


def test_a_dimension_that_does_not_vary_in_a_bin_passes():
    """By rounding alone its variance would be a little above 0, and a feature would be thrown to the other mean."""
    random = np.random.default_rng(0)
    fds = smoothing(dims=50)
    features, labels = batch(random, 8000, 2, 50)
    first = (labels > 0) & (labels < 1)
    features[first, 1:] = torch.tensor(random.normal(size=49)).float()
    features[first, 1:3] = torch.tensor([0.0, -1234.5678])
    for part in range(0, 8000, 50):
        fds.add(features[part : part + 50], labels[part : part + 50])
    fds.end_epoch()
    smoothed = fds.smooth(features, labels)
    assert torch.equal(smoothed[first, 1:], features[first, 1:])
    assert not torch.isclose(smoothed[first, 0], features[first, 0]).any()
    assert torch.isfinite(smoothed).all()


def test_one_feature_alone_has_no_variance_and_passes():
    fds = smoothing()
    fds.add(column(0.3, 10.0, 18.0), torch.tensor([0.5, 1.5, 1.5]))
    fds.end_epoch()
    assert fds.smooth(column(0.3), torch.tensor([0.5])).item() == torch.tensor(0.3)


def test_an_epoch_is_smoothed_by_the_epochs_before_and_never_in_place():
    """Statistics that follow the batch that they smooth leave nothing of what distinguishes it."""
    fds = smoothing(dims=3)
    random = np.random.default_rng(0)
    features, labels = batch(random, 20, 2, 3)
    fds.add(features, labels)
    fds.end_epoch()
    before = features.clone()
    smoothed = fds.smooth(features, labels)
    kept = smoothed.clone()
    for _ in range(3):
        fds.add(*batch(random, 20, 2, 3))
        assert torch.equal(fds.smooth(features, labels), kept)
    fds.end_epoch()
    assert not torch.equal(fds.smooth(features, labels), kept)
    assert torch.equal(smoothed, kept)
    assert torch.equal(features, before)


def test_large_means_leave_the_variance_exact():
    """Sums of squares in float32 would lose it altogether."""
    fds = smoothing(momentum=0.0)
    random = np.random.default_rng(0)
    spread = torch.tensor(random.normal(size=(4000, 1))).float()
    labels = torch.tensor([0.5, 1.5]).repeat(2000)
    for shift in (0.0, 4096.0):
        features = spread * (1 + labels[:, None]) + shift
        fds.add(features, labels)
        fds.end_epoch()
        smoothed = fds.smooth(features, labels) - shift
        if shift == 0:
            expected = smoothed
    torch.testing.assert_close(smoothed, expected, rtol=0, atol=5e-3)


# ---- Checkpoints and processes --------------------------------------------------------------------------------------


def epochs(fds, random, features, labels, count=2):
    """What `smooth` gives after some more epochs."""
    found = []
    for _ in range(count):
        fds.add(*batch(random, 12, 4, 3))
        fds.end_epoch()
        found += fds.smooth(features, labels).tolist()
    return found


@pytest.mark.parametrize("ended", [0, 1, 3])
def test_a_resumed_run_goes_on_bit_by_bit(tmp_path, ended):
    """Also from the middle of an epoch, whose sums are half done."""
    random = np.random.default_rng(ended)
    features, labels = batch(random, 40, 4, 3)
    live, resumed = smoothing(4, 3), smoothing(4, 3)
    epochs(live, random, features, labels, ended)
    live.add(*batch(random, 9, 4, 3))
    save_file(live.state(), tmp_path / "state.safetensors")
    resumed.add(*batch(random, 5, 4, 3))  # what was there before is gone
    resumed.load(load_file(tmp_path / "state.safetensors"))
    assert torch.equal(resumed.smooth(features, labels), live.smooth(features, labels))
    assert (resumed.smooth(features, labels) is features) == (ended == 0)
    went_on = epochs(live, np.random.default_rng(9), features, labels)
    assert epochs(resumed, np.random.default_rng(9), features, labels) == went_on


@pytest.mark.parametrize("count", [1, 4])
def test_a_state_does_not_follow_the_run_that_goes_on(count):
    fds = smoothing(count, 3)
    random = np.random.default_rng(0)
    fds.add(*batch(random, 12, count, 3))
    state = fds.state()
    kept = {name: value.clone() for name, value in state.items()}
    other = smoothing(count, 3)
    other.load(state)
    for run in (fds, other):
        run.add(*batch(random, 12, count, 3))
        run.end_epoch()
    assert state.keys() == kept.keys()
    assert all(torch.equal(value, kept[name]) for name, value in state.items())


def sum_of(*runs):
    """What reduces over these runs as over processes, at this point."""
    found = []
    for run in runs:
        run.merge(lambda sums: (found.append(sums.clone()), sums)[1], keep=True)
    return lambda sums: torch.stack(found).sum(0)


def test_two_processes_find_the_statistics_of_one():
    random = np.random.default_rng(0)
    one, first, second = (smoothing(4, 3) for _ in range(3))
    for _ in range(2):
        features, labels = batch(random, 40, 4, 3)
        one.add(features, labels)
        first.add(features[:17], labels[:17])
        second.add(features[17:], labels[17:])
        both = sum_of(first, second)
        first.end_epoch(both)
        second.end_epoch(both)
        one.end_epoch()
    assert torch.equal(first.smooth(features, labels), second.smooth(features, labels))
    torch.testing.assert_close(first.smooth(features, labels), one.smooth(features, labels))


def test_a_checkpoint_of_the_first_process_holds_the_sums_of_all():
    """And the run that writes it, and goes on, counts no feature twice."""
    random = np.random.default_rng(0)
    one, first, second, resumed = (smoothing(4, 3) for _ in range(4))
    features, labels = batch(random, 40, 4, 3)
    for start in (0, 20):
        one.add(features[start : start + 20], labels[start : start + 20])
        first.add(features[start : start + 8], labels[start : start + 8])
        second.add(features[start + 8 : start + 20], labels[start + 8 : start + 20])
        if start == 0:
            both = sum_of(first, second)
            first.merge(both, keep=True)
            second.merge(both, keep=False)
            resumed.load(first.state())
            assert torch.equal(resumed.state()["counts"], one.state()["counts"])
            assert not second.state()["counts"].any()
    resumed.add(features[20:28], labels[20:28])
    both = sum_of(first, second)
    resumed_both = sum_of(resumed, second)
    first.end_epoch(both)
    resumed.end_epoch(resumed_both)
    one.end_epoch()
    assert torch.equal(first.smooth(features, labels), resumed.smooth(features, labels))
    torch.testing.assert_close(first.smooth(features, labels), one.smooth(features, labels))


# ---- Dtypes, devices, refusals --------------------------------------------------------------------------------------


def test_half_precision_comes_out_as_float32_and_float64_stays():
    fds = smoothing(dims=2)
    features, labels = torch.randn(12, 2), torch.tensor([0.5, 1.5] * 6)
    fds.add(features.bfloat16(), labels)
    fds.end_epoch()
    expected = fds.smooth(features.bfloat16().float(), labels)
    assert torch.equal(fds.smooth(features.bfloat16(), labels), expected)
    torch.testing.assert_close(fds.smooth(features.bfloat16().double(), labels), expected.double())


def test_labels_near_an_edge_fall_where_the_bins_say():
    labels = (np.arange(30) * 0.1).astype(np.float32)
    bins = make_bins(labels, 0.1)
    fds = FeatureSmoothing(bins, 1, [1.0])
    fds.add(torch.zeros(30, 1), torch.from_numpy(labels))
    assert fds.state()["counts"].ravel().tolist() == list(bins.train_counts[0])


def test_refusals_say_what_to_do():
    two = make_bins([[1.0, 2.0], [3.0, 4.0]])
    with pytest.raises(ValueError, match="2 label dimensions"):
        FeatureSmoothing(two, 1, TRIANGLE)
    with pytest.raises(ValueError, match=r"momentum is 1\.5; it must be between 0 and 1"):
        smoothing(momentum=1.5)
    with pytest.raises(ValueError, match=r"clip is 0\.5; it must be 1 or more"):
        smoothing(clip=0.5)
    with pytest.raises(ValueError, match="smoothing_kernel makes such"):
        smoothing(kernel=[1.0, 1.0])
    for call in (smoothing().add, smoothing().smooth):
        with pytest.raises(ValueError, match=r"features has shape \(4, 2\) and labels \(4,\)"):
            call(torch.zeros(4, 2), torch.zeros(4))
        with pytest.raises(ValueError, match=r"labels \(4, 1\); they must be \(M, 1\) and \(M,\)"):
            call(torch.zeros(4, 1), torch.zeros(4, 1))
    with pytest.raises(ValueError, match="are of 3 x 1 bins and dimensions, and here there are 2 x 1"):
        smoothing().load(smoothing(3).state())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_training_step_on_a_gpu_never_waits_for_it():
    fds, on_cpu = smoothing(4, 3, device="cuda"), smoothing(4, 3)
    features, labels = batch(np.random.default_rng(0), 40, 4, 3)
    on_cpu.add(features, labels)
    on_cpu.end_epoch()
    there, labels_there = features.cuda(), labels.cuda()
    torch.cuda.set_sync_debug_mode("error")
    try:
        fds.add(there, labels_there)
        fds.end_epoch()
        smoothed = fds.smooth(there, labels_there)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(smoothed.cpu(), on_cpu.smooth(features, labels))
    assert fds.state()["mean"].device.type == "cpu"
