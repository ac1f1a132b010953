"""What a run says of itself: its method, its views, and what its data cannot tell."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from conr_hf.imbalance import Bins
from conr_hf.metrics.shots import few_share
from conr_hf.training.config.config import ConRConfig
from conr_hf.training.config.resolved_config import ResolvedConfig

NO_VALIDATION = (
    "No validation data: nothing is measured, the last model is kept instead of the best, and there are no prediction "
    'intervals. conr-hf split and dir_split(dataset, "label") divide a data set; --validation_share 0.15 takes a part '
    "of the training rows."
)

_OF_CONR_ALONE = (
    *("conr_window", "conr_temperature", "conr_push", "conr_push_scale"),
    *("conr_formulation", "conr_reduction", "conr_reweight"),
)


def describe_method(settings: ResolvedConfig, own_loss: bool = False, has_sample_weights: bool = False) -> str:
    """
    The method of a run, in one line. `own_loss`: the base loss is the user's own; `has_sample_weights`: the training
    rows have a column `sample_weight`.
    """
    parts = ["a loss of your own" if own_loss else f"base loss {settings.base_loss}"]
    weights = {"ConR": settings.weight, "Rank-N-Contrast": settings.rnc_weight}
    parts += [f"{name} (weight {weight:g})" for name, weight in weights.items() if weight > 0]
    shares = {"ConR": settings.conr_gradient_share, "Rank-N-Contrast": settings.rnc_gradient_share}
    parts += [f"{name} ({share:g} of the base loss's gradient)" for name, share in shares.items() if share > 0]
    weighing = {"weighed": settings.reweight, "rows drawn": settings.resample}
    parts += [f"{how} by density ({density})" for how, density in weighing.items() if density != "none"]
    parts += ["rows weighed by the column sample_weight"] if has_sample_weights else []
    return f"Trains with {', '.join(parts)}"


def describe_unused_conr(args: ConRConfig, settings: ResolvedConfig, is_sharded: bool = False) -> str | None:
    """
    That ConR is off because nothing was said of it, and which of its options are idle; else `None`. `is_sharded`: the
    head is held in parts.
    """
    is_set = args.conr_weight is not None or args.conr_gradient_share is not None
    if is_set or not args.balances or settings.uses_conr or args.cmixup_alpha > 0:
        return None
    how = "conr_weight 0.05" if is_sharded else "conr_gradient_share 0.15"
    defaults = {field.name: field.default for field in fields(ConRConfig)}
    names = _OF_CONR_ALONE if settings.uses_rnc else (*_OF_CONR_ALONE, "conr_distance", "conr_anchors")
    idle = [name for name in names if getattr(args, name) != defaults[name]]
    others = f"; without it {', '.join(idle)} {'has' if len(idle) == 1 else 'have'} no effect" if idle else ""
    return f"ConR is off beside them: {how} switches it on{others}."


def describe_views(args: ConRConfig, has_own_transform: bool = False) -> str:
    """What becomes of an image before the model sees it, in one sentence."""
    views = f"Each image is seen in {'1 view' if args.num_views == 1 else f'{args.num_views} views'}"
    if has_own_transform:
        return f"{views}, made by your own transform."
    if args.augmentation == "none":
        return f"{views}, as it is (augmentation none)."
    made = args.augmentation_settings()
    if made.crop_area < 1:
        changes = [f"cropped to {100 * made.crop_area:.2g} to 100 % of its area and resized"]
    elif made.crop_padding > 0:
        changes = [f"shifted by up to {100 * made.crop_padding:.2g} % of its side"]
    else:
        changes = ["not shifted"]
    if made.changes_color:
        changes.append(
            f"its colours changed by up to {100 * made.jitter:.2g} % and left out in {100 * made.gray:.2g} % of them"
        )
    if made.horizontal_flip:
        changes.append("half of them flipped left to right (horizontal_flip false where a mirror changes the label)")
    else:
        changes.append("never flipped (horizontal_flip true flips half of them, where a mirror keeps the label)")
    if made.vertical_flip:
        changes.append("half of them turned upside down")
    return f"{views}: {', '.join(changes)}."


def describe_shots(bins: Bins, unit: str, samples: str = "images") -> str | None:
    """A sentence for bins by which more than half of the training `samples` are few-shot; `None` for others."""
    if (share := few_share(bins)) <= 0.5:
        return None
    widths = [f"{edges[1] - edges[0]:.3g}" for edges in bins.edges]
    of_unit = f" {unit}" if unit and len(widths) == 1 else ""
    return (
        f"{100 * share:.0f} % of the training {samples} are few-shot, with fewer than {bins.thresholds[0]:,.10g} in "
        f"their bin ({' and '.join(widths)}{of_unit} wide), so that errors by shot say little. Set a greater "
        "bin_width (conr-hf inspect advises one), or shot_thresholds."
    )


def describe_refit(refit: Mapping[str, Any], unit: str) -> str:
    """What the re-fit of the head came to, in one sentence, from the `refit_head` of `results.json`."""
    of_unit = f" {unit}" if unit else ""
    on = f"by cross-validation on {refit['rows']:,} validation rows kept for it"
    if refit["bmae_after"] >= refit["bmae_before"]:
        return (
            f"The head stays as it is: no line lowers the balanced MAE of {refit['bmae_before']:.4g}{of_unit}, {on}."
        )
    slopes = {key.removeprefix("slope"): value for key, value in refit.items() if key.startswith("slope")}
    lines = [
        f"{slope:.4g} x {name.removeprefix('_') or 'prediction'} {refit[f'intercept{name}']:+.4g}"
        for name, slope in slopes.items()
    ]
    errors = [
        f"{name} {refit[f'{key}_before']:.4g} -> {refit[f'{key}_after']:.4g}{of_unit}"
        for name, key in (("balanced MAE", "bmae"), ("MAE", "mae"))
    ]
    return f"Head re-fitted to {' and '.join(lines)}: {' and '.join(errors)}, {on}."
