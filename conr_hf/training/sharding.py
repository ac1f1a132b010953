"""Models that FSDP or DeepSpeed hold in parts: what accelerate needs to know, and what it does not do."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist
from accelerate import Accelerator, DistributedType, FullyShardedDataParallelPlugin
from torch import nn
from torch.distributed.fsdp import StateDictType
from transformers import PreTrainedModel, Trainer


def set_wrap_classes(plugin: FullyShardedDataParallelPlugin, model: PreTrainedModel) -> None:
    """
    Sets the classes of layers that FSDP2 shards as units in accelerate's `plugin`, where the user has named none.

    They are those that transformers declares, without classes that this model has no layer of, and without those
    around the input embeddings, which are a unit of their own: accelerate ends in an error on either, and on models
    without input embeddings. All parameters of a model without such layers, as timm's, are one unit.
    """
    embeddings: nn.Module | None = None
    try:
        embeddings = model.get_input_embeddings()
    except NotImplementedError:
        model.get_input_embeddings = lambda: None  # type: ignore[assignment, method-assign, return-value]
    if plugin.transformer_cls_names_to_wrap is None:
        units = model._no_split_modules or ()
        layers = [layer for layer in model.modules() if type(layer).__name__ in units]
        around = {type(layer).__name__ for layer in layers if embeddings in set(layer.modules())}
        plugin.transformer_cls_names_to_wrap = sorted({type(layer).__name__ for layer in layers} - around)


def check_can_shard(trainer: Trainer, is_again: bool, retrain_head: bool) -> None:
    """Refuses a sharded model that could not be trained, again where `is_again`, or not be saved as a whole."""
    check_full_state_dict(trainer.accelerator)
    if is_again and (trainer.is_deepspeed_enabled or (trainer.is_fsdp_enabled and retrain_head)):
        cause = "retrain_head" if trainer.is_fsdp_enabled else "DeepSpeed"
        raise ValueError(
            f"An earlier train() has sharded the model, with which {cause} cannot start again. Save it, and give "
            "it to a new trainer."
        )


def check_full_state_dict(accelerator: Accelerator) -> None:
    """Refuses settings that would save a model in parts, which plain transformers cannot load."""
    mend = None
    if accelerator.distributed_type == DistributedType.FSDP:
        plugin = accelerator.state.fsdp_plugin
        if plugin.state_dict_type != StateDictType.FULL_STATE_DICT:
            mend = f"fsdp_state_dict_type is {plugin.state_dict_type.name}", "FULL_STATE_DICT"
    elif accelerator.distributed_type == DistributedType.DEEPSPEED:
        settings = accelerator.state.deepspeed_plugin.deepspeed_config.get("zero_optimization", {})
        if settings.get("stage") == 3 and not settings.get("stage3_gather_16bit_weights_on_model_save"):
            mend = "zero3_save_16bit_model (stage3_gather_16bit_weights_on_model_save) is not set", "true"
    if mend is not None:
        raise ValueError(f"{mend[0]}, so that no whole model would be saved. Set it to {mend[1]}.")


def broadcast_buffers(model: nn.Module) -> None:
    """Gives all processes the first one's buffers, such as batch norm's statistics: they evaluate one model."""
    for buffer in model.buffers():
        dist.broadcast(buffer, 0)


@contextmanager
def unsharded(trainer: Trainer) -> Iterator[None]:
    """Within it, the trainer treats its model as a whole one: it is sharded only when training begins."""
    modes = trainer.is_fsdp_enabled, trainer.is_deepspeed_enabled
    trainer.is_fsdp_enabled = trainer.is_deepspeed_enabled = False
    try:
        yield
    finally:
        trainer.is_fsdp_enabled, trainer.is_deepspeed_enabled = modes
