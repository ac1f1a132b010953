"""`write_results`: the folder of a finished run, from Python as `conr-hf train` leaves it."""

from pathlib import Path
from typing import Any

import yaml
from torch.utils.data import Dataset

from conr_hf.data.columns import Row
from conr_hf.inference.evaluate import evaluate
from conr_hf.metrics.fit import describe_fit
from conr_hf.models.saved import target_names
from conr_hf.training.card_data import training_facts
from conr_hf.training.data_module import DataSets
from conr_hf.training.trainer import ConRTrainer
from conr_hf.utils.environment import peak_memory
from conr_hf.utils.files import check_writable, writing
from conr_hf.utils.run_folder import CARD, RECIPE, file_times, written_since


def write_results(
    trainer: ConRTrainer, test_dataset: DataSets | None = None, *, unit: str | None = None
) -> dict[str, Any]:
    """
    Writes what `conr-hf train` writes of a finished run into `trainer.args.output_dir`, in one call after `train()`:
    the model and its processor, `results.json`, `predictions.csv` and `density.png` (`maps.png` for maps),
    `intervals.json` where there is a validation set of 20 images or more, `recipe.yaml`, `trainer_state.json` and the
    model card `README.md`. It prints the tables of errors. `conr-hf report`, `demo`, `push` and the pipeline's
    `interval=True` then take the folder.

    Every process of a run must call it.

    Args:
        trainer ([`ConRTrainer`]): It has trained; its `eval_dataset` is the split `"validation"`.
        test_dataset (a data set, or `dict` of names to data sets, *optional*): Rows to measure, as in training.
        unit (`str`, *optional*): Unit of the labels, for tables, pictures and card. Unset: the benchmark's, or none.

    Returns:
        `dict`: What `results.json` holds.

    Raises:
        `ValueError`: for rows that cannot be measured, and a folder that cannot be written into.
        `OSError`: for a full disk.

    Example:
    ```python
    trainer.train()
    results = write_results(trainer, data["test"], unit="years")
    results["test"]["few"]["mae"]
    ```
    """
    args, data = trainer.args, trainer.data
    check_writable(args.output_dir)
    if unit is not None:
        data.unit = unit
    evaluation = trainer.eval_dataset
    validation = evaluation if isinstance(evaluation, dict) else {"validation": evaluation}
    test = test_dataset if isinstance(test_dataset, dict) else {"test": test_dataset}
    splits: dict[str, Dataset[Row]] = {name: rows for name, rows in {**validation, **test}.items() if rows is not None}
    model: Any = trainer.accelerator.unwrap_model(trainer.model)
    facts = training_facts(model, args, trainer.state, data, trainer.compute_loss_func is not None)
    with writing(Path(str(args.output_dir)), "call write_results again"):
        return write_run(trainer, splits, target_names(model), {"schema": 1, **facts, "peak_memory": peak_memory()})


def write_run(
    trainer: ConRTrainer,
    splits: dict[str, Any],
    targets: list[str],
    facts: dict[str, Any],
    unlabelled: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """
    Writes the folder of a finished run: its model, its errors on the held-out `splits`, predictions for those without
    labels, its card. `facts`: what is known of the run, the first keys of `results.json`, which is returned.
    """
    folder = Path(str(trainer.args.output_dir))
    before = file_times(folder)
    trainer.save_model(_internal_call=True)  # no push yet, as files are missing
    trainer.save_state()  # the logs outlive the checkpoints
    if trainer.is_world_process_zero():
        text = yaml.safe_dump(facts["recipe"], sort_keys=False, allow_unicode=True)
        Path(folder, RECIPE).write_text(f"# {facts.get('command', 'a run of ConRTrainer')}\n{text}", encoding="utf-8")
    results = evaluate(trainer, splits, targets, facts["unit"], facts, folder, unlabelled)
    trainer.create_model_card()
    if trainer.is_world_process_zero():
        print(f"\nWritten to {folder}: {', '.join(written_since(folder, before))}")
        print(f"The model card: {folder / CARD}")
        for split in splits:
            _, problem = describe_fit(results["fit"][split], results[split]["all"]["mae"], targets, results["unit"])
            if problem is not None:
                print(f"Warning: on {split}, {problem}.")
    return results
