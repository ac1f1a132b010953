"""A loss that is no number stops training at its step, before weights are harmed, and names the rows."""

import copy
import math

import numpy as np
import pytest
import resumed
import torch
from bad_loss import Poison, Rows, trainer
from transformers import TrainerCallback

from conr_hf.cli.main import main


def drawn(run, epoch=0):
    """Rows in the order of an epoch."""
    return run.loaders.order.rows_at(epoch, 0, run.loaders.order.count)


FILTERED = {"logging_nan_inf_filter": True, "logging_steps": 50}
BESIDE = {"conr_weight": 0.5, "rnc_weight": 0.5, "ranksim_weight": 0.5, "base_loss": "bni", "fds": "gaussian"}


@pytest.mark.parametrize("changed", [{}, FILTERED, BESIDE])
@pytest.mark.parametrize("accumulated", [1, 2])
def test_the_step_its_rows_and_the_last_checkpoint_are_named(tmp_path, accumulated, changed):
    changed = {"gradient_accumulation_steps": accumulated, "num_train_epochs": 2, **changed}
    probe = trainer(tmp_path / "probe", Rows(24), max_steps=1, **changed)
    probe.train()
    order = drawn(probe)
    run = trainer(tmp_path / "run", Rows(24, bad=[order[18]]), **changed)
    with pytest.raises(FloatingPointError) as caught:
        run.train()
    step = (
        4 // accumulated + 1
    )  # the micro-batch of rows 16 to 19 is the fifth, the first of its step where they are two
    assert str(caught.value) == (
        f"The loss is nan at step {step}, on rows {', '.join(map(str, order[16:20]))} of train_dataset: training "
        "diverged. Lower learning_rate, or look at these rows. The last complete checkpoint is "
        f"{tmp_path / 'run' / f'checkpoint-{step - 1}'}."
    )
    assert run.state.global_step == step - 1
    assert all(parameter.isfinite().all() for parameter in run.model.parameters())


def test_the_row_that_another_is_mixed_with_is_named(tmp_path):
    run = trainer(tmp_path, Rows(24, bad=[5]), cmixup_alpha=2.0)
    with pytest.raises(FloatingPointError, match=r", on rows (\d+, )*5(, \d+)* of train_dataset"):
        run.train()


def test_rows_left_out_do_not_shift_the_names(tmp_path):
    """Row ids are those of the user's data set, not of its rows that can be used."""
    data = Rows(9, bad=range(4, 9))
    data.labels[[2, 4]] = np.nan
    run = trainer(tmp_path, data, skip_bad_rows=True, train_sampling_strategy="sequential")
    with pytest.raises(FloatingPointError, match=r"on rows 0, 1, 3, 5 of train_dataset.*There is no checkpoint"):
        run.train()


def test_on_a_device_whose_losses_are_not_read_the_step_is_looked_at_before_it_is_saved(tmp_path, monkeypatch):
    """There the host must not wait for the device; but no checkpoint may hold what such a step made of the weights."""
    run = trainer(tmp_path, Rows(24, bad=range(1, 24)), save_steps=3, logging_steps=50)
    monkeypatch.setattr(type(run.nan_guard), "_waits", lambda self, args: False)
    with pytest.raises(FloatingPointError, match="at step 1, on rows"):
        run.train()
    assert run.state.global_step == 1
    run = trainer(tmp_path, Rows(4, bad=range(1, 4)), save_steps=1, logging_steps=50)
    monkeypatch.setattr(type(run.nan_guard), "_waits", lambda self, args: False)
    with pytest.raises(FloatingPointError, match="at step 1, on rows"):
        run.train()
    assert not list(tmp_path.glob("checkpoint-*"))


def test_a_gradient_that_is_no_number_stops_too(tmp_path):
    """Its step would make all weights NaN, and the next loss be blamed for it."""
    run = trainer(tmp_path, Rows(24), callbacks=[Poison("gradient", 3)], gradient_accumulation_steps=2)
    with pytest.raises(FloatingPointError) as caught:
        run.train()
    assert str(caught.value) == (
        "The loss is finite, but the norm of its gradient is nan at step 3, on rows "
        f"{', '.join(map(str, drawn(run)[16:]))} of train_dataset: training diverged. Lower learning_rate, or look at "
        f"these rows. The last complete checkpoint is {tmp_path / 'checkpoint-2'}."
    )
    assert all(parameter.isfinite().all() for parameter in run.model.parameters())


# ---- Steps that are skipped -----------------------------------------------------------------------------------------


class Look(TrainerCallback):
    """What a step may change, before it and after it, but for the features that it counts for FDS."""

    def __init__(self, step):
        self.step, self.seen = step, []

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step + 1 in (self.step, self.step + 1):
            run = self.run
            state_of_methods = run.training_objective.state() | run.training_objective.meter._sums
            own = {name: value for name, value in state_of_methods.items() if not name.startswith("fds.")}
            average = run.ema._average.module.state_dict()
            optimizer = {key: dict(state) for key, state in run.optimizer.optimizer.state_dict()["state"].items()}
            self.seen.append(copy.deepcopy([dict(run.model.state_dict()), dict(average), own, *optimizer.values()]))


METHODS = {"conr_weight": 0.5, "rnc_weight": None, "rnc_gradient_share": 0.5, "base_loss": "bni", "fds": "gaussian"}
METHODS |= {"ema_decay": 0.9}


@pytest.mark.parametrize("what", ["loss", "gradient"])
@pytest.mark.parametrize(("model", "accumulated"), [("timm-resnet", 1), ("vit", 2)])
def test_a_skipped_step_changes_nothing(tmp_path, caplog, what, model, accumulated):
    """Momentum, running statistics, FDS, noise or average would carry bad rows on, or decay without them."""
    step = 8 // accumulated
    look = Look(step)
    look.run = run = trainer(
        *(tmp_path, Rows(24), model),
        **{**METHODS, "bin_width": 0.5, "on_bad_loss": "skip", "num_train_epochs": 2, "learning_rate": 3e-3},
        gradient_accumulation_steps=accumulated,
        save_strategy="no",
        logging_steps=6 // accumulated,
        callbacks=[Poison(what, step), look],
    )
    run.train()
    before, after = look.seen
    assert [part.keys() for part in before] == [part.keys() for part in after]
    for ours, theirs in zip(after, before, strict=True):
        assert all(torch.equal(torch.as_tensor(ours[name]), torch.as_tensor(theirs[name])) for name in theirs)
    assert run.state.global_step == 12 // accumulated
    assert all(tensor.isfinite().all() for tensor in run.model.state_dict().values())
    (told,) = caplog.messages
    rows = drawn(run, epoch=1)[4:8] if accumulated == 1 else drawn(run, epoch=1)[: 4 if what == "loss" else 8]
    begins = "The loss is nan" if what == "loss" else "The loss is finite, but the norm of its gradient is nan"
    assert told == (
        f"{begins} at step {step}, on rows {', '.join(map(str, rows))} of train_dataset. The step is skipped."
    )


def test_the_logged_figures_are_means_over_the_other_steps(tmp_path):
    """`loss` is the figure of `Trainer`, which fills in the mean of the steps before a bad one."""
    settings = {"on_bad_loss": "skip", "logging_steps": 3, "learning_rate": 0.0, "save_strategy": "no"}
    each, run = (
        trainer(tmp_path, Rows(24), callbacks=[Poison("loss", 2, 4, 5, 6)], **{**settings, "logging_steps": steps})
        for steps in (1, 3)
    )
    each.train()
    run.train()
    singly = {entry["step"]: entry for entry in each.state.log_history}
    assert [step for step, entry in singly.items() if "base_loss" in entry] == [1, 3]
    assert all(math.isfinite(entry["loss"]) for entry in each.state.log_history[:-1])
    first, second, _ = run.state.log_history
    assert first["base_loss"] == pytest.approx((singly[1]["base_loss"] + singly[3]["base_loss"]) / 2, rel=1e-6)
    assert not {"base_loss", "grad_norm"} & second.keys()


def test_a_skipped_step_leaves_no_nan_in_the_statistics(tmp_path):
    """Batch norm and FDS would keep a NaN for good, and every later evaluation and epoch be NaN."""
    settings = {"on_bad_loss": "skip", "fds": "gaussian", "bin_width": 0.5, "num_train_epochs": 3}
    run = trainer(tmp_path, Rows(24, bad=[7]), model="timm-resnet", **settings)
    run.train()
    assert all(tensor.isfinite().all() for tensor in run.model.state_dict().values())
    assert all(tensor.isfinite().all() for tensor in run.training_objective.smoothing.state().values())


def test_a_resumed_run_skips_what_the_uninterrupted_one_does(tmp_path):
    """Step 3 is before the checkpoint that it goes on from, and step 11 behind it."""

    def run(folder, *more, **changed):
        settings = {"base_loss": "bni", "fds": "gaussian", "bin_width": 10.0, "ema_decay": 0.9, "on_bad_loss": "skip"}
        callbacks = [Poison("loss", 3, 11), *more]
        return resumed.trainer(tmp_path / folder, callbacks=callbacks, **settings, **changed)

    whole = run("whole")
    whole.train()
    run("stopped", resumed.Stop(9)).train()
    late = run("stopped", weights=1)
    late.train(resume_from_checkpoint=True)
    resumed.assert_same_run(late, whole)


def test_ten_skipped_in_a_row_are_enough(tmp_path, caplog):
    settings = {"on_bad_loss": "skip", "num_train_epochs": 4, "save_steps": 2}
    run = trainer(tmp_path, Rows(24), callbacks=[Poison("loss", *range(3, 13), *range(14, 25))], **settings)
    with pytest.raises(FloatingPointError, match=r"nan at step 24, .* The 10 steps before it were skipped\. The last"):
        run.train()
    assert len(caplog.messages) == 20
    assert all(parameter.isfinite().all() for parameter in run.model.parameters())


def test_what_steps_by_itself_cannot_skip(tmp_path):
    with pytest.raises(ValueError, match="on_bad_loss is skip, but DeepSpeed and LOMO step before"):
        trainer(tmp_path, Rows(8), on_bad_loss="skip", optim="lomo")


def test_the_command_says_so_in_a_sentence(tmp_path, capsys):
    options = ["recipes/quickstart.yaml", "--model", "timm/test_resnet", "--learning_rate", "1e30", "--max_steps", "9"]
    with pytest.raises(SystemExit) as ended:
        main(["train", *options, "--warmup_steps", "0", "--output_dir", str(tmp_path), "--disable_tqdm", "true"])
    assert ended.value.code == 1
    assert capsys.readouterr().err.startswith("conr-hf: The loss is ")
