"""A run that was stopped and resumed is the run that was not, bit for bit."""

import math
import multiprocessing
import shutil

import pytest
import torch
from resumed import BATCH, EPOCHS, ROWS, assert_same_run, trainer
from small import calls_of, images

from conr_hf.data import collator
from conr_hf.training import dataloaders
from conr_hf.training.checkpoints import last_complete_checkpoint

CASES = {
    "plain": {},
    "two workers": {"dataloader_num_workers": 2},
    "accumulated": {"gradient_accumulation_steps": 2},
    "accumulated, two workers": {"gradient_accumulation_steps": 2, "dataloader_num_workers": 2},
    "sgd with momentum": {"optim": "sgd", "optim_args": "momentum=0.9"},
    "balanced, FDS, average, two workers": {
        "base_loss": "bni",
        "fds": "gaussian",
        "bin_width": 10.0,
        "ema_decay": 0.9,
        "dataloader_num_workers": 2,
        "conr_weight": None,
        "conr_gradient_share": 0.3,
    },
    "with what goes with ConR": {"resample": None, "rnc_weight": None, "conr_weight": 0.05, "bin_width": 10.0},
    "resampled, accumulated": {"resample": "inverse", "bin_width": 10.0, "gradient_accumulation_steps": 2},
    "best model at the end": {"load_best_model_at_end": True, "save_total_limit": 2},
}


@pytest.mark.parametrize(("case", "resume"), [("plain", "true"), *((case, True) for case in CASES)])
def test_resumed_in_mid_epoch_equals_uninterrupted(tmp_path, case, resume):
    """A user whose job was cut off would end at another model than one whose job was not."""
    changed = CASES[case]
    whole = trainer(tmp_path / "whole", **changed)
    whole.train()
    anchors = [entry["conr_anchors"] for entry in whole.state.log_history if "conr_anchors" in entry]
    assert max(anchors) > 0, "ConR had nothing to do"

    steps = math.ceil(math.ceil(ROWS / BATCH) / changed.get("gradient_accumulation_steps", 1))  # in an epoch
    stop = steps + steps // 2  # in the second epoch
    saved = stop // 2 * 2
    assert saved % steps > 0
    stopped = trainer(tmp_path / "stopped", stop=stop, **changed)
    stopped.train()
    assert stopped.state.global_step == stop < whole.state.global_step
    assert last_complete_checkpoint(str(tmp_path / "stopped")).name == f"checkpoint-{saved}"

    late = trainer(tmp_path / "stopped", weights=1, **changed)
    assert not torch.equal(late.head.weight, stopped.head.weight)
    late.train(resume_from_checkpoint=resume)
    assert_same_run(late, whole)


@pytest.mark.parametrize("workers", [0, 2])
def test_resumed_at_the_end_of_an_epoch_equals_uninterrupted(tmp_path, workers):
    """An epoch's order or augmentation would be repeated or left out."""
    changed = {"dataloader_num_workers": workers, "eval_strategy": "epoch", "save_strategy": "epoch"}
    whole = trainer(tmp_path / "whole", **changed)
    whole.train()
    stopped = trainer(tmp_path / "stopped", stop=12, **changed)
    stopped.train()
    assert last_complete_checkpoint(str(tmp_path / "stopped")).name == "checkpoint-12"
    late = trainer(tmp_path / "stopped", weights=1, **changed)
    late.train(resume_from_checkpoint=True)
    assert_same_run(late, whole)


def test_resumed_twice_equals_uninterrupted(tmp_path):
    """What a resume restores it must save again."""
    whole = trainer(tmp_path / "whole")
    whole.train()
    trainer(tmp_path / "stopped", stop=3).train()
    trainer(tmp_path / "stopped", weights=1, stop=9).train(resume_from_checkpoint=True)
    late = trainer(tmp_path / "stopped", weights=2)
    late.train(resume_from_checkpoint=True)
    assert_same_run(late, whole)


def test_resume_replays_dropout_and_not_only_data(tmp_path):
    """A check of these tests: without the generator's state the runs differ, so equality above says something."""
    whole = trainer(tmp_path / "whole")
    whole.train()
    trainer(tmp_path / "stopped", stop=9).train()
    for path in (tmp_path / "stopped").glob("checkpoint-*/rng_state.pth"):
        path.unlink()
    late = trainer(tmp_path / "stopped", weights=1)
    late.train(resume_from_checkpoint=True)
    assert not torch.equal(late.head.weight, whole.head.weight)


def test_incomplete_checkpoint_is_skipped(tmp_path):
    """A job that is cut off while it saves could never be resumed by `true`."""
    whole = trainer(tmp_path / "whole")
    whole.train()
    trainer(tmp_path / "stopped", stop=11).train()
    newest = tmp_path / "stopped" / "checkpoint-10"
    (newest / "trainer_state.json").unlink()
    (newest / "model.safetensors").write_bytes(b"cut off")
    shutil.copytree(tmp_path / "stopped" / "checkpoint-8", tmp_path / "stopped" / "checkpoint-best")
    late = trainer(tmp_path / "stopped", weights=1)
    assert last_complete_checkpoint(str(tmp_path / "stopped")).name == "checkpoint-8"
    late.train(resume_from_checkpoint="true")
    assert_same_run(late, whole)


def test_checkpoints_are_ordered_by_number(tmp_path):
    """Step 9 would count as newer than step 10."""
    for step in (9, 10, 100, 99):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text("{}")
    assert last_complete_checkpoint(str(tmp_path)).name == "checkpoint-100"


@pytest.mark.parametrize("resume", [True, "true"])
def test_nothing_to_resume_from(tmp_path, resume):
    """A mistyped output folder would train from the start, unnoticed, or end in a traceback."""
    run = trainer(tmp_path / "run")
    with pytest.raises(ValueError, match="holds no complete checkpoint to resume from"):
        run.train(resume_from_checkpoint=resume)
    (tmp_path / "run" / "checkpoint-4").mkdir(parents=True)
    with pytest.raises(ValueError, match="holds no complete checkpoint to resume from"):
        run.train(resume_from_checkpoint=resume)


def test_other_methods_than_before_are_told(tmp_path, caplog):
    """A default that has changed since would end in another model, unnoticed."""
    trainer(tmp_path, stop=2).train()
    saved = str(tmp_path / "checkpoint-2")
    trainer(tmp_path, stop=3).train(resume_from_checkpoint=saved)
    assert "was trained with" not in caplog.text
    trainer(tmp_path, stop=3, conr_weight=0.0, num_views=1).train(resume_from_checkpoint=saved)
    assert (
        f"{saved} was trained with conr_weight 0.5 (now 0.0), num_views 2 (now 1). Set the options so" in caplog.text
    )


def test_resumed_run_reports_the_same_best_checkpoint(tmp_path):
    """The best of the steps before the stop would be forgotten."""
    changed = {"load_best_model_at_end": True}
    whole = trainer(tmp_path / "whole", **changed)
    whole.train()
    trainer(tmp_path / "stopped", stop=9, **changed).train()
    late = trainer(tmp_path / "stopped", weights=1, **changed)
    late.train(resume_from_checkpoint=True)
    assert late.state.best_metric == whole.state.best_metric
    assert late.state.best_global_step == whole.state.best_global_step


def model_file(folder, **changed):
    run = trainer(folder, **changed)
    run.train()
    run.save_model()
    return (folder / "model.safetensors").read_bytes()


@pytest.mark.parametrize("workers", [0, 2])
def test_same_seed_gives_the_same_bytes(tmp_path, workers):
    """A result could not be reproduced."""
    changed = {"num_train_epochs": 1, "dataloader_num_workers": workers}
    first = model_file(tmp_path / "first", seed=5, **changed)
    torch.rand(7)
    assert model_file(tmp_path / "second", seed=5, **changed) == first


@pytest.fixture
def modes(monkeypatch):
    before = torch.are_deterministic_algorithms_enabled()
    for name in ("CUDA_LAUNCH_BLOCKING", "CUBLAS_WORKSPACE_CONFIG", "FLASH_ATTENTION_DETERMINISTIC"):
        monkeypatch.setenv(name, "")  # what is set besides is put back with them
    yield
    torch.use_deterministic_algorithms(before)


def test_full_determinism_gives_the_same_bytes_in_all_files(tmp_path, modes):
    """Also where operations without a deterministic form are refused: none may be among those of a step."""
    changed = {
        "full_determinism": True,
        "seed": 3,
        "num_train_epochs": 2,
        "dataloader_num_workers": 2,
        "base_loss": "bni",
        "fds": "gaussian",
        "bin_width": 10.0,
        "ema_decay": 0.9,
        "resample": None,
        "rnc_weight": None,
        "conr_weight": 0.05,
    }
    for name in ("first", "second"):
        run = trainer(tmp_path / name, **changed)
        assert torch.are_deterministic_algorithms_enabled()
        run.train()
        torch.rand(7)
    for file in ("model.safetensors", "optimizer.pt", "scheduler.pt", "conr_state.safetensors"):
        first, second = ((tmp_path / name / "checkpoint-12" / file).read_bytes() for name in ("first", "second"))
        assert first == second, file


def test_loader_workers_change_no_weight(tmp_path):
    """A faster loader would train another model."""
    alone = trainer(tmp_path / "alone")
    alone.train()
    with_workers = trainer(tmp_path / "workers", dataloader_num_workers=2)
    with_workers.train()
    assert_same_run(with_workers, alone)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_resumed_run_does_not_decode_what_it_leaves_out(tmp_path, monkeypatch, workers):
    """Half an epoch would be read again before the first step."""
    decoded = calls_of(monkeypatch, collator, "to_image")
    changed = {"dataloader_num_workers": workers, "eval_strategy": "no", "num_train_epochs": 1}
    trainer(tmp_path, stop=4, **changed).train()
    before = decoded.value
    assert before <= 6 * BATCH
    late = trainer(tmp_path, **changed)
    late.train(resume_from_checkpoint=True)
    assert late.state.global_step == 6
    assert decoded.value - before == ROWS - 4 * BATCH


def test_workers_of_training_last_from_epoch_to_epoch_and_end_with_it(tmp_path, monkeypatch):
    """Starting them takes seconds where they are not forked; left behind, they would hold memory."""
    begun = calls_of(monkeypatch, dataloaders, "start_worker")
    run = trainer(tmp_path, dataloader_num_workers=1, eval_strategy="no", save_strategy="no")
    run.train()
    assert run.state.epoch == EPOCHS
    assert begun.value == 1
    assert not multiprocessing.active_children()


def test_lasting_workers_evaluate_the_rows_that_are_given(tmp_path):
    """The stock trainer keeps the first loader, and gives its errors for whatever set is asked for next."""
    run = trainer(tmp_path, dataloader_num_workers=1, dataloader_persistent_workers=True)
    others = images(5, seed=2)
    first, second = run.evaluate(), run.evaluate(others)
    assert first["eval_mae"] != second["eval_mae"]
    assert second["eval_mae"] == trainer(tmp_path).evaluate(others)["eval_mae"]
    assert run.args.dataloader_persistent_workers is True


def test_another_seed_gives_another_model(tmp_path):
    """Seeds of a study would all be the same run: the fresh model is the same here, all else is the seed's."""
    changed = {"num_train_epochs": 1}
    assert model_file(tmp_path / "first", seed=5, **changed) != model_file(tmp_path / "second", seed=6, **changed)
