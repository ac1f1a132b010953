"""What is printed while a model trains: what the run does, and one line for each log."""

from typing import Any

from tqdm.auto import tqdm
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerState
from transformers.trainer import DEFAULT_PROGRESS_CALLBACK

from conr_hf.data.collator import ImageCollator
from conr_hf.data.columns import column_names
from conr_hf.metrics import SHOTS
from conr_hf.training.compute_metrics import ComputeMetrics
from conr_hf.training.data_module import DataModule
from conr_hf.training.description import (
    NO_VALIDATION,
    describe_method,
    describe_refit,
    describe_shots,
    describe_unused_conr,
    describe_views,
)
from conr_hf.training.refit import refit_facts


def use_brief_logging(trainer: Trainer, data: DataModule, metrics: ComputeMetrics) -> None:
    """Puts lines for people in the place of `Trainer`'s dictionaries, unless the user brought a printer."""
    kinds = PrinterCallback, ProgressCallback, DEFAULT_PROGRESS_CALLBACK
    printers = [callback for callback in trainer.callback_handler.callbacks if isinstance(callback, kinds)]
    trainer.callback_handler.callbacks.remove(printers[-1])  # Trainer's, behind the user's
    if len(printers) == 1:
        kind = BriefPrinterCallback if trainer.args.disable_tqdm else BriefProgressCallback
        trainer.add_callback(kind(trainer, data, metrics))


class BriefPrinterCallback(PrinterCallback):
    """Prints what a run does before its first step, and one line for each log; all figures are in `log_history`."""

    def __init__(self, trainer: Trainer, data: DataModule, metrics: ComputeMetrics) -> None:
        self.trainer, self.data, self.metrics = trainer, data, metrics

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero and not state.is_hyper_param_search:
            _print_description(self.trainer, self.data)

    def on_log(self, args: Any, state: TrainerState, control: Any, logs: Any = None, **kwargs: Any) -> None:
        _print_log(logs or {}, state, self.data, self.metrics)


class BriefProgressCallback(ProgressCallback):
    """[`BriefPrinterCallback`] with a progress bar."""

    def __init__(self, trainer: Trainer, data: DataModule, metrics: ComputeMetrics) -> None:
        super().__init__()
        self.trainer, self.data, self.metrics = trainer, data, metrics

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero and not state.is_hyper_param_search:
            _print_description(self.trainer, self.data)
        super().on_train_begin(args, state, control, **kwargs)

    def on_log(self, args: Any, state: TrainerState, control: Any, logs: Any = None, **kwargs: Any) -> None:
        _print_log(logs or {}, state, self.data, self.metrics)


def _print_description(trainer: Trainer, data: DataModule) -> None:
    columns = column_names(data.train_dataset)  # type: ignore[arg-type]
    lines = [describe_method(data.resolved, trainer.compute_loss_func is not None, "sample_weight" in columns)]
    sharded = bool(trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled)
    off = describe_unused_conr(data.args, data.resolved, sharded)
    lines += [off] if off is not None else []
    if isinstance(trainer.data_collator, ImageCollator) and "pixel_values" not in columns:
        lines.append(describe_views(data.args, data.transform is not None))
    few = describe_shots(data.bins, data.label_unit(), "pixels" if data.labels_are_maps else "images")
    lines += [few] if few is not None else []
    lines += [NO_VALIDATION] if data.eval_dataset is None else []
    if (dataset := data.refit_dataset()) is not None:
        aside, others = data.refit_rows()[0], data.load_split(dataset, "eval_dataset")[0]
        lines.append(
            f"refit_head: {len(aside):,} of {len(aside) + len(others):,} validation rows are set aside for it; the "
            f"others choose the epoch, calibrate intervals and are measured."
        )
    for line in lines:
        tqdm.write(line)  # past the bar, where there is one


def _print_log(logs: dict[str, Any], state: TrainerState, data: DataModule, metrics: ComputeMetrics) -> None:
    if not state.is_world_process_zero or "train_runtime" in logs:
        return
    if "refit_rows" in logs:
        parts = [describe_refit(refit_facts(state)["refit_head"], data.label_unit())]
    elif "loss" in logs:
        parts = _losses(logs)
    elif any(name.endswith("_mae") for name in logs):
        parts = _errors(logs, data, metrics.own_names)
    else:
        parts = [f"{name} {_text(value)}" for name, value in logs.items() if name != "epoch"]
    if parts:
        tqdm.write(f"epoch {state.epoch or 0:5.2f}  step {state.global_step:5d}  {', '.join(parts)}")


def _losses(logs: dict[str, Any]) -> list[str]:
    parts = [f"base loss {logs['base_loss']:.3f}" if "base_loss" in logs else f"loss {_text(logs['loss'])}"]
    if "conr_loss" in logs:
        parts.append(f"ConR {logs['conr_loss']:.3f} on {100 * logs['conr_anchors']:.0f} % of rows")
    if "rnc_loss" in logs:
        parts.append(f"Rank-N-Contrast {logs['rnc_loss']:.3f}")
    if "learning_rate" in logs:
        parts.append(f"learning rate {logs['learning_rate']:.1e}")
    return parts


def _errors(logs: dict[str, Any], data: DataModule, own_names: list[str]) -> list[str]:
    """The MAE of an evaluation set and of its shots, what the best model is chosen by, and the user's own metrics."""
    prefix = min((name for name in logs if name.endswith("_mae")), key=len).removesuffix("mae")
    name_of_set = prefix.removeprefix("eval_").rstrip("_")
    errors = {text: logs[f"{prefix}{shot}_mae"] for shot, text in SHOTS.items() if f"{prefix}{shot}_mae" in logs}
    by_shot = ", ".join(f"{shot} {_text(error)}" for shot, error in errors.items())
    unit = data.label_unit()
    start = f"{name_of_set}: MAE" if name_of_set else "MAE"
    parts = [f"{start} {_text(logs[f'{prefix}mae'])}{f' {unit}' if unit else ''}{f' ({by_shot})' if by_shot else ''}"]
    if f"{prefix}angular_error" in logs:
        parts.append(f"angle {logs[f'{prefix}angular_error']:.4g} deg")
    chosen_by = (data.args.metric_for_best_model or "").removeprefix("eval_")
    names = dict.fromkeys([chosen_by, *own_names])  # each once
    shown = [name for name in names if name not in ("mae", "angular_error") and f"{prefix}{name}" in logs]
    return parts + [f"{name} {_text(logs[f'{prefix}{name}'])}" for name in shown]


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
