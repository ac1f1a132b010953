"""`eyes`: drawn eyes that look in a known direction, for experiments with gaze."""

from dataclasses import dataclass

import numpy as np
from datasets import Dataset, DatasetDict, Features, Image, Value

from conr_hf.data.benchmarks.synthetic import check_settings, long_tailed

LARGEST_PITCH, LARGEST_YAW = 0.5, 0.7  # radians
USUAL_PITCH = -0.1  # slightly down
_EVALUATED = {"validation": 1000, "test": 2000}
_FINER = 2  # a pixel's colour is the mean of as many points, in each direction

# Half the width of an image is 1, about 20 mm.
_BALL = 0.62  # radius of the eyeball
_IRIS, _LIMBUS = 0.5, 0.44  # sine of the angle between the gaze and the iris's edge, and its dark ring's inner one
_CORNER = 0.8  # from the middle of the eye to its corners

_SKINS = np.array([[0.96, 0.82, 0.73], [0.87, 0.67, 0.53], [0.66, 0.45, 0.32], [0.36, 0.23, 0.17]], np.float32)
_IRISES = np.array([[0.33, 0.19, 0.09], [0.47, 0.36, 0.18], [0.33, 0.44, 0.28], [0.36, 0.52, 0.68]], np.float32)


@dataclass(frozen=True)
class EyesConfig:
    """What is drawn. A setting that is out of range is a `ValueError`."""

    # How many times more likely the commonest yaw, and the commonest pitch, of a training image is than the rarest;
    # the density falls exponentially to both sides. 1 is balanced.
    imbalance: float = 100.0
    rows: int = 4000  # training images
    seed: int = 0
    size: int = 32  # width and height of an image, in pixels

    def __post_init__(self) -> None:
        check_settings("eyes", self.imbalance, self.rows, self.seed)
        if not 16 <= self.size <= 256:
            raise ValueError(f"eyes: size is {self.size}; it must be 16 to 256 pixels.")


def draw_eyes(config: EyesConfig) -> DatasetDict:
    """
    Draws the splits: `"train"` with the imbalance, most eyes looking straight ahead and slightly down, and
    `"validation"` (1000 images) and `"test"` (2000) balanced over all directions.

    The columns are `image` (RGB), `pitch` (radians, -0.5 to 0.5; up is positive) and `yaw` (radians, -0.7 to 0.7; to
    the left of the image is positive), as in MPIIGaze; see [`~conr_hf.metrics.angular_error`]. They are independent of
    one another and of all else: skin, iris, lids, light, shift and noise. An eye and its mirror image are equally
    likely.
    """
    splits = {}
    features = Features({"image": Image(), "pitch": Value("float64"), "yaw": Value("float64")})
    for number, (split, rows) in enumerate({"train": config.rows, **_EVALUATED}.items()):
        random = np.random.default_rng((config.seed, number))
        pitch, yaw = _directions(random, rows, config.imbalance if split == "train" else 1.0)
        pixels = []
        for some in np.array_split(np.arange(rows), -(-rows * config.size**2 // 2**15)):
            light = _light(pitch[some], yaw[some], _looks(random, len(some)), config.size)
            noise = random.uniform(0.01, 0.05, (len(some), 1, 1, 1)).astype(np.float32)
            noise = noise * random.standard_normal(light.shape, np.float32)
            pixels += list((255 * np.clip(light + noise, 0, 1)).round().astype(np.uint8))
        splits[split] = Dataset.from_dict({"image": pixels, "pitch": pitch, "yaw": yaw}, features=features)
    return DatasetDict(splits)


def _directions(random: np.random.Generator, rows: int, imbalance: float) -> tuple[np.ndarray, np.ndarray]:
    """Pitch and yaw, `(N,)` each, whose density falls from straight ahead, and slightly down, to both sides."""
    up, left = random.uniform(-LARGEST_PITCH, LARGEST_PITCH, rows), random.uniform(-LARGEST_YAW, LARGEST_YAW, rows)
    span = np.where(up > USUAL_PITCH, LARGEST_PITCH, -LARGEST_PITCH) - USUAL_PITCH
    pitch = USUAL_PITCH + span * long_tailed((up - USUAL_PITCH) / span, imbalance)
    yaw = np.sign(left) * LARGEST_YAW * long_tailed(np.abs(left) / LARGEST_YAW, imbalance)
    return pitch, yaw


def _looks(random: np.random.Generator, count: int) -> dict[str, np.ndarray]:
    """What an eye looks like but for its gaze: float32, `(N, 1, 1)`, or `(N, 1, 1, 3)` for colours."""

    def scattered(low: float, high: float, *shape: int) -> np.ndarray:
        return random.uniform(low, high, (count, 1, 1, *shape)).astype(np.float32)

    return {
        "x": scattered(-0.06, 0.06),  # where the middle of the eye is
        "y": scattered(-0.06, 0.06),
        "inner": np.sign(scattered(-1, 1)),  # on which side the nose is
        "tilt": scattered(-0.02, 0.1),  # how much higher the outer corner is
        "upper": scattered(0.3, 0.46),  # how far the lids are from the middle
        "lower": scattered(0.22, 0.32),
        "lashes": scattered(0.2, 0.9),
        "crease": scattered(0.0, 0.6),
        "brow": scattered(0.0, 0.8),
        "brow_height": scattered(0.8, 1.05),
        "light_x": scattered(-0.3, 0.3),  # where the light comes from
        "light_y": scattered(-0.35, 0.0),
        "slope": scattered(0.0, 0.35),
        "brightness": scattered(0.55, 1.1),
        "pupil": scattered(0.32, 0.55),
        "glint": scattered(0.3, 1.0),
        "skin": _between(_SKINS, scattered(0, len(_SKINS) - 1)) + scattered(-0.04, 0.04, 3),
        "iris": _between(_IRISES, scattered(0, len(_IRISES) - 1)) + scattered(-0.04, 0.04, 3),
        "white": scattered(0.75, 0.98),
    }


def _light(pitch: np.ndarray, yaw: np.ndarray, looks: dict[str, np.ndarray], size: int) -> np.ndarray:
    """Images without noise of shape `(N, size, size, 3)`, about 0 to 1, of eyes that look to pitch and yaw, `(N,)`."""
    pitch, yaw = (angle.astype(np.float32)[:, None, None] for angle in (pitch, yaw))
    points = ((np.arange(size * _FINER, dtype=np.float32) + 0.5) / (size * _FINER) - 0.5) * 2
    edge = 0.7 / size  # width of a border
    x, y = points[None, None] - looks["x"], points[None, :, None] - looks["y"]

    # The lids: two arcs from corner to corner. The upper one goes with the gaze.
    slant = looks["tilt"] * looks["inner"] * x / _CORNER
    across = np.clip(1 - (x / _CORNER) ** 2, 0, None)
    upper = slant - (looks["upper"] + 0.38 * np.sin(pitch)) * across**0.8
    lower = slant + (looks["lower"] - 0.2 * np.sin(pitch)) * across
    is_open = _step(y - upper, edge) * _step(lower - y, edge) * _step(_CORNER - np.abs(x), edge)

    # The ball: iris and pupil are where the angle between a point and the gaze is small.
    u, v = x / _BALL, y / _BALL
    out = np.maximum(np.sqrt(u * u + v * v), 1)
    u, v = u / out, v / out
    depth = np.sqrt(np.clip(1 - u * u - v * v, 0, None))
    ahead = -u * np.cos(pitch) * np.sin(yaw) - v * np.sin(pitch) + depth * np.cos(pitch) * np.cos(yaw)
    aside = np.where(ahead > 0, np.sqrt(np.clip(1 - ahead * ahead, 0, None)), 1)  # sine of the angle to the gaze

    shade = 1 - 0.25 * (u * u + v * v) - 0.35 * np.exp(-np.clip(y - upper, 0, None) / 0.08)
    pink = np.clip(x * looks["inner"] / _CORNER, 0, 1) ** 4
    image = (looks["white"] * shade)[..., None] * (1 - pink[..., None] * np.array([0.1, 0.4, 0.4], np.float32))
    ring = _step(_IRIS - aside, edge)[..., None]
    radial = (0.75 + 0.5 * aside / _IRIS) * (1 - 0.6 * _step(aside - _LIMBUS, 3 * edge)) * (0.6 + 0.4 * shade)
    image += ring * (looks["iris"] * radial[..., None] - image)
    image += _step(looks["pupil"] * _IRIS - aside, edge)[..., None] * (0.03 - image)
    # The glint is on the cornea, which is before the ball and of half its radius.
    glint_x = -0.5 * _BALL * np.cos(pitch) * np.sin(yaw) + 0.5 * looks["light_x"]
    glint_y = -0.5 * _BALL * np.sin(pitch) + 0.5 * looks["light_y"]
    glint = _step(0.055 - np.sqrt((x - glint_x) ** 2 + (y - glint_y) ** 2), edge) * looks["glint"]
    image += glint[..., None] * (1 - image)

    # The skin: darker towards the eye, in the fold above it, and where lashes and brow are.
    near = np.exp(-(((x / 1.0) ** 2 + (y / 0.7) ** 2) ** 2))
    fold = np.exp(-(((y - upper + 0.14) / 0.05) ** 2)) * across * looks["crease"]
    arc = y + looks["brow_height"] - 0.25 * (x / 1.2) ** 2
    brow = _step(0.1 - np.abs(arc), 0.04) * looks["brow"]
    skin = looks["skin"] * ((1 - 0.18 * near) * (1 - 0.35 * fold) * (1 - 0.75 * brow))[..., None]
    image = skin + is_open[..., None] * (image - skin)
    lash = np.exp(-(((y - upper + 0.01) / 0.045) ** 2)) * np.minimum(3 * across, 1)
    rim = 0.4 * np.exp(-(((y - lower) / 0.03) ** 2)) * np.minimum(3 * across, 1)
    image *= (1 - looks["lashes"] * np.maximum(lash, rim))[..., None]

    falls = 1 + looks["slope"] * (np.sign(looks["light_x"]) * x - y) / 1.5
    image *= (looks["brightness"] * falls)[..., None]
    return image.reshape(len(image), size, _FINER, size, _FINER, 3).mean(axis=(2, 4))


def _step(distance: np.ndarray, width: float) -> np.ndarray:
    """From 0 below to 1 above a distance of 0, over some widths."""
    return 0.5 + 0.5 * np.tanh(distance / width)


def _between(colours: np.ndarray, place: np.ndarray) -> np.ndarray:
    """Colours `(N, 1, 1, 3)` at places between the first, 0, and the last of a row of them."""
    first = np.minimum(place.astype(int), len(colours) - 2)
    return colours[first] + (place - first)[..., None] * (colours[first + 1] - colours[first])
