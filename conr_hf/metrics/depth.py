"""Errors of depth maps, accumulated batch by batch."""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from conr_hf.imbalance.bins import FloatArray
from conr_hf.metrics.validation import DIVERGED, as_float64, refuse_where, reshaped

SMALLEST_SHARE = 1e-3
FIGURES = ("abs_rel", "log10", "delta1", "delta2", "delta3")


class DepthErrors:
    """
    Errors over the pixels of many depth maps: `update` with each batch, then `compute`.

    All pixels count alike, whichever map they are from. For the shots of depth, keep one for each shot and pass
    `mask & shot`.

    Only `sums` is kept, a float64 `np.ndarray` of shape `(8,)`. Over several processes, add them up:
    `errors.sums = accelerator.reduce(torch.tensor(errors.sums, device=accelerator.device)).cpu().numpy()`.

    Example:
        >>> errors = DepthErrors()
        >>> errors.update([[1.0, 2.0]], [[1.0, 4.0]])
        >>> errors.update([[3.0, 9.9]], [[3.0, 0.0]], mask=[[True, False]])
        >>> found = errors.compute()
        >>> found["n"], round(found["mae"], 3), round(found["delta1"], 3)
        (3, 0.667, 0.667)
    """

    def __init__(self) -> None:
        self.sums: FloatArray = np.zeros(8)

    def update(
        self,
        predictions: npt.ArrayLike | Tensor,
        labels: npt.ArrayLike | Tensor,
        mask: npt.ArrayLike | Tensor | None = None,
    ) -> None:
        """
        Counts a batch.

        Args:
            predictions (`array_like` or `torch.Tensor` of any shape): Depths, in label units.
            labels (`array_like` or `torch.Tensor`):
                True depths, greater than 0 where the mask is true, in the shape of the predictions; axes of length 1,
                as in `(N, 1, H, W)` beside `(N, H, W)`, may be there or not.
            mask (`array_like` or `torch.Tensor`, *optional*):
                The pixels that count: booleans, or zeros and ones, in the shape of the labels. Unset: all.

        Raises:
            `ValueError`: For shapes that do not fit together, a mask of other numbers, and, where the mask is true,
                labels that are not greater than 0 and NaN or infinite values (naming the first one's index).
        """
        y = as_float64(labels)
        p = reshaped(as_float64(predictions), y, "predictions")
        counted = np.ones(y.shape) if mask is None else reshaped(as_float64(mask), y, "mask")
        if not np.isin(counted, (0, 1)).all():
            raise ValueError("The mask holds other numbers than 0 and 1. Pass booleans: true where a pixel counts.")
        inside = counted == 1
        refuse_where(inside & ~np.isfinite(p), p, "predictions", DIVERGED)
        without = inside & ~(np.isfinite(y) & (y > 0))
        refuse_where(without, y, "labels", "Leave pixels without depth out: mask=labels > 0.")
        predicted, true = torch.from_numpy(p[inside]), torch.from_numpy(y[inside])
        error = (predicted - true).abs()
        parts = [error.square(), error, *depth_errors(predicted, true)]
        self.sums += [len(true), *(float(part.sum()) for part in parts)]

    def compute(self) -> dict[str, float]:
        """
        Returns:
            `dict`: as [`depth_metrics`], over all batches; `{"n": 0}` if no pixel counted.
        """
        n = int(self.sums[0])
        if n == 0:
            return {"n": 0}
        mse, *means = (float(total) for total in self.sums[1:] / n)
        return {"n": n, "rmse": mse**0.5, **dict(zip(("mae", *FIGURES), means, strict=True))}


def depth_metrics(
    predictions: npt.ArrayLike | Tensor, labels: npt.ArrayLike | Tensor, mask: npt.ArrayLike | Tensor | None = None
) -> dict[str, float]:
    """
    Errors of depth maps over the pixels of a mask.

    - `n`: pixels;
    - `rmse`, `mae`: root of the mean squared error, and mean absolute error, in label units;
    - `abs_rel`: mean of |p - y| / y;
    - `log10`: mean of |log10 p - log10 y|;
    - `delta1`, `delta2`, `delta3`: share of pixels with max(p / y, y / p) <= 1.25, 1.25^2, 1.25^3.

    For `log10` and the deltas a prediction smaller than a thousandth of its label, 0 and negative ones among them,
    counts as that thousandth: it is a miss of every delta, and adds 3 to the sum behind `log10`.

    Args:
        predictions (`array_like` or `torch.Tensor` of any shape): As in [`~DepthErrors.update`].
        labels (`array_like` or `torch.Tensor`): As in [`~DepthErrors.update`].
        mask (`array_like` or `torch.Tensor`, *optional*): As in [`~DepthErrors.update`].

    Returns:
        `dict`: of plain numbers, as above; `{"n": 0}` if no pixel counts.

    Raises:
        `ValueError`: As [`~DepthErrors.update`].

    Source: Eigen et al., ["Depth Map Prediction from a Single Image"](https://arxiv.org/abs/1406.2283).

    Example:
        >>> found = depth_metrics([2.0, 1.0, -1.0], [2.0, 2.0, 1.0])
        >>> found["abs_rel"], round(found["log10"], 3), round(found["delta3"], 3)
        (0.8333333333333334, 1.1, 0.333)
    """
    errors = DepthErrors()
    errors.update(predictions, labels, mask)
    return errors.compute()


def depth_errors(p: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    """The terms of each pixel, `(N,)`, in the means of [`depth_metrics`], for each of `FIGURES`; all `y` exceed 0."""
    positive = torch.maximum(p, SMALLEST_SHARE * y)
    ratio = torch.maximum(positive / y, y / positive)
    return ((p - y).abs() / y, ratio.log10(), *(ratio <= 1.25**k for k in (1, 2, 3)))
