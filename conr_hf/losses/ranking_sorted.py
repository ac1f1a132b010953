"""Rank-N-Contrast of labels with one dimension: the rows are sorted once by label, and never again for an anchor."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

# Pairs of a block of anchors: on a CPU its tensors stay in the cache; a GPU wants enough work for every kernel.
PAIRS_CPU, PAIRS_GPU, SMALLEST = 2**20, 2**22, 32

# The widest range of scores whose exponentials, and sums and ratios of them, are far from the ends of a dtype.
LARGEST_RANGE = {torch.float32: 60.0, torch.float64: 600.0}


class Groups(NamedTuple):
    """The distinct labels in ascending order, G of them."""

    values: Tensor  # (G,), float64
    sizes: Tensor  # (G,), rows of each, in the dtype of the sums
    tolerance: float  # label distances that differ by no more are equal
    # Groups with another one within the tolerance, (C,), and the first and the last such, itself among them: labels a
    # rounding apart, as in large batches of float32.
    close: Tensor
    first_equal: Tensor
    last_equal: Tensor


def choose_sums_dtype(points: Tensor, temperature: float) -> torch.dtype | None:
    """The smallest dtype, from that of centred features on, that holds sums of their scores' exponentials; or none."""
    score_range = 2 * points.norm(dim=1).amax().item() / temperature
    wide_enough = (dtype for dtype, limit in LARGEST_RANGE.items() if score_range <= limit)
    return next((dtype for dtype in wide_enough if dtype.itemsize >= points.itemsize), None)


def sorted_loss(
    points: Tensor,
    labels: Tensor,
    tolerance: float,
    temperature: float,
    first: int,
    last: int,
    sums_dtype: torch.dtype,
    needs_gradient: bool,
) -> tuple[Tensor, Tensor]:
    """
    The terms of Rank-N-Contrast of anchors `first` to `last`, `()`, still to be divided by M (M - 1), and the gradient
    in the features, `(M, D)`, still to be divided by t M (M - 1); it is 0 unless it is needed.

    `points` are the centred features, `(M, D)`, and `labels`, `(M,)`, of any dtype; the tolerance is above 0 unless
    all labels are 0. With `e_ik = exp(s_ik / t)` summed over the rows of each distinct label, an anchor's denominator
    for a label at distance d is the sum over labels up to `y_i - d` plus the sum over those from `y_i + d` on. Both
    are entries of sums that run from the two ends inwards to the anchor, so that nothing is ever subtracted. What the
    denominators give to the gradient runs the same ways back, from the anchor outwards.
    """
    labels, order = labels.double().sort(stable=True)
    points = points[order]
    rows, device = len(points), points.device
    values, group_of, sizes = torch.unique_consecutive(labels, return_inverse=True, return_counts=True)
    groups = make_groups(values, sizes.to(sums_dtype), tolerance)
    places = torch.empty_like(order).index_copy_(0, order, torch.arange(rows, device=device))
    # What is less than the rounding of a squared distance counts as 0.
    squares = points.square().sum(1) * (1 - 4 * torch.finfo(points.dtype).eps)
    smallest = torch.finfo(points.dtype).tiny
    loss, gradient = torch.zeros((), dtype=torch.float64, device=device), torch.zeros_like(points)
    pulled = torch.zeros_like(squares)  # how strongly each row is drawn to all others together

    step = max(SMALLEST, (PAIRS_CPU if device.type == "cpu" else PAIRS_GPU) // rows)
    chosen = places[first:last].sort().values
    own_groups = group_of[chosen]
    lowest, highest = own_groups[::step].tolist(), [*own_groups[step - 1 :: step].tolist(), *own_groups[-1:].tolist()]
    for anchors, low, high in zip(torch.split(chosen, step), lowest, highest, strict=False):
        # Tensors of pairs are (M, A).
        own = points if len(anchors) == rows else points[anchors]
        itself = anchors.unsqueeze(0)
        squared = (squares.unsqueeze(1) + squares[anchors]).addmm_(points, own.T, alpha=-2).clamp_(min=0)
        squared.scatter_(0, itself, 0)
        lengths = squared.sqrt()
        terms = lengths.to(sums_dtype).mul(-1 / temperature).exp_()
        terms.scatter_(0, itself, 0)  # no pair with itself
        sums = terms
        if len(values) < rows:
            sums = terms.new_zeros(len(values), len(anchors)).index_add_(0, group_of, terms)
        logarithms, rates = sum_denominators(sums.T.contiguous(), group_of[anchors], low, high, groups)
        loss += logarithms + lengths.sum(dtype=torch.float64) / temperature
        if not needs_gradient:
            continue
        rates = rates.T.contiguous()
        rates = rates if len(values) == rows else rates.index_select(0, group_of)
        pulls = terms.mul_(rates).sub_(1).to(points.dtype)
        pulls.mul_(lengths).div_(squared.add_(smallest))  # per unit of z_j - z_i; 0 where the two are the same
        if len(anchors) == rows:
            pulls = pulls + pulls.T
            gradient = pulls @ points
        else:
            gradient.addmm_(pulls, own).index_add_(0, anchors, (points.T @ pulls).T)
            pulled.index_add_(0, anchors, pulls.sum(0))
        pulled += pulls.sum(1)
    gradient.addcmul_(pulled.unsqueeze(1), points, value=-1)
    return loss.to(points.dtype), torch.empty_like(gradient).index_copy_(0, order, gradient)


def make_groups(values: Tensor, sizes: Tensor, tolerance: float) -> Groups:
    """[`Groups`] of distinct labels in ascending order."""
    first_equal = torch.searchsorted(values, values - tolerance)
    last_equal = torch.searchsorted(values, values + tolerance, right=True) - 1
    close = (first_equal < last_equal).nonzero().squeeze(1)
    return Groups(values, sizes, tolerance, close, first_equal[close], last_equal[close])


def sum_denominators(sums: Tensor, own: Tensor, lowest: int, highest: int, groups: Groups) -> tuple[Tensor, Tensor]:
    """
    From sums of exponentials, `(A, G)`, of anchors in ascending order of their groups `own`, `(A,)`, from `lowest` to
    `highest`: the sum of the logarithms of all pairs' denominators, `()`, and of each anchor and group the sum of the
    reciprocals of the denominators that hold it, `(A, G)`.
    """
    values, sizes, tolerance, close, first_equal, last_equal = groups
    # Groups below `lowest` are below every anchor, those from `highest` on are not; between, each anchor has its own.
    width, bound = highest - lowest, own.unsqueeze(1)
    above = (torch.arange(lowest, highest, device=own.device) >= bound).to(sums.dtype)
    below = 1 - above

    from_low, from_high = sums[:, :highest].cumsum(1), sums[:, lowest:].flip(1).cumsum(1).flip(1)
    between = (from_low[:, lowest:] * below).addcmul_(from_high[:, :width], above)
    nothing = sums.new_zeros(len(sums), 1)
    inwards = torch.cat([nothing, from_low[:, :lowest], between, from_high[:, width:], nothing], 1)  # (A, 1 + G + 1)

    # Where the denominator of each group begins on the anchor's other side, as a column of `inwards`.
    mirrored = 2 * values[bound] - values
    mirrored[:, :lowest] -= tolerance
    mirrored[:, lowest:highest] += (above - below) * tolerance
    mirrored[:, highest:] += tolerance
    opposite = torch.searchsorted(values, mirrored, right=True)
    opposite[:, :lowest] += 1
    opposite[:, lowest:highest] += below.long()
    opposite.scatter_(1, bound, bound)
    totals = inwards.gather(1, opposite).add_(inwards[:, 1:-1])
    if len(close) > 0:  # a denominator begins at the farthest of a label's equals, and each side ends at the anchor
        is_above = close >= bound
        across = opposite[:, close]
        across = torch.where(is_above, across.clamp(max=bound), across.clamp(min=bound + 1))
        opposite[:, close] = across
        same = torch.where(is_above, first_equal.clamp(min=bound) + 1, last_equal.clamp(max=bound - 1) + 1)
        totals[:, close] = inwards.gather(1, across) + inwards.gather(1, same)

    # An anchor is in its own group, and no pair with itself.
    logarithms = totals.log()
    total = (logarithms @ sizes).sum(dtype=torch.float64) - logarithms.gather(1, bound).sum(dtype=torch.float64)
    # Each term is inside the denominators that reach it: what they give to it is put where they begin, and summed from
    # the anchor outwards.
    reciprocals = totals.reciprocal_()
    rates = (reciprocals * sizes).scatter_add_(1, bound, -reciprocals.gather(1, bound))
    begun = F.pad(rates, (1, 1))
    if len(close) > 0:
        begun[:, close + 1] = 0
        begun.scatter_add_(1, same, rates[:, close])
    begun = begun.scatter_add_(1, opposite, rates)[:, 1:-1]
    to_low = torch.cat([begun[:, :lowest], begun[:, lowest:highest] * below], 1).flip(1).cumsum(1).flip(1)
    to_high = torch.cat([begun[:, lowest:highest] * above, begun[:, highest:]], 1).cumsum(1)
    between = to_low[:, lowest:] + to_high[:, :width]
    return total, torch.cat([to_low[:, :lowest], between, to_high[:, width:]], 1)
