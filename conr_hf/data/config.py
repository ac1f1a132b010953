"""The settings of a run that are about its data: `DataConfig`."""

import math
from dataclasses import dataclass, field

from conr_hf.data.augmentation import Augmentation, AugmentationName
from conr_hf.metrics.gaze import GAZE
from conr_hf.utils.fields import check_not_negative, check_positive, with_help


@with_help
@dataclass
class DataConfig:
    """
    Settings of the data: what is read, how it is augmented, and its units. A part of [`ConRConfig`].

    Everything is in label units; R is the range of the training labels, s their label scale.

    Args:
        label_columns (`list[str]`, *optional*, defaults to `["label"]`):
            Columns of the label, one for each of its dimensions. One column may hold maps instead: a label for every
            pixel of the image, for a model that predicts maps.
        map_scale (`float`, *optional*, defaults to 1.0):
            Label units per stored number of a map: 0.001 for depth in metres, stored as millimetres in a 16-bit PNG.
        map_invalid (`float`, *optional*):
            The stored number, often 0, of a pixel without a label. Pixels that are no finite number have none either.
        image_column (`str`, *optional*, defaults to `"image"`):
            Column of the image.
        image_range (`list[float]`, *optional*):
            The stored numbers of black and of white in images of 16 bits, or of floats: `0 4095` for 12 bits in files
            of 16. What lies outside is black or white; images of 8 bits stay as they are. Saved with the model, whose
            own it is if unset. Unset: 0 and 65535 of grey.
        num_views (`int`, *optional*, defaults to 1):
            Augmented views of each training image. ConR alone is for 2, as in the paper: a rare image may have no
            other of a similar label in its batch.
        horizontal_flip (`bool`, *optional*, defaults to `False`):
            Flip half of the views from left to right; only where that leaves the label as it is (faces, heights; no
            gauges, clocks or text), or where the label is a map or a column in `flipped_columns`, which change with
            the image.
        flipped_columns (`list[str]`, *optional*):
            Label columns whose sign changes with a flip. Unset: `yaw`, if `label_columns` are pitch and yaw.
        augmentation (`str`, *optional*, defaults to `"light"`):
            How much the views of a training image differ from it: `"none"`, not at all; `"light"`, by a shift;
            `"medium"`, by a crop of 75 to 100 % of its area that is resized to the whole, by brightness, contrast and
            saturation (20 % up or down) and by a lack of colour in a tenth of the views; `"strong"`, by crops of 50 to
            100 %, colours of 40 %, and no colour in a fifth. Flips come with light and stronger ones, if allowed.
        augment_color (`bool`, *optional*, defaults to `True`):
            Whether medium and strong augmentation changes colours; false where the colour tells the label.
        crop_area (`float`, *optional*):
            The smallest share of an image's area that a crop shows; 1: shifts in place of crops, where the size of
            things in the image tells the label. Unset: by `augmentation`.
        crop_padding (`float`, *optional*, defaults to 1/14):
            Largest shift of a view, as a share of its side; 0 where a shift changes the label, as in counting: then
            there are no crops either.
        vertical_flip (`bool`, *optional*, defaults to `False`):
            Turn half of the views upside down, as `horizontal_flip`: images from above and of microscopes have no up.
        label_scale (`float`, *optional*):
            The label scale s, in label units. Unset: the standard deviation of the training labels (over several
            dimensions the root of their mean variance), 1 if that is 0. 1 reproduces settings given for raw labels.
        scale_each (`bool`, *optional*, defaults to `False`):
            Divide each label dimension by its own standard deviation, for dimensions in different units, such as age
            and weight: in the base loss, in the head's learning rate, and in the distances `"mean_abs"` and
            `"euclidean"` of ConR and of the other losses, whose lengths (`conr_window`, R, `huber_delta`, ...) then
            refer to labels times s over their dimension's standard deviation. Errors stay in label units: choose the
            best model by a metric of your own if their mean says little.
        bin_width (`float`, *optional*):
            Width of the bins of density and shots. Unset: the benchmark's, else what `conr-hf inspect` recommends for
            the training labels: a round number from R / 100 up to R / 10 with which half of them are not few-shot.
        shot_thresholds (`list[float]`, *optional*):
            Two numbers: few-shot labels have fewer training labels in their bin than the first, many-shot ones more
            than the second. Of maps they count maps: both are multiplied by a map's pixels. Unset: the benchmark's,
            else 20 100.
        label_min (`list[float]`, *optional*):
            The smallest label that there can be, such as 0 for a weight: one number, or one for each label column.
            Predictions are cut off at it where they are measured, drawn or shown, and so are their intervals; the
            saved model itself predicts as it does.
        label_max (`list[float]`, *optional*):
            The largest label that there can be, as `label_min`.
        skip_bad_rows (`bool`, *optional*, defaults to `False`):
            Leave out rows whose image or label cannot be read, and name them, instead of stopping.
    """

    label_columns: list[str] = field(default_factory=lambda: ["label"])
    map_scale: float = 1.0
    map_invalid: float | None = None
    image_column: str = "image"
    image_range: list[float] | None = None
    num_views: int = 1
    horizontal_flip: bool = False
    flipped_columns: list[str] | None = None
    augmentation: AugmentationName = "light"
    augment_color: bool = True
    crop_area: float | None = None
    vertical_flip: bool = False
    crop_padding: float = 1 / 14
    label_scale: float | None = None
    scale_each: bool = False
    bin_width: float | None = None
    shot_thresholds: list[float] | None = None
    label_min: list[float] | None = None
    label_max: list[float] | None = None
    skip_bad_rows: bool = False

    def check_data(self, loss_space: str) -> None:
        """Refuses a value that a setting cannot have."""
        check_not_negative(self, "crop_padding")
        check_positive(self, "label_scale", "bin_width", "map_scale")
        if self.image_range is not None and not (
            len(self.image_range) == 2 and self.image_range[0] < self.image_range[1]
        ):
            raise ValueError(
                f"image_range is {self.image_range}; give two numbers, of black and then of white, as in 0 4095."
            )
        if self.crop_area is not None and not 0 < self.crop_area <= 1:
            raise ValueError(f"crop_area is {self.crop_area}; it must be above 0 and at most 1, a share of the area.")
        if self.vertical_flip and (columns := self.sign_flipped_columns()):
            raise ValueError(
                f"vertical_flip is true, but upside down the direction in {', '.join(columns)} is another, and so is "
                "its label. Set it to false."
            )
        if self.num_views < 1:
            raise ValueError(f"num_views is {self.num_views}; it must be 1 or more.")
        if self.crop_padding > 0.5:
            raise ValueError(f"crop_padding is {self.crop_padding}; it must be 0.5 or less, a share of the side.")
        if not self.label_columns or len(set(self.label_columns)) != len(self.label_columns):
            raise ValueError(f"label_columns is {self.label_columns}; name one column, or several different ones.")
        if unknown := sorted(set(self.flipped_columns or []) - set(self.label_columns)):
            raise ValueError(
                f'flipped_columns names "{unknown[0]}", which is none of the label_columns '
                f"({', '.join(self.label_columns)})."
            )
        if self.shot_thresholds is not None and (
            len(self.shot_thresholds) != 2 or not 0 <= self.shot_thresholds[0] <= self.shot_thresholds[1] < math.inf
        ):
            raise ValueError(
                f"shot_thresholds is {self.shot_thresholds}; give two numbers of training labels in a bin, as in "
                "20 100: few are below the first, many above the second."
            )
        lows, highs = self.label_bounds()
        for low, high in zip(lows, highs, strict=True):
            if not low < high:
                raise ValueError(
                    f"label_min is {self.label_min} and label_max {self.label_max}; the first must be the smaller one."
                )
        if self.scale_each and loss_space != "label":
            raise ValueError(
                f"loss_space is {loss_space} and scale_each is true, which divides by each dimension's standard "
                "deviation. Leave one of them out."
            )

    def augmentation_settings(self) -> Augmentation:
        """What may become of a training image in its views."""
        return Augmentation.named(
            self.augmentation,
            crop_padding=self.crop_padding,
            horizontal_flip=self.horizontal_flip,
            vertical_flip=self.vertical_flip,
            crop_area=self.crop_area,
            with_color=self.augment_color,
        )

    def label_bounds(self) -> tuple[list[float], list[float]]:
        """The smallest and largest label that there can be, for each label column; infinite where it is unset."""
        bounds = []
        for name, unset in (("label_min", -math.inf), ("label_max", math.inf)):
            given = getattr(self, name)
            count = len(self.label_columns)
            if given is not None and (len(given) not in (1, count) or not all(map(math.isfinite, given))):
                raise ValueError(f"{name} is {given}; give one number, or one for each of the {count} label_columns.")
            given = [unset] if given is None else given
            bounds.append(given * count if len(given) == 1 else given)
        return bounds[0], bounds[1]

    def sign_flipped_columns(self) -> list[str]:
        """`flipped_columns`, or what they are if unset."""
        if self.flipped_columns is not None:
            return self.flipped_columns
        return ["yaw"] if self.label_columns == GAZE else []
