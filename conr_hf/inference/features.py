"""Features of images, taken at a saved model's head."""

from collections.abc import Sequence

import datasets
import numpy as np
import numpy.typing as npt
import torch
from tqdm.auto import tqdm
from transformers import BaseImageProcessor, PreTrainedModel

from conr_hf.data.columns import cell_of, undecoded
from conr_hf.data.images import describe_error, to_image
from conr_hf.models.adopt_head import adopt_head
from conr_hf.models.factory import dummy_pixels
from conr_hf.models.image_processors import read_options
from conr_hf.utils.environment import current_device

BATCH = 64


def embed(
    model: PreTrainedModel,
    processor: BaseImageProcessor,
    dataset: datasets.Dataset,
    rows: Sequence[int],
    image_column: str,
    *,
    head: str | None,
    name: str,
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """
    The features at the head, `(N, D)`, of the images of `rows`, in evaluation mode, and the positions in `rows` of the
    images that could be read, `(N,)`. The model's head is adopted; messages call the data `name`.

    Raises:
        `ValueError`: if no image can be read, naming the first one's row, or the model has no single head.
    """
    device = current_device()
    model.eval().to(device)
    layer = adopt_head(model, dummy_pixels(processor, model.config), head)
    options = read_options(model.config.to_dict())
    stored = undecoded(dataset, [image_column])
    features, kept, reason = [], [], ""
    for start in tqdm(range(0, len(rows), BATCH), f"Features, {name}", leave=False):
        images = []
        for place in range(start, min(start + BATCH, len(rows))):
            try:
                row = int(rows[place])
                images.append(to_image(cell_of(dataset, stored[row], row, image_column), **options))
                kept.append(place)
            except (OSError, ValueError, SyntaxError) as error:
                reason = reason or f"row {rows[place]}: {describe_error(error)}"
        if images:
            pixels = processor(images=images, return_tensors="pt")["pixel_values"]
            with torch.inference_mode():
                model(pixel_values=pixels.to(device))
            features.append(layer.take_features().cpu().numpy())
    if not features:
        raise ValueError(
            f'{name} has no image that can be read in column "{image_column}"; {reason or "it is empty"}.'
        )
    return np.concatenate(features), np.array(kept, np.int64)
