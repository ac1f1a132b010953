"""
What `test_survival.py` runs: two processes that no launcher watches over, forked, as each would be long in importing.
One of them gets a signal in its third step; the other writes what ended it to FOLDER/SIGNAL.json.

    python tests/distributed/lost_processes.py FOLDER
"""

import json
import os
import signal
import socket
import sys
import time
from pathlib import Path

from transformers import TrainerCallback

sys.path.append(str(Path(__file__).parents[1] / "helpers"))

from bad_loss import Rows, trainer

TIMEOUT = 3


class Meet(TrainerCallback):
    """The second process meets its fate."""

    def __init__(self, fate):
        self.fate = fate

    def on_step_begin(self, args, state, control, **kwargs):
        if os.environ["RANK"] == "1" and state.global_step == 2:
            os.kill(os.getpid(), self.fate)


def run(folder, fate):
    settings = {"per_device_train_batch_size": 2, "conr_weight": 0.05, "ddp_timeout": TIMEOUT}
    one = trainer(folder / fate.name, Rows(24), callbacks=[Meet(fate)], **settings)
    begun = time.monotonic()
    try:
        one.train()
    except ConnectionError as error:
        told = {"told": str(error), "cause": str(error.__cause__), "seconds": time.monotonic() - begun}
        (folder / f"{fate.name}.json").write_text(json.dumps(told))


def begin(folder, fate):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    os.environ |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    processes = []
    for rank in ("0", "1"):
        process = os.fork()
        if process == 0:
            os.environ |= {"RANK": rank, "LOCAL_RANK": rank}
            try:
                run(folder, fate)
            finally:
                sys.stderr.flush()
                os._exit(0)
        processes.append(process)
    os.waitpid(processes[0], 0)
    os.kill(processes[1], signal.SIGKILL)
    os.waitpid(processes[1], 0)


if __name__ == "__main__":
    for fate in (signal.SIGKILL, signal.SIGSTOP):
        begin(Path(sys.argv[1]), fate)
