"""Losses: tensors in, tensors out. They need nothing but torch."""

from conr_hf.losses.balanced_mse import Mixture, bmc, bni, gai, make_mixture
from conr_hf.losses.conr import ConRLoss, PairStatistics, conr_loss
from conr_hf.losses.gradient_share import GradientShare
from conr_hf.losses.pairs import label_distance, within_window
from conr_hf.losses.ranking import rank_n_contrast, ranksim
from conr_hf.losses.regression import focal_l1, focal_mse, huber, l1, mse

__all__ = [
    "ConRLoss",
    "GradientShare",
    "Mixture",
    "PairStatistics",
    "bmc",
    "bni",
    "conr_loss",
    "focal_l1",
    "focal_mse",
    "gai",
    "huber",
    "l1",
    "label_distance",
    "make_mixture",
    "mse",
    "rank_n_contrast",
    "ranksim",
    "within_window",
]
