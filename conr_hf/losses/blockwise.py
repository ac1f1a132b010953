"""Losses of many rows, block by block, each with its gradient in closed form."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

NUMBERS = 2**20  # the most of a block's tensor of rows by what they are compared with

# Of each row: the loss, and its slopes in the prediction, of shape (M, T), and in the noise.
Slopes = tuple[Tensor, Tensor, Tensor]
OfBlock = Callable[[Tensor, Tensor, Tensor], Slopes]  # of some rows' predictions and labels, and the noise


def in_blocks(of_block: OfBlock, predictions: Tensor, labels: Tensor, noise: Tensor, width: int) -> Tensor:
    """
    The loss of each row, `(M,)`, in memory that does not grow with rows times `width`, the numbers that a row has in
    the largest tensors of `of_block`. Once differentiable in `predictions`, `(M, T)`, and `noise`, of shape `()`: the
    gradient is computed with the losses, so that backward keeps `T + 1` numbers of each row, and computes none.
    """
    step = max(NUMBERS // width, 1)
    with torch.no_grad():
        blocks = zip(torch.split(predictions, step), torch.split(labels, step), strict=True)
        parts = [of_block(some, theirs, noise) for some, theirs in blocks]
    losses: Tensor = _WithSlopes.apply(predictions, noise, *(torch.cat(part) for part in zip(*parts, strict=True)))
    return losses


class _WithSlopes(torch.autograd.Function):
    """Losses as they are, whose gradients in predictions and noise are these slopes."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, predictions: Tensor, noise: Tensor, losses: Tensor, slopes: Tensor, noise_slopes: Tensor
    ) -> Tensor:
        ctx.save_for_backward(slopes, noise_slopes)
        return losses

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        slopes, noise_slopes = ctx.saved_tensors  # type: ignore[attr-defined]
        return gradient[:, None] * slopes, (gradient * noise_slopes).sum(), None, None, None
