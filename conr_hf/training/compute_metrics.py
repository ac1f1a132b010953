"""`ComputeMetrics`: the errors of an evaluation by shot, and the user's own metrics."""

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
from torch import Tensor
from transformers import EvalPrediction

from conr_hf.metrics import StreamedErrors, flat
from conr_hf.metrics.gaze import label_errors
from conr_hf.training.data_module import DataModule


class ComputeMetrics:
    """
    `Trainer`'s `compute_metrics`: errors by shot, and the user's `own`. Maps are counted batch by batch, so that those
    of a data set are never in memory at once; `own` is then called as with `batch_eval_metrics` of `Trainer`.
    """

    def __init__(self, data: DataModule, own: Callable[[EvalPrediction], dict[str, float]] | None) -> None:
        self.data, self.own = data, own
        self.own_names: list[str] = []  # of the user's metrics, once there are any
        self.is_map = False  # whether the model predicts maps
        self.streamed: StreamedErrors | None = None  # of maps, of the last evaluation or the one going on

    def __call__(self, prediction: EvalPrediction, compute_result: bool = True) -> dict[str, float]:
        clip: Any = self.data.resolved.clip
        if not self.is_map:
            arrays = np.asarray(prediction.predictions), np.asarray(prediction.label_ids)
            metrics = flat(label_errors(clip(arrays[0]), arrays[1], self.data.bins, self.data.args.label_columns))
            return metrics | self._named({} if self.own is None else self.own(prediction))
        self.streamed = self.streamed or StreamedErrors(self.data.bins)
        self.streamed.update(clip(prediction.predictions), prediction.label_ids)
        own = {} if self.own is None else self.own(prediction, compute_result)  # type: ignore[call-arg]
        return flat(self.streamed.compute()) | self._named(own) if compute_result else {}

    def _named(self, own: dict[str, float]) -> dict[str, float]:
        self.own_names = [name.removeprefix("eval_") for name in own]
        return own

    def check(self) -> None:
        """Refuses metrics of the user's own that cannot be called batch by batch, as those of maps are."""
        if self.own is None or not self.is_map:
            return
        try:
            inspect.signature(self.own).bind(None, True)
        except TypeError as error:
            raise ValueError(
                f"compute_metrics is called batch by batch where labels are maps, and must take a second argument, "
                f"compute_result, which is true with the last batch ({error})."
            ) from error


def squeeze_predictions(
    logits: Tensor | tuple[Tensor, ...], labels: Tensor | None, then: Callable[[Tensor, Tensor | None], Tensor] | None
) -> Tensor:
    """
    Predictions in the labels' shape, where `predict` on rows without labels gives the model's own `(N, 1)`, or maps
    `(N, 1, H, W)`, which keep the model's size; then the user's `preprocess_logits_for_metrics`.
    """
    predictions = logits[0] if isinstance(logits, tuple) else logits
    if labels is None and predictions.ndim in (2, 4) and predictions.shape[1] == 1:
        predictions = predictions.squeeze(1)
    return predictions if then is None else then(predictions, labels)
