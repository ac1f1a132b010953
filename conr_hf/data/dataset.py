"""Rows of a data set beside the sampled index that asked for them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from conr_hf.data.columns import Row
from conr_hf.data.images import describe_error
from conr_hf.data.sampler import SampledIndex
from conr_hf.data.worker_progress import Whereabouts

# A draw and its row, and the row of its partner if it has one; no draw in evaluation, and no row where a resumed run
# leaves out what it was trained on.
SampledExample = tuple[SampledIndex | None, Row] | tuple[SampledIndex, Row, Row] | tuple[SampledIndex, None]


class SampledDataset(Dataset[SampledExample]):
    """Rows of a data set beside the draw that asked for them, `None` in evaluation; where it mixes, two rows."""

    def __init__(self, dataset: Dataset[Any], name: str, indices: Sequence[int] | np.ndarray | None = None) -> None:
        self.dataset, self.name = dataset, name
        self.indices = range(len(dataset)) if indices is None else indices  # type: ignore[arg-type]
        self.whereabouts: Whereabouts | None = None  # of the workers that read them

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, key: SampledIndex | int) -> SampledExample:
        if not isinstance(key, SampledIndex):
            return None, self._row(int(key))
        if key.partner is None:
            return key, self._row(key.row)
        return key, self._row(key.row), self._row(key.partner)

    def _row(self, place: int) -> Row:
        row = int(self.indices[place])
        if self.whereabouts is not None:
            self.whereabouts.note(row)
        try:
            return self.dataset[row]
        except Exception as error:  # whatever a decoder raises
            raise ValueError(
                f"{self.name}, row {row:,}: the image cannot be read: {describe_error(error)}."
            ) from error
