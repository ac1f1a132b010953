"""What `test_interrupts.py` runs on two processes, which write what ended them to FOLDER/ended.RANK.json."""

import json
import signal
import sys
from pathlib import Path

from transformers import TrainerCallback

from conr_hf.utils.distributed import rank

sys.path.append(str(Path(__file__).parents[1] / "helpers"))

from bad_loss import Poison, Rows, trainer


class SendOne(TrainerCallback):
    """The second process alone gets a signal."""

    def on_step_begin(self, args, state, control, **kwargs):
        if rank() == 1 and state.global_step == 1:
            signal.raise_signal(signal.SIGTERM)


def run(folder):
    told = {}
    settings = {"train_sampling_strategy": "sequential", "per_device_train_batch_size": 2, "conr_weight": 0.05}
    run = trainer(folder / "signal", Rows(24), save_strategy="no", callbacks=[SendOne()], **settings)
    try:
        run.train()
    except SystemExit as error:
        told["signal"] = [error.code, run.state.global_step]
    settings["conr_weight"] = 0.0  # which would spread the second process's number that is none
    run = trainer(folder / "loss", Rows(24, bad=[10]), gradient_accumulation_steps=2, **settings)
    try:
        run.train()
    except FloatingPointError as error:
        told["loss"] = str(error)
    # The batches of the second process alone are bad, in the second step, and in the third one its gradient.
    settings |= {"base_loss": "bni", "fds": "gaussian", "ema_decay": 0.9, "bin_width": 0.5, "on_bad_loss": "skip"}
    poison = [Poison("gradient", 3)] if rank() == 1 else []
    run = trainer(folder / "skip", Rows(24, bad=[10]), gradient_accumulation_steps=2, callbacks=poison, **settings)
    run.train()
    state = run.training_objective.base.balanced.state() | dict(run.model.state_dict())
    told["skip"] = [run.state.global_step, sum(float(tensor.double().abs().sum()) for tensor in state.values())]
    (folder / f"ended.{rank()}.json").write_text(json.dumps(told))


if __name__ == "__main__":
    run(Path(sys.argv[1]))
