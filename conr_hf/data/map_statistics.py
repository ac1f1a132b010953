"""The maps of a data set, each read once before training: which can be used, and a sample of their labels."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import datasets
import numpy as np
import numpy.typing as npt
from torch.utils.data import Dataset, IterableDataset
from transformers.utils import logging

from conr_hf.data.checked_images import CheckedImage, CheckedImages, check_image
from conr_hf.data.columns import cell_of, dark_images, undecoded
from conr_hf.data.config import DataConfig
from conr_hf.data.images import Size, describe_error, format_size
from conr_hf.data.label_maps import is_map, to_map
from conr_hf.data.threads import in_threads
from conr_hf.utils.distributed import rank

logger = logging.get_logger(__name__)

MOST_PIXELS = 10_000_000  # whose labels are kept in memory, of all maps of a data set


class ReadMap(NamedTuple):
    """What is kept of a map: its size, its number of valid pixels, and the labels of these or a sample of them."""

    size: Size
    valid: int
    values: npt.NDArray[np.float32]
    largest: int | None = None  # number in its image, if that has 16 bits


@dataclass(frozen=True, eq=False)
class MapStatistics:
    """The labels of N maps."""

    values: npt.NDArray[np.float32]  # (P,): labels of valid pixels, in label units, map after map: all, or a sample
    counts: npt.NDArray[np.int64]  # (N,): how many of these are of each map
    valid: npt.NDArray[np.int64]  # (N,): how many valid pixels each map has
    sizes: npt.NDArray[np.int64]  # (N, 2): height and width of each map

    @cached_property
    def valid_share(self) -> float:
        """Mean share of valid pixels of a map."""
        return float((self.valid / self.sizes.prod(axis=1)).mean())


def has_maps(dataset: Dataset[Any], columns: Sequence[str], name: str) -> bool:
    """Whether the labels of a data set are maps, by its first row. A stream of maps is refused."""
    if len(columns) != 1:
        return False
    plain = isinstance(dataset, datasets.Dataset) and dataset.format["type"] != "custom"
    if plain:
        present = [column for column in (columns[0], "labels") if column in dataset.column_names]  # type: ignore[attr-defined]
        dataset = undecoded(dataset.with_format(None).select_columns(present), present)  # type: ignore[attr-defined]
        if not present:
            return False
    is_stream = isinstance(dataset, IterableDataset)
    row = next(iter(dataset), {}) if is_stream else dataset[0]
    if not isinstance(row, Mapping) or (columns[0] not in row and "labels" not in row):
        return False
    maps = is_map(row[columns[0]] if columns[0] in row else row["labels"])
    if maps and is_stream:
        raise ValueError(
            f"{name} is a stream, and its labels are maps. Give maps by index, as a data set with a length, or stream "
            "rows with one number as the label."
        )
    return maps


def read_maps(
    dataset: Dataset[Any], rows: Sequence[int], name: str, args: DataConfig, with_images: bool, show_progress: bool
) -> dict[int, ReadMap | str]:
    """
    Reads the maps of `rows`: for each row a [`ReadMap`], or the reason why it cannot be used.

    `with_images` reads the image too, unless an earlier run has found it good, as the map must have its aspect.
    Without, no image is read; the aspect is that of `pixel_values` in rows ready for the model. Where `rows` have more
    than 10 million valid pixels, so many labels of each map are kept that [`subsample_evenly`] finds enough of them in
    any larger data set.
    """
    image_column = args.image_column if with_images else None
    label_column = args.label_columns[0]
    unopened = undecoded(dataset, [column for column in (image_column, label_column) if column is not None])
    known, good = dict[int, CheckedImage](), dict[int, CheckedImage]()
    if image_column is not None:
        title = f"Looking up {name}"
        checked = CheckedImages(unopened, image_column, rows, args.image_range, title, show_progress)
        known = checked.known

    def read(index: int) -> ReadMap | str:
        size, largest, problem = None, None, "it cannot be read"
        try:
            row = unopened[index]
            if "pixel_values" in row:
                size = np.shape(row["pixel_values"])[-2:]
            elif image_column is not None:
                problem = f'column "{image_column}": the image cannot be read'
                image = known.get(index)
                if image is None:
                    image = good[index] = check_image(cell_of(dataset, row, index, image_column), args.image_range)
                size, largest = image
            column = label_column if label_column in row else "labels"
            problem = f'column "{column}": the map cannot be read'
            labels = to_map(cell_of(dataset, row, index, column), args.map_scale, args.map_invalid)
        except Exception as error:  # whatever a transform or a decoder raises, the row cannot be used
            return f"{problem} ({describe_error(error)})"
        valid = labels[~np.isnan(labels)]
        if len(valid) == 0:
            return f'column "{column}": its map has no valid pixel'
        # The same aspect: one is the other, scaled, with sides rounded to whole pixels.
        if size is not None and abs(labels.shape[0] * size[1] - labels.shape[1] * size[0]) >= max(size):
            return (
                f'column "{column}": its map has {format_size(labels.shape)} pixels and its image '
                f"{format_size(size)}; a map must cover its image, in the same aspect"
            )
        return ReadMap((labels.shape[0], labels.shape[1]), len(valid), valid, largest)

    found: dict[int, ReadMap | str] = {}
    total = held = 0
    try:
        for index, one in zip(rows, in_threads(read, dataset, rows, f"Reading {name}", show_progress), strict=True):
            found[index] = one
            if isinstance(one, str):
                continue
            total, held = total + one.valid, held + len(one.values)
            if held > 2 * MOST_PIXELS:
                share = MOST_PIXELS / total
                # More than the share, as subsample_evenly may round up.
                maps = {row: kept for row, kept in found.items() if isinstance(kept, ReadMap)}
                maps = {row: subsample(row, kept, int(kept.valid * share) + 2) for row, kept in maps.items()}
                found |= maps
                held = sum(len(kept.values) for kept in maps.values())
    finally:  # also where the user ends it
        if image_column is not None:
            checked.keep(good)
    warning = dark_images([one.largest for one in found.values() if isinstance(one, ReadMap)])
    if warning is not None and rank() == 0:
        logger.warning(f'{name}, column "{image_column}": {warning}')
    return found


def zeros_without_meaning(values: npt.NDArray[np.floating[Any]], invalid: float | None) -> str | None:
    """What to say where many of the labels of pixels are the least, 0, and no number is said to mean "no label"."""
    share = float((values == 0).mean()) if len(values) else 0.0
    if invalid is not None or share < 0.01 or values.min() < 0:
        return None
    return f"{share:.0%} of the labelled pixels are 0. If 0 means that there is no label, set map_invalid to 0."


def subsample_evenly(maps: Mapping[int, ReadMap], valid: Mapping[int, int]) -> dict[int, ReadMap]:
    """
    The maps that one of the processes has read, by row, with the labels of so many of their valid pixels that there
    are about 10 million of all maps together: the same share of each map's, and at least one. As they are where there
    are no more. `valid` holds the number of valid pixels of every map of the data set, by row.
    """
    rows = sorted(valid)
    ends = np.cumsum([valid[row] for row in rows])
    if len(rows) == 0 or ends[-1] <= MOST_PIXELS:
        return dict(maps)
    # Rounded over the maps, not map by map, so that those with few valid pixels count neither more nor less.
    counts = np.diff(np.rint(ends * (MOST_PIXELS / ends[-1])).astype(np.int64), prepend=0)
    kept = dict(zip(rows, np.maximum(counts, 1).tolist(), strict=True))
    return {row: subsample(row, one, kept[row]) for row, one in maps.items()}


def subsample(index: int, one: ReadMap, count: int) -> ReadMap:
    """
    A map with the labels of at most `count` of its valid pixels, the first of an order that depends on the row's
    `index` alone: so any number of processes draws the same, and a map can be subsampled more than once.
    """
    if len(one.values) <= count:
        return one
    drawn = one.values if len(one.values) < one.valid else np.random.default_rng(index).permutation(one.values)
    return one._replace(values=drawn[:count].copy())
