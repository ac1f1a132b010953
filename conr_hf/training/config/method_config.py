"""The settings of the methods that ConR is compared and combined with: `MethodConfig`."""

import math
from dataclasses import dataclass
from typing import Literal

from conr_hf.imbalance.density import DensityMethod
from conr_hf.imbalance.kernels import KernelName
from conr_hf.utils.fields import check_not_negative, check_positive, with_help

BALANCED_LOSSES = ("bmc", "gai", "bni")  # Balanced MSE in its three forms


@with_help
@dataclass
class MethodConfig:
    """
    Settings of the methods that ConR is compared and combined with; a part of [`ConRConfig`].

    Each is off unless set, except for `resample` and `rnc_weight`. They combine freely, unless two of them correct the
    same imbalance. Everything is in label units; s is the label scale.

    Args:
        base_loss (`str`, *optional*, defaults to `"l1"`):
            `"l1"`, `"mse"`, `"huber"`, `"focal_l1"` or `"focal_mse"` (Focal-R), of residuals divided by s; or Balanced
            MSE by the labels of the batch (`"bmc"`), a Gaussian mixture of the training labels (`"gai"`) or their
            bins (`"bni"`).
        loss_space (`str`, *optional*, defaults to `"label"`):
            `"log1p"` takes the base loss between log(1 + prediction) and log(1 + label), for labels that are not
            negative; s, `huber_delta`, `focal_beta` and `noise_sigma` then refer to the logarithm.
        huber_delta (`float`, *optional*):
            Error at which Huber's loss becomes linear. Unset: s.
        focal_beta (`float`, *optional*):
            How fast Focal-R's weight of an error grows to 1, per label unit. Unset: 3 / s.
        noise_sigma (`float`, *optional*):
            Standard deviation of Balanced MSE's noise at the start. Unset: 0.6 s, about 10 years for faces.
        noise_learning_rate (`float`, *optional*, defaults to 0.01):
            Learning rate (Adam's) of the logarithm of Balanced MSE's noise; 0 keeps the noise as it is.
        gai_components (`int`, *optional*, defaults to 8):
            Components of the Gaussian mixture of the base loss `"gai"`.
        reweight (`str`, *optional*, defaults to `"none"`):
            Density weights of the base loss: `"none"`, `"inverse"` or `"sqrt_inverse"`; their mean over the training
            set is 1. A column `sample_weight` multiplies them.
        resample (`str`, *optional*):
            Draw training rows, with replacement, in proportion to density weights: `"none"`, `"inverse"` or
            `"sqrt_inverse"`. Unset: `"sqrt_inverse"`, unless `conr_weight` is 0, the head alone is trained, labels are
            maps, rows are weighted already (`reweight`, Balanced MSE, a column `sample_weight`, a loss of your own) or
            come in a fixed order (a stream, or sequential sampling).
        lds (`str`, *optional*, defaults to `"none"`):
            Label distribution smoothing of the densities behind all weights (`reweight`, `conr_reweight`,
            `resample`), by a `"gaussian"`, `"triangular"` or `"laplace"` kernel.
        lds_kernel_size (`int`, *optional*, defaults to 5):
            Size of the kernel of `lds` in bins, odd.
        lds_sigma (`float`, *optional*, defaults to 2.0):
            Width of the kernel of `lds`, in bins.
        fds (`str`, *optional*, defaults to `"none"`):
            Feature distribution smoothing before the head, from the second epoch on, by a `"gaussian"`,
            `"triangular"` or `"laplace"` kernel.
        fds_kernel_size (`int`, *optional*, defaults to 5):
            Size of the kernel of `fds` in bins, odd.
        fds_sigma (`float`, *optional*, defaults to 2.0):
            Width of the kernel of `fds`, in bins.
        fds_momentum (`float`, *optional*, defaults to 0.9):
            Share of a bin's feature statistics that `fds` keeps from epoch to epoch.
        fds_clip (`float`, *optional*, defaults to 10.0):
            Largest factor by which `fds` changes a variance, up or down: 10 for ages, 5 for depth, 2 for texts in the
            paper.
        ranksim_weight (`float`, *optional*, defaults to 0.0):
            Weight of RankSim beside the base loss; the paper's 100, over raw ages, is 100 / s.
        ranksim_gradient_share (`float`, *optional*):
            In place of `ranksim_weight`, as `conr_gradient_share` is in place of `conr_weight`.
        ranksim_interpolation (`float`, *optional*, defaults to 2.0):
            RankSim's interpolation strength (lambda).
        rnc_weight (`float`, *optional*):
            Weight of Rank-N-Contrast beside the base loss. Unset: 1; 0 with label maps, where `conr_weight` is 0, and
            where the head alone is trained.
        rnc_gradient_share (`float`, *optional*):
            In place of `rnc_weight`, as `conr_gradient_share` is in place of `conr_weight`.
        rnc_temperature (`float`, *optional*, defaults to 2.0):
            Rank-N-Contrast's temperature.
        cmixup_alpha (`float`, *optional*, defaults to 0.0):
            C-Mixup: each image is mixed with one of a similar label, by a share from Beta(alpha, alpha). 0: off.
        cmixup_bandwidth (`float`, *optional*):
            Standard deviation of the label distance between the two images of C-Mixup. Unset: 0.1 s.
        freeze_backbone (`bool`, *optional*, defaults to `False`):
            Train the head alone (linear probing), with frozen batch-norm statistics and without ConR.
        retrain_head (`bool`, *optional*, defaults to `False`):
            Second stage of RRT: train a new head alone on a trained model, with re-weighting.
        layer_decay (`float`, *optional*):
            Learning rate of each layer as a share of that of the next one up, such as 0.75. Unset: 1.
        ema_decay (`float`, *optional*):
            Evaluate and save an exponential moving average of the weights with this decay, such as 0.999, smaller in
            the first steps. Unset: the weights themselves.
        refit_head (`str`, *optional*, defaults to `"none"`):
            `"affine"`: after training, predictions become a x prediction + b, fitted by L1 with all label bins
            weighed alike on a third of the evaluation set, and folded into the head. That third is set aside: it
            neither chooses the epoch nor calibrates intervals. Nothing changes where cross-validation shows no gain.
    """

    base_loss: Literal["l1", "mse", "huber", "focal_l1", "focal_mse", "bmc", "gai", "bni"] = "l1"
    loss_space: Literal["label", "log1p"] = "label"
    huber_delta: float | None = None
    focal_beta: float | None = None
    noise_sigma: float | None = None
    noise_learning_rate: float = 0.01
    gai_components: int = 8
    reweight: DensityMethod = "none"
    resample: DensityMethod | None = None
    lds: Literal["none", KernelName] = "none"
    lds_kernel_size: int = 5
    lds_sigma: float = 2.0
    fds: Literal["none", KernelName] = "none"
    fds_kernel_size: int = 5
    fds_sigma: float = 2.0
    fds_momentum: float = 0.9
    fds_clip: float = 10.0
    ranksim_weight: float = 0.0
    ranksim_gradient_share: float | None = None
    ranksim_interpolation: float = 2.0
    rnc_weight: float | None = None
    rnc_gradient_share: float | None = None
    rnc_temperature: float = 2.0
    cmixup_alpha: float = 0.0
    cmixup_bandwidth: float | None = None
    freeze_backbone: bool = False
    retrain_head: bool = False
    layer_decay: float | None = None
    ema_decay: float | None = None
    refit_head: Literal["none", "affine"] = "none"

    @property
    def only_head_trains(self) -> bool:
        """Whether the backbone is frozen."""
        return self.freeze_backbone or self.retrain_head

    def check_methods(
        self, label_columns: list[str], balances: bool, conr_strength: float, of_conr: str = "conr_weight"
    ) -> None:
        """
        Refuses values that a setting cannot have, and methods that contradict each other. `balances`: resampling and
        Rank-N-Contrast are on where they are not set; `of_conr` is the option that `conr_strength` is from.
        """
        check_not_negative(self, "noise_learning_rate", "ranksim_weight", "rnc_weight", "cmixup_alpha")
        check_not_negative(self, "ranksim_gradient_share", "rnc_gradient_share")
        for term, unset in (("ranksim", 0.0), ("rnc", None)):
            share, weight = getattr(self, f"{term}_gradient_share"), getattr(self, f"{term}_weight")
            if share is not None and weight != unset:
                raise ValueError(
                    f"{term}_gradient_share is {share} and {term}_weight {weight}, which each set how strong it is. "
                    "Leave one of them out."
                )
        check_positive(self, "huber_delta", "focal_beta", "noise_sigma", "lds_sigma", "fds_sigma")
        check_positive(self, "ranksim_interpolation", "rnc_temperature", "cmixup_bandwidth", "gai_components")
        if not 1 <= self.fds_clip < math.inf:
            raise ValueError(f"fds_clip is {self.fds_clip}; it must be 1 or more, as in 10.")
        for name in ("layer_decay", "ema_decay", "fds_momentum"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"{name} is {value}; it must be between 0 and 1.")
        for name in ("lds_kernel_size", "fds_kernel_size"):
            if getattr(self, name) % 2 != 1 or getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be odd and 1 or more, as in 5.")
        weighing = {"reweight": self.reweight, "resample": self.resample or "none"}
        corrections = [f"{name}={method}" for name, method in weighing.items() if method != "none"]
        if self.base_loss in BALANCED_LOSSES:
            corrections.append(f"base_loss={self.base_loss}")
        if len(corrections) > 1:
            raise ValueError(
                f"{' and '.join(corrections)} each correct the base loss for the labels' imbalance, and together they "
                "do it twice. Keep one of them; conr_reweight goes with any."
            )
        no_label = "a mixture of two images has no label that its features could be compared by"
        unmixed = {
            of_conr: (conr_strength, no_label),
            "ranksim_weight": (self.ranksim_weight, no_label),
            "ranksim_gradient_share": (self.ranksim_gradient_share or 0, no_label),
            "rnc_weight": (self.rank_n_contrast_weight(balances), no_label),
            "rnc_gradient_share": (self.rnc_gradient_share or 0, no_label),
            "reweight": (self.reweight, "a mixture's label lies between those whose density is known"),
            "fds": (self.fds, "features of mixed images are no samples of a bin"),
        }
        for name, (value, reason) in unmixed.items():
            if self.cmixup_alpha > 0 and value not in (0, "none"):
                raise ValueError(
                    f"cmixup_alpha is {self.cmixup_alpha} and {name} {value}: {reason}. Set one of them to 0 or none."
                )
        if self.retrain_head and not corrections:
            raise ValueError(
                "retrain_head trains the head again on the same loss unless that is corrected for imbalance. Set "
                "reweight to sqrt_inverse or inverse, or resample."
            )
        if self.fds != "none" and len(label_columns) > 1:
            raise ValueError(
                f"fds is {self.fds}, but its bins lie along one label; label_columns names "
                f"{len(label_columns)}. Set fds to none."
            )

    def method_needs(self, balances: bool) -> dict[str, tuple[bool, str]]:
        """By option, whether it has an effect beside the others, and what it needs for that."""
        uses_ranksim = self.ranksim_weight > 0 or bool(self.ranksim_gradient_share)
        rnc_share = 0.0 if self.only_head_trains else self.rnc_gradient_share or 0.0
        uses_rnc = self.rank_n_contrast_weight(balances) + rnc_share > 0
        balanced = self.base_loss in BALANCED_LOSSES, "base_loss bmc, gai or bni"
        backbone = not self.only_head_trains, "a backbone that is trained"
        return {
            "huber_delta": (self.base_loss == "huber", "base_loss huber"),
            "focal_beta": (self.base_loss in ("focal_l1", "focal_mse"), "base_loss focal_l1 or focal_mse"),
            **dict.fromkeys(("noise_sigma", "noise_learning_rate"), balanced),
            "gai_components": (self.base_loss == "gai", "base_loss gai"),
            **dict.fromkeys(("lds_kernel_size", "lds_sigma"), (self.lds != "none", "lds")),
            **dict.fromkeys(("fds_kernel_size", "fds_sigma", "fds_momentum", "fds_clip"), (self.fds != "none", "fds")),
            **dict.fromkeys(("ranksim_weight", "ranksim_gradient_share", "conr_gradient_share"), backbone),
            "ranksim_interpolation": (uses_ranksim, "ranksim_weight"),
            **dict.fromkeys(("rnc_weight", "rnc_gradient_share"), backbone),
            "rnc_temperature": (uses_rnc, "rnc_weight"),
            "cmixup_bandwidth": (self.cmixup_alpha > 0, "cmixup_alpha"),
        }

    def resampling(self, balances: bool, may_resample: bool = True) -> DensityMethod:
        """`resample`, or what it is if unset: on if `balances`."""
        if self.resample is not None:
            return self.resample
        corrected = self.reweight != "none" or self.base_loss in BALANCED_LOSSES
        return "sqrt_inverse" if balances and may_resample and not corrected else "none"

    def rank_n_contrast_weight(self, balances: bool) -> float:
        """
        `rnc_weight`, or what it is if unset: 1 if `balances`. 0 where only the head is trained, or a share is set in
        its place.
        """
        if self.only_head_trains or self.rnc_gradient_share is not None:
            return 0.0
        if self.rnc_weight is not None:
            return self.rnc_weight
        return 1.0 if balances else 0.0
