"""Callbacks of `ConRTrainer`, in the order in which it registers them: epoch, interrupt, NaN guard, objective, EMA."""

from conr_hf.training.callbacks.ema import EMACallback
from conr_hf.training.callbacks.epoch import SetEpochCallback
from conr_hf.training.callbacks.interrupt import InterruptCallback
from conr_hf.training.callbacks.nan_guard import NanGuardCallback
from conr_hf.training.callbacks.objective import ObjectiveCallback

__all__ = ["EMACallback", "InterruptCallback", "NanGuardCallback", "ObjectiveCallback", "SetEpochCallback"]
