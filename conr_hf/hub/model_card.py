"""The model card: what a run was, how good it is and where it ends, from the files of its folder."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import yaml
from huggingface_hub import ModelCard
from transformers import AutoModelForDepthEstimation

from conr_hf.data.benchmarks.registry import BENCHMARKS, Benchmark
from conr_hf.hub.card_metadata import ModelCardOptions, evaluated_splits, metadata, shots_of
from conr_hf.hub.card_template import OURS, CardValues, read_template, render
from conr_hf.hub.methods import PAPERS, describe_methods
from conr_hf.hub.provenance import is_hub_id, strip_paths
from conr_hf.metrics import THRESHOLDS
from conr_hf.models.safe_loading import map_loader
from conr_hf.utils.markdown import one_line
from conr_hf.utils.run_folder import CARD, MAPS, PICTURE

MOST_RANGES = 8  # of rare labels, for each target


@dataclass(frozen=True)
class TrainingSummary:
    """
    What a card is written from.

    Args:
        results (`Mapping`): What `results.json` holds; what is not known is left out.
        config (`Mapping`): The model's `config.json`.
        state (`Mapping`): What `trainer_state.json` holds, or nothing.
        intervals (`Mapping`, *optional*): What `intervals.json` holds.
        pictures (`Sequence[str]`): Which of `density.png` and `maps.png` there are.
        is_adapter (`bool`): Whether what was saved is an adapter.
    """

    results: Mapping[str, Any]
    config: Mapping[str, Any]
    state: Mapping[str, Any]
    intervals: Mapping[str, Any] | None
    pictures: Sequence[str]
    is_adapter: bool


def write_card(
    folder: str | Path, template: str | None = None, name: str | None = None, told: ModelCardOptions | None = None
) -> Path:
    """
    Writes the card of the run in `folder` into its `README.md`.

    Args, raises:
        As [`card_of`].

    Returns:
        `Path`: the card.
    """
    path = Path(folder, CARD)
    path.write_text(card_of(folder, template, name, told), encoding="utf-8", newline="\n")
    return path


def card_of(
    folder: str | Path, template: str | None = None, name: str | None = None, told: ModelCardOptions | None = None
) -> str:
    """
    The card of the run in `folder`.

    Args:
        folder (`str` or `Path`): A folder that `conr-hf train` wrote.
        template (`str`, *optional*): A file to use instead of the package's template; see [`CardValues`].
        name (`str`, *optional*): The model's name. Unset: the folder's.
        told ([`ModelCardOptions`], *optional*): What the folder does not tell.

    Raises:
        `ValueError`: if it is no such folder, a file of it cannot be read, or the template cannot be used.
    """
    trained = read_trained(Path(folder))
    text = OURS.read_text(encoding="utf-8") if template is None else read_template(template)
    try:
        return card(trained, name or Path(folder).resolve().name, told or ModelCardOptions(), text)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        reason = str(error).rstrip(".") if isinstance(error, ValueError) else f"its files lack or mistake {error}"
        raise ValueError(f'The model card of "{folder}" cannot be written: {reason}.') from error


def read_trained(folder: Path) -> TrainingSummary:
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
    return TrainingSummary(
        found["results"],
        found["config"],
        found.get("trainer_state", {}),
        found.get("intervals"),
        pictures_in(folder),
        (folder / "adapter_config.json").is_file(),
    )


def pictures_in(folder: Path) -> list[str]:
    """The pictures in the folder of a run that a card shows."""
    return [name for name in (PICTURE, MAPS) if (folder / name).is_file()]


def card(trained: TrainingSummary, name: str, told: ModelCardOptions, template: str) -> str:
    """
    The card as Markdown with its metadata.

    Args:
        trained ([`TrainingSummary`]): What it is written from.
        name (`str`): The model's name.
        told ([`ModelCardOptions`]): What its user tells.
        template (`str`): Text of the template.

    Raises:
        `ValueError`: if the template cannot be filled in. Other errors: for files that no run writes.
    """
    results, name = trained.results, one_line(name)
    options, unit = results.get("recipe", {}), one_line(str(results.get("unit", "")))
    used = describe_methods(results.get("conr", {}), options, unit)
    benchmark = BENCHMARKS.get(options.get("benchmark") or "")
    base = _base(trained, told)
    data = _data(results, benchmark, told)
    values = CardValues(
        card_data=metadata(results, trained.config, trained.is_adapter, name, told, base, data, used, unit).to_yaml(),
        model_name=name,
        model_id=told.model_id or f"you/{re.sub(r'[^A-Za-z0-9_.-]+', '-', name).strip('-.') or 'model'}",
        targets=_targets(trained.config),
        unit=unit,
        base=base,
        data=data,
        splits=[_split(results, split) for split in evaluated_splits(results)],
        picture=PICTURE if PICTURE in trained.pictures else None,
        maps=_maps(trained),
        thresholds=results.get("bins", {}).get("thresholds", THRESHOLDS),
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


def _base(trained: TrainingSummary, told: ModelCardOptions) -> dict[str, Any]:
    options = trained.results.get("recipe", {})
    hub = told.base_model or trained.results.get("hub_ids", {}).get("model")
    known = timm.get_pretrained_cfg(hub.removeprefix("timm/")) if hub and hub.startswith("timm/") else None
    architecture = trained.config.get("architecture") or trained.config.get("model_type") or ""
    scratch = told.base_model is None and not options.get("pretrained", True)
    name = one_line(str(strip_paths(options.get("model") or architecture)))
    return {
        "name": name,
        "id": hub if hub and is_hub_id(hub) else None,
        "license": known.license if known is not None else None,
        "scratch": scratch,
        "timm": any(
            part.get("model_type") in ("timm_wrapper", "timm_backbone")
            for part in (trained.config, trained.config.get("backbone_config") or {})
        ),
    }


def _maps(trained: TrainingSummary) -> dict[str, Any] | None:
    loader = map_loader(trained.config)
    if loader is None:
        return None
    return {
        "loader": loader.__name__,
        "output": "predicted_depth" if loader is AutoModelForDepthEstimation else "logits",
        "picture": MAPS if MAPS in trained.pictures else None,
    }


def _data(results: Mapping[str, Any], benchmark: Benchmark | None, told: ModelCardOptions) -> dict[str, Any]:
    options, counts = results.get("recipe", {}), results.get("bins", {}).get("train_counts")
    hub = (told.datasets or [results.get("hub_ids", {}).get("data")])[0]
    named = benchmark.name if benchmark is not None else told.dataset_name or strip_paths(options.get("data")) or ""
    return {
        "name": one_line(str(named)),
        "id": hub if hub and is_hub_id(hub) else None,
        "n": sum(counts[0]) if counts else None,
        "description": benchmark.description if benchmark is not None else "",
        "credit": benchmark.credit if benchmark is not None else "",
        "license": benchmark.license if benchmark is not None else "",
        "restricted": benchmark is not None and benchmark.obtain != "",
        "people": benchmark.people if benchmark is not None else "",
    }


def _targets(config: Mapping[str, Any]) -> list[str]:
    if "label_names" in config:  # of timm
        return [one_line(str(name)) for name in config["label_names"]]
    return [one_line(str(name)) for _, name in sorted(config["id2label"].items(), key=lambda item: int(item[0]))]


def _split(results: Mapping[str, Any], split: str) -> dict[str, Any]:
    baseline = results["baseline_median"][split]
    rows = [
        {
            "shot": shot,
            **{figure: results[split][shot][figure] for figure in ("n", "mae", "gm", "bmae")},
            **{figure: results[split][shot].get(figure) for figure in ("rmse", "abs_rel", "delta1", "angular_error")},
            "baseline": baseline[shot]["mae"] if shot in baseline else None,
        }
        for shot in shots_of(results[split])
    ]
    return {"name": split, "rows": rows}


def _training(trained: TrainingSummary) -> dict[str, Any]:
    results, state = trained.results, trained.state
    options = strip_paths(results.get("recipe", {}))
    best, keeps = state.get("best_global_step"), options.get("load_best_model_at_end", True)
    epochs = [entry["epoch"] for entry in state.get("log_history", []) if best and entry.get("step") == best]
    seconds = results.get("train_seconds")
    return {
        "command": strip_paths(results.get("command")),
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
        for shot in shots_of(shots)
    ]
    return {
        "coverage": saved["coverage"],
        "split": saved["calibrated_on"],
        "n": sum(group["n"] for group in saved["groups"][saved["targets"][0]]),
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
            if count >= bins.get("thresholds", THRESHOLDS)[0]:
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
