"""What a run prints: a few lines for people, and every figure in the log."""

import numpy as np
import pytest
from small import build, images, models
from transformers import PrinterCallback, ProgressCallback

from conr_hf.training.callbacks.progress import BriefPrinterCallback, BriefProgressCallback


@pytest.fixture(scope="module")
def data():
    return images(24), images(12, seed=1)


def trained(folder, train, evaluation=None, **changed):
    trainer = build(*models["resnet"](), folder, train, evaluation, save_strategy="no", **changed)
    trainer.train()
    return trainer


def worst(prediction):
    return {"worst": float(np.abs(prediction.predictions - prediction.label_ids).max())}


def test_an_evaluation_is_one_line_and_all_figures_are_in_the_log(data, tmp_path, capsys):
    trainer = trained(tmp_path, *data, compute_metrics=worst, logging_steps=500)
    out = capsys.readouterr().out
    assert "{" not in out
    (line,) = [line for line in out.splitlines() if "MAE" in line]
    (logged,) = [entry for entry in trainer.state.log_history if "eval_mae" in entry]
    for part in (f"MAE {logged['eval_mae']:.4g} (few-shot", f"worst {logged['eval_worst']:.4g}", "step     3"):
        assert part in line
    assert {"eval_few_mae", "eval_bmae", "eval_pearson", "eval_loss"} <= set(logged)
    # logging_steps is beyond the three steps of the only epoch, and yet a loss is shown.
    assert [entry["step"] for entry in trainer.state.log_history if "loss" in entry] == [3]
    assert "base loss" in out


def test_several_sets_and_the_metric_of_the_best_model_are_named(data, tmp_path, capsys):
    sets = {"near": data[1], "far": data[1]}
    trained(tmp_path, data[0], sets, metric_for_best_model="eval_near_pearson", max_steps=1)
    lines = [line for line in capsys.readouterr().out.splitlines() if "MAE" in line]
    assert [("near: MAE" in line, "far: MAE" in line) for line in lines] == [(True, False), (False, True)]


@pytest.mark.parametrize("own", [PrinterCallback, ProgressCallback])
def test_a_printer_of_the_users_own_stays_alone(data, tmp_path, own):
    trainer = build(*models["resnet"](), tmp_path, data[0], callbacks=[own])
    printers = [
        type(callback)
        for callback in trainer.callback_handler.callbacks
        if isinstance(callback, PrinterCallback | ProgressCallback)
    ]
    assert printers == [own]


def test_the_printer_goes_where_those_of_transformers_go(data, tmp_path):
    """With or without a bar, the line that silences `Trainer` silences this one."""
    ours = {True: (PrinterCallback, BriefPrinterCallback), False: (ProgressCallback, BriefProgressCallback)}
    for disable_tqdm, (theirs, brief) in ours.items():
        trainer = build(*models["resnet"](), tmp_path, data[0], disable_tqdm=disable_tqdm)
        assert isinstance(trainer.pop_callback(theirs), brief)


def test_the_first_lines_say_what_becomes_of_images_and_rows(data, tmp_path, capsys):
    weighted = data[0].add_column("sample_weight", [1.0] * 24)
    trained(tmp_path, weighted, max_steps=1, resample=None, horizontal_flip=False)
    method, views, shots, validation = capsys.readouterr().out.splitlines()[:4]
    assert method.startswith("Trains with base loss l1, ConR")
    assert method.endswith("rows weighed by the column sample_weight")
    assert views.startswith("Each image is seen in 2 views: shifted by up to 7.1 % of its side, never flipped")
    assert shots.startswith("100 % of the training images are few-shot, with fewer than 20 in their bin")
    assert "shot_thresholds" in shots
    assert validation.startswith("No validation data: nothing is measured")
    assert "--validation_share 0.15" in validation


def test_they_keep_silent_of_what_is_well(data, tmp_path, capsys):
    trained(tmp_path, *data, max_steps=1, bin_width=50, shot_thresholds=[1, 10], crop_padding=0.0)
    _, views, *lines = capsys.readouterr().out.splitlines()
    assert views.startswith("Each image is seen in 2 views: not shifted, half of them flipped left to right")
    assert all(line.startswith("epoch") for line in lines)


def test_they_tell_that_conr_is_off_and_what_of_it_is_set(data, tmp_path, capsys):
    off = "ConR is off beside them: conr_gradient_share 0.15 switches it on"
    trained(tmp_path, data[0], max_steps=1, rnc_weight=None)
    assert capsys.readouterr().out.splitlines()[1] == f"{off}."
    trained(tmp_path, data[0], max_steps=1, rnc_weight=None, conr_window=3.0, conr_push="linear", num_views=1)
    assert f"{off}; without it conr_window, conr_push have no effect.\n" in capsys.readouterr().out
    for settings in ({"conr_weight": 0.0}, {"conr_gradient_share": 0.1}, {"freeze_backbone": True}, {"rnc_weight": 0}):
        trained(tmp_path, data[0], max_steps=1, **{"rnc_weight": None, **settings})
        assert off not in capsys.readouterr().out


def test_fp16_on_a_cpu_is_told(data, tmp_path, caplog):
    trained(tmp_path, data[0], max_steps=1, fp16=True)
    assert any("fp16 is true, but does nothing on a CPU" in message for message in caplog.messages)
