"""Vision models with a regression head."""

from conr_hf.models.adopt_head import adopt_head
from conr_hf.models.factory import load_regressor

__all__ = ["adopt_head", "load_regressor"]
