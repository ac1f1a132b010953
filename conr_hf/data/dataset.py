"""Rows of a data set beside the sampled index that asked for them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from conr_hf.data.columns import Row
from conr_hf.data.images import describe_error
from conr_hf.data.sampler import SampledIndex

# A sampled index, its row and, for C-Mixup, its partner's row. In evaluation there is no index; where a resumed run
# leaves rows out there is no row.
SampledExample = tuple[SampledIndex | None, Row] | tuple[SampledIndex, Row, Row] | tuple[SampledIndex, None]


class SampledDataset(Dataset[SampledExample]):
    """Rows of a map-style data set, all or those at `indices`, beside the sampled index that asked for them."""

    def __init__(self, dataset: Dataset[Any], name: str, indices: Sequence[int] | np.ndarray | None = None) -> None:
        self.dataset, self.name = dataset, name
        self.indices = range(len(dataset)) if indices is None else indices  # type: ignore[arg-type]

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
        try:
            return self.dataset[row]
        except Exception as error:  # whatever a decoder raises
            raise ValueError(
                f"{self.name}, row {row:,}: the image cannot be read: {describe_error(error)}."
            ) from error
