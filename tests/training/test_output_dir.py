"""What another run left in the output folder: warned of, or removed, and never taken for this run's."""

import pytest
from small import build, images, models

from conr_hf.utils.run_folder import clear_run, file_times, files_of_run, written_since


@pytest.fixture(scope="module")
def data():
    return images(16)


def trainer_of(folder, data, **changed):
    return build(*models["resnet"](), folder, data, max_steps=1, **changed)


def another_run(folder):
    """Folder with what a run, its exports and its report leave, and what somebody else keeps there."""
    for name in ("checkpoint-7", "checkpoint-9", "report", "notes", "checkpoint-best"):
        (folder / name).mkdir(parents=True)
    for name in ("model.safetensors", "model.onnx", "results.json", "checkpoint-7/trainer_state.json"):
        (folder / name).write_text("{}")
    for name in ("report/report.json", "notes/mine.txt", "mine.csv", "intervals.json"):
        (folder / name).write_text("{}")
    (folder / "README.md").write_text("---\ntags:\n- conr-hf\n---\n\n# A card\n")
    return folder


def test_another_run_is_warned_of_and_kept(data, tmp_path, caplog):
    another_run(tmp_path)
    trainer = trainer_of(tmp_path, data)
    trainer.train()
    (message,) = [message for message in caplog.messages if "holds another run" in message]
    assert "(model.safetensors, results.json, checkpoint-7)" in message
    assert "overwrite_output_dir" in message
    assert (tmp_path / "model.onnx").is_file()


def test_overwriting_removes_it_and_nothing_else(data, tmp_path, caplog):
    another_run(tmp_path)
    trainer_of(tmp_path, data, overwrite_output_dir=True).train()
    assert {path.name for path in tmp_path.iterdir()} == {"notes", "mine.csv", "checkpoint-best", "checkpoint-1"}
    assert (tmp_path / "notes" / "mine.txt").is_file()
    assert not [message for message in caplog.messages if "another run" in message]


def test_a_run_that_resumes_or_trains_again_keeps_its_own(data, tmp_path, caplog):
    trainer = trainer_of(tmp_path, data, overwrite_output_dir=True)
    trainer.train()
    trainer.save_model()
    trainer.train()
    assert (tmp_path / "model.safetensors").is_file()
    resumed = trainer_of(tmp_path, data, overwrite_output_dir=True)
    resumed.args.max_steps = 2
    resumed.train(resume_from_checkpoint=True)
    assert (tmp_path / "checkpoint-1").is_dir()
    assert not [message for message in caplog.messages if "another run" in message]


def test_a_readme_that_is_no_card_stays(tmp_path):
    another_run(tmp_path)
    (tmp_path / "README.md").write_text("# How I use conr-hf\n")
    clear_run(tmp_path)
    assert (tmp_path / "README.md").is_file()
    assert files_of_run(tmp_path) == []


def test_what_was_written_since(tmp_path):
    assert file_times(tmp_path / "none") == {}
    (tmp_path / "old.txt").write_text("old")
    (tmp_path / "again.txt").write_text("old")
    before = file_times(tmp_path)
    (tmp_path / "again.txt").unlink()
    (tmp_path / "new.txt").write_text("new")
    (tmp_path / "again.txt").write_text("new")
    assert written_since(tmp_path, before) == ["again.txt", "new.txt"]
