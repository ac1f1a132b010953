"""The model card: what a run was, how good it is and where its limits are, from the files of its folder."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import timm
import yaml
from huggingface_hub import ModelCard
from jinja2 import UndefinedError
from transformers import AutoModelForDepthEstimation

from conr_hf.data.benchmarks.registry import BENCHMARKS
from conr_hf.hub.card_metadata import ModelCardOptions, first, metadata
from conr_hf.hub.card_template import CardValues, read_template, render
from conr_hf.hub.method_descriptions import citations, describe_methods
from conr_hf.hub.provenance import is_hub_id, strip_paths
from conr_hf.hub.upload_files import check_holds
from conr_hf.metrics import SHOTS, THRESHOLDS
from conr_hf.metrics.fit import describe_fit
from conr_hf.models.safe_loading import map_loader
from conr_hf.utils.markdown import one_line
from conr_hf.utils.run_folder import CARD, INTERVALS, PICTURE, RESULTS, read_json

MOST_RANGES = 8  # of rare labels, for each target


@dataclass(frozen=True)
class TrainingSummary:
    """What a card is written from."""

    folder: Path  # of the card and its pictures
    results: Mapping[str, Any]  # content of results.json; what is not known is left out
    config: Mapping[str, Any]  # the model's config.json
    state: Mapping[str, Any]  # content of trainer_state.json, or nothing
    intervals: Mapping[str, Any]  # content of intervals.json, or nothing
    is_adapter: bool  # whether what was saved is an adapter


def write_card(folder: str | Path, template: str | None = None, options: ModelCardOptions | None = None) -> Path:
    """Writes the card of a folder that `conr-hf train` wrote into its `README.md`, by the user's template if given."""
    path = Path(folder, CARD)
    path.write_text(card_of(folder, template, options), encoding="utf-8", newline="\n")
    return path


def card_of(folder: str | Path, template: str | None = None, options: ModelCardOptions | None = None) -> str:
    """The card that [`write_card`] writes; a `ValueError` if a file of the run or the template cannot be used."""
    run, text = read_run(Path(folder)), read_template(template)
    try:
        return card(run, options or ModelCardOptions(), text)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, UndefinedError) as error:
        reason = str(error).rstrip(".") if isinstance(error, ValueError) else f"its files lack or mistake {error}"
        raise ValueError(f'The model card of "{folder}" cannot be written: {reason}.') from error


def read_run(folder: Path) -> TrainingSummary:
    """The files of a run that its card is written from."""
    check_holds(folder, (RESULTS, "config.json"), "is not a run")
    files = [folder / name for name in (RESULTS, "config.json", "trainer_state.json", INTERVALS)]
    results, config, state, intervals = (read_json(file) if file.is_file() else {} for file in files)
    return TrainingSummary(folder, results, config, state, intervals, (folder / "adapter_config.json").is_file())


def card(run: TrainingSummary, options: ModelCardOptions, template: str) -> str:
    """The card as Markdown with its metadata; a `ValueError` for the template, others for strange files of a run."""
    results: dict[str, Any] = {"recipe": {}, "hub_ids": {}, "bins": {}, "unit": "", **strip_paths(run.results)}
    name = one_line(options.model_name or Path(options.model_id or run.folder.resolve()).name)
    unit, bins, baselines = one_line(str(results["unit"])), results["bins"], results.get("baseline_median", {})
    names = run.config.get("label_names")  # of timm
    if names is None:
        names = [label for _, label in sorted(run.config["id2label"].items(), key=lambda item: int(item[0]))]
    targets = [one_line(str(target)) for target in names]
    methods = describe_methods(
        results.get("conr", {}), results["recipe"], unit, results.get("refit_head"), "own_transform" in results
    )
    values = CardValues(
        card_data="",
        model_name=name,
        model_id=options.model_id or f"you/{re.sub(r'[^A-Za-z0-9_.-]+', '-', name).strip('-.') or 'model'}",
        targets=targets,
        unit=unit,
        base=_base(results, run.config, options),
        data=_data(results, options),
        splits=[
            {"name": key, "rows": _rows(results[key], baselines[key]), "fit": _fit(results, key, targets, unit)}
            for key in baselines
            if key in results
        ],
        picture=PICTURE if (run.folder / PICTURE).is_file() else None,
        maps=_maps(run.config),
        thresholds=bins.get("thresholds", THRESHOLDS),
        methods=methods,
        training=_training(results, run.state),
        intervals=_intervals(run.intervals) if run.intervals else None,
        limits=_limits(bins, targets) if bins else [],
        citations=citations(methods),
    )
    values["card_data"] = metadata(values, options, run.is_adapter).to_yaml()
    text = render(template, values)
    try:
        ModelCard(text)
    except (ValueError, yaml.YAMLError) as error:  # of a user's template
        raise ValueError(f"its metadata is not what the Hub reads ({one_line(str(error))})") from error
    return text


def _base(results: Mapping[str, Any], config: Mapping[str, Any], options: ModelCardOptions) -> dict[str, Any]:
    name = results["recipe"].get("model") or config.get("architecture") or config.get("model_type") or ""
    hub_id = options.finetuned_from or results["hub_ids"].get("model") or ""
    known = timm.get_pretrained_cfg(hub_id.removeprefix("timm/")) if hub_id.startswith("timm/") else None
    model_types = {part.get("model_type") for part in (config, config.get("backbone_config") or {})}
    return {
        "name": one_line(str(strip_paths(name))),
        "id": hub_id if is_hub_id(hub_id) else None,
        "license": None if known is None else known.license,
        "scratch": options.finetuned_from is None and not results["recipe"].get("pretrained", True),
        "fine_tuned": options.finetuned_from is not None or bool(results["recipe"].get("model")),
        "image_range": ", ".join(f"{end:g}" for end in config.get("image_range") or ()),
        "timm": not model_types.isdisjoint(("timm_wrapper", "timm_backbone")),
    }


def _data(results: Mapping[str, Any], options: ModelCardOptions) -> dict[str, Any]:
    counts, benchmark = results["bins"].get("train_counts"), BENCHMARKS.get(results["recipe"].get("benchmark") or "")
    hub_id = first(options.dataset_tags) or results["hub_ids"].get("data") or ""
    facts = vars(benchmark) if benchmark else {}
    return {
        "name": one_line(str(facts.get("name") or first(options.dataset) or results["recipe"].get("data") or "")),
        "id": hub_id if is_hub_id(hub_id) else None,
        "n": sum(counts[0]) if counts else None,
        "restricted": facts.get("obtain", "") != "",
        **{name: facts.get(name, "") for name in ("description", "credit", "license", "people")},
    }


def _maps(config: Mapping[str, Any]) -> dict[str, Any] | None:
    loader = map_loader(config)
    if loader is None:
        return None
    output = "predicted_depth" if loader is AutoModelForDepthEstimation else "logits"
    return {"loader": loader.__name__, "output": output}


def _rows(errors: Mapping[str, Any], baseline: Mapping[str, Any]) -> list[dict[str, Any]]:
    rows = []
    for shot in (shot for shot in SHOTS if shot in errors):
        figures = {name: errors[shot][name] for name in ("n", "mae", "gm", "bmae")}
        figures |= {name: errors[shot].get(name) for name in ("rmse", "abs_rel", "delta1", "angular_error")}
        rows.append(
            {
                "shot": shot,
                "name": SHOTS[shot],
                **figures,
                "baseline": baseline[shot]["mae"] if shot in baseline else None,
            }
        )
    return rows


def _fit(results: Mapping[str, Any], split: str, targets: list[str], unit: str) -> dict[str, Any] | None:
    found = results.get("fit", {}).get(split)
    if found is None:
        return None
    text, problem = describe_fit(found, results[split]["all"]["mae"], targets, unit)
    return {"text": text, "problem": problem}


def _training(results: Mapping[str, Any], state: Mapping[str, Any]) -> dict[str, Any]:
    recipe, seconds, best = results["recipe"], results.get("train_seconds"), state.get("best_global_step")
    epochs = [entry["epoch"] for entry in state.get("log_history", []) if best and entry.get("step") == best]
    return {
        **{name: results.get(name) for name in ("command", "hardware", "seed", "steps")},
        "recipe": yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True) if recipe else None,
        "minutes": None if seconds is None else round(seconds / 60, 1),
        "epochs": state.get("epoch"),
        "best_epoch": epochs[0] if epochs and recipe.get("load_best_model_at_end", True) else None,
        "metric": recipe.get("metric_for_best_model", "eval_mae"),
        "versions": ", ".join(f"{package} {version}" for package, version in results.get("versions", {}).items()),
    }


def _intervals(saved: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "coverage": saved["coverage"],
        "split": saved["calibrated_on"],
        "n": sum(group["n"] for group in saved["groups"][saved["targets"][0]]),
        "widths": [{"target": target, **group} for target, groups in saved["groups"].items() for group in groups],
        "shots": [
            {"split": split, "target": target, "shot": shot, "name": SHOTS[shot], **of_target[shot]}
            for split, targets in saved.get("coverage_by_shot", {}).items()
            for target, of_target in targets.items()
            for shot in SHOTS
            if shot in of_target
        ],
    }


def _limits(bins: Mapping[str, Any], targets: Sequence[str]) -> list[dict[str, Any]]:
    """Where training labels are, and where there are few of them, for each target."""
    limits, fewest = [], bins.get("thresholds", THRESHOLDS)[0]
    for target, edges, counts in zip(targets, bins["edges"], bins["train_counts"], strict=True):
        by_rarity = groupby(zip(edges[:-1], edges[1:], counts, strict=True), lambda part: part[2] < fewest)
        neighbours = [list(parts) for is_rare, parts in by_rarity if is_rare]
        rare = [(parts[0][0], parts[-1][1]) for parts in neighbours]
        more = max(len(rare) - MOST_RANGES, 0)
        limits.append({"target": target, "low": edges[0], "high": edges[-1], "rare": rare[:MOST_RANGES], "more": more})
    return limits
