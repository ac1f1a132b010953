"""Features of training images saved beside a model, to find those most similar to an image."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from transformers import AutoModelForImageClassification, BaseImageProcessor, PreTrainedModel

from conr_hf.imbalance import label_columns
from conr_hf.inference.features import embed
from conr_hf.models.adopt_head import adopt_head
from conr_hf.models.factory import dummy_pixels
from conr_hf.models.saved import companion_file
from conr_hf.training.config.config import ConRConfig
from conr_hf.utils.run_folder import FEATURE_INDEX

MOST = 5_000
NEAREST = 3


@dataclass(frozen=True, eq=False)
class FeatureIndex:
    """Features of training images at the head, and their labels."""

    features: npt.NDArray[np.float16]  # (N, D)
    labels: npt.NDArray[np.float64]  # (N, T), in label units
    head: str | None  # name of the head, if one was set

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
    Writes `feature_index.safetensors`, without images, beside the model saved in `args.output_dir`: for at most 5,000
    of the N usable rows of the training data, drawn by the run's seed, with labels of shape (N,) or (N, T). Features
    beyond the range of float16 are a `ValueError`.
    """
    folder = Path(str(args.output_dir))
    model = AutoModelForImageClassification.from_pretrained(folder, dtype=torch.float32)
    drawn = np.sort(np.random.default_rng(args.seed).permutation(len(rows))[:MOST])
    used = rows[drawn].tolist()
    features, kept = embed(model, processor, dataset, used, args.image_column, head=args.head, name="train")
    largest, most = float(np.abs(features).max()), float(np.finfo(np.float16).max)
    if not largest <= most:
        raise ValueError(f"features at the head reach {largest:g}; the index holds at most {most:g}.")
    tensors: dict[str, np.ndarray] = {
        # safetensors takes an array's memory in the order in which it lies.
        "features": np.ascontiguousarray(features, np.float16),
        "labels": np.ascontiguousarray(label_columns(labels)[drawn[kept]]),
    }
    save_file(tensors, folder / FEATURE_INDEX, metadata={"head": args.head or ""})


def load_index(name: str) -> FeatureIndex | None:
    """The feature index beside a model, a folder or an id on the Hub; or `None`."""
    path = companion_file(name, FEATURE_INDEX)
    if path is None:
        return None
    try:
        with safe_open(path, "np") as file:
            head = file.metadata()["head"] or None
            index = FeatureIndex(file.get_tensor("features"), file.get_tensor("labels"), head)
        if index.features.ndim != 2 or index.labels.ndim != 2 or len(index.features) != len(index.labels):
            raise ValueError(f"shapes {index.features.shape} and {index.labels.shape}")
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f'"{path}" does not hold a feature index ({error}). Remove it.') from error
    return index


def similar_labels(
    model: PreTrainedModel, processor: BaseImageProcessor, index: FeatureIndex | None
) -> Callable[[], list[list[float]]]:
    """A function that returns the labels of the images most similar to the model's last input; none without one."""
    if index is None:
        return list
    layer = adopt_head(model, dummy_pixels(processor, model.config), index.head)
    if (index.labels.shape[1], index.features.shape[1]) != layer.weight.shape:
        raise ValueError("The feature_index.safetensors beside the model is another model's. Remove that file.")
    return lambda: index.nearest_labels(layer.take_features()[0].float().cpu().numpy()).tolist()
