"""Files and PIL images → canonical pixels: 8-bit sRGB, (H, W, 3) uint8 (docs/definitions.md, section 5).

Rounding: every value is scaled exactly and rounded once to the nearest 8-bit step. Alpha goes over white at the depth of
the source, before rounding. gAMA and cHRM chunks are not applied (neither do the libraries that editors read files with).
"""

from __future__ import annotations

import io
import struct
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, TypeGuard

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from . import png
from .arrays import MAX_BYTES, MAX_PIXELS, Pixels, as_rgb, blend8, blend16, blend_float, check_size, line
from .colour import to_srgb
from .errors import ImageError

__all__ = ["FORMATS", "from_file_bytes", "from_pil"]

#: Formats that hold one still picture with agreed pixel values. Others (EPS would start Ghostscript) are refused.
FORMATS = ("PNG", "JPEG", "WEBP", "AVIF", "TIFF", "BMP", "DIB", "GIF", "PPM")

# What Pillow's decoders raise on damaged or hostile files.
_DECODE_ERRORS = (
    OSError, ValueError, SyntaxError, EOFError, struct.error, zlib.error, IndexError, KeyError, TypeError, AttributeError,
    OverflowError, RuntimeError, ZeroDivisionError, MemoryError, Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)  # fmt: skip


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
        check_size(*facts.size)
        # Where only the pixel data will be sent, exactly these are what is decoded and hashed.
        return _from_png(png.pixels_only(data, facts) if facts.as_is else data, facts), facts.as_is
    with _decoding():
        return from_pil(_open(data)), False


@cache
def _known_formats() -> tuple[str, ...]:
    Image.init()  # a build of Pillow may lack a codec
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _open(data: bytes) -> ImageFile.ImageFile:
    try:
        return Image.open(io.BytesIO(data), formats=_known_formats())
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
                f"too many pixels (the limit is {MAX_PIXELS:,}), not decoded: {line(error)}; scale it down first"
            ) from error
        except _DECODE_ERRORS as error:
            raise ImageError(f"cannot be decoded: {line(error)}") from error


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
    return _oriented(blend16(np.concatenate(parts, axis=2)), image)


# ------------------------------------------------------------------------------------------------------------- PIL


def from_pil(image: Image.Image) -> Pixels:
    """Canonical pixels of a PIL image, with the colour profile, orientation and transparency that it carries.

    A 16-bit colour PNG that Pillow has *already* loaded has lost its low bits; pass the path instead.

    Raises:
        ImageError: see `from_file_bytes`.
    """
    check_size(*image.size)
    with _decoding():
        frames = getattr(image, "n_frames", 1)
        if frames > 1 and image.format != "MPO":  # MPO: one photograph with previews behind it
            raise ImageError(
                f"an animation, or a file of several pages ({frames}); save the one that is meant as a picture of its own"
            )
        bits = getattr(image, "tag_v2", {}).get(258, ()) if image.format == "TIFF" else ()
        if not set(bits) <= {1, 2, 4, 8, 16, 32}:
            raise ImageError(f"samples of {max(bits)} bits have no agreed reading; convert to 8 or 16 bits first")
        if _cut_to_8_bits(image):
            data = _source_bytes(image)
            if data.startswith(png.SIGNATURE):
                return _from_png(data, png.inspect(data))
            return _finish16(_deep(_open(data), data), image)
        image.load()
        mode = image.mode
        if mode.startswith("I;16"):
            return _finish16(np.asarray(image).astype(np.uint16)[:, :, None], image, _key16(image))
        if mode == "F":
            return _oriented(blend_float(np.asarray(image)[:, :, None]), image)
        if mode == "I":
            if image.format != "PPM":  # which Pillow scales to 16 bits
                raise ImageError("32-bit integer pixels have no agreed range; convert to 8 or 16 bits first")
            return _oriented(blend16(np.asarray(image).astype(np.uint16)[:, :, None]), image)
        return _finish(image, image)


def _cut_to_8_bits(image: Image.Image) -> TypeGuard[ImageFile.ImageFile]:
    """Whether loading this picture would drop the low byte of its samples."""
    if not isinstance(image, ImageFile.ImageFile) or image.mode.startswith(("I", "F")):
        return False
    return any(";16" in _rawmode(tile) for tile in image.tile)


def _source_bytes(image: ImageFile.ImageFile) -> bytes:
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
    pixels = to_srgb(pixels, source.info.get("icc_profile"))
    rgb = np.asarray(pixels.convert("RGB"))
    return _oriented(blend8(np.dstack([rgb, alpha])) if alpha is not None else as_rgb(rgb), source)


def _oriented(pixels: Pixels, source: Image.Image) -> Pixels:
    turn = source.getexif().get(0x0112, 1)
    if turn not in range(2, 9):
        return pixels
    carrier = Image.fromarray(pixels)
    carrier.getexif()[0x0112] = turn
    return np.ascontiguousarray(np.asarray(ImageOps.exif_transpose(carrier)))
