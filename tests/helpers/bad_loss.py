"""Runs whose loss or gradient is no number in some steps."""

import numpy as np
import torch
from small import build, models
from transformers import TrainerCallback


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


def trainer(folder, data, model="vit", **changed):
    torch.manual_seed(0)
    settings = {"per_device_train_batch_size": 4, "conr_weight": 0.0, "save_strategy": "steps", "save_steps": 1}
    return build(*models[model](), folder, data, **{**settings, **changed})


class Poison(TrainerCallback):
    """In some steps the first loss, or the gradient of a finite loss, is no number."""

    def __init__(self, what, *steps):
        self.what, self.steps = what, steps

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        if state.global_step + 1 not in self.steps:
            return
        if self.what == "loss":
            hook = model.register_forward_pre_hook(
                lambda model, given, named: (
                    hook.remove(),
                    (given, {**named, "pixel_values": named["pixel_values"] * torch.nan}),
                )[1],
                with_kwargs=True,
            )
        else:
            hook = next(model.parameters()).register_hook(lambda gradient: hook.remove() or gradient * torch.nan)
