"""A learning rate that drops at the beginning of given epochs."""

from collections.abc import Sequence
from functools import partial

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

DROP = 0.1  # what a drop leaves of the learning rate


def multistep_schedule(optimizer: Optimizer, drop_steps: Sequence[int], warmup_steps: int = 0) -> LambdaLR:
    """
    A constant learning rate, after a linear rise, a tenth of itself from each of `drop_steps` on.

    Args:
        optimizer (`torch.optim.Optimizer`): Its groups keep the ratios of their learning rates.
        drop_steps (`Sequence[int]`): Steps before which the learning rate drops, counted from 0.
        warmup_steps (`int`, *optional*, defaults to 0): Steps of the rise.

    Example:
        >>> import torch
        >>> optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
        >>> schedule = multistep_schedule(optimizer, drop_steps=[2, 3])
        >>> rates = []
        >>> for _ in range(4):
        ...     rates.append(round(schedule.get_last_lr()[0], 3))
        ...     optimizer.step()
        ...     schedule.step()
        >>> rates
        [1.0, 1.0, 0.1, 0.01]
    """
    return LambdaLR(optimizer, partial(_factor, drop_steps=tuple(drop_steps), warmup_steps=warmup_steps))


def _factor(step: int, drop_steps: tuple[int, ...], warmup_steps: int) -> float:
    rise = step / warmup_steps if step < warmup_steps else 1.0
    return rise * DROP ** sum(step >= drop for drop in drop_steps)
