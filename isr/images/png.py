"""PNG at the level of chunks: verify a file, pass its pixel data on untouched, and write canonical pixels."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .errors import ImageError

__all__ = ["SIGNATURE", "PngFacts", "encode", "inspect", "pixels_only"]

SIGNATURE = b"\x89PNG\r\n\x1a\n"

#: Chunks that change what the pixels mean, so that the pixel data alone would not be canonical.
_MEANING = {b"iCCP", b"gAMA", b"cHRM", b"eXIf", b"tRNS"}
#: Per colour type: samples per pixel.
_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}


@dataclass(frozen=True)
class PngFacts:
    """What the chunks of one PNG file say.

    Attributes:
        size: (width, height). depth: bits per sample. colour: PNG colour type (0 grey, 2 RGB, 3 palette, 4 LA, 6 RGBA).
        as_is: 8-bit RGB without any chunk that changes the meaning of the pixels: its pixel data are canonical already.
        transparent: the tRNS samples of a grey or RGB file, in the file's own depth, or None.
    """

    size: tuple[int, int]
    depth: int
    colour: int
    as_is: bool
    transparent: tuple[int, ...] | None
    kept: tuple[tuple[int, int], ...]


def inspect(data: bytes, *, checksums: bool = True) -> PngFacts:
    """Walk all chunks of a PNG file and verify lengths and (unless these very bytes were verified before) checksums.

    Raises:
        ImageError: truncated, a wrong checksum, no header, no pixel data, or an animation.
    """
    view = memoryview(data)
    position, end = len(SIGNATURE), len(data)
    header: tuple[int, int, int, int] | None = None
    trns: bytes | None = None
    seen: set[bytes] = set()
    last = b""
    kept: list[tuple[int, int]] = []
    while True:
        if position + 12 > end:
            raise ImageError("the PNG file is truncated (it ends without an IEND chunk); save or download it again")
        (length,) = struct.unpack_from(">I", view, position)
        kind = bytes(view[position + 4 : position + 8])
        stop = position + 12 + length
        if stop > end:
            raise ImageError(f"the PNG file is truncated in its {_printable(kind)} chunk; save or download it again")
        (stored,) = struct.unpack_from(">I", view, stop - 4)
        if checksums and zlib.crc32(view[position + 4 : stop - 4]) != stored:
            raise ImageError(f"the PNG file is damaged: wrong checksum in its {_printable(kind)} chunk")
        body = view[position + 8 : stop - 4]
        if header is None:
            if kind != b"IHDR" or length != 13:
                raise ImageError("the PNG file is damaged: it does not start with an IHDR chunk")
            width, height, depth, colour = struct.unpack_from(">IIBB", body)
            header = (width, height, depth, colour)
        elif kind == b"IHDR" or (kind == b"IDAT" and kind in seen and last != b"IDAT"):
            raise ImageError(f"the PNG file is damaged: a second {_printable(kind)} where none belongs")
        seen.add(kind)
        last = kind
        if kind == b"tRNS":
            trns = bytes(body)
        if kind in (b"IHDR", b"IDAT", b"IEND"):
            kept.append((position, stop))
        position = stop
        if kind == b"IEND":
            break
    width, height, depth, colour = header
    if not width or not height:
        raise ImageError(f"the picture has no pixels (size {width}×{height})")
    if b"IDAT" not in seen:
        raise ImageError("the PNG file holds no pixel data (no IDAT chunk)")
    if b"acTL" in seen:
        raise ImageError("the file is an animation; save the one frame that is meant as a picture of its own")
    return PngFacts(
        size=(width, height),
        depth=depth,
        colour=colour,
        as_is=depth == 8 and colour == 2 and not seen & _MEANING,
        transparent=_transparent(trns, colour),
        kept=tuple(kept),
    )


def pixels_only(data: bytes, facts: PngFacts) -> bytes:
    """The same PNG with header, pixel data and end only; the compressed pixels are not touched."""
    if len(data) == len(SIGNATURE) + sum(stop - start for start, stop in facts.kept):
        return data  # there is nothing else in it
    return SIGNATURE + b"".join(data[start:stop] for start, stop in facts.kept)


def encode(pixels: npt.NDArray[np.uint8]) -> bytes:
    """Lossless 8-bit RGB PNG of (H, W, 3) uint8 pixels, without metadata.

    Every row uses the "Average" filter, and compression codes runs and letters only: on photographs smaller than a search
    over filters with full compression, and several times quicker (benchmarks/bench_image_check.py compares both). The
    pixels decide every digest, never these bytes.
    """
    height, width, _ = pixels.shape
    flat = pixels.reshape(height, 3 * width)
    mean = np.zeros((height, 3 * width), np.uint16)  # of the pixel above and the pixel to the left, 0 outside
    mean[1:] += flat[:-1]
    mean[:, 3:] += flat[:, :-3]
    mean >>= 1
    rows = np.empty((height, 1 + 3 * width), np.uint8)
    rows[:, 0] = 3  # filter type Average: each byte minus that mean, modulo 256
    np.subtract(flat, mean.astype(np.uint8), out=rows[:, 1:])
    squeeze = zlib.compressobj(1, zlib.DEFLATED, 15, 9, zlib.Z_RLE)
    body = squeeze.compress(rows.data) + squeeze.flush()
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return SIGNATURE + _chunk(b"IHDR", header) + _chunk(b"IDAT", body) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(body, zlib.crc32(kind)))


def _transparent(trns: bytes | None, colour: int) -> tuple[int, ...] | None:
    if trns is None or colour not in (0, 2):
        return None
    if len(trns) != 2 * _SAMPLES[colour]:
        raise ImageError(f"the PNG file is damaged: a tRNS chunk of {len(trns)} bytes does not fit its colour type")
    return struct.unpack(f">{_SAMPLES[colour]}H", trns)


def _printable(kind: bytes) -> str:
    return kind.decode("ascii") if kind.isalpha() else repr(kind)
