"""A run that breaks loses no more than what came after its last checkpoint, and says what to do."""

import errno
import json
import logging
import multiprocessing
import os
import random
import resource
import signal
import subprocess
import sys
from pathlib import Path

import bad_loss
import pandas as pd
import pytest
import torch
from bad_loss import Rows
from resumed import assert_same_run, trainer
from small import build, models
from torch.utils.data import DataLoader, get_worker_info
from transformers import TrainerCallback

from conr_hf import ConRTrainer
from conr_hf.cli import commands
from conr_hf.cli.main import main
from conr_hf.inference.predict import write_predicted
from conr_hf.training.checkpoints import checkpoint_to_resume, complete_checkpoints

TESTS = Path(__file__).parents[1]


def run_script(*command):
    path = f"{TESTS.parent}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    ended = subprocess.run(
        [sys.executable, *map(str, command)],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    return ended


def test_a_run_that_is_killed_goes_on_as_if_it_had_not_been(tmp_path):
    """Five times, at moments that are others each time; a checkpoint is saved each step, so some are cut off."""
    seed = random.SystemRandom().randrange(10**6)
    ended = run_script(TESTS / "distributed" / "killed_runs.py", tmp_path, "5", seed)
    lines = [line for line in ended.stdout.splitlines() if line.endswith((" same", " other"))]
    assert len(lines) == 5
    assert all(line.endswith(" same") for line in lines), (seed, lines)


class FillDisk(TrainerCallback):
    """From a step on no file may be longer than `limit` bytes."""

    def __init__(self, step, limit):
        self.step, self.limit = step, limit

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.limit, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


@pytest.fixture
def limits():
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("cut_off", ["model.safetensors", "optimizer.pt"])
def test_a_full_disk_leaves_the_checkpoints_before_it_whole(tmp_path, limits, cut_off):
    whole = trainer(tmp_path / "whole")
    whole.train()
    size = (tmp_path / "whole" / "checkpoint-4" / cut_off).stat().st_size
    folder = tmp_path / "full"
    run = trainer(folder, callbacks=[FillDisk(7, size - 1000)], save_total_limit=1)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with pytest.raises(
        OSError, match=r'checkpoint-8" cannot be written: it needs about .* MB.*save_total_limit'
    ) as told:
        run.train()
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert told.value.errno is None  # by which the command knows a sentence of ours
    assert "\n" not in str(told.value)
    assert [path.name for path in folder.glob("checkpoint-*")] == ["checkpoint-6"]
    late = trainer(folder, weights=1, save_total_limit=1)
    late.train(resume_from_checkpoint=True)
    assert_same_run(late, whole)


def test_a_checkpoint_that_is_written_over_does_not_count_until_it_is_whole(tmp_path):
    """A second run into the same folder would be resumed from half of its own and half of the first one's files."""
    trainer(tmp_path, num_train_epochs=1).train()
    assert len(complete_checkpoints(str(tmp_path))) == 3

    def cut_off(folder):
        raise KeyboardInterrupt

    run = trainer(tmp_path, num_train_epochs=1)
    run._save_rng_state = cut_off  # the weights are written by then
    with pytest.raises(KeyboardInterrupt):
        run.train()
    assert [folder.name for folder in complete_checkpoints(str(tmp_path))] == ["checkpoint-4", "checkpoint-6"]


class KillWorkers(TrainerCallback):
    def __init__(self, then=None):
        self.then = then

    def on_step_begin(self, args, state, control, **kwargs):
        for worker in multiprocessing.active_children():
            worker.kill()
            os.waitid(os.P_PID, worker.pid, os.WEXITED | os.WNOWAIT)
        if self.then is not None:
            raise self.then


def test_a_worker_that_dies_interrupts_nothing(tmp_path):
    """It may happen where no exception may cut off what goes on, such as logging, which would keep its lock."""
    run = trainer(tmp_path, callbacks=[KillWorkers(KeyboardInterrupt("went on"))], dataloader_num_workers=2)
    with pytest.raises(KeyboardInterrupt, match="went on"):
        run.train()


def test_batches_that_died_with_their_workers_are_told_so(tmp_path):
    """They are in the queue, but what they are made of went with the process."""
    run = trainer(tmp_path, callbacks=[KillWorkers()], dataloader_num_workers=2)
    with pytest.raises(ChildProcessError, match=r"a data-loader worker\) died"):
        run.train()


class Breaks(TrainerCallback):
    def on_evaluate(self, args, state, control, **kwargs):
        raise EOFError("of the user's own")


EVALUATED = {"per_device_train_batch_size": 4, "eval_strategy": "epoch", "num_train_epochs": 3}


class Collates:
    """Raises an error of its own at the call with a number."""

    def __init__(self, number):
        self.number = number
        self.calls = torch.zeros((), dtype=torch.int64).share_memory_()

    def __call__(self, rows):
        self.calls += 1
        if self.calls == self.number:
            raise EOFError("of the user's own")
        return {name: torch.stack([torch.as_tensor(row[name]) for row in rows]) for name in rows[0]}


def test_an_error_that_a_worker_passes_on_is_no_death(tmp_path):
    """Beside workers of an evaluation that have ended, as they should."""
    settings = {**EVALUATED, "dataloader_num_workers": 1}
    run = build(*models["vit"](), tmp_path, Rows(24), Rows(8), data_collator=Collates(9), **settings)
    with pytest.raises(EOFError, match="of the user's own"):
        run.train()


@pytest.mark.parametrize("predicts", [False, True])
def test_a_worker_that_dies_in_evaluation_is_told_too(tmp_path, predicts):
    run = build(*models["vit"](), tmp_path, Rows(24), Deadly(24), eval_strategy="no", dataloader_num_workers=1)
    with pytest.raises(ChildProcessError, match=r"a data-loader worker\) died"):
        run.predict(Deadly(24)) if predicts else run.evaluate()


def test_a_worker_that_dies_later_interrupts_nothing_of_the_users(tmp_path):
    """Torch's handler outlasts the trainer, and would raise wherever the process happens to be."""
    run = build(*models["vit"](), tmp_path, Rows(24), Rows(8), eval_strategy="no", dataloader_num_workers=1)
    run.evaluate()
    batches = iter(DataLoader(Rows(24), num_workers=1))
    next(batches)
    KillWorkers().on_step_begin(None, None, None)
    with pytest.raises(RuntimeError, match="DataLoader worker"):  # where it is waited for
        list(batches)


class KillLate(KillWorkers):
    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 7:
            super().on_step_begin(args, state, control, **kwargs)


def test_workers_are_known_where_their_rows_are_evaluated_too(tmp_path):
    data = Rows(24)
    settings = {**EVALUATED, "dataloader_num_workers": 2}
    run = build(*models["vit"](), tmp_path, data, {"train": data}, callbacks=[KillLate()], **settings)
    with pytest.raises(ChildProcessError, match=r"a data-loader worker\) died"):
        run.train()


def test_an_error_of_the_users_own_is_no_death(tmp_path):
    """Workers of evaluation have ended by then, as they should."""
    run = trainer(tmp_path, callbacks=[Breaks()], dataloader_num_workers=2)
    with pytest.raises(EOFError, match="of the user's own"):
        run.train()


class Deadly(Rows):
    """A row at which a decoder would crash, or memory run out."""

    def __getitem__(self, index):
        if index == 17 and get_worker_info() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(index)


def test_a_worker_that_dies_is_told_with_its_mend(tmp_path):
    settings = {"train_sampling_strategy": "sequential", "dataloader_num_workers": 2, "save_steps": 1}
    run = bad_loss.trainer(tmp_path, Deadly(24), **settings)
    with pytest.raises(ChildProcessError) as told:
        run.train()
    assert str(told.value).startswith("A process that reads images (a data-loader worker) died")
    assert "Set dataloader_num_workers, which is 2, lower" in str(told.value)
    assert told.value.__cause__ is not None  # torch's own words


def test_a_row_that_a_worker_cannot_read_is_named(tmp_path):
    class Broken(Rows):
        def __getitem__(self, index):
            if index == 17 and get_worker_info() is not None:
                raise RuntimeError("the decoder gave up")
            return super().__getitem__(index)

    run = bad_loss.trainer(tmp_path, Broken(24), dataloader_num_workers=1)
    with pytest.raises(ValueError, match=r"train_dataset, row 17: the image cannot be read: the decoder gave up\."):
        run.train()


def test_a_process_that_is_lost_ends_the_others(tmp_path):
    """They would wait for it until someone looks."""
    run_script(TESTS / "distributed" / "lost_processes.py", tmp_path)
    killed, hung = (json.loads((tmp_path / f"{fate}.json").read_text()) for fate in ("SIGKILL", "SIGSTOP"))
    for fate in (killed, hung):
        assert fate["told"].startswith(
            "Another process of this run has ended, or did not answer within ddp_timeout, which is 3 s. The last "
        )
        assert "gloo" in fate["cause"]  # torch's own words
    assert killed["seconds"] < 60
    checkpoint = tmp_path / "SIGKILL" / "checkpoint-2"
    assert f"The last complete checkpoint is {checkpoint}. See what that process" in killed["told"]
    assert 3 < hung["seconds"] < 60


def test_checkpoints_that_were_cut_off_are_named_in_a_warning(tmp_path, caplog):
    for number, text in (("2", json.dumps({"global_step": 2})), ("4", '{"global_st'), ("6", "")):
        folder = tmp_path / f"checkpoint-{number}"
        folder.mkdir()
        (folder / "trainer_state.json").write_text(text)
    logging.getLogger("transformers").propagate = True
    assert checkpoint_to_resume("true", str(tmp_path)) == str(tmp_path / "checkpoint-2")
    assert "checkpoint-4, checkpoint-6 were not written to the end" in caplog.text
    with pytest.raises(ValueError, match="no complete checkpoint: it was not written to its end"):
        checkpoint_to_resume(str(tmp_path / "checkpoint-4"), str(tmp_path))


@pytest.mark.parametrize("cut_off", ["model.safetensors", "predictions.csv"])
def test_a_disk_that_is_full_when_training_is_done(tmp_path, monkeypatch, capsys, cut_off):
    """What took hours would end in a stack trace, and nobody knew that it is not lost."""
    plain = ConRTrainer.train

    def full(self, *given, **named):
        output = plain(self, *given, **named)
        size = {"model.safetensors": 100_000, "predictions.csv": 0}[cut_off]
        if size:
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        return output

    def no_room(*given):
        raise OSError(errno.ENOSPC, "No space left on device", cut_off)

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    monkeypatch.setattr(ConRTrainer, "train", full)
    if cut_off == "predictions.csv":
        monkeypatch.setattr("conr_hf.inference.evaluate.write_predictions", no_room)
    options = ["recipes/quickstart.yaml", "--model", "timm/test_resnet", "--max_steps", "2", "--eval_strategy", "no"]
    try:
        with pytest.raises(SystemExit) as ended:
            main(["train", *options, "--save_steps", "1", "--output_dir", str(tmp_path), "--disable_tqdm", "true"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert ended.value.code == 1
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert told.startswith(f'conr-hf: The results cannot be written to "{tmp_path}", where ')
    assert told.endswith("Make room, and resume with --resume_from_checkpoint true: the checkpoints are complete.")
    assert [folder.name for folder in complete_checkpoints(str(tmp_path))] == ["checkpoint-1", "checkpoint-2"]


def test_no_room_for_predictions_is_told(tmp_path, monkeypatch):
    def no_room(*given, **named):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pd.DataFrame, "to_csv", no_room)
    monkeypatch.setattr(Path, "write_text", no_room)
    for name in ("a.csv", "a.json"):
        with pytest.raises(OSError, match=r'cannot be written to ".*Make room, and start it again\.') as told:
            write_predicted(tmp_path / name, {"image": ["a.png"], "age": [1.0]})
        assert told.value.errno is None


@pytest.mark.parametrize("kind", [OSError, ChildProcessError, ConnectionError, FloatingPointError])
def test_the_command_says_it_in_a_sentence(monkeypatch, capsys, kind):
    def broken(given):
        raise kind("What broke, and what to do.")

    monkeypatch.setattr(commands, "train", broken)
    with pytest.raises(SystemExit) as ended:
        main(["train", "recipe.yaml"])
    assert ended.value.code == 1
    assert capsys.readouterr().err == "conr-hf: What broke, and what to do.\n"


def test_the_systems_own_errors_are_not_hidden(monkeypatch):
    def broken(given):
        raise PermissionError(13, "Permission denied", "somewhere")

    monkeypatch.setattr(commands, "train", broken)
    with pytest.raises(PermissionError):
        main(["train", "recipe.yaml"])
