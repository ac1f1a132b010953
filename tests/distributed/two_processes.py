"""
What `test_processes.py` runs, on one process and on two, which write what they saw to FOLDER/results.RANK.pt:

    torchrun --standalone --nproc_per_node 2 tests/distributed/two_processes.py FOLDER [CASE ...]
"""

import gc
import math
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from datasets import Dataset, Image
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from transformers import TrainerCallback

import conr_hf.training.checkpoint_mixin
from conr_hf import load_regressor
from conr_hf.data import map_statistics as map_labels
from conr_hf.inference.evaluate_dense import streamed_errors
from conr_hf.losses import conr_loss
from conr_hf.utils.distributed import gather_objects, gather_rows, rank, sum_over_processes

sys.path.append(str(Path(__file__).parents[1] / "helpers"))

from small import build, images, map_models, maps, models, vit_config


def own_loss(outputs, labels, num_items_in_batch=None):
    """A user's loss as Trainer asks for it: a mean in evaluation, a sum over the step's number of rows in training."""
    losses = (outputs.logits.squeeze(-1) - labels).abs()
    return losses.mean() if num_items_in_batch is None else losses.sum() / num_items_in_batch


PROCESSES = int(os.environ.get("WORLD_SIZE", "1"))  # the group that says so is formed by the first trainer only
NODES = PROCESSES // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))

BY_SHARE = {"conr_weight": None, "conr_gradient_share": 0.5}

# Rows, micro-batch over all processes, and what else the case changes.
CASES = {
    "even": (16, 8, {}),
    "uneven": (13, 8, {"reweight": "sqrt_inverse"}),
    "accumulated": (13, 4, {"gradient_accumulation_steps": 2, "base_loss": "huber"}),
    "one view": (11, 8, {"num_views": 1}),
    "two labels": (13, 8, {"label_columns": ["label0", "label1"], "base_loss": "mse"}),
    "anchors": (13, 8, {"conr_reduction": "anchors", "rnc_weight": 0.5}),
    "last alone": (9, 8, {}),
    "methods": (
        13,
        8,
        {
            "base_loss": "bmc",
            "fds": "gaussian",
            "bin_width": 10.0,
            "ranksim_gradient_share": 0.2,
            "rnc_weight": 0.5,
            "ema_decay": 0.5,
        },
    ),
    "resampled": (13, 8, {"resample": "sqrt_inverse", "base_loss": "focal_l1"}),
    "with what goes with ConR": (13, 8, {"resample": None, "rnc_weight": None}),
    "mixed": (13, 8, {"cmixup_alpha": 1.0, "conr_weight": 0.0, "rnc_weight": 0.0}),
    "head alone": (13, 8, {"freeze_backbone": True, "reweight": "inverse"}),
    "own loss": (9, 8, {"compute_loss_func": own_loss, **BY_SHARE}),
    "cached": (13, 8, {"forward_batch_size": 2, "rnc_weight": 0.5, "reweight": "sqrt_inverse", **BY_SHARE}),
    # Rows that are not compared with those of other processes, or nodes, are as those of another micro-batch. Of two
    # processes one has none in the last batch.
    "own rows": (
        12,
        4 * PROCESSES,
        {"conr_gather": "none", "gradient_accumulation_steps": max(2 // PROCESSES, 1), "conr_anchors": 5, **BY_SHARE},
    ),
    "nodes": (
        13,
        4 * NODES,
        {
            "conr_gather": "node",
            "gradient_accumulation_steps": 2 // NODES,
            "rnc_weight": None,
            "rnc_gradient_share": 0.3,
            "conr_reduction": "anchors",
            "conr_anchors": 5,
        },
    ),
    "streamed": (13, 8, {"reweight": "inverse", "dataloader_num_workers": 2}),
}
# Of labels that are maps; seven, so that the last batch is uneven.
MAP_CASES = {
    "pixels": {"reweight": "sqrt_inverse", "conr_anchors": 0},
    "some pixels as anchors": {"conr_anchors": 61, "rnc_weight": 0.5, **BY_SHARE},
    "means and accumulation": {"conr_pixels": 0, "gradient_accumulation_steps": 2, "resample": "inverse"},
    "methods of pixels": {"base_loss": "bni", "fds": "gaussian", "ema_decay": 0.5, "conr_reduction": "anchors"},
}
EPOCHS = 3


class Weights(TrainerCallback):
    """Remembers the weights after each step."""

    def __init__(self):
        self.weights = []

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.weights.append(flat(model))


class Exchanges(TrainerCallback):
    """Counts how often the processes exchange gradients of the model."""

    def __init__(self):
        self.count = 0

    def on_epoch_begin(self, args, state, control, **kwargs):
        if state.epoch == 0 and PROCESSES > 1:
            self.trainer.model_wrapped.register_comm_hook(None, self._exchange)

    def _exchange(self, _, bucket):
        self.count += bucket.is_last()
        return allreduce_hook(None, bucket)


def flat(model):
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def gathered():
    """`gather_rows` on rows that tell their process: values, and gradients of losses that differ by process."""
    rows = (torch.arange(6.0).reshape(3, 2) + 10 * rank()).requires_grad_()
    (everything,) = gather_rows([rows], [3] * PROCESSES)
    # Process r's loss is (r + 1) x the sum of squares of all rows, so a row's gradient is 2 row x (1 + 2).
    ((rank() + 1) * everything.square().sum()).backward()
    return {"values": everything.detach(), "gradient": rows.grad, "rows": rows.detach()}


def contrast():
    """ConR over eight rows, and its gradient in this process's part: through the gather, and with it detached."""
    generator = torch.Generator().manual_seed(0)
    features, labels = torch.randn(8, 4, generator=generator), torch.tensor([1.0, 1.2, 5.0, 5.1, 9.0, 1.1, 5.2, 9.1])
    predictions = torch.randn(8, generator=generator)
    size = 8 // PROCESSES
    mine = slice(rank() * size, (rank() + 1) * size)
    gradients = {}
    for name in ("joined", "detached"):
        part = features[mine].clone().requires_grad_()
        (everything,) = gather_rows([part], [size] * PROCESSES)
        if name == "detached":
            everything = everything.detach().clone()
            everything[mine] = part
        settings = {"window": 0.5, "push_scale": 0.1, "anchors": mine}
        conr_loss(everything, labels, predictions, None, **settings).backward()
        gradients[name] = part.grad
    return gradients


def skipped(folder):
    """Which rows are left out where each process reads only some of the images."""
    data = images(7)
    cells = data.cast_column("image", Image(decode=False))["image"][:]
    cells[3] = {"bytes": b"no image", "path": None}
    data = Dataset.from_dict({"image": cells, "label": data["label"][:]}, features=data.features)
    trainer = build(*fresh("vit"), folder, data, skip_bad_rows=True)
    return trainer.data.load_split(data, "train_dataset", before_training=True)[0].indices.tolist()


def fresh(name, target="label"):
    torch.manual_seed(0)
    return models[name](target)


def run_case(name, folder):
    rows, batch, changed = CASES[name]
    columns = changed.get("label_columns", ["label"])
    train, evaluation = (images(n, seed=seed, dimensions=len(columns)) for n, seed in ((rows, 0), (11, 1)))
    steps = Weights()
    written = []
    plain_save = conr_hf.training.checkpoint_mixin.save_state

    def save_once(path, *parts):
        written.append(Path(path).name)
        plain_save(path, *parts)

    conr_hf.training.checkpoint_mixin.save_state = save_once
    settings = {
        "optim": "sgd",
        "learning_rate": 0.05,
        "lr_scheduler_type": "constant",
        "conr_weight": 0.5,
        "conr_window": 2.0,
        "num_train_epochs": EPOCHS,
        "per_device_train_batch_size": batch // PROCESSES,
        "per_device_eval_batch_size": 4 // PROCESSES,
        "load_best_model_at_end": False,
        **changed,
    }
    given = train.to_iterable_dataset(num_shards=3).shuffle(seed=0, buffer_size=6) if name == "streamed" else train
    trainer = build(*fresh("vit", columns), folder, given, evaluation, callbacks=[steps], **settings)
    exchanges = Exchanges()
    exchanges.trainer = trainer
    trainer.add_callback(exchanges)
    try:
        trainer.train()
    finally:
        conr_hf.training.checkpoint_mixin.save_state = plain_save
    metrics = trainer.evaluate()
    counted = []
    for fetched in trainer.get_train_dataloader():
        samples = trainer.loaders.sample_counts(fetched)
        counted.append((fetched["position"], len(fetched["labels"]), samples, fetched["labels"][: samples[rank()]]))
    predictions = trainer.predict(evaluation).predictions
    trainer.args.dataloader_drop_last = True
    kept_when_dropping = len(trainer.predict(evaluation).predictions)
    return {
        "log": [entry for entry in trainer.state.log_history if "loss" in entry],
        "evaluations": [entry for entry in trainer.state.log_history if "eval_mae" in entry],
        "metrics": metrics,
        "weights": steps.weights,
        "exchanges": exchanges.count,
        "final": {key: value.detach().clone() for key, value in trainer.model.state_dict().items()},
        "counted": counted,
        "predictions": predictions,
        "kept_when_dropping": kept_when_dropping,
        "written": written,
        "labels": torch.tensor([[row[column] for column in columns] for row in train.remove_columns("image")]),
    }


def read_maps(folder):
    """What is known of label maps where each process reads only some of them, in full and of more than are kept."""
    maps = [torch.arange(16.0).view(4, 4) + 100 * row for row in range(7)]
    for row, one in enumerate(maps):
        one.view(-1)[: 2 * row] = math.nan
    maps[3][:] = math.nan
    data = images(7).remove_columns("label").add_column("label", [one.tolist() for one in maps])
    known, most = {}, map_labels.MOST_PIXELS
    try:
        for map_labels.MOST_PIXELS in (most, 40):
            trainer = build(*fresh("vit"), folder, data, skip_bad_rows=True)
            trainer.data.check()
            labels, rows = trainer.data.training_labels().tolist(), trainer.data.pixel_rows().tolist()
            known[map_labels.MOST_PIXELS] = (labels, rows, trainer.data.valid_share(), trainer.data.shot_thresholds())
    finally:
        map_labels.MOST_PIXELS = most
    return known


def run_maps(name, folder):
    """Steps and evaluations of a run on maps."""
    steps = Weights()
    settings = {
        "optim": "sgd",
        "learning_rate": 0.05,
        "lr_scheduler_type": "constant",
        "conr_weight": 0.5,
        "conr_window": 2.0,
        "conr_pixels": 48,
        "bin_width": 4.0,
        "num_train_epochs": EPOCHS,
        "per_device_train_batch_size": 4 // PROCESSES,
        "per_device_eval_batch_size": 4 // PROCESSES,
        "load_best_model_at_end": False,
        **MAP_CASES[name],
    }
    trainer = build(*map_models["dpt"](), folder, maps(7), maps(5, seed=1), callbacks=[steps], **settings)
    trainer.train()
    return {
        "log": [entry for entry in trainer.state.log_history if "loss" in entry],
        "evaluations": [entry for entry in trainer.state.log_history if "eval_mae" in entry],
        "weights": steps.weights,
        "errors": streamed_errors(trainer, maps(5, seed=1), "test").compute(),
    }


class Stop(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step == self.step


def resumed(folder):
    """Weights of a run with dropout, and of the same run stopped in its second epoch and resumed."""
    data = images(13)

    def trainer(seed, name, **others):
        torch.manual_seed(seed)
        model, processor = load_regressor(vit_config(hidden_dropout_prob=0.2), image_size=32)
        settings = {"save_strategy": "steps", "save_steps": 3, "num_train_epochs": 2, "conr_weight": 0.5}
        settings |= {"fds": "gaussian", "base_loss": "bni", "ema_decay": 0.9, "bin_width": 10.0}
        settings |= {"rnc_weight": None, "rnc_gradient_share": 0.3}
        settings |= {"dataloader_num_workers": 1}
        size = 4 // PROCESSES
        return build(model, processor, folder / name, data, per_device_train_batch_size=size, **settings, **others)

    whole = trainer(0, "whole")
    whole.train()
    trainer(0, "stopped", callbacks=[Stop(6)]).train()
    late = trainer(1, "stopped")
    late.train(resume_from_checkpoint=True)
    return {
        "whole": flat(whole.model),
        "late": flat(late.model),
        "steps": (whole.state.global_step, late.state.global_step),
    }


def refitted(folder):
    """Weights after a re-fit of the head, and what it logged; neither 61 nor the third of it divides."""
    settings = {"refit_head": "affine", "bin_width": 5.0, "optim": "sgd", "learning_rate": 0.05, "conr_weight": 0.0}
    settings |= {f"per_device_{what}_batch_size": 4 // PROCESSES for what in ("train", "eval")}
    trainer = build(*fresh("vit"), folder, images(16), images(61, seed=1), **settings)
    trainer.train()
    log = next(entry for entry in trainer.state.log_history if "refit_rows" in entry)
    return {"weights": flat(trainer.model), "log": log}


def group():
    """Who is there."""
    return {
        "world_size": dist.get_world_size() if dist.is_initialized() else 1,
        "backend": dist.get_backend() if dist.is_initialized() else None,
        "ranks": gather_objects(rank()),
        "processes": gather_objects(os.getpid()),
        "sum": sum_over_processes(torch.tensor([1.0, float(rank())])),
    }


def run(folder, cases=tuple(CASES)):
    """The cases, in one process of however many; they form their group in the first trainer, as in a user's script."""
    gc.freeze()  # each training begins with a garbage collection, which need not look through all of torch
    folder = Path(folder)
    results = {name: run_case(name, folder / name) for name in cases}
    if len(cases) == len(CASES):
        results |= {"gathered": gathered(), "contrast": contrast()}
        results |= {f"maps, {name}": run_maps(name, folder / f"maps, {name}") for name in MAP_CASES}
        results |= {"skipped": skipped(folder / "skipped"), "resumed": resumed(folder / "resumed")}
        results |= {"refitted": refitted(folder / "refitted")}
        results |= {"maps": read_maps(folder / "maps")}
    torch.save({**results, "group": group()}, folder / f"results.{rank()}.pt")


if __name__ == "__main__":
    torch.set_num_threads(1)
    run(sys.argv[1], sys.argv[2:] or tuple(CASES))
