"""ConR for Hugging Face Transformers: imbalanced regression from images.

The public names are loaded on first use, so that `conr_hf.losses` needs torch alone and `import conr_hf` is instant.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    "ConRConfig": "training.config.config",
    "ConRLoss": "losses",
    "ConRTrainer": "training.trainer",
    "adopt_head": "models.adopt_head",
    "conr_loss": "losses",
    "dir_split": "data.splits",
    "load_benchmark": "data.benchmarks.loading",
    "load_regressor": "models.factory",
    "shot_metrics": "metrics",
    "write_results": "inference.run_results",
}

__all__ = [
    "ConRConfig",
    "ConRLoss",
    "ConRTrainer",
    "adopt_head",
    "conr_loss",
    "dir_split",
    "load_benchmark",
    "load_regressor",
    "shot_metrics",
    "write_results",
]

if TYPE_CHECKING:
    from conr_hf.data.benchmarks.loading import load_benchmark
    from conr_hf.data.splits import dir_split
    from conr_hf.inference.run_results import write_results
    from conr_hf.losses import ConRLoss, conr_loss
    from conr_hf.metrics import shot_metrics
    from conr_hf.models.adopt_head import adopt_head
    from conr_hf.models.factory import load_regressor
    from conr_hf.training.config.config import ConRConfig
    from conr_hf.training.trainer import ConRTrainer


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'conr_hf' has no attribute {name!r}")
    return getattr(import_module(f"conr_hf.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
