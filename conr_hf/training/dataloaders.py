"""`ImageTrainer`: a `Trainer` fed with images and labels, rows in a fixed order however many processes there are."""

import copy
import itertools
import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset
from transformers import (
    BaseImageProcessor,
    PreTrainedModel,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_utils import EvalLoopOutput

from conr_hf.data.cmixup import CMixup
from conr_hf.data.collator import ImageCollator, UserCollator
from conr_hf.data.columns import Row, column_names
from conr_hf.data.dataset import SampledDataset
from conr_hf.data.sampler import TrainingSampler
from conr_hf.data.streaming_dataset import StreamingDataset
from conr_hf.data.validation import check_has_rows, check_train_labels, labels_of
from conr_hf.imbalance import Bins
from conr_hf.models.factory import dummy_pixels
from conr_hf.training.config.config import ConRConfig
from conr_hf.training.data_module import DataSets, LabelledTrainer, named
from conr_hf.training.dataloader_workers import Workers, _begin_worker
from conr_hf.utils.distributed import rank, world_size


class ImageTrainer(LabelledTrainer):
    """
    What [`ConRTrainer`] does with data: takes raw rows, checks them, orders them, makes views and counts samples.

    Args:
        model, args, data_collator, train_dataset, eval_dataset, processing_class: As in [`ConRTrainer`].
        kwargs: Passed to `Trainer`.
    """

    model: PreTrainedModel
    processing_class: BaseImageProcessor | None
    order: TrainingSampler | StreamingDataset  # what the rows of an epoch come from, in which order

    def __init__(
        self,
        model: Any,
        args: ConRConfig,
        data_collator: Callable[[list[Row]], dict[str, Any]] | None,
        train_dataset: Dataset[Row] | None,
        eval_dataset: DataSets | None,
        processing_class: BaseImageProcessor | None,
        train_labels: npt.ArrayLike | Bins | None,
        **kwargs: Any,
    ) -> None:
        data_sets = named(train_dataset, eval_dataset)
        is_stream = isinstance(train_dataset, IterableDataset)
        for name, dataset in data_sets.items():
            if not (is_stream and dataset is train_dataset):
                check_has_rows(dataset, name)
        # Set early: super().__init__() calls model_init, which adopts the head by a forward of these pixels.
        self.args, self.processing_class, self._user_collator = args, processing_class, data_collator
        self.train_dataset, self.eval_dataset = train_dataset, eval_dataset
        self._usable = {}
        self._streamed_labels = None
        self.workers = Workers()
        if train_labels is not None:
            check_train_labels(train_labels, args, is_stream)
            self._streamed_labels = labels_of(train_labels)
        self.dummy_pixels = self._first_pixels(list(data_sets.values()))
        # A stream has no length until its labels are read: Trainer would ask for max_steps.
        indexed = None if is_stream else train_dataset
        super().__init__(model, args, self.collator(), indexed, eval_dataset, processing_class, **kwargs)
        self.train_dataset = train_dataset
        if is_stream and self.accelerator.split_batches and self.args.world_size > 1:
            raise ValueError("split_batches is true, with which a stream's length is not known. Leave it out.")
        self.add_callback(_EpochForSampler(self))

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        if self.accelerator.dispatch_batches:
            raise ValueError("dispatch_batches is true; leave it unset, since each process reads its own rows.")
        self.accelerator.dataloader_config.dispatch_batches = False  # unset, a stream's batches are dispatched

    def collator(self) -> ImageCollator | UserCollator:
        """What makes batches at the present settings."""
        if self._user_collator is not None:
            return UserCollator(self._user_collator)
        args = self.args
        return ImageCollator(
            self.processing_class,
            args.image_column,
            args.label_columns,
            args.num_views,
            args.horizontal_flip,
            args.crop_padding,
            args.seed,
            args.sign_flipped_columns(),
            args.map_scale,
            args.map_invalid,
            makes_views=args.device.type == "cpu",
        )

    def global_batch(self) -> int:
        """Samples of a micro-batch over all processes."""
        return self._train_batch_size * (1 if self.accelerator.split_batches else self.args.world_size)

    def sampling_seed(self) -> int:
        """Seed of which row comes when."""
        return self.args.data_seed if self.args.data_seed is not None else self.args.seed

    def row_weights(self) -> np.ndarray | None:
        """How often each usable training row is drawn beside others, `(N,)`; `None`: each once an epoch."""
        return None

    def mixing(self) -> CMixup | None:
        """What mixes training images, if they are mixed."""
        return None

    def steps_per_epoch(self) -> int:
        """Optimizer steps in an epoch."""
        rows = self.training_rows()
        batch = self.global_batch()
        batches = rows // batch if self.args.dataloader_drop_last else math.ceil(rows / batch)
        return max(math.ceil(batches / self.args.gradient_accumulation_steps), 1)

    def samples(self, batch: dict[str, Any]) -> list[int]:
        """Samples of this micro-batch on each process; repeats, which come last in an epoch, do not count."""
        size = len(batch["labels"])
        if "position" not in batch:
            return [size] * world_size()
        left = self.order.count - (batch["position"] - rank() * size)
        return [min(max(left - process * size, 0), size) for process in range(world_size())]

    def rows_at(self, epoch: int, position: int, count: int) -> list[int]:
        """
        The training set's rows that are drawn from `position` on in an epoch's global order; of a stream, these
        positions.
        """
        if isinstance(self.order, StreamingDataset):
            return list(range(position, position + count))
        indices = self.usable(self.train_dataset, "train_dataset")[0].indices
        return [int(indices[row]) for row in self.order.rows_at(epoch, position, count)]

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        try:
            with self.workers.naming_dead():
                return super().evaluation_loop(*args, **kwargs)
        finally:  # its workers end with it
            self.workers.end("evaluation")

    def get_batch_samples(
        self, epoch_iterator: Iterator[dict[str, Any]], num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Any]], int]:
        """The micro-batches of a step, and its number of samples over all processes."""
        batches = list(itertools.islice(epoch_iterator, num_batches))
        return batches, sum(sum(self.samples(batch)) for batch in batches)

    def finish_feeding(self) -> None:
        """After training: ends the workers, which would last as long as the trainer."""
        self.callback_handler.train_dataloader = None
        self.accelerator._dataloaders.clear()

    def _first_pixels(self, data_sets: list[Dataset[Row]]) -> Tensor:
        ready = self._user_collator is not None or any("pixel_values" in column_names(data) for data in data_sets)
        if self.processing_class is not None and not ready:
            return dummy_pixels(self.processing_class)
        if not data_sets:
            raise ValueError("Give a data set or processing_class, so that it is known what the model takes in.")
        first = next(iter(data_sets[0])) if isinstance(data_sets[0], IterableDataset) else data_sets[0][0]
        if self._user_collator is None and "pixel_values" in first:
            pixels = torch.as_tensor(first["pixel_values"], dtype=torch.float32)
        else:
            pixels = self.collator()([(None, first)])["pixel_values"]
        return pixels.reshape(-1, *pixels.shape[-3:])[:1]

    def _get_dataloader(self, dataset: Dataset[Row], description: str, *args: Any, **kwargs: Any) -> DataLoader[Any]:
        training = kwargs.get("is_training", False)
        rows: SampledDataset | StreamingDataset
        if training and isinstance(dataset, IterableDataset):
            rows = self.order = self._streamed_rows(dataset)
        else:
            rows, _ = self.usable(dataset, "train_dataset" if training else f"{description.lower()} data")
            rows = copy.copy(rows)  # the training set may be evaluated while its workers last
        if self.args.dataloader_num_workers > 0:
            self.workers.begin("training" if training else "evaluation", rows, self.args.dataloader_num_workers)
        drop_last, persistent = self.args.dataloader_drop_last, self.args.dataloader_persistent_workers
        self.args.dataloader_drop_last = drop_last and training  # evaluation keeps every row
        # Trainer would keep the loader of evaluation with its workers, and its rows whatever data is given later.
        self.args.dataloader_persistent_workers = (
            training and persistent is not False and self.args.dataloader_num_workers > 0
        )
        try:
            loader = super()._get_dataloader(rows, description, *args, **kwargs)
            read_by: Any = loader.base_dataloader  # type: ignore[attr-defined]
            read_by.worker_init_fn = partial(_begin_worker, read_by.worker_init_fn)
            # Workers are seeded when they start: from the global generator, dropout would hang on how often they do.
            read_by.generator = torch.Generator().manual_seed(self.args.seed) if training else None
            return loader
        finally:
            self.args.dataloader_drop_last, self.args.dataloader_persistent_workers = drop_last, persistent

    def _get_train_sampler(self, train_dataset: Any = None) -> TrainingSampler:
        rows = train_dataset if train_dataset is not None else self.usable(self.train_dataset, "train_dataset")[0]
        uneven = self.args.world_size == 1 or self.args.dataloader_drop_last
        self.order = TrainingSampler(
            rows,
            self.sampling_seed(),
            shuffle=self.args.train_sampling_strategy == "random",
            multiple=1 if uneven else self.global_batch(),
            weights=self.row_weights(),
            mixing=self.mixing(),
        )
        return self.order

    def _streamed_rows(self, stream: IterableDataset[Row]) -> StreamingDataset:
        return StreamingDataset(
            stream,
            "train_dataset",
            self.args.image_column if self._user_collator is None else None,
            self.args.label_columns,
            count=len(self.training_labels()),
            batch=self.global_batch(),
            process=rank(),
            processes=world_size(),
            drop_last=self.args.dataloader_drop_last,
            skip_bad_rows=self.args.skip_bad_rows,
        )

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        if isinstance(self.data_collator, ImageCollator) and not self.data_collator.makes_views:
            inputs = self.data_collator.with_views(inputs)
        # DeepSpeed would round labels to the precision of its mixed-precision mode.
        exact = {name: inputs[name].float() for name in ("labels", "sample_weight") if name in inputs}
        return {**super()._prepare_inputs(inputs), **{name: t.to(self.args.device) for name, t in exact.items()}}


class _EpochForSampler(TrainerCallback):
    """Tells the sampler its epoch before the loader's iterator is made, after a resume in mid-epoch too."""

    def __init__(self, trainer: ImageTrainer) -> None:
        self.trainer = trainer
        self.epoch = self.skipped = 0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.epoch = int(state.epoch or 0)
        steps = 0 if args.ignore_data_skip else state.global_step % self.trainer.steps_per_epoch()
        self.skipped = steps * args.gradient_accumulation_steps

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        order = self.trainer.order
        order.epoch = self.epoch
        if isinstance(order, StreamingDataset):  # other rows are not read where they are left out
            order.skipped = self.skipped
        self.skipped = 0
        self.epoch += 1  # counted, as an epoch that a callback cuts short ends before state.epoch is whole
