"""The settings of a run that are about its data: `DataConfig`."""

from dataclasses import dataclass, field

from conr_hf.metrics.gaze import GAZE
from conr_hf.utils.fields import about, check_not_negative, check_positive


@dataclass
class DataConfig:
    """
    Settings of what is read, how it is shown, and the units it is in; a part of [`ConRConfig`].

    Everything is in label units; R is the range of the training labels, s their label scale.

    Args:
        label_columns (`list[str]`, *optional*, defaults to `["label"]`):
            Columns of the label, one for each of its dimensions. One column may hold maps instead: a label for every
            pixel of the image, for a model that predicts maps.
        map_scale (`float`, *optional*, defaults to 1.0):
            Label units in a stored number of a map: 0.001 where a PNG of 16 bits holds millimetres of depth in metres.
        map_invalid (`float`, *optional*):
            The stored number, often 0, of a pixel without a label. Pixels that are no finite number have none either.
        image_column (`str`, *optional*, defaults to `"image"`):
            Column of the image.
        num_views (`int`, *optional*, defaults to 2):
            Augmented views of each training image.
        horizontal_flip (`bool`, *optional*, defaults to `True`):
            Flip half of the views from left to right; turn it off where that changes the label, unless a map, or a
            column in `flipped_columns`, changes with the image.
        flipped_columns (`list[str]`, *optional*):
            Label columns whose sign a flip turns. Unset: `yaw`, where `label_columns` are pitch and yaw.
        crop_padding (`float`, *optional*, defaults to 1/14):
            Largest shift of a view as a share of its side; 0 where a shift changes the label, as in counting.
        label_scale (`float`, *optional*):
            The label scale s. Unset: the standard deviation of the training labels (over several dimensions the root
            of their mean variance), 1 if that is 0. 1 reproduces settings given for raw labels.
        scale_each (`bool`, *optional*, defaults to `False`):
            Take each label dimension by its own standard deviation, for dimensions in different units, such as age
            and weight: in the base loss, in how the head learns, and in the distances `"mean_abs"` and `"euclidean"`
            of ConR and what goes with it, whose lengths (`conr_window`, R, `huber_delta`, ...) are then those of
            labels multiplied by s over their dimension's standard deviation. Errors stay in label units: choose the
            best model by a metric of your own where their mean means little.
        bin_width (`float`, *optional*):
            Width of the bins that density and shots are counted in. Unset: the benchmark's, else R / 100, for integer
            labels rounded up.
        skip_bad_rows (`bool`, *optional*, defaults to `False`):
            Leave out rows whose image cannot be read, and name them, instead of stopping.
    """

    label_columns: list[str] = field(
        default_factory=lambda: ["label"], metadata=about("Columns of the label, one for each dimension.")
    )
    map_scale: float = field(default=1.0, metadata=about("Label units in a stored number of a map."))
    map_invalid: float | None = field(
        default=None, metadata=about("Stored number, often 0, of a map's pixel without a label. Unset: none.")
    )
    image_column: str = field(default="image", metadata=about("Column of the image."))
    num_views: int = field(default=2, metadata=about("Augmented views of each training image."))
    horizontal_flip: bool = field(
        default=True, metadata=about("Flip half of the views; false where that changes the label.")
    )
    flipped_columns: list[str] | None = field(
        default=None, metadata=about("Label columns whose sign a flip turns. Unset: yaw of pitch and yaw.")
    )
    crop_padding: float = field(
        default=1 / 14,
        metadata=about(
            "Largest shift of a view, as a share of its side; 0 where it changes the label, as in counting."
        ),
    )
    label_scale: float | None = field(
        default=None,
        metadata=about("Label scale, in label units. Unset: standard deviation of the training labels."),
    )
    scale_each: bool = field(
        default=False,
        metadata=about("Take each label dimension by its own standard deviation, for dimensions in different units."),
    )
    bin_width: float | None = field(
        default=None,
        metadata=about(
            "Width, in label units, of the bins of density and shots. Unset: the benchmark's, else R / 100."
        ),
    )
    skip_bad_rows: bool = field(
        default=False,
        metadata=about("Leave out rows whose image cannot be read, naming them, instead of stopping."),
    )

    def check_data(self, loss_space: str) -> None:
        """
        Raises:
            `ValueError`: for a value that cannot be meant.
        """
        check_not_negative(self, "crop_padding")
        check_positive(self, "label_scale", "bin_width", "map_scale")
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
        if self.scale_each and (self.label_scale is not None or loss_space != "label"):
            told = f"loss_space is {loss_space}" if self.label_scale is None else f"label_scale is {self.label_scale}"
            raise ValueError(
                f"{told} and scale_each is true, which takes each dimension's standard "
                "deviation. Leave one of them out."
            )

    def sign_flipped_columns(self) -> list[str]:
        """`flipped_columns`, and what they come to unset."""
        if self.flipped_columns is not None:
            return self.flipped_columns
        return ["yaw"] if self.label_columns == GAZE else []
