"""Masks: where a picture may change, and how much of the budget there; held on the saved levels, whoever made the picture."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import PIL.Image
import PIL.ImageOps

from .errors import UsageError
from .images import ImageRef, as_image, is_tensor
from .perturbation import Budget, bands, pixels, share_of

__all__ = ["grey_mask", "hold", "mask_for", "working_mask"]

T = TypeVar("T")

#: Modes of PIL images whose values mean one thing as a share: 0 to 255, or a palette of such.
_READ = ("1", "L", "P", "RGB")
_DRAWN = "draw it in black and white without transparency (mode 'L'): transparency is not read"
_SCALED = "bring it to 8-bit grey (mode 'L', 0 black, 255 white)"


def grey_mask(mask: Any, name: str) -> PIL.Image.Image:
    """A mask as 8-bit grey (mode "L"), turned as its EXIF says: 255 where a pixel may change by the whole budget, 0 where it stays.

    Args:
        mask: a picture (path, bytes, PIL image of mode 1, L, P or RGB), or an array or tensor as for pictures (uint8 0–255,
            uint16, float in [0, 1]), or of booleans. name: what errors call it.

    Raises:
        UsageError: what would silently mean something else: transparency, other modes, 8-bit values of 0 and 1 only, 16-bit
            values of 8 bits only.
        ImageError: it cannot be read.
    """
    if isinstance(mask, PIL.Image.Image):
        _readable(mask, name, _READ)
        return _spread(PIL.ImageOps.exif_transpose(mask).convert("L"), name)
    kind = str(getattr(mask, "dtype", "")).removeprefix("torch.")
    if not kind:
        ref = as_image(mask, name=None if isinstance(mask, str | Path) else name)
        grey = ref.pil().convert("L")
        _of_file(mask.path if isinstance(mask, ImageRef) else mask, ref.name)
        return _spread(grey, ref.name)
    if kind == "bool":
        mask = np.asarray(mask.cpu() if is_tensor(mask) else mask).astype(np.uint8) * 255
    elif _has_alpha(mask):
        raise UsageError(f"{name} has four channels; {_DRAWN}")
    elif kind in ("uint8", "uint16"):
        _spread(mask.cpu() if is_tensor(mask) else mask, name)
    return as_image(mask, name=name).pil().convert("L")


def mask_for(image: PIL.Image.Image, mask: Any, name: str) -> PIL.Image.Image | None:
    """`grey_mask` in the size of its picture; None stays None.

    Raises:
        UsageError: as `grey_mask`, or the size is another.
    """
    if mask is None:
        return None
    grey = grey_mask(mask, name)
    if grey.size != image.size:
        raise UsageError(
            f"masks must have the size of their pictures: {image.width}×{image.height}, got {grey.width}×{grey.height} ({name})"
        )
    return grey


def working_mask(mask: PIL.Image.Image | None, size: tuple[int, int]) -> PIL.Image.Image | None:
    """A mask of mode "L" at the size in which a perturbation is made."""
    if mask is None or mask.size == size:
        return mask
    smaller = mask.resize(size, PIL.Image.Resampling.BILINEAR)
    # A last trace of 1/255 lets nothing change, and would be taken for a table of 0 and 1.
    return PIL.Image.new("L", size) if np.max(np.asarray(smaller), initial=0) == 1 else smaller


def hold(
    original: PIL.Image.Image, protected: PIL.Image.Image, mask: PIL.Image.Image | None, budget: Budget | None
) -> PIL.Image.Image:
    """The picture with its change cut to what the mask allows: |change| ≤ ⌊255 m ε⌋ levels in an L∞ ball, m in [0, 1]; with
    another budget, or none, nothing where the mask is black.

    Args:
        original, protected: 8-bit RGB. mask: "L", of the same size; None: everywhere.
    """
    if mask is None:
        return protected
    base, share = pixels(original), np.asarray(mask)
    levels = np.array(pixels(protected))
    for rows in bands(base):
        if budget is not None and budget.norm == "linf":
            wall = share_of(budget, share[rows])[:, :, None]
            change = np.clip(levels[rows].astype(np.int16) - base[rows], -wall, wall)
            levels[rows] = base[rows] + change
        else:
            black = share[rows] == 0
            levels[rows][black] = base[rows][black]
    return PIL.Image.fromarray(levels)


def _readable(image: PIL.Image.Image, name: str, modes: tuple[str, ...] | None) -> None:
    clear = "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "RGBa", "La")
    if clear:
        raise UsageError(f"{name} is a picture of mode {image.mode!r} with transparency; {_DRAWN}")
    if modes is not None and image.mode not in modes:
        raise UsageError(f"{name} is a picture of mode {image.mode!r}; {_SCALED}")


def _of_file(mask: Any, name: str) -> None:
    """A file's transparency, and its values at its own depth."""
    source = io.BytesIO(mask) if isinstance(mask, bytes) else mask
    if isinstance(source, str | Path | io.BytesIO):
        with PIL.Image.open(source) as image:
            _readable(image, name, None)
            if image.mode.startswith("I"):
                _spread(np.asarray(image).astype(np.uint16), name)


def _has_alpha(mask: Any) -> bool:
    """Four channels, first or last, as pictures are read (`isr.images`)."""
    shape = tuple(mask.shape)
    if len(shape) != 3:
        return False
    first, last = shape[0] in (1, 3, 4), shape[2] in (1, 3, 4)
    return bool((shape[0] if first and (is_tensor(mask) or not last) else shape[2]) == 4 and (first or last))


def _spread(mask: T, name: str) -> T:
    """Not a table of 0 and 1, nor 8-bit values in 16 bits, which would mean "hardly any change anywhere"."""
    values = np.asarray(mask)
    top = int(np.max(values, initial=0))
    deep = values.dtype == np.uint16
    if top == 1 or (deep and 0 < top <= 255):
        raise UsageError(
            f"{name} holds whole numbers of 0 {'and 1 only' if top == 1 else f'to {top} of 65535'}, and white is their largest "
            f"({'16 bits: 65535' if deep else '8 bits: 255'}): multiply it, or pass an array of booleans"
        )
    return mask
