"""Embedded colour profiles → sRGB."""

from __future__ import annotations

import io
from functools import lru_cache
from typing import cast

import numpy as np
from PIL import Image, ImageCms

from .arrays import line
from .errors import ImageError

__all__ = ["to_srgb"]

_SPACES = {"RGB ": "RGB", "GRAY": "L", "CMYK": "CMYK"}


def to_srgb(pixels: Image.Image, profile: bytes | None) -> Image.Image:
    """Through the embedded profile to sRGB. A profile for another kind of pixels (left over from a conversion) says
    nothing about these, and a profile that is sRGB itself changes nothing."""
    if not profile:
        return pixels
    transform = _transform(bytes(profile), pixels.mode)
    return pixels if transform is None else cast(Image.Image, ImageCms.applyTransform(pixels, transform))


@lru_cache(maxsize=32)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if _SPACES.get(source.profile.xcolor_space) != mode:
            return None
        transform = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB")
        probe = _probe(mode)
        if probe is not None:
            moved = np.asarray(ImageCms.applyTransform(probe, transform)).astype(int)
            if np.abs(moved - np.asarray(probe.convert("RGB"))).max() <= 1:
                return None  # sRGB by another name: keep the pixels exactly
    except (ImageCms.PyCMSError, OSError, TypeError, ValueError) as error:
        raise ImageError(
            f"its embedded colour profile cannot be read ({line(error)}); remove the profile or save the picture as sRGB"
        ) from error
    return transform


def _probe(mode: str) -> Image.Image | None:
    """Colours that tell sRGB from anything else: a 17-step cube and all greys; None where no pixels can be sRGB."""
    greys = np.arange(256, dtype=np.uint8)
    if mode == "L":
        return Image.fromarray(greys[None])
    if mode != "RGB":
        return None
    steps = np.linspace(0, 255, 17).round().astype(np.uint8)
    cube = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(-1, 3)
    return Image.fromarray(np.concatenate([cube, np.repeat(greys[:, None], 3, axis=1)])[None])
