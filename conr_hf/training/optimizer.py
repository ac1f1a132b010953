"""Which parameters learn, and at which rate: the head at its own, lower layers more slowly, a frozen backbone not."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from timm.models import group_parameters
from torch import Tensor, nn
from transformers import Trainer
from transformers.models.timm_wrapper import TimmWrapperForImageClassification
from transformers.trainer_optimizer import is_optimizer_factory
from transformers.training_args import OptimizerNames

from conr_hf.models.head import Head, of_rows
from conr_hf.training.config.resolved_config import ResolvedConfig

_IN_BACKWARD = (OptimizerNames.LOMO, OptimizerNames.ADALOMO)  # they step as each gradient comes


def makes_plain_groups(trainer: Trainer) -> bool:
    """Whether an optimizer that the trainer makes has plain groups of parameters, which may be changed."""
    chosen = trainer.optimizer_cls_and_kwargs
    is_factory = chosen is not None and is_optimizer_factory(chosen[0])
    return not is_factory and trainer.args.optim not in _IN_BACKWARD


def steps_in_backward(trainer: Trainer) -> bool:
    """Whether a step is done before the gradients of all processes are known."""
    return trainer.is_deepspeed_enabled or trainer.args.optim in _IN_BACKWARD


def trained_names(model: nn.Module) -> list[str]:
    """What an optimizer is made for: the names of the parameters that learn, and which model they are of."""
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    return [*names, f"of model {id(model)}"]  # sharding makes other parameters of them


@contextmanager
def frozen_backbone(model: nn.Module, head: Head) -> Iterator[None]:
    """Within it, no parameter but the head's learns."""
    own = {id(parameter) for parameter in head.parameters()}
    frozen = nn.ParameterList(p for p in model.parameters() if p.requires_grad and id(p) not in own)
    frozen.requires_grad_(False)
    try:
        yield
    finally:
        frozen.requires_grad_(True)


def scale_learning(
    trainer: Trainer, optimizer: torch.optim.Optimizer, head: Head, resolved: ResolvedConfig, layer_decay: float | None
) -> float | Tensor:
    """
    Gives a new optimizer, in place, the learning rates of a run in which labels have no unit, if it has plain groups.
    Returns what the head's gradient is to be multiplied by in training: a number, or a tensor of shape `(T,)`.
    """
    if not makes_plain_groups(trainer):
        return 1.0
    if layer_decay is not None:
        assert trainer.model is not None
        apply_layer_decay(optimizer, trainer.model, layer_decay)
    scale = head.learning_scale(resolved.label_scale)
    if not split_head_group(optimizer, head, scale):
        return 1.0
    if not isinstance(resolved.head_scale, Tensor):
        return scale
    factor = resolved.head_scale.to(head.weight.device)
    scale_row_steps(optimizer, head, factor / scale)
    return factor


def split_head_group(optimizer: torch.optim.Optimizer, head: Head, label_scale: float) -> bool:
    """
    Moves the head's parameters, if the optimizer has them (returned), to groups of their own, last, with learning rate
    lr * s and weight decay wd / s, where s is the label scale in label units.

    Together with a gradient multiplied by s (`Head.gradient_factor`) that is what a head over standardised labels does
    under SGD, Adam, AdamW and Lion, with and without clipping.
    """
    mine = {id(parameter) for parameter in head.parameters()}
    groups = []
    for group in optimizer.param_groups:
        moved = [parameter for parameter in group["params"] if id(parameter) in mine]
        if moved:
            group["params"] = [parameter for parameter in group["params"] if id(parameter) not in mine]
            scaled = {"lr": group["lr"] * label_scale, "weight_decay": group.get("weight_decay", 0.0) / label_scale}
            groups.append({**group, **scaled, "params": moved})
    for group in groups:
        optimizer.add_param_group(group)
    return bool(groups)


def scale_row_steps(optimizer: torch.optim.Optimizer, head: Head, relative_scales: Tensor) -> None:
    """
    Lets the optimizer step as if every row of the head were divided by its relative scale, `(T,)`, its label
    dimension's scale over the label scale; outside of a step the parameters are as they are. The head's gradients are
    those of the divided rows (`Head.gradient_factor`).

    As exact as [`split_head_group`] is, whatever the optimizer makes of a gradient and a weight, but for the rounding
    of the division.
    """
    rows = [(parameter, of_rows(relative_scales.to(parameter.device), parameter)) for parameter in head.parameters()]
    kept: list[Tensor] = []

    @torch.no_grad()
    def divide(*_: object) -> None:
        kept[:] = [parameter.clone() for parameter, _ in rows]
        for parameter, scales in rows:
            parameter.div_(scales)

    @torch.no_grad()
    def restore(*_: object) -> None:
        # By the difference, so that what did not move is as it was to the last bit.
        for (parameter, scales), before in zip(rows, kept, strict=True):
            parameter.sub_(before / scales).mul_(scales).add_(before)
        kept.clear()

    optimizer.register_step_pre_hook(divide)
    optimizer.register_step_post_hook(restore)


def apply_layer_decay(optimizer: torch.optim.Optimizer, model: nn.Module, decay: float) -> None:
    """
    Splits a new optimizer's groups by layer of its unwrapped model: each layer's learning rate is `decay` times that
    of the next one up. The head, and what follows the last block, keep theirs.

    Source: Bao et al., "BEiT", arXiv 2106.08254; the layers of timm models are timm's.
    """
    depths = layer_ids(model)
    last = max(depths.values())
    of_parameter = {id(parameter): last - depths[name] for name, parameter in model.named_parameters()}
    groups = list(optimizer.param_groups)
    optimizer.param_groups.clear()
    for group in groups:
        below: dict[int, list[nn.Parameter]] = {}
        for parameter in group["params"]:
            below.setdefault(of_parameter[id(parameter)], []).append(parameter)
        for layers, parameters in sorted(below.items()):
            optimizer.add_param_group({**group, "params": parameters, "lr": group["lr"] * decay**layers})


def layer_ids(model: nn.Module) -> dict[str, int]:
    """
    The depth of each parameter by its name: 0 before the first block, then by blocks in order, and one more behind
    them. Blocks of timm models are timm's; a model without blocks is a `ValueError`.

    Otherwise a block is a member of a `ModuleList` of one class. Where such a list holds most of a member's
    parameters, as in a stage of blocks, its own members are the blocks; what lies between blocks belongs to the next.
    """
    if isinstance(model, TimmWrapperForImageClassification):
        inner = model.timm_model
        layers = group_parameters(inner, inner.group_matcher(coarse=False), reverse=True)
        return {f"timm_model.{name}": depth for name, depth in layers.items()}
    blocks = _blocks(model)
    if not blocks:
        raise ValueError(f"layer_decay is set, but {type(model).__name__} has no list of layers. Leave it unset.")
    names = [name for name, _ in model.named_parameters()]
    within = [next((number for number, block in enumerate(blocks, 1) if name.startswith(block)), 0) for name in names]
    begin = next(place for place, number in enumerate(within) if number)
    depths, following = {}, len(blocks) + 1
    for name, number in zip(reversed(names[begin:]), reversed(within[begin:]), strict=True):
        following = number or following
        depths[name] = following
    return {**dict.fromkeys(names[:begin], 0), **depths}


def _blocks(module: nn.Module, prefix: str = "") -> list[str]:
    """Prefixes of the names of a module's blocks, in order."""
    found = []
    for name, child in module.named_children():
        inner = f"{prefix}{name}."
        if isinstance(child, nn.ModuleList) and len({type(member) for member in child}) == 1:
            for place, member in enumerate(child):
                parts = _blocks(member, f"{inner}{place}.")
                share = sum(_size(member.get_submodule(part[len(inner) + len(str(place)) + 1 : -1])) for part in parts)
                found += parts if share > _size(member) / 2 else [f"{inner}{place}."]
        else:
            found += _blocks(child, inner)
    return found


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
