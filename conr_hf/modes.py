"""Which settings go with the trainer they are given to; checked before anything is trained."""

from dataclasses import fields

from conr_hf.config import ConRConfig

# What shapes the base loss, and means nothing to a loss of the user's own.
_OF_BASE_LOSS = ("base_loss", "loss_space", "huber_delta", "focal_beta", "noise_sigma", "reweight")


def check_modes(
    args: ConRConfig,
    *,
    mixed_precision: str,
    is_sharded: bool,
    own_loss: bool,
    own_collator: bool,
    plain_optimizer: bool,
    steps_early: bool,
    is_stream: bool,
) -> None:
    """
    Args:
        args ([`ConRConfig`]): The run's settings.
        mixed_precision (`str`): Accelerate's.
        is_sharded (`bool`): Whether FSDP or DeepSpeed holds the model in parts.
        own_loss (`bool`): Whether the user gave a `compute_loss_func`.
        own_collator (`bool`): Whether the user gave a `data_collator`.
        plain_optimizer (`bool`): Whether the trainer makes the optimizer, over plain groups of parameters.
        steps_early (`bool`): Whether a step is done before the gradients of all processes are known.
        is_stream (`bool`): Whether the training rows come in an order of their own.

    Raises:
        `ValueError`: for what would be ignored or wrong.
    """
    if is_sharded and mixed_precision != "no":
        raise ValueError(
            f"mixed_precision is {mixed_precision} under FSDP or DeepSpeed, which round the head and the predictions "
            "with it (63.37 becomes 63.25). Set it to no, with --tf32 true for speed."
        )
    for name in ("ema_decay", "layer_decay"):
        if is_sharded and getattr(args, name) is not None:
            raise ValueError(f"{name} needs the whole model on each process; leave it unset with FSDP or DeepSpeed.")
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
    if steps_early and args.on_bad_loss == "skip":
        raise ValueError(
            "on_bad_loss is skip, but DeepSpeed and LOMO step before the gradients of all are known. Set it to stop."
        )
    if own_collator and args.cmixup_alpha > 0:
        raise ValueError(
            f"cmixup_alpha is {args.cmixup_alpha}, but a data_collator of your own gets plain rows, which are not "
            "mixed. Set it to 0, or leave data_collator out."
        )
    resamples = args.resample not in (None, "none")
    if is_stream and (resamples or args.cmixup_alpha > 0):
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


def check_batches(args: ConRConfig, batch: int, rows: int) -> None:
    """
    Args:
        args ([`ConRConfig`]): The run's settings.
        batch (`int`): Samples of a micro-batch over all processes.
        rows (`int`): Samples of an epoch.

    Raises:
        `ValueError`: if `base_loss` is `"bmc"` and some micro-batch holds one sample.
    """
    if args.base_loss == "bmc" and (batch == 1 or (rows % batch == 1 and not args.dataloader_drop_last)):
        which = "a batch" if batch == 1 else "the last batch of an epoch"
        raise ValueError(
            f"base_loss is bmc, which compares the samples of a batch, and {which} has one sample. Set "
            "per_device_train_batch_size to another size, or dataloader_drop_last to true."
        )
