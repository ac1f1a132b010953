"""What a training step minimises: the base loss on standardised residuals plus ConR, and the figures of both."""

import numpy as np
import torch
from torch import Tensor

from conr_hf.distributed import gather_rows, rank, sum_over_processes
from conr_hf.imbalance import Bins, make_density
from conr_hf.losses import conr_loss, huber, l1, mse
from conr_hf.resolved import Resolved


def base_loss(predictions: Tensor, labels: Tensor, resolved: Resolved) -> Tensor:
    """
    The base loss of each row, on residuals divided by the label scale.

    Args:
        predictions (`torch.Tensor` of shape `(M,)` or `(M, T)`): In label units.
        labels (`torch.Tensor` like `predictions`): In label units.
        resolved ([`Resolved`]): Names the loss and holds the label scale.

    Returns:
        `torch.Tensor` of shape `(M,)`, without unit, mean over label dimensions.
    """
    residuals = (predictions - labels) / resolved.label_scale
    if resolved.base_loss == "huber":
        return huber(residuals, resolved.huber_delta / resolved.label_scale)
    return {"l1": l1, "mse": mse}[resolved.base_loss](residuals)


class Objective:
    """
    ConR and density weights for one run, and sums of the logged figures since they were last read.

    Args:
        resolved ([`Resolved`]): The run's settings.
        labels (`np.ndarray` of shape `(N,)` or `(N, T)`): Training labels, in label units.
        bins ([`Bins`]): Their bins.
        device (`torch.device`): Where training runs.
    """

    def __init__(self, resolved: Resolved, labels: np.ndarray, bins: Bins, device: torch.device) -> None:
        self.resolved = resolved
        self.base_density = make_density(labels, bins, resolved.reweight).to(device)
        self.conr_density = make_density(labels, bins, resolved.conr_reweight).to(device)
        self._device = device
        self._reset()

    def base(self, losses: Tensor, labels: Tensor, sample_weight: Tensor | None, samples: int, views: int) -> Tensor:
        """
        Weighted sum of the base loss over this process's samples, a sample being the mean of its views.

        Args:
            losses (`torch.Tensor` of shape `(B * V,)`): The base loss of each row.
            labels (`torch.Tensor` of shape `(B,)` or `(B, T)`): In label units.
            sample_weight (`torch.Tensor` of shape `(B,)`, *optional*): The user's weights.
            samples (`int`): How many of the B samples count; the rest repeat others.
            views (`int`): Views of each sample (V).

        Returns:
            `torch.Tensor`, a scalar.
        """
        weights = self.base_density.weights(labels)
        if sample_weight is not None:
            weights = weights * sample_weight
        total = (losses.reshape(-1, views).mean(1) * weights)[:samples].sum()
        self._base_sum += total.detach()
        self._samples += samples
        return total

    def conr(self, features: Tensor, labels: Tensor, predictions: Tensor, samples: list[int], views: int) -> Tensor:
        """
        This process's part of ConR over the rows of all processes; the parts sum to the whole.

        Args:
            features (`torch.Tensor` of shape `(B * V, D)`): The head's input.
            labels (`torch.Tensor` of shape `(B * V,)` or `(B * V, T)`): In label units.
            predictions (`torch.Tensor` like `labels`): In label units.
            samples (`list[int]`): How many of the B samples count, on each process.
            views (`int`): Views of each sample (V).

        Returns:
            `torch.Tensor`, a scalar, differentiable in the features of all processes.
        """
        size = len(features)
        parts = [slice(process * size, process * size + count * views) for process, count in enumerate(samples)]
        has_repeats = sum(samples) * views < size * len(samples)

        def of_all(rows: Tensor) -> Tensor:
            gathered = gather_rows(rows)
            return torch.cat([gathered[part] for part in parts]) if has_repeats else gathered

        settings = self.resolved
        first, anchors = sum(samples[: rank()]) * views, samples[rank()] * views
        loss, statistics = conr_loss(
            of_all(features),
            of_all(labels),
            of_all(predictions.detach()),
            of_all(self.conr_density.weights(labels)),
            window=settings.window,
            push_scale=settings.push_scale,
            temperature=settings.temperature,
            push=settings.push,
            formulation=settings.formulation,
            reduction=settings.reduction,
            distance=settings.distance,
            anchors=slice(first, first + anchors),
            return_statistics=True,
        )
        self._conr_sums += torch.stack([loss.detach() * sum(samples) * views, *(part.float() for part in statistics)])
        self._conr_rows += anchors
        return loss

    def read_figures(self) -> dict[str, float]:
        """
        The figures to log, over all micro-batches and processes since the last call, and a new start.

        Returns:
            `dict[str, float]`: `base_loss`, in label scales for L1; where ConR was computed, `conr_loss` without its
            weight, `conr_anchors`, their share of the rows, and `conr_positives` and `conr_negatives`, means per
            anchor.
        """
        counts = torch.tensor([self._samples, self._conr_rows], dtype=torch.float32, device=self._device)
        sums = sum_over_processes(torch.cat([self._base_sum.reshape(1), self._conr_sums, counts])).tolist()
        self._reset()
        base, conr, anchors, positives, negatives, samples, rows = sums
        figures = {"base_loss": base / samples} if samples else {}  # none with a loss of the user's own
        if rows:
            figures |= {
                "conr_loss": conr / rows,
                "conr_anchors": anchors / rows,
                "conr_positives": positives / max(anchors, 1),
                "conr_negatives": negatives / max(anchors, 1),
            }
        return figures

    def _reset(self) -> None:
        self._base_sum = torch.zeros((), device=self._device)
        self._conr_sums = torch.zeros(4, device=self._device)
        self._samples = self._conr_rows = 0
