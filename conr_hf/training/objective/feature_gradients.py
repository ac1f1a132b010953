"""Gradients of the losses at the features: their norms, and the weights of terms that have a share of the gradient."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from conr_hf.losses.gradient_share import GradientShare
from conr_hf.training.config.resolved_config import ResolvedConfig
from conr_hf.utils.distributed import GatherGroup, sum_over_processes, world_size


class FeatureGradient(NamedTuple):
    """A term's gradient at this process's features, of the terms of all processes of its group."""

    gradient: Tensor  # of the features' shape
    square: Tensor  # of its norm, over all rows: of a sample of anchors an estimate, perhaps below 0
    noisy_square: Tensor  # of its norm, with what the sample of anchors adds


def feature_gradient(
    parts: Sequence[Tensor], features: Tensor, counts: tuple[int, int], rows_per_anchor: float, copies: int = 1
) -> FeatureGradient:
    """
    The gradient of a term that is the sum of `parts`, one or two, at `features`. `copies`: so many processes compute
    all of it, each the same. (The gradient that is handed to RankSim must not depend on them: its own is not linear.)

    Two are of a sample of anchors, so many of them (`counts`), each of which stands for `rows_per_anchor` rows. An
    anchor's own gradient makes the sum's square many times what it is over all rows. The product of two parts is free
    of it; the sum's square has it in the right proportion for the share of all rows.
    """
    gradients = [torch.autograd.grad(part, features, retain_graph=True)[0] / copies for part in parts]
    if len(gradients) == 1:
        square = gradients[0].square().sum()
        return FeatureGradient(gradients[0], square, square)
    one, other = gradients
    gradient, share = one + other, 1 / rows_per_anchor
    between = sum(counts) ** 2 / (counts[0] * counts[1]) * (one * other).sum()
    noisy = gradient.square().sum()
    return FeatureGradient(gradient, (1 - share) * between + share * noisy, noisy)


class GradientShares:
    """The terms of a run that have a share of the gradient in place of a weight, by their names in the log."""

    def __init__(self, resolved: ResolvedConfig, group: GatherGroup) -> None:
        shares = {
            "conr": resolved.conr_gradient_share,
            "rnc": resolved.rnc_gradient_share,
            "ranksim": resolved.ranksim_gradient_share,
        }
        self.terms = {name: GradientShare(share) for name, share in shares.items() if share > 0}
        self._group = group
        self._step: dict[str, Tensor] = {}  # squared norms so far

    def weigh(
        self,
        gradients: dict[str, FeatureGradient],
        of_base: Tensor,  # the base loss's gradient, of the features' shape
        rows_per_anchor: float,
        samples: Tensor | float,  # the micro-batch's share of the step's samples
    ) -> dict[str, Tensor]:
        """
        The weights of terms in a micro-batch, scalars, the same on all processes of the group. Gradients are those of
        means over the micro-batch's samples.
        """
        base = of_base.square().sum()
        own = torch.stack([torch.stack([base, of.square, of.noisy_square]) for of in gradients.values()])
        weights = {}
        for name, (base, square, noisy) in zip(gradients, sum_over_processes(own, self._group), strict=True):
            squares = torch.stack([base, square.maximum(noisy / rows_per_anchor), noisy])
            weights[name] = self.terms[name].weight_of(squares)
            self._step[name] = self._step.get(name, torch.zeros_like(squares)) + squares * samples**2
        return weights

    def end_step(self, skipped: bool) -> None:
        """Takes in the norms of the step, over all processes, unless it was skipped."""
        step, self._step = self._step, {}
        if not step:
            return
        squares = torch.stack(list(step.values()))
        if len(self._group.ranks) < world_size():  # or each process has those of all already
            squares = sum_over_processes(squares / len(self._group.ranks))
        if not skipped:
            for name, of_term in zip(step, squares, strict=True):
                self.terms[name].update(of_term)

    def state(self) -> dict[str, Tensor]:
        """What a resumed run goes on with: the running means of each term, `(3,)`."""
        return {name: term.means.cpu() for name, term in self.terms.items()}

    def load(self, state: dict[str, Tensor]) -> None:
        """Goes on where [`~GradientShares.state`] was taken."""
        for name, term in self.terms.items():
            term.means = state[name]
