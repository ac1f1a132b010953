"""A contrast larger than memory: the same gradients, from parts of the batch."""

import copy

import pytest
import torch
from small import build, images, map_models, maps, models, vit_config
from torch import nn
from transformers import TrainerCallback

from conr_hf import load_regressor
from conr_hf.training.objective.gradient_cache import RandomState, restored_buffers


class Weights(TrainerCallback):
    def __init__(self):
        self.weights = []

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.weights.append({name: weight.detach().clone() for name, weight in model.named_parameters()})


SETTINGS = {
    "optim": "sgd",
    "learning_rate": 0.02,
    "lr_scheduler_type": "constant",
    "conr_weight": 0.5,
    "conr_window": 2.0,
    "num_train_epochs": 2,
    "per_device_train_batch_size": 8,
    "save_strategy": "no",
}
CASES = {
    "ConR": {},
    "one at a time": {"forward_batch_size": 1},
    "what goes with ConR": {"rnc_weight": 1.0, "ranksim_weight": 0.5, "reweight": "inverse"},
    "anchors, accumulated": {"conr_reduction": "anchors", "gradient_accumulation_steps": 2},
    "BMC and FDS": {"base_loss": "bmc", "fds": "gaussian", "bin_width": 10.0},
    "BNI and an average": {"base_loss": "bni", "bin_width": 10.0, "ema_decay": 0.5},
    "three views": {"num_views": 3, "conr_formulation": "reference"},
    "no ConR": {"conr_weight": 0.0, "base_loss": "huber"},
    "head alone": {"freeze_backbone": True},
}


def trained(make, folder, data, **changed):
    noted = Weights()
    trainer = build(*make(), folder, data, callbacks=[noted], **{**SETTINGS, **changed})
    trainer.train()
    return noted.weights, [entry for entry in trainer.state.log_history if "loss" in entry]


def assert_same(one, other):
    (weights, log), (expected, expected_log) = one, other
    assert len(weights) == len(expected) > 2
    for step, wanted in zip(weights, expected, strict=True):
        for name in wanted:
            torch.testing.assert_close(step[name], wanted[name], rtol=1e-4, atol=1e-5, msg=name)
    for entry, wanted in zip(log, expected_log, strict=True):
        figures = [name for name in wanted if name not in ("epoch", "learning_rate")]
        assert {name: entry[name] for name in figures} == pytest.approx(
            {name: wanted[name] for name in figures}, rel=1e-3, abs=1e-5
        )


@pytest.mark.parametrize(
    ("model", "case"), [*(("vit", case) for case in CASES), ("convnextv2", "ConR"), ("convnextv2", "BMC and FDS")]
)
def test_every_step_is_that_of_the_whole_batch(tmp_path, case, model):
    """21 rows: the last batch is short, and smaller than two parts."""
    data = images(21)
    whole = trained(models[model], tmp_path, data, **{**CASES[case], "forward_batch_size": None})
    parts = trained(models[model], tmp_path, data, **{"forward_batch_size": 3, **CASES[case]})
    assert_same(parts, whole)


def test_steps_over_maps_are_those_of_the_whole_batch(tmp_path):
    settings = {"per_device_train_batch_size": 4, "conr_pixels": 48, "bin_width": 4.0, "reweight": "sqrt_inverse"}
    data = maps(7)
    whole = trained(map_models["dpt"], tmp_path, data, **settings)
    assert_same(trained(map_models["dpt"], tmp_path, data, forward_batch_size=2, **settings), whole)


def test_dropout_draws_the_same_twice(tmp_path):
    """The gradients would be those of features that the loss never saw."""
    torch.manual_seed(0)
    model, processor = load_regressor(vit_config(hidden_dropout_prob=0.3), image_size=32)
    trainer = build(model, processor, tmp_path, images(8), forward_batch_size=2, **SETTINGS)
    trainer._hp_search_setup(None)
    trainer.create_optimizer()
    batch = next(iter(trainer.get_train_dataloader()))
    seen = []
    trainer.model.train()
    hook = trainer.head.register_forward_hook(lambda _m, inputs, _o: seen.append(inputs[0].detach().clone()))
    trainer.accelerator.backward(trainer.compute_loss(trainer.model, batch, num_items_in_batch=8))
    hook.remove()
    assert len(seen) == 8
    assert all(torch.equal(first, second) for first, second in zip(seen[:4], seen[4:], strict=True))
    assert not torch.equal(seen[0][0], seen[0][1])


def test_draws_go_on_as_if_nothing_had_been_replayed():
    torch.manual_seed(0)
    state = RandomState(torch.zeros(1))
    first, second = torch.rand(3), torch.rand(3)
    torch.manual_seed(0)
    torch.rand(3)
    with state.replayed():
        assert torch.equal(torch.rand(3), first)
    assert torch.equal(torch.rand(3), second)


def test_running_statistics_count_a_batch_once():
    norm = nn.BatchNorm2d(3).train()
    before = copy.deepcopy(norm.state_dict())
    with restored_buffers(norm):
        norm(torch.randn(4, 3, 5, 5))
    assert all(torch.equal(value, before[name]) for name, value in norm.state_dict().items())


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"forward_batch_size": 0}, "forward_batch_size is 0; it must be 1 or more"),
        ({"forward_batch_size": 2, "compute_loss_func": print}, "here it meets compute_loss_func"),
    ],
)
def test_what_does_not_go_with_it_is_refused(tmp_path, changed, message):
    with pytest.raises(ValueError, match=message):
        build(*models["vit"](), tmp_path, images(4), **changed)
