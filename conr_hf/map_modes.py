"""Which settings, labels and models go with maps; checked before anything is trained."""

import numpy as np
from transformers import BaseImageProcessor

from conr_hf.config import ConRConfig
from conr_hf.head import Head, MapHead


def check_kinds(model: str, head: Head, labels_are_maps: bool, columns: list[str]) -> None:
    """
    Args:
        model (`str`): The class of the model.
        head (`Head`): Its head.
        labels_are_maps (`bool`): Whether the labels are maps.
        columns (`list[str]`): The label columns.

    Raises:
        `ValueError`: if the model and the labels are not both of maps, or both of numbers.
    """
    named = ", ".join(columns)
    if labels_are_maps and not isinstance(head, MapHead):
        raise ValueError(
            f'The labels in column "{named}" are maps, but {model} predicts one number an image. Load the model with '
            'load_regressor(..., task="depth").'
        )
    if isinstance(head, MapHead) and not labels_are_maps:
        raise ValueError(
            f'{model} predicts maps, but the labels in column "{named}" are numbers. Load the model without '
            'task="depth", or name the column of the maps with label_columns.'
        )


def check_map_modes(args: ConRConfig, processor: BaseImageProcessor | None) -> None:
    """
    Raises:
        `ValueError`: for a method that maps have no form of, and for a processor that shows the model a part of the
            image.
    """
    forms = {
        "cmixup_alpha": (args.cmixup_alpha > 0, "0"),
        "ranksim_weight": (args.ranksim_weight > 0, "0"),
        "rnc_weight": (args.rank_n_contrast_weight(0) > 0, "0"),
        "base_loss": (args.base_loss == "bmc", "bni or gai"),
    }
    for name, (is_on, instead) in forms.items():
        if is_on:
            raise ValueError(
                f"{name} is {getattr(args, name)}, which compares whole images and has no form for maps. Set it to "
                f"{instead}."
            )
    settings = {} if processor is None else processor.to_dict()
    for name in ("do_center_crop", "do_pad"):
        if settings.get(name):
            raise ValueError(
                f"The image processor has {name} on, so that the model sees another part of the image than the map "
                "shows. Set it to false, or load the processor with load_regressor."
            )


def check_range(model: str, head: MapHead, labels: np.ndarray) -> None:
    """
    Args:
        model (`str`): The class of the model.
        head ([`MapHead`]): Its head.
        labels (`np.ndarray` of shape `(P,)`): Labels of pixels, in label units.

    Raises:
        `ValueError`: if the model cannot predict some of the labels.
    """
    low, high = float(labels.min()), float(labels.max())
    if head.link != "identity" and low < 0:
        raise ValueError(
            f"The labels run down to {low:g}, but {model} predicts nothing below 0. Add a constant to the labels, or "
            'load a backbone with load_regressor(..., task="depth"), whose dense head has no such end.'
        )
    if head.link == "sigmoid" and high >= head.limit:
        raise ValueError(
            f"The labels run up to {high:g}, but {model} predicts nothing above {head.limit:g}. Load it with a "
            "greater max_depth."
        )
