"""Pictures of labels, errors and features, as PNG and SVG. Each raises an `ImportError` without matplotlib."""

from conr_hf.plots.contact_sheet import contact_sheet
from conr_hf.plots.curves import training_curves
from conr_hf.plots.density import density_with_error, density_with_pixel_error, errors_of_runs
from conr_hf.plots.distances import label_and_feature_distances
from conr_hf.plots.feature_map import feature_map
from conr_hf.plots.histogram import label_histogram
from conr_hf.plots.label_maps import map_pictures
from conr_hf.plots.scatter import predicted_against_true
from conr_hf.plots.style import COLOURS
from conr_hf.plots.world_map import world_map

__all__ = [
    "COLOURS",
    "contact_sheet",
    "density_with_error",
    "density_with_pixel_error",
    "errors_of_runs",
    "feature_map",
    "label_and_feature_distances",
    "label_histogram",
    "map_pictures",
    "predicted_against_true",
    "training_curves",
    "world_map",
]
