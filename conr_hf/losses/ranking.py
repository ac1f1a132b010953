"""Losses that order features as labels are ordered: Rank-N-Contrast and RankSim."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from conr_hf.losses.conr_dense import BLOCK_PAIRS, normalise, normalise_backward
from conr_hf.losses.pairs import Distance, Reach, check_distance, label_distance, window_reach
from conr_hf.losses.ranking_sorted import choose_sums_dtype, sorted_loss
from conr_hf.losses.validation import bounds, check_numbers, check_range, check_shapes


def rank_n_contrast(
    features: Tensor,
    labels: Tensor,
    *,
    temperature: float = 2.0,
    distance: Distance = "mean_abs",
    anchors: slice | None = None,
) -> Tensor:
    """
    Rank-N-Contrast: each row is drawn to every other row rather than to those with labels at least as far.

    With `s_ij = -||z_i - z_j||_2` the similarity of two rows' features, `d_ij` their label distance and t the
    temperature, the loss is

        -1/(M (M - 1)) sum_i sum_{j != i} log(exp(s_ij / t) / sum_{k != i: d_ik >= d_ij} exp(s_ik / t))

    Only the order of label distances matters, not their unit; distances that differ by no more than
    [`within_window`]'s tolerance are equal. Rows with the same features are at distance 0, and no gradient goes
    through it. Float64 features or labels are computed in float64, everything else in float32, under autocast too.
    Time grows with M^2 and memory with M. It has a first derivative only. With several label dimensions, a distance
    that is a function, or features so far apart that their scores differ by more than 600, the rows are sorted anew
    for each anchor, which takes up to some 6 times as long on a CPU; otherwise it waits for the device.

    Args:
        features (`torch.Tensor` of shape `(M, D)`):
            What the model's last linear layer reads, one row a view, of any dtype. Taken as they are, not normalised.
        labels (`torch.Tensor` of shape `(M,)` or `(M, T)`): In label units, of any dtype.
        temperature (`float`, *optional*, defaults to 2.0): Divides the similarities (tau).
        distance (`str` or a function, *optional*, defaults to `"mean_abs"`): See [`label_distance`].
        anchors (`slice`, *optional*):
            Only the terms of these rows i; all rows are their j and k. The losses of slices add up to the loss of all
            rows. Unset: all rows.

    Returns:
        `torch.Tensor` of shape `()`, float32 or float64. With fewer than two rows it is 0, connected to `features`.

    Raises:
        `ValueError`: for a wrong shape, setting or slice; in eager mode on CPU also for a feature or label that is not
            finite.

    Source: Zha et al., "Rank-N-Contrast: Learning Continuous Representations for Regression", NeurIPS 2023, arXiv
    2210.01189 (the loss `L_RNC`).

    Example:
        >>> features = torch.tensor([[0.0], [2.0], [6.0]])
        >>> rank_n_contrast(features, torch.tensor([20.0, 21.0, 40.0]))
        tensor(0.1256)
    """
    check_range("temperature", temperature, " (2 is the paper's value)")
    check_distance(distance)
    features, labels, tolerance = _prepare(features, labels)
    check_distance(distance, labels)
    rows = len(features)
    first, last = bounds(anchors, rows)
    if rows < 2:
        return features.sum() * 0
    with torch.autocast(features.device.type, enabled=False):
        loss: Tensor = _RankNContrast.apply(features, labels, tolerance, temperature, distance, first, last)
        return loss


def ranksim(features: Tensor, labels: Tensor, *, interpolation: float = 2.0) -> Tensor:
    """
    RankSim: each row must rank the others by feature similarity as it ranks them by label similarity.

    Takes the first row of each distinct label, n of them. Their ranks by cosine similarity of the features and by
    label distance (1 for the most similar, the row itself included, the earlier row first among equals; divided by n)
    give one number a pair, and the loss is the sum over rows of the mean squared difference of the two ranks.

    A rank has no gradient of its own. The one used interpolates: with `r(s)` the ranks of a row of similarities s and
    g the gradient that arrives at them, it is `-(r(s) - r(s + lambda g)) / lambda`.

    Float64 features or labels are computed in float64, everything else in float32, under autocast too. It has a first
    derivative only. It waits for the device.

    RankSim is subject of a patent application, US 2023/0214651; whether it may be used where you are is for you to
    find out.

    Args:
        features (`torch.Tensor` of shape `(M, D)`):
            What the model's last linear layer reads, one row a view, of any dtype. Normalised here.
        labels (`torch.Tensor` of shape `(M,)` or `(M, T)`): In label units, of any dtype.
        interpolation (`float`, *optional*, defaults to 2.0):
            How far the gradient looks for a change of ranks, greater than 0 (lambda).

    Returns:
        `torch.Tensor` of shape `()`, float32 or float64. With fewer than two distinct labels it is 0, connected to
        `features`.

    Raises:
        `ValueError`: for a wrong shape or setting; in eager mode on CPU also for a feature or label that is not
            finite.

    Source: Gong, Mori and Tung, "RankSim: Ranking Similarity Regularization for Deep Imbalanced Regression", ICML
    2022, arXiv 2205.15236; the gradient: Vlastelica et al., "Differentiation of Blackbox Combinatorial Solvers", ICLR
    2020, arXiv 1912.02175.

    Example:
        >>> features = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.8, 0.6]])
        >>> ranksim(features, torch.tensor([20.0, 21.0, 40.0]))
        tensor(0.1481)
    """
    check_range("interpolation", interpolation, " (2 is the paper's value)")
    features, labels, tolerance = _prepare(features, labels)
    first_rows = _first_of_each_label(labels)
    if len(first_rows) < 2:
        return features.sum() * 0
    labels = labels[first_rows]
    distances = label_distance(labels, labels)
    # How many are nearer, a whole number: equal distances that differ by a rounding rank by their order too.
    nearer = torch.searchsorted(distances.sort(1).values, distances - tolerance)
    with torch.autocast(features.device.type, enabled=False):
        ranks: Tensor = _CosineRanks.apply(features[first_rows], interpolation)
    return (ranks - _ranks(-nearer, ranks.dtype)).square().mean(1).sum()


def _prepare(features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Reach]:
    """Features and labels in the dtype that the loss is computed in, and up to where label distances are equal."""
    check_shapes(features, labels, labels, None)
    dtype = torch.float64 if torch.float64 in (features.dtype, labels.dtype) else torch.float32
    tolerance = window_reach(0.0, labels.detach(), dtype)
    features, labels = features.to(dtype), labels.detach().to(dtype)
    check_numbers(features, labels, labels, None)
    return features, labels, tolerance


class _RankNContrast(torch.autograd.Function):
    """The loss a block of anchors after another, and its gradient with it: nothing of M x M outlives its block."""

    @staticmethod
    def forward(
        ctx: Any,
        features: Tensor,
        labels: Tensor,
        tolerance: Reach,
        temperature: float,
        distance: Distance,
        first: int,
        last: int,
    ) -> Tensor:
        # Distances do not change, and their rounding is that of the spread and not of the mean.
        points = features - features.mean(0)
        # Sorting by label and looking at the range of scores needs float64, and a host that may wait.
        is_one_label = labels.ndim == 1 or labels.shape[1] == 1
        can_sort = is_one_label and not callable(distance) and points.device.type != "mps"
        sums_dtype = None
        if can_sort and not torch.compiler.is_compiling():
            sums_dtype = choose_sums_dtype(points, temperature)
        slopes = ctx.needs_input_grad[0]
        if sums_dtype is None:
            loss, gradient = _loss_of_any(points, labels, tolerance, temperature, distance, first, last, slopes)
        else:
            reach, flat = float(tolerance), labels.flatten()
            loss, gradient = sorted_loss(points, flat, reach, temperature, first, last, sums_dtype, slopes)
        pairs = len(features) * (len(features) - 1)
        ctx.save_for_backward(gradient.div_(temperature * pairs))
        return loss / pairs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * grad, None, None, None, None, None, None


def _loss_of_any(
    points: Tensor,
    labels: Tensor,
    tolerance: Reach,
    temperature: float,
    distance: Distance,
    first: int,
    last: int,
    needs_gradient: bool,
) -> tuple[Tensor, Tensor]:
    """
    [`~conr_hf.losses.ranking_sorted.sorted_loss`] for any labels, `(M, T)`, distance and range of scores.

    Sorted by label distance, the rows at least as far as another are all rows up to one place: the sums inside the
    logarithms are entries of one cumulative sum.
    """
    rows = len(points)
    squares = points.square().sum(1)
    gradient = torch.zeros_like(points)
    losses = points.new_zeros(())
    step = max(64, BLOCK_PAIRS // rows)
    for start in range(first, last, step):
        end = min(start + step, last)
        own = points[start:end]
        lengths = _distances(points, squares, start, end)
        far_first = -label_distance(labels[start:end], labels, distance)
        far_first.diagonal(offset=start).fill_(math.inf)  # no pair with itself: to the last place, and left out
        far_first, order = (x[:, :-1].contiguous() for x in far_first.sort(1))
        # Among equal distances the last place.
        places = torch.searchsorted(far_first, far_first + tolerance, right=True).sub_(1)
        scores = lengths.gather(1, order).mul_(-1 / temperature)
        sums = scores.logcumsumexp(1).gather(1, places)
        losses += (sums - scores).sum()
        if not needs_gradient:
            continue
        # A score is inside the sums of its own place and of all later ones, up to the first with that place.
        later = sums.neg_().flip(1).logcumsumexp(1).flip(1)
        everywhere = torch.arange(rows - 1, device=places.device).expand_as(places).contiguous()
        starts = torch.searchsorted(places, everywhere)
        slopes = scores.add_(later.gather(1, starts)).exp_().sub_(1)
        pulls = torch.zeros_like(lengths).scatter_(1, order, slopes)
        pulls = torch.where(lengths > 0, pulls / lengths, 0)  # of z_i towards z_j, per unit of their difference
        gradient[start:end] += pulls @ points - pulls.sum(1, keepdim=True) * own
        gradient += pulls.T @ own - pulls.sum(0).unsqueeze(1) * points
    return losses, gradient


def _distances(points: Tensor, squares: Tensor, first: int, last: int) -> Tensor:
    """Distances of rows `first` to `last` to all rows, by a matrix product; 0 where that is all rounding."""
    sums = squares[first:last].unsqueeze(1) + squares
    squared = torch.addmm(sums, points[first:last], points.T, alpha=-2)
    noise = sums.mul_(4 * torch.finfo(points.dtype).eps)
    return torch.where(squared > noise, squared, 0).sqrt_()


class _CosineRanks(torch.autograd.Function):
    """The [`_ranks`] of cosine similarities, with the gradient that [`ranksim`] describes."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, interpolation: float) -> Tensor:
        units, norms = normalise(features)
        similarities = units @ units.T
        ranks = _ranks(similarities, similarities.dtype)
        ctx.save_for_backward(units, norms, similarities, ranks)
        ctx.interpolation = interpolation
        return ranks

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        units, norms, similarities, ranks = ctx.saved_tensors
        moved = _ranks(similarities + ctx.interpolation * grad, ranks.dtype)
        slopes = (moved - ranks) / ctx.interpolation
        # A caller's autocast must not lower this product either.
        with torch.autocast(grad.device.type, enabled=False):
            return normalise_backward((slopes + slopes.T) @ units, units, norms, 1.0), None


def _ranks(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Ranks within each row, divided by its length: 1 for the largest, the earlier first among equals."""
    order = values.argsort(dim=1, descending=True, stable=True)
    return (order.argsort(1) + 1).to(dtype) / values.shape[1]


def _first_of_each_label(labels: Tensor) -> Tensor:
    """The first row of each distinct label, in the order of the rows."""
    distinct, places = torch.unique(labels, dim=0, return_inverse=True)
    rows = torch.arange(len(labels), device=labels.device)
    return rows.new_full((len(distinct),), len(labels)).scatter_reduce_(0, places, rows, "amin").sort().values
