"""Features of training images saved beside a model, to find those most similar to an image."""

from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from transformers import AutoModelForImageClassification, BaseImageProcessor

from conr_hf.imbalance import label_columns
from conr_hf.inference.features import embed
from conr_hf.models.saved import companion_file
from conr_hf.training.config.config import ConRConfig
from conr_hf.utils.run_folder import FEATURE_INDEX

MOST = 5_000
NEAREST = 3


@dataclass(frozen=True, eq=False)
class FeatureIndex:
    """
    Features of training images at the head, and their labels.

    Args:
        features (`np.ndarray` of shape `(N, D)`): float16.
        labels (`np.ndarray` of shape `(N, T)`): In label units, float64.
        head (`str`, *optional*): Name of the head, if one was set.
    """

    features: npt.NDArray[np.float16]
    labels: npt.NDArray[np.float64]
    head: str | None

    def nearest_labels(self, features: npt.NDArray[np.float32], k: int = NEAREST) -> npt.NDArray[np.float64]:
        """
        Labels of the `k` images with the least Euclidean distance to `features` of shape `(D,)`, nearest first: an
        array of shape `(min(k, N), T)`.
        """
        distances = np.linalg.norm(self.features.astype(np.float32) - features, axis=1)
        return self.labels[np.argsort(distances, kind="stable")[:k]]


def write_index(
    args: ConRConfig,
    processor: BaseImageProcessor,
    dataset: datasets.Dataset,
    rows: npt.NDArray[np.int64],
    labels: npt.NDArray[np.float64],
) -> None:
    """
    Writes `feature_index.safetensors` beside the model saved in `args.output_dir`; no image is in it.

    Args:
        args ([`ConRConfig`]): Settings of the run; its seed draws the rows.
        processor (`BaseImageProcessor`): The model's processor.
        dataset (`datasets.Dataset`): The training data.
        rows (`np.ndarray` of shape `(N,)`): Its usable rows, of which at most 5,000 are drawn.
        labels (`np.ndarray` of shape `(N,)` or `(N, T)`): Their labels, in label units.

    Raises:
        `ValueError`: as [`~conr_hf.inference.features.embed`], and for features beyond the range of float16.
    """
    folder = Path(str(args.output_dir))
    model = AutoModelForImageClassification.from_pretrained(folder, dtype=torch.float32)
    drawn = np.sort(np.random.default_rng(args.seed).permutation(len(rows))[:MOST])
    features, kept = embed(
        model, processor, dataset, rows[drawn].tolist(), args.image_column, head=args.head, name="train"
    )
    largest, most = float(np.abs(features).max()), float(np.finfo(np.float16).max)
    if not largest <= most:
        raise ValueError(f"features at the head reach {largest:g}; the index holds at most {most:g}.")
    tensors: dict[str, np.ndarray] = {
        "features": features.astype(np.float16),
        "labels": label_columns(labels)[drawn[kept]],
    }
    save_file(tensors, folder / FEATURE_INDEX, metadata={"head": args.head or ""})


def load_index(name: str) -> FeatureIndex | None:
    """
    The feature index beside a model, a folder or an id on the Hub; or `None`.

    Raises:
        `ValueError`: for a file with other content.
    """
    path = companion_file(name, FEATURE_INDEX)
    if path is None:
        return None
    try:
        with safe_open(path, "np") as file:
            index = FeatureIndex(
                file.get_tensor("features"), file.get_tensor("labels"), file.metadata()["head"] or None
            )
        if index.features.ndim != 2 or index.labels.ndim != 2 or len(index.features) != len(index.labels):
            raise ValueError(f"shapes {index.features.shape} and {index.labels.shape}")
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f'"{path}" does not hold a feature index ({error}). Remove it.') from error
    return index
