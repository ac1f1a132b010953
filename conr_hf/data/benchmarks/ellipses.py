"""`ellipses`: synthetic images for experiments, of any label imbalance and number of label dimensions."""

from dataclasses import dataclass

import numpy as np
from datasets import Dataset, DatasetDict, Features, Image, Value

from conr_hf.data.benchmarks.synthetic import check_settings, long_tailed

SIDE = 32  # pixels
TOP = 100.0  # labels run from 0 to here
PROPERTIES = ("size", "elongation", "hue", "brightness", "stripes", "blur", "ground", "dots")
_EVALUATED = {"validation": 1000, "test": 2000}


@dataclass(frozen=True)
class EllipsesConfig:
    """What is drawn. A setting that is out of range is a `ValueError`."""

    # How many times more likely the commonest training label is than the rarest; between them the density falls
    # exponentially. 1 is balanced.
    imbalance: float = 100.0
    dimensions: int = 1  # how many of the eight properties are labels
    rows: int = 4000  # training images
    seed: int = 0

    def __post_init__(self) -> None:
        check_settings("ellipses", self.imbalance, self.rows, self.seed)
        if not 1 <= self.dimensions <= len(PROPERTIES):
            raise ValueError(f"ellipses: dimensions is {self.dimensions}; it must be 1 to {len(PROPERTIES)}.")


def draw_ellipses(config: EllipsesConfig) -> DatasetDict:
    """
    Draws the splits: `"train"` with the imbalance, `"validation"` (1000 images) and `"test"` (2000) balanced.

    Each image (RGB, 32 x 32 pixels) shows one ellipse anywhere, at any angle, between fainter shapes and noise. Its
    eight properties are independent of one another, each from 0 to 100; those that are no label are spread evenly. The
    columns are `image`, and the labels by the name of their property.
    """
    splits = {}
    for number, (split, rows) in enumerate({"train": config.rows, **_EVALUATED}.items()):
        random = np.random.default_rng((config.seed, number))
        values = random.random((rows, len(PROPERTIES)))
        if split == "train":
            values[:, : config.dimensions] = long_tailed(values[:, : config.dimensions], config.imbalance)
        columns = {name: TOP * values[:, t] for t, name in enumerate(PROPERTIES[: config.dimensions])}
        features = Features({"image": Image(), **{name: Value("float64") for name in columns}})
        pixels = [image for part in np.array_split(values, -(-rows // 500)) for image in _images(part, random)]
        splits[split] = Dataset.from_dict({"image": pixels, **columns}, features=features)
    return DatasetDict(splits)


def _images(values: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Pixels of shape `(N, 32, 32, 3)`, uint8, for properties from 0 to 1, `(N, 8)`."""
    size, elongation, hue, brightness, stripes, blur, ground, dots = values.T[:, :, None, None]
    count = len(values)
    height, width = np.mgrid[:SIDE, :SIDE] + 0.5

    def scattered(low: float, high: float) -> np.ndarray:
        return random.uniform(low, high, (count, 1, 1))

    # Background: a gradient, and noise.
    slope, angle = scattered(0, 0.15), scattered(0, 2 * np.pi)
    shade = 0.15 + 0.35 * ground + slope * (np.cos(angle) * width + np.sin(angle) * height) / SIDE
    image = np.repeat(shade[..., None], 3, axis=-1)
    # Fainter shapes of any colour.
    for _ in range(3):
        away = (width - scattered(0, SIDE)) ** 2 + (height - scattered(0, SIDE)) ** 2
        inside = 1 / (1 + np.exp(away**0.5 - scattered(1, 6)))
        image += inside[..., None] * random.uniform(-0.15, 0.15, (count, 1, 1, 3))
    # Dots: up to eight, in white.
    for dot in range(8):
        away = (width - scattered(2, SIDE - 2)) ** 2 + (height - scattered(2, SIDE - 2)) ** 2
        image += (np.exp(-away) * np.clip(8 * dots - dot, 0, 1) * 0.5)[..., None]
    # The ellipse.
    angle, area = scattered(0, np.pi), 12 + 140 * size
    axis = np.sqrt(area / np.pi)
    stretch = 1 + 0.8 * elongation
    x, y = width - scattered(10, SIDE - 10), height - scattered(10, SIDE - 10)
    along = (np.cos(angle) * x + np.sin(angle) * y) / stretch
    across = (np.cos(angle) * y - np.sin(angle) * x) * stretch
    inside = 1 / (1 + np.exp((np.sqrt(along**2 + across**2) - axis) / (0.15 + blur)))
    turn = 2 * np.pi * (np.arange(3) / 3 - 0.7 * hue[..., None])
    colour = (0.35 + 0.55 * brightness[..., None]) * (0.7 + 0.3 * np.cos(turn))
    colour = colour * (1 - 0.35 * (np.sin((0.6 + 1.6 * stripes) * x) > 0))[..., None]
    image = image + inside[..., None] * (colour - image) * 0.9
    image += random.normal(0, 0.06, image.shape)
    pixels: np.ndarray = np.clip(255 * image, 0, 255).astype(np.uint8)
    return pixels
