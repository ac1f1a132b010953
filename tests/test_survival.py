"""A run that breaks loses no more than what came after its last checkpoint, and says what to do."""

import multiprocessing
import os
import random
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from test_resume import assert_same_run, trainer
from transformers import TrainerCallback

from conr_hf import commands
from conr_hf.cli import main
from conr_hf.launch import complete_checkpoints

HERE = Path(__file__).parent


def test_a_run_that_is_killed_goes_on_as_if_it_had_not_been(tmp_path):
    """Five times, at moments that are others each time; a checkpoint is saved each step, so some are cut off."""
    path = f"{HERE.parent}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    seed = random.SystemRandom().randrange(10**6)
    ended = subprocess.run(
        [sys.executable, str(HERE / "killed_runs.py"), str(tmp_path), "5", str(seed)],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
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


class KillWorker(TrainerCallback):
    """
    As the system does where memory runs out. Torch raises from the signal handler of a death: here, where no queue
    is locked that would be put to once more.
    """

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 2:
            for worker in multiprocessing.active_children():
                worker.kill()
                os.waitid(os.P_PID, worker.pid, os.WEXITED | os.WNOWAIT)


def test_a_worker_that_dies_is_told_with_its_mend(tmp_path):
    run = trainer(tmp_path, callbacks=[KillWorker()], dataloader_num_workers=1, save_steps=1)
    with pytest.raises(
        ChildProcessError, match=r"died \(DataLoader worker.*dataloader_num_workers, which is 1, lower"
    ):
        run.train()
    assert complete_checkpoints(str(tmp_path))


@pytest.mark.parametrize("kind", [OSError, ChildProcessError, FloatingPointError])
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
