"""Image files, opened safely, and decoded."""

import io
import os
import sys
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageFile, ImageOps, TiffImagePlugin, UnidentifiedImageError

Size = tuple[int, int]  # height and width
Numbers = npt.NDArray[Any]

_CHANNELS = (1, 2, 3, 4)  # grey or colour, without or with transparency
_BITS, _PER_PIXEL, _SAMPLE_FORMAT = 258, 277, 339  # tags of TIFF
_KINDS = {1: "u", 2: "i", 3: "f"}  # of TIFF's sample formats
# Of colours of 16 bits Pillow keeps the upper bytes; reading the file as of the other byte order gives the lower ones.
_OTHER_ORDER = {
    f"{mode};16{order}": f"{mode};16{other}"
    for mode in ("RGB", "RGBA", "RGBX")
    for order, other in {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}.items()
}


class DecodedImage(NamedTuple):
    """An image as models see it, and the largest number in its file."""

    image: Image.Image  # in colour, upright, of 8 bits a channel
    largest: int | None  # of an image of 16 bits


def open_image(source: io.BytesIO | str | os.PathLike[str]) -> Image.Image:
    """An image file, or its content, opened and not yet decoded; refused if empty, no image, or too many pixels."""
    empty = not source.getbuffer() if isinstance(source, io.BytesIO) else os.path.getsize(source) == 0
    if empty:
        raise ValueError("the file is empty")
    try:
        image = Image.open(source)
    except Image.DecompressionBombError as error:
        raise ValueError(str(error)) from error
    except UnidentifiedImageError as error:
        with io.BytesIO(source.getvalue()) if isinstance(source, io.BytesIO) else open(source, "rb") as file:
            numbers = _unread_tiff(file)
        if numbers is None:
            raise
        raise ValueError(
            f"it is a TIFF of {numbers}, which Pillow does not read: save it with 8 or 16 bits, or as float32"
        ) from error
    limit, pixels = Image.MAX_IMAGE_PIXELS, image.width * image.height
    if limit is not None and pixels > limit:
        image.close()
        raise ValueError(
            f"{image.width:,} x {image.height:,} pixels may be a decompression bomb; "
            f"PIL.Image.MAX_IMAGE_PIXELS allows {limit:,} pixels"
        )
    return image


def to_image(value: Any, mode: str = "RGB", image_range: Sequence[float] | None = None) -> Image.Image:
    """
    The image in a cell of an image column, decoded and upright, of 8 bits a channel.

    Numbers of 16 bits are scaled to 8: grey ones from 65535 to 255, or from `image_range` to 0 and 255. A stock
    pipeline given such a file clips it to white instead, so give it what this returns. Transparency is dropped, as
    pipelines do.

    Args:
        value: A PIL image, a path or URL, an array of shape `(H, W)` or `(H, W, C)`, a tensor of shape `(C, H, W)`, or
            the dictionary of an undecoded `datasets.Image`. Floats of arrays and tensors lie between 0 and 1, unless
            `image_range` says otherwise.
        mode (`str`, *optional*, defaults to `"RGB"`): PIL's mode of the result.
        image_range (two numbers, *optional*): The stored numbers of black and of white, in images of more than 8 bits
            a channel, or of floats; what lies outside is black or white. Images of 8 bits stay as they are.

    Raises:
        `OSError` or `ValueError`: if it cannot be read as an image, has more pixels than `PIL.Image.MAX_IMAGE_PIXELS`
            (nothing is decoded then), or numbers of a kind for which only `image_range` can say what is white.
    """
    image = decode_image(value, image_range).image
    return image if image.mode == mode else image.convert(mode)


def decode_image(value: Any, image_range: Sequence[float] | None = None) -> DecodedImage:
    """What [`to_image`] reads, and the largest number in it where that has 16 bits and no `image_range` is given."""
    from transformers.utils.generic import is_torch_tensor  # loads torch, which `conr_hf.data` does without

    if isinstance(value, Mapping):
        value = io.BytesIO(value["bytes"]) if value.get("bytes") is not None else value["path"]
    if value is None:
        raise ValueError("the image is missing")
    is_path = isinstance(value, str | os.PathLike) and not os.fspath(value).startswith(("http://", "https://"))
    if is_path or isinstance(value, io.BytesIO):
        value = open_image(value)
    numbers: Numbers | None = None  # those that are not read as they are
    largest = None
    if is_torch_tensor(value):
        tensor = value.detach().cpu()
        numbers = _channels_last((tensor.float() if tensor.is_floating_point() else tensor).numpy(), is_tensor=True)
    elif isinstance(value, np.ndarray):
        numbers = _channels_last(value, is_tensor=False)
    elif isinstance(value, Image.Image):
        numbers = _wide_numbers(value, image_range)
        if numbers is not None and numbers.dtype == np.uint16 and image_range is None:
            largest = int(numbers.max())
            numbers = numbers if numbers.ndim == 2 else None  # of colours the upper bytes, as pipelines have them
    if numbers is not None:
        value = Image.fromarray(_eight_bits(numbers, image_range, is_file=isinstance(value, Image.Image)))
    elif isinstance(value, Image.Image) and value.mode == "P" and isinstance(value.info.get("transparency"), bytes):
        value = value.convert("RGBA")  # pipelines would warn of it
    if not isinstance(value, Image.Image):
        from transformers.image_utils import load_image

        return DecodedImage(load_image(value), largest)
    value.load()
    if value.getexif().get(ExifTags.Base.Orientation, 1) != 1:
        value = ImageOps.exif_transpose(value)
    return DecodedImage(value if value.mode == "RGB" else value.convert("RGB"), largest)


def stored_numbers(image: Image.Image) -> Numbers:
    """The numbers of an image as its file stores them, `(H, W)` or `(H, W, C)`, upright."""
    tiles = image.tile if isinstance(image, ImageFile.ImageFile) else []
    numbers = np.asarray(ImageOps.exif_transpose(image))
    numbers = numbers.astype(numbers.dtype.newbyteorder("="), copy=False)
    if tiles and tiles[0].codec_name.startswith("ppm"):  # which Pillow scales from the file's own white
        white = int(tiles[0].args[-1])  # type: ignore[index]
        return np.rint(numbers * (white / (65535 if image.mode == "I" else 255))).astype(np.uint16)
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return numbers
    # Pillow reads numbers with a sign, and those of 32 bits without one, as others of as many bits.
    kind = _KINDS.get(image.tag_v2.get(_SAMPLE_FORMAT, (1,))[0], "u")
    bits = image.tag_v2.get(_BITS, (1,))[0]
    if kind == "i" and bits == 16:
        return numbers.astype(np.int16)
    return numbers.view(f"{kind}{bits // 8}") if bits in (8, 32) and bits == 8 * numbers.itemsize else numbers


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


def _channels_last(array: Numbers, is_tensor: bool) -> Numbers:
    """An array of an image as `(H, W)` or `(H, W, C)`; a tensor's channels come first."""
    shape = array.shape
    if array.ndim == 3 and shape[0] in _CHANNELS and (is_tensor or shape[2] not in _CHANNELS):
        array = np.moveaxis(array, 0, -1)
    if array.size == 0 or array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in _CHANNELS):
        raise ValueError(f"it has the shape {shape}, where an image has (height, width), and perhaps 1 to 4 channels")
    return array[..., 0] if array.shape[2:] == (1,) else array


def _eight_bits(numbers: Numbers, image_range: Sequence[float] | None, is_file: bool) -> npt.NDArray[np.uint8]:
    """Numbers with black as 0 and white as 255."""
    kind = numbers.dtype.kind
    if kind not in "biuf":
        raise ValueError(f"it holds {numbers.dtype}, where an image holds numbers")
    if numbers.dtype == np.uint8:
        return numbers
    if kind == "f" and not np.isfinite(numbers).all():
        raise ValueError("it holds NaN or infinite numbers")
    if kind == "b" or (kind == "f" and not is_file and image_range is None):
        black, white = 0.0, 1.0
        if not 0 <= numbers.min() <= numbers.max() <= 1:
            raise ValueError(
                f"its floats run from {numbers.min():g} to {numbers.max():g}, where 0 is black and 1 is white: scale "
                "them, or name black and white with image_range"
            )
    elif image_range is not None:
        black, white = image_range
    elif numbers.dtype == np.uint16:
        black, white = 0.0, 65535.0
    else:
        raise ValueError(
            f"it holds {numbers.dtype} numbers, and nothing says which number is white: name black and white with "
            "image_range, or save it with 8 or 16 bits"
        )
    scaled = (numbers.astype(np.float64) - black) * (255 / (white - black))
    return np.rint(scaled.clip(0, 255)).astype(np.uint8)


def _wide_numbers(image: Image.Image, image_range: Sequence[float] | None) -> Numbers | None:
    """The numbers of an image of more than 8 bits a channel, or of 8 bits with a sign; `None` of others."""
    if image.mode == "I" and image.format == "PPM" and image_range is None:
        return np.asarray(image).astype(np.uint16)  # scaled from the file's own white
    is_signed = (
        isinstance(image, TiffImagePlugin.TiffImageFile)
        and image.mode in ("L", "RGB")
        and _KINDS.get(image.tag_v2.get(_SAMPLE_FORMAT, (1,))[0]) == "i"
    )
    if image.mode in ("I", "F") or image.mode.startswith("I;16") or is_signed:
        return stored_numbers(image)
    if isinstance(image, ImageFile.ImageFile) and image.tile:
        return _wide_colours(image, image_range)
    return None


def _wide_colours(image: ImageFile.ImageFile, image_range: Sequence[float] | None) -> Numbers | None:
    """
    Colours of 16 bits, `(H, W, 3)`; `None` of others. As they take two times the time, those that are not dark, and
    have no range, come without their lower bytes.
    """
    decoder, arguments = image.tile[0].codec_name, image.tile[0].args
    raw_mode, *others = arguments if isinstance(arguments, tuple) else (arguments,)
    is_ppm = decoder.startswith("ppm") and others != [] and others[-1] > 255
    if not is_ppm and ";16" not in str(raw_mode):
        return None
    if is_ppm or raw_mode not in _OTHER_ORDER or image.fp is None:
        if image_range is None:
            return None
        raise ValueError(
            f"it is a {image.format} of 16 bits, of which Pillow keeps 8 in mode {image.mode}: save it as PNG or "
            "TIFF, in colour or in grey without transparency"
        )
    place = image.fp.tell()
    image.fp.seek(0)
    again = Image.open(io.BytesIO(image.fp.read()))
    image.fp.seek(place)
    assert isinstance(again, ImageFile.ImageFile)
    again.tile = [tile._replace(args=(_OTHER_ORDER[raw_mode], *others)) for tile in again.tile]
    upper = np.asarray(ImageOps.exif_transpose(image))
    if image_range is None and upper[..., :3].max() >= 64:
        return upper[..., :3].astype(np.uint16) * 256
    lower = np.asarray(ImageOps.exif_transpose(again))
    return (upper.astype(np.uint16) * 256 + lower)[..., :3]


def _unread_tiff(file: IO[bytes]) -> str | None:
    """What numbers a TIFF holds that Pillow does not read; `None` of another file."""
    header = file.read(8)
    header += file.read(8) if header[2:3] == b"+" else b""  # of 64-bit offsets
    try:
        tags = TiffImagePlugin.ImageFileDirectory_v2(header)
        file.seek(tags.next)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tags.load(file)
        bits, kind, channels = tags[_BITS][0], _KINDS.get(tags.get(_SAMPLE_FORMAT, (1,))[0]), tags.get(_PER_PIXEL, 1)
    except Exception:  # whatever a damaged file makes of it
        return None
    return f"{bits}-bit {'floats' if kind == 'f' else 'integers'}{f', {channels} a pixel' if channels > 1 else ''}"
