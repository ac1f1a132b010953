"""Layer-wise learning-rate decay: lower layers of a pretrained model learn more slowly."""

import torch
from timm.models import group_parameters
from torch import nn
from transformers.models.timm_wrapper import TimmWrapperForImageClassification


def decay_by_layer(optimizer: torch.optim.Optimizer, model: nn.Module, decay: float) -> None:
    """
    Splits the optimizer's groups by layer; each layer's learning rate is `decay` times that of the next one up. The
    head, and what follows the last block, keep theirs.

    Args:
        optimizer (`torch.optim.Optimizer`): A new optimizer; changed in place.
        model (`nn.Module`): Its model, unwrapped.
        decay (`float`): Share of the learning rate that a layer has of the next one's.

    Source: Bao et al., "BEiT", arXiv 2106.08254; the layers of timm models are timm's.
    """
    depths = layer_depths(model)
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


def layer_depths(model: nn.Module) -> dict[str, int]:
    """
    The depth of each parameter by its name: 0 before the first block, then by blocks in order, and one more behind
    them. Of timm models blocks are timm's.

    Otherwise a block is a member of a `ModuleList` of one class. Where such a list holds most of a member's
    parameters, as in a stage of blocks, its own members are the blocks; what lies between blocks belongs to the next.

    Raises:
        `ValueError`: if there is no block.
    """
    if isinstance(model, TimmWrapperForImageClassification):
        inner = model.timm_model
        layers = group_parameters(inner, inner.group_matcher(coarse=False), reverse=True)
        return {f"timm_model.{name}": depth for name, depth in layers.items()}
    blocks = _blocks(model)
    if not blocks:
        raise ValueError(
            f"layer_decay is set, but {type(model).__name__} has no list of layers to go by. Leave it unset."
        )
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
