"""What would otherwise go wrong without a word, or late: refused, or told, before training starts."""

import numpy as np
import pytest
import small
import torch
from datasets import Dataset
from PIL import Image
from safetensors.torch import load_file
from torch import nn
from transformers import TrainerCallback

from conr_hf import ConRConfig, load_benchmark
from conr_hf.data.benchmarks.loading import benchmark_of
from conr_hf.data.columns import unreadable_rows
from conr_hf.training.conr_state import load_state
from conr_hf.utils.environment import command_line


def test_a_model_with_other_layers_than_its_configuration_makes_is_refused(tmp_path):
    """Its checkpoints would load in plain transformers with a head drawn at random."""
    model, processor = small.models["vit"]()
    model.classifier = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 1))
    with pytest.raises(ValueError, match=r"has other layers than its configuration makes \(classifier\.0\.bias"):
        small.build(model, processor, tmp_path, small.images(4))


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ({}, True),
        ({"save_steps": 100}, True),
        ({"save_strategy": "steps", "save_steps": 100}, True),
        ({"eval_strategy": "steps", "eval_steps": 50, "save_steps": 100}, True),
        ({"save_strategy": "best"}, True),
        ({"eval_strategy": "epoch", "save_strategy": "steps", "save_steps": 100}, False),
        ({"eval_strategy": "steps", "eval_steps": 50, "save_strategy": "epoch"}, False),
        ({"eval_strategy": "steps", "eval_steps": 50, "save_steps": 75}, False),
    ],
)
def test_a_best_model_is_only_promised_where_what_is_evaluated_is_saved(given, kept):
    args = ConRConfig(**given).with_evaluation_defaults([""])
    assert args.load_best_model_at_end is kept
    if "save_steps" in given and "save_strategy" not in given:
        assert args.save_strategy == "steps"  # as in Trainer
    if kept and args.save_strategy == "steps":
        assert args.save_steps % args.eval_steps == 0


def test_the_benchmarks_bins_are_for_its_own_labels():
    """Labels in kilometres, or latitudes, in bins of 200 would all be many-shot."""
    train = load_benchmark("earth-elevation")["train"]
    assert benchmark_of(train, np.array(train["label"])).bin_width == 200
    some = train.shuffle(seed=0).select(range(50))
    assert benchmark_of(some, np.array(some["label"])) is not None
    assert benchmark_of(train, np.array(train["label"]) / 1000) is None
    assert benchmark_of(train, np.array(train["latitude"])) is None
    assert benchmark_of(small.images(4), np.array(small.images(4)["label"])) is None


@pytest.mark.parametrize(
    ("weight", "why"), [(-1.0, r"-1\.0 is less than 0"), (float("nan"), "is nan"), (None, "missing")]
)
def test_a_bad_sample_weight_is_named_before_training(weight, why, tmp_path):
    data = small.images(4).add_column("sample_weight", [1.0, 1.0, weight, 1.0])
    trainer = small.build(*small.models["vit"](), tmp_path, data)
    with pytest.raises(ValueError, match=rf'train_dataset, row 2, column "sample_weight": .*{why}'):
        trainer.train()


def test_an_evaluation_set_without_labels_is_refused_before_training(tmp_path):
    evaluation = small.images(4).rename_column("label", "age")
    trainer = small.build(*small.models["vit"](), tmp_path, small.images(8), evaluation)
    with pytest.raises(ValueError, match=r'eval_dataset has no column "label"; its columns are image, age'):
        trainer.train()
    assert trainer.state.global_step == 0


def test_a_data_set_of_the_users_own_is_read_by_one_thread():
    import threading

    threads = set()

    class Rows(torch.utils.data.Dataset):
        def __len__(self):
            return 6

        def __getitem__(self, index):
            threads.add(threading.get_ident())
            return {"image": Image.new("RGB", (4, 4)), "label": 1.0}

    assert unreadable_rows(Rows(), "image", range(6), "rows", False) == {}
    assert threads == {threading.get_ident()}


def test_tokens_are_not_written_down():
    given = ["train", "r.yaml", "--hub_token", "hf_secret", "--push_to_hub_token=s3"]
    assert command_line(given) == "conr-hf train r.yaml --hub_token ... --push_to_hub_token=..."


def test_an_epoch_that_a_callback_cuts_short_is_not_drawn_again(tmp_path):
    """The next epoch would show the same images in the same order with the same views."""
    from transformers import TrainerCallback

    epochs = []

    class Cut(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            epochs.append(trainer.loaders.order.epoch)
            control.should_epoch_stop = True

    trainer = small.build(
        *small.models["vit"](), tmp_path, small.images(16), callbacks=[Cut()], num_train_epochs=3, save_strategy="no"
    )
    trainer.train()
    assert epochs == [0, 1, 2]


def test_a_collator_set_after_construction_stays(tmp_path):
    trainer = small.build(*small.models["vit"](), tmp_path, small.images(8), save_strategy="no")
    seen = []
    ours = trainer.data_collator
    trainer.data_collator = lambda rows: seen.append(len(rows)) or ours(rows)
    trainer.train()
    assert seen == [8]


def test_the_image_of_a_row_may_have_any_name(tmp_path):
    data = Dataset.from_dict({"photo": [Image.new("RGB", (8, 8))] * 2, "age": [20, 30]})
    trainer = small.build(
        *small.models["vit"](), tmp_path, data, image_column="photo", label_columns="age", save_strategy="no"
    )
    assert trainer.train().global_step == 1


class HalvesTheModel(TrainerCallback):
    def on_epoch_end(self, args, state, control, model=None, **kwargs):
        model.half()


def test_a_model_that_something_made_half_is_neither_measured_nor_saved(tmp_path):
    data = small.images(8)
    trainer = small.build(*small.models["resnet"](), tmp_path, data, data, callbacks=[HalvesTheModel])
    with pytest.raises(ValueError, match=r"is torch\.float16, in which .* 63\.25"):
        trainer.train()
    trainer.model.bfloat16()
    for do in (trainer.train, trainer.evaluate, lambda: trainer.predict(data), trainer.save_model):
        with pytest.raises(ValueError, match=r"is torch\.bfloat16"):
            do()
    assert not list(tmp_path.rglob("*.safetensors"))
    trainer.model.float()
    trainer.args.bf16_full_eval = True  # set too late to be refused with the others
    with pytest.raises(ValueError, match="bf16_full_eval is true"):
        trainer.evaluate()
    trainer.args.bf16_full_eval = False
    trainer.evaluate()
    trainer.save_model()
    saved = load_file(tmp_path / "model.safetensors").values()
    assert {tensor.dtype for tensor in saved if tensor.is_floating_point()} == {torch.float32}


def test_a_batch_above_the_rows_whose_rest_is_dropped(tmp_path):
    given = {"dataloader_drop_last": True, "per_device_train_batch_size": 9}
    trainer = small.build(*small.models["resnet"](), tmp_path, small.images(8), **given)
    with pytest.raises(ValueError, match=r"a batch takes 9 of 8 training rows, so that no batch is left"):
        trainer.train()


def test_labels_beyond_their_bounds_are_refused(tmp_path):
    train, evaluation = small.images(8), small.images(8, seed=1)
    least, greatest = min(train["label"]), max([*train["label"], *evaluation["label"]])
    for name, bound, wrong in (("label_min", least + 1e-3, least), ("label_max", greatest - 1e-3, greatest)):
        trainer = small.build(*small.models["resnet"](), tmp_path, train, evaluation, **{name: bound})
        seen = f'{name} is {bound:g}, but a label in column "label" of (train|eval)_dataset is {wrong:g}'
        with pytest.raises(ValueError, match=seen):
            trainer.train()


def test_shot_thresholds_are_those_of_the_bins_that_are_kept(tmp_path):
    trainer = small.build(*small.models["resnet"](), tmp_path, small.images(8), shot_thresholds=[2, 4], max_steps=1)
    assert trainer.bins.thresholds == (2.0, 4.0)
    trainer.train()
    trainer.save_model()
    assert load_state(str(tmp_path))[1].thresholds == (2.0, 4.0)
    maps = small.build(*small.map_models["timm"](), tmp_path, small.maps(4), shot_thresholds=[1, 3])
    pixels = np.isfinite(np.array(small.maps(4)["label"])).sum() / 4
    assert maps.bins.thresholds == pytest.approx((pixels, 3 * pixels))
