"""`DataModule`: the rows of a trainer's data sets that can be used, their labels, and what follows from these."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset
from transformers import PreTrainedModel

from conr_hf.data import validation
from conr_hf.data.benchmarks.loading import benchmark_of
from conr_hf.data.benchmarks.registry import Benchmark
from conr_hf.data.columns import Row, class_numbers, column_names, count_labels, label_names, only_columns
from conr_hf.data.dataset import SampledDataset
from conr_hf.data.map_statistics import MapStatistics, has_maps
from conr_hf.data.splits import stratified_folds
from conr_hf.imbalance import Bins, make_bins
from conr_hf.imbalance.bins import THRESHOLDS
from conr_hf.models.image_processors import read_options
from conr_hf.training.config.config import ConRConfig
from conr_hf.training.config.resolved_config import ResolvedConfig, resolve
from conr_hf.training.conr_state import load_state

DataSets = Dataset[Row] | dict[str, Dataset[Row]]
Collator = Callable[[list[Row]], dict[str, Any]]


REFIT_PARTS = 3  # of an evaluation set, of which the re-fit of the head gets one


class LoadedSplit(NamedTuple):
    """A data set that was read: its valid rows, and their labels as numbers, `(N,)` or `(N, T)`, or as maps."""

    rows: SampledDataset
    labels: np.ndarray | None
    maps: MapStatistics | None
    benchmark: Benchmark | None  # that these are the training rows of
    images_were_read: bool  # or there are none to read


class DataModule:
    """The data sets of a trainer, as in [`ConRTrainer`]; each row is checked, and its label read, once."""

    def __init__(
        self,
        args: ConRConfig,
        train_dataset: Dataset[Row] | None,
        eval_dataset: DataSets | None,
        data_collator: Collator | None,
        train_labels: npt.ArrayLike | Bins | None = None,
        compute_loss_func: Callable[..., Tensor] | None = None,
        label_distance: Callable[[Tensor, Tensor], Tensor] | None = None,
        transform: Callable[..., Any] | None = None,
    ) -> None:
        self.args, self.data_collator, self.transform = args, data_collator, transform
        self.train_dataset, self.eval_dataset = train_dataset, eval_dataset
        self.unit = ""  # of the labels, where somebody has named it
        self.model: PreTrainedModel | None = None  # whose saved state is asked where there is no training set
        self._own_loss, self._own_distance = compute_loss_func is not None, label_distance is not None
        self._splits: dict[int, LoadedSplit] = {}
        self._streamed_labels: np.ndarray | None = None
        self._given_bins = train_labels if isinstance(train_labels, Bins) else None
        self._resolved: ResolvedConfig | None = None
        self._bins: Bins | None = None
        for name, dataset in self.named_datasets().items():
            if not (self.is_stream and dataset is train_dataset):
                validation.check_has_rows(dataset, name)
        if train_labels is not None:
            validation.check_train_labels(train_labels, args, train_dataset)
            self._streamed_labels = validation.labels_of(train_labels)

    @property
    def is_stream(self) -> bool:
        """Whether the training rows come as a stream."""
        return isinstance(self.train_dataset, IterableDataset)

    @property
    def labels_are_maps(self) -> bool:
        """Whether the labels of the training data, or else of the evaluation data, are maps."""
        first = list(self.named_datasets().items())[:1]
        return any(has_maps(dataset, self.args.label_columns, name) for name, dataset in first)

    @property
    def label_names(self) -> list[str] | None:
        """
        A name for each label dimension: the label columns, or the only one, numbered, where it holds several; `None`
        where no data tells how many.
        """
        columns = self.args.label_columns
        for name, dataset in self.named_datasets().items():
            return label_names(columns, count_labels(dataset, columns, name))
        return columns if len(columns) > 1 else None

    def named_datasets(self) -> dict[str, Dataset[Row]]:
        """The data sets that there are, by the names that messages call them."""
        training = {} if self.train_dataset is None else {"train_dataset": self.train_dataset}
        return training | self._evaluation()

    def _evaluation(self) -> dict[str, Dataset[Row]]:
        if isinstance(self.eval_dataset, dict):
            return {f"eval_dataset[{name!r}]": dataset for name, dataset in self.eval_dataset.items()}
        return {} if self.eval_dataset is None else {"eval_dataset": self.eval_dataset}

    # ---- The model, and how it sees images -----------------------------------------------------------------------

    def take_model(self, model: PreTrainedModel) -> None:
        """The model to train; it keeps the settings' `image_range` with it, or gives its own where they name none."""
        self.model = model
        if self.args.image_range is not None:
            model.config.image_range = list(self.args.image_range)
        self.args.image_range = model.config.to_dict().get("image_range")

    def read_options(self) -> dict[str, Any]:
        """How [`~conr_hf.data.images.to_image`] reads images for the model, if it is known."""
        return read_options(
            {"image_range": self.args.image_range} if self.model is None else self.model.config.to_dict()
        )

    # ---- Rows and labels -----------------------------------------------------------------------------------------

    def check(self) -> None:
        """Reads every label and image of all data sets once, so that no bad one ends a run halfway."""
        for name, dataset in self.named_datasets().items():
            if isinstance(dataset, IterableDataset):
                validation.check_columns(dataset, name, self.args, with_image=self.data_collator is None)
                self.training_labels()
            else:
                self.load_split(dataset, name, before_training=True)

    def load_split(
        self, dataset: Dataset[Row], name: str, before_training: bool = False, with_labels: bool = True
    ) -> tuple[SampledDataset, np.ndarray | None]:
        """
        The valid rows of a data set, and their labels unless these are maps; each is read once. Before training,
        images are read and, unless rows are to be predicted only, labels must be there; otherwise labels are read
        where there are any.
        """
        split = self._load(dataset, name, before_training, with_labels)
        if split.maps is not None and name != "train_dataset":
            validation.check_one_size(split.maps, np.asarray(split.rows.indices), name)
        if dataset is not self.refit_dataset():
            return split.rows, split.labels
        kept = ~self._is_for_refit(split)
        return split.rows.at(kept), None if split.labels is None else split.labels[kept]

    def refit_dataset(self) -> Dataset[Row] | None:
        """
        The evaluation set that `refit_head` takes rows of, the only one or the first; `None` without `refit_head`.

        A third of its rows, the same of every label bin, is for the re-fit alone: wherever this data set is read,
        during training and after it, there are only the others, which choose the epoch, calibrate the intervals and
        are measured. So nothing that is reported of them has been fitted to them.
        """
        return next(iter(self._evaluation().values()), None) if self.args.refit_head != "none" else None

    def refit_rows(self) -> tuple[SampledDataset, np.ndarray, np.ndarray]:
        """
        The N rows that `refit_head` sets aside; their labels, `(N,)` or `(N, T)`, of maps the mean of each; and the
        same labels, of maps those of the pixels.
        """
        dataset = self.refit_dataset()
        assert dataset is not None
        split = self._load(dataset, "eval_dataset")
        chosen = self._is_for_refit(split)
        strata = _strata(split)[chosen]
        pixels = None if split.maps is None else split.maps.values[np.repeat(chosen, split.maps.counts)]
        return split.rows.at(chosen), strata, strata if pixels is None else pixels

    def _is_for_refit(self, split: LoadedSplit) -> np.ndarray:
        return stratified_folds(_strata(split), self.bins, REFIT_PARTS, self.args.seed) == 0

    def all_labels(self) -> dict[str, np.ndarray]:
        """Labels of the training set, and of the evaluation sets whose labels are numbers in columns, by name."""
        found = {name: self.load_split(rows, name)[1] for name, rows in self._evaluation().items()}
        read = {name: labels for name, labels in found.items() if labels is not None}
        return {"train_dataset": self.training_labels(), **read}

    def training_labels(self) -> np.ndarray:
        """
        Labels of the valid training rows, in label units: `np.ndarray` of shape `(N,)` or `(N, T)`. Of maps: those of
        the valid pixels, `(P,)`, float32; of more than 10 million of them a sample, the same share of each map's.
        """
        if self.is_stream:
            if self._streamed_labels is None:
                self._streamed_labels = validation.streamed_labels(self.train_dataset, "train_dataset", self.args)  # type: ignore[arg-type]
            return self._streamed_labels
        split = self._training_split()
        labels = split.labels if split.maps is None else split.maps.values
        assert labels is not None
        return labels

    def training_rows(self) -> int:
        """Number of valid training rows."""
        return len(self.training_labels() if self.is_stream else self._training_split().rows)

    def pixel_rows(self) -> np.ndarray:
        """The valid training row of each pixel's label: `np.ndarray` of shape `(P,)`, int64."""
        counts = self._training_maps().counts
        return np.repeat(np.arange(len(counts)), counts)

    def valid_share(self) -> float:
        """Mean share of valid pixels of a training map."""
        return self._training_maps().valid_share

    # ---- What follows from the training labels -------------------------------------------------------------------

    @property
    def resolved(self) -> ResolvedConfig:
        """The settings with every unset one derived from the training labels; or as saved with the model."""
        if self._resolved is None and self.train_dataset is not None:
            weighted = "sample_weight" in column_names(self.train_dataset)
            may_resample = not (self._own_loss or self.is_stream or weighted)
            self._resolved = resolve(self.args, self.training_labels(), may_resample, self.labels_are_maps)
            if self._own_distance:
                self._resolved = dataclasses.replace(self._resolved, distance="own")
        return self._resolved if self._resolved is not None else self._saved()[0]

    @property
    def bins(self) -> Bins:
        """Bins of the training labels with their counts; without these, as saved with the model."""
        if self._bins is None and self.train_dataset is not None:
            self._bins = self._given_bins or make_bins(self.training_labels(), self.bin_width())
            if (thresholds := self.shot_thresholds()) is not None:
                self._bins = dataclasses.replace(self._bins, thresholds=thresholds)
        return self._bins if self._bins is not None else self._saved()[1]

    def resolve_anew(self) -> None:
        """Forgets settings and bins, as the user or a search may have changed what they are derived from."""
        self._resolved = self._bins = None

    def shot_thresholds(self) -> tuple[float, float] | None:
        """
        Few- and many-shot limits: the user's; or of maps the benchmark's, or 20 and 100; `None` if neither. Those of
        maps are multiplied by a map's pixels.
        """
        given = None if self.args.shot_thresholds is None else tuple(self.args.shot_thresholds)
        if self.is_stream or (split := self._training_split()).maps is None:
            return given  # type: ignore[return-value]
        few, many = given or (split.benchmark.shot_thresholds if split.benchmark is not None else None) or THRESHOLDS
        pixels = len(split.maps.values) / len(split.rows)
        return few * pixels, many * pixels

    def bin_width(self) -> float | None:
        """The width of the bins in label units: the user's, or the benchmark's, or `None`."""
        if self.args.bin_width is not None:
            return self.args.bin_width
        benchmark = self.benchmark()
        return None if benchmark is None else benchmark.bin_width

    def benchmark(self) -> Benchmark | None:
        """The benchmark whose training rows are trained on, if it is one."""
        if self.is_stream:
            return benchmark_of(self.train_dataset, self.training_labels())
        return None if self.train_dataset is None else self._training_split().benchmark

    def label_unit(self) -> str:
        """The unit of the labels: the one that was given, or the benchmark's, or `""`."""
        benchmark = self.benchmark()
        return self.unit or (benchmark.unit if benchmark is not None else "")

    def _saved(self) -> tuple[ResolvedConfig, Bins]:
        saved = None if self.model is None else load_state(self.model.config._name_or_path)
        if saved is None:
            raise ValueError(
                "The label scale and the shots come from training labels: give train_dataset, or a model that "
                "ConRTrainer saved."
            )
        return saved

    # ---- Reading -------------------------------------------------------------------------------------------------

    def _training_split(self) -> LoadedSplit:
        assert self.train_dataset is not None
        return self._load(self.train_dataset, "train_dataset")

    def _training_maps(self) -> MapStatistics:
        maps = self._training_split().maps
        if maps is None:
            raise ValueError("The training labels are no maps, so they have no pixels.")
        return maps

    def _load(
        self, dataset: Dataset[Row], name: str, before_training: bool = False, with_labels: bool = True
    ) -> LoadedSplit:
        validation.check_has_rows(dataset, name)
        want_images = before_training or self.args.skip_bad_rows
        split = self._splits.get(id(dataset))
        if split is not None and (split.images_were_read or not want_images):
            return split
        names, is_own = column_names(dataset, name), self.data_collator is not None
        raw = "pixel_values" not in names and not is_own
        is_training = dataset is self.train_dataset
        needs_labels = is_training or dataset is self.refit_dataset()
        reads: Any = {"with_images": raw and want_images, "show_progress": not self.args.disable_tqdm}
        labels: np.ndarray | None = None
        maps: MapStatistics | None = None
        if (needs_labels or not is_own) and has_maps(dataset, self.args.label_columns, name):
            indices, maps = validation.valid_maps(dataset, name, self.args, **reads)
        else:
            has_labels = all(column in names for column in self.args.label_columns)
            reads["with_labels"] = needs_labels or (raw and ((before_training and with_labels) or has_labels))
            indices, labels = validation.valid_rows(dataset, name, self.args, **reads)
        of_training = (labels if maps is None else maps.values) if is_training else None
        benchmark = None if of_training is None else benchmark_of(dataset, of_training)
        # Rows for a collator of the user's own are as the user has them.
        classes = {} if is_own else class_numbers(dataset, self.args.label_columns, name)
        images = (self.args.image_column, self.args.image_range) if raw else ()
        asked = [self.args.image_column, *self.args.label_columns, "labels", "pixel_values", "sample_weight"]
        needs_all = is_own or not {self.args.image_column, "pixel_values"} & set(names)
        asked_rows = dataset if needs_all else only_columns(dataset, asked)
        rows = SampledDataset(asked_rows, name, indices, classes, *images)
        split = LoadedSplit(rows, labels, maps, benchmark, want_images or not raw)
        self._splits[id(dataset)] = split
        return split


def _strata(split: LoadedSplit) -> np.ndarray:
    """What the bin of each row follows from: its label, or the mean label of its map."""
    if split.maps is None:
        assert split.labels is not None
        return split.labels
    counts = split.maps.counts
    return np.bincount(np.repeat(np.arange(len(counts)), counts), split.maps.values) / counts
