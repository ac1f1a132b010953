"""
What `test_sharded.py` runs, on one process and, with the model in two parts, on two, which write what they saw to
FOLDER/results.RANK.pt; forked, as each would be long in importing:

    python tests/sharded_processes.py FOLDER
"""

import os
import socket
import sys
from pathlib import Path

import torch
from small import build, images, models
from torch.distributed.tensor import DTensor
from transformers import AutoModelForImageClassification, TrainerCallback

SHARDED = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
}


class Steps(TrainerCallback):
    """Remembers the weights after each step, and stops after one."""

    def __init__(self, last=None):
        self.weights, self.sharded, self.last = [], [], last

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.weights.append(whole(model))
        self.sharded.append(all(isinstance(parameter, DTensor) for parameter in model.parameters()))
        control.should_training_stop = state.global_step == self.last


def whole(model):
    parts = [parameter.detach() for parameter in model.parameters()]
    return torch.cat([(part.full_tensor() if isinstance(part, DTensor) else part).flatten() for part in parts])


def trainer(folder, name="vit", last=None, **changed):
    torch.manual_seed(0)
    steps = Steps(last)
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    settings = {
        "use_cpu": processes == 1,  # in parts it is the CPU too; see `two`
        "num_train_epochs": 3,
        "learning_rate": 1e-3,
        "max_grad_norm": 0.5,
        "weight_decay": 0.1,
        "conr_weight": 0.5,
        "conr_window": 2.0,
        "per_device_train_batch_size": 8 // processes,
        "per_device_eval_batch_size": 4 // processes,
        "bin_width": 10.0,
        **changed,
    }
    made = build(*models[name](), folder, images(13), images(11, seed=1), callbacks=[steps], **settings)
    return made, steps


METHODS = {"base_loss": "bmc", "fds": "gaussian", "ranksim_weight": 1.0, "rnc_weight": 0.5}


def run_case(folder, **changed):
    """A run whose best model is loaded at the end, and what plain transformers makes of what it saved."""
    run, steps = trainer(folder, **changed)
    run.train()
    predictions = run.predict(run.eval_dataset).predictions
    run.save_model(str(folder / "saved"))
    return {
        "log": [entry for entry in run.state.log_history if "loss" in entry],
        "evaluations": [entry for entry in run.state.log_history if "eval_mae" in entry],
        "weights": steps.weights,
        "sharded": steps.sharded,
        "best": (whole(run.model), run.state.best_global_step),
        "predictions": predictions,
        "rates": [group["lr"] for group in run.optimizer.param_groups],
    }


def resumed(folder):
    """Weights of a run, and of the same one stopped in its second epoch and resumed."""
    saving = {"save_strategy": "steps", "save_steps": 3, "eval_strategy": "no", "load_best_model_at_end": False}
    saving |= METHODS
    uninterrupted, _ = trainer(folder / "whole", **saving)
    uninterrupted.train()
    stopped, _ = trainer(folder / "stopped", last=3, **saving)
    stopped.train()
    late, steps = trainer(folder / "stopped", **saving)
    late.train(resume_from_checkpoint=True)
    return {"whole": whole(uninterrupted.model), "late": whole(late.model), "steps": len(steps.weights)}


def run(folder):
    folder = Path(folder)
    results = {
        "plain": run_case(folder / "plain"),
        "methods": run_case(folder / "methods", **METHODS),
        "timm": run_case(folder / "timm", name="timm-resnet", gradient_accumulation_steps=2),
        "resumed": resumed(folder / "resumed"),
    }
    torch.save(results, folder / f"results.{os.environ.get('RANK', '0')}.pt")


def two(folder):
    """
    Two processes that hold the model in parts.

    Accelerate shards on GPUs alone, and on CPUs trains whole models instead; so it is told that these are GPUs.
    """
    from accelerate.state import PartialState
    from accelerate.utils import DistributedType

    PartialState._prepare_backend = lambda *_: ("gloo", DistributedType.MULTI_GPU)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    os.environ |= SHARDED | {"ACCELERATE_TORCH_DEVICE": "cpu"}
    os.environ |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    processes = []
    for rank in range(2):
        process = os.fork()
        if process == 0:
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            ended = 1
            try:
                torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
                run(folder)
                ended = 0
            except BaseException:
                import traceback

                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(ended)
        processes.append(process)
    return [os.waitpid(process, 0)[1] for process in processes]


if __name__ == "__main__":
    torch.set_num_threads(1)
    Path(sys.argv[1]).mkdir(parents=True, exist_ok=True)
    sys.exit(any(two(sys.argv[1])))
