"""`DataLoaders`: collator, sampler and data loaders, with rows in a fixed order however many processes there are."""

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset
from transformers import BaseImageProcessor

from conr_hf.data.cmixup import CMixup
from conr_hf.data.collator import ImageCollator, UserCollator
from conr_hf.data.columns import Row, column_names
from conr_hf.data.dataset import SampledDataset
from conr_hf.data.sampler import TrainingSampler
from conr_hf.data.streaming_dataset import StreamingDataset
from conr_hf.imbalance import density_weights
from conr_hf.models.factory import dummy_pixels
from conr_hf.training.config.config import ConRConfig
from conr_hf.training.config.resolved_config import lds_kernel
from conr_hf.training.data_module import DataModule
from conr_hf.training.dataloader_workers import start_worker
from conr_hf.utils.distributed import rank, world_size


class DataLoaders:
    """
    What feeds a trainer: which row comes when, in which batch, and how many samples of a batch count. `global_batch`
    returns the samples of a micro-batch over all processes, which may change between two calls of `train()`.
    """

    def __init__(
        self, args: ConRConfig, data: DataModule, processor: BaseImageProcessor | None, global_batch: Callable[[], int]
    ) -> None:
        self.args, self.data, self.processor, self.global_batch = args, data, processor, global_batch
        self.order: TrainingSampler | StreamingDataset  # where the rows of an epoch come from, and in which order

    def collator(self) -> ImageCollator | UserCollator:
        """What makes batches at the present settings."""
        if self.data.data_collator is not None:
            return UserCollator(self.data.data_collator)
        args, options = self.args, self.data.read_options()
        return ImageCollator(
            self.processor,
            args.image_column,
            args.label_columns,
            args.num_views,
            args.augmentation_settings(),
            args.seed,
            args.sign_flipped_columns(),
            args.map_scale,
            args.map_invalid,
            makes_views=args.device.type == "cpu" or self.data.transform is not None,
            image_mode=options["mode"],
            image_range=options["image_range"],
            transform=self.data.transform,
        )

    def dummy_pixels(self) -> Tensor:
        """Pixels of one image as the model takes them, `(1, C, H, W)`."""
        named, own = self.data.named_datasets(), self.data.data_collator is not None
        data_sets = list(named.values())
        ready = own or any("pixel_values" in column_names(dataset, name) for name, dataset in named.items())
        if self.processor is not None and self.data.model is not None and not ready:
            return dummy_pixels(self.processor, self.data.model.config)
        if not data_sets:
            raise ValueError("Give a data set or processing_class, so that it is known what the model takes in.")
        first = next(iter(data_sets[0])) if isinstance(data_sets[0], IterableDataset) else data_sets[0][0]
        if not own and "pixel_values" in first:
            pixels = torch.as_tensor(first["pixel_values"], dtype=torch.float32)
        else:
            pixels = self.collator()([(None, first)])["pixel_values"]
        return pixels.reshape(-1, *pixels.shape[-3:])[:1]

    # ---- Which row comes when ------------------------------------------------------------------------------------

    def rows(self, dataset: Dataset[Row], is_training: bool, description: str) -> SampledDataset | StreamingDataset:
        """What a data loader reads: the valid rows of a data set, or the epochs of a stream."""
        if is_training and isinstance(dataset, IterableDataset):
            own_rows = self.data.data_collator is not None
            self.order = StreamingDataset(
                dataset,
                "train_dataset",
                None if own_rows else self.args.image_column,
                self.args.label_columns,
                count=self.data.training_rows(),
                batch=self.global_batch(),
                process=rank(),
                processes=world_size(),
                drop_last=self.args.dataloader_drop_last,
                skip_bad_rows=self.args.skip_bad_rows,
                image_range=self.args.image_range,
            )
            return self.order
        if isinstance(dataset, SampledDataset):  # rows that were read and found valid
            return dataset
        rows, _ = self.data.load_split(dataset, "train_dataset" if is_training else f"{description.lower()} data")
        return copy.copy(rows)  # the training set may be evaluated while its workers last

    def train_sampler(self, rows: SampledDataset | None = None) -> TrainingSampler:
        """The sampler of the training rows; [`~DataLoaders.order`] is it from now on."""
        if rows is None:
            assert self.data.train_dataset is not None
            rows, _ = self.data.load_split(self.data.train_dataset, "train_dataset")
        mixing = None
        if self.args.cmixup_alpha > 0:
            resolved = self.data.resolved
            labels = resolved.to_common_scale(torch.from_numpy(self.data.training_labels())).numpy()
            mixing = CMixup(labels, self.args.cmixup_alpha, resolved.cmixup_bandwidth, self.sampling_seed())
        uneven = self.args.world_size == 1 or self.args.dataloader_drop_last
        self.order = TrainingSampler(
            rows,
            self.sampling_seed(),
            shuffle=self.args.train_sampling_strategy == "random",
            multiple=1 if uneven else self.global_batch(),
            weights=self.row_weights(),
            mixing=mixing,
        )
        return self.order

    def sampling_seed(self) -> int:
        """Seed of the order of rows."""
        return self.args.data_seed if self.args.data_seed is not None else self.args.seed

    def row_weights(self) -> np.ndarray | None:
        """How often each valid training row is drawn beside others, `(N,)`; `None`: each once an epoch."""
        data, resolved = self.data, self.data.resolved
        if resolved.resample == "none":
            return None
        weights = density_weights(data.training_labels(), data.bins, resolved.resample, lds_kernel(self.args))
        if not data.labels_are_maps:
            return weights
        # A map is drawn by the mean over its pixels.
        return np.bincount(data.pixel_rows(), weights) / np.bincount(data.pixel_rows())

    # ---- What a batch holds --------------------------------------------------------------------------------------

    def steps_per_epoch(self) -> int:
        """Optimizer steps of an epoch."""
        rows, batch = self.data.training_rows(), self.global_batch()
        batches = rows // batch if self.args.dataloader_drop_last else math.ceil(rows / batch)
        return max(math.ceil(batches / self.args.gradient_accumulation_steps), 1)

    def sample_counts(self, batch: dict[str, Any]) -> list[int]:
        """Samples of this micro-batch on each process; repeats, which come last in an epoch, do not count."""
        size = len(batch["labels"])
        if "position" not in batch:
            return [size] * world_size()
        left = self.order.count - (batch["position"] - rank() * size)
        return [min(max(left - process * size, 0), size) for process in range(world_size())]

    def rows_at(self, epoch: int, position: int, count: int) -> list[int]:
        """The training rows drawn from `position` on in an epoch's global order; of a stream, these positions."""
        if isinstance(self.order, StreamingDataset):
            return list(range(position, position + count))
        assert self.data.train_dataset is not None
        indices = self.data.load_split(self.data.train_dataset, "train_dataset")[0].indices
        return [int(indices[row]) for row in self.order.rows_at(epoch, position, count)]

    # ---- Data loaders --------------------------------------------------------------------------------------------

    @contextmanager
    def loader_settings(self, is_training: bool) -> Iterator[None]:
        """Around the making of a data loader: the settings under which `Trainer` makes it right."""
        args = self.args
        drop_last, persistent = args.dataloader_drop_last, args.dataloader_persistent_workers
        args.dataloader_drop_last = drop_last and is_training  # evaluation keeps every row
        # Trainer would keep the loader of evaluation with its workers, and its rows whatever data is given later.
        has_workers = args.dataloader_num_workers > 0
        args.dataloader_persistent_workers = is_training and persistent is not False and has_workers
        try:
            yield
        finally:
            args.dataloader_drop_last, args.dataloader_persistent_workers = drop_last, persistent

    def prepare_workers(self, loader: DataLoader[Any], is_training: bool) -> None:
        """Lets a loader's workers outlive signals, and seeds them apart from dropout."""
        base: Any = loader.base_dataloader  # type: ignore[attr-defined]
        base.worker_init_fn = partial(start_worker, base.worker_init_fn)
        # Workers are seeded when they start: from the global generator, dropout would depend on how often they do.
        base.generator = torch.Generator().manual_seed(self.args.seed) if is_training else None
