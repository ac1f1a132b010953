"""Whether an image processor gives the images of a data set one size, as those of a batch must have."""

from collections.abc import Callable, Mapping

from PIL import Image
from transformers import BaseImageProcessor

from conr_hf.data.images import Size, describe_error, format_size

_EXTREMES: tuple[Callable[[Size], float], ...] = (
    lambda size: size[0],
    lambda size: size[1],
    lambda size: size[0] / size[1],
)


def check_input_sizes(processor: BaseImageProcessor | None, sizes: Mapping[int, Size], name: str) -> None:
    """
    Whatever a processor keeps of an image's size or aspect, it keeps of the lowest and highest, the narrowest and
    widest, and the flattest and steepest: it is asked about blank images of these few sizes.

    Args:
        processor (`BaseImageProcessor`, *optional*): The model's; without one nothing is checked.
        sizes (`Mapping[int, tuple[int, int]]`): Height and width of each row's image.
        name (`str`): What messages call the data set.

    Raises:
        `ValueError`: if it gives two images tensors of different sizes, or cannot take one; it names the rows.
    """
    if processor is None or len(set(sizes.values())) < 2:
        return
    first = min(sizes)
    rows = {choose(sizes, key=lambda row: of(sizes[row])) for of in _EXTREMES for choose in (min, max)}
    expected = _input_size(processor, sizes[first], f"{name}, row {first:,}")
    for row in sorted(rows - {first}):
        found = _input_size(processor, sizes[row], f"{name}, row {row:,}")
        if found != expected:
            raise ValueError(
                f"{name}, rows {first:,} and {row:,}: their images have {format_size(sizes[first])} and "
                f"{format_size(sizes[row])} pixels, of which the image processor makes {format_size(expected)} and "
                f"{format_size(found)}, but those of a batch must be of one size. Load the model and its processor with "
                "load_regressor(..., image_size=...), or scale the images to one size."
            )


def _input_size(processor: BaseImageProcessor, size: Size, place: str) -> Size:
    try:
        pixels = processor(images=[Image.new("RGB", (size[1], size[0]))], return_tensors="pt")["pixel_values"]
    except (RuntimeError, ValueError) as error:
        raise ValueError(
            f"{place}: the image processor cannot take an image of {format_size(size)} pixels ({describe_error(error)}). Load "
            "the model and its processor with load_regressor(..., image_size=...), or leave such rows out."
        ) from error
    return pixels.shape[-2], pixels.shape[-1]
