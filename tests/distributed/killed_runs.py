"""
What `test_survival.py` runs: short runs that are killed at random moments and resumed, against one that was not.

    python tests/distributed/killed_runs.py FOLDER KILLS SEED

Prints a line a kill: the last complete checkpoint, and whether the final weights are the same, bit for bit.
"""

import gc
import os
import random
import signal
import sys
import time
from pathlib import Path

from safetensors.torch import load_file

from conr_hf.training.checkpoints import complete_checkpoints

sys.path.append(str(Path(__file__).parents[1] / "helpers"))

from resumed import trainer


def begin(folder):
    """Trains in a process of its own, from the last complete checkpoint if there is one; its id."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        run = trainer(folder, save_steps=1, base_loss="bni", fds="gaussian", bin_width=10.0, ema_decay=0.9)
        run.train(resume_from_checkpoint=bool(complete_checkpoints(str(folder))))
        run.save_model(str(folder / "final"))
        code = 0
    finally:
        os._exit(code)


def weights(folder):
    return load_file(folder / "final" / "model.safetensors")


def main(folder, kills, seed):
    gc.freeze()  # each training begins with a garbage collection, which need not look through all of torch
    draw = random.Random(seed)
    begun = time.monotonic()
    _, status = os.waitpid(begin(folder / "whole"), 0)
    assert status == 0
    seconds = time.monotonic() - begun
    whole = weights(folder / "whole")
    for number in range(kills):
        place = folder / str(number)
        child = begin(place)
        time.sleep(draw.uniform(0.2, 1) * seconds)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        saved = complete_checkpoints(str(place))
        _, status = os.waitpid(begin(place), 0)
        assert status == 0, "the resumed run failed"
        late = weights(place)
        same = late.keys() == whole.keys() and all(late[name].equal(tensor) for name, tensor in whole.items())
        print(saved[-1].name if saved else "none", "same" if same else "other", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
