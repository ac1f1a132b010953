"""Settings: wrong ones are refused when they are made, unset ones follow the data, and the user's own always win."""

import copy
import dataclasses
import json
import math
import pickle

import numpy as np
import pytest
import small
import torch
from transformers import HfArgumentParser, TrainingArguments

from conr_hf import ConRConfig
from conr_hf.data.config import DataConfig
from conr_hf.metrics import depth_metrics, shot_metrics
from conr_hf.training.config.method_config import MethodConfig
from conr_hf.training.config.resolved_config import ResolvedConfig, resolve
from conr_hf.utils.fields import with_help


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("conr_weight", -0.1, "0 or more"),
        ("conr_weight", math.nan, "0 or more"),
        ("conr_gradient_share", -0.1, "0 or more"),
        ("rnc_gradient_share", math.inf, "0 or more"),
        ("conr_window", -1.0, "0 or more"),
        ("conr_window", math.inf, "0 or more"),
        ("conr_push_scale", -1.0, "0 or more"),
        ("conr_temperature", 0.0, r"greater than 0 \(0\.07"),
        ("conr_temperature", -1.0, "greater than 0"),
        ("conr_temperature", math.nan, "greater than 0"),
        ("conr_push", "quadratic", "exponential, linear"),
        ("conr_formulation", "paper", "exact, reference"),
        ("conr_reduction", "sum", "mean, anchors"),
        ("conr_distance", "cosine", "mean_abs, euclidean, angular"),
        ("conr_distance", "angular", r"label_columns is \['label'\]; name two columns, pitch and yaw"),
        ("conr_reweight", "sqrt", "none, inverse, sqrt_inverse"),
        ("reweight", "sqrt_inv", "none, inverse, sqrt_inverse"),
        ("base_loss", "l2", "l1, mse, huber"),
        ("huber_delta", 0.0, "greater than 0"),
        ("label_scale", 0.0, "greater than 0"),
        ("label_scale", math.inf, "greater than 0"),
        ("bin_width", 0.0, "greater than 0"),
        ("bin_width", -5.0, "greater than 0"),
        ("num_views", 0, "1 or more"),
        ("crop_padding", -0.1, "0 or more"),
        ("crop_padding", 0.6, "0.5 or less"),
        ("label_columns", [], "name one column"),
        ("label_columns", ["age", "age"], "several different"),
        ("remove_unused_columns", True, "must be false"),
        ("prediction_loss_only", True, "must be false"),
        ("eval_do_concat_batches", False, "must be true"),
        ("train_sampling_strategy", "group_by_length", "random, sequential"),
        ("eval_strategy", "epochs", "no, steps, epoch"),
        ("save_strategy", "never", "no, steps, epoch, best"),
        ("learning_rate", -1e-3, "0 or more"),
        ("weight_decay", math.nan, "0 or more"),
        ("lr_drop_epochs", [], "rising numbers of epochs from 1 on, as in 60 80"),
        ("lr_drop_epochs", [80, 60], "rising numbers"),
        ("lr_drop_epochs", [60, 60], "rising numbers"),
        ("lr_drop_epochs", [0, 60], "from 1 on"),
        ("per_device_train_batch_size", 0, "1 or more"),
        ("per_device_eval_batch_size", -1, "1 or more"),
    ],
)
def test_a_setting_that_cannot_be_meant_is_refused_by_name(name, value, says):
    with pytest.raises(ValueError, match=rf"^{name} is .*{says}") as refused:
        ConRConfig("out", **{name: value})
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"augmentation": "strong", "crop_padding": 0.1}, "crop_padding (needs augmentation light, or crop_area 1)"),
        ({"freeze_backbone": True, "rnc_weight": 1.0}, "rnc_weight (needs a backbone that is trained)"),
        (
            {"reweight": "inverse", "retrain_head": True, "ranksim_weight": 1.0},
            "ranksim_weight (needs a backbone that is trained)",
        ),
        ({"scale_each": True, "label_scale": 2.0}, "label_scale (needs scale_each false)"),
        (
            {"huber_delta": 2.0, "focal_beta": 1.0, "noise_sigma": 3.0, "gai_components": 4, "fds_clip": 5.0},
            "huber_delta (needs base_loss huber), focal_beta (needs base_loss focal_l1 or focal_mse), "
            "noise_sigma (needs base_loss bmc, gai or bni), gai_components (needs base_loss gai), "
            "fds_clip (needs fds)",
        ),
        (
            {"lds_sigma": 1.0, "ranksim_interpolation": 1.0, "rnc_weight": 0.0, "rnc_temperature": 1.0},
            "lds_sigma (needs lds), ranksim_interpolation (needs ranksim_weight), rnc_temperature (needs rnc_weight)",
        ),
        ({"cmixup_bandwidth": 1.0}, "cmixup_bandwidth (needs cmixup_alpha)"),
        (
            {"freeze_backbone": True, "conr_gradient_share": 0.3, "rnc_gradient_share": 0.3},
            "conr_gradient_share (needs a backbone that is trained), rnc_gradient_share (needs a backbone that is "
            "trained)",
        ),
    ],
)
def test_one_warning_names_all_options_without_effect(settings, named, caplog):
    ConRConfig("out", use_cpu=True, **settings)
    assert caplog.messages == [f"Set, but without effect: {named}."]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"base_loss": "huber", "huber_delta": 2.0},
        {"base_loss": "focal_mse", "focal_beta": 2.0},
        {"base_loss": "gai", "gai_components": 4, "noise_sigma": 3.0, "noise_learning_rate": 0.0},
        {"lds": "gaussian", "lds_sigma": 1.0, "fds": "laplace", "fds_clip": 5.0, "ranksim_weight": 1.0},
        {"ranksim_weight": 1.0, "ranksim_interpolation": 1.0, "rnc_temperature": 1.0, "label_scale": 2.0},
        {"cmixup_alpha": 1.0, "cmixup_bandwidth": 1.0, "conr_weight": 0.0},
    ],
)
def test_options_with_an_effect_are_not_warned_of(settings, caplog):
    ConRConfig("out", use_cpu=True, **settings)
    assert not caplog.messages


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"conr_gradient_share": 0.3, "conr_weight": 0.0}, "conr_gradient_share is 0.3 and conr_weight 0.0"),
        ({"rnc_gradient_share": 0.3, "rnc_weight": 0.0}, "rnc_gradient_share is 0.3 and rnc_weight 0.0"),
        ({"ranksim_gradient_share": 0.3, "ranksim_weight": 6.0}, "ranksim_gradient_share is 0.3 and ranksim_weight 6"),
        ({"conr_gradient_share": 0.3, "cmixup_alpha": 1.0}, "cmixup_alpha is 1.0 and conr_gradient_share"),
        ({"conr_weight": 0.0, "rnc_gradient_share": 0.3, "cmixup_alpha": 1.0}, "cmixup_alpha is 1.0 and rnc_gradient"),
    ],
)
def test_a_weight_and_a_share_are_one_too_many(settings, says):
    with pytest.raises(ValueError, match=f"^{says}"):
        ConRConfig("out", **settings)


def test_defaults():
    args = ConRConfig("out")
    expected = {
        "conr_weight": None,
        "conr_gradient_share": None,
        "conr_window": None,
        "conr_temperature": 0.07,
        "conr_push": "exponential",
        "conr_push_scale": None,
        "conr_formulation": "exact",
        "conr_reduction": "mean",
        "conr_distance": "mean_abs",
        "conr_reweight": "sqrt_inverse",
        "label_columns": ["label"],
        "image_column": "image",
        "num_views": 1,
        "horizontal_flip": False,
        "augmentation": "light",
        "augment_color": True,
        "crop_area": None,
        "vertical_flip": False,
        "crop_padding": 1 / 14,
        "base_loss": "l1",
        "loss_space": "label",
        "huber_delta": None,
        "focal_beta": None,
        "noise_sigma": None,
        "noise_learning_rate": 0.01,
        "gai_components": 8,
        "reweight": "none",
        "resample": None,
        "lds": "none",
        "lds_kernel_size": 5,
        "lds_sigma": 2.0,
        "fds": "none",
        "fds_kernel_size": 5,
        "fds_sigma": 2.0,
        "fds_momentum": 0.9,
        "fds_clip": 10.0,
        "ranksim_weight": 0.0,
        "ranksim_gradient_share": None,
        "ranksim_interpolation": 2.0,
        "rnc_weight": None,
        "rnc_gradient_share": None,
        "rnc_temperature": 2.0,
        "cmixup_alpha": 0.0,
        "cmixup_bandwidth": None,
        "freeze_backbone": False,
        "retrain_head": False,
        "layer_decay": None,
        "ema_decay": None,
        "refit_head": "none",
        "label_scale": None,
        "scale_each": False,
        "bin_width": None,
        "shot_thresholds": None,
        "label_min": None,
        "label_max": None,
        "conr_gather": "all",
        "conr_pixels": 1024,
        "conr_anchors": None,
        "map_scale": 1.0,
        "map_invalid": None,
        "image_range": None,
        "flipped_columns": None,
        "forward_batch_size": None,
        "skip_bad_rows": False,
        "head": None,
        "lr_drop_epochs": None,
        "on_bad_loss": "stop",
        "model_card_template": None,
        "overwrite_output_dir": False,
        "dataloader_persistent_workers": None,
        "remove_unused_columns": False,
    }
    assert {name: getattr(args, name) for name in expected} == expected
    ours = {field.name for field in dataclasses.fields(ConRConfig) if field.name in ConRConfig.own_fields()}
    evaluation = {"eval_strategy", "save_strategy", "save_steps", "load_best_model_at_end"}
    assert ours == set(expected) | evaluation  # a new field belongs into this table, too


def test_every_other_default_is_that_of_training_arguments():
    ours, theirs = ConRConfig("out", use_cpu=True).to_dict(), TrainingArguments("out", use_cpu=True).to_dict()
    changed = {name for name in theirs if ours[name] != theirs[name]}
    assert changed == {
        *("eval_strategy", "save_strategy", "save_steps", "load_best_model_at_end", "remove_unused_columns"),
        "dataloader_persistent_workers",
    }


def test_every_field_is_explained():
    for name in ConRConfig.own_fields():
        field = ConRConfig.__dataclass_fields__[name]
        assert field.metadata["help"].endswith("."), name
        evaluation = name.startswith(("eval_", "save_", "load_best", "remove_unused"))
        assert evaluation or name in f"{ConRConfig.__doc__}{MethodConfig.__doc__}{DataConfig.__doc__}", name


def test_help_is_what_the_docstring_says():
    help_of = {name: field.metadata["help"] for name, field in ConRConfig.__dataclass_fields__.items() if field.init}
    assert help_of["conr_window"] == "Labels within this distance are similar (the paper's omega). Unset: 0.01 R."
    assert help_of["fds_sigma"] == "Width of the kernel of fds, in bins."
    assert " ".join(HfArgumentParser(ConRConfig).format_help().split()).count(help_of["conr_window"]) == 1


def test_percent_signs_in_a_docstring_reach_argparse_escaped():
    @with_help
    @dataclasses.dataclass
    class Config:
        """
        Settings.

        Args:
            share (`float`, *optional*, defaults to `0.1`): Share of
                rows: 10 %, as in `rows`.
            other (`int`): Another.
        """

        share: float = 0.1
        other: int = 1

    assert Config.__dataclass_fields__["share"].metadata["help"] == "Share of rows: 10 %%, as in rows."
    assert "10 %, as in rows." in " ".join(HfArgumentParser(Config).format_help().split())


def test_one_label_column_may_be_given_by_its_name():
    assert ConRConfig("out", label_columns="age").label_columns == ["age"]


# ---- settled(): evaluation and the choice of the best model ---------------------------------------------------------

NAMES = ("eval_strategy", "save_strategy", "load_best_model_at_end", "metric_for_best_model", "greater_is_better")
SETTLED = {  # what the user sets, the evaluation sets -> what a run uses
    "no evaluation set": ({}, None, ("no", "epoch", False, None, None)),
    "one": ({}, [""], ("epoch", "epoch", True, "eval_mae", False)),
    "several": ({}, ["young", "old"], ("epoch", "epoch", True, "eval_young_mae", False)),
    "no evaluation wanted": ({"eval_strategy": "no"}, [""], ("no", "epoch", False, None, None)),
    "steps": ({"eval_strategy": "steps"}, [""], ("steps", "steps", True, "eval_mae", False)),
    "nothing saved": ({"save_strategy": "no"}, [""], ("epoch", "no", False, "eval_mae", False)),
    "only the best saved": ({"save_strategy": "best"}, [""], ("epoch", "best", True, "eval_mae", False)),
    "the last model": ({"load_best_model_at_end": False}, [""], ("epoch", "epoch", False, "eval_mae", False)),
    "the best model": ({"load_best_model_at_end": True}, [""], ("epoch", "epoch", True, "eval_mae", False)),
    "the best, only it saved": (
        {"load_best_model_at_end": True, "save_strategy": "best"},
        [""],
        ("epoch", "best", True, "eval_mae", False),
    ),
    "a rare error": ({"metric_for_best_model": "few_mae"}, [""], ("epoch", "epoch", True, "few_mae", False)),
    "an error": ({"metric_for_best_model": "mae"}, [""], ("epoch", "epoch", True, "mae", False)),
    "a balanced error": ({"metric_for_best_model": "eval_bmae"}, [""], ("epoch", "epoch", True, "eval_bmae", False)),
    "a geometric mean": ({"metric_for_best_model": "few_gm"}, [""], ("epoch", "epoch", True, "few_gm", False)),
    "a root": ({"metric_for_best_model": "few_rmse"}, [""], ("epoch", "epoch", True, "few_rmse", False)),
    "the loss": ({"metric_for_best_model": "eval_loss"}, [""], ("epoch", "epoch", True, "eval_loss", False)),
    "a correlation": ({"metric_for_best_model": "pearson"}, [""], ("epoch", "epoch", True, "pearson", True)),
    "of ranks": ({"metric_for_best_model": "few_spearman"}, [""], ("epoch", "epoch", True, "few_spearman", True)),
    "a direction": (
        {"metric_for_best_model": "my_mae", "greater_is_better": True},
        [""],
        ("epoch", "epoch", True, "my_mae", True),
    ),
    "steps without a set": ({"eval_strategy": "steps"}, None, ("steps", "steps", False, None, None)),
}


@pytest.mark.parametrize("case", SETTLED)
def test_unset_evaluation_fields_follow_the_evaluation_set_and_set_ones_stay(case):
    given, sets, expected = SETTLED[case]
    args = ConRConfig("out", **given)
    before = copy.deepcopy(args.to_dict())
    settled = args.with_evaluation_defaults(sets)
    assert tuple(getattr(settled, name) for name in NAMES) == expected
    assert isinstance(settled, ConRConfig)
    assert args.to_dict() == before
    again = settled.with_evaluation_defaults(None)  # what a second trainer makes of a first one's args
    assert again.to_dict() == settled.to_dict()


def test_the_best_is_the_least_error_or_the_greatest_agreement(caplog):
    """For every metric of ours by name, in whatever case, and for names of the user's that say so."""
    ours = {*shot_metrics([1.0, 2.0], [1.0, 3.0], [1.0])["all"], *depth_metrics([1.0], [1.0])} - {"n"}
    for name in (*ours, "angular_error", "loss"):
        better = name in ("pearson", "spearman", "delta1", "delta2", "delta3")
        for full in (name, f"eval_few_{name}", f"eval_near_{name.upper()}"):
            assert ConRConfig("out", metric_for_best_model=full).greater_is_better is better, full
    assert not caplog.messages


def test_of_other_metrics_more_is_better_which_is_said(caplog):
    assert ConRConfig("out", metric_for_best_model="eval_r2").greater_is_better is True
    assert not caplog.messages
    assert ConRConfig("out", metric_for_best_model="eval_iou").greater_is_better is True
    assert len(caplog.messages) == 1
    assert "the greatest eval_iou. If less of it is better, set greater_is_better to false." in caplog.messages[0]
    for chosen in (True, False):
        assert ConRConfig("out", metric_for_best_model="iou", greater_is_better=chosen).greater_is_better is chosen
    assert len(caplog.messages) == 1


@pytest.mark.parametrize("wanted", [None, True])
@pytest.mark.parametrize("steps", [7, 0.25])
def test_evaluated_steps_are_saved_steps(wanted, steps):
    """Otherwise the best model would be one that was never saved."""
    settled = ConRConfig(
        "out", eval_strategy="steps", eval_steps=steps, load_best_model_at_end=wanted
    ).with_evaluation_defaults([""])
    assert (settled.eval_steps, settled.save_steps, settled.load_best_model_at_end) == (steps, steps, True)
    chosen = ConRConfig("out", eval_strategy="steps", eval_steps=7, save_steps=14).with_evaluation_defaults([""])
    assert (chosen.eval_steps, chosen.save_steps) == (7, 14)
    assert ConRConfig("out", save_strategy="steps", save_steps=3).with_evaluation_defaults(None).save_steps == 3


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, dataclasses.replace])
def test_a_copy_still_knows_what_was_set(copied):
    args = copied(ConRConfig("out", conr_window=2.0))
    assert args.with_evaluation_defaults([""]).eval_strategy == "epoch"
    assert copied(ConRConfig("out", eval_strategy="no")).with_evaluation_defaults([""]).eval_strategy == "no"
    assert args.conr_window == 2.0


def test_a_field_set_afterwards_wins_like_one_set_at_once():
    args = ConRConfig("out")
    args.eval_strategy, args.eval_steps = "steps", 5
    settled = args.with_evaluation_defaults([""])
    assert (settled.eval_strategy, settled.save_strategy, settled.save_steps) == ("steps", "steps", 5)


def test_settings_survive_json_and_pickle():
    """As experiment trackers and launchers hand them on."""
    args = ConRConfig("out", conr_window=2.0, label_columns=["pitch", "yaw"], eval_strategy="steps", eval_steps=5)
    init = {field.name for field in dataclasses.fields(ConRConfig) if field.init}
    read = {name: value for name, value in json.loads(args.to_json_string()).items() if name in init}
    for again in (ConRConfig(**read), pickle.loads(pickle.dumps(args))):
        assert again.to_dict() == args.to_dict()
        assert again.with_evaluation_defaults([""]).to_dict() == args.with_evaluation_defaults([""]).to_dict()


def test_a_trainer_leaves_the_users_settings_alone(tmp_path):
    """One `args` for several trainers: what the first made of it must not reach the second."""
    model, processor = small.models["timm-resnet"]()
    args = small.settings(tmp_path, max_steps=1)
    before = copy.deepcopy(args.to_dict())
    rows = small.images(8)
    trainer = small.ConRTrainer(model, args, train_dataset=rows, eval_dataset=rows, processing_class=processor)
    trainer.train()
    assert args.to_dict() == before
    assert trainer.args.metric_for_best_model == "eval_mae"
    assert (trainer.args.conr_window, trainer.args.conr_push_scale, trainer.args.label_scale) == (None, None, None)
    assert trainer.resolved.window == pytest.approx(0.01 * np.ptp(rows["label"]))
    with pytest.raises(dataclasses.FrozenInstanceError):
        trainer.resolved.window = 3.0
    second = small.ConRTrainer(model, args, train_dataset=rows, processing_class=processor)
    assert second.args.eval_strategy == "no"


# ---- resolve(): what the training labels decide ---------------------------------------------------------------------


def test_resolved_from_labels_by_hand():
    found = resolve(ConRConfig("out"), np.array([20.0, 40.0, 90.0, 50.0]))
    assert found.label_mean == (50.0,)
    assert found.label_median == (45.0,)
    assert found.label_range == 70.0
    assert found.label_scale == pytest.approx(math.sqrt((900 + 100 + 1600 + 0) / 4))  # population
    assert found.window == pytest.approx(0.7)
    assert found.push_scale == pytest.approx(1 / 70)
    assert found.huber_delta == found.label_scale
    assert (found.weight, found.temperature, found.num_views) == (0.0, 0.07, 1)


@pytest.mark.parametrize(
    ("settings", "of_data", "comes_to"),
    [
        ({}, {}, (0, 0, "sqrt_inverse", 1)),
        ({"conr_weight": 0.0}, {}, (0, 0, "none", 0)),
        ({"conr_gradient_share": 0.0}, {}, (0, 0, "sqrt_inverse", 1)),
        ({"conr_weight": 0.2}, {}, (0.2, 0, "sqrt_inverse", 1)),
        ({"conr_gradient_share": 0.3}, {}, (0, 0.3, "sqrt_inverse", 1)),
        ({"conr_weight": 0.0, "resample": "inverse", "rnc_weight": 3.0}, {}, (0, 0, "inverse", 3)),
        ({"resample": "none", "rnc_weight": 0.0}, {}, (0.05, 0, "none", 0)),
        ({"resample": "none"}, {}, (0, 0, "none", 1)),
        ({"rnc_weight": 0.0}, {}, (0, 0, "sqrt_inverse", 0)),
        ({"rnc_weight": 0.0}, {"may_resample": False}, (0.05, 0, "none", 0)),
        ({"resample": "none", "rnc_gradient_share": 0.3}, {}, (0, 0, "none", 0)),
        ({}, {"of_maps": True}, (0.05, 0, "none", 0)),
        ({"rnc_weight": 1.0}, {"of_maps": True}, (0, 0, "none", 1)),
        ({"freeze_backbone": True}, {}, (0, 0, "none", 0)),
        ({"freeze_backbone": True, "conr_gradient_share": 0.3}, {}, (0, 0, "none", 0)),
    ],
)
def test_what_is_on_unless_it_is_set(settings, of_data, comes_to):
    """ConR's weight and share, resampling, and Rank-N-Contrast's weight."""
    found = resolve(ConRConfig("out", **settings), np.array([20.0, 40.0, 90.0, 50.0]), **of_data)
    assert (found.weight, found.conr_gradient_share, found.resample, found.rnc_weight) == comes_to


def test_resolved_from_labels_of_two_dimensions_by_hand():
    labels = np.array([[0.0, 10.0], [4.0, 10.0], [8.0, 40.0], [4.0, 20.0]])
    found = resolve(ConRConfig("out", label_columns=["pitch", "yaw"]), labels)
    assert found.label_columns == ("pitch", "yaw")
    assert found.label_mean == (4.0, 20.0)
    assert found.label_median == (4.0, 15.0)
    assert found.label_range == (8 + 30) / 2
    assert found.label_scale == pytest.approx(math.sqrt((8 + 150) / 2))  # root of the mean variance
    assert found.window == pytest.approx(0.19)
    assert found.push_scale == pytest.approx(1 / 19)


@pytest.mark.parametrize(
    ("given", "may_resample", "resample", "rnc_weight"),
    [
        ({}, True, "sqrt_inverse", 1.0),
        ({"conr_weight": 0.0}, True, "none", 0.0),
        ({"conr_gradient_share": 0.3}, True, "sqrt_inverse", 1.0),
        ({"conr_gradient_share": 0.0}, True, "sqrt_inverse", 1.0),
        ({"rnc_gradient_share": 0.3}, True, "sqrt_inverse", 0.0),
        ({"conr_weight": 0.0, "rnc_weight": 3.0}, True, "none", 3.0),
        ({"resample": "none", "rnc_weight": 0.0}, True, "none", 0.0),
        ({"resample": "inverse"}, True, "inverse", 1.0),
        ({"reweight": "inverse"}, True, "none", 1.0),
        ({"base_loss": "gai"}, True, "none", 1.0),
        ({"train_sampling_strategy": "sequential"}, True, "none", 1.0),
        ({}, False, "none", 1.0),
        ({"freeze_backbone": True}, True, "none", 0.0),
    ],
)
def test_what_goes_with_conr_unless_it_is_set(given, may_resample, resample, rnc_weight):
    """A plain run would be resampled, an imbalance corrected twice, a stream refused for what its user never set."""
    found = resolve(ConRConfig("out", use_cpu=True, **given), np.array([20.0, 40.0, 60.0]), may_resample)
    assert (found.resample, found.rnc_weight) == (resample, rnc_weight)


@pytest.mark.parametrize(("given", "of_views", "of_maps"), [(None, 0, 128), (0, 0, 0), (40, 40, 40)])
def test_a_part_of_the_rows_are_anchors_where_they_are_pixels(given, of_views, of_maps):
    """All pixels of a step as anchors take longer than a small network."""
    args, labels = ConRConfig("out", use_cpu=True, conr_anchors=given), np.array([20.0, 40.0, 60.0])
    assert resolve(args, labels).conr_anchors == of_views
    found = resolve(args, labels, of_maps=True)
    assert (found.conr_anchors, found.rnc_weight) == (of_maps, 0.0)


@pytest.mark.parametrize("labels", [np.full(5, 31.0), np.full((5, 2), 31.0), np.array([31])])
def test_labels_that_are_all_equal_divide_by_nothing(labels):
    found = resolve(ConRConfig("out"), labels)
    assert (found.label_range, found.window, found.push_scale) == (0, 0, 0)
    assert (found.label_scale, found.huber_delta) == (1, 1)


def test_explicit_settings_are_kept():
    given = {
        "conr_window": 0.0,
        "conr_push_scale": 0.0,
        "label_scale": 1.0,
        "huber_delta": 2.0,
        "conr_weight": 4.0,
        "conr_temperature": 0.2,
        "conr_push": "linear",
        "conr_formulation": "reference",
        "conr_reduction": "anchors",
        "conr_distance": "euclidean",
        "conr_reweight": "none",
        "reweight": "inverse",
        "base_loss": "huber",
        "num_views": 3,
    }
    found = dataclasses.asdict(resolve(ConRConfig("out", **given), np.array([20, 40, 60])))
    for name, value in given.items():
        key = name if name in found else name.removeprefix("conr_")
        assert found[key] == value, name
    assert resolve(ConRConfig("out", label_scale=4.0), np.array([20, 40, 60])).huber_delta == 4.0


def test_resolved_holds_plain_numbers():
    """NumPy's would not go into JSON."""
    found = dataclasses.asdict(resolve(ConRConfig("out"), np.array([20, 40, 60], dtype=np.int64)))
    text = json.dumps(found)
    lists = {name: tuple(value) if isinstance(value, list) else value for name, value in json.loads(text).items()}
    assert ResolvedConfig(**lists) == ResolvedConfig(**found)


@pytest.mark.parametrize("name", ["bf16_full_eval", "fp16_full_eval"])
def test_evaluation_in_half_precision_is_refused(name):
    with pytest.raises(ValueError, match=f"{name} is true.*63.25.*{name[:4]} trains"):
        ConRConfig("out", **{name: True})


@pytest.mark.parametrize(
    ("given", "mode"),
    [
        ({"metric_for_best_model": "eval_pearson"}, "max"),
        ({"metric_for_best_model": "eval_r2"}, "max"),
        ({"metric_for_best_model": "eval_few_mae"}, "min"),
        ({}, "min"),
        ({"metric_for_best_model": "eval_mine", "greater_is_better": True}, "max"),
        ({"metric_for_best_model": "eval_pearson", "lr_scheduler_kwargs": {"mode": "min", "factor": 0.5}}, "min"),
    ],
)
def test_a_plateau_is_looked_for_in_the_metrics_direction(given, mode):
    args = ConRConfig("out", lr_scheduler_type="reduce_lr_on_plateau", **given).with_evaluation_defaults([""])
    assert args.lr_scheduler_kwargs == {**given.get("lr_scheduler_kwargs", {}), "mode": mode}


def test_flipped_columns_without_flips_are_told(caplog):
    ConRConfig("out", label_columns=["a", "b"], flipped_columns=["b"])
    assert caplog.messages == ["Set, but without effect: flipped_columns (needs horizontal_flip)."]


@pytest.mark.parametrize("given", [[20], [100, 20], [-1, 5], [1, 2, 3], [1, math.inf]])
def test_thresholds_of_shots_are_two_and_ascend(given):
    with pytest.raises(ValueError, match=r"shot_thresholds is .*20 100"):
        ConRConfig("out", shot_thresholds=given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"label_min": 5.0, "label_max": 5.0}, "label_min is .*5.0.* and label_max .*smaller"),
        ({"label_min": [0.0, 1.0, 2.0]}, "label_min is .*one for each of the 2 label_columns"),
        ({"label_max": math.inf}, "label_max is .*inf"),
    ],
)
def test_bounds_of_labels_that_cannot_be_meant(given, message):
    with pytest.raises(ValueError, match=message):
        ConRConfig("out", label_columns=["a", "b"], **given)


def test_predictions_are_cut_off_at_the_bounds_of_their_column():
    labels = np.array([[1.0, 5.0], [2.0, 9.0]])
    args = ConRConfig("out", label_columns=["a", "b"], label_min=0, label_max=[3, 10])
    resolved = resolve(args, labels)
    predictions = np.array([[-1.0, -2.0], [4.0, 12.0], [1.5, 7.0]], dtype=np.float32)
    expected = [[0.0, 0.0], [3.0, 10.0], [1.5, 7.0]]
    assert resolved.clip(predictions).tolist() == expected
    assert resolved.clip(torch.from_numpy(predictions)).tolist() == expected
    assert resolved.clip(predictions).dtype == np.float32
    unset = resolve(ConRConfig("out"), labels[:, 0])
    assert unset.clip(predictions) is predictions
