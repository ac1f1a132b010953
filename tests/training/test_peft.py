"""Models trained by adapters of PEFT: the head that learns, what is saved, and merged vanilla models."""

import json
import re

import pytest
import torch
from small import build, images, map_models, maps, models
from transformers import AutoModelForImageClassification, TrainerCallback

from conr_hf import load_regressor
from conr_hf.models.outputs import predicts_maps

peft = pytest.importorskip("peft")

LAYERS = {"vit": ["q_proj", "v_proj"], "timm-vit": ["qkv"], "timm-resnet": ["conv1.3"]}
HEADS = {"vit": "classifier", "timm-vit": "timm_model.head", "timm-resnet": "timm_model.fc"}
METHODS = {"base_loss": "bni", "fds": "gaussian", "bin_width": 10.0, "conr_window": 2.0, "rnc_weight": 0.5}


def with_lora(name, **changed):
    model, processor = models[name]()
    settings = {"target_modules": LAYERS[name], "modules_to_save": [HEADS[name]], **changed}
    return peft.get_peft_model(model, peft.LoraConfig(**settings)), processor


def trainer(folder, name="vit", given=None, **changed):
    torch.manual_seed(0)
    model, processor = given or with_lora(name)
    settings = {"num_train_epochs": 3, "learning_rate": 3e-3, "weight_decay": 0.1, **METHODS, **changed}
    return build(model, processor, folder, images(13), images(11, seed=1), **settings)


@pytest.fixture(scope="module", params=LAYERS)
def trained(request, tmp_path_factory):
    run = trainer(tmp_path_factory.mktemp(request.param), request.param)
    before = {key: value.clone() for key, value in run.model.state_dict().items()}
    run.train()
    run.save_model(f"{run.args.output_dir}/saved")
    return request.param, run, before, run.predict(run.eval_dataset).predictions


def predicted(model, processor):
    pixels = processor(images=images(11, seed=1)["image"][:], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        return model.eval()(pixel_values=pixels).logits[:, 0].numpy()


def test_the_copy_that_learns_is_the_head(trained):
    """PEFT keeps the layer as it was beside the one that it trains: the losses would read, or start, the wrong one."""
    name, run, before, _ = trained
    module = f"base_model.model.{HEADS[name]}"
    assert run.model.get_submodule(f"{module}.modules_to_save.default") is run.head
    after = run.model.state_dict()
    changed = {key for key, value in after.items() if not torch.equal(value, before[key])}
    assert {f"{module}.modules_to_save.default.{part}" for part in ("weight", "bias")} <= changed
    assert any("lora_B" in key for key in changed)
    assert all("lora_" in key or ".modules_to_save." in key for key in changed), "the pretrained model has changed"
    labels = torch.tensor(images(13)["label"][:])
    assert abs(run.head.bias.item() - labels.mean().item()) < 2 * labels.std().item()


def test_the_head_has_groups_of_its_own(trained):
    """It would learn as slowly as a layer without a unit."""
    _, run, _, _ = trained
    own = {id(parameter) for parameter in run.head.parameters()}
    of_head = [group for group in run.optimizer.param_groups if {id(part) for part in group["params"]} & own]
    assert sum(len(group["params"]) for group in of_head) == 2
    others = [group for group in run.optimizer.param_groups if group not in of_head]
    assert of_head[0]["initial_lr"] == pytest.approx(others[0]["initial_lr"] * run.resolved.label_scale)


@pytest.mark.parametrize("folder", ["saved", "checkpoint"])
def test_a_saved_adapter_gives_the_same_predictions(trained, folder):
    """On a fresh copy of the model it was trained on, batch norm among it, it is all that there is of the training."""
    name, run, _, expected = trained
    if folder == "checkpoint":
        folder = f"checkpoint-{run.state.best_global_step}"
    model, processor = models[name]()
    model = peft.PeftModel.from_pretrained(model, f"{run.args.output_dir}/{folder}")
    assert predicted(model, processor) == pytest.approx(expected, rel=1e-5)


def test_a_merged_adapter_is_a_vanilla_model(trained, tmp_path):
    """It would need this package, or PEFT, to predict."""
    name, run, _, expected = trained
    base, processor = models[name]()
    reloaded = peft.PeftModel.from_pretrained(base, f"{run.args.output_dir}/saved")
    reloaded.merge_and_unload().save_pretrained(tmp_path / "reloaded")
    merged = AutoModelForImageClassification.from_pretrained(tmp_path / "reloaded")
    assert predicted(merged, processor) == pytest.approx(expected, rel=1e-4)


def test_the_live_model_merges_too(tmp_path):
    """`trainer.model.merge_and_unload()` is what one writes first."""
    run = trainer(tmp_path)
    run.train()
    expected = run.predict(run.eval_dataset).predictions
    run.model.merge_and_unload().save_pretrained(tmp_path / "merged")
    merged = AutoModelForImageClassification.from_pretrained(tmp_path / "merged")
    assert merged.config.problem_type == "regression"
    assert predicted(merged, run.processing_class) == pytest.approx(expected, rel=1e-4)


class Stop(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step == 4


def test_resumed_equals_uninterrupted_bit_for_bit(tmp_path):
    """A checkpoint of an adapter has nothing of the rest of the model."""

    def weights(run):
        return torch.cat([parameter.detach().flatten() for parameter in run.model.parameters()])

    whole = trainer(tmp_path / "whole", load_best_model_at_end=False)
    whole.train()
    trainer(tmp_path / "stopped", load_best_model_at_end=False, callbacks=[Stop()]).train()
    late = trainer(tmp_path / "stopped", load_best_model_at_end=False)
    with torch.no_grad():
        late.head.bias.fill_(3.0)
    late.train(resume_from_checkpoint=True)
    assert late.state.global_step == whole.state.global_step == 6
    assert torch.equal(weights(late), weights(whole))
    assert list((tmp_path / "whole").glob("checkpoint-6/adapter_model.safetensors"))


def test_it_learns_on_after_its_best_checkpoint_was_loaded(tmp_path):
    """Loading an adapter may freeze it."""
    run = trainer(tmp_path, num_train_epochs=1)
    run.train()
    learns = [name for name, parameter in run.model.named_parameters() if parameter.requires_grad]
    assert any("lora_A" in name for name in learns)
    assert any("classifier" in name for name in learns)


@pytest.mark.parametrize(
    "changed", [{"modules_to_save": None}, {"modules_to_save": None, "target_modules": "all-linear"}]
)
def test_a_head_outside_the_adapter_is_refused(tmp_path, changed):
    """It would stay at its start, and the adapter predict by a head drawn anew."""
    run = trainer(tmp_path, given=with_lora("vit", **changed))
    with pytest.raises(
        ValueError, match=r'^classifier, .* neither trained nor saved.*modules_to_save=\["classifier"\]'
    ):
        run.train()


def test_a_model_of_maps_is_one_within_an_adapter(tmp_path):
    """Its class is PEFT's: it would be taken for one that predicts a number."""
    model, processor = map_models["dpt"]()
    lora = peft.LoraConfig(target_modules=["query"], modules_to_save=["head.head.4"])
    model = peft.get_peft_model(model, lora)
    assert predicts_maps(model)
    run = build(model, processor, tmp_path, maps(5), maps(3, seed=1), conr_window=2.0)
    run.train()
    assert run.is_map
    assert run.predict(maps(3, seed=1)).predictions.shape == (3, 16, 16)


def test_the_card_says_that_it_is_an_adapter(trained):
    """The Hub offers the code that loads it by this."""
    _, run, _, _ = trained
    run.create_model_card()
    with open(f"{run.args.output_dir}/README.md", encoding="utf-8") as file:
        text = file.read()
    assert "library_name: peft" in text
    with open(f"{run.args.output_dir}/saved/adapter_config.json", encoding="utf-8") as file:
        assert json.load(file)["modules_to_save"] == [HEADS[trained[0]]]


@pytest.mark.parametrize("idle", ["all", "some"])
def test_an_adapter_that_takes_no_part_is_named(idle, tmp_path, caplog):
    """SwinV2's attention of timm reads the weight of qkv past the layer: its adapter would never learn."""
    sizes = {"embed_dim": 12, "depths": (1, 1), "num_heads": (1, 2), "window_size": 2}
    torch.manual_seed(0)
    model, processor = load_regressor("timm/swinv2_tiny_window8_256", pretrained=False, image_size=32, **sizes)
    targets = ["qkv"] if idle == "all" else ["qkv", "proj"]
    lora = peft.LoraConfig(target_modules=targets, modules_to_save=["timm_model.head.fc"])
    run = build(peft.get_peft_model(model, lora), processor, tmp_path, images(8), max_steps=1)
    named = (
        r"timm_model\.layers\.0\.blocks\.0\.attn\.qkv\.lora_A\.default\.weight, .* have no gradient: the model reads"
    )
    if idle == "all":
        with pytest.raises(ValueError, match=f"^The adapter would learn nothing, as {named}"):
            run.train()
    else:
        run.train()
        assert re.search(f"A part of the adapter will not learn, as {named}", caplog.text)
