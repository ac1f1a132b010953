"""The loss from all pairs at once, and from all pairs by blocks of anchors where they are too many for one tensor."""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from conr_hf.losses.pairs import Reach, find_pairs
from conr_hf.losses.validation import Settings

# Stands for infinity in a logarithm of a pair's weight. A true -inf gives nan in the gradient of a row that has no
# partner at all; this one leaves every row finite, and exp of it is as good as 0.
LOG_INFINITY = 1e30

# Pairs that a block of anchors holds at most: some ten tensors of 16 MB in float32.
BLOCK_PAIRS = 2**22


class Partners(NamedTuple):
    """How many partners each anchor of a call has."""

    is_anchor: Tensor  # (A,), boolean: whether it has a positive and a negative
    positives: Tensor  # (A,), int64
    negatives: Tensor  # (A,), int64


def weigh_rows(
    partners: Partners, weights: Tensor | None, divisor: int | Tensor, dtype: torch.dtype, settings: Settings
) -> Tensor:
    """
    The factor, `(A,)`, of each anchor's loss in the sum over anchors, divided by its number of positives; 0 for a row
    that is no anchor. `weights`, `(A,)`, are the anchors' (eta), and `divisor` is what the reduction divides by.
    """
    positives = partners.positives
    factors = partners.is_anchor / (positives.clamp(min=1) * divisor).to(dtype)
    if settings.formulation == "reference":
        if settings.push == "linear":
            factors = factors * positives / (positives + 1)
        elif weights is not None:
            factors = factors * weights
    return factors


def dense_loss(
    features: Tensor,
    labels: Tensor,
    predictions: Tensor,
    weights: Tensor | None,
    reaches: tuple[Reach, Reach],
    settings: Settings,
    first: int,
    last: int,
    divisor: int | Tensor | None = None,
) -> tuple[Tensor, Partners]:
    """
    The loss, of shape `()`, of rows `first` to `last`, from tensors with one entry for each of them and each row; and
    the anchors' [`Partners`].

    Features, `(M, D)`, labels and predictions, `(M,)` or `(M, T)`, and weights, `(M,)`, are all float32 or all
    float64. `reaches` say up to which distance labels, and predictions, are similar. The sum is divided by `divisor`,
    or by what `settings.reduction` says.
    """
    rows, dtype = len(features), features.dtype
    # (A, M) each
    distances, positives, negatives = find_pairs(labels, predictions, reaches, settings.distance, first, last)
    partners = _count(positives, negatives)

    # log S_ij rather than S_ij: exp(e d) overflows where e d is finite. Clamped at each step, or numbers near the
    # end of the dtype's range would meet as inf * 0 or inf - inf.
    growth = (distances.clamp(max=LOG_INFINITY) * settings.push_scale).clamp_(max=LOG_INFINITY)
    log_push = growth if settings.push == "exponential" else growth.log_()
    if weights is not None:
        log_push += weights[first:last].log().unsqueeze(1)
    log_push.clamp_(min=-LOG_INFINITY)
    # log S_ij for a negative, 0 for a positive, and -LOG_INFINITY for no pair.
    log_weights = log_push.mul_(negatives).add_((positives + negatives).sub_(1), alpha=LOG_INFINITY)
    logits: Tensor = _Logits.apply(features, log_weights, 1 / settings.temperature, first)  # (A, M)

    if divisor is None:
        divisor = max(rows, 1)
        if settings.reduction == "anchors":
            all_anchors = partners.is_anchor
            if (first, last) != (0, rows):
                _, *pairs = find_pairs(labels, predictions, reaches, settings.distance)
                all_anchors = _count(*pairs).is_anchor
            divisor = all_anchors.sum().clamp(min=1)
    own_weights = None if weights is None else weights[first:last]
    row_weights = weigh_rows(partners, own_weights, divisor, dtype, settings)  # (A,)

    if settings.formulation == "reference":
        # A row is no pair with itself, so that its own place is free for what all non-positives add to the sum.
        logits = logits.diagonal_scatter((rows - partners.positives).to(dtype).log(), offset=first)

    # An anchor's loss is the cross-entropy of its logits against equal shares for its positives.
    return (logits.log_softmax(1) * (positives * -row_weights.unsqueeze(1))).sum(), partners


def dense_loss_in_blocks(
    features: Tensor,
    labels: Tensor,
    predictions: Tensor,
    weights: Tensor | None,
    reaches: tuple[Reach, Reach],
    settings: Settings,
    first: int,
    last: int,
) -> tuple[Tensor, Partners]:
    """
    [`dense_loss`] a block of anchors after another, each formed again for its gradient: time in M x M, memory in M.

    For what slices of sorted rows cannot do: distances that are the user's function, and settings under which a sum of
    exponentials needs the largest of each row.
    """
    rows = len(features)
    step = max(64, BLOCK_PAIRS // max(rows, 1))
    divisor: int | Tensor = max(rows, 1)
    if settings.reduction == "anchors":
        counts = []
        for start in range(0, rows, step):
            _, *pairs = find_pairs(labels, predictions, reaches, settings.distance, start, start + step)
            counts.append(_count(*pairs).is_anchor.sum())
        divisor = torch.stack(counts).sum().clamp(min=1)

    parts = []
    for start in range(first, last, step):
        block = start, min(start + step, last)
        arguments = features, labels, predictions, weights, reaches, settings, *block, divisor
        parts.append(checkpoint(dense_loss, *arguments, use_reentrant=False, preserve_rng_state=False))
    partners = Partners(*(torch.cat(column) for column in zip(*(part for _, part in parts), strict=True)))
    return torch.stack([loss for loss, _ in parts]).sum(), partners


def _count(positives: Tensor, negatives: Tensor) -> Partners:
    positive_counts, negative_counts = positives.sum(1), negatives.sum(1)  # (A,)
    return Partners((positive_counts > 0) & (negative_counts > 0), positive_counts.long(), negative_counts.long())


class _Logits(torch.autograd.Function):
    """
    `log_weights + scale * cosine(features[first:first + A], features)`, of shape `(A, M)`.

    Written out because autograd's backward of the normalisation and of `z @ z.T` costs as much as all the rest at
    M = 128: there, one product with the sum of both triangles does for two.
    """

    @staticmethod
    def forward(ctx: Any, features: Tensor, log_weights: Tensor, scale: float, first: int) -> Tensor:
        units, norms = normalise(features)
        ctx.save_for_backward(units, norms)
        ctx.scale, ctx.first = scale, first
        return torch.addmm(log_weights, units[first : first + len(log_weights)], units.T, alpha=scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        units, norms = ctx.saved_tensors
        anchors = slice(ctx.first, ctx.first + len(grad))
        # A caller's autocast must not lower these products either.
        with torch.autocast(grad.device.type, enabled=False):
            if len(grad) == len(units):
                result = (grad + grad.T) @ units
            else:
                result = grad.T @ units[anchors]
                result[anchors] += grad @ units
            return normalise_backward(result, units, norms, ctx.scale), None, None, None


def normalise(features: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of length 1, and their lengths of shape `(M, 1)`. A row of zeros stays, and has length 1."""
    norms = torch.linalg.vector_norm(features, dim=1, keepdim=True)
    # By 1 and not by an epsilon: a row of zeros gets the gradient of a row of length 1, not 1e12 times it.
    norms = torch.where(norms > 0, norms, 1)
    return features / norms, norms


def normalise_backward(grad: Tensor, units: Tensor, norms: Tensor, scale: float | Tensor) -> Tensor:
    """The gradient in the features, from that in [`normalise`]'s units times `scale`; writes over `grad`."""
    # What goes along a unit vector does not change it.
    grad.addcmul_(units, (units * grad).sum(1, keepdim=True), value=-1)
    return grad.mul_(scale / norms)
