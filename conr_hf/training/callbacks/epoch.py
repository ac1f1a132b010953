"""`SetEpochCallback`: gives the order of rows its epoch, and every epoch a logged loss."""

from typing import Any

from transformers import TrainerCallback, TrainerState

from conr_hf.data.streaming_dataset import StreamingDataset
from conr_hf.training.dataloaders import DataLoaders


class SetEpochCallback(TrainerCallback):
    """
    Sets the epoch before the loader's iterator is made: `set_epoch` does not reach a sampler of one's own after a
    resume halfway through an epoch on several processes. Logs at least once an epoch where it logs by steps.
    """

    def __init__(self, loaders: DataLoaders) -> None:
        self.loaders = loaders
        self._epoch = self._skipped = 0

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        self._epoch = int(state.epoch or 0)
        state.logging_steps = min(state.logging_steps, self.loaders.steps_per_epoch())
        steps = 0 if args.ignore_data_skip else state.global_step % self.loaders.steps_per_epoch()
        self._skipped = steps * args.gradient_accumulation_steps

    def on_epoch_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        order = self.loaders.order
        order.epoch = self._epoch
        if isinstance(order, StreamingDataset):  # a stream does not decode what a resumed run skips
            order.skipped = self._skipped
        self._skipped = 0
        self._epoch += 1  # counted, as an epoch that a callback ends early leaves state.epoch a fraction
