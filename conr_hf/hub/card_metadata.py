"""The metadata of a model card, which the Hub reads."""

from dataclasses import dataclass
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from conr_hf.hub.card_template import CardValues, number
from conr_hf.metrics import SHOTS


@dataclass(frozen=True)
class ModelCardOptions:
    """
    The arguments of `Trainer.create_model_card` in their order, and `model_id`, the model's id on the Hub. Of several
    tasks, or names of data sets, the first is used.
    """

    language: str | list[str] | None = None
    license: str | None = None
    tags: str | list[str] | None = None
    model_name: str | None = None
    finetuned_from: str | None = None
    tasks: str | list[str] | None = None
    dataset_tags: str | list[str] | None = None
    dataset: str | list[str] | None = None
    dataset_args: Any = None
    model_id: str | None = None


def metadata(values: CardValues, options: ModelCardOptions, is_adapter: bool) -> ModelCardData:
    """The metadata of a card, with the MAE of each shot on the last split, or of gaze the angle: finite numbers."""
    base, data, maps, task = values["base"], values["data"], values["maps"], first(options.tasks)
    kind, samples = ("image", "images") if maps is None else ("dense", "pixels")
    errors = []
    last = values["splits"][-1] if values["splits"] else {"rows": []}
    for row in last["rows"]:
        of_gaze = row["angular_error"] is not None
        metric, title, unit = ("angular_error", "Angle", "degrees") if of_gaze else ("mae", "MAE", values["unit"])
        number(row[metric])  # refuses what is none
        errors.append(
            EvalResult(
                task_type=task or f"{kind}-regression",
                task_name=None if task else f"{kind.capitalize()} Regression",
                dataset_type=data["id"] or data["name"] or "unknown",
                dataset_name=first(options.dataset) or data["name"] or "unknown",
                dataset_split=last["name"],
                dataset_args=options.dataset_args,
                metric_type=metric,
                metric_name=f"{title} on {SHOTS[row['shot']]} {samples}" + (f" ({unit})" if unit else ""),
                metric_value=row[metric],
            )
        )
    of_depth = maps is not None and maps["output"] == "predicted_depth"
    used = {method.name for method in values["methods"]}
    of_methods = [name.lower() for name in ("ConR", "Rank-N-Contrast") if name in used]
    return ModelCardData(
        language=options.language,
        # The terms of restricted data may bind the model too.
        license=options.license or (None if data["restricted"] else base["license"]),
        library_name="peft" if is_adapter else "transformers",
        # The Hub knows no task of regression from images; this is the pipeline that loads the model. Those that load a
        # model for segmentation make classes of its numbers.
        pipeline_tag="depth-estimation" if of_depth else "image-classification" if maps is None else None,
        tags=["conr-hf", f"{kind}-regression", "imbalanced-regression", *of_methods, *as_list(options.tags)],
        base_model=base["id"],
        base_model_relation=None if base["id"] is None else "adapter" if is_adapter else "finetune",
        datasets=as_list(options.dataset_tags) or ([data["id"]] if data["id"] else None),
        metrics=sorted({error.metric_type for error in errors}) or ["mae"],
        model_name=values["model_name"] if errors else None,
        eval_results=errors or None,
    )


def as_list(given: str | list[str] | None) -> list[str]:
    """One string, or several, as a list."""
    return [given] if isinstance(given, str) else list(given or [])


def first(given: str | list[str] | None) -> str | None:
    """The first of several strings."""
    return next(iter(as_list(given)), None)
