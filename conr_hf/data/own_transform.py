"""A torchvision transform of the user's own, in place of the named augmentation."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

# Of torchvision's transforms, those that may turn, mirror or bend an image, and so change the direction that it shows.
_MOVES = (
    *("RandomRotation", "RandomAffine", "RandomPerspective", "ElasticTransform"),
    *("RandAugment", "AutoAugment", "TrivialAugmentWide", "AugMix"),
)
_FLIPS = ("RandomHorizontalFlip", "RandomVerticalFlip")


def apply_transform(
    transform: Callable[..., Any], image: Tensor, label_map: Tensor | None, seed: int
) -> tuple[Tensor, Tensor | None]:
    """
    One view of an image `(C, H, W)`, from 0 (black) to 1 (white), and of its label map `(H, W)`, NaN where the view
    shows no labelled pixel. What the transform draws from torch's generator depends on the seed alone.
    """
    from torchvision import tv_tensors  # takes a second to import

    parts: list[Tensor] = [tv_tensors.Image(image)]
    if label_map is not None:  # pixels by their number, from 1 on, since 0 fills what lies outside
        parts.append(tv_tensors.Mask(torch.arange(1, label_map.numel() + 1).view_as(label_map)))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # and not those of other devices
        moved = transform(*parts)
    view, *places = moved if isinstance(moved, tuple | list) else [moved]
    if view.shape != image.shape or view.dtype != image.dtype:
        raise ValueError(
            f"transform makes {view.dtype} of shape {tuple(view.shape)} of an image of {image.dtype} of shape "
            f"{tuple(image.shape)}; it must keep both. Leave the last sizes and types to the image processor."
        )
    if label_map is None:
        return view.as_subclass(Tensor), None
    pixels = torch.cat([label_map.new_full((1,), torch.nan), label_map.flatten()])
    return view.as_subclass(Tensor), pixels[places[0].as_subclass(Tensor)]


def check_transform(transform: Callable[..., Any], flipped_columns: list[str]) -> None:
    """Refuses a transform that would change a direction, the label in `flipped_columns`, and leave the label."""
    names = [type(part).__name__ for part in _parts(transform)]
    if found := [name for name in names if flipped_columns and name in _MOVES]:
        raise ValueError(
            f"transform holds {found[0]}, which turns or bends the image, but not its direction in "
            f"{', '.join(flipped_columns)}. Leave it out."
        )
    if found := [name for name in names if flipped_columns and name in _FLIPS]:
        raise ValueError(
            f"transform holds {found[0]}, but the sign of {', '.join(flipped_columns)} changes with a flip only "
            "under augmentation by name: leave transform out and set horizontal_flip, with augmentation to light, "
            "medium or strong."
        )


def _parts(transform: Any) -> Iterator[Any]:
    from torchvision import transforms as v1
    from torchvision.transforms import v2

    yield transform
    parts: Iterable[Any] = ()
    if isinstance(transform, nn.Sequential):
        parts = transform
    elif any(isinstance(transform, of.Compose | of.RandomApply | of.RandomChoice | of.RandomOrder) for of in (v1, v2)):
        parts = transform.transforms
    for part in parts:
        yield from _parts(part)
