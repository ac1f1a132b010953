"""The model card: what a run was, how good it is and where it ends, from the files of its folder."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import timm
import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from conr_hf.card_template import OURS, CardValues, finite, one_line, read_template, render
from conr_hf.data.catalogue import BENCHMARKS, Benchmark
from conr_hf.methods_used import PAPERS, Method, methods_used
from conr_hf.metrics import THRESHOLDS

FILE_NAME = "README.md"
PICTURE = "density.png"
SHOTS = {"all": "all", "many": "many-shot", "median": "median-shot", "few": "few-shot"}
MOST_RANGES = 8  # of rare labels, for each target
_PATH = re.compile(r"(?<![\w:/\\.~-])(?:[A-Za-z]:[\\/]|/)[^\s\"'`=,;\[\]{}()]+")


@dataclass(frozen=True)
class Trained:
    """
    What a card is written from.

    Args:
        results (`Mapping`): What `results.json` holds; what is not known is left out.
        config (`Mapping`): The model's `config.json`.
        state (`Mapping`): What `trainer_state.json` holds, or nothing.
        intervals (`Mapping`, *optional*): What `intervals.json` holds.
        has_picture (`bool`): Whether there is a `density.png`.
        is_adapter (`bool`): Whether what was saved is an adapter.
    """

    results: Mapping[str, Any]
    config: Mapping[str, Any]
    state: Mapping[str, Any]
    intervals: Mapping[str, Any] | None
    has_picture: bool
    is_adapter: bool


@dataclass(frozen=True)
class Told:
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


def write_card(
    folder: str | Path, template: str | None = None, name: str | None = None, told: Told | None = None
) -> Path:
    """
    Writes the card of the run in `folder` into its `README.md`.

    Args:
        folder (`str` or `Path`): A folder that `conr-hf train` wrote.
        template (`str`, *optional*): A file to use instead of the package's template; see [`CardValues`].
        name (`str`, *optional*): The model's name. Unset: the folder's.
        told ([`Told`], *optional*): What the folder does not tell.

    Returns:
        `Path`: the card.

    Raises:
        `ValueError`: if it is no such folder, a file of it cannot be read, or the template cannot be used.
    """
    path = Path(folder, FILE_NAME)
    trained = read_trained(Path(folder))
    text = OURS.read_text(encoding="utf-8") if template is None else read_template(template)
    try:
        content = card(trained, name or Path(folder).resolve().name, told or Told(), text)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        reason = str(error).rstrip(".") if isinstance(error, ValueError) else f"its files lack or mistake {error}"
        raise ValueError(f'The model card of "{folder}" cannot be written: {reason}.') from error
    path.write_text(content, encoding="utf-8", newline="\n")
    return path


def read_trained(folder: Path) -> Trained:
    """
    Raises:
        `ValueError`: if the folder is not that of a run, or a file of it is no JSON.
    """
    found: dict[str, Any] = {}
    for name in ("results", "config", "trainer_state", "intervals"):
        path = folder / f"{name}.json"
        if not path.is_file():
            continue
        try:
            found[name] = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f'"{path}" is no JSON: {error}. Train the run again.') from error
        if not isinstance(found[name], dict):
            raise ValueError(f'"{path}" is not what a run writes. Train the run again.')
    for name in ("results", "config"):
        if name not in found:
            missing = f"it has no {name}.json" if folder.is_dir() else "there is no such folder"
            raise ValueError(f'"{folder}" is not a run: {missing}. Give a folder that conr-hf train wrote.')
    return Trained(
        found["results"],
        found["config"],
        found.get("trainer_state", {}),
        found.get("intervals"),
        (folder / PICTURE).is_file(),
        (folder / "adapter_config.json").is_file(),
    )


def card(trained: Trained, name: str, told: Told, template: str) -> str:
    """
    The card as Markdown with its metadata.

    Args:
        trained ([`Trained`]): What it is written from.
        name (`str`): The model's name.
        told ([`Told`]): What its user tells.
        template (`str`): Text of the template.

    Raises:
        `ValueError`: if the template cannot be filled in. Other errors: for files that no run writes.
    """
    results, name = trained.results, one_line(name)
    options, unit = results.get("recipe", {}), one_line(str(results.get("unit", "")))
    used = methods_used(results.get("conr", {}), options, unit)
    benchmark = BENCHMARKS.get(options.get("benchmark") or "")
    base = _base(trained, told)
    data = _data(results, benchmark, told)
    values = CardValues(
        card_data=_metadata(trained, name, told, base, data, benchmark, used, unit).to_yaml(),
        model_name=name,
        model_id=told.model_id or f"you/{re.sub(r'[^A-Za-z0-9_.-]+', '-', name).strip('-.') or 'model'}",
        targets=_targets(trained.config),
        unit=unit,
        base=base,
        data=data,
        splits=[_split(results, split) for split in _evaluated(results)],
        picture=PICTURE if trained.has_picture else None,
        methods=used,
        training=_training(trained),
        intervals=None if trained.intervals is None else _intervals(trained.intervals),
        limits=_limits(results.get("bins"), _targets(trained.config)),
        citations=[PAPERS[paper] for paper in dict.fromkeys(m.paper for m in used) if paper is not None],
    )
    text = render(template, values)
    try:
        ModelCard(text)
    except (ValueError, yaml.YAMLError) as error:  # of a user's template
        raise ValueError(f"its metadata is not what the Hub reads ({one_line(str(error))})") from error
    return text


def hub_ids(*, model: str, pretrained: bool, weights: str | None, data: str | None) -> dict[str, str | None]:
    """
    Which of what a run is made from is on the Hub: the ids of `model` and `data`, or `None`. Known where it is
    trained, since elsewhere a folder's path looks like an id.
    """
    if not pretrained or weights is not None or Path(model).exists():
        base = None
    elif model.startswith("timm/"):
        known = timm.get_pretrained_cfg(model.removeprefix("timm/"))
        base = known.hf_hub_id if known is not None else None
    else:
        base = model if is_hub_id(model) else None
    return {"model": base, "data": data if data is not None and not Path(data).exists() and is_hub_id(data) else None}


def is_hub_id(name: str) -> bool:
    """Whether a model or data set on the Hub could be called so: `owner/name`."""
    return re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name, re.ASCII) is not None


def without_paths(value: Any) -> Any:
    """
    The same with every absolute path in its strings cut to the last part.

    Example:
        >>> without_paths({"data": "/home/me/faces", "command": "conr-hf train a/b.yaml --output_dir=/tmp/run"})
        {'data': 'faces', 'command': 'conr-hf train a/b.yaml --output_dir=run'}
    """
    if isinstance(value, Mapping):
        return {name: without_paths(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [without_paths(part) for part in value]
    if not isinstance(value, str):
        return value
    if PurePosixPath(value).is_absolute() or PureWindowsPath(value).is_absolute():
        return PureWindowsPath(value).name  # which takes both kinds of slashes
    return _PATH.sub(lambda found: PureWindowsPath(found.group()).name, value)


def _metadata(
    trained: Trained,
    name: str,
    told: Told,
    base: Mapping[str, Any],
    data: Mapping[str, Any],
    benchmark: Benchmark | None,
    used: Sequence[Method],
    unit: str,
) -> ModelCardData:
    results = trained.results
    restricted = benchmark is not None and benchmark.obtain != ""  # its terms may bind the model too
    names = {method.name for method in used}
    tags = [tag for method, tag in (("ConR", "conr"), ("Rank-N-Contrast", "rank-n-contrast")) if method in names]
    figures = []
    for split in _evaluated(results)[-1:]:
        for shot in _shots(results[split]):
            figures.append(
                EvalResult(
                    task_type=told.task or "image-regression",
                    task_name="Image Regression" if told.task is None else None,
                    dataset_type=data["id"] or data["name"] or "unknown",
                    dataset_name=told.dataset_name or data["name"] or "unknown",
                    dataset_split=split,
                    dataset_args=told.dataset_args,
                    metric_type="mae",
                    metric_name=f"MAE on {SHOTS[shot]} images" + (f" ({unit})" if unit else ""),
                    metric_value=finite(results[split][shot]["mae"]),
                )
            )
    return ModelCardData(
        language=told.language,
        license=told.license or (None if restricted else base["license"]),
        library_name="peft" if trained.is_adapter else "transformers",
        # The Hub knows no task of regression from images; this is the pipeline that loads the model.
        pipeline_tag="image-classification",
        tags=["conr-hf", "image-regression", "imbalanced-regression", *tags, *told.tags],
        base_model=base["id"],
        base_model_relation=None if base["id"] is None else "adapter" if trained.is_adapter else "finetune",
        datasets=told.datasets or ([data["id"]] if data["id"] else None),
        metrics=["mae"],
        model_name=name if figures else None,
        eval_results=figures or None,
    )


def _base(trained: Trained, told: Told) -> dict[str, Any]:
    options = trained.results.get("recipe", {})
    hub = told.base_model or trained.results.get("hub_ids", {}).get("model")
    known = timm.get_pretrained_cfg(hub.removeprefix("timm/")) if hub and hub.startswith("timm/") else None
    architecture = trained.config.get("architecture") or trained.config.get("model_type") or ""
    scratch = told.base_model is None and not options.get("pretrained", True)
    name = one_line(str(without_paths(options.get("model") or architecture)))
    return {
        "name": name,
        "id": hub if hub and is_hub_id(hub) else None,
        "license": known.license if known is not None else None,
        "scratch": scratch,
        "timm": trained.config.get("model_type") == "timm_wrapper",
    }


def _data(results: Mapping[str, Any], benchmark: Benchmark | None, told: Told) -> dict[str, Any]:
    options, counts = results.get("recipe", {}), results.get("bins", {}).get("train_counts")
    hub = (told.datasets or [results.get("hub_ids", {}).get("data")])[0]
    named = benchmark.name if benchmark is not None else told.dataset_name or without_paths(options.get("data")) or ""
    return {
        "name": one_line(str(named)),
        "id": hub if hub and is_hub_id(hub) else None,
        "n": sum(counts[0]) if counts else None,
        "description": benchmark.description if benchmark is not None else "",
        "credit": benchmark.credit if benchmark is not None else "",
        "license": benchmark.license if benchmark is not None else "",
        "people": benchmark.people if benchmark is not None else "",
    }


def _targets(config: Mapping[str, Any]) -> list[str]:
    if "label_names" in config:  # of timm
        return [one_line(str(name)) for name in config["label_names"]]
    return [one_line(str(name)) for _, name in sorted(config["id2label"].items(), key=lambda item: int(item[0]))]


def _evaluated(results: Mapping[str, Any]) -> list[str]:
    return [split for split in results.get("baseline_median", {}) if split in results]


def _shots(metrics: Mapping[str, Any]) -> list[str]:
    return [shot for shot in SHOTS if shot in metrics]


def _split(results: Mapping[str, Any], split: str) -> dict[str, Any]:
    baseline = results["baseline_median"][split]
    rows = [
        {
            "shot": shot,
            **{figure: results[split][shot][figure] for figure in ("n", "mae", "gm", "bmae")},
            "baseline": baseline[shot]["mae"] if shot in baseline else None,
        }
        for shot in _shots(results[split])
    ]
    return {"name": split, "rows": rows}


def _training(trained: Trained) -> dict[str, Any]:
    results, state = trained.results, trained.state
    options = without_paths(results.get("recipe", {}))
    best, keeps = state.get("best_global_step"), options.get("load_best_model_at_end", True)
    epochs = [entry["epoch"] for entry in state.get("log_history", []) if best and entry.get("step") == best]
    seconds = results.get("train_seconds")
    return {
        "command": without_paths(results.get("command")),
        "recipe": yaml.safe_dump(options, sort_keys=False, allow_unicode=True) if options else None,
        "hardware": results.get("hardware"),
        "minutes": None if seconds is None else round(seconds / 60, 1),
        "seed": results.get("seed"),
        "steps": results.get("steps"),
        "epochs": state.get("epoch"),
        "best_epoch": epochs[0] if epochs and keeps else None,
        "metric": options.get("metric_for_best_model", "eval_mae"),
        "versions": ", ".join(f"{package} {version}" for package, version in results.get("versions", {}).items()),
    }


def _intervals(saved: Mapping[str, Any]) -> dict[str, Any]:
    widths = [{"target": target, **group} for target, groups in saved["groups"].items() for group in groups]
    shots = [
        {"split": split, "target": target, "shot": shot, **shots[shot]}
        for split, targets in saved.get("coverage_by_shot", {}).items()
        for target, shots in targets.items()
        for shot in _shots(shots)
    ]
    return {
        "coverage": saved["coverage"],
        "split": saved["calibrated_on"],
        "n": saved["n"],
        "widths": widths,
        "shots": shots,
    }


def _limits(bins: Mapping[str, Any] | None, targets: Sequence[str]) -> list[dict[str, Any]]:
    """Where training labels are, and where there are few of them, for each target."""
    if bins is None:
        return []
    limits = []
    for target, edges, counts in zip(targets, bins["edges"], bins["train_counts"], strict=True):
        ranges: list[list[float]] = []
        for low, high, count in zip(edges[:-1], edges[1:], counts, strict=True):
            if count >= THRESHOLDS[0]:
                continue
            if ranges and math.isclose(ranges[-1][1], low, rel_tol=0, abs_tol=1e-9 * (edges[-1] - edges[0])):
                ranges[-1][1] = high
            else:
                ranges.append([low, high])
        limits.append(
            {
                "target": target,
                "low": edges[0],
                "high": edges[-1],
                "rare": ranges[:MOST_RANGES],
                "more": max(len(ranges) - MOST_RANGES, 0),
            }
        )
    return limits
