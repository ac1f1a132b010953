"""The loss and its gradient from slices of sorted rows: exact, without a tensor of all pairs."""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from conr_hf.losses.conr_dense import (
    Partners,
    dense_loss,
    dense_loss_in_blocks,
    normalise,
    normalise_backward,
    weigh_rows,
)
from conr_hf.losses.conr_slices import Plan, Side, Tile, make_plan
from conr_hf.losses.pairs import Reach, named_distance, within_reach
from conr_hf.losses.validation import Settings

# Since a cosine is at most 1, sums of exponentials are taken as they are, without the largest of each row: as long as
# exp of this, times the rows, and exp of its negative are well inside the dtype.
LARGEST_TERM = {torch.float32: 60.0, torch.float64: 600.0}

# Below that many rows, and if the slices hold more than that share of all pairs, all pairs at once are faster.
# Measured by tests/benchmarks/bench_loss.py.
WIDE_ROWS, WIDE_SHARE = 2048, 0.8

LOG_2 = math.log(2)


def windowed_loss(
    features: Tensor,
    labels: Tensor,
    predictions: Tensor,
    weights: Tensor | None,
    reaches: tuple[Reach, Reach],
    settings: Settings,
    first: int,
    last: int,
    dense_if_wide: bool = False,
) -> tuple[Tensor, Partners]:
    """
    The loss of rows `first` to `last`, in time of the pairs that have similar labels or similar predictions. Takes and
    returns what [`dense_loss`] does.

    A row's positives are neighbours in the order of labels, and its negatives are among its neighbours in the order of
    predictions. Each side is gone over in tiles, once for the sums of each row, and once more for the gradient, when
    these sums are known; what is kept in between has one entry a row or one a feature.

    A distance of the user, and terms too large to add without the largest of their row, go to
    [`dense_loss_in_blocks`]. `dense_if_wide` forms all pairs at once where few are left out and their tensors are
    small.
    """
    arguments = features, labels, predictions, weights, reaches, settings, first, last
    if last == first:
        return dense_loss(*arguments, divisor=1)
    if callable(settings.distance) or not features.numel():
        return dense_loss_in_blocks(*arguments)
    plan = make_plan(*arguments[1:])
    rows, anchors = len(features), last - first
    if dense_if_wide and rows < WIDE_ROWS and plan.pairs > WIDE_SHARE * rows * anchors:
        return dense_loss(*arguments)
    widest = torch.float32 if features.device.type == "mps" else torch.float64  # Metal has no other
    if plan.largest_term > LARGEST_TERM[widest]:
        return dense_loss_in_blocks(*arguments)
    dtype = features.dtype
    if plan.largest_term > LARGEST_TERM[dtype]:
        features = features.double()
    loss, *partners = _Windowed.apply(features, weights, plan, settings, first, last)
    return loss.to(dtype), Partners(*partners)


class _Windowed(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, features: Tensor, weights: Tensor | None, plan: Plan, settings: Settings, first: int, last: int
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        rows, dtype = len(features), features.dtype
        units, norms = normalise(features)
        sorted_units = [_of_both(side, units) for side in plan.sides]
        del units
        sums = [_sum_over_pairs(_sort_rows(plan.sides, which, sorted_units[which]), settings) for which in (0, 1)]
        positives, scores, similar = sums[0][:, first:last]  # (A,) each
        negatives, confused = sums[1][:, first:last]
        partners = Partners((positives > 0) & (negatives > 0), positives.long(), negatives.long())

        divisor: int | Tensor = rows
        if settings.reduction == "anchors":
            counts = [found[0] for found in sums]
            if plan.whole:
                counts = [_sum_over_pairs(_sort_rows(plan.whole, which, None), settings)[0] for which in (0, 1)]
            divisor = ((counts[0] > 0) & (counts[1] > 0)).sum().clamp(min=1)
        own_weights = None if weights is None else weights[first:last].to(dtype)
        row_weights = weigh_rows(partners, own_weights, divisor, dtype, settings)  # (A,)

        log_eta = torch.zeros_like(row_weights) if own_weights is None else own_weights.log()
        log_sum = torch.logaddexp(similar.log(), confused.log() + log_eta)
        if settings.formulation == "reference":
            log_sum = torch.logaddexp(log_sum, (rows - positives).log())
        log_sum = torch.where(partners.is_anchor, log_sum, 0)  # a row without a positive has nothing to add up
        shares = row_weights * positives
        # The gradient in a pair's score: exp(score) times the first less the second for a positive, push times
        # exp(score) times the third for a negative.
        coefficients = features.new_zeros(3, rows)
        own = [shares * (-log_sum).exp(), row_weights, shares * (log_eta - log_sum).exp()]
        coefficients[:, first:last] = torch.stack(own)
        ctx.save_for_backward(features, norms, coefficients, *sorted_units[0], *sorted_units[1])
        ctx.sides, ctx.settings = plan.sides, settings
        ctx.mark_non_differentiable(*partners)
        return (shares * log_sum - row_weights * scores).sum(), *partners

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor, None, None, None, None, None]:
        features, norms, coefficients, *sorted_units = ctx.saved_tensors
        # A caller's autocast must not lower these products.
        with torch.no_grad(), torch.autocast(grad.device.type, enabled=False):
            result = torch.zeros_like(features)
            for which, some in ((0, coefficients[:2]), (1, coefficients[2:])):
                units = sorted_units[2 * which], sorted_units[2 * which + 1]
                _add_gradient(result, _sort_rows(ctx.sides, which, units), some, ctx.settings)
            result = normalise_backward(result, features / norms, norms, grad / ctx.settings.temperature)
        return _FirstDerivative.apply(result, features), None, None, None, None, None


class _FirstDerivative(torch.autograd.Function):
    """The gradient as it is. Its own gradient in the features is an error instead of a silent 0."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, features: Tensor) -> Tensor:
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> None:
        raise RuntimeError("conr_loss has a first derivative only; leave it out of what is differentiated twice.")


class _Sorted(NamedTuple):
    """What the tiles of a side are cut from: each pair of tensors is for the side's rows, and for its columns."""

    side: Side
    units: tuple[Tensor, Tensor] | None  # (A, D) and (M, D); without, pairs are counted
    labels: tuple[Tensor, Tensor]  # (A, T) and (M, T)
    label_reach: float  # up to which distance they are similar
    predictions: tuple[Tensor, Tensor] | None  # like labels; for negatives only
    prediction_reach: float
    zero: Tensor  # of shape (), in the dtype of units, or of labels

    @property
    def width(self) -> int:
        """How many numbers [`_form_pairs`] gives a pair."""
        return 1 if self.units is None else 3 if self.predictions is None else 2


def _of_both(side: Side, tensor: Tensor) -> tuple[Tensor, Tensor]:
    columns = tensor.index_select(0, side.columns)
    return (columns if side.mirrored else tensor.index_select(0, side.rows)), columns


def _sort_rows(sides: tuple[Side, Side], which: int, units: tuple[Tensor, Tensor] | None) -> _Sorted:
    """For the positives (0) or the negatives (1)."""
    side, (by_label, by_prediction) = sides[which], sides
    labels, predictions = (_of_both(side, each.values.reshape(len(each.values), -1)) for each in sides)
    zero = (labels if units is None else units)[0].new_zeros(())
    return _Sorted(side, units, labels, by_label.reach, predictions if which else None, by_prediction.reach, zero)


def _form_pairs(rows: _Sorted, tile: Tile, settings: Settings) -> Tensor:
    """
    The pairs of a tile, of shape `(K, B, C)`: 1 where they count, and 0 where not; for positives the score there;
    push times exp(score), or exp(score) for positives. Only the first where there are no units.
    """
    side, units, labels, label_reach, predictions, prediction_reach, zero = rows
    first, last, start, end = tile
    distances = named_distance(labels[0][first:last], labels[1][start:end], settings.distance)
    pairs = zero.new_empty(rows.width, last - first, end - start)
    is_pair, terms = pairs[0], pairs[-1]
    if units:
        # In powers of 2, whose exponential is three times as fast on a CPU.
        scale = 1 / (settings.temperature * LOG_2)
        torch.addmm(zero, units[0][first:last], units[1][start:end].T, beta=0, alpha=scale, out=terms)

    if not predictions:
        within_reach(distances, label_reach, out=is_pair)
        if not side.mirrored:
            is_pair.mul_(side.rows[first:last, None] != side.columns[start:end])
        elif start == first:
            is_pair.diagonal().zero_()
        if units:
            torch.mul(terms, is_pair, out=pairs[1])
            terms.exp2_().mul_(is_pair)
        return pairs

    if units:
        if settings.push == "linear":
            terms.exp2_().mul_(distances).mul_(settings.push_scale)
        else:
            terms.add_(distances, alpha=settings.push_scale / LOG_2).exp2_()
    confusions = named_distance(predictions[0][first:last], predictions[1][start:end], settings.distance)
    # A row has the distance 0 to itself: it is similar, and no negative.
    similar = within_reach(distances, label_reach, out=distances)
    confused = within_reach(confusions, prediction_reach, out=confusions)
    torch.gt(confused, similar, out=is_pair)
    if units:
        terms.mul_(is_pair)
    return pairs


def _sum_over_pairs(rows: _Sorted, settings: Settings) -> Tensor:
    """For each of all M rows the sums of [`_form_pairs`] over its partners, of shape `(K, M)`; 0 for no anchor."""
    side = rows.side
    sums = rows.zero.new_zeros(rows.width, len(side.rows))
    for tile in side.tiles:
        first, last, start, end = tile
        pairs = _form_pairs(rows, tile, settings)
        sums[:, first:last].add_(pairs.sum(2))
        if side.mirrored and end > last:
            begin = max(start, last)
            sums[:, begin:end].add_(pairs[:, :, begin - start :].sum(1))
    if rows.width == 3:
        sums[1] *= LOG_2
    return sums.new_zeros(rows.width, len(side.columns)).index_copy_(1, side.rows, sums)


def _add_gradient(result: Tensor, rows: _Sorted, coefficients: Tensor, settings: Settings) -> None:
    """Adds the gradient in the units, times the temperature, to `result` of shape `(M, D)`."""
    side = rows.side
    assert rows.units is not None
    own_units, units = rows.units
    own_coefficients = coefficients[:, side.rows].unsqueeze(2)
    other_coefficients = coefficients[:, side.columns].unsqueeze(1)
    grads = torch.zeros_like(units)
    own_grads = grads if side.mirrored else torch.zeros_like(own_units)
    for tile in side.tiles:
        first, last, start, end = tile
        pairs = _form_pairs(rows, tile, settings)
        factors = own_coefficients[:, first:last]
        begin = start
        if side.mirrored:  # the pair in both directions, in the block's own columns too
            factors = factors + other_coefficients[:, :, start:end]
            begin = max(start, last)
        grad = pairs[-1].mul_(factors[0])  # (B, C)
        if len(factors) > 1:
            grad.sub_(pairs[0].mul_(factors[1]))
        own_grads[first:last].addmm_(grad, units[start:end])
        if end > begin:
            grads[begin:end].addmm_(grad[:, begin - start :].T, own_units[first:last])
    result.index_add_(0, side.columns, grads)
    if not side.mirrored:
        result.index_add_(0, side.rows, own_grads)
