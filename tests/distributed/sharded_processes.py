"""
What `test_sharded.py` runs, on one process and, with the model in parts, on two, which write what they saw to
FOLDER/results.RANK.pt; forked, as each would be long in importing:

    python tests/distributed/sharded_processes.py FOLDER fsdp|zero2|zero3
"""

import os
import socket
import sys
import traceback
from pathlib import Path

import torch
from accelerate.state import PartialState
from accelerate.utils import DistributedType
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback

sys.path.append(str(Path(__file__).parents[1] / "helpers"))

from small import build, images, models

PROCESSES = 2
ZERO = {
    "ACCELERATE_USE_DEEPSPEED": "true",
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "auto",
    "ACCELERATE_GRADIENT_CLIPPING": "auto",
    "ACCELERATE_DEEPSPEED_ZERO3_INIT": "false",
    "DS_ACCELERATOR": "cpu",
}
MODES = {  # what `accelerate launch` sets by the files in recipes/accelerate
    "fsdp": {
        "ACCELERATE_USE_FSDP": "true",
        "FSDP_VERSION": "2",
        "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
        "FSDP_RESHARD_AFTER_FORWARD": "true",
        "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
        "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
    },
    "zero2": {**ZERO, "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2"},
    "zero3": {
        **ZERO,
        "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3",
        "ACCELERATE_DEEPSPEED_ZERO3_SAVE_16BIT_MODEL": "true",
    },
}
METHODS = {"base_loss": "bmc", "fds": "gaussian", "ranksim_weight": 1.0, "rnc_weight": 0.5}
UNSAVED = {"save_strategy": "no", "load_best_model_at_end": False}


class Steps(TrainerCallback):
    """Remembers the weights after each step and whether this process holds all of them; stops after step `last`."""

    def __init__(self, last=None):
        self.weights, self.held, self.last = [], [], last

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.weights.append(whole(model))
        parts = [part.to_local() if isinstance(part, DTensor) else part for part in model.parameters()]
        self.held.append(sum(part.numel() for part in parts) / len(self.weights[-1]))
        control.should_training_stop = state.global_step == self.last


def whole(model):
    parameters = list(model.parameters())
    if any(hasattr(parameter, "ds_id") for parameter in parameters):
        import deepspeed

        with deepspeed.zero.GatheredParameters(parameters):
            return torch.cat([parameter.detach().clone().flatten() for parameter in parameters])
    parts = [part.full_tensor() if isinstance(part, DTensor) else part for part in parameters]
    return torch.cat([part.detach().flatten() for part in parts])


def trainer(folder, name="vit", last=None, **changed):
    torch.manual_seed(0)
    steps = Steps(last)
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    settings = {
        "use_cpu": processes == 1,  # the others too are on the CPU; see `launched`
        "num_train_epochs": 3,
        "max_grad_norm": 0.5,
        "weight_decay": 0.1,
        "conr_weight": 0.5,
        "conr_window": 2.0,
        "bin_width": 10.0,
        "per_device_train_batch_size": 8 // processes,
        "per_device_eval_batch_size": 4 // processes,
        **changed,
    }
    made = build(*models[name](), folder, images(13), images(11, seed=1), callbacks=[steps], **settings)
    return made, steps


def seen(made, steps):
    return {
        "log": [entry for entry in made.state.log_history if "loss" in entry],
        "evaluations": [entry for entry in made.state.log_history if "eval_mae" in entry],
        "weights": steps.weights,
        "held": steps.held,
        "final": whole(made.model),
        "buffers": [buffer.clone() for buffer in made.model.buffers()],
        "predictions": made.predict(made.eval_dataset).predictions,
    }


def run(folder):
    folder = Path(folder)
    results = {}
    made, steps = trainer(folder / "methods", **METHODS)
    made.train()
    made.save_model(str(folder / "methods" / "saved"))
    results["methods"] = seen(made, steps)

    trainer(folder / "resumed", last=4, **METHODS)[0].train()
    made, steps = trainer(folder / "resumed", **METHODS)
    made.train(resume_from_checkpoint=True)
    results["resumed"] = seen(made, steps)

    made, steps = trainer(folder / "timm", name="timm-vit", gradient_accumulation_steps=2, **UNSAVED)
    before = made.evaluate()["eval_mae"]
    made.train()
    results["timm"] = {**seen(made, steps), "before": before}

    made, steps = trainer(folder / "buffers", name="timm-resnet", num_train_epochs=1, **UNSAVED)
    made.train()
    results["buffers"] = seen(made, steps)
    torch.save(results, folder / f"results.{os.environ.get('RANK', '0')}.pt")


def launched(folder, mode):
    """
    Exit codes of two processes that hold the model in parts, by `mode`.

    Accelerate shards on GPUs alone, and on CPUs trains whole models instead; so it is told that these are GPUs.
    """
    PartialState._prepare_backend = lambda *_: ("gloo", DistributedType.MULTI_GPU)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    os.environ |= MODES[mode] | {"ACCELERATE_TORCH_DEVICE": "cpu"}
    os.environ |= {"WORLD_SIZE": str(PROCESSES), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    processes = []
    for rank in range(PROCESSES):
        process = os.fork()
        if process == 0:
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            ended = 1
            try:
                torch.distributed.init_process_group("gloo", rank=rank, world_size=PROCESSES)
                run(folder)
                ended = 0
            except Exception:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(ended)
        processes.append(process)
    return [os.waitpid(process, 0)[1] for process in processes]


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(any(launched(*sys.argv[1:])))
