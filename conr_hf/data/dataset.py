"""Rows of a data set beside the sampled index that asked for them."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from conr_hf.data.columns import Row, cell_of, undecoded, with_numbers
from conr_hf.data.images import describe_error, to_image
from conr_hf.data.sampler import SampledIndex

# A sampled index, its row and, for C-Mixup, its partner's row. In evaluation the row's number takes the index's place;
# where a resumed run leaves rows out there is no row.
SampledExample = tuple[SampledIndex | int | None, Row] | tuple[SampledIndex, Row, Row] | tuple[SampledIndex, None]


class SampledDataset(Dataset[SampledExample]):
    """
    Rows of a map-style data set, all or those at `indices`, beside the sampled index that asked for them. In their
    columns of classes stand numbers, as [`~conr_hf.data.columns.class_numbers`] gives them. The images of an
    `image_column` are decoded, with `image_range` as in [`~conr_hf.data.images.to_image`]; without such a column
    images are left as they are.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        name: str,
        indices: Sequence[int] | np.ndarray | None = None,
        classes: Mapping[str, Sequence[float]] | None = None,
        image_column: str | None = None,
        image_range: Sequence[float] | None = None,
    ) -> None:
        self.dataset, self.name, self.classes = dataset, name, classes or {}
        self.image_column, self.image_range = image_column, image_range
        self.stored = dataset if image_column is None else undecoded(dataset, [image_column])
        self.indices = range(len(dataset)) if indices is None else indices  # type: ignore[arg-type]

    def at(self, places: np.ndarray) -> "SampledDataset":
        """The rows at these places, or of this mask."""
        part = copy.copy(self)
        part.indices = np.asarray(self.indices)[places]
        return part

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, key: SampledIndex | int) -> SampledExample:
        if not isinstance(key, SampledIndex):
            row = int(self.indices[int(key)])
            return row, self._row(row)
        sampled = key._replace(row=int(self.indices[key.row]))  # the row of the user's data set
        if key.partner is None:
            return sampled, self._row(sampled.row)
        partner = int(self.indices[key.partner])
        return sampled._replace(partner=partner), self._row(sampled.row), self._row(partner)

    def _row(self, row: int) -> Row:
        try:
            stored, column = with_numbers(self.stored[row], self.classes), self.image_column
            if column is None or column not in stored:
                return stored
            cell = cell_of(self.dataset, stored, row, column)
            return {**stored, column: to_image(cell, image_range=self.image_range)}
        except Exception as error:  # whatever a decoder raises
            raise ValueError(
                f"{self.name}, row {row:,}: the image cannot be read: {describe_error(error)}."
            ) from error
