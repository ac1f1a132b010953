"""Losses: tensors in, tensors out. They need nothing but torch."""

from conr_hf.losses.conr import ConRLoss, PairStatistics, conr_loss
from conr_hf.losses.pairs import label_distance, within_window
from conr_hf.losses.regression import huber, l1, mse

__all__ = [
    "ConRLoss",
    "PairStatistics",
    "conr_loss",
    "huber",
    "l1",
    "label_distance",
    "mse",
    "within_window",
]
