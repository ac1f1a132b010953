"""A learning rate that drops at the beginning of given epochs."""

from collections.abc import Sequence
from functools import partial

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

DROP = 0.1  # what a drop leaves of the learning rate


def multistep_schedule(optimizer: Optimizer, drop_steps: Sequence[int], warmup_steps: int = 0) -> LambdaLR:
    """A constant learning rate after a linear rise; from each of `drop_steps` on (from 0) a tenth of what it was."""
    return LambdaLR(optimizer, partial(_factor, drop_steps=tuple(drop_steps), warmup_steps=warmup_steps))


def _factor(step: int, drop_steps: tuple[int, ...], warmup_steps: int) -> float:
    rise = step / warmup_steps if step < warmup_steps else 1.0
    return rise * DROP ** sum(step >= drop for drop in drop_steps)
