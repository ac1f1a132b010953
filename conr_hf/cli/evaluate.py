"""`conr-hf evaluate`: the errors of a saved model."""

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from conr_hf.cli.recipe import Recipe
from conr_hf.cli.recipe_data import load_data
from conr_hf.data.columns import label_values
from conr_hf.inference.evaluate import evaluate
from conr_hf.models.saved import load_saved, saved_unit, target_names
from conr_hf.training.config.config import ConRConfig
from conr_hf.training.state import load_state
from conr_hf.training.trainer import ConRTrainer
from conr_hf.utils.environment import hardware, versions
from conr_hf.utils.files import check_writable, writing


def evaluate_saved(
    *,
    model: str,
    benchmark: str | None,
    benchmark_source: str | None = None,
    data: str | None,
    streaming: bool,
    split: str,
    image_column: str,
    label_columns: Sequence[str] | None,
    batch_size: int,
    skip_bad_rows: bool,
    map_scale: float | None,
    map_invalid: float | None,
    output: str | None,
    command: str,
) -> None:
    """
    Prints the errors of a saved model on a split, per shot, and writes them into `output` if it is given.

    Bins and shots are those saved beside the model, or, without any, those of the data's training split. Maps are read
    as in training, unless `map_scale` or `map_invalid` is given.

    Raises:
        `ValueError`: if the model, the data or the split cannot be read.
    """
    if output is not None:
        check_writable(output)
    loaded, processor = load_saved(model, maps=True)
    saved = load_state(model)
    columns = label_columns or (saved[0].label_columns if saved is not None else ["label"])
    if saved is not None:
        map_scale = saved[0].map_scale if map_scale is None else map_scale
        map_invalid = saved[0].map_invalid if map_invalid is None else map_invalid
    with TemporaryDirectory() as scratch:
        args = ConRConfig(
            scratch,
            image_column=image_column,
            label_columns=list(columns),
            per_device_eval_batch_size=batch_size,
            skip_bad_rows=skip_bad_rows,
            map_scale=1.0 if map_scale is None else map_scale,
            map_invalid=map_invalid,
        )
        targets = target_names(loaded)
        sets, targets, unit = load_data(
            Recipe(
                benchmark=benchmark,
                benchmark_source=benchmark_source,
                data=data,
                streaming=streaming,
                target=targets,
            ),
            args,
        )
        unit = unit or saved_unit(model)
        if split not in sets:
            raise ValueError(f'The data has no split "{split}"; it has {", ".join(sets)}. Name one with --split.')
        label_values(dict.fromkeys(sets[split].column_names), args.label_columns, f'split "{split}"')
        train = sets.get("train") if saved is None else None
        trainer = ConRTrainer(loaded, args, train_dataset=train, processing_class=processor)
        facts = {
            "schema": 1,
            "command": command,
            "model": model,
            "versions": versions(),
            "hardware": hardware(),
            "unit": unit,
        }
        with writing(Path(output or scratch)):
            evaluate(trainer, {split: sets[split]}, targets, unit, facts, Path(output) if output else None)
