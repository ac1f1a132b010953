"""`MeasuringTrainer`: the errors of an evaluation, per shot."""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset
from transformers import EvalPrediction
from transformers.trainer_utils import EvalLoopOutput

from conr_hf.data.columns import Row
from conr_hf.metrics import StreamedErrors, flat
from conr_hf.metrics.gaze import label_errors
from conr_hf.training.objective.step import MinimisingTrainer


class MeasuringTrainer(MinimisingTrainer):
    """
    What [`ConRTrainer`] measures in an evaluation.

    Args:
        compute_metrics, preprocess_logits_for_metrics, args, kwargs: As in [`ConRTrainer`].
    """

    def __init__(
        self,
        *args: Any,
        compute_metrics: Callable[[EvalPrediction], dict[str, float]] | None = None,
        preprocess_logits_for_metrics: Callable[[Tensor, Tensor | None], Tensor] | None = None,
        **kwargs: Any,
    ) -> None:
        self._user_metrics = compute_metrics
        self._streamed: StreamedErrors | None = None  # of the last evaluation, or of that going on
        super().__init__(
            *args,
            compute_metrics=self._all_metrics,
            preprocess_logits_for_metrics=partial(_squeezed, then=preprocess_logits_for_metrics),
            **kwargs,
        )

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        # Maps are counted batch by batch, so that those of a data set are never in memory at once.
        self.args.batch_eval_metrics, self._streamed = self.is_map, None
        try:
            return super().evaluation_loop(*args, **kwargs)
        finally:
            self.args.batch_eval_metrics = False
            self.head.features = None  # of the last batch

    def check_metrics(self) -> None:
        """
        Raises:
            `ValueError`: if metrics of the user's own cannot be called batch by batch, as those of maps are.
        """
        if self._user_metrics is None:
            return
        try:
            inspect.signature(self._user_metrics).bind(None, True)
        except TypeError as error:
            raise ValueError(
                f"compute_metrics is called batch by batch where labels are maps, and must take a second argument, "
                f"compute_result, which is true with the last batch ({error})."
            ) from error

    def map_errors(self, dataset: Dataset[Row], split: str) -> StreamedErrors:
        """
        Errors by bin on the maps of a data set, of which no two batches are in memory at once. (`predict` returns all
        predictions.)

        Args:
            dataset (a data set): Rows with an image and a map.
            split (`str`): What it is called.
        """
        with self.averaged():
            self.evaluation_loop(self.get_test_dataloader(dataset), "Evaluation", metric_key_prefix=split)
        assert self._streamed is not None
        return self._streamed

    def _all_metrics(self, prediction: EvalPrediction, compute_result: bool = True) -> dict[str, float]:
        theirs: dict[str, float] = {}
        if not self.is_map:
            arrays = np.asarray(prediction.predictions), np.asarray(prediction.label_ids)
            metrics = flat(label_errors(*arrays, self.bins, self.args.label_columns))
            if self._user_metrics is not None:
                theirs = self._user_metrics(prediction)
            return {**metrics, **theirs}
        self._streamed = self._streamed or StreamedErrors(self.bins)
        self._streamed.update(prediction.predictions, prediction.label_ids)
        if self._user_metrics is not None:
            theirs = self._user_metrics(prediction, compute_result)  # type: ignore[call-arg]
        return {**flat(self._streamed.compute()), **theirs} if compute_result else {}


def _squeezed(
    logits: Tensor | tuple[Tensor, ...],
    labels: Tensor | None,
    then: Callable[[Tensor, Tensor | None], Tensor] | None,
) -> Tensor:
    """
    Predictions in the labels' shape, where `predict` on rows without labels gives the model's own `(N, 1)`, or maps
    `(N, 1, H, W)`, which keep the model's size.
    """
    predictions = logits[0] if isinstance(logits, tuple) else logits
    if labels is None and predictions.ndim in (2, 4) and predictions.shape[1] == 1:
        predictions = predictions.squeeze(1)
    return predictions if then is None else then(predictions, labels)
