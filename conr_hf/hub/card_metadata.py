"""The metadata of a model card, which the Hub reads."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from huggingface_hub import EvalResult, ModelCardData
from transformers import AutoModelForDepthEstimation

from conr_hf.hub.card_template import finite
from conr_hf.hub.methods import Method
from conr_hf.models.safe_loading import map_loader

SHOTS = {"all": "all", "many": "many-shot", "median": "median-shot", "few": "few-shot"}


@dataclass(frozen=True)
class ModelCardOptions:
    """
    What a user tells of a model, which goes into the metadata; see `Trainer.create_model_card`.

    Args:
        model_id (`str`, *optional*): Its id on the Hub.
        language, license, tags (*optional*): As in `ModelCardData`.
        base_model (`str`, *optional*): Id on the Hub of the model that was fine-tuned.
        task (`str`, *optional*): Kind of task that the results are of.
        datasets (`list[str]`, *optional*): Ids on the Hub of what it was trained on.
        dataset_name, dataset_args (*optional*): Of the data set that the results are of.
    """

    model_id: str | None = None
    language: str | list[str] | None = None
    license: str | None = None
    tags: list[str] = field(default_factory=list)
    base_model: str | None = None
    task: str | None = None
    datasets: list[str] | None = None
    dataset_name: str | None = None
    dataset_args: Any = None


def metadata(
    results: Mapping[str, Any],
    config: Mapping[str, Any],
    is_adapter: bool,
    name: str,
    told: ModelCardOptions,
    base: Mapping[str, Any],
    data: Mapping[str, Any],
    used: Sequence[Method],
    unit: str,
) -> ModelCardData:
    """
    The metadata of a card, with the MAE of each shot on the last split, or of gaze the angle.

    Args:
        results (`Mapping`): What `results.json` holds.
        config (`Mapping`): The model's `config.json`.
        is_adapter (`bool`): Whether what was saved is an adapter.
        name (`str`): The model's name.
        told ([`ModelCardOptions`]): What its user tells.
        base, data (`Mapping`): As in [`~conr_hf.hub.card_template.CardValues`].
        used (`Sequence` of [`~conr_hf.hub.methods.Method`]): The methods of the run.
        unit (`str`): Unit of the labels, or `""`.

    Raises:
        `ValueError`: if an error is no finite number.
    """
    names = {method.name for method in used}
    tags = [tag for method, tag in (("ConR", "conr"), ("Rank-N-Contrast", "rank-n-contrast")) if method in names]
    loader = map_loader(config)
    kind, samples = ("image", "images") if loader is None else ("dense", "pixels")
    figures = []
    for split in evaluated_splits(results)[-1:]:
        for shot in shots_of(results[split]):
            of_gaze = "angular_error" in results[split][shot]
            metric, title, in_unit = ("angular_error", "Angle", "degrees") if of_gaze else ("mae", "MAE", unit)
            figures.append(
                EvalResult(
                    task_type=told.task or f"{kind}-regression",
                    task_name=f"{kind.capitalize()} Regression" if told.task is None else None,
                    dataset_type=data["id"] or data["name"] or "unknown",
                    dataset_name=told.dataset_name or data["name"] or "unknown",
                    dataset_split=split,
                    dataset_args=told.dataset_args,
                    metric_type=metric,
                    metric_name=f"{title} on {SHOTS[shot]} {samples}" + (f" ({in_unit})" if in_unit else ""),
                    metric_value=finite(results[split][shot][metric]),
                )
            )
    return ModelCardData(
        language=told.language,
        # The terms of restricted data may bind the model too.
        license=told.license or (None if data["restricted"] else base["license"]),
        library_name="peft" if is_adapter else "transformers",
        # The Hub knows no task of regression from images; this is the pipeline that loads the model. Those that load a
        # model for segmentation make classes of its numbers.
        pipeline_tag={None: "image-classification", AutoModelForDepthEstimation: "depth-estimation"}.get(loader),
        tags=["conr-hf", f"{kind}-regression", "imbalanced-regression", *tags, *told.tags],
        base_model=base["id"],
        base_model_relation=None if base["id"] is None else "adapter" if is_adapter else "finetune",
        datasets=told.datasets or ([data["id"]] if data["id"] else None),
        metrics=sorted({figure.metric_type for figure in figures}) or ["mae"],
        model_name=name if figures else None,
        eval_results=figures or None,
    )


def evaluated_splits(results: Mapping[str, Any]) -> list[str]:
    """The splits that `results.json` has errors of; the last is the test split, if there is one."""
    return [split for split in results.get("baseline_median", {}) if split in results]


def shots_of(metrics: Mapping[str, Any]) -> list[str]:
    """The shots that there are errors of, in their order."""
    return [shot for shot in SHOTS if shot in metrics]
