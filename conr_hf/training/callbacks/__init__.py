"""Callbacks of `ConRTrainer`, in the order in which it registers them: progress, output folder, epoch, interrupt, NaN
guard, objective, EMA.
"""

from conr_hf.training.callbacks.ema import EMACallback
from conr_hf.training.callbacks.epoch import SetEpochCallback
from conr_hf.training.callbacks.interrupt import InterruptCallback
from conr_hf.training.callbacks.nan_guard import NanGuardCallback
from conr_hf.training.callbacks.objective import ObjectiveCallback
from conr_hf.training.callbacks.output_dir import OutputDirCallback
from conr_hf.training.callbacks.progress import use_brief_logging

__all__ = [
    "EMACallback",
    "InterruptCallback",
    "NanGuardCallback",
    "ObjectiveCallback",
    "OutputDirCallback",
    "SetEpochCallback",
    "use_brief_logging",
]
