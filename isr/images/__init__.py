"""path | bytes | PIL | ndarray | tensor → a validated picture: canonical pixels, digest, lossless encoding.

Canonical pixels are 8-bit sRGB (docs/definitions.md, section 5).
"""

from __future__ import annotations

from .arrays import CANONICAL_VERSION, MAX_BYTES, MAX_PIXELS, Pixels, is_tensor, pixel_digest
from .check import check_images, find_problems
from .errors import ImageError
from .memo import Facts, FileMemo, file_hash
from .ref import CODEC, BadImage, ImageRef, as_image

__all__ = [
    "CANONICAL_VERSION",
    "CODEC",
    "MAX_BYTES",
    "MAX_PIXELS",
    "BadImage",
    "Facts",
    "FileMemo",
    "ImageError",
    "ImageRef",
    "Pixels",
    "as_image",
    "check_images",
    "file_hash",
    "find_problems",
    "is_tensor",
    "pixel_digest",
]
