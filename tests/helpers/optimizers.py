"""Optimizers under which training has no unit, and the batches of a run."""

import torch
from timm.optim import Lion

STEPS = 20


OPTIMIZERS = {
    "sgd": (torch.optim.SGD, {"lr": 1e-2, "momentum": 0.9, "weight_decay": 0.1}),
    "adamw": (torch.optim.AdamW, {"lr": 1e-3, "weight_decay": 0.1}),
    "lion": (Lion, {"lr": 5e-4, "weight_decay": 0.1}),
}


def batches(trainer):
    """The batches of the run, from the trainer's own sampler and collator."""
    loader, epoch = trainer.get_train_dataloader(), 0
    drawn = []
    while len(drawn) < STEPS:
        trainer.loaders.order.epoch = epoch
        drawn += list(loader)
        epoch += 1
    return drawn[:STEPS]
