"""A model that FSDP or DeepSpeed hold in parts on two processes: trained, saved and resumed as on one."""

import importlib.util
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import pytest
import sharded_processes
import torch
from accelerate import DistributedType, FullyShardedDataParallelPlugin
from launch import launch
from small import build, images, models, vit_config
from transformers import AutoModelForImageClassification
from transformers.integrations.deepspeed import set_hf_deepspeed_config, unset_hf_deepspeed_config

from conr_hf import load_regressor
from conr_hf.models.adopt_head import adopt_head
from conr_hf.models.factory import dummy_pixels
from conr_hf.training.sharding import check_can_shard, check_full_state_dict, set_wrap_classes

SCRIPT = str(Path(__file__).parent / "sharded_processes.py")
without_deepspeed = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None, reason="DeepSpeed is not installed"
)
MODES = ["fsdp", *(pytest.param(zero, marks=without_deepspeed) for zero in ("zero2", "zero3"))]
FIGURES = ("loss", "grad_norm", "base_loss", "conr_loss", "conr_positives", "rnc_loss", "ranksim_loss", "noise_sigma")


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    sharded_processes.run(folder)
    return torch.load(folder / "results.0.pt", weights_only=False)


@pytest.fixture(scope="module")
def launched(tmp_path_factory):
    @cache
    def once(mode):
        folder = tmp_path_factory.mktemp(mode) / "runs"
        return folder, launch(folder, [SCRIPT], mode)

    return once


@pytest.mark.parametrize("mode", MODES)
def test_the_model_was_in_parts(launched, one, mode):
    """Everything below would compare plain data-parallel training with one process."""
    _, results = launched(mode)
    for case in ("methods", "timm"):
        held = torch.tensor([result[case]["held"] for result in results]).sum(0)
        expected = {"fsdp": 1.0, "zero2": 2.0}.get(mode)  # ZeRO-2 shares out gradients and optimizer state only
        assert all(share == pytest.approx(expected) if expected else share < 2 for share in held.tolist())
    assert one["methods"]["held"] == [1.0] * 6


@pytest.mark.parametrize("case", ["methods", "timm"])
@pytest.mark.parametrize("mode", MODES)
def test_training_is_that_of_one_process(launched, one, mode, case):
    """The head's rate, the clipped gradient, the contrast or the state of a method would be others in parts."""
    alone = one[case]
    assert (alone["weights"][-1] - alone["weights"][0]).norm() > 0.1
    for result in (result[case] for result in launched(mode)[1]):
        for weights, expected in zip(result["weights"], alone["weights"], strict=True):
            torch.testing.assert_close(weights, expected, rtol=1e-5, atol=2e-5)
        torch.testing.assert_close(result["final"], alone["final"], rtol=1e-5, atol=2e-5)
        for step, expected in zip(result["log"], alone["log"], strict=True):
            for name in [name for name in FIGURES if name in expected]:
                assert step[name] == pytest.approx(expected[name], rel=1e-4, abs=1e-6), (expected["step"], name)
        assert len(result["evaluations"]) == len(alone["evaluations"]) > 0
        for entry, expected in zip(result["evaluations"], alone["evaluations"], strict=True):
            assert entry["eval_mae"] == pytest.approx(expected["eval_mae"], rel=1e-5)
        assert result["predictions"] == pytest.approx(alone["predictions"], rel=1e-5)


@pytest.mark.parametrize("mode", MODES)
def test_it_can_be_evaluated_before_training(launched, one, mode):
    """The error of the untrained model is the first thing that one looks at."""
    for result in launched(mode)[1]:
        assert result["timm"]["before"] == pytest.approx(one["timm"]["before"], rel=1e-5)


@pytest.mark.parametrize("mode", MODES)
def test_resumed_equals_uninterrupted_bit_for_bit(launched, mode):
    """A run that was stopped would end at another model."""
    for result in launched(mode)[1]:
        assert len(result["resumed"]["weights"]) == 2
        assert torch.equal(result["resumed"]["final"], result["methods"]["final"])
        assert torch.equal(result["resumed"]["weights"][-1], result["methods"]["weights"][-1])


@pytest.mark.parametrize("mode", MODES)
def test_what_is_saved_is_a_whole_vanilla_model(launched, mode):
    """A checkpoint in parts, or of a part, would load nowhere else."""
    folder, results = launched(mode)
    _, processor = models["vit"]()
    rows = images(11, seed=1)
    pixels = processor(images=rows["image"][:], return_tensors="pt")["pixel_values"]
    for saved in ("saved", "checkpoint-6"):
        model = AutoModelForImageClassification.from_pretrained(folder / "methods" / saved)
        with torch.no_grad():
            predicted = model(pixel_values=pixels).logits[:, 0].numpy()
        assert predicted == pytest.approx(results[0]["methods"]["predictions"], rel=1e-5)
    assert torch.equal(results[0]["methods"]["final"], results[0]["methods"]["weights"][-1])


@pytest.mark.parametrize("mode", MODES)
def test_processes_have_the_same_running_statistics(launched, mode):
    """Each would evaluate its rows by batch norm of its own, and the saved model by that of the first."""
    ours, theirs = (result["buffers"]["buffers"] for result in launched(mode)[1])
    assert len(ours) > 3
    assert all(torch.equal(buffer, other) for buffer, other in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("name", models)
def test_units_are_layers_that_accelerate_can_shard(name):
    """It ends in an error on a class that is not in the model, and on a unit around the input embeddings."""
    model, _ = models[name]()
    plugin = FullyShardedDataParallelPlugin(fsdp_version=2, auto_wrap_policy="transformer_based_wrap")
    set_wrap_classes(plugin, model)
    units = set(plugin.transformer_cls_names_to_wrap)
    layers = [layer for layer in model.modules() if type(layer).__name__ in units]
    assert units == {type(layer).__name__ for layer in layers}
    if not name.startswith("timm"):
        assert len(layers) >= 2
    embeddings = model.get_input_embeddings()
    assert not any(embeddings in set(layer.modules()) for layer in layers)
    plugin.transformer_cls_names_to_wrap = ["Mine"]
    set_wrap_classes(plugin, model)
    assert plugin.transformer_cls_names_to_wrap == ["Mine"]


def test_models_are_loaded_whole_under_zero3():
    """Transformers would leave this process a part of each weight, in which no head can be found."""

    class Zero3:
        config: ClassVar = {}

        def is_zero3(self):
            return True

    config = Zero3()
    set_hf_deepspeed_config(config)  # weakly
    try:
        model, processor = load_regressor(vit_config(), image_size=32)
    finally:
        unset_hf_deepspeed_config()
    assert all(parameter.numel() > 0 for parameter in model.parameters())
    model.vit.layernorm.weight.data = torch.empty(0)
    with pytest.raises(ValueError, match=r"vit.layernorm.weight is empty.*Load the model by load_regressor"):
        adopt_head(model, dummy_pixels(processor, model.config))


def test_what_a_sharded_model_cannot_do_again_is_refused(tmp_path):
    """A second train() would fail far from its cause, or start a head that is thrown away."""
    made = build(*models["vit"](), tmp_path, images(8), conr_weight=0.0, reweight="inverse", retrain_head=True)
    made.objective_callback.trained_model, made.is_fsdp_enabled = made.model, True
    with pytest.raises(ValueError, match="with which retrain_head cannot start again"):
        made._hp_search_setup(None)
    made.is_fsdp_enabled, made.is_deepspeed_enabled = False, True
    with pytest.raises(ValueError, match="with which DeepSpeed cannot start again"):
        check_can_shard(made, is_again=True, retrain_head=False)


def test_settings_that_would_save_parts_are_refused():
    """At the end of a long run there would be no model that transformers can load."""
    plugin = FullyShardedDataParallelPlugin(fsdp_version=2, state_dict_type="SHARDED_STATE_DICT")
    sharded = SimpleNamespace(distributed_type=DistributedType.FSDP, state=SimpleNamespace(fsdp_plugin=plugin))
    with pytest.raises(ValueError, match=r"fsdp_state_dict_type is SHARDED_STATE_DICT.* Set it to FULL_STATE_DICT"):
        check_full_state_dict(sharded)
    config = {"zero_optimization": {"stage": 3}}
    state = SimpleNamespace(deepspeed_plugin=SimpleNamespace(deepspeed_config=config))
    zero = SimpleNamespace(distributed_type=DistributedType.DEEPSPEED, state=state)
    with pytest.raises(ValueError, match=r"zero3_save_16bit_model .* is not set.* Set it to true"):
        check_full_state_dict(zero)
    for stage, gathers in ((3, True), (2, False)):
        config["zero_optimization"] = {"stage": stage, "stage3_gather_16bit_weights_on_model_save": gathers}
        check_full_state_dict(zero)
