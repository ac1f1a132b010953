"""Trackers get what they are told: errors by shot while a run trains, and its pictures at the end. No network."""

import io
import json

import numpy as np
import pytest
import small
from command_line import conr_process, few_photos, written
from PIL import Image
from transformers import TrainerCallback

from conr_hf.cli import trackers
from conr_hf.cli.recipe import flags_of, read_recipe


def trained(folder, *report_to, **environment):
    """A tiny run that reports to these trackers."""
    file = written(folder / "r.yaml", data=str(few_photos(folder / "photos")), report_to=list(report_to))
    ended = conr_process("train", file, "--output_dir", folder / "out", **environment)
    assert ended.code == 0, ended.err
    assert "did not reach" not in ended.out
    return folder / "out"


def validation_errors(run):
    """`few_mae` and the like, as `results.json` has them; the model at the end is the one that was evaluated."""
    shots = json.loads((run / "results.json").read_text())["validation"]
    return {shot: values["mae"] for shot, values in shots.items() if shot != "all"}


def pixels_of(image):
    return np.asarray(image.convert("RGB"))


def same_picture(path, run):
    with Image.open(path) as found, Image.open(run / "density.png") as expected:
        return np.array_equal(pixels_of(found), pixels_of(expected))


def test_tensorboard_has_errors_by_shot_and_the_picture(tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is missing")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = trained(tmp_path, "tensorboard")
    (folder,) = (run / "runs").iterdir()
    events = EventAccumulator(str(folder), size_guidance={"images": 0}).Reload()
    for shot, mae in validation_errors(run).items():
        assert events.Scalars(f"eval/{shot}_mae")[-1].value == pytest.approx(mae, rel=1e-5)
    assert len(events.Scalars("train/base_loss")) == 2
    (picture,) = events.Images("density")
    assert picture.step == 2
    with Image.open(io.BytesIO(picture.encoded_image_string)) as found, Image.open(run / "density.png") as expected:
        assert np.array_equal(pixels_of(found), pixels_of(expected))


def test_mlflow_has_errors_by_shot_and_the_picture(tmp_path):
    pytest.importorskip("mlflow", reason="mlflow is missing")
    from mlflow import MlflowClient

    address = f"sqlite:///{tmp_path / 'mlflow.db'}"
    client = MlflowClient(address)
    experiment = client.create_experiment("faces", artifact_location=(tmp_path / "artifacts").as_uri())
    run = trained(tmp_path, "mlflow", MLFLOW_TRACKING_URI=address, MLFLOW_EXPERIMENT_NAME="faces")
    (found,) = client.search_runs([experiment])
    for shot, mae in validation_errors(run).items():
        assert found.data.metrics[f"eval_{shot}_mae"] == pytest.approx(mae, rel=1e-5)
    assert same_picture(client.download_artifacts(found.info.run_id, "density.png", str(tmp_path)), run)


def test_trackio_has_all_in_one_run(tmp_path):
    """Its callback starts another run for the test errors where a run has no name."""
    pytest.importorskip("trackio", reason="trackio is missing")
    run = trained(tmp_path, "trackio", TRACKIO_DIR=str(tmp_path / "trackio"))
    (folder,) = (tmp_path / "trackio" / "media" / "huggingface").iterdir()
    assert folder.name.startswith("out-2")
    (picture,) = folder.rglob("*.png")
    assert same_picture(picture, run)


def test_wandb_has_the_picture(tmp_path):
    pytest.importorskip("wandb", reason="wandb is missing")
    run = trained(tmp_path, "wandb", WANDB_MODE="offline", WANDB_DIR=str(tmp_path))
    (picture,) = (tmp_path / "wandb").glob("offline-run-*/files/media/images/density_*.png")
    assert same_picture(picture, run)


def test_a_tracker_that_fails_stops_nothing(tmp_path, monkeypatch, capsys):
    class Broken(TrainerCallback):
        pass

    def log(callback, picture, step):
        if isinstance(callback, Broken):
            raise ConnectionError("no route")

    monkeypatch.setattr(trackers, "_log_picture", log)
    trainer = small.build(*small.models["vit"](), tmp_path, small.images(4), callbacks=[Broken()])
    trackers.log_pictures(trainer, [tmp_path / "density.png"])
    assert capsys.readouterr().out == "density.png did not reach Broken: no route\n"


def test_several_trackers_are_named_in_a_recipe_and_on_the_command_line(tmp_path):
    """And what a run records of them can be trained again."""
    file = written(tmp_path / "r.yaml", benchmark="earth-elevation", report_to=["tensorboard", "trackio"])
    for more, expected in (
        ([], ["tensorboard", "trackio"]),
        (["--report_to", "mlflow", "wandb"], ["mlflow", "wandb"]),
        (["--report_to", "none"], []),
    ):
        _, args, options = read_recipe([str(file), *more])
        assert args.report_to == expected
        assert read_recipe(flags_of(options))[1].report_to == expected


@pytest.mark.parametrize(("report_to", "named"), [("none", False), (["tensorboard"], True)])
def test_a_nameless_run_is_named_after_its_folder(report_to, named, tmp_path):
    args = small.settings(tmp_path / "faces", report_to=report_to)
    trackers.name_run(args)
    assert (args.run_name or "").startswith("faces-2") == named
    args.run_name = "mine"
    trackers.name_run(args)
    assert args.run_name == "mine"
