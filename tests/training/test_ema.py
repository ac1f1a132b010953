"""What a run keeps: averaged weights wherever the model is looked at, and resumes across changed settings."""

import contextlib

import numpy as np
import pytest
import small
import torch
import yaml
from transformers import AutoModelForImageClassification, FocalNetConfig, TrainerCallback

from conr_hf import ConRTrainer
from conr_hf.cli import recipe
from conr_hf.cli.train import stage_one_options, train
from conr_hf.models.factory import load_regressor
from conr_hf.training.optimizer import layer_ids
from conr_hf.utils.run_folder import STATE

ROWS = 22


def build(folder, data, evaluation=None, name="vit", **changed):
    torch.manual_seed(0)
    model, processor = small.models[name]()
    settings = {"num_train_epochs": 2, "save_strategy": "no", "learning_rate": 3e-3, "bin_width": 10.0, **changed}
    return small.build(model, processor, folder, data, evaluation, **settings)


class Interrupt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise KeyboardInterrupt


def test_every_evaluation_set_sees_the_average(tmp_path):
    """`evaluate` calls itself for each of several sets; the weights must not be swapped back inside."""
    data, sets = small.images(ROWS), {"a": small.images(9, seed=1), "b": small.images(9, seed=2)}
    trainer = build(tmp_path, data, sets, ema_decay=0.99, eval_strategy="epoch")
    trainer.train()
    last = {}
    for entry in trainer.state.log_history:
        last |= {name: value for name, value in entry.items() if name in ("eval_a_mae", "eval_b_mae")}
    for name, rows in sets.items():
        assert trainer.evaluate(rows)["eval_mae"] == pytest.approx(last[f"eval_{name}_mae"], rel=1e-5)


def test_the_best_checkpoint_stays_the_best(tmp_path):
    """It holds averaged weights; the average at the end is another one."""
    data = small.images(ROWS)
    settings = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}
    trainer = build(tmp_path, data, data, ema_decay=0.9, learning_rate=3e-2, load_best_model_at_end=True, **settings)
    trainer.train()
    best = AutoModelForImageClassification.from_pretrained(trainer.state.best_model_checkpoint)
    for name, value in best.state_dict().items():
        assert torch.equal(trainer.model.state_dict()[name], value), name
    assert trainer.evaluate(data)["eval_mae"] == pytest.approx(trainer.state.best_metric, rel=1e-5)


def test_a_run_cut_short_leaves_one_model(tmp_path):
    """What predicts is what is saved, the average."""
    data = small.images(ROWS)
    trainer = build(tmp_path, data, ema_decay=0.9, callbacks=[Interrupt(4)])
    with contextlib.suppress(KeyboardInterrupt):
        trainer.train()
    predictions = trainer.predict(data).predictions
    trainer.save_model(tmp_path / "saved")
    other = AutoModelForImageClassification.from_pretrained(tmp_path / "saved")
    with torch.no_grad():
        pixels = trainer.processing_class(images=list(data["image"]), return_tensors="pt")["pixel_values"]
        np.testing.assert_allclose(other(pixel_values=pixels).logits[:, 0], predictions, rtol=1e-5)


def test_a_model_saved_during_training_is_the_average(tmp_path):
    class Save(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 4:
                trainer.save_model(tmp_path / "early")
                self.seen = trainer.predict(data).predictions

    data, save = small.images(ROWS), Save()
    trainer = build(tmp_path, data, ema_decay=0.9, callbacks=[save])
    trainer.train()
    other = AutoModelForImageClassification.from_pretrained(tmp_path / "early")
    with torch.no_grad():
        pixels = trainer.processing_class(images=list(data["image"]), return_tensors="pt")["pixel_values"]
        np.testing.assert_allclose(other(pixel_values=pixels).logits[:, 0], save.seen, rtol=1e-5)


@pytest.mark.parametrize(("before", "after"), [(None, 0.9), (0.9, None)])
def test_averaging_may_be_switched_when_a_run_goes_on(before, after, tmp_path):
    """With the raw weights and their optimizer state, not with the averaged ones."""
    data, settings = small.images(ROWS), {"save_strategy": "epoch", "lr_scheduler_type": "constant"}
    whole = build(tmp_path / "whole", data, num_train_epochs=2, **settings)
    whole.train()
    build(tmp_path / "run", data, num_train_epochs=1, ema_decay=before, **settings).train()
    late = build(tmp_path / "run", data, num_train_epochs=2, ema_decay=after, **settings)
    late.train(resume_from_checkpoint=True)
    same = all(torch.equal(a, b) for a, b in zip(late.model.parameters(), whole.model.parameters(), strict=True))
    assert same == (after is None)


def test_a_checkpoint_without_our_state_can_be_gone_on_from(tmp_path):
    data = small.images(ROWS)
    build(tmp_path, data, num_train_epochs=1, save_strategy="epoch").train()
    (tmp_path / "checkpoint-3" / STATE).unlink()
    late = build(tmp_path, data, num_train_epochs=2, save_strategy="epoch")
    late.train(resume_from_checkpoint=True)
    assert late.state.global_step == 6


def test_the_model_may_have_been_run_before(tmp_path):
    """Its head still holds a graph, which cannot be copied."""
    trainer = build(tmp_path, small.images(ROWS), ema_decay=0.9)
    trainer.model(pixel_values=torch.zeros(1, 3, 32, 32))
    trainer.train()


# ---- The head alone -------------------------------------------------------------------------------------------------


def test_a_backbone_that_the_user_froze_keeps_its_statistics_too(tmp_path):
    trainer = build(tmp_path, small.images(ROWS), name="timm-resnet", freeze_backbone=True)
    for name, parameter in trainer.model.named_parameters():
        parameter.requires_grad = "fc" in name
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.train()
    moved = {name for name, value in trainer.model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {"timm_model.fc.weight", "timm_model.fc.bias"}


def test_after_the_head_alone_the_whole_model_learns(tmp_path):
    """The first optimizer holds the head only."""
    trainer = build(tmp_path, small.images(ROWS), freeze_backbone=True)
    trainer.train()
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.args.freeze_backbone = False
    trainer.train()
    moved = {name for name, value in trainer.model.state_dict().items() if not torch.equal(value, before[name])}
    assert len(moved) > 20


# ---- Refusals when training starts ----------------------------------------------------------------------------------


def test_settings_of_a_later_moment_are_checked_too(tmp_path):
    """As a search or a notebook sets them."""
    trainer = build(tmp_path, small.images(ROWS))
    trainer.args.base_loss = "l3"
    with pytest.raises(ValueError, match='base_loss is "l3"'):
        trainer.train()
    trainer.args.base_loss, trainer.args.reweight = "bmc", "inverse"
    with pytest.raises(ValueError, match="twice"):
        trainer.train()


def test_a_loss_of_the_users_own_leaves_no_base_loss_to_set(tmp_path):
    def own(outputs, labels, num_items_in_batch=None):
        return outputs.logits.sum() * 0

    for changed in ({"base_loss": "bmc"}, {"reweight": "inverse"}, {"loss_space": "log1p"}):
        with pytest.raises(ValueError, match="compute_loss_func takes the base loss's place"):
            build(tmp_path, small.images(ROWS), compute_loss_func=own, **changed)


def test_a_collator_of_the_users_own_cannot_mix(tmp_path):
    data = [{"pixel_values": torch.zeros(3, 32, 32), "labels": 30.0}] * 8
    with pytest.raises(ValueError, match="data_collator of your own gets plain rows"):
        small.build(
            *small.models["vit"](),
            tmp_path,
            data,
            data_collator=lambda rows: {
                "pixel_values": torch.stack([row["pixel_values"] for row in rows]),
                "labels": torch.tensor([row["labels"] for row in rows]),
            },
            cmixup_alpha=1.0,
            conr_weight=0.0,
        )


# ---- Layers ---------------------------------------------------------------------------------------------------------


def test_lists_inside_a_block_are_no_blocks():
    config = FocalNetConfig(
        image_size=32, patch_size=4, embed_dim=8, depths=[1, 2], hidden_sizes=[8, 16], focal_levels=[2, 2]
    )
    model, _ = load_regressor(config, image_size=32)
    depths = layer_ids(model)
    assert max(depths.values()) == 1 + 2 + 1
    assert {depth for name, depth in depths.items() if "stages.1.layers.1." in name} == {3}


def test_a_model_without_layers_has_none_to_decay(tmp_path):
    with pytest.raises(ValueError, match="has no list of layers"):
        layer_ids(torch.nn.Sequential(torch.nn.Linear(2, 2)))


# ---- Two stages -----------------------------------------------------------------------------------------------------


def rrt(folder, *arguments):
    quick = ["--max_steps", "4", "--save_strategy", "steps", "--save_steps", "2", "--eval_strategy", "steps"]
    quick += [
        "--eval_steps",
        "2",
        "--per_device_train_batch_size",
        "8",
        "--output_dir",
        str(folder),
        "--use_cpu",
        "true",
    ]
    quick += ["--disable_tqdm", "true", "--model", "timm/test_resnet"]
    return recipe.read_recipe(["methods/rrt", *quick, *arguments])


def test_the_first_stage_is_this_run_but_for_what_makes_it_the_second(tmp_path):
    made, _, options = rrt(tmp_path, "--label_columns", "label", "--bf16", "true")
    first = stage_one_options(made, options)
    assert first["reweight"] == "none"
    assert first["label_columns"] == ["label"]
    assert first["bf16"] is True
    assert not {"retrain_head", "stage_one", "freeze_backbone"} & set(first)
    made.stage_one = "{conr_weight: 0}"
    by_share = options | {"conr_gradient_share": 0.3, "rnc_gradient_share": 0.3}
    assert {"conr_gradient_share", "rnc_gradient_share"} - set(stage_one_options(made, by_share)) == {
        "conr_gradient_share"
    }
    made.stage_one = "methods/vanilla.yaml"
    with pytest.raises(ValueError, match=r"stage_one is .* it must name options"):
        stage_one_options(made, options)


def test_two_stages_go_on_wherever_they_were_cut(tmp_path, monkeypatch):
    """In the first, at its end, and in the second; the result is that of an uninterrupted run."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    train(*rrt(whole), "whole")
    expected = (whole / "predictions.csv").read_text()

    plain = ConRTrainer.train

    def stopping(self, *arguments, **others):
        self.add_callback(Interrupt(3))
        return plain(self, *arguments, **others)

    monkeypatch.setattr(ConRTrainer, "train", stopping)
    with pytest.raises(KeyboardInterrupt):
        train(*rrt(cut), "cut")  # in the first stage
    monkeypatch.undo()
    assert not (cut / "stage-one" / "results.json").exists()
    train(*rrt(cut, "--resume_from_checkpoint", "true"), "again")
    assert (cut / "predictions.csv").read_text() == expected
    assert yaml.safe_load((cut / "recipe.yaml").read_text())["retrain_head"] is True
    for path in (cut / "results.json", cut / "checkpoint-4" / "trainer_state.json"):
        path.unlink()
    train(*rrt(cut, "--resume_from_checkpoint", "true"), "again")  # in the second
    assert (cut / "predictions.csv").read_text() == expected
