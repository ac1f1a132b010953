"""A loss that is no number stops training at its step, before weights are harmed, and names the rows."""

import numpy as np
import pytest
import torch
from small import build, models

from conr_hf.cli import main


class Rows(torch.utils.data.Dataset):
    """Rows ready for the model, of which `bad` holds what no decoder would give."""

    def __init__(self, count, bad=()):
        random = np.random.default_rng(0)
        self.pixels = random.normal(size=(count, 3, 32, 32)).astype(np.float32)
        self.labels = random.normal(size=count).astype(np.float32)
        self.pixels[list(bad)] = np.nan

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return {"pixel_values": self.pixels[index], "labels": self.labels[index]}


def trainer(folder, data, **changed):
    torch.manual_seed(0)
    settings = {"per_device_train_batch_size": 4, "conr_weight": 0.0, "save_strategy": "steps", "save_steps": 1}
    return build(*models["vit"](), folder, data, **{**settings, **changed})


def drawn(run, epoch=0):
    """Rows in the order of an epoch."""
    return run.order.rows_at(epoch, 0, run.order.count)


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
    monkeypatch.setattr(type(run.watch), "_waits", lambda self, args: False)
    with pytest.raises(FloatingPointError, match="at step 1, on rows"):
        run.train()
    assert run.state.global_step == 1
    run = trainer(tmp_path, Rows(4, bad=range(1, 4)), save_steps=1, logging_steps=50)
    monkeypatch.setattr(type(run.watch), "_waits", lambda self, args: False)
    with pytest.raises(FloatingPointError, match="at step 1, on rows"):
        run.train()
    assert not list(tmp_path.glob("checkpoint-*"))


def test_the_command_says_so_in_a_sentence(tmp_path, capsys):
    options = ["recipes/quickstart.yaml", "--model", "timm/test_resnet", "--learning_rate", "1e30", "--max_steps", "9"]
    with pytest.raises(SystemExit) as ended:
        main(["train", *options, "--warmup_steps", "0", "--output_dir", str(tmp_path), "--disable_tqdm", "true"])
    assert ended.value.code == 1
    assert capsys.readouterr().err.startswith("conr-hf: The loss is ")
