"""Whole models, also where DeepSpeed shards them later."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from transformers.integrations import deepspeed


@contextmanager
def no_zero3_init() -> Iterator[None]:
    """Within it, transformers makes whole models, also where DeepSpeed's ZeRO-3 is on, which shards them later."""
    config = deepspeed._hf_deepspeed_config_weak_ref
    deepspeed._hf_deepspeed_config_weak_ref = None
    try:
        yield
    finally:
        deepspeed._hf_deepspeed_config_weak_ref = config


def check_not_sharded(model: nn.Module) -> None:
    """Refuses a model of which parameters have been taken to other processes as it was loaded."""
    if gone := [name for name, parameter in model.named_parameters() if parameter.numel() == 0]:
        raise ValueError(
            f"The model's {gone[0]} is empty, as DeepSpeed's ZeRO-3 leaves it in loading. Load the model by "
            "load_regressor, or before the ConRConfig is made; training shards it."
        )
