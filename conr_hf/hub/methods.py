"""What a run was trained with, in words, and whose papers that is from."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from conr_hf.hub.card_template import number

_BASE_LOSSES = {
    "l1": "L1",
    "mse": "Squared error",
    "huber": "Huber's loss",
    "focal_l1": "Focal-R with L1",
    "focal_mse": "Focal-R with the squared error",
    "bmc": "Balanced MSE (BMC)",
    "gai": "Balanced MSE (GAI)",
    "bni": "Balanced MSE (BNI)",
}
_BY_DENSITY = {
    "inverse": "in inverse proportion to the density of their label",
    "sqrt_inverse": "in inverse proportion to the root of the density of their label",
}
_DISTANCES = {
    "mean_abs": "mean absolute label distance",
    "euclidean": "Euclidean label distance",
    "angular": "angle between labels",
    "own": "label distance of the author's own",
}


@dataclass(frozen=True)
class Method:
    """
    A method that a run used.

    Args:
        name (`str`): What it is called.
        words (`str`): How it was set, lengths in label units.
        paper (`str`, *optional*): A key of `PAPERS`.
    """

    name: str
    words: str
    paper: str | None = None


def describe_methods(conr: Mapping[str, Any], options: Mapping[str, Any], unit: str) -> list[Method]:
    """
    The methods of a run, the base loss first.

    Args:
        conr (`Mapping`): Fields of [`ResolvedConfig`]; empty if they are not known.
        options (`Mapping`): Fields of [`ConRConfig`] by name; those left out are off.
        unit (`str`): Unit of the labels, or `""`.

    Raises:
        `KeyError` or `ValueError`: for settings that are not complete.
    """
    if not conr:
        return []
    found = [_base_loss(conr, unit)]
    if conr["reweight"] != "none":
        found.append(Method("Re-weighting", f"samples weigh {_BY_DENSITY[conr['reweight']]}"))
    if conr["resample"] != "none":
        found.append(Method("Resampling", f"images are drawn {_BY_DENSITY[conr['resample']]}"))
    if conr["rnc_weight"] > 0:
        words = f"weight {number(conr['rnc_weight'])}, temperature {number(options.get('rnc_temperature', 2.0))}"
        found.append(Method("Rank-N-Contrast", words, "rnc"))
    if conr["weight"] > 0:
        found.append(_conr(conr, unit))
    if options.get("ranksim_weight", 0) > 0:
        strength = number(options["ranksim_interpolation"])
        words = f"weight {number(options['ranksim_weight'])}, interpolation strength {strength}"
        found.append(Method("RankSim", words, "ranksim"))
    for name, option in (("Label distribution smoothing", "lds"), ("Feature distribution smoothing", "fds")):
        if options.get(option, "none") != "none":
            width, size = number(options[f"{option}_sigma"]), number(options[f"{option}_kernel_size"])
            found.append(Method(name, f"{options[option]} kernel over {size} bins, {width} wide", "dir"))
    if options.get("cmixup_alpha", 0) > 0:
        near = _length(conr["cmixup_bandwidth"], unit)
        words = f"shares from Beta(a, a) with a = {number(options['cmixup_alpha'])}; labels of partners differ by some"
        found.append(Method("C-Mixup", f"{words} {near}", "cmixup"))
    if options.get("retrain_head", False):
        found.append(Method("Regressor re-training (RRT)", "a new head on the frozen features of a first run", "dir"))
    if options.get("freeze_backbone", False):
        found.append(Method("Linear probing", "the head alone was trained"))
    if options.get("layer_decay") is not None:
        share = number(options["layer_decay"])
        found.append(Method("Layer-wise learning rates", f"{share} times that of the next layer up"))
    if options.get("ema_decay") is not None:
        found.append(Method("Moving average of the weights", f"decay {number(options['ema_decay'])}"))
    return [*found, _views(conr, options)]


def _base_loss(conr: Mapping[str, Any], unit: str) -> Method:
    kind = conr["base_loss"]
    if kind not in _BASE_LOSSES:
        return Method("Base loss", "of the author's own")
    logarithm = conr["loss_space"] == "log1p"
    scale = _length(conr["loss_scale"], "" if logarithm else unit)
    words = f"errors of log(1 + label), divided by {scale}" if logarithm else f"errors divided by {scale}"
    if any(relative != 1 for relative in conr.get("relative_scales", ())):
        words = "errors of each label dimension divided by its standard deviation"
    unit = "" if logarithm else unit
    if kind == "huber":
        words += f"; linear from {_length(conr['huber_delta'], unit)} on"
    if kind.startswith("focal"):
        words += f"; beta {number(conr['focal_beta'])}{_per(unit)}"
        return Method(f"Base loss: {_BASE_LOSSES[kind]}", words, "dir")
    if kind in ("bmc", "gai", "bni"):
        words += f"; noise of {_length(conr['noise_sigma'], unit)} at first"
        return Method(f"Base loss: {_BASE_LOSSES[kind]}", words, "balanced-mse")
    return Method(f"Base loss: {_BASE_LOSSES[kind]}", words)


def _conr(conr: Mapping[str, Any], unit: str) -> Method:
    words = [
        f"weight {number(conr['weight'])}",
        f"labels within {_length(conr['window'], unit)} are similar",
        f"temperature {number(conr['temperature'])}",
        f"{conr['push']} push of {number(conr['push_scale'])}{_per(unit)}",
    ]
    if conr["conr_reweight"] != "none":
        words.append(f"images push {_BY_DENSITY[conr['conr_reweight']]}")
    if conr["formulation"] == "reference":
        words.append("as its published code computes it")
    if conr["reduction"] == "anchors":
        words.append("mean over anchors")
    if len(conr["label_columns"]) > 1 or conr["distance"] == "own":
        words.append(_DISTANCES[conr["distance"]])
    return Method("ConR", "; ".join(words), "conr")


def _views(conr: Mapping[str, Any], options: Mapping[str, Any]) -> Method:
    words = f"{number(conr['num_views'])} of each image"
    if options.get("crop_padding", 0) > 0:
        words += f", shifted by up to {100 * options['crop_padding']:.0f} % of its side"
    return Method("Views", words + (", half of them flipped" if options.get("horizontal_flip", False) else ""))


def _length(value: Any, unit: str) -> str:
    return f"{number(value)} {unit}".strip()


def _per(unit: str) -> str:
    return f" per {unit}" if unit else ""


PAPERS = {
    "conr": """@inproceedings{keramati2024conr,
  title     = {ConR: Contrastive Regularizer for Deep Imbalanced Regression},
  author    = {Keramati, Mahsa and Meng, Lili and Evans, R. David},
  booktitle = {International Conference on Learning Representations},
  year      = {2024},
  url       = {https://arxiv.org/abs/2309.06651}
}""",
    "rnc": """@inproceedings{zha2023rank,
  title     = {Rank-N-Contrast: Learning Continuous Representations for Regression},
  author    = {Zha, Kaiwen and Cao, Peng and Son, Jeany and Yang, Yuzhe and Katabi, Dina},
  booktitle = {Advances in Neural Information Processing Systems},
  year      = {2023},
  url       = {https://arxiv.org/abs/2210.01189}
}""",
    "dir": """@inproceedings{yang2021delving,
  title     = {Delving into Deep Imbalanced Regression},
  author    = {Yang, Yuzhe and Zha, Kaiwen and Chen, Ying-Cong and Wang, Hao and Katabi, Dina},
  booktitle = {International Conference on Machine Learning},
  year      = {2021},
  url       = {https://arxiv.org/abs/2102.09554}
}""",
    "ranksim": """@inproceedings{gong2022ranksim,
  title     = {RankSim: Ranking Similarity Regularization for Deep Imbalanced Regression},
  author    = {Gong, Yu and Mori, Greg and Tung, Frederick},
  booktitle = {International Conference on Machine Learning},
  year      = {2022},
  url       = {https://arxiv.org/abs/2205.15236}
}""",
    "balanced-mse": """@inproceedings{ren2022balanced,
  title     = {Balanced MSE for Imbalanced Visual Regression},
  author    = {Ren, Jiawei and Zhang, Mingyuan and Yu, Cunjun and Liu, Ziwei},
  booktitle = {IEEE/CVF Conference on Computer Vision and Pattern Recognition},
  year      = {2022},
  url       = {https://arxiv.org/abs/2203.16427}
}""",
    "cmixup": """@inproceedings{yao2022cmixup,
  title     = {C-Mixup: Improving Generalization in Regression},
  author    = {Yao, Huaxiu and Wang, Yiping and Zhang, Linjun and Zou, James and Finn, Chelsea},
  booktitle = {Advances in Neural Information Processing Systems},
  year      = {2022},
  url       = {https://arxiv.org/abs/2210.05775}
}""",
}
