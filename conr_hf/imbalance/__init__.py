"""What "rare" means: bins over the label range, and the weights that follow from how full they are."""

from conr_hf.imbalance.bins import Bins, label_columns, make_bins
from conr_hf.imbalance.density import LabelDensity, density_weights, make_density

__all__ = ["Bins", "LabelDensity", "density_weights", "label_columns", "make_bins", "make_density"]
