"""Opening image files without being drowned by them."""

import io
import os

from PIL import Image


def open_image(source: io.BytesIO | str | os.PathLike[str]) -> Image.Image:
    """
    An image file, opened and not yet decoded.

    Args:
        source (`io.BytesIO`, `str` or `os.PathLike`): The content of an image file, or its path.

    Raises:
        `OSError` or `ValueError`: if there is no such file, it is empty or no image, or has more pixels than
            `PIL.Image.MAX_IMAGE_PIXELS`.
    """
    empty = not source.getbuffer() if isinstance(source, io.BytesIO) else os.path.getsize(source) == 0
    if empty:
        raise ValueError("the file is empty")
    try:
        image = Image.open(source)
    except Image.DecompressionBombError as error:
        raise ValueError(str(error)) from error
    limit, pixels = Image.MAX_IMAGE_PIXELS, image.width * image.height
    if limit is not None and pixels > limit:
        image.close()
        raise ValueError(
            f"{image.width:,} x {image.height:,} pixels may be a decompression bomb; "
            f"PIL.Image.MAX_IMAGE_PIXELS allows {limit:,} pixels"
        )
    return image
