"""Layer-wise learning-rate decay: lower layers of a pretrained model learn more slowly."""

import torch
from timm.models import group_parameters
from torch import nn
from transformers import PreTrainedModel
from transformers.models.timm_wrapper import TimmWrapperForImageClassification


def decay_by_layer(optimizer: torch.optim.Optimizer, model: PreTrainedModel, decay: float) -> None:
    """
    Splits the optimizer's groups by layer; each layer's learning rate is `decay` times that of the next one up. The
    head, and what follows the last block, keep theirs.

    Args:
        optimizer (`torch.optim.Optimizer`): A new optimizer; changed in place.
        model (`PreTrainedModel`): Its model, unwrapped.
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


def layer_depths(model: PreTrainedModel) -> dict[str, int]:
    """
    The depth of each parameter by its name: 0 before the first block, then by blocks in order, and one more behind
    them. A block is the innermost member of a `ModuleList` that holds the parameter; between blocks, the next one's.
    """
    if isinstance(model, TimmWrapperForImageClassification):
        inner = model.timm_model
        layers = group_parameters(inner, inner.group_matcher(coarse=False), reverse=True)
        return {f"timm_model.{name}": depth for name, depth in layers.items()}
    lists = {name for name, module in model.named_modules() if isinstance(module, nn.ModuleList)}
    blocks = [_block(name, lists) for name, _ in model.named_parameters()]
    numbers = {block: number for number, block in enumerate(dict.fromkeys(filter(None, blocks)), 1)}
    depths, names = {}, [name for name, _ in model.named_parameters()]
    following = len(numbers) + 1
    for name, block in zip(reversed(names), reversed(blocks), strict=True):
        following = numbers[block] if block else following
        depths[name] = following
    for name, block in zip(names, blocks, strict=True):
        if block:
            break
        depths[name] = 0
    return depths


def _block(parameter: str, lists: set[str]) -> str | None:
    parts = parameter.split(".")
    inside = [".".join(parts[: k + 1]) for k in range(1, len(parts)) if ".".join(parts[:k]) in lists]
    return inside[-1] if inside else None
