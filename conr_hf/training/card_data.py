"""`DescribingTrainer`: the model card of a training."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
from transformers.utils import logging

from conr_hf.data.benchmarks.loading import benchmark_of
from conr_hf.hub.card_metadata import SHOTS, ModelCardOptions
from conr_hf.hub.card_template import OURS, read_template
from conr_hf.hub.model_card import TrainingSummary, card, pictures_in, read_trained
from conr_hf.hub.provenance import hub_ids
from conr_hf.metrics.gaze import label_errors
from conr_hf.models.peft import has_adapter
from conr_hf.training.optimizer import LearningTrainer
from conr_hf.training.state import load_state
from conr_hf.utils.environment import hardware, versions
from conr_hf.utils.run_folder import CARD

logger = logging.get_logger(__name__)

_OPTIONS = ("num_train_epochs", "learning_rate", "weight_decay", "lr_scheduler_type", "warmup_steps")
_OF_SOME = ("rmse", "abs_rel", "delta1", "angular_error")  # figures of maps, of depth, of gaze
_BATCHES = ("per_device_train_batch_size", "gradient_accumulation_steps")


class DescribingTrainer(LearningTrainer):
    """
    What [`ConRTrainer`] tells of a model: its card.

    Args:
        args, kwargs: As in [`ConRTrainer`].
    """

    def create_model_card(
        self,
        language: str | list[str] | None = None,
        license: str | None = None,
        tags: str | list[str] | None = None,
        model_name: str | None = None,
        finetuned_from: str | None = None,
        tasks: str | list[str] | None = None,
        dataset_tags: str | list[str] | None = None,
        dataset: str | list[str] | None = None,
        dataset_args: str | list[str] | None = None,
    ) -> None:
        """
        Writes `README.md` into `args.output_dir`, by `args.model_card_template` or the package's own template: from
        the files of the run where `conr-hf train` wrote them, else from what the trainer knows, with the errors that
        were logged last (of the best checkpoint, if that was loaded).

        Args:
            language, license, tags, model_name, finetuned_from, tasks, dataset_tags, dataset, dataset_args
                (*optional*): As in `Trainer`; of several tasks or names of data sets the first is used.
        """
        if not self.is_world_process_zero():
            return
        folder = Path(str(self.args.output_dir))
        told = ModelCardOptions(
            model_id=self.hub_model_id or self.args.hub_model_id,
            language=language,
            license=license,
            tags=_listed(tags),
            base_model=finetuned_from,
            task=next(iter(_listed(tasks)), None),
            datasets=_listed(dataset_tags) or None,
            dataset_name=next(iter(_listed(dataset)), None),
            dataset_args=dataset_args,
        )
        trained = self._written(folder) or self._known()
        name = model_name or (told.model_id or folder.resolve().name).rpartition("/")[2]
        ours = OURS.read_text(encoding="utf-8")
        try:
            given = self.args.model_card_template
            text = card(trained, name, told, ours if given is None else read_template(given))
        except ValueError as error:  # of the user's template: no reason to lose a run or its upload
            logger.warning(f"The model card is written by the package's template: {error}")
            text = card(trained, name, told, ours)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / CARD).write_text(text, encoding="utf-8", newline="\n")

    def _written(self, folder: Path) -> TrainingSummary | None:
        """What `conr-hf train` wrote of this training, and not of another into the same folder."""
        if not self._knows_labels() or not (folder / "results.json").is_file():
            return None
        try:
            trained = read_trained(folder)
        except ValueError:
            return None
        ours = {"conr": dataclasses.asdict(self.resolved), "steps": self.state.global_step, "seed": self.args.seed}
        same = all(trained.results.get(name) == value for name, value in json.loads(json.dumps(ours)).items())
        return trained if same else None

    def _known(self) -> TrainingSummary:
        """What the trainer knows."""
        model: Any = self.accelerator.unwrap_model(self.model)
        options = self.args.to_dict()  # type: ignore[no-untyped-call]
        names = [*self.args.own_fields(), *_OPTIONS, *_BATCHES, "metric_for_best_model"]
        recipe = {name: options[name] for name in names if options[name] is not None}
        source = model.config._name_or_path
        ids = hub_ids(model=source, pretrained=True, weights=None, data=None)
        results: dict[str, Any] = {"seed": self.args.seed, "versions": versions(), "hub_ids": ids, "recipe": recipe}
        if source:
            recipe["model"] = source
        if self.state.global_step:
            seconds = [entry["train_runtime"] for entry in self.state.log_history if "train_runtime" in entry]
            results |= {"steps": self.state.global_step, "hardware": hardware()}
            results |= {"train_seconds": seconds[-1]} if seconds else {}
        if self._knows_labels():
            results |= {"conr": dataclasses.asdict(self.resolved), "bins": self.bins.to_dict(), **self._errors()}
            if self.compute_loss_func is not None:
                results["conr"]["base_loss"] = "own"
        if self.train_dataset is not None:
            benchmark = benchmark_of(self.train_dataset, self.training_labels())
            if benchmark is not None:
                results["unit"], recipe["benchmark"] = benchmark.unit, benchmark.name
        config = {**model.config.to_dict(), "architectures": [type(model).__name__]}
        pictures = pictures_in(Path(str(self.args.output_dir)))
        return TrainingSummary(results, config, dataclasses.asdict(self.state), None, pictures, has_adapter(model))

    def _knows_labels(self) -> bool:
        return self.train_dataset is not None or load_state(self.model.config._name_or_path) is not None

    def _errors(self) -> dict[str, Any]:
        """Errors of the evaluation sets as `results.json` has them, from the log."""
        sets = self.eval_dataset if isinstance(self.eval_dataset, dict) else {"": self.eval_dataset}
        errors: dict[str, Any] = {"baseline_median": {}}
        for name, rows in sets.items():
            prefix = f"eval_{name}_" if name else "eval_"
            logged = [entry for entry in self.state.log_history if f"{prefix}mae" in entry]
            if self.args.load_best_model_at_end and self.state.best_global_step is not None:
                logged = [entry for entry in logged if entry["step"] == self.state.best_global_step] or logged
            if not logged:
                continue
            split = name or "validation"
            errors[split] = {}
            for shot in SHOTS:
                of_shot = prefix if shot == "all" else f"{prefix}{shot}_"
                figures = {figure: logged[-1].get(of_shot + figure) for figure in ("n", "mae", "gm", "bmae")}
                if None not in figures.values():
                    more = {name: logged[-1].get(of_shot + name) for name in _OF_SOME}
                    errors[split][shot] = figures | {name: value for name, value in more.items() if value is not None}
            labels = None if rows is None else self.usable(rows, split)[1]
            errors["baseline_median"][split] = {}
            if labels is not None:
                median = np.tile(self.resolved.label_median, (len(labels), 1)).reshape(labels.shape)
                errors["baseline_median"][split] = label_errors(median, labels, self.bins, self.args.label_columns)
        return errors


def _listed(given: str | list[str] | None) -> list[str]:
    return [given] if isinstance(given, str) else list(given or [])
