"""Pairs of rows, similar or confused: label distances, the window, and the masks of pairs."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

Distance = str | Callable[[Tensor, Tensor], Tensor]
Reach = Tensor | float  # up to which distance labels, or predictions, are similar
DISTANCES = ("mean_abs", "euclidean", "angular")


def label_distance(a: Tensor, b: Tensor, distance: Distance = "mean_abs") -> Tensor:
    """
    Distance between every label of `a` and every label of `b`.

    Args:
        a (`torch.Tensor` of shape `(M,)` or `(M, T)`): Labels, in label units, of any dtype.
        b (`torch.Tensor` of shape `(K,)` or `(K, T)`): Labels, in label units, of any dtype.
        distance (`str` or a function, *optional*, defaults to `"mean_abs"`):
            `"mean_abs"`, the mean absolute difference over the label dimensions (the paper's inverse-MAE similarity
            turned over); `"euclidean"`; `"angular"`, the angle between two directions, of labels that are pitch and
            yaw in radians; or a function of two tensors of shapes `(M, 1, T)` and `(1, K, T)` that returns the
            distances, of shape `(M, K)`. With one label dimension the first two are the same.

    Returns:
        `torch.Tensor` of shape `(M, K)`: distances in label units (angles in radians), never negative, in float64 if
        `a` or `b` is float64 and in float32 otherwise.

    Raises:
        `ValueError`: if `a` and `b` differ in label dimensions, if the name is unknown, for `"angular"` with other
            than two label dimensions, or if the user's function returns another shape, a negative number or a nan
            (the numbers are looked at in eager mode on CPU only).

    Source: ConR, arXiv 2309.06651 (`d(y_i, y_j)`). Pitch and yaw: see [`~conr_hf.metrics.angular_error`].

    Example:
        >>> label_distance(torch.tensor([20.0, 40.0]), torch.tensor([21.0]))
        tensor([[ 1.],
                [19.]])
    """
    dtype = torch.float64 if torch.float64 in (a.dtype, b.dtype) else torch.float32
    a, b = (x.to(dtype).unsqueeze(1) if x.ndim == 1 else x.to(dtype) for x in (a, b))  # (M, T), (K, T)
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
        raise ValueError(
            f"a and b have shapes {tuple(a.shape)} and {tuple(b.shape)}; give both one row a label, (M,) or (M, T), "
            "with the same number of label dimensions."
        )
    if callable(distance):
        return _checked(distance(a[:, None], b[None]), len(a), len(b))
    check_distance(distance, a)
    return named_distance(a, b, distance)


def named_distance(a: Tensor, b: Tensor, distance: Distance) -> Tensor:
    """[`label_distance`] of tensors that are known to fit, of shapes `(M, T)` and `(K, T)`, by a distance's name."""
    if a.shape[1] == 1:
        return (a - b.T).abs_()
    if distance == "angular":
        return _angles(fold_pitch(a), fold_pitch(b))
    # cdist needs no (M, K, T) tensor. The matrix-product shortcut is off: it finds equal labels a little apart.
    if distance == "euclidean":
        return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")
    return torch.cdist(a, b, p=1.0) / a.shape[1]


def fold_pitch(directions: Tensor) -> Tensor:
    """Pitch and yaw, `(M, 2)`, the pitch within pi/2 of 0: who looks up beyond the zenith looks back and down."""
    pitch, yaw = directions.unbind(1)
    turned = pitch - 2 * math.pi * (pitch / (2 * math.pi)).round()  # -pi to pi
    beyond = turned.abs() > math.pi / 2
    inside = torch.where(pitch.abs() > math.pi / 2, turned, pitch)  # as it was, to the bit, if it was inside
    over = (math.pi - turned.abs()).copysign(turned)
    return torch.stack([torch.where(beyond, over, inside), torch.where(beyond, yaw + math.pi, yaw)], 1)


def _angles(a: Tensor, b: Tensor) -> Tensor:
    """Angles between directions of shapes `(M, 2)` and `(K, 2)` with folded pitch, by the haversine of both ends."""
    pitch_a, yaw_a = a.unsqueeze(1).unbind(2)  # (M, 1)
    pitch_b, yaw_b = b.unsqueeze(0).unbind(2)  # (1, K)
    # sin^2 and cos^2 of half the angle, each a sum of what is not negative: exact for angles near 0 and near pi.
    both = pitch_a.cos().clamp(min=0) * pitch_b.cos().clamp(min=0)
    half_yaw = (yaw_a - yaw_b).div_(2)
    near = torch.addcmul((pitch_a - pitch_b).div_(2).sin_().square_(), both, half_yaw.sin().square_())
    far = torch.addcmul((pitch_a + pitch_b).div_(2).sin_().square_(), both, half_yaw.cos_().square_())
    return torch.atan2(near.sqrt_(), far.sqrt_()).mul_(2)


def within_window(distances: Tensor, window: float, labels: Tensor) -> Tensor:
    """
    Which distances lie within the window. Every algorithm decides it here, for labels and for predictions.

    The tolerance of four roundings of the largest label makes the answer independent of the unit: without it, labels
    0.1, 0.2, 0.3, ... and a window of 0.2 miss a part of the pairs that 1, 2, 3, ... and a window of 2 find. A
    rounding is that of float32 where the labels are float32, though the distances may be float64.

    Args:
        distances (`torch.Tensor` of any shape): Distances in label units, float32 or float64.
        window (`float`): The window in label units, not negative.
        labels (`torch.Tensor` of any shape): All labels (or all predictions) that the distances come from, in the
            dtype they were given in; only the largest magnitude counts, so that one number, `labels.abs().amax()`,
            does as well.

    Returns:
        `torch.Tensor` of the shape of `distances`, boolean: `distances <= window + 4 * eps * max|labels|`.

    Source: ConR, arXiv 2309.06651 (the window `omega`); the tolerance is ours.

    Example:
        >>> labels = torch.tensor([0.1, 0.3, 0.6])
        >>> within_window(label_distance(labels, labels), 0.2, labels)
        tensor([[ True,  True, False],
                [ True,  True, False],
                [False, False,  True]])
    """
    return within_reach(distances, window_reach(window, labels, distances.dtype))


def within_reach(distances: Tensor, reach: Reach, out: Tensor | None = None) -> Tensor:
    """[`within_window`] for those who know [`window_reach`]; in `out` as 1 and 0 if it is of floats."""
    return distances <= reach if out is None else torch.le(distances, reach, out=out)


def window_reach(window: float, labels: Tensor, dtype: torch.dtype) -> Reach:
    """
    The distance up to which [`within_window`] calls labels similar, `window + 4 * eps * max|labels|` of shape `()`, or
    `window` itself where there is no label; whoever knows it needs not look at all labels. These are in the dtype they
    were given in; `dtype` is that of the distances.
    """
    if labels.numel() == 0:  # no largest label
        return window
    # Integers are exact. Labels below float32 are taken as exact too: their own rounding would be a window of its own.
    rounded = torch.float32 if labels.is_floating_point() and labels.dtype != torch.float64 else dtype
    return window + labels.abs().amax().to(dtype) * (4 * torch.finfo(rounded).eps)


def find_pairs(
    labels: Tensor,
    predictions: Tensor,
    reaches: tuple[Reach, Reach],
    distance: Distance = "mean_abs",
    first: int = 0,
    last: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """
    Label distances, positives and negatives of rows `first` to `last`, the anchors, among all `M` rows; of all rows
    from `first` on without `last`. Of shape `(A, M)`, float32 or float64: the distances in label units, and 1 for a
    positive and 1 for a negative, 0 elsewhere. Numbers and no masks: on a CPU arithmetic with them is several times as
    fast as choosing by a mask.

    A positive has a similar label. A negative has another label and a prediction similar to the anchor's: the model
    confuses the two. No row is its own positive or negative. `reaches` are [`window_reach`] of the labels and of the
    predictions, both of shape `(M,)` or `(M, T)`.

    Source: ConR, arXiv 2309.06651 (pair selection).
    """
    distances = label_distance(labels[first:last], labels, distance)
    positives = within_reach(distances, reaches[0], out=torch.empty_like(distances))
    # A distance of the user may put a row a rounding away from itself; it must not become its own negative.
    positives.diagonal(offset=first).fill_(1)
    confusions = label_distance(predictions[first:last], predictions, distance)
    negatives = within_reach(confusions, reaches[1], out=confusions)
    negatives.gt_(positives)
    positives.diagonal(offset=first).fill_(0)
    return distances, positives, negatives


def check_distance(distance: Distance, labels: Tensor | None = None) -> None:
    """Refuses a distance that is no function and no known name, and the angle of labels that are no directions."""
    if not callable(distance) and distance not in DISTANCES:
        raise ValueError(
            f"distance is {distance!r}; it must be one of {', '.join(DISTANCES)}, or a function of two tensors of "
            "shape (..., T)."
        )
    if distance == "angular" and labels is not None and (labels.ndim == 1 or labels.shape[1] != 2):
        dims = 1 if labels.ndim == 1 else labels.shape[1]
        raise ValueError(
            f"distance is 'angular' and labels have {dims} dimension{'s' * (dims != 1)}; it is the angle between "
            "directions given as pitch and yaw, of shape (M, 2), in radians."
        )


def may_look(tensor: Tensor) -> bool:
    """Whether numbers can be read: it makes the host wait for a device, and breaks a compiled graph."""
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling()


def _checked(distances: Tensor, rows: int, columns: int) -> Tensor:
    if distances.shape != (rows, columns):
        raise ValueError(
            f"distance returned shape {tuple(distances.shape)} for tensors of shapes ({rows}, 1, T) and "
            f"(1, {columns}, T); it must reduce the last dimension alone and return ({rows}, {columns})."
        )
    if may_look(distances):
        wrong = ~(distances >= 0)  # a nan among them
        if wrong.any():
            i, j = wrong.nonzero()[0].tolist()
            raise ValueError(
                f"distance returned {distances[i, j].item()} for labels {i} and {j}; it must return numbers that are "
                "not negative (clamp the argument of an acos or a square root)."
            )
    return distances
