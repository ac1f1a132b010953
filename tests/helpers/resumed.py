"""A run that can be stopped and resumed, and the same of two runs."""

import torch
from small import build, images, vit_config
from transformers import TrainerCallback

from conr_hf import load_regressor

ROWS, BATCH, EPOCHS = 21, 4, 3  # six batches an epoch, the last of one row


class Stop(TrainerCallback):
    """Ends a run after a step, as a user or a scheduler would, without touching its schedule."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step == self.step


def trainer(folder, weights=0, stop=None, **changed):
    """A run with dropout, so that the state of the global generator matters; `weights` seeds the fresh model."""
    torch.manual_seed(weights)
    config = vit_config(hidden_dropout_prob=0.2, attention_probs_dropout_prob=0.1)
    model, processor = load_regressor(config, image_size=32)
    settings = {
        "per_device_train_batch_size": BATCH,
        "num_train_epochs": EPOCHS,
        "learning_rate": 3e-3,
        "conr_weight": 0.5,
        "conr_window": 3.0,
        "eval_strategy": "steps",
        "save_strategy": "steps",
        "eval_steps": 2,
        "save_steps": 2,
        "load_best_model_at_end": False,
        "callbacks": [Stop(stop)] if stop is not None else [],
        **changed,
    }
    return build(model, processor, folder, images(ROWS), images(9, seed=1), **settings)


def flat(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_same_run(late, whole):
    """The same weights, optimizer, schedule and logged figures, to the bit."""
    assert late.state.global_step == whole.state.global_step
    ours, theirs = flat(late.model), flat(whole.model)
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert torch.equal(ours[name], value), name
    ours, theirs = late.optimizer.state_dict(), whole.optimizer.state_dict()
    assert ours["param_groups"] == theirs["param_groups"]
    assert ours["state"].keys() == theirs["state"].keys()
    for key, state in theirs["state"].items():
        for name, value in state.items():
            assert torch.equal(ours["state"][key][name], value), (key, name)
    assert late.lr_scheduler.state_dict() == whole.lr_scheduler.state_dict()
    timed = ("runtime", "per_second", "train_loss", "total_flos")
    for mine, other in zip(late.state.log_history, whole.state.log_history, strict=True):
        assert {k: v for k, v in mine.items() if not k.endswith(timed)} == {
            k: v for k, v in other.items() if not k.endswith(timed)
        }
