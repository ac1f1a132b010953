"""`refit_head`: after training, predictions become a x prediction + b, folded into the head's weight and bias."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.optimize import linprog
from transformers import EvalPrediction, Trainer, TrainerState

from conr_hf.data.dataset import SampledDataset
from conr_hf.data.splits import stratified_folds
from conr_hf.imbalance import Bins
from conr_hf.imbalance.bins import FloatArray, IntArray
from conr_hf.metrics.validation import like_labels
from conr_hf.models.head import Head
from conr_hf.training.compute_metrics import squeeze_predictions
from conr_hf.training.data_module import DataModule
from conr_hf.utils.distributed import gather_objects

FOLDS = 5
MOST_PIXELS = 20_000  # that a line is fitted to

Clip = Callable[[FloatArray], FloatArray]


class Refit(NamedTuple):
    """A line for each of the T label dimensions, and the balanced MAE without and with it, in label units."""

    slope: FloatArray  # (T,): 1 where the predictions stay as they are
    intercept: FloatArray  # (T,), in label units: 0 where they stay
    before: float
    after: float  # cross-validated: each row by a line that was not fitted to it


def refit_head(trainer: Trainer, data: DataModule, head: Head) -> None:
    """
    Fits the lines on the rows of the evaluation set that were set aside for it, folds them into the head, logs
    `refit_...`, and evaluates anew where the predictions have changed. All processes must call it.
    """
    if data.args.refit_head == "none":
        return
    rows, strata, _ = data.refit_rows()
    folds = stratified_folds(strata, data.bins, FOLDS, data.args.seed)
    predictions, labels, row = _predicted(trainer, rows, data.labels_are_maps)
    fitted = fit_lines(predictions, labels, data.bins, folds[row], data.resolved.clip)
    fitted = gather_objects(fitted)[0]  # of one process, as two could round differently
    fold_into(head, fitted.slope, fitted.intercept)
    names = [f"_{name}" for name in data.label_names or ()] if len(fitted.slope) > 1 else [""]
    logs: dict[str, float] = {"refit_rows": len(rows)}
    logs |= {"refit_bmae_before": fitted.before, "refit_bmae_after": fitted.after}
    for name, slope, intercept in zip(names, fitted.slope.tolist(), fitted.intercept.tolist(), strict=True):
        logs |= {f"refit_slope{name}": slope, f"refit_intercept{name}": intercept}
    trainer.log(logs)
    if fitted.after < fitted.before:
        trainer.evaluate()  # so that the last errors in the log are those of the model that is left


def refit_facts(state: TrainerState) -> dict[str, Any]:
    """What the re-fit logged, as `results.json` has it: `{"refit_head": {"rows": ..., ...}}`; empty without one."""
    found = log_since_refit(state)
    if not found:
        return {}
    return {"refit_head": {key[6:]: value for key, value in found[0].items() if key.startswith("refit_")}}


def log_since_refit(state: TrainerState) -> list[dict[str, float]]:
    """The entries of a run's log from that of the re-fit on; empty without one."""
    log = state.log_history
    return next((log[place:] for place in range(len(log)) if "refit_rows" in log[place]), [])


def fit_lines(predictions: FloatArray, labels: FloatArray, bins: Bins, folds: IntArray, clip: Clip) -> Refit:
    """
    For each label dimension the line through the predictions with the least balanced MAE.

    A line is kept if it is rising and if, by cross-validation, it lowers the balanced MAE; else the predictions of
    that dimension stay as they are.

    Args:
        predictions, labels (`np.ndarray` of shape `(N, T)`): In label units.
        bins ([`~conr_hf.imbalance.Bins`]): Bins that weigh alike.
        folds (`np.ndarray` of shape `(N,)`): The fold of each row, from 0 on.
        clip (`Callable`): Cuts predictions, `(N, T)`, off where there are no labels, before errors are taken.
    """
    index = bins.index(labels)
    weights = np.stack([_bins_alike(column) for column in index.T], axis=1)
    unseen = predictions.copy()
    lines = np.tile([1.0, 0.0], (labels.shape[1], 1))
    for t, (p, y) in enumerate(zip(predictions.T, labels.T, strict=True)):
        lines[t] = fit_line(p, y, weights[:, t])
        for fold in np.unique(folds):
            others = folds != fold
            slope, intercept = fit_line(p[others], y[others], _bins_alike(index[others, t]))
            unseen[~others, t] = slope * p[~others] + intercept
    before, after = ((weights * np.abs(clip(some) - labels)).mean(axis=0) for some in (predictions, unseen))
    kept = (after < before) & (lines[:, 0] > 0)
    lines[~kept] = 1.0, 0.0
    return Refit(lines[:, 0], lines[:, 1], float(before.mean()), float(np.where(kept, after, before).mean()))


def fit_line(p: FloatArray, y: FloatArray, weights: FloatArray) -> tuple[float, float]:
    """
    Slope a and intercept b with the least sum of weights |y - a p - b|, for arrays of shape `(N,)`: exact, as the
    multipliers of the linear program max y d with sum d = 0, p d = 0 and |d| <= weights, which is its dual.
    """
    middle, scale = np.median(y), np.abs(y - np.median(y)).mean()
    if scale == 0 or np.ptp(p) == 0:
        return 0.0, float(_weighted_median(y, weights))
    x, target = (p - middle) / scale, (y - middle) / scale
    bounds = np.stack([-weights, weights], axis=1)
    solved = linprog(-target, A_eq=np.stack([x, np.ones_like(x)]), b_eq=[0, 0], bounds=bounds, method="highs")
    slope, intercept = -solved.eqlin.marginals
    return float(slope), float(scale * intercept + (1 - slope) * middle)


@torch.no_grad()
def fold_into(head: Head, slope: FloatArray, intercept: FloatArray) -> None:
    """Makes slope x prediction + intercept, `(T,)` each, of what a head predicts."""
    assert head.bias is not None
    factor, shift = (torch.from_numpy(part).to(head.weight.device) for part in (slope, intercept))
    head.weight.copy_(head.weight.double() * factor.view(-1, *[1] * (head.weight.ndim - 1)))
    head.bias.copy_(head.bias.double() * factor + shift)


def _bins_alike(index: IntArray) -> FloatArray:
    """Weights, `(N,)`, of mean 1, with which the bins at `index` weigh alike, and labels outside all as one more."""
    _, place, counts = np.unique(index, return_inverse=True, return_counts=True)
    weights: FloatArray = len(index) / (len(counts) * counts[place])
    return weights


def _weighted_median(y: FloatArray, weights: FloatArray) -> float:
    order = np.argsort(y)
    total = np.cumsum(weights[order])
    return float(y[order[np.searchsorted(total, total[-1] / 2)]])


def _predicted(trainer: Trainer, rows: SampledDataset, of_maps: bool) -> tuple[FloatArray, FloatArray, IntArray]:
    """
    Predictions and labels, `(N, T)`, in label units, and the place in `rows` of each: of every row, or, of maps, of
    labelled pixels drawn at random, as many of each map.
    """
    random = np.random.default_rng(trainer.args.seed)
    most = max(MOST_PIXELS // len(rows), 1)
    parts: list[tuple[FloatArray, FloatArray, IntArray]] = []
    seen = 0

    def collect(prediction: EvalPrediction, compute_result: bool = True) -> dict[str, float]:
        nonlocal seen
        for p, y in zip(_rows_of(prediction.predictions), _rows_of(prediction.label_ids), strict=True):
            if of_maps:
                valid = np.flatnonzero(~np.isnan(y))
                chosen = random.choice(valid, min(most, len(valid)), replace=False)
                p, y = p[chosen, None], y[chosen, None]
            else:
                p, y = p[None], y[None]
            parts.append((p, y, np.full(len(y), seen)))
            seen += 1
        return {}

    args = trainer.args
    own = trainer.compute_metrics, trainer.preprocess_logits_for_metrics, args.batch_eval_metrics
    trainer.compute_metrics, args.batch_eval_metrics = collect, True
    trainer.preprocess_logits_for_metrics = partial(squeeze_predictions, then=None)
    try:
        trainer.evaluation_loop(trainer.get_test_dataloader(rows), "Evaluation", metric_key_prefix="refit")
    finally:
        trainer.compute_metrics, trainer.preprocess_logits_for_metrics, args.batch_eval_metrics = own
    predictions, labels, row = (np.concatenate(part) for part in zip(*parts, strict=True))
    return like_labels(predictions, labels), labels, row


def _rows_of(values: Any) -> FloatArray:
    """A batch of numbers, vectors or maps, on any device, with one row of the array each, float64."""
    array: FloatArray = torch.as_tensor(values).double().cpu().numpy()
    return array.reshape(len(array), -1)
