import functools
import warnings

import pytest
import reference
import torch
from loss_cases import EDGES, SETTINGS, assert_close_in_norm, plain_batch, value_and_gradient

from conr_hf.losses import conr_dense, conr_loss, conr_slices, label_distance
from conr_hf.losses.validation import Settings


def windowed(**batch):
    return conr_loss(**batch, algorithm="windowed")


@pytest.fixture(params=[(32, (96, 256, 2**17)), (2, (2, 4, 16)), (3, (3, 3, 3))], ids=["default", "small", "tiny"])
def tiles(request, monkeypatch):
    """Small batches see several blocks and tiles too."""
    monkeypatch.setattr(conr_slices, "GRAIN", request.param[0])
    monkeypatch.setattr(conr_slices, "TILES_CPU", request.param[1])


def large_batch(rows, dims=8, dtype=torch.float32, label_dims=None, noise=8.0, seed=0):
    """As the labels of ages are, with predictions `noise` off, in eighths: the same pairs in any precision."""
    generator = torch.Generator().manual_seed(seed)
    shape = (rows,) if label_dims is None else (rows, label_dims)
    labels = (45 + 16 * torch.randn(shape, generator=generator)).round().clamp(1, 101)
    return {
        "features": torch.randn(rows, dims, generator=generator).to(dtype),
        "labels": labels.to(dtype),
        "predictions": labels.to(dtype) + (noise * torch.randn(shape, generator=generator) * 8).round().to(dtype) / 8,
        "weights": torch.rand(rows, generator=generator).to(dtype) + 0.5,
        **SETTINGS,
    }


def settings_of(batch, **changes):
    defaults = {"temperature": 0.07, "push": "exponential", "formulation": "exact", "reduction": "mean"}
    chosen = {**defaults, "distance": "mean_abs", "algorithm": "windowed", **batch, **changes}
    return Settings(**{name: chosen[name] for name in Settings._fields})


def assert_same(batch, expected, tolerance=1e-10):
    """`expected` is a loss and its gradient."""
    expected, expected_gradient = expected
    loss, gradient = value_and_gradient(batch, windowed)
    torch.testing.assert_close(loss, expected, rtol=tolerance, atol=1e-14)
    # Where the true gradient is 0, rounding leaves some 1e-16.
    scale = max(expected_gradient.abs().max().item(), 1e-5)
    torch.testing.assert_close(gradient / scale, expected_gradient / scale, rtol=0, atol=tolerance)


def assert_dense(batch, tolerance=1e-10):
    assert_same(batch, value_and_gradient(batch, conr_loss_dense), tolerance)


@functools.cache
def by_loops(make, seed):
    """What loops over the pairs of a random batch give; once, as they are slow."""
    return value_and_gradient(make(seed), reference.conr_loss)


# ---- the same loss -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [reference.random_batch, reference.random_gazes])
@pytest.mark.parametrize("first_seed", range(0, 100, 20))
def test_agrees_with_loops_over_pairs(first_seed, make, tiles):
    for seed in range(first_seed, first_seed + 20):
        assert_same(make(seed), by_loops(make, seed))


@pytest.mark.parametrize("make", [reference.random_batch, reference.random_gazes])
def test_float32_agrees_with_loops_over_pairs_in_float64(make):
    for seed in range(100):
        wide = make(seed)
        batch = {name: value.float() if torch.is_tensor(value) else value for name, value in wide.items()}
        expected, expected_gradient = by_loops(make, seed)
        loss, gradient = value_and_gradient(batch, windowed)
        assert loss.dtype == gradient.dtype == torch.float32
        torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-6, msg=f"seed {seed}")
        scale = max(expected_gradient.abs().max().item(), 1e-1)
        torch.testing.assert_close(gradient.double() / scale, expected_gradient / scale, rtol=0, atol=1e-5)


@pytest.mark.parametrize("formulation", ["exact", "reference"])
@pytest.mark.parametrize("push", ["exponential", "linear"])
@pytest.mark.parametrize("anchors", [None, slice(100, 300), slice(50, 650), slice(699, 700)])
@pytest.mark.parametrize("label_dims", [None, 2])
def test_agrees_with_the_dense_form(formulation, push, anchors, label_dims):
    batch = large_batch(700, dtype=torch.float64, label_dims=label_dims)
    batch |= {"formulation": formulation, "push": push, "anchors": anchors, "reduction": "anchors", "window": 1.5}
    assert_dense(batch)


@pytest.mark.parametrize("spread", [0.2, 2.0, 30.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gazes_agree_with_the_dense_form(spread, dtype):
    """Pitch beyond a right angle is a direction too, as a model may predict it at first."""
    batch = large_batch(700, dtype=dtype, label_dims=2) | {"distance": "angular", "push_scale": 1.0}
    generator = torch.Generator().manual_seed(1)
    batch["labels"] = spread * torch.randn(700, 2, generator=generator, dtype=dtype)
    batch["predictions"] = batch["labels"] + 0.1 * spread * torch.randn(700, 2, generator=generator, dtype=dtype)
    for window in (0.0, 0.03, 0.4):
        for anchors in (None, slice(50, 300)):
            some = batch | {"window": window, "anchors": anchors}
            assert_dense(some, 1e-10 if dtype == torch.float64 else 1e-4)
            assert windowed(**some, return_statistics=True)[1] == conr_loss_dense(**some, return_statistics=True)[1]


def conr_loss_dense(**batch):
    return conr_loss(**batch, algorithm="dense")


@pytest.mark.parametrize("temperature", [1e-6, 0.001, 0.01, 0.02, 0.07, 100.0])
def test_any_temperature(temperature):
    batch = large_batch(300, dtype=torch.float64) | {"temperature": temperature}
    assert_dense(batch)
    narrow = large_batch(300) | {"temperature": temperature}
    expected = value_and_gradient(batch, conr_loss_dense)
    loss, gradient = value_and_gradient(narrow, windowed)
    rounding = 1e-6 * max(1, 0.07 / temperature)  # of a score
    torch.testing.assert_close(loss.double(), expected[0], rtol=10 * rounding, atol=10 * rounding)
    if temperature >= 0.01:
        assert_close_in_norm(gradient, expected[1], 10 * rounding)


def test_the_gradient_is_that_of_finite_differences(tiles):
    for changes in ({}, {"formulation": "reference"}, {"push": "linear"}, {"anchors": slice(2, 5)}):
        batch = plain_batch(rows=12, dims=3, dtype=torch.float64) | changes
        features = batch.pop("features").requires_grad_()
        assert torch.autograd.gradcheck(lambda x, batch=batch: windowed(features=x, **batch), features)


@pytest.mark.parametrize("distance", ["mean_abs", "euclidean"])
@pytest.mark.parametrize("reduction", ["mean", "anchors"])
def test_the_parts_add_up_to_the_whole(distance, reduction, tiles):
    batch = large_batch(90, dtype=torch.float64, label_dims=2) | {"reduction": reduction, "distance": distance}
    batch["window"] = 5.0
    whole, gradient = value_and_gradient(batch, windowed)
    assert whole > 0
    slices_ = [slice(0, 7), slice(7, 70), slice(70, -4), slice(-4, None)]
    parts = [value_and_gradient({**batch, "anchors": anchors}, windowed) for anchors in slices_]
    torch.testing.assert_close(sum(loss for loss, _ in parts), whole, rtol=1e-12, atol=0)
    torch.testing.assert_close(sum(part for _, part in parts), gradient, rtol=1e-10, atol=1e-15)


def test_statistics_are_those_of_the_dense_form(tiles):
    for seed in range(60):
        batch = reference.random_batch(seed)
        expected = conr_loss(**batch, algorithm="dense", return_statistics=True)[1]
        statistics = conr_loss(**batch, algorithm="windowed", return_statistics=True)[1]
        assert statistics == expected
        assert all(count.dtype == torch.int64 for count in statistics)


@pytest.mark.parametrize(
    ("features_dtype", "dtype"),
    [(torch.float32, torch.float32), (torch.float64, torch.float64), (torch.float64, torch.float32)],
)
@pytest.mark.parametrize("scale", [1.0, 1000.0, 0.001])
def test_the_unit_of_the_labels_does_not_choose_the_pairs(features_dtype, dtype, scale, tiles):
    steps = torch.tensor([k * 0.1 * scale for k in range(100)], dtype=dtype)
    integers = torch.arange(100)
    near = ((integers[:, None] - integers).abs() <= 2).sum() - 100
    far = torch.arange(100, dtype=dtype).mul(37).remainder(100) * scale
    for algorithm in ("dense", "windowed"):
        # A pair needs a partner of each kind to be counted: two rows that all are confused with, and similar to.
        for labels, predictions, which in ((steps, torch.zeros(100, dtype=dtype), 1), (far, steps, 2)):
            found = conr_loss(
                torch.ones(100, 2, dtype=features_dtype),
                labels,
                predictions,
                window=0.2 * scale,
                push_scale=0.0,
                algorithm=algorithm,
                return_statistics=True,
            )[1]
            if which == 1:
                assert found.positives == near
                assert found.negatives == 100 * 99 - near
            else:
                assert found.positives == 0  # no two labels are similar
    labels = far.repeat_interleave(2)
    predictions = steps.repeat_interleave(2)
    for algorithm in ("dense", "windowed"):
        found = conr_loss(
            torch.ones(200, 2, dtype=features_dtype),
            labels,
            predictions,
            window=0.2 * scale,
            push_scale=0.0,
            algorithm=algorithm,
            return_statistics=True,
        )[1]
        assert found.positives == 200
        assert found.negatives == 4 * near


# ---- what the data may look like ---------------------------------------------------------------------------------


def shaped(name, rows=400):
    batch = large_batch(rows, dtype=torch.float64)
    generator = torch.Generator().manual_seed(1)
    if name == "half tied":
        batch["labels"][::2] = 45
    elif name == "equal labels":
        batch["labels"][:] = 45
    elif name == "collapsed predictions":
        batch["predictions"] = 45 + 0.1 * torch.randn(rows, generator=generator).double()
    elif name == "equal predictions":
        batch["predictions"][:] = 45
    elif name == "all alike":
        batch["labels"], batch["predictions"] = batch["labels"] * 1e-3, batch["predictions"] * 1e-3
    elif name in ("sorted", "reversed"):
        order = batch["labels"].argsort(descending=name == "reversed")
        batch |= {k: batch[k][order] for k in ("features", "labels", "predictions", "weights")}
    elif name == "unrounded":
        batch["labels"] = batch["labels"] + torch.rand(rows, generator=generator).double()
    elif name == "zero features":
        batch["features"][::3] = 0
    return batch


@pytest.mark.parametrize(
    "name",
    [
        "half tied",
        "equal labels",
        "collapsed predictions",
        "equal predictions",
        "all alike",
        "sorted",
        "reversed",
        "unrounded",
        "zero features",
    ],
)
def test_labels_of_any_shape(name):
    batch = shaped(name)
    assert_dense(batch)
    assert_dense(batch | {"anchors": slice(30, 90)})


@pytest.mark.parametrize("formulation", ["exact", "reference"])
@pytest.mark.parametrize("push", ["exponential", "linear"])
@pytest.mark.parametrize("edge", EDGES)
def test_never_nan(edge, push, formulation):
    batch = {
        **SETTINGS,
        "features": torch.eye(4),
        "predictions": torch.zeros(4),
        **EDGES[edge],
        "push": push,
        "formulation": formulation,
    }
    for reduction in ("mean", "anchors"):
        for features in (batch["features"], batch["features"].double()):
            batch |= {"features": features, "reduction": reduction}
            loss, gradient = value_and_gradient(batch, windowed)
            expected, expected_gradient = value_and_gradient(batch, conr_loss_dense)
            torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
            assert gradient.isfinite().all()
            if features.dtype == torch.float64 and features.numel():
                scale = max(expected_gradient.abs().max().item(), 1e-5)
                torch.testing.assert_close(gradient / scale, expected_gradient / scale, rtol=0, atol=1e-6)


def test_a_distance_of_the_user_is_formed_in_blocks(monkeypatch):
    def great_circle(a, b):
        return (a * b).sum(-1).clamp(-1, 1).acos()

    monkeypatch.setattr(conr_dense, "BLOCK_PAIRS", 64 * 200)
    generator = torch.Generator().manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(200, 3, generator=generator).double())
    predictions = torch.nn.functional.normalize(directions + 0.3 * torch.randn(200, 3, generator=generator))
    batch = {
        "features": torch.randn(200, 4, generator=generator).double(),
        "labels": directions,
        "predictions": predictions,
        "window": 0.3,
        "push_scale": 1.0,
        "distance": great_circle,
    }
    for anchors in (None, slice(10, 150)):
        for reduction in ("mean", "anchors"):
            assert_dense(batch | {"anchors": anchors, "reduction": reduction})


def test_low_precision_and_autocast():
    batch = large_batch(300)
    batch["features"] = batch["features"].bfloat16()
    expected = value_and_gradient(batch, windowed)
    assert expected[0].dtype == torch.float32
    assert expected[1].dtype == torch.bfloat16
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = value_and_gradient(batch, windowed)
    assert torch.equal(actual[0], expected[0])
    assert torch.equal(actual[1], expected[1])


def test_a_second_derivative_is_refused():
    batch = large_batch(100)
    features = batch.pop("features").requires_grad_()
    (gradient,) = torch.autograd.grad(windowed(features=features, **batch), features, create_graph=True)
    with pytest.raises(RuntimeError, match="has a first derivative only"):
        gradient.sum().backward()


# ---- what it costs -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes", [{}, {"anchors": slice(0, 1000)}, {"distance": lambda a, b: (a - b).abs().sum(-1)}]
)
@pytest.mark.parametrize("noise", [8.0, 0.0])
def test_nothing_of_the_size_of_pairs_is_kept_for_the_gradient(noise, changes):
    rows, dims = 3000, 4
    saved = []

    def pack(tensor):
        saved.append(tensor.numel())
        return tensor

    batch = large_batch(rows, dims, noise=noise) | changes
    batch["features"].requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = windowed(**batch)
    assert max(saved, default=0) <= rows * dims
    assert sum(saved) <= 8 * rows * dims
    loss.backward()


def test_slices_hold_few_pairs_and_all_that_matter():
    batch = large_batch(4096, dims=1)
    plan = conr_slices.make_plan(batch["labels"], batch["predictions"], None, (1.0, 1.0), settings_of(batch), 0, 4096)
    statistics = conr_loss(**batch, algorithm="windowed", return_statistics=True)[1]
    assert statistics.positives + statistics.negatives < plan.pairs < 0.15 * 4096**2
    for side in plan.sides:
        covered = torch.zeros(4096, 4096, dtype=torch.bool)
        for first, last, start, end in side.tiles:
            assert not covered[first:last, start:end].any()
            covered[first:last, start:end] = True
        values = side.values[side.rows]
        assert (covered | covered.T)[(values[:, None] - values).abs() <= 1].all()


def test_a_key_of_several_label_dimensions_never_exceeds_the_distance():
    values = large_batch(300, dtype=torch.float64, label_dims=3)["labels"]
    for distance, exponent in (("mean_abs", 1), ("euclidean", 2)):
        for some in (values, values * torch.tensor([1.0, 10.0, -0.1]), torch.stack([values[:, 0], -values[:, 0]], 1)):
            key = conr_slices._sort_key(some, distance)
            distances = torch.cdist(some, some, p=float(exponent)) / (some.shape[1] if exponent == 1 else 1)
            assert ((key[:, None] - key).abs() <= distances + 1e-9).all()
            assert key.std() > 0


@pytest.mark.parametrize("size", [1e-3, 0.3, 2.0, 30.0])
def test_a_key_of_gazes_never_exceeds_the_angle(size):
    values = size * torch.randn(300, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for some in (values, values * torch.tensor([1.0, 0.01]), values * torch.tensor([0.01, 1.0])):
        key = conr_slices._sort_key(some, "angular")
        assert ((key[:, None] - key).abs() <= label_distance(some, some, "angular") + 1e-14 * size).all()
        assert key.std() > 0


@pytest.mark.parametrize(
    ("rows", "predictions", "named"),
    [
        (128, "near", "dense"),
        (1024, "near", "windowed"),
        (1024, "equal", "dense"),
        (2048, "equal", "windowed"),
        (2048, "near, of few anchors", "dense"),
        (2048, "near, of few anchors, divided by them", "windowed"),
    ],
)
def test_auto_takes_slices_where_they_save_work(rows, predictions, named):
    batch = large_batch(rows)
    if predictions == "equal":
        batch["predictions"][:] = 45
    if "few anchors" in predictions:
        batch["anchors"] = slice(64, 192)
    if "divided by them" in predictions:
        batch["reduction"] = "anchors"
    assert torch.equal(value_and_gradient(batch)[1], value_and_gradient({**batch, "algorithm": named})[1])
    other = {"dense": "windowed", "windowed": "dense"}[named]
    assert not torch.equal(value_and_gradient(batch)[1], value_and_gradient({**batch, "algorithm": other})[1])


def test_a_compiled_call_leaves_the_slices_alone():
    torch._dynamo.reset()
    graphs = []

    def count(graph, inputs):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(conr_loss, backend=count)
    for seed in (0, 1):
        batch = large_batch(900, seed=seed)
        assert torch.equal(value_and_gradient(batch, compiled)[1], value_and_gradient(batch)[1])
    assert len(graphs) <= 4


# ---- on a GPU -----------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("algorithm", "waits"), [("dense", 0), ("windowed", 1)])
def test_the_host_waits_for_a_gpu_no_more_than_once(algorithm, waits):
    """A wait in each step would empty the queue that keeps a GPU busy."""
    batch = large_batch(2048)
    batch = {name: value.cuda() if isinstance(value, torch.Tensor) else value for name, value in batch.items()}
    batch["features"].requires_grad_()
    conr_loss(**batch, algorithm=algorithm).backward()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            conr_loss(**batch, algorithm=algorithm).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len([warning for warning in caught if "synchroniz" in str(warning.message)]) <= waits
