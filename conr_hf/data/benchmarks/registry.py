"""What benchmarks there are: what each measures, its terms, and where it comes from."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

AGES = {"path": "image", "age": "label"}  # columns of the published split files -> ours


@dataclass(frozen=True)
class Benchmark:
    """What a benchmark measures, and where it comes from."""

    name: str
    target: str  # what its label is
    unit: str  # of the label and of bin_width
    bin_width: float  # of the label bins behind density weights and shots
    credit: str  # to be shown with the images and results
    description: str
    license: str
    folder: str | None = None  # with its Parquet files, beside this module, if it comes with the package
    drawn: bool = False  # its images are drawn, as its source says
    obtain: str = ""  # otherwise: what to download from where, and where to put it, in full sentences
    split_file: str | None = None  # the file of labels and splits that may lie in a folder of its images
    label_columns: tuple[str, ...] = ("label",)  # as loaded
    columns: Mapping[str, str] = field(default_factory=dict)  # the source's name of a column -> its name as loaded
    maps: bool = False  # the label is a map, one number for each pixel
    # Of maps: labels of a bin are few below the first and many above the second number, times the labels that a
    # training map has in the mean. Unset: 20 and 100.
    shot_thresholds: tuple[float, float] | None = None
    people: str = ""  # what of people its images show


_EARTH: dict[str, Any] = {
    "target": "elevation",
    "unit": "m",
    "bin_width": 200.0,
    "credit": "NASA Earth Observatory, Blue Marble; elevation: GEBCO_08 via NASA Visible Earth",
    "license": "NASA images are free to use; credit NASA Earth Observatory and NASA Visible Earth.",
}
_FACES: dict[str, Any] = {"target": "age", "unit": "years", "bin_width": 1.0, "columns": AGES, "people": "faces"}
_GAZE: dict[str, Any] = {
    "target": "gaze",
    "unit": "rad",
    "bin_width": math.radians(1),
    "label_columns": ("pitch", "yaw"),
}
_DRAWN: dict[str, Any] = {
    "credit": "Drawn by conr_hf",
    "license": "Drawn by the package; none is needed.",
    "drawn": True,
}

_KNOWN = (
    Benchmark(
        name="earth-elevation",
        **_EARTH,
        description=(
            "Satellite tiles of 32 x 32 pixels with the mean height of the ground in their middle, in metres. Low "
            "ground is common and high ground rare in the training split, as on Earth."
        ),
        folder="earth_elevation",
    ),
    Benchmark(
        name="earth-elevation-map",
        **_EARTH,
        description=(
            "Satellite tiles of 64 x 64 pixels with the height of the ground at every second pixel, in metres, and "
            "none over water. Low ground is common and high ground rare, as on Earth."
        ),
        folder="earth_elevation_map",
        maps=True,
        shot_thresholds=(2.0, 10.0),  # as far apart as 20 and 100, which of 259 maps would leave no bin with many
    ),
    Benchmark(
        name="ellipses",
        target="size",
        unit="%",
        bin_width=1.0,
        **_DRAWN,
        description="Drawn images with labels from 0 to 100, as imbalanced and of as many dimensions as is asked for.",
        label_columns=("size",),
    ),
    Benchmark(
        name="eyes",
        **_GAZE,
        **_DRAWN,
        description=(
            "Drawn eyes with the direction of their gaze: pitch and yaw. Most look straight ahead in the training "
            "split, as imbalanced as is asked for."
        ),
    ),
    Benchmark(
        name="agedb-dir",
        **_FACES,
        credit="AgeDB: Moschoglou et al., CVPR Workshops 2017; splits: Yang et al., ICML 2021",
        description="Faces of well-known people with their age; balanced validation and test splits.",
        license="AgeDB is for non-commercial research; the split file is under the MIT licence.",
        obtain=(
            "Download AgeDB from https://ibug.doc.ic.ac.uk/resources/agedb/ (its authors give the password) and "
            "agedb.csv from https://github.com/YyzHarry/imbalanced-regression, agedb-dir/data, and put the csv beside "
            "the folder AgeDB."
        ),
        split_file="agedb.csv",
    ),
    Benchmark(
        name="imdb-wiki-dir",
        **_FACES,
        credit="IMDB-WIKI: Rothe, Timofte and Van Gool, IJCV 2018; splits: Yang et al., ICML 2021",
        description="Faces from IMDb and Wikipedia with their age; balanced validation and test splits.",
        license="IMDB-WIKI is for academic research only; the split file is under the MIT licence.",
        obtain=(
            "Download the faces (imdb_crop, wiki_crop) from https://data.vision.ee.ethz.ch/cvl/rrothe/imdb-wiki/ and "
            "imdb_wiki.csv from https://github.com/YyzHarry/imbalanced-regression, imdb-wiki-dir/data, and put the "
            "csv beside the folders imdb_crop and wiki_crop."
        ),
        split_file="imdb_wiki.csv",
    ),
    Benchmark(
        name="utkface",
        **_FACES,
        credit="UTKFace: Zhang, Song and Qi, CVPR 2017",
        description="Faces with their age, from 1 to 116 years.",
        license="UTKFace is for non-commercial research.",
        obtain=(
            "Download the aligned and cropped faces from https://susanqq.github.io/UTKFace/ into a folder, in folders "
            "train, validation and test or with a file utkface.csv (path,split)."
        ),
        split_file="utkface.csv",
    ),
    Benchmark(
        name="mpiigaze-dir",
        **_GAZE,
        credit="MPIIGaze: Zhang, Sugano, Fritz and Bulling, TPAMI 2019",
        description="Eyes of laptop users with the direction of their gaze: pitch and yaw.",
        license="CC BY-NC-SA 4.0, for non-commercial research.",
        obtain=(
            "Download MPIIGaze from https://www.mpi-inf.mpg.de/departments/computer-vision-and-machine-learning/"
            "research/gaze-based-human-computer-interaction/appearance-based-gaze-estimation-in-the-wild, save its "
            "normalised eyes as images, and put mpiigaze.csv (path,pitch,yaw,split; angles in radians) beside them."
        ),
        split_file="mpiigaze.csv",
        columns={"path": "image"},
        people="eyes",
    ),
    Benchmark(
        name="nyud2-dir",
        target="depth",
        unit="m",
        bin_width=0.1,
        credit="NYU Depth V2: Silberman, Hoiem, Kohli and Fergus, ECCV 2012",
        description="Photographs of rooms with the depth of every pixel; the test pixels are balanced over depth.",
        license="NYU Depth V2 is for research; the lists and the mask are under the MIT licence.",
        obtain=(
            "Download the data of nyud2-dir/download_nyud2.py in https://github.com/YyzHarry/imbalanced-regression, "
            "unpack them, and put test_balanced_mask.npy from nyud2-dir/data beside nyu2_train.csv and nyu2_test.csv."
        ),
        columns={"depth": "label", "depth_map": "label"},
        maps=True,
        # Published: 10 and 26 million pixels of maps of 304 x 228.
        shot_thresholds=(1.0e7 / (304 * 228), 2.6e7 / (304 * 228)),
    ),
)
BENCHMARKS: dict[str, Benchmark] = {benchmark.name: benchmark for benchmark in _KNOWN}
