"""Numbers → canonical pixels: scaled exactly, blended over white at their own depth, rounded once."""

from __future__ import annotations

import hashlib
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from .errors import ImageError

__all__ = [
    "CANONICAL_VERSION", "MAX_BYTES", "MAX_PIXELS", "Pixels", "as_rgb", "blend8", "blend16", "blend_float", "check_size",
    "from_array", "is_tensor", "line", "pixel_digest",
]  # fmt: skip

Pixels = npt.NDArray[np.uint8]

#: Part of every memo key: raise it when the pixels that this module makes of any input change.
CANONICAL_VERSION = 1
#: A picture of more pixels is refused before it is decoded (8192 × 8192; 192 MiB of canonical pixels).
MAX_PIXELS = 8192 * 8192
#: A file of more bytes is refused before it is read.
MAX_BYTES = 256 * 1024 * 1024


def pixel_digest(pixels: Pixels) -> str:
    """sha256 (64 hex) over the size and the bytes of canonical pixels, (H, W, 3) uint8, row by row, RGB."""
    height, width, _ = pixels.shape
    digest = hashlib.sha256(b"isr rgb8 %d %d\n" % (width, height))
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.hexdigest()


def is_tensor(value: object) -> bool:
    """A torch tensor, recognised without importing torch."""
    return any(base.__name__ == "Tensor" and base.__module__ == "torch" for base in type(value).__mro__)


def from_array(value: Any) -> Pixels:
    """Canonical pixels of a numpy array, a torch tensor, or any object with `__array__`.

    Shapes: (H, W), (H, W, C) or (C, H, W) with C in {1, 3, 4}. Where both readings fit, a tensor is (C, H, W) and an array
    is (H, W, C). Values: uint8 0–255, uint16 0–65535 (divided by 257), or float in [0, 1] (times 255); a float may leave
    [0, 1] by 1e-4 at most, which cannot change an 8-bit value by a step. Channel order RGB or RGBA.

    Raises:
        ImageError: another shape, dtype or range; NaN or infinity; no pixels.
    """
    tensor = is_tensor(value)
    array = _numpy(value) if tensor else np.asarray(value)
    if array.dtype == object:
        raise ImageError(f"expected numbers, got an array of objects (shape {array.shape})")
    if isinstance(value, np.ma.MaskedArray) and np.ma.getmaskarray(value).any():
        raise ImageError("the array has masked values; fill them first")
    array = _channels_last(array, tensor=tensor)
    check_size(array.shape[1], array.shape[0])
    kind = array.dtype.newbyteorder("=")
    array = array.astype(kind, copy=False)
    if kind == np.uint8:
        return blend8(array)
    if kind == np.uint16:
        return blend16(array)
    if np.issubdtype(kind, np.floating):
        return blend_float(array)
    if kind == np.bool_:
        advice = "multiply by 255 first"
    else:
        advice = f"if the values are 0–255, convert with {'.to(torch.uint8)' if tensor else '.astype(numpy.uint8)'}"
    raise ImageError(f"expected dtype uint8 (0–255), uint16 (0–65535) or float ([0, 1]), got {kind}; {advice}")


def _numpy(tensor: Any) -> npt.NDArray[Any]:
    tensor = tensor.detach().cpu()
    if str(tensor.dtype) == "torch.bfloat16":  # numpy has no such type; float32 holds every bfloat16 exactly
        tensor = tensor.float()
    try:
        return np.asarray(tensor.numpy())
    except (TypeError, RuntimeError) as error:
        raise ImageError(f"the tensor cannot be read as an array: {line(error)}") from error


def _channels_last(array: npt.NDArray[Any], *, tensor: bool) -> npt.NDArray[Any]:
    if array.ndim == 2:
        return array[:, :, None]
    if array.ndim == 3:
        first, last = array.shape[0] in (1, 3, 4), array.shape[2] in (1, 3, 4)
        if first and (tensor or not last):
            return np.moveaxis(array, 0, 2)
        if last:
            return array
    if array.ndim == 4:
        raise ImageError(f"a batch of shape {array.shape} where one picture was expected; pass the pictures one by one")
    raise ImageError(f"expected shape (H, W), (H, W, C) or (C, H, W) with C of 1, 3 or 4, got {array.shape}")


def blend8(array: npt.NDArray[np.uint8]) -> Pixels:
    if array.shape[2] == 4:
        alpha = array[:, :, 3:].astype(np.uint32)
        # 255 is odd, so that no sum lies half-way between two steps.
        return cast(Pixels, ((array[:, :, :3] * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8))
    return as_rgb(array)


def blend16(array: npt.NDArray[np.uint16]) -> Pixels:
    if array.shape[2] == 4:
        alpha = array[:, :, 3:].astype(np.uint64)
        blended = array[:, :, :3] * alpha + 65535 * (65535 - alpha)  # times 65535
        return ((blended + 65535 * 257 // 2) // (65535 * 257)).astype(np.uint8)
    return as_rgb(((array.astype(np.uint32) + 128) // 257).astype(np.uint8))


def blend_float(array: npt.NDArray[Any]) -> Pixels:
    low, high = float(array.min()), float(array.max())
    if not np.isfinite(array).all():
        count = int(array.size - np.isfinite(array).sum())
        raise ImageError(f"{count} of {array.size} values are NaN or infinite; expected floats in [0, 1]")
    if low < -1e-4 or high > 1 + 1e-4:
        if high > 2 and low >= 0:
            advice = "it looks like 0–255: divide by 255"
        elif -1.01 <= low < 0 and high <= 1.01:
            advice = "it looks like [-1, 1]: use x / 2 + 0.5"
        else:
            advice = "clip or rescale it first"
        raise ImageError(f"expected floats in [0, 1], got values from {low:.6g} to {high:.6g}; {advice}")
    values = np.clip(array.astype(np.float64), 0, 1)
    if array.shape[2] == 4:
        alpha = values[:, :, 3:]
        values = values[:, :, :3] * alpha + (1 - alpha)
    return as_rgb(np.rint(255 * values).astype(np.uint8))


def as_rgb(array: npt.NDArray[np.uint8]) -> Pixels:
    return np.ascontiguousarray(np.repeat(array, 3, axis=2) if array.shape[2] == 1 else array)


def check_size(width: int, height: int) -> None:
    if not width or not height:
        raise ImageError(f"the picture has no pixels (size {width}×{height})")
    if width * height > MAX_PIXELS:
        raise ImageError(
            f"too many pixels: {width}×{height} is {width * height:,}, the limit is {MAX_PIXELS:,}; scale it down first"
        )


def line(error: BaseException) -> str:
    text = " ".join(str(error).split())[:200]
    return text or type(error).__name__
