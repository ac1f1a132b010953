"""Several processes of this machine, as a launcher starts them."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import torch

TESTS = Path(__file__).parents[1]


def launch(folder, launcher, *cases, processes=2):
    """Runs the worker on several processes; what each of them wrote."""
    folder.mkdir()
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("ACCELERATE", "CUDA"))}
    environment |= {
        "PYTHONPATH": f"{TESTS.parent}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, *launcher, str(folder), *cases]
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    try:
        output, _ = process.communicate(timeout=240)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    assert process.returncode == 0, output[-4000:]
    return [torch.load(folder / f"results.{rank}.pt", weights_only=False) for rank in range(processes)]
