"""Image files, opened safely, and decoded."""

import io
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError


def open_image(source: io.BytesIO | str | os.PathLike[str]) -> Image.Image:
    """An image file, or its content, opened and not yet decoded; refused if empty, no image, or too many pixels."""
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


Size = tuple[int, int]  # height and width


def to_image(value: Any, mode: str = "RGB") -> Image.Image:
    """
    The image in a cell of an image column, decoded and upright.

    Grey values of 16 bits are scaled to 8, 65535 to 255. A stock pipeline given such a file clips it to white instead,
    so give it what this returns. Transparency is dropped, as pipelines do.

    Args:
        value: A PIL image, a path or URL, an array of shape `(H, W, C)`, or the dictionary of an undecoded
            `datasets.Image`.
        mode (`str`, *optional*, defaults to `"RGB"`): PIL's mode of the result.

    Raises:
        `OSError` or `ValueError`: if it cannot be read as an image, has more pixels than `PIL.Image.MAX_IMAGE_PIXELS`
            (nothing is decoded then), or 32 bits a pixel, where it is unknown which number is white.
    """
    if isinstance(value, Mapping):
        value = io.BytesIO(value["bytes"]) if value.get("bytes") is not None else value["path"]
    if value is None:
        raise ValueError("the image is missing")
    if isinstance(value, np.ndarray):
        value = Image.fromarray(value)
    is_path = isinstance(value, str | os.PathLike) and not os.fspath(value).startswith(("http://", "https://"))
    if is_path or isinstance(value, io.BytesIO):
        value = open_image(value)
    from transformers.image_utils import load_image  # loads torch, which `conr_hf.data` does without

    if isinstance(value, Image.Image):
        value = _for_pipelines(value)
    image: Image.Image = load_image(value)
    return image if image.mode == mode else image.convert(mode)


def image_files(paths: Iterable[Path]) -> list[Path]:
    """The paths that end as image files do, sorted."""
    known = Image.registered_extensions()
    return sorted(path for path in paths if path.suffix.lower() in known)


def format_size(size: Sequence[int]) -> str:
    """Height and width as messages name them: width x height."""
    return f"{size[1]:,} x {size[0]:,}"


def describe_error(error: Exception) -> str:
    """Why an image cannot be read, in a few words and without addresses of objects in memory."""
    if isinstance(error, UnidentifiedImageError):
        return "it is not an image"
    if isinstance(error, OSError) and error.strerror:
        name = str(error.filename or "")
        name = name if len(name) <= 300 else f"{name[:200]}...{name[-80:]}"
        return f"{error.strerror}: {name}" if name else error.strerror
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def _for_pipelines(image: Image.Image) -> Image.Image:
    """What they would clip, or warn of, in a mode that they read right."""
    if image.mode in ("I", "F"):
        raise ValueError("it has 32 bits a pixel, and nothing says which number is white: save it with 8 or 16 bits")
    if image.mode == "P" and isinstance(image.info.get("transparency"), bytes):
        return image.convert("RGBA")
    if not image.mode.startswith("I;16"):
        return image
    values = np.asarray(ImageOps.exif_transpose(image)).astype(np.uint32)
    return Image.fromarray(((values + 128) // 257).astype(np.uint8))
