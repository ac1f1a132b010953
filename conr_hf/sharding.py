"""Models that FSDP or DeepSpeed hold in parts: what accelerate has to be told, and what it does not do."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist
from accelerate import FullyShardedDataParallelPlugin
from torch import nn
from transformers import PreTrainedModel
from transformers.integrations import deepspeed


def shard_by_layer(plugin: FullyShardedDataParallelPlugin, model: PreTrainedModel) -> None:
    """
    Names to accelerate the classes of layers that FSDP2 shards as units, where the user has named none.

    They are those that transformers declares, but for classes that this model has no layer of, and for embeddings
    around the input embeddings, which are a unit of their own: accelerate ends in an error on either, and on models
    without input embeddings. Of a model without such layers, timm's among them, all parameters are one unit.

    Args:
        plugin (`FullyShardedDataParallelPlugin`): Accelerate's settings; changed in place.
        model (`PreTrainedModel`): The model, not yet sharded.
    """
    embeddings: nn.Module | None = None
    try:
        embeddings = model.get_input_embeddings()
    except NotImplementedError:
        model.get_input_embeddings = _none  # type: ignore[method-assign, assignment]
    if plugin.transformer_cls_names_to_wrap is None:
        units = model._no_split_modules or ()
        layers = [layer for layer in model.modules() if type(layer).__name__ in units]
        around = {type(layer).__name__ for layer in layers if embeddings in set(layer.modules())}
        plugin.transformer_cls_names_to_wrap = sorted({type(layer).__name__ for layer in layers} - around)


@contextmanager
def loaded_whole() -> Iterator[None]:
    """Within it, transformers makes whole models, also where DeepSpeed's ZeRO-3 is on, which shards them later."""
    config = deepspeed._hf_deepspeed_config_weak_ref
    deepspeed._hf_deepspeed_config_weak_ref = None
    try:
        yield
    finally:
        deepspeed._hf_deepspeed_config_weak_ref = config


def check_whole(model: nn.Module) -> None:
    """
    Raises:
        `ValueError`: if parameters of the model have been taken to other processes as it was loaded.
    """
    if gone := [name for name, parameter in model.named_parameters() if parameter.numel() == 0]:
        raise ValueError(
            f"The model's {gone[0]} is empty, as DeepSpeed's ZeRO-3 leaves it in loading. Load the model by "
            "load_regressor, or before the ConRConfig is made; training shards it."
        )


def share_buffers(model: nn.Module) -> None:
    """
    Gives all processes the first one's buffers, running statistics of batch norm among them, as DDP does: each would
    otherwise evaluate a model of its own.
    """
    for buffer in model.buffers():
        dist.broadcast(buffer, 0)


def _none() -> nn.Module | None:
    return None
