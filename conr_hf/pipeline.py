"""`pipeline("image-regression", model=...)`: predictions for images, under the names of the targets."""

from typing import Any

import numpy as np
import torch
from transformers import AutoModelForImageClassification, ImageClassificationPipeline
from transformers.image_utils import load_image
from transformers.pipelines import PIPELINE_REGISTRY

from conr_hf.data.images import to_image
from conr_hf.inference.conformal import PredictionIntervals, load_intervals
from conr_hf.models.image_processors import check_channels, read_options
from conr_hf.models.safe_loading import map_loader
from conr_hf.models.saved import target_names

TASK = "image-regression"


class ImageRegressionPipeline(ImageClassificationPipeline):
    """
    Predicts numbers for images, in label units. `import conr_hf.pipeline` registers it for `transformers.pipeline`.

    It takes what other image pipelines take, a path, a URL, a PIL image or an array of shape `(H, W, 3)`, or many of
    them, with `batch_size`, `device` and so on as there; and images as they are elsewhere in this package: upright
    by their EXIF orientation, grey for a model of one channel, and numbers of 16 bits scaled to 8, from the
    `image_range` that the model was trained with.

    Args:
        flip (`bool`, *optional*, defaults to `False`):
            Predict the mirrored image too, and return the mean; not for labels that a mirror changes, such as yaw.
        interval (`bool`, *optional*, defaults to `False`):
            Return the ends of the prediction's interval, too; the model must have an `intervals.json` beside it.
        timeout (`float`, *optional*): Seconds to wait for a URL.

    Returns:
        `dict[str, float]` for an image: a prediction for each target, `{"age": 31.4}`; with `interval` also `age_low`
        and `age_high`, all three cut off at the run's `label_min` and `label_max`. A list of them for many images.

    Raises:
        `ValueError`: for an image that cannot be read, a model that predicts maps or another number of outputs than it
            has names for, and `interval` where there are none.

    Example:
    ```python
    import conr_hf.pipeline
    from transformers import pipeline

    predict = pipeline("image-regression", model="runs/quickstart")
    predict("tile.png", interval=True)  # {'elevation': 1432.7, 'elevation_low': 903.1, 'elevation_high': 1962.3}
    ```
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._intervals: PredictionIntervals | None = None
        super().__init__(*args, **kwargs)
        architecture = str((self.model.config.architectures or [""])[0])
        if map_loader(self.model.config.to_dict()) is not None:
            mend = 'transformers\' own pipeline("depth-estimation")' if "Depth" in architecture else "conr-hf predict"
            raise ValueError(
                f'"{self.model.config._name_or_path}" predicts maps ({architecture}), where pipeline("{TASK}") '
                f"predicts numbers. Use {mend}."
            )
        check_channels(self.model.config.to_dict())

    def _sanitize_parameters(
        self, flip: bool | None = None, interval: bool | None = None, timeout: float | None = None
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        if interval and self._intervals is None:
            self._intervals = load_intervals(self.model.config._name_or_path)
            if self._intervals is None:
                raise ValueError(
                    f'"{self.model.config._name_or_path}" has no intervals.json, which conr-hf train and '
                    "write_results write where there are 20 validation images or more. Leave out interval=True."
                )
        given = {"flip": flip, "interval": interval, "timeout": timeout}
        return (
            {name: given[name] for name in ("flip", "timeout") if given[name] is not None},
            {},
            {} if interval is None else {"interval": interval},
        )

    def preprocess(self, image: Any, flip: bool = False, timeout: float | None = None) -> dict[str, Any]:
        options = read_options(self.model.config.to_dict())
        try:
            is_url = isinstance(image, str) and image.startswith(("http://", "https://"))
            upright = to_image(load_image(image, timeout=timeout) if is_url else image, **options)
        except (OSError, ValueError, SyntaxError, TypeError) as error:
            name = f'"{image}"' if isinstance(image, str) else f"A {type(image).__name__}"
            raise ValueError(f"{name} cannot be read as an image: {error}") from error
        assert self.image_processor is not None
        pixels: torch.Tensor = self.image_processor(images=[upright], return_tensors="pt")["pixel_values"]
        pixels = pixels.to(self.dtype)
        return {"pixel_values": pixels, **({"mirrored": pixels.flip(-1)} if flip else {})}

    def _forward(self, inputs: dict[str, Any]) -> dict[str, torch.Tensor]:
        logits = self.model(pixel_values=inputs["pixel_values"]).logits.float()
        if "mirrored" in inputs:
            logits = (logits + self.model(pixel_values=inputs["mirrored"]).logits.float()) / 2
        return {"logits": logits}

    def postprocess(self, outputs: dict[str, torch.Tensor], interval: bool = False) -> dict[str, float]:
        predictions = outputs["logits"].cpu().numpy().astype(np.float64)  # (1, T)
        names = target_names(self.model)
        result = dict(zip(names, predictions[0].tolist(), strict=True))
        if interval and self._intervals is not None:
            middle, low, high = (values[0].tolist() for values in self._intervals.ends(predictions))
            for name, *values in zip(names, middle, low, high, strict=True):
                result |= dict(zip((name, f"{name}_low", f"{name}_high"), values, strict=True))
        return result


PIPELINE_REGISTRY.register_pipeline(
    TASK, pipeline_class=ImageRegressionPipeline, pt_model=AutoModelForImageClassification, type="image"
)
