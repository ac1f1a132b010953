"""The ConR loss: labels that are far apart must not have features that the model confuses."""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple, overload

import torch
from torch import Tensor, nn

from conr_hf.losses.conr_dense import BLOCK_PAIRS, Partners, dense_loss
from conr_hf.losses.conr_windowed import windowed_loss
from conr_hf.losses.pairs import Distance, check_distance, window_reach
from conr_hf.losses.validation import Settings, bounds, check_numbers, check_settings, check_shapes

# Up to this many rows `algorithm="auto"` is `"dense"`: sorting and cutting cost more than they save. Measured by
# tests/benchmarks/bench_loss.py.
DENSE_ROWS = 512

# Likewise for up to so many anchors, as one process has among the rows of many, while their pairs fit a moderate
# memory and are few beside the feature dimensions: slices sort and copy the features of all rows for them.
FEW_ANCHORS, FEW_PAIRS, FEW_PAIRS_OF_DIMENSION = 256, 2**23, 2**15


class PairStatistics(NamedTuple):
    """
    What a call of [`conr_loss`] found, summed over its anchors. Sums, so that batches and processes can be added up.

    Args:
        anchors (`torch.Tensor` of shape `()`, int64): Rows with at least one positive and one negative.
        positives (`torch.Tensor` of shape `()`, int64): Pairs of an anchor and a row with a similar label.
        negatives (`torch.Tensor` of shape `()`, int64): Pairs of an anchor and a row confused with it.
    """

    anchors: Tensor
    positives: Tensor
    negatives: Tensor


@overload
def conr_loss(
    features: Tensor,
    labels: Tensor,
    predictions: Tensor,
    weights: Tensor | None = None,
    *,
    window: float,
    push_scale: float,
    temperature: float = ...,
    push: str = ...,
    formulation: str = ...,
    reduction: str = ...,
    distance: Distance = ...,
    algorithm: str = ...,
    anchors: slice | None = ...,
    return_statistics: Literal[False] = ...,
) -> Tensor: ...
@overload
def conr_loss(
    features: Tensor,
    labels: Tensor,
    predictions: Tensor,
    weights: Tensor | None = None,
    *,
    window: float,
    push_scale: float,
    temperature: float = ...,
    push: str = ...,
    formulation: str = ...,
    reduction: str = ...,
    distance: Distance = ...,
    algorithm: str = ...,
    anchors: slice | None = ...,
    return_statistics: Literal[True],
) -> tuple[Tensor, PairStatistics]: ...
def conr_loss(
    features: Tensor,
    labels: Tensor,
    predictions: Tensor,
    weights: Tensor | None = None,
    *,
    window: float,
    push_scale: float,
    temperature: float = 0.07,
    push: str = "exponential",
    formulation: str = "exact",
    reduction: str = "mean",
    distance: Distance = "mean_abs",
    algorithm: str = "auto",
    anchors: slice | None = None,
    return_statistics: bool = False,
) -> Tensor | tuple[Tensor, PairStatistics]:
    """
    The contrastive regularizer of ConR.

    A row pulls the features of rows with similar labels (its positives) and pushes those of rows with other labels
    whose predictions are similar to its own (its negatives), the harder the farther their labels are and the rarer
    its own label is. Rows that lack either are no anchors and contribute 0.

    With `s_ij` the cosine similarity of two rows' features divided by the temperature, `P_i` and `Q_i` the positives
    and negatives of row i, `d_ij` the label distance, `eta_i` the weight and `e` the push scale, an anchor's loss is

        L_i = -1/|P_i| sum_{j in P_i} s_ij + log(sum_{j in P_i} exp s_ij + sum_{j in Q_i} eta_i push(d_ij) exp s_ij)

    where `push(d)` is `exp(e d)` or `e d`.

    Float64 features, labels or predictions are computed in float64, everything else in float32, under autocast too.
    Never nan for finite input. It has a first derivative only.

    Args:
        features (`torch.Tensor` of shape `(M, D)`):
            What the model's last linear layer reads, one row a view, of any dtype. Normalised here; a row of zeros is
            similar to nothing.
        labels (`torch.Tensor` of shape `(M,)` or `(M, T)`): In label units, of any dtype.
        predictions (`torch.Tensor` of the shape of `labels`): In label units. No gradient goes through them.
        weights (`torch.Tensor` of shape `(M,)`, *optional*):
            How hard each row pushes (the paper's eta): its label's rarity, with mean 1 over the training set, not
            negative. Unset: 1 for every row.
        window (`float`): Labels, and predictions, within this distance are similar, in label units (omega).
        push_scale (`float`): How fast the push grows with the label distance, per label unit, not negative (e).
        temperature (`float`, *optional*, defaults to 0.07): Divides the cosine similarities (tau).
        push (`str`, *optional*, defaults to `"exponential"`): `"exponential"` or `"linear"`.
        formulation (`str`, *optional*, defaults to `"exact"`):
            `"exact"` is the formula above. `"reference"` gives the numbers of the published experiments: every row
            that is not a positive, the row itself included, adds 1 to the sum inside the logarithm, and `L_i` is
            multiplied by `eta_i`, or with `push="linear"` by `|P_i| / (|P_i| + 1)`.
        reduction (`str`, *optional*, defaults to `"mean"`):
            `"mean"` divides the sum of `L_i` by M, all rows; `"anchors"` by the number of anchors among all rows
            (0 if there is none). With either, the losses of slices of anchors add up to the loss of all rows.
        distance (`str` or a function, *optional*, defaults to `"mean_abs"`): See [`label_distance`].
        algorithm (`str`, *optional*, defaults to `"auto"`):
            `"dense"` forms all pairs at once, does not wait for the device, and compiles without a graph break.
            `"windowed"` sorts the rows and forms only pairs with similar labels or similar predictions, in tiles and
            again for the gradient: time grows with these pairs and memory with M. It waits for the device once, and
            breaks a compiled graph. Under a distance that is a function, and for temperatures below some 1/600, it
            forms all pairs in blocks of rows. For float32 it calculates in float64 where the logarithm of a term can
            exceed 60, at temperatures below 1/60 and under an extreme push. `"auto"` is `"dense"` up to 512 rows, or
            2047 where nearly all pairs matter, or for a slice of up to 256 anchors and 32,768 D pairs, and
            `"windowed"` beyond.
        anchors (`slice`, *optional*):
            Only these rows are anchors; all rows are their candidates. Unset: all rows.
        return_statistics (`bool`, *optional*, defaults to `False`): Whether to return a [`PairStatistics`] as well.

    Returns:
        `torch.Tensor` of shape `()`, float32 or float64, or a tuple of it and [`PairStatistics`]. It is connected to
        `features` even where it is 0.

    Raises:
        `ValueError`: for a wrong shape, setting or slice; in eager mode on CPU also for a feature, label, prediction
            or weight that is not finite and for a negative weight.

    Source: Keramati, Meng and Evans, "ConR: Contrastive Regularizer for Deep Imbalanced Regression", ICLR 2024, arXiv
    2309.06651 (the loss `L_ConR`).

    Example:
        >>> features = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]])
        >>> labels, predictions = torch.tensor([20.0, 21.0, 40.0]), torch.tensor([30.0, 22.0, 30.5])
        >>> loss, statistics = conr_loss(
        ...     features, labels, predictions, window=1.0, push_scale=0.01, temperature=0.5, return_statistics=True
        ... )
        >>> loss
        tensor(0.0735)
        >>> statistics
        PairStatistics(anchors=tensor(1), positives=tensor(1), negatives=tensor(1))
    """
    settings = Settings(window, push_scale, temperature, push, formulation, reduction, distance, algorithm)
    check_settings(settings)
    check_shapes(features, labels, predictions, weights)
    check_distance(distance, labels)
    first, last = bounds(anchors, len(features))
    dtype = torch.float64 if torch.float64 in (features.dtype, labels.dtype, predictions.dtype) else torch.float32
    # By the rounding of the dtype they come in: float64 sees labels 0.1, 0.2, 0.3, ... of float32 unequally apart.
    reaches = (window_reach(window, labels.detach(), dtype), window_reach(window, predictions.detach(), dtype))
    features = features.to(dtype)
    # Detached: predictions only decide who is confused with whom; the paper sends no gradient through them.
    labels, predictions = labels.detach().to(dtype), predictions.detach().to(dtype)
    weights = None if weights is None else weights.detach().to(dtype)
    check_numbers(features, labels, predictions, weights)

    with torch.autocast(features.device.type, enabled=False):
        compute = _choose(settings, len(features), features.shape[1], last - first)
        loss, partners = compute(features, labels, predictions, weights, reaches, settings, first, last)

    if not return_statistics:
        return loss
    is_anchor, positives, negatives = partners
    return loss, PairStatistics(is_anchor.sum(), (positives * is_anchor).sum(), (negatives * is_anchor).sum())


def _choose(settings: Settings, rows: int, dims: int, anchors: int) -> Callable[..., tuple[Tensor, Partners]]:
    is_dense = settings.algorithm == "dense"
    if settings.algorithm == "auto":
        # A function as distance has nothing to sort by: all its pairs are formed at once while they fit one block.
        is_dense = rows <= DENSE_ROWS or (callable(settings.distance) and rows * anchors <= BLOCK_PAIRS)
        if settings.reduction == "mean":  # the other one counts the anchors among all rows
            few_pairs = min(FEW_PAIRS, FEW_PAIRS_OF_DIMENSION * dims)
            is_dense = is_dense or (anchors <= FEW_ANCHORS and rows * anchors <= few_pairs)
    if is_dense:
        return dense_loss
    windowed = partial(windowed_loss, dense_if_wide=settings.algorithm == "auto")
    if torch.compiler.is_compiling():  # a loop that follows the data: a graph of its own for every batch
        outside: Callable[..., tuple[Tensor, Partners]] = torch.compiler.disable(windowed)  # type: ignore[no-untyped-call]
        return outside
    return windowed


class ConRLoss(nn.Module):
    """
    [`conr_loss`] as a module that keeps the settings.

    Args:
        window (`float`): Labels, and predictions, within this distance are similar, in label units.
        push_scale (`float`): How fast the push grows with the label distance, per label unit.
        temperature (`float`, *optional*, defaults to 0.07): Divides the cosine similarities.
        push (`str`, *optional*, defaults to `"exponential"`): `"exponential"` or `"linear"`.
        formulation (`str`, *optional*, defaults to `"exact"`): `"exact"` or `"reference"`.
        reduction (`str`, *optional*, defaults to `"mean"`): `"mean"` or `"anchors"`.
        distance (`str` or a function, *optional*, defaults to `"mean_abs"`): See [`label_distance`].
        algorithm (`str`, *optional*, defaults to `"auto"`): `"auto"`, `"dense"` or `"windowed"`.

    Raises:
        `ValueError`: for a setting that [`conr_loss`] refuses, here already.

    Source: ConR, arXiv 2309.06651.

    Example:
        >>> criterion = ConRLoss(window=1.0, push_scale=0.01)
        >>> labels, predictions = torch.tensor([20.0, 21.0, 40.0]), torch.tensor([30.0, 22.0, 30.5])
        >>> criterion(torch.eye(3), labels, predictions)
        tensor(0.2660)
    """

    def __init__(
        self,
        *,
        window: float,
        push_scale: float,
        temperature: float = 0.07,
        push: str = "exponential",
        formulation: str = "exact",
        reduction: str = "mean",
        distance: Distance = "mean_abs",
        algorithm: str = "auto",
    ) -> None:
        super().__init__()
        settings = Settings(window, push_scale, temperature, push, formulation, reduction, distance, algorithm)
        check_settings(settings)
        self.settings: dict[str, Any] = settings._asdict()

    def forward(
        self,
        features: Tensor,
        labels: Tensor,
        predictions: Tensor,
        weights: Tensor | None = None,
        anchors: slice | None = None,
        return_statistics: bool = False,
    ) -> Tensor | tuple[Tensor, PairStatistics]:
        """See [`conr_loss`] for the arguments, shapes and errors."""
        options = {**self.settings, "anchors": anchors, "return_statistics": return_statistics}
        found: Tensor | tuple[Tensor, PairStatistics] = conr_loss(features, labels, predictions, weights, **options)
        return found

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self.settings.items())
