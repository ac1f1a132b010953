"""The settings of the methods that ConR is compared and combined with: `MethodConfig`."""

import math
from dataclasses import dataclass, field
from typing import get_args

from conr_hf.imbalance.density import DensityMethod
from conr_hf.imbalance.kernels import KernelName
from conr_hf.utils.fields import about, check_choices, check_not_negative, check_positive

BALANCED_LOSSES = ("bmc", "gai", "bni")  # Balanced MSE in its three forms
_CHOICES = {
    "base_loss": ("l1", "mse", "huber", "focal_l1", "focal_mse", *BALANCED_LOSSES),
    "loss_space": ("label", "log1p"),
    "reweight": get_args(DensityMethod),
    "lds": ("none", *get_args(KernelName)),
    "fds": ("none", *get_args(KernelName)),
}


@dataclass
class MethodConfig:
    """
    Settings of the methods that ConR is compared and combined with; a part of [`ConRConfig`].

    Each is off unless set, but for `resample` and `rnc_weight`, which go with ConR. They combine freely, but for what
    corrects the same imbalance twice. Everything is in label units; s is the label scale.

    Args:
        base_loss (`str`, *optional*, defaults to `"l1"`):
            `"l1"`, `"mse"`, `"huber"`, `"focal_l1"` or `"focal_mse"` (Focal-R), of residuals divided by s; or Balanced
            MSE by the labels of the batch (`"bmc"`), a Gaussian mixture of the training labels (`"gai"`) or their
            bins (`"bni"`).
        loss_space (`str`, *optional*, defaults to `"label"`):
            `"log1p"` takes the base loss between log(1 + prediction) and log(1 + label), for labels that are not
            negative; s, `huber_delta`, `focal_beta` and `noise_sigma` then refer to the logarithm.
        huber_delta (`float`, *optional*):
            Where Huber's loss turns linear. Unset: s.
        focal_beta (`float`, *optional*):
            How fast Focal-R counts a growing error in full, per label unit. Unset: 3 / s.
        noise_sigma (`float`, *optional*):
            Standard deviation of Balanced MSE's noise at the start. Unset: 0.6 s, some 10 years for faces.
        noise_learning_rate (`float`, *optional*, defaults to 0.01):
            Learning rate (Adam's) of that noise's logarithm; 0 keeps it.
        gai_components (`int`, *optional*, defaults to 8):
            Components of the Gaussian mixture.
        reweight (`str`, *optional*, defaults to `"none"`):
            Density weights of the base loss: `"none"`, `"inverse"` or `"sqrt_inverse"`; their mean over the training
            set is 1. A column `sample_weight` multiplies them.
        resample (`str`, *optional*):
            Draws training rows, with replacement, in proportion to such weights. Unset: `"sqrt_inverse"` with ConR,
            whose rare anchors need company in the batch, unless `reweight`, Balanced MSE, a column `sample_weight` or
            a loss of the user's own weighs already, or rows cannot be drawn at will (a stream, or sequentially); else
            `"none"`.
        lds (`str`, *optional*, defaults to `"none"`):
            Label distribution smoothing of all densities that weigh (`reweight`, `conr_reweight`, `resample`), by a
            `"gaussian"`, `"triangular"` or `"laplace"` kernel.
        lds_kernel_size, lds_sigma (`int` and `float`, *optional*, default to 5 and 2.0):
            Size and width of that kernel, in bins.
        fds (`str`, *optional*, defaults to `"none"`):
            Feature distribution smoothing before the head, from the second epoch on, by such a kernel.
        fds_kernel_size, fds_sigma (`int` and `float`, *optional*, default to 5 and 2.0):
            Size and width of that kernel, in bins.
        fds_momentum (`float`, *optional*, defaults to 0.9):
            How much of a bin's statistics an epoch keeps.
        fds_clip (`float`, *optional*, defaults to 10.0):
            The largest change of a variance, up or down: 10 for ages, 5 for depth, 2 for texts in the paper.
        ranksim_weight (`float`, *optional*, defaults to 0.0):
            Weight of RankSim beside the base loss; the paper's 100, over raw ages, is 100 / s.
        ranksim_interpolation (`float`, *optional*, defaults to 2.0):
            Its interpolation strength (lambda).
        rnc_weight (`float`, *optional*):
            Weight of Rank-N-Contrast beside the base loss. Unset: 1 with ConR, else 0.
        rnc_temperature (`float`, *optional*, defaults to 2.0):
            Its temperature.
        cmixup_alpha (`float`, *optional*, defaults to 0.0):
            C-Mixup: each image is mixed with one of a similar label, by a share from Beta(alpha, alpha). 0: none.
        cmixup_bandwidth (`float`, *optional*):
            Standard deviation of the label distance of those partners. Unset: 0.1 s.
        freeze_backbone (`bool`, *optional*, defaults to `False`):
            Train the head alone (linear probing), batch-norm statistics frozen too. ConR is then skipped.
        retrain_head (`bool`, *optional*, defaults to `False`):
            Second stage of RRT: start the head of a trained model anew and train it alone, re-weighted.
        layer_decay (`float`, *optional*):
            The learning rate of each layer as a share of that of the next one up, such as 0.75. Unset: 1.
        ema_decay (`float`, *optional*):
            Evaluate and save an exponential moving average of the weights with this decay, such as 0.999, smaller in
            the first steps. Unset: the weights themselves.
    """

    base_loss: str = field(
        default="l1", metadata=about("l1, mse, huber, focal_l1, focal_mse, or Balanced MSE: bmc, gai, bni.")
    )
    loss_space: str = field(default="label", metadata=about("label, or log1p for labels that are not negative."))
    huber_delta: float | None = field(
        default=None, metadata=about("Where Huber's loss turns linear, in label units. Unset: the label scale.")
    )
    focal_beta: float | None = field(
        default=None, metadata=about("How fast Focal-R counts an error in full, per label unit. Unset: 3 / s.")
    )
    noise_sigma: float | None = field(
        default=None, metadata=about("Balanced MSE's noise at the start, in label units. Unset: 0.6 s.")
    )
    noise_learning_rate: float = field(
        default=0.01, metadata=about("Learning rate of the noise's logarithm; 0 keeps it.")
    )
    gai_components: int = field(default=8, metadata=about("Components of gai's Gaussian mixture."))
    reweight: DensityMethod = field(
        default="none", metadata=about("Density weights of the base loss: none, inverse or sqrt_inverse.")
    )
    resample: DensityMethod | None = field(
        default=None,
        metadata=about("Draw training rows in proportion to such weights. Unset: sqrt_inverse with ConR, else none."),
    )
    lds: str = field(
        default="none", metadata=about("Kernel that smooths label densities: none, gaussian, triangular, laplace.")
    )
    lds_kernel_size: int = field(default=5, metadata=about("Its size in bins, odd."))
    lds_sigma: float = field(default=2.0, metadata=about("Its width in bins."))
    fds: str = field(
        default="none", metadata=about("Kernel that smooths features over bins: none, gaussian, triangular, laplace.")
    )
    fds_kernel_size: int = field(default=5, metadata=about("Its size in bins, odd."))
    fds_sigma: float = field(default=2.0, metadata=about("Its width in bins."))
    fds_momentum: float = field(default=0.9, metadata=about("How much of a bin's statistics an epoch keeps."))
    fds_clip: float = field(default=10.0, metadata=about("Largest change of a variance, up or down."))
    ranksim_weight: float = field(default=0.0, metadata=about("Weight of RankSim beside the base loss."))
    ranksim_interpolation: float = field(default=2.0, metadata=about("RankSim's interpolation strength."))
    rnc_weight: float | None = field(
        default=None,
        metadata=about("Weight of Rank-N-Contrast beside the base loss. Unset: 1 with ConR, else 0."),
    )
    rnc_temperature: float = field(default=2.0, metadata=about("Rank-N-Contrast's temperature."))
    cmixup_alpha: float = field(default=0.0, metadata=about("C-Mixup: shares from Beta(alpha, alpha); 0: none."))
    cmixup_bandwidth: float | None = field(
        default=None, metadata=about("Spread of the partners' label distance, in label units. Unset: 0.1 s.")
    )
    freeze_backbone: bool = field(default=False, metadata=about("Train the head alone (linear probing)."))
    retrain_head: bool = field(
        default=False, metadata=about("RRT's second stage: a new head on a trained, frozen model, re-weighted.")
    )
    layer_decay: float | None = field(
        default=None, metadata=about("A layer's learning rate as a share of the next one's, such as 0.75.")
    )
    ema_decay: float | None = field(
        default=None, metadata=about("Evaluate and save a moving average of the weights, such as 0.999.")
    )

    def check_methods(self, label_columns: list[str], conr_weight: float, conr_reweight: str) -> None:
        """
        Raises:
            `ValueError`: for a value that cannot be meant, and for methods that make no sense together.
        """
        check_choices(self, _CHOICES)
        if self.resample is not None:
            check_choices(self, {"resample": get_args(DensityMethod)})
        check_not_negative(self, "noise_learning_rate", "ranksim_weight", "rnc_weight", "cmixup_alpha")
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
        frozen = "retrain_head" if self.retrain_head else "freeze_backbone" if self.freeze_backbone else None
        if frozen:
            conr_weight = 0.0  # it has a weight by default, and is skipped
        of_conr = {conr_reweight, self.resampling(conr_weight)} if conr_weight > 0 else set()
        weighs = {*weighing.values(), *of_conr} != {"none"}
        if self.lds != "none" and not weighs:
            raise ValueError(
                f"lds is {self.lds}, but there is no density to smooth. Set reweight, resample or, with ConR, "
                "conr_reweight to sqrt_inverse or inverse."
            )
        weights = {"conr_weight": conr_weight, "ranksim_weight": self.ranksim_weight}
        weights["rnc_weight"] = self.rank_n_contrast_weight(conr_weight)
        for name, weight in weights.items():
            if frozen and weight > 0:
                raise ValueError(f"{name} is {weight}, but with {frozen} no feature can follow it. Set it to 0.")
            if self.cmixup_alpha > 0 and weight > 0:
                raise ValueError(
                    f"cmixup_alpha is {self.cmixup_alpha} and {name} {weight}: a mixture of two images has no label "
                    "that its features could be compared by. Set one of them to 0."
                )
        if self.cmixup_alpha > 0 and self.reweight != "none":
            raise ValueError(
                f"cmixup_alpha is {self.cmixup_alpha} and reweight {self.reweight}: a mixture's label lies between "
                "those whose density is known. Set one of them to its default, or resample instead of reweight."
            )
        if self.cmixup_alpha > 0 and self.fds != "none":
            raise ValueError(
                f"cmixup_alpha is {self.cmixup_alpha} and fds {self.fds}: features of mixed images are no samples of "
                "a bin. Set cmixup_alpha to 0 or fds to none."
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

    def resampling(self, conr_weight: float, may_resample: bool = True) -> DensityMethod:
        """`resample`, and what it comes to unset, where rows may be drawn so."""
        if self.resample is not None:
            return self.resample
        corrected = self.reweight != "none" or self.base_loss in BALANCED_LOSSES
        return "sqrt_inverse" if conr_weight > 0 and may_resample and not corrected else "none"

    def rank_n_contrast_weight(self, conr_weight: float) -> float:
        """`rnc_weight`, and what it comes to unset."""
        if self.rnc_weight is not None:
            return self.rnc_weight
        return 1.0 if conr_weight > 0 else 0.0
