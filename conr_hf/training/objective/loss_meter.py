"""The logged figures of the losses: sums over micro-batches and processes, and gradients at the features."""

import math
from collections import defaultdict

import torch
from torch import Tensor
from transformers.utils import logging

from conr_hf.models.head import Head
from conr_hf.training.config.config import ConRConfig
from conr_hf.training.config.resolved_config import ResolvedConfig
from conr_hf.training.objective.batch import Batch
from conr_hf.utils.distributed import rank, sum_over_processes

logger = logging.get_logger(__name__)

DOMINATES = 1.0  # times the base loss's gradient at the features
DOMINATES_IN_A_SAMPLE = 2.0  # likewise, where a sample of anchors estimates it
_SUMS = (
    *("base", "conr", "anchors", "positives", "negatives", "rnc", "ranksim", "samples", "rows"),
    *("base_gradient", "conr_gradient", "conr_product", "rnc_gradient", "rnc_product"),
)


class LossMeter:
    """Sums of the logged figures since they were last read."""

    def __init__(self, args: ConRConfig, resolved: ResolvedConfig, device: torch.device) -> None:
        self._args, self._resolved, self._device = args, resolved, device
        self._sums: defaultdict[str, Tensor | float] = defaultdict(float)
        self._step: defaultdict[str, Tensor | float] = defaultdict(float)
        self._warned = False

    def add(self, **sums: Tensor | float) -> None:
        """Adds to sums of the step by their names, such as `conr` and `rows`."""
        for name, value in sums.items():
            self._step[name] = self._step[name] + value

    def end_step(self, skipped: bool) -> None:
        """Takes in the sums of the step, unless it was skipped."""
        step, self._step = self._step, defaultdict(float)
        if not skipped:
            for name, value in step.items():
                self._sums[name] = self._sums[name] + value

    def read(self) -> dict[str, float]:
        """
        The figures to log, over all micro-batches and processes since the last call, and a new start: `base_loss`, in
        label scales for L1; where they were computed, `conr_loss`, `rnc_loss` and `ranksim_loss` without their
        weights, `conr_anchors`, their share of the rows, and `conr_positives` and `conr_negatives`, means per anchor;
        `conr_gradient`, the norm of ConR's gradient at the features, times its weight, in that of the base loss, and
        `conr_cosine`, the cosine between the two; and the same of Rank-N-Contrast, `rnc_gradient` and `rnc_cosine`.
        With a sample of anchors those of ConR and Rank-N-Contrast are estimates of the same over all rows, by sums
        without bias; a gradient that is smaller than the sample's noise has no cosine.
        """
        own = [torch.as_tensor(self._sums[name], dtype=torch.float32, device=self._device) for name in _SUMS]
        sums = dict(zip(_SUMS, sum_over_processes(torch.stack(own)).tolist(), strict=True))
        self._sums.clear()
        figures = {"base_loss": sums["base"] / sums["samples"]} if sums["samples"] else {}  # none with the user's loss
        rows = sums["rows"]
        if rows and self._resolved.weight > 0:
            figures |= {"conr_loss": sums["conr"] / rows, "conr_anchors": sums["anchors"] / rows}
            for name in ("positives", "negatives"):
                figures[f"conr_{name}"] = sums[name] / max(sums["anchors"], 1)
        for name, weight in {"conr": self._resolved.weight, "rnc": self._resolved.rnc_weight}.items():
            if sums["base_gradient"] and weight > 0:
                square = max(sums[f"{name}_gradient"], 0.0)
                figures[f"{name}_gradient"] = math.sqrt(square / sums["base_gradient"])
                if square > 0:
                    cosine = sums[f"{name}_product"] / math.sqrt(square * sums["base_gradient"])
                    figures[f"{name}_cosine"] = min(max(cosine, -1.0), 1.0)
        limit = DOMINATES_IN_A_SAMPLE if self._resolved.conr_anchors > 0 else DOMINATES
        if figures.get("conr_gradient", 0.0) > limit and not self._warned and rank() == 0:
            self._warned = True
            logger.warning(
                f"ConR's gradient at the features is {figures['conr_gradient']:.1f} times that of the base loss, "
                f"which may then hardly be learned: lower conr_weight ({self._resolved.weight:g})."
            )
        if rows and self._resolved.rnc_weight > 0:
            figures["rnc_loss"] = sums["rnc"] / rows
        if rows and self._args.ranksim_weight > 0:
            figures["ranksim_loss"] = sums["ranksim"] / rows
        return figures


class GradientProbe:
    """Measures the gradients of a batch's losses at the features, at the cost of a backward for each loss."""

    def __init__(self, batch: Batch, head: Head) -> None:
        self._batch, self._head = batch, head
        self._base: Tensor
        self.sums: dict[str, Tensor] = {}  # for the meter

    def measure_base(self, loss: Tensor, scale: Tensor | float) -> None:
        """Measures the base loss, as a mean over the samples that are compared: times `scale`."""
        reached = self._batch.features if self._batch.is_map else self._batch.predictions
        (gradient,) = torch.autograd.grad(loss, reached, retain_graph=True)
        if not self._batch.is_map:  # from predictions back to features
            gradient = gradient.reshape(len(gradient), -1) @ self._head.weight.detach().flatten(1)
        self._base = gradient * scale
        self.sums["base_gradient"] = self._base.square().sum()

    def measure(self, name: str, loss: Tensor) -> None:
        """Measures a regulariser over all rows, times its weight, `"conr"` or `"rnc"`, beside the base loss."""
        gradient = self._gradient(loss)
        self.sums[f"{name}_gradient"] = gradient.square().sum()
        self.sums[f"{name}_product"] = (gradient * self._base).sum()

    def measure_sample(self, name: str, parts: tuple[Tensor, Tensor], counts: tuple[int, int], share: float) -> None:
        """
        Estimates the same from a sample of anchors, a `share` of all rows: from the two `parts` of the loss over so
        many of them. An anchor's own gradient makes the sum's square many times what it is over all rows. The product
        of two parts is free of it; the sum's square has it in the right proportion for the share of all rows.
        """
        one, other = self._gradient(parts[0]), self._gradient(parts[1])
        between = sum(counts) ** 2 / (counts[0] * counts[1]) * (one * other).sum()
        gradient = one + other
        self.sums[f"{name}_gradient"] = (1 - share) * between + share * gradient.square().sum()
        self.sums[f"{name}_product"] = (gradient * self._base).sum()

    def _gradient(self, loss: Tensor) -> Tensor:
        return torch.autograd.grad(loss, self._batch.features, retain_graph=True)[0]
