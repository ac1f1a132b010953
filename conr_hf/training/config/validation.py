"""Which settings go with the trainer they are given to; checked before anything is trained."""

import os
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import Trainer, TrainingArguments
from transformers.utils import logging

from conr_hf import losses
from conr_hf.data.collator import ImageCollator
from conr_hf.data.columns import column_names
from conr_hf.data.own_transform import check_transform
from conr_hf.metrics.gaze import GAZE, in_radians
from conr_hf.models.factory import check_precision
from conr_hf.models.head import Head, MapHead
from conr_hf.training.compute_metrics import ComputeMetrics
from conr_hf.training.config.config import ConRConfig
from conr_hf.training.data_module import DataModule
from conr_hf.training.optimizer import makes_plain_groups, steps_in_backward
from conr_hf.utils.fields import warn_without_effect

logger = logging.get_logger(__name__)

# What a line can be fitted to: validation rows, or maps, in so many bins.
LEAST_ROWS, LEAST_MAPS, LEAST_BINS = 20, 5, 5

# What shapes the base loss, and means nothing to a loss of the user's own.
_OF_BASE_LOSS = ("base_loss", "loss_space", "huber_delta", "focal_beta", "noise_sigma", "reweight")


def validate_run(
    trainer: Trainer,
    args: ConRConfig,
    data: DataModule,
    head: Head,
    metrics: ComputeMetrics,
    global_batch: int,
    label_distance: Callable[[Tensor, Tensor], Tensor] | None,
) -> None:
    """Refuses what `train()` would ignore or do wrong: settings, model and labels together."""
    assert trainer.model is not None
    model = type(trainer.model).__name__
    args.check()  # a search or the user may have set others since
    check_precision(trainer.model)
    if args.fp16 and args.device.type == "cpu":
        logger.warning("fp16 is true, but does nothing on a CPU: training goes on in float32. Leave it out.")
    check_label_kind(model, head, data.labels_are_maps, args.label_columns)
    metrics.check()
    if args.dataloader_drop_last and (rows := data.training_rows()) < global_batch:
        raise ValueError(
            f"dataloader_drop_last is true, and a batch takes {global_batch:,} of {rows:,} training rows, so that no "
            "batch is left to train on. Set it to false, or per_device_train_batch_size to less."
        )
    if args.fds != "none" and not data.labels_are_maps and data.training_labels().ndim > 1:
        raise ValueError(
            f'fds is {args.fds}, but its bins lie along one label; column "{args.label_columns[0]}" holds '
            f"{data.training_labels().shape[1]}. Set fds to none."
        )
    has_lone_sample = data.training_rows() % global_batch == 1 and not args.dataloader_drop_last
    if args.base_loss == "bmc" and (global_batch == 1 or has_lone_sample):
        which = "a batch" if global_batch == 1 else "the last batch of an epoch"
        raise ValueError(
            f"base_loss is bmc, which compares the samples of a batch, and {which} has one sample. Set "
            "per_device_train_batch_size to another size, or dataloader_drop_last to true."
        )
    check_mixed_and_smoothed(args, data)
    check_label_bounds(data.all_labels(), args)
    check_gaze_labels(data.all_labels(), args, metrics.own is not None)
    if isinstance(head, MapHead):
        check_dense_settings(args, trainer.processing_class)
        check_output_range(model, head, data.training_labels())
    check_refit(args, data, head)
    if label_distance is not None:  # tried out, as a step would be a late place for its errors
        some = torch.from_numpy(data.training_labels()[:4])
        losses.label_distance(some, some, label_distance)


def check_mixed_and_smoothed(args: ConRConfig, data: DataModule) -> None:
    """Refuses to compare mixed images, and warns of smoothed densities that weigh nothing."""
    found = data.resolved
    if args.cmixup_alpha > 0 and (found.uses_conr or found.uses_rnc):
        which = "ConR" if found.uses_conr else "Rank-N-Contrast"
        raise ValueError(
            f"cmixup_alpha is {args.cmixup_alpha} and {which} is on: a mixture of two images has no label that its "
            "features could be compared by. Set cmixup_alpha to 0, or conr_weight and rnc_weight."
        )
    if args.lds == "none":
        return
    weighing = [found.reweight, found.resample]
    weighing += [found.conr_reweight] if found.uses_conr or (found.uses_rnc and data.labels_are_maps) else []
    if all(density == "none" for density in weighing):
        logger.warning("Set, but without effect: lds (needs reweight, resample or, with ConR, conr_reweight).")


def check_settings(trainer: Trainer, args: ConRConfig, data: DataModule, made_optimizer: bool) -> None:
    """Refuses settings that would be ignored or do wrong; `made_optimizer`: the trainer itself made its optimizer."""
    mixed_precision = trainer.accelerator.mixed_precision
    is_sharded = trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled
    own_loss = trainer.compute_loss_func is not None
    own_collator = not isinstance(trainer.data_collator, ImageCollator)
    plain_optimizer = (trainer.optimizer is None or made_optimizer) and makes_plain_groups(trainer)
    if is_sharded and mixed_precision != "no":
        raise ValueError(
            f"mixed_precision is {mixed_precision} under FSDP or DeepSpeed, which round the head and the predictions "
            "with it (63.37 becomes 63.25). Set it to no, with --tf32 true for speed."
        )
    for name in ("ema_decay", "layer_decay", "refit_head"):
        if is_sharded and getattr(args, name) not in (None, "none"):
            raise ValueError(f"{name} needs the whole model on each process; leave it unset with FSDP or DeepSpeed.")
    for term in ("conr", "rnc", "ranksim"):
        if is_sharded and getattr(args, f"{term}_gradient_share"):
            raise ValueError(
                f"{term}_gradient_share needs the whole head on each process; set {term}_weight with FSDP or "
                "DeepSpeed."
            )
    if args.scale_each and (is_sharded or not plain_optimizer):
        raise ValueError(
            "scale_each needs an optimizer made by the trainer, and the whole head on each process; leave it out with "
            "FSDP, DeepSpeed or an optimizer of your own, and standardise the labels."
        )
    if args.layer_decay is not None and not plain_optimizer:
        raise ValueError("layer_decay needs an optimizer made by the trainer in plain groups; leave it unset.")
    if args.forward_batch_size is not None and (own_loss or is_sharded):
        other = "compute_loss_func" if own_loss else "FSDP or DeepSpeed"
        raise ValueError(
            f"forward_batch_size is {args.forward_batch_size}, which goes with neither a loss of your own nor a "
            f"sharded model; here it meets {other}. Leave it out."
        )
    if steps_in_backward(trainer) and args.on_bad_loss == "skip":
        raise ValueError(
            "on_bad_loss is skip, but DeepSpeed and LOMO step before the gradients of all are known. Set it to stop."
        )
    if own_collator and args.cmixup_alpha > 0:
        raise ValueError(
            f"cmixup_alpha is {args.cmixup_alpha}, but a data_collator of your own gets plain rows, which are not "
            "mixed. Set it to 0, or leave data_collator out."
        )
    if data.transform is not None:
        if own_collator:
            raise ValueError(
                "transform would have no effect beside a data_collator of your own. Leave one of them out."
            )
        if data.train_dataset is not None and "pixel_values" in column_names(data.train_dataset):
            raise ValueError(
                "transform would have no effect on rows that hold pixel_values, which are ready for the model. Leave "
                "transform out, or give rows of images."
            )
        check_transform(data.transform, args.sign_flipped_columns())
        named = ("augmentation", "horizontal_flip", "vertical_flip", "crop_padding", "crop_area", "augment_color")
        warn_without_effect(args, dict.fromkeys(named, (False, "no transform of your own")))
    if data.is_stream and trainer.accelerator.split_batches and args.world_size > 1:
        raise ValueError("split_batches is true, with which a stream's length is not known. Leave it out.")
    resamples = args.resample not in (None, "none")
    if data.is_stream and (resamples or args.cmixup_alpha > 0):
        name = "resample" if resamples else "cmixup_alpha"
        raise ValueError(
            f"{name} is {getattr(args, name)}, but train_dataset is a stream, of which no row can be had at will. "
            "Leave it out, or load the data without streaming."
        )
    defaults = {field.name: field.default for field in fields(ConRConfig)}
    for name in _OF_BASE_LOSS:
        if own_loss and getattr(args, name) != defaults[name]:
            raise ValueError(
                f"{name} is {getattr(args, name)}, but compute_loss_func takes the base loss's place. Leave one of "
                "them out."
            )


def check_label_kind(model: str, head: Head, labels_are_maps: bool, columns: list[str]) -> None:
    """Refuses a model and labels that are not both of maps, or both of numbers."""
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


def check_dense_settings(args: ConRConfig, processor: Any) -> None:
    """Refuses methods that maps have no form of, and a processor that shows the model a part of the image."""
    forms = {
        "cmixup_alpha": (args.cmixup_alpha > 0, "0"),
        "ranksim_weight": (args.ranksim_weight > 0, "0"),
        "ranksim_gradient_share": (bool(args.ranksim_gradient_share), "0"),
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


def check_refit(args: ConRConfig, data: DataModule, head: Head) -> None:
    """Refuses to re-fit a head without rows that it could be fitted on, and one that no line can be folded into."""
    if args.refit_head == "none":
        return
    dataset, link = data.refit_dataset(), head.link if isinstance(head, MapHead) else "identity"
    problem, mend = "", "Leave refit_head out"
    if dataset is None:
        problem, mend = "there is no evaluation set to fit it on", "Give eval_dataset"
    elif dataset is data.train_dataset:
        problem, mend = "eval_dataset is train_dataset, whose errors are too small", "Give other rows"
    elif head.bias is None or link != "identity":
        what = "has no bias" if head.bias is None else f"is followed by a {link}"
        problem = f"it {what}, so that no line can be folded into it"
    else:
        rows, _, labels = data.refit_rows()
        least = LEAST_MAPS if data.labels_are_maps else LEAST_ROWS
        found = min(len(np.unique(column)) for column in data.bins.index(labels).T)
        if len(rows) < least or found < LEAST_BINS:
            problem = (
                f"a third of the evaluation set is {len(rows)} row{'s' * (len(rows) != 1)} in {found} label "
                f"bin{'s' * (found != 1)}, and it takes {least} in {LEAST_BINS} or more"
            )
            mend = "Give more evaluation rows or another bin_width, or leave refit_head out"
    if problem:
        raise ValueError(f"The head cannot be re-fitted (refit_head): {problem}. {mend}.")


def check_output_range(model: str, head: MapHead, labels: np.ndarray) -> None:
    """Refuses a model that cannot predict some of the labels of pixels, `(P,)`, in label units."""
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


def check_label_bounds(labels: dict[str, np.ndarray], args: ConRConfig) -> None:
    """Refuses labels, `(N,)` or `(N, T)` by data set, beyond the smallest or largest that there can be."""
    for low, high, column, number in zip(*args.label_bounds(), args.label_columns, range(10**6), strict=False):
        for name, some in labels.items():
            of_column = some.reshape(len(some), -1)[:, number]
            for option, bound, is_wrong in (
                ("label_min", low, of_column < low),
                ("label_max", high, of_column > high),
            ):
                if is_wrong.any():
                    wrong = of_column[is_wrong][0]
                    raise ValueError(
                        f'{option} is {bound:g}, but a label in column "{column}" of {name} is {wrong:g}. Correct one '
                        "of them."
                    )


def check_gaze_labels(labels: dict[str, np.ndarray], args: ConRConfig, has_own_metrics: bool) -> None:
    """Warns of pitch and yaw, `(N, T)` by data set, that are no radians; refuses them where radians are needed."""
    is_gaze, angles_choose = args.label_columns == GAZE, str(args.metric_for_best_model).endswith("angular_error")
    if angles_choose and not is_gaze and not has_own_metrics:
        raise ValueError(
            f"metric_for_best_model is {args.metric_for_best_model}, but label_columns is {args.label_columns}; the "
            "angle is that of the columns pitch and yaw, in this order."
        )
    if not is_gaze and args.conr_distance != "angular":
        return
    for name, some in labels.items():
        if in_radians(some):
            continue
        seen = (
            f"{' and '.join(args.label_columns)} of {name} run from {some.min():.1f} to {some.max():.1f}, more than a "
            "half turn: radians are expected; np.radians makes them of degrees."
        )
        if args.conr_distance == "angular":
            raise ValueError(f"conr_distance is angular, and {seen}")
        if angles_choose and not has_own_metrics:
            raise ValueError(f"metric_for_best_model is {args.metric_for_best_model}, and {seen}")
        logger.warning(f"{seen} The angular error is left out.")


def check_processes(args: TrainingArguments) -> None:
    """
    Stops a run that the launcher and the process group see differently: as many separate runs that write over each
    other, or as one process that spreads a batch over several GPUs and loses the features.
    """
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if started != args.world_size:
        raise ValueError(
            f"The launcher started {started} processes, but they form groups of {args.world_size}. Start them with "
            f"accelerate launch --multi_gpu --num_processes {started} -m conr_hf train RECIPE.yaml, on a machine "
            "without GPUs with --use_cpu true behind it."
        )
    if args.n_gpu > 1:
        raise ValueError(
            f"{args.n_gpu} GPUs are visible, but one process was started. Use all with accelerate launch --multi_gpu "
            f"--num_processes {args.n_gpu} -m conr_hf train RECIPE.yaml, or one with CUDA_VISIBLE_DEVICES=0."
        )
