"""Anything image-like → canonical pixels: 8-bit sRGB, (H, W, 3) uint8 (docs/definitions.md, section 5).

Rounding: every value is scaled exactly and rounded once to the nearest 8-bit step. Alpha goes over white at the depth of
the source, before rounding. gAMA and cHRM chunks are not applied (neither do the libraries that editors read files with).
"""

from __future__ import annotations

import hashlib
import io
import struct
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageCms, ImageFile, ImageOps, UnidentifiedImageError

from . import png
from .errors import ImageError

__all__ = [
    "CANONICAL_VERSION",
    "MAX_BYTES",
    "MAX_PIXELS",
    "Pixels",
    "from_array",
    "from_file_bytes",
    "from_pil",
    "is_tensor",
    "pixel_digest",
]

Pixels = npt.NDArray[np.uint8]

#: Part of every memo key: raise it when the pixels that this module makes of any input change.
CANONICAL_VERSION = 1
#: A picture of more pixels is refused before it is decoded (8192 × 8192; 192 MiB of canonical pixels).
MAX_PIXELS = 8192 * 8192
#: A file of more bytes is refused before it is read.
MAX_BYTES = 256 * 1024 * 1024

#: Formats that hold one still picture with agreed pixel values. Others (EPS would start Ghostscript) are refused.
FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "AVIF", "TIFF", "BMP", "DIB", "GIF", "PPM")

# What Pillow's decoders raise on damaged or hostile files.
_DECODE_ERRORS = (
    OSError, ValueError, SyntaxError, EOFError, struct.error, zlib.error, IndexError, KeyError, TypeError, AttributeError,
    OverflowError, RuntimeError, ZeroDivisionError, MemoryError, Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)  # fmt: skip


def pixel_digest(pixels: Pixels) -> str:
    """sha256 (64 hex) over the size and the bytes of canonical pixels, (H, W, 3) uint8, row by row, RGB."""
    height, width, _ = pixels.shape
    digest = hashlib.sha256(b"isr rgb8 %d %d\n" % (width, height))
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.hexdigest()


# ---------------------------------------------------------------------------------------------------------- arrays


def is_tensor(value: object) -> bool:
    """A torch tensor, recognised without importing torch."""
    return type(value).__module__.partition(".")[0] == "torch" and hasattr(value, "detach") and hasattr(value, "cpu")


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
    array = _channels_last(array, tensor=tensor)
    _check_size(array.shape[1], array.shape[0])
    kind = array.dtype
    if kind == np.uint8:
        return _blend8(array)
    if kind == np.uint16:
        return _blend16(array)
    if np.issubdtype(kind, np.floating):
        return _blend_float(array)
    advice = "multiply by 255 first" if kind == np.bool_ else "if the values are 0–255, convert with .astype('uint8')"
    raise ImageError(
        f"expected dtype uint8 (0–255), uint16 (0–65535) or float ([0, 1]), got {kind}; {advice}"
        if not tensor or kind != np.int64
        else "expected dtype uint8 (0–255), uint16 (0–65535) or float ([0, 1]), got int64; "
        "if the values are 0–255, convert with .to(torch.uint8)"
    )


def _numpy(tensor: Any) -> npt.NDArray[Any]:
    tensor = tensor.detach().cpu()
    if str(tensor.dtype) == "torch.bfloat16":  # numpy has no such type; float32 holds every bfloat16 exactly
        tensor = tensor.float()
    try:
        return np.asarray(tensor.numpy())
    except (TypeError, RuntimeError) as error:
        raise ImageError(f"the tensor cannot be read as an array: {_line(error)}") from error


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


def _blend8(array: npt.NDArray[np.uint8]) -> Pixels:
    if array.shape[2] == 4:
        alpha = array[:, :, 3:].astype(np.uint32)
        # 255 is odd, so that no sum lies half-way between two steps.
        return cast(Pixels, ((array[:, :, :3] * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8))
    return _rgb(array)


def _blend16(array: npt.NDArray[np.uint16]) -> Pixels:
    if array.shape[2] == 4:
        alpha = array[:, :, 3:].astype(np.uint64)
        blended = array[:, :, :3] * alpha + 65535 * (65535 - alpha)  # times 65535
        return ((blended + 65535 * 257 // 2) // (65535 * 257)).astype(np.uint8)
    return _rgb(((array.astype(np.uint32) + 128) // 257).astype(np.uint8))


def _blend_float(array: npt.NDArray[Any]) -> Pixels:
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
    return _rgb(np.rint(255 * values).astype(np.uint8))


def _rgb(array: npt.NDArray[np.uint8]) -> Pixels:
    return np.ascontiguousarray(np.repeat(array, 3, axis=2) if array.shape[2] == 1 else array)


# ----------------------------------------------------------------------------------------------------------- files


def from_file_bytes(data: bytes) -> tuple[Pixels, bool]:
    """Canonical pixels of an encoded picture, and whether its PNG pixel data may be passed on as they are.

    Raises:
        ImageError: empty, not a picture, truncated, damaged, animated, too large, or pixels without an agreed meaning.
    """
    if not data:
        raise ImageError("the file is empty (0 bytes)")
    if len(data) > MAX_BYTES:
        raise ImageError(f"the file has {len(data):,} bytes; the limit is {MAX_BYTES:,}")
    if data.startswith(png.SIGNATURE):
        facts = png.inspect(data)
        _check_size(*facts.size)
        return _from_png(data, facts), facts.as_is
    with _decoding():
        return from_pil(_open(data)), False


def _open(data: bytes) -> ImageFile.ImageFile:
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        start = data.lstrip()[:64].lower()
        page = " (it looks like an HTML page)" if start.startswith((b"<!doctype", b"<html")) else ""
        raise ImageError(f"not a picture that can be read{page}; expected {', '.join(FORMATS)}") from None


@contextmanager
def _decoding() -> Iterator[None]:
    """Truncated files are an error here, whatever other code set; Pillow's many exceptions become one."""
    with _strict:
        try:
            yield
        except (ImageError, UnidentifiedImageError):
            raise
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise ImageError(
                f"too many pixels (the limit is {MAX_PIXELS:,}), not decoded: {_line(error)}; scale it down first"
            ) from error
        except _DECODE_ERRORS as error:
            raise ImageError(f"cannot be decoded: {_line(error)}") from error


class _Strict:
    """While any decoder of ours runs, `ImageFile.LOAD_TRUNCATED_IMAGES` is off.

    Training code often switches it on for the whole process; half a picture filled with grey would then reach the judge.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._before = False

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                self._before = ImageFile.LOAD_TRUNCATED_IMAGES
                ImageFile.LOAD_TRUNCATED_IMAGES = False
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                ImageFile.LOAD_TRUNCATED_IMAGES = self._before


_strict = _Strict()


def _from_png(data: bytes, facts: png.PngFacts) -> Pixels:
    with _decoding():
        image = _open(data)
        if facts.depth == 16:
            return _finish16(_deep(image, data), image, facts.transparent)
        if facts.transparent is None:
            return from_pil(image)
        # Pillow compares tRNS with scaled samples; in files of 1, 2 and 4 bits it has to be scaled as well.
        if facts.colour == 0:
            grey = np.asarray(image.convert("L"))
            key = facts.transparent[0] * (255 // (2**facts.depth - 1))
            rgba = np.dstack([grey, grey, grey, np.where(grey == key, 0, 255)]).astype(np.uint8)
        else:
            rgb = np.asarray(image)
            see_through = (rgb == np.array(facts.transparent)).all(axis=2)
            rgba = np.dstack([rgb, np.where(see_through, 0, 255)]).astype(np.uint8)
        return _finish(Image.fromarray(rgba), image)


def _deep(image: ImageFile.ImageFile, data: bytes) -> npt.NDArray[np.uint16]:
    """All 16 bits of a multi-channel file that Pillow would cut to 8: (H, W, C) uint16.

    Pillow's unpackers for 16-bit samples keep one byte of two; asked once as big and once as little endian they give both.
    """
    if image.mode.startswith("I;16"):
        return np.asarray(image).astype(np.uint16)[:, :, None]
    modes = {_rawmode(tile) for tile in image.tile}
    if len(modes) != 1:
        raise ImageError("16-bit samples in a layout that cannot be read exactly; save as 16-bit PNG or 8-bit PNG")
    rawmode = modes.pop()
    if rawmode == "LA;16B":  # no little-endian unpacker exists; as 8-bit RGBA the same bytes come out in order
        image._mode = "RGBA"
        image.tile = [_with_rawmode(tile, "RGBA") for tile in image.tile]
        four = np.asarray(image).astype(np.uint16)
        return np.dstack([four[:, :, 0] << 8 | four[:, :, 1], four[:, :, 2] << 8 | four[:, :, 3]])
    base, _, order = rawmode.partition(";16")
    if base not in ("RGB", "RGBA") or order not in ("B", "L", "N"):
        raise ImageError(
            f"16-bit samples in the layout {rawmode!r} cannot be read exactly; save as 16-bit or 8-bit PNG"
        )
    big = _open(data)
    big.tile = [_with_rawmode(tile, f"{base};16B") for tile in big.tile]
    little = _open(data)
    little.tile = [_with_rawmode(tile, f"{base};16L") for tile in little.tile]
    first, second = np.asarray(big).astype(np.uint16), np.asarray(little).astype(np.uint16)
    native_little = order == "L" or (order == "N" and struct.pack("=H", 1) == b"\1\0")
    high, low = (second, first) if native_little else (first, second)
    return (high << 8 | low).astype(np.uint16)


def _rawmode(tile: Any) -> str:
    args = tile.args
    return str(args if isinstance(args, str) else args[0])


def _with_rawmode(tile: Any, rawmode: str) -> Any:
    return tile._replace(args=rawmode if isinstance(tile.args, str) else (rawmode, *tile.args[1:]))


def _finish16(
    samples: npt.NDArray[np.uint16], image: Image.Image, transparent: tuple[int, ...] | None = None
) -> Pixels:
    """Grey or colour, with or without alpha, 16 bits → canonical; the profile and orientation are those of `image`."""
    channels = samples.shape[2]
    colour = samples[:, :, : 3 if channels >= 3 else 1]
    alpha = samples[:, :, -1:] if channels in (2, 4) else None
    if transparent is not None:
        alpha = np.where((colour == np.array(transparent)).all(axis=2, keepdims=True), 0, 65535).astype(np.uint16)
    if image.info.get("icc_profile"):  # the colour engine works on 8 bits
        eight = ((samples.astype(np.uint32) + 128) // 257).astype(np.uint8)
        colour8 = eight[:, :, : colour.shape[2]]
        picture = Image.fromarray(colour8[:, :, 0] if colour8.shape[2] == 1 else colour8)
        alpha8 = None if alpha is None else ((alpha[:, :, 0].astype(np.uint32) + 128) // 257).astype(np.uint8)
        return _finish(picture, image, alpha=alpha8)
    parts = [np.repeat(colour, 3, axis=2) if colour.shape[2] == 1 else colour]
    if alpha is not None:
        parts.append(alpha)
    return _oriented(_blend16(np.concatenate(parts, axis=2)), image)


# ------------------------------------------------------------------------------------------------------------- PIL


def from_pil(image: Image.Image) -> Pixels:
    """Canonical pixels of a PIL image, with the colour profile, orientation and transparency that it carries.

    A 16-bit colour PNG that Pillow has *already* loaded has lost its low bits; pass the path instead.

    Raises:
        ImageError: see `from_file_bytes`.
    """
    _check_size(*image.size)
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":  # MPO: one photograph with previews behind it
        raise ImageError(
            f"the file is an animation or has several pages ({frames}); save the one that is meant as a picture of its own"
        )
    if (
        isinstance(image, ImageFile.ImageFile)
        and any(";16" in _rawmode(t) for t in image.tile)
        and image.mode != "I;16"
    ):
        data = _source_bytes(image)
        if data.startswith(png.SIGNATURE):
            return _from_png(data, png.inspect(data))
        return _finish16(_deep(_open(data), data), image)
    with _decoding():
        image.load()
        mode = image.mode
        if mode.startswith("I;16"):
            return _finish16(np.asarray(image).astype(np.uint16)[:, :, None], image, _key16(image))
        if mode == "F":
            return _oriented(_blend_float(np.asarray(image)[:, :, None]), image)
        if mode == "I":
            wide = np.asarray(image)
            if image.format != "PPM":
                raise ImageError("32-bit integer pixels have no agreed range; convert to 8 or 16 bits first")
            return _oriented(_blend16(wide.astype(np.uint16)[:, :, None]), image)
        return _finish(image, image)


def _source_bytes(image: ImageFile.ImageFile) -> bytes:
    with _decoding():
        source = image.fp
        if source is None:
            raise ImageError("the picture's file was closed before its pixels were loaded; pass the path instead")
        before = source.tell()
        source.seek(0)
        data = source.read()
        source.seek(before)
        return bytes(data)


def _key16(image: Image.Image) -> tuple[int, ...] | None:
    key = image.info.get("transparency")
    return (key,) if isinstance(key, int) else None


def _finish(pixels: Image.Image, source: Image.Image, alpha: npt.NDArray[np.uint8] | None = None) -> Pixels:
    """Expand, convert colours, blend and turn an 8-bit PIL image; profile and orientation are those of `source`."""
    mode = pixels.mode
    if mode in ("P", "PA"):
        pixels = pixels.convert("RGBA" if mode == "PA" or "transparency" in pixels.info else "RGB")
    elif mode in ("RGBa", "La"):
        pixels = pixels.convert(mode.upper())
    elif mode in ("1", "L", "RGB") and "transparency" in pixels.info:
        pixels = pixels.convert("RGBA" if mode == "RGB" else "LA")
    elif mode == "1":
        pixels = pixels.convert("L")
    elif mode in ("RGBX", "YCbCr", "HSV"):
        pixels = pixels.convert("RGB")
    elif mode not in ("L", "LA", "RGB", "RGBA", "CMYK"):
        raise ImageError(f"pixels of mode {mode!r} are not supported; convert the picture to RGB first")
    if pixels.mode in ("LA", "RGBA"):
        alpha = np.asarray(pixels.getchannel("A"))
        pixels = pixels.convert(pixels.mode[:-1])
    pixels = _to_srgb(pixels, source.info.get("icc_profile"))
    rgb = np.asarray(pixels.convert("RGB"))
    return _oriented(_blend8(np.dstack([rgb, alpha])) if alpha is not None else _rgb(rgb), source)


def _oriented(pixels: Pixels, source: Image.Image) -> Pixels:
    turn = source.getexif().get(0x0112, 1)
    if turn not in range(2, 9):
        return pixels
    carrier = Image.fromarray(pixels)
    carrier.getexif()[0x0112] = turn
    return np.ascontiguousarray(np.asarray(ImageOps.exif_transpose(carrier)))


# ---------------------------------------------------------------------------------------------------------- colour

_SPACES = {"RGB ": "RGB", "GRAY": "L", "CMYK": "CMYK"}


def _to_srgb(pixels: Image.Image, profile: bytes | None) -> Image.Image:
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
            f"its embedded colour profile cannot be read ({_line(error)}); remove the profile or save the picture as sRGB"
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


def _check_size(width: int, height: int) -> None:
    if not width or not height:
        raise ImageError(f"the picture has no pixels (size {width}×{height})")
    if width * height > MAX_PIXELS:
        raise ImageError(
            f"too many pixels: {width}×{height} is {width * height:,}, the limit is {MAX_PIXELS:,}; scale it down first"
        )


def _line(error: BaseException) -> str:
    text = " ".join(str(error).split())[:200]
    return text or type(error).__name__
