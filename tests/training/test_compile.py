"""Compiled models, and those that save memory by recomputing, together with what reads the head's input."""

import pytest
import torch
from small import build, images, models

EPOCHS = 2
FDS = {"fds": "gaussian", "bin_width": 10.0}


def trained(folder, name, forwards=None, **changed):
    """A run whose second epoch smooths by what the first has seen."""
    torch.manual_seed(0)
    settings = {
        "num_train_epochs": EPOCHS,
        "optim": "sgd",
        "learning_rate": 0.02,
        "conr_weight": 0.3,
        "conr_window": 3.0,
        "rnc_weight": None,
        "rnc_gradient_share": 0.5,
        "save_strategy": "no",
        "load_best_model_at_end": False,
        **changed,
    }
    run = build(*models[name](), folder, images(16), images(8, seed=1), **settings)
    if forwards is not None:  # of a layer of the first block, in training
        inner = next(module for module in run.model.modules() if isinstance(module, torch.nn.Linear))
        inner.register_forward_pre_hook(lambda module, _inputs: forwards.append(None) if module.training else None)
    run.train()
    return run


def assert_same(run, plain, tolerance=1e-4):
    mine, theirs = ([entry for entry in one.state.log_history if "loss" in entry] for one in (run, plain))
    assert len(mine) == len(theirs) == 2 * EPOCHS
    assert all(entry["conr_loss"] > 0 and entry["rnc_loss"] > 0 for entry in theirs)
    for entry, expected in zip(mine, theirs, strict=True):
        for name in ("loss", "grad_norm", "base_loss", "conr_loss", "rnc_loss"):
            assert entry[name] == pytest.approx(expected[name], rel=10 * tolerance), (expected["step"], name)
    weights, expected = ({**one.model.state_dict()} for one in (run, plain))
    assert weights.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(weights[name], expected[name], rtol=tolerance, atol=tolerance)
    predictions, expected = (one.predict(one.eval_dataset).predictions for one in (run, plain))
    assert predictions == pytest.approx(expected, rel=tolerance)


@pytest.mark.parametrize("name", ["vit", "timm-resnet"])
def test_compiled_equals_eager_with_what_reads_features(tmp_path, name):
    """FDS puts smoothed features before the head by labels that a compiled forward does not see."""
    plain = trained(tmp_path / "plain", name, **FDS)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    run = trained(tmp_path / "compiled", name, torch_compile=True, torch_compile_backend="aot_eager", **FDS)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0, "the mode was not on"
    torch._dynamo.reset()
    assert_same(run, plain)


@pytest.mark.parametrize(
    ("name", "changed"),
    [("vit", FDS), ("vit", {"forward_batch_size": 3}), ("vit", {"forward_batch_size": 3, **FDS}), ("timm-vit", {})],
)
def test_gradient_checkpointing_changes_nothing(tmp_path, name, changed):
    """The forward that is run again would hand its features to the losses, or count them twice for FDS."""
    once, again = [], []
    plain = trained(tmp_path / "plain", name, once, **changed)
    run = trained(tmp_path / "checkpointed", name, again, gradient_checkpointing=True, **changed)
    # Cached parts have a first forward without graph, in which nothing is recomputed.
    assert len(again) == (1.5 if "forward_batch_size" in changed else 2) * len(once), "the mode was not on"
    assert_same(run, plain, tolerance=1e-6)
