"""What "rare" means: bins over the label range, the weights that follow from how full they are, and smoothing."""

from conr_hf.imbalance.bins import Bins, label_columns, make_bins
from conr_hf.imbalance.density import LabelDensity, density_weights, make_density
from conr_hf.imbalance.fds import FeatureSmoothing
from conr_hf.imbalance.kernels import KernelName, smoothing_kernel
from conr_hf.imbalance.mixture import fit_mixture

__all__ = [
    "Bins",
    "FeatureSmoothing",
    "KernelName",
    "LabelDensity",
    "density_weights",
    "fit_mixture",
    "label_columns",
    "make_bins",
    "make_density",
    "smoothing_kernel",
]
