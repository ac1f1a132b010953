"""Before training starts: which rows of a data set can be used, and the labels they have."""

import numpy as np
from torch.utils.data import Dataset, IterableDataset
from transformers.utils import logging

from conr_hf.config import ConRConfig
from conr_hf.data.rows import Row, column_names, read_labels, unreadable_rows
from conr_hf.distributed import gather_objects, rank, world_size

logger = logging.get_logger(__name__)


def check_has_rows(dataset: Dataset[Row], name: str) -> None:
    """
    Raises:
        `ValueError`: if a data set is a stream, or empty.
    """
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
        raise ValueError(f"{name} is a stream; it must have a length and give rows by index.")
    if len(dataset) == 0:
        raise ValueError(f"{name} is empty. Give it at least one row.")


def usable_rows(
    dataset: Dataset[Row], name: str, args: ConRConfig, *, with_labels: bool, with_images: bool
) -> tuple[np.ndarray, np.ndarray | None]:
    """
    Reads labels and images of every row once; several processes share the images.

    Args:
        dataset: A map-style data set.
        name (`str`): What messages call it.
        args ([`ConRConfig`]): Names the columns, and says whether bad rows are left out (`skip_bad_rows`).
        with_labels (`bool`): Read the labels.
        with_images (`bool`): Read the images.

    Returns:
        `np.ndarray` of shape `(N,)`, the rows that can be used, in order; and their labels, `np.ndarray` of shape
        `(N,)` or `(N, T)`, or `None` without `with_labels`.

    Raises:
        `ValueError`: at the first row that cannot be read, or, with `skip_bad_rows`, if none can.
    """
    count = len(dataset)  # type: ignore[arg-type]
    labels, wrong = read_labels(dataset, args.label_columns, name) if with_labels else (None, {})
    if with_labels and "sample_weight" in column_names(dataset):
        weights, unusable = read_labels(dataset, ["sample_weight"], name)
        negative = {
            int(row): f'column "sample_weight": {weights[row]} is less than 0' for row in np.where(weights < 0)[0]
        }
        wrong = {**unusable, **negative, **wrong}
    if with_images:
        names = column_names(dataset)
        if args.image_column not in names:
            raise ValueError(
                f'{name} has no column "{args.image_column}"; its columns are {", ".join(names)}. '
                "Name the column of the image with image_column."
            )
        mine = range(rank(), count, world_size())
        show_progress = rank() == 0 and not args.disable_tqdm
        for unreadable in gather_objects(unreadable_rows(dataset, args.image_column, mine, name, show_progress)):
            wrong = {**unreadable, **wrong}
    if wrong and not args.skip_bad_rows:
        first = min(wrong)
        more = len(wrong) - 1
        others = f" {more:,} more row{'s' * (more > 1)} cannot be used." if more else ""
        raise ValueError(
            f"{name}, row {first:,}, {wrong[first]}.{others} Mend the data, or leave such rows out with skip_bad_rows."
        )
    if len(wrong) == count:
        raise ValueError(f"{name} has no row that can be used; row 0, {wrong[0]}.")
    if wrong and rank() == 0:
        named = "; ".join(f"row {row:,}, {wrong[row]}" for row in sorted(wrong)[:20])
        logger.warning(f"{name}: {len(wrong):,} of {count:,} rows left out: {named}{'; ...' * (len(wrong) > 20)}")
    indices = np.setdiff1d(np.arange(count), np.fromiter(wrong, int))
    return indices, None if labels is None else labels[indices]
