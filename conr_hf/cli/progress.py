"""What a run prints while it trains: its method, and a line for each log."""

from typing import Any

from transformers import PrinterCallback, ProgressCallback, TrainerState
from transformers.trainer_callback import TrainerCallback

from conr_hf.training.config.resolved_config import ResolvedConfig
from conr_hf.training.trainer import ConRTrainer


def describe_method(settings: ResolvedConfig) -> str:
    """The method of a run, in one line."""
    parts = [f"base loss {settings.base_loss}"]
    weights = {"ConR": settings.weight, "Rank-N-Contrast": settings.rnc_weight}
    parts += [f"{name} (weight {weight:g})" for name, weight in weights.items() if weight > 0]
    weighing = {"weighed": settings.reweight, "rows drawn": settings.resample}
    parts += [f"{how} by density ({density})" for how, density in weighing.items() if density != "none"]
    return f"Trains with {', '.join(parts)}"


def use_brief_logging(trainer: ConRTrainer) -> None:
    """Prints one line per log instead of all figures."""
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    if not trainer.args.disable_tqdm:
        trainer.add_callback(_QuietProgress)
    trainer.add_callback(_Lines)


class _QuietProgress(ProgressCallback):
    def on_log(self, *args: Any, **kwargs: Any) -> None:
        pass


class _Lines(TrainerCallback):
    def on_log(
        self, args: Any, state: TrainerState, control: Any, logs: dict[str, float] | None = None, **kwargs: Any
    ) -> None:
        if not state.is_world_process_zero or logs is None:
            return
        if "base_loss" in logs:
            parts = [f"base loss {logs['base_loss']:.3f}"]
            if "conr_loss" in logs:
                parts.append(f"ConR {logs['conr_loss']:.3f} on {100 * logs['conr_anchors']:.0f} % of rows")
            if "rnc_loss" in logs:
                parts.append(f"Rank-N-Contrast {logs['rnc_loss']:.3f}")
            parts.append(f"learning rate {logs['learning_rate']:.1e}")
        else:
            errors = {name: value for name, value in logs.items() if name.startswith("eval_") and "_mae" in name}
            shots = [name.removeprefix("eval_").removesuffix("mae").replace("_", " ") for name in errors]
            parts = [f"MAE {shot}{error:.4g}" for shot, error in zip(shots, errors.values(), strict=True)]
            parts += [f"angle {error:.4g} deg" for name, error in logs.items() if name == "eval_angular_error"]
        if parts:
            print(f"epoch {state.epoch or 0:5.2f}  step {state.global_step:5d}  {', '.join(parts)}")
