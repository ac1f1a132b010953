"""A run that is asked to stop saves what it has, says how to go on, and goes on as if nothing had been."""

import json
import math
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from resumed import assert_same_run, trainer
from transformers import TrainerCallback

from conr_hf.training.callbacks.interrupt import SignalHandler
from conr_hf.training.checkpoints import last_complete_checkpoint

TESTS = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def _signals_as_in_a_terminal():
    """A shell that starts the tests in the background has them ignore Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class Send(TrainerCallback):
    """Sends this process a signal within a step, before its gradients are there."""

    def __init__(self, number, step):
        self.number, self.step = number, step

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step + 1 == self.step:
            signal.raise_signal(self.number)


def stopped(folder, number, step, **changed):
    run = trainer(folder, callbacks=[Send(number, step)], **changed)
    with pytest.raises(KeyboardInterrupt if number == signal.SIGINT else SystemExit) as caught:
        run.train()
    return run, caught.value


# Six batches an epoch: step 8 is in mid-epoch, and so is step 4 of three an epoch; 6 and 18 end an epoch and the run.
CASES = {
    "mid-epoch": (8, {"save_strategy": "no", "eval_strategy": "no"}),
    "two workers": (8, {"dataloader_num_workers": 2}),
    "accumulated": (4, {"gradient_accumulation_steps": 2, "save_steps": 50, "eval_steps": 50}),
    "what is due at the end of an epoch": (8, {"save_strategy": "epoch", "eval_strategy": "epoch"}),
    "end of an epoch": (6, {"save_strategy": "epoch", "eval_strategy": "epoch", "logging_strategy": "epoch"}),
    "best alone is saved": (7, {"save_strategy": "best", "load_best_model_at_end": True, "save_total_limit": 1}),
    "last step, where nothing else is saved": (18, {"save_strategy": "no", "eval_strategy": "no"}),
    "last step": (18, {"save_strategy": "epoch", "eval_strategy": "epoch", "load_best_model_at_end": True}),
    "average, FDS, noise": (8, {"base_loss": "bni", "fds": "gaussian", "bin_width": 10.0, "ema_decay": 0.9}),
}


@pytest.mark.parametrize("case", CASES)
def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(tmp_path, case):
    step, changed = CASES[case]
    whole = trainer(tmp_path / "whole", **changed)
    whole.train()
    run, error = stopped(tmp_path / "stopped", signal.SIGTERM, step, **changed)
    assert error.code == 143
    assert run.state.global_step == step
    assert last_complete_checkpoint(str(tmp_path / "stopped")).name == f"checkpoint-{step}"
    late = trainer(tmp_path / "stopped", weights=1, **changed)
    late.train(resume_from_checkpoint=True)
    assert_same_run(late, whole)


def test_ctrl_c_says_where_the_checkpoint_is(tmp_path, capsys):
    mine = []
    before = signal.signal(signal.SIGTERM, lambda *_: mine.append("here"))
    try:
        _, error = stopped(tmp_path, signal.SIGINT, 2)
        sentence = f"The checkpoint is {tmp_path / 'checkpoint-2'}; go on with --resume_from_checkpoint true."
        assert sentence in str(error)
        assert capsys.readouterr().err.count(sentence) == 1
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        signal.raise_signal(signal.SIGTERM)
        assert mine == ["here"], "the user's own handler was not put back"
    finally:
        signal.signal(signal.SIGTERM, before)


def test_ignored_signals_stay_ignored(tmp_path):
    """A run in the background of a script would end with Ctrl-C in its terminal."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        run = trainer(tmp_path, callbacks=[Send(signal.SIGINT, 2)], num_train_epochs=1)
        run.train()
        assert run.state.global_step == 6
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_signal_in_an_evaluation_stops_when_it_is_done(tmp_path):
    class Once(TrainerCallback):
        def on_prediction_step(self, args, state, control, **kwargs):
            if state.global_step == 2:
                signal.raise_signal(signal.SIGTERM)

    run = trainer(tmp_path, callbacks=[Once()], save_strategy="no")
    with pytest.raises(SystemExit):
        run.train()
    assert run.state.global_step == 2
    assert last_complete_checkpoint(str(tmp_path)).name == "checkpoint-2"


def begins_and_sleeps(begun):
    begun.set()
    time.sleep(60)


def test_a_process_that_a_callback_starts_can_be_ended(tmp_path):
    """Leaving the context of a multiprocessing.Pool would wait for ever."""
    codes = []

    class Forks(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            forking = multiprocessing.get_context("fork")
            begun = forking.Event()
            child = forking.Process(target=begins_and_sleeps, args=(begun,))
            child.start()
            begun.wait(30)  # before, Python forgets signals that any handler of its own is to have
            child.terminate()
            child.join(30)
            codes.append(child.exitcode)
            child.kill()

    trainer(tmp_path, callbacks=[Forks()], num_train_epochs=1, eval_strategy="no").train()
    assert codes == [-signal.SIGTERM] * 6


def test_a_run_that_begins_twice_leaves_signals_as_they_were():
    """`Trainer` begins again where auto_find_batch_size has halved the batch."""
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    interrupts = SignalHandler()
    interrupts.begin()
    interrupts.begin()
    interrupts.end()
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_who_hears_of_ended_children_still_does(tmp_path):
    heard = []
    before = signal.signal(signal.SIGCHLD, lambda *_: heard.append("a child ended"))
    try:
        run = trainer(tmp_path, dataloader_num_workers=1, num_train_epochs=1)
        run.train()
        assert heard
        heard.clear()
        subprocess.run([sys.executable, "-c", ""], check=True)
        assert heard
    finally:
        signal.signal(signal.SIGCHLD, before)


def test_a_second_signal_stops_at_once(tmp_path):
    class Twice(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)  # a launcher's beside the terminal's
            time.sleep(1.1)
            signal.raise_signal(signal.SIGINT)
            raise AssertionError("went on")

    run = trainer(tmp_path, callbacks=[Twice()])
    with pytest.raises(KeyboardInterrupt) as caught:
        run.train()
    assert not caught.value.args
    assert not list(tmp_path.glob("checkpoint-*"))


def test_training_in_a_thread_leaves_signals_alone(tmp_path):
    run = trainer(tmp_path, num_train_epochs=1)
    thread = threading.Thread(target=run.train)
    thread.start()
    thread.join()
    assert run.state.global_step == 6


COMMAND = [
    *("train", "recipes/quickstart.yaml", "--max_steps", "2000", "--per_device_train_batch_size", "8"),
    *("--eval_strategy", "no", "--logging_strategy", "steps", "--logging_steps", "1", "--disable_tqdm", "true"),
    *("--model", "timm/test_resnet", "--dataloader_num_workers", "1"),
]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_command_ends_with_the_signals_code_and_goes_on(tmp_path, number):
    """The signal reaches all processes of the command, its data-loader workers too, as a scheduler sends it."""
    command = [sys.executable, "-m", "conr_hf", *COMMAND, "--output_dir", str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        command,
        cwd=TESTS.parent,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    try:
        for line in process.stdout:
            if "step     3" in line:
                break
        os.killpg(process.pid, number)
        output, _ = process.communicate(timeout=60)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 128 + number, output
    assert "Traceback" not in output
    last = output.strip().splitlines()[-1]
    checkpoint = last_complete_checkpoint(str(tmp_path))
    step = checkpoint.name.removeprefix("checkpoint-")
    assert last == (
        f"Stopped by {number.name} after step {step}. The checkpoint is {checkpoint}; go on with "
        "--resume_from_checkpoint true."
    )


def test_what_stops_one_process_stops_all_at_the_same_step(tmp_path):
    """The others would wait for it until their launcher gives up."""
    launcher = ["torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [sys.executable, "-m", *launcher, str(TESTS / "distributed" / "stopped_processes.py"), str(tmp_path)]
    path = f"{TESTS.parent}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("ACCELERATE", "CUDA"))}
    process = subprocess.Popen(
        command,
        env={**environment, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=120)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, output[-4000:]
    first, second = (json.loads((tmp_path / f"ended.{rank}.json").read_text()) for rank in range(2))
    assert first == second
    assert first["signal"] == [143, 2]
    assert last_complete_checkpoint(str(tmp_path / "signal")).name == "checkpoint-2"
    assert output.count("Stopped by SIGTERM after step 2.") == 1
    # Row 10 is in the third micro-batch, the first of the second step, with row 11 on the second process.
    assert first["loss"].startswith("The loss is nan at step 2, on rows 10, 11 of train_dataset: training diverged.")
    assert first["skip"][0] == 3
    assert math.isfinite(first["skip"][1])
    assert output.count("The step is skipped.") == 2
    assert "The loss is nan at step 2, on rows 10, 11 of train_dataset. The step is skipped." in output
    assert "gradient is nan at step 3, on rows 16, 17, 20, 21, 18, 19, 22, 23 of train_dataset. The step" in output
    assert first["loss"].endswith(f"The last complete checkpoint is {tmp_path / 'loss' / 'checkpoint-1'}.")


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the sender of a signal is not known")
def test_a_worker_ends_with_its_trainer_alone(tmp_path):
    """Killed by the job's signal it would take the step with it; deaf to its trainer, no process would ever end."""
    run = trainer(tmp_path, dataloader_num_workers=1)
    batches = iter(run.get_train_dataloader())
    next(batches)
    (worker,) = multiprocessing.active_children()
    subprocess.run(["kill", "-TERM", str(worker.pid)], check=True)
    subprocess.run(["kill", "-INT", str(worker.pid)], check=True)
    worker.join(0.5)
    assert worker.is_alive()
    next(batches)
    worker.terminate()
    worker.join(10)
    assert worker.exitcode == 0
