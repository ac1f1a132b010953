"""`LabelledTrainer`: which rows of a trainer's data sets can be used, and the labels they have."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from torch.utils.data import Dataset, IterableDataset
from transformers import Trainer

from conr_hf.data.benchmarks.loading import benchmark_of
from conr_hf.data.benchmarks.registry import Benchmark
from conr_hf.data.columns import Row, column_names
from conr_hf.data.dataset import SampledDataset
from conr_hf.data.map_statistics import MapStatistics, has_maps
from conr_hf.data.validation import (
    check_columns,
    check_has_rows,
    check_one_size,
    streamed_labels,
    valid_maps,
    valid_rows,
)
from conr_hf.imbalance.bins import THRESHOLDS
from conr_hf.training.config.config import ConRConfig

DataSets = Dataset[Row] | dict[str, Dataset[Row]]


class _Usable(NamedTuple):
    """
    What is known of a data set: its usable rows, their labels, one number a row or maps, the benchmark that they are
    of where they are those of training, and whether every image that there is to read was read.
    """

    rows: SampledDataset
    labels: np.ndarray | None
    maps: MapStatistics | None
    benchmark: Benchmark | None
    images_were_read: bool


class LabelledTrainer(Trainer):
    """What [`ConRTrainer`] knows of its data: each row is checked, and its label read, once."""

    args: ConRConfig
    train_dataset: Any
    eval_dataset: Any
    _user_collator: Callable[[list[Row]], dict[str, Any]] | None
    _usable: dict[int, _Usable]
    _streamed_labels: np.ndarray | None

    def check_data(self) -> None:
        """Reads every label and image of all data sets once, so that no bad one ends a run in its middle."""
        for name, dataset in named(self.train_dataset, self.eval_dataset).items():
            if isinstance(dataset, IterableDataset):
                check_columns(dataset, name, self.args, with_image=self._user_collator is None)
                self.training_labels()
            else:
                self.usable(dataset, name, before_training=True)

    def usable(
        self, dataset: Dataset[Row], name: str, before_training: bool = False
    ) -> tuple[SampledDataset, np.ndarray | None]:
        """
        The rows of a data set that can be used, and their labels unless these are maps; each is read once. Before
        training, images are read and labels must be there; otherwise labels are read where there are any.
        """
        found = self._read(dataset, name, before_training)
        if found.maps is not None and name != "train_dataset":
            check_one_size(found.maps, np.asarray(found.rows.indices), name)
        return found.rows, found.labels

    @property
    def is_stream(self) -> bool:
        """Whether the training rows come as a stream."""
        return isinstance(self.train_dataset, IterableDataset)

    @property
    def labels_are_maps(self) -> bool:
        """Whether the labels of the training data, or else of the evaluation data, are maps."""
        data_sets = named(self.train_dataset, self.eval_dataset)
        return any(has_maps(dataset, self.args.label_columns, name) for name, dataset in list(data_sets.items())[:1])

    def all_labels(self) -> dict[str, np.ndarray]:
        """Labels of the training set, and of the evaluation sets whose labels are numbers in columns, by name."""
        found = {name: self.usable(rows, name)[1] for name, rows in named(None, self.eval_dataset).items()}
        read = {name: labels for name, labels in found.items() if labels is not None}
        return {"train_dataset": self.training_labels(), **read}

    def training_labels(self) -> np.ndarray:
        """
        Labels of the usable training rows, in label units: `np.ndarray` of shape `(N,)` or `(N, T)`. Of maps: those of
        the valid pixels, `(P,)`, float32; of more than 10 million of them a sample, the same share of each map's.
        """
        if self.is_stream:
            if self._streamed_labels is None:
                self._streamed_labels = streamed_labels(self.train_dataset, "train_dataset", self.args)
            return self._streamed_labels
        found = self._read(self.train_dataset, "train_dataset")
        labels = found.labels if found.maps is None else found.maps.values
        assert labels is not None
        return labels

    def training_rows(self) -> int:
        """Number of usable training rows."""
        if self.is_stream:
            return len(self.training_labels())
        return len(self._read(self.train_dataset, "train_dataset").rows)

    def pixel_rows(self) -> np.ndarray:
        """Which usable training row each of the pixels' labels is of: `np.ndarray` of shape `(P,)`, int64."""
        counts = self._training_maps().counts
        return np.repeat(np.arange(len(counts)), counts)

    def valid_share(self) -> float:
        """Mean share of valid pixels of a training map."""
        return self._training_maps().valid_share

    def shot_thresholds(self) -> tuple[float, float] | None:
        """
        Below and above how many of [`~LabelledTrainer.training_labels`] in a bin the labels of maps are few and many:
        the benchmark's numbers, or else 20 and 100, times the pixels that a map has of them. `None` where labels are
        no maps.
        """
        if self.is_stream:
            return None
        rows, _, maps, benchmark, _ = self._read(self.train_dataset, "train_dataset")
        if maps is None:
            return None
        few, many = (benchmark.shot_thresholds if benchmark is not None else None) or THRESHOLDS
        pixels = len(maps.values) / len(rows)
        return few * pixels, many * pixels

    def bin_width(self) -> float | None:
        """The width of the bins in label units: the user's, or the benchmark's, or `None`."""
        if self.args.bin_width is not None:
            return self.args.bin_width
        if self.is_stream:
            benchmark = benchmark_of(self.train_dataset, self.training_labels())
        else:
            benchmark = self._read(self.train_dataset, "train_dataset").benchmark
        return None if benchmark is None else benchmark.bin_width

    def _training_maps(self) -> MapStatistics:
        maps = self._read(self.train_dataset, "train_dataset").maps
        if maps is None:
            raise ValueError("The training labels are no maps, so they have no pixels.")
        return maps

    def _read(self, dataset: Dataset[Row], name: str, before_training: bool = False) -> _Usable:
        if isinstance(dataset, IterableDataset):
            check_has_rows(dataset, name)  # a stream is refused
        want_images = before_training or self.args.skip_bad_rows
        found = self._usable.get(id(dataset))
        if found is not None and (found.images_were_read or not want_images):
            return found
        names = column_names(dataset)
        is_own = self._user_collator is not None
        raw = "pixel_values" not in names and not is_own
        with_images = raw and want_images
        is_training = dataset is self.train_dataset
        reads: Any = {
            "with_images": with_images,
            "processor": self.processing_class,
            "show_progress": not self.args.disable_tqdm,
        }
        labels: np.ndarray | None = None
        maps: MapStatistics | None = None
        if (is_training or not is_own) and has_maps(dataset, self.args.label_columns, name):
            indices, maps = valid_maps(dataset, name, self.args, **reads)
        else:
            labelled = raw and (before_training or all(column in names for column in self.args.label_columns))
            indices, labels = valid_rows(dataset, name, self.args, with_labels=labelled or is_training, **reads)
        of_training = (labels if maps is None else maps.values) if is_training else None
        benchmark = None if of_training is None else benchmark_of(dataset, of_training)
        found = _Usable(SampledDataset(dataset, name, indices), labels, maps, benchmark, want_images or not raw)
        self._usable[id(dataset)] = found
        return found


def named(train_dataset: Dataset[Row] | None, eval_dataset: DataSets | None) -> dict[str, Dataset[Row]]:
    """The data sets that there are, by the names messages call them."""
    if isinstance(eval_dataset, dict):
        evaluation: dict[str, Any] = {f"eval_dataset[{name!r}]": data for name, data in eval_dataset.items()}
    else:
        evaluation = {"eval_dataset": eval_dataset}
    return {name: data for name, data in {"train_dataset": train_dataset, **evaluation}.items() if data is not None}
