"""The logged figures of the losses: sums over micro-batches and processes, and gradients at the features."""

import math
from collections import defaultdict

import torch
from torch import Tensor
from transformers.utils import logging

from conr_hf.training.config.config import ConRConfig
from conr_hf.training.config.resolved_config import ResolvedConfig
from conr_hf.training.objective.feature_gradients import FeatureGradient
from conr_hf.utils.distributed import rank, sum_over_processes

logger = logging.get_logger(__name__)

DOMINATES = 1.0  # times the base loss's gradient at the features
DOMINATES_IN_A_SAMPLE = 2.0  # likewise, where a sample of anchors estimates it
_SUMS = (
    *("base", "conr", "anchors", "positives", "negatives", "rnc", "ranksim", "samples", "rows"),
    *("base_gradient", "conr_gradient", "conr_product", "rnc_gradient", "rnc_product"),
    *("ranksim_gradient", "ranksim_product", "conr_weight", "rnc_weight", "ranksim_weight"),
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

    def add_gradient(self, name: str, weight: Tensor | float, found: FeatureGradient, of_base: Tensor) -> None:
        """Adds the gradient at the features of a term, times its weight, beside that of the base loss."""
        sums = {"gradient": weight**2 * found.square, "product": weight * (found.gradient * of_base).sum()}
        self.add(**{f"{name}_{what}": value for what, value in sums.items()})

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
        `conr_cosine`, the cosine between the two; and the same of Rank-N-Contrast, `rnc_gradient` and `rnc_cosine`. Of
        a term with a share of the gradient, RankSim too, also its weight, `conr_weight_now`, a mean over rows.
        With a sample of anchors those of ConR and Rank-N-Contrast are estimates of the same over all rows, by sums
        without bias; a gradient that is smaller than the sample's noise has no cosine.
        """
        own = [torch.as_tensor(self._sums[name], dtype=torch.float32, device=self._device) for name in _SUMS]
        sums = dict(zip(_SUMS, sum_over_processes(torch.stack(own)).tolist(), strict=True))
        self._sums.clear()
        figures = {"base_loss": sums["base"] / sums["samples"]} if sums["samples"] else {}  # none with the user's loss
        rows = sums["rows"]
        if rows and self._resolved.uses_conr:
            figures |= {"conr_loss": sums["conr"] / rows, "conr_anchors": sums["anchors"] / rows}
            for name in ("positives", "negatives"):
                figures[f"conr_{name}"] = sums[name] / max(sums["anchors"], 1)
        shares = {
            "conr": self._resolved.conr_gradient_share,
            "rnc": self._resolved.rnc_gradient_share,
            "ranksim": self._resolved.ranksim_gradient_share,
        }
        fixed = {"conr": self._resolved.weight, "rnc": self._resolved.rnc_weight, "ranksim": 0.0}
        for name, share in shares.items():
            if rows and share > 0:
                figures[f"{name}_weight_now"] = sums[f"{name}_weight"] / rows
            if sums["base_gradient"] and (fixed[name] > 0 or share > 0):
                square = max(sums[f"{name}_gradient"], 0.0)
                figures[f"{name}_gradient"] = math.sqrt(square / sums["base_gradient"])
                if square > 0:
                    cosine = sums[f"{name}_product"] / math.sqrt(square * sums["base_gradient"])
                    figures[f"{name}_cosine"] = min(max(cosine, -1.0), 1.0)
        limit = DOMINATES_IN_A_SAMPLE if self._resolved.conr_anchors > 0 else DOMINATES
        if fixed["conr"] > 0 and figures.get("conr_gradient", 0.0) > limit and not self._warned and rank() == 0:
            self._warned = True
            logger.warning(
                f"ConR's gradient at the features is {figures['conr_gradient']:.1f} times that of the base loss, "
                f"which may then hardly be learned: lower conr_weight ({self._resolved.weight:g})."
            )
        if rows and self._resolved.uses_rnc:
            figures["rnc_loss"] = sums["rnc"] / rows
        if rows and (self._args.ranksim_weight > 0 or shares["ranksim"] > 0):
            figures["ranksim_loss"] = sums["ranksim"] / rows
        return figures
