"""What a run's settings come to on its training labels."""

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from conr_hf.imbalance import smoothing_kernel
from conr_hf.imbalance.density import DensityMethod
from conr_hf.training.config.config import ConRConfig

# Anchors among the pixels of a micro-batch. docs/maps.md holds what a sample adds to the gradient's noise, and what it
# spares.
MAP_ANCHORS = 128

ArrayOrTensor = TypeVar("ArrayOrTensor", np.ndarray, Tensor)


@dataclass(frozen=True)
class ResolvedConfig:
    """
    What a run uses: the settings of ConR with every unset one derived from the training labels. Saved with the model.

    Lengths on the label axis (`label_mean`, `label_median`, `label_range`, `label_scale`, `window`,
    `cmixup_bandwidth`) are in label units, `push_scale` in their inverse; `loss_scale`, `huber_delta`, `noise_sigma`
    and the inverse of `focal_beta` in those of the loss space, label units or their logarithm. The fields are those of
    [`ConRConfig`]; `loss_scale` is the label scale, and the standard deviation of log(1 + label) under `log1p`.

    `relative_scales` are the scales of the label dimensions over the label scale, 1 without `scale_each`. With it, all
    these lengths but `label_mean` and `label_median` are those of labels divided by them.
    """

    label_columns: tuple[str, ...]
    label_mean: tuple[float, ...]
    label_median: tuple[float, ...]
    label_range: float
    label_scale: float
    relative_scales: tuple[float, ...]
    weight: float
    window: float
    temperature: float
    push: str
    push_scale: float
    formulation: str
    reduction: str
    distance: str
    conr_reweight: DensityMethod
    base_loss: str
    loss_space: str
    loss_scale: float
    huber_delta: float
    focal_beta: float
    noise_sigma: float
    reweight: DensityMethod
    resample: DensityMethod
    rnc_weight: float
    cmixup_bandwidth: float
    num_views: int
    map_scale: float
    map_invalid: float | None
    label_min: tuple[float, ...] | None = None
    label_max: tuple[float, ...] | None = None
    conr_anchors: int = 0
    conr_gradient_share: float = 0.0
    rnc_gradient_share: float = 0.0
    ranksim_gradient_share: float = 0.0

    @property
    def uses_conr(self) -> bool:
        """Whether ConR is computed, by a weight or a share."""
        return self.weight > 0 or self.conr_gradient_share > 0

    @property
    def uses_rnc(self) -> bool:
        """Whether Rank-N-Contrast is computed, by a weight or a share."""
        return self.rnc_weight > 0 or self.rnc_gradient_share > 0

    @property
    def head_scale(self) -> float | Tensor:
        """What a fresh head starts with and its gradient is multiplied by: one number, or `(T,)` with `scale_each`."""
        if all(scale == 1 for scale in self.relative_scales):
            return self.label_scale
        return torch.tensor([self.label_scale * scale for scale in self.relative_scales])

    def to_common_scale(self, values: Tensor) -> Tensor:
        """
        Labels, predictions or their differences, `(M,)` or `(M, T)`, with dimensions of one scale, the label scale.
        """
        if all(scale == 1 for scale in self.relative_scales):
            return values
        return values / torch.tensor(self.relative_scales, dtype=values.dtype, device=values.device)

    def clip(self, predictions: ArrayOrTensor) -> ArrayOrTensor:
        """Predictions, `(N,)`, `(N, T)` or maps, cut off at the smallest and largest label that there can be."""
        for bound, cut in ((self.label_min, np.maximum), (self.label_max, np.minimum)):
            if bound is not None and isinstance(predictions, Tensor):
                limits = torch.tensor(bound, dtype=predictions.dtype, device=predictions.device)
                predictions = predictions.maximum(limits) if cut is np.maximum else predictions.minimum(limits)
            elif bound is not None:
                predictions = cut(predictions, np.array(bound, predictions.dtype))
        return predictions


def resolve(args: ConRConfig, labels: np.ndarray, may_resample: bool = True, of_maps: bool = False) -> ResolvedConfig:
    """
    Derives the unset settings from training labels of shape `(N,)` or `(N, T)`, in label units. `may_resample`: rows
    can be drawn at will, and the user weighs none. `of_maps`: the labels are those of pixels, with which neither
    resampling nor Rank-N-Contrast goes unless it is set. A negative label under `log1p` is a `ValueError`.
    """
    columns = labels.reshape(len(labels), -1).astype(np.float64)  # (N, T)
    if args.loss_space == "log1p" and columns.min() < 0:
        row = int(columns.min(1).argmin())
        which = "a label of a training map" if of_maps else f"the label of usable training row {row:,}"
        raise ValueError(
            f"loss_space is log1p, but {which} is {columns[row].min():g}; labels must not be negative. Set loss_space "
            "to label."
        )
    anchors = args.conr_anchors
    if anchors is None:
        anchors = MAP_ANCHORS if of_maps else 0
    scale = args.label_scale if args.label_scale is not None else float(np.sqrt(columns.var(0).mean())) or 1.0
    relative_scales = np.ones(columns.shape[1])
    if args.scale_each:
        relative_scales = np.where(columns.std(0) > 0, columns.std(0), scale) / scale
    label_range = float(np.mean((columns.max(0) - columns.min(0)) / relative_scales))
    loss_scale = scale
    if args.loss_space == "log1p":
        loss_scale = float(np.sqrt(np.log1p(columns).var(0).mean())) or 1.0
    inverse_range = 1 / label_range if label_range > 0 else 0.0
    may_resample = may_resample and args.train_sampling_strategy == "random" and not of_maps
    strength = args.conr_strength(may_resample, of_maps)
    return ResolvedConfig(
        label_columns=tuple(args.label_columns),
        label_mean=tuple(float(mean) for mean in columns.mean(0)),
        label_median=tuple(float(median) for median in np.median(columns, 0)),
        label_range=label_range,
        label_scale=scale,
        relative_scales=tuple(float(relative) for relative in relative_scales),
        weight=strength if args.conr_gradient_share is None else 0.0,
        window=args.conr_window if args.conr_window is not None else 0.01 * label_range,
        temperature=args.conr_temperature,
        push=args.conr_push,
        push_scale=args.conr_push_scale if args.conr_push_scale is not None else inverse_range,
        formulation=args.conr_formulation,
        reduction=args.conr_reduction,
        distance=args.conr_distance,
        conr_reweight=args.conr_reweight,
        base_loss=args.base_loss,
        loss_space=args.loss_space,
        loss_scale=loss_scale,
        huber_delta=args.huber_delta if args.huber_delta is not None else loss_scale,
        focal_beta=args.focal_beta if args.focal_beta is not None else 3 / loss_scale,
        noise_sigma=args.noise_sigma if args.noise_sigma is not None else 0.6 * loss_scale,
        reweight=args.reweight,
        resample=args.resampling(args.balances, may_resample),
        rnc_weight=args.rank_n_contrast_weight(args.balances and not of_maps),
        cmixup_bandwidth=args.cmixup_bandwidth if args.cmixup_bandwidth is not None else 0.1 * scale,
        num_views=args.num_views,
        map_scale=args.map_scale,
        map_invalid=args.map_invalid,
        label_min=None if args.label_min is None else tuple(args.label_bounds()[0]),
        label_max=None if args.label_max is None else tuple(args.label_bounds()[1]),
        conr_anchors=anchors,
        conr_gradient_share=0.0 if args.conr_gradient_share is None else strength,
        rnc_gradient_share=0.0 if args.only_head_trains else args.rnc_gradient_share or 0.0,
        ranksim_gradient_share=0.0 if args.only_head_trains else args.ranksim_gradient_share or 0.0,
    )


def lds_kernel(args: ConRConfig) -> np.ndarray | None:
    """The kernel of label distribution smoothing, if it is on."""
    return None if args.lds == "none" else smoothing_kernel(args.lds, args.lds_kernel_size, args.lds_sigma)
