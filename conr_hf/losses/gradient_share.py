"""A term beside a base loss, at a share of the base loss's gradient instead of a fixed weight."""

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from conr_hf.losses.validation import check_range

# Of the running means from step to step, which then look back some 10 steps. Longer ones lag behind ConR's gradient,
# which falls as the features grow.
MOMENTUM = 0.9
# A batch's own gradients may make the share this many times what is asked for, and no more.
LIMIT = 2.0
# Norms of gradients below this are none.
_SMALLEST = 1e-30


class GradientShare:
    """
    Weighs a term so that its gradient at the features is a share of the base loss's.

    ConR and RankSim read cosines, so that their gradients fall as 1 / |feature|, and a network is free to choose how
    large its features are: a fixed weight is another strength in each network and at each step. With |g| the norms of
    the gradients at the features, over all rows, the weight here is

        share * |g_base| / |g_term|

    where the squares of both norms are exponential means over the steps before the present one. So it is known before
    a step begins, and 0 in the first. Neither the label unit nor the features' scale changes what it does.

    The present batch bounds it: its own |weight * g_term| is at most twice the share of its |g_base|, so that a term
    whose gradient was nearly 0 for many steps, as without confused pairs, cannot swamp the base loss when it returns.

    Neither gradient needs a backward through the network below the features. The term's is computed once, here, and
    handed on by the backward of what is returned; the base loss's is that through the layers above the features.

    Args:
        share (`float`): The share, not negative; 0.1 to 0.6 is usual.

    Raises:
        `ValueError`: if `share` is negative or not finite.

    Example:
        >>> share = GradientShare(0.3)
        >>> for _ in range(2):
        ...     features = torch.tensor([[0.03, 0.04]], requires_grad=True)
        ...     base_loss = features.sum()
        ...     loss = base_loss + share(features.norm(dim=1).mean() / 100, base_loss, features)
        >>> loss.backward()
        >>> features.grad - 1  # of the term: 0.3 times as long as (1, 1)
        tensor([[0.2546, 0.3394]])
    """

    def __init__(self, share: float) -> None:
        check_range("share", share, ", of the base loss's gradient", or_zero=True)
        self.share = share
        # Of the squared norms of the base loss's gradient, of the term's, and of the term's with the noise of a sample
        # of its rows, which is the same where all rows are taken. That they start at 0 makes each too small by the
        # same factor, and no ratio.
        self.means = torch.zeros(3)

    def __call__(self, term: Tensor, base_loss: Tensor, features: Tensor) -> Tensor:
        """
        The term times its weight, a scalar to add to the base loss, and one more step for the running means.

        Args:
            term (`torch.Tensor` of shape `()`): What is to be weighed, computed from `features`.
            base_loss (`torch.Tensor` of shape `()`): The base loss, computed from `features`.
            features (`torch.Tensor` of shape `(M, ...)`):
                What both were computed from: the very tensor, part of the graph. If it needs no gradient, as in
                evaluation, the running means stay as they are.

        Returns:
            `torch.Tensor` of shape `()`. On several processes each holds the share of its own losses.

        Raises:
            `ValueError`: if a loss was not computed from `features`.
        """
        if not features.requires_grad:
            return self.weight_of(self.means.to(term.device)) * term
        of_base, of_term = (_gradient(*named, features) for named in (("base_loss", base_loss), ("term", term)))
        squares = squared_norms(of_base, of_term)
        weight = self.weight_of(squares)
        self.update(squares)
        return with_gradient(weight * term, features, weight * of_term)

    def weight_of(self, squares: Tensor) -> Tensor:
        """
        The term's weight in a batch, a scalar. `squares`, `(3,)`: of the batch's gradients what `means` holds of those
        before it, over all its rows and processes.
        """
        self.means = self.means.to(squares)
        base, term, noisy = self.means.sqrt()
        base_now, _, noisy_now = squares.sqrt()
        most = LIMIT * base_now * noisy / noisy_now.clamp(min=_SMALLEST)
        weight: Tensor = self.share * torch.minimum(base, most) / term.clamp(min=_SMALLEST)
        return weight

    def update(self, squares: Tensor) -> None:
        """
        Ends a step. `squares`, `(3,)`: of its gradients what `means` holds, summed over its micro-batches and
        processes. Those that are not finite are left out.
        """
        means = self.means.to(squares)
        self.means = torch.where(squares.isfinite().all(), MOMENTUM * means + (1 - MOMENTUM) * squares, means)


def squared_norms(of_base: Tensor, of_term: Tensor) -> Tensor:
    """The squared norms of two gradients as [`GradientShare`] takes them, `(3,)`, where the term's has no noise."""
    # In bf16 a sum of many squares would be wrong.
    dtype = torch.promote_types(of_term.dtype, torch.float32)
    base, term = (part.to(dtype).square().sum() for part in (of_base, of_term))
    return torch.stack([base, term, term])


def with_gradient(value: Tensor, features: Tensor, gradient: Tensor) -> Tensor:
    """The number `value`, a scalar, as if it had been computed from `features` with this gradient, of their shape."""
    result: Tensor = _WithGradient.apply(features, value.detach(), gradient)
    return result


class _WithGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, features: Tensor, value: Tensor, gradient: Tensor) -> Tensor:
        ctx.save_for_backward(gradient)
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, of_value: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors  # type: ignore[attr-defined]
        return of_value * gradient, None, None


def _gradient(name: str, loss: Tensor, features: Tensor) -> Tensor:
    (gradient,) = torch.autograd.grad(loss, features, retain_graph=True, allow_unused=True)
    if gradient is None:
        raise ValueError(
            f"{name} was not computed from features, so that it has no gradient there. Give the tensor that the "
            "losses and the last layer read, and no copy of it."
        )
    return gradient
