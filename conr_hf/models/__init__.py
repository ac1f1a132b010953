"""Vision models with a regression head."""

from typing import TYPE_CHECKING, Any

from conr_hf.models.adopt_head import adopt_head

if TYPE_CHECKING:
    from conr_hf.models.factory import load_regressor

__all__ = ["adopt_head", "load_regressor"]


def __getattr__(name: str) -> Any:
    if name != "load_regressor":
        raise AttributeError(f"module 'conr_hf.models' has no attribute {name!r}")
    from conr_hf.models import factory  # loads timm

    return factory.load_regressor
