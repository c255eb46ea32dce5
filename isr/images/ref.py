"""`ImageRef`: a picture that is checked once, remembered by its digest, and loaded again only when it is sent."""

from __future__ import annotations

import io
import os
import stat
import threading
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from ..errors import IntegrityError, UsageError
from . import png
from .arrays import MAX_BYTES, Pixels, from_array, is_tensor, pixel_digest
from .canonical import from_file_bytes, from_pil
from .errors import ImageError
from .memo import Facts, FileMemo, Look, file_hash

__all__ = ["CODEC", "BadImage", "ImageRef", "as_image"]

#: How pictures are encoded for judges; part of the cache key. Lossless, so the pixels say everything else.
CODEC = "png-rgb8"

# A PIL image loads its file on first use; two threads must not do that to one image.
_pil_lock = threading.Lock()

_Kind = Literal["path", "bytes", "pil", "array", "shrunk"]


class ImageRef:
    """One picture, lazily loaded; make it with `as_image`.

    A picture given as a path keeps no pixels in memory: they are read at each load and must still have the digest of the
    check. Arrays and PIL images are held by reference and verified in the same way, so that a change after the check is an
    error, not another measurement.

    Attributes:
        name: how the user called it (the path, or the argument and index).
        codec: how `png()` encodes.
        max_side: the longest side this picture was shrunk to, or None.
        problem: what a check found wrong with it, or None.
    """

    __slots__ = ("_facts", "_file", "_kind", "_seen", "_shrunk", "_source", "max_side", "name", "problem")

    codec = CODEC

    def __init__(self, source: Any, kind: _Kind, name: str, max_side: int | None = None) -> None:
        self._source = source
        self._kind: _Kind = kind
        self.name = name
        self.max_side = max_side
        self._facts: Facts | None = None
        self._file: str | None = None
        self._seen: Look | None = None
        self._shrunk: ImageRef | None = None
        self.problem: str | None = None

    def __repr__(self) -> str:
        state = f"{self.size[0]}×{self.size[1]}, {self.digest[:12]}" if self._facts else "not checked"
        return f"<ImageRef {self.name} ({state})>"

    # ------------------------------------------------------------------------------------------------------- facts

    def check(self, memo: FileMemo | None = None) -> Facts:
        """Read and validate the picture once; the pixels are freed, digest and size stay.

        Raises:
            ImageError: naming the picture and what is wrong with it.
        """
        if self.problem is not None:
            raise ImageError(self.problem, name=self.name)
        if self._facts is None:
            try:
                self._facts = self._look(memo)
            except ImageError as error:
                self.problem = error.what
                raise ImageError(error.what, name=self.name) from error
        return self._facts

    @property
    def checked(self) -> bool:
        """Whether it was looked at and found good."""
        return self._facts is not None and self.problem is None

    @property
    def digest(self) -> str:
        """sha256 of size and canonical pixels, 64 hex."""
        return self.check().digest

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of the canonical picture, in pixels."""
        return self.check().size

    @property
    def path(self) -> Path | None:
        """The file behind the picture, or None."""
        return Path(self._source) if self._kind == "path" else None

    def _look(self, memo: FileMemo | None) -> Facts:
        if self._kind in ("path", "bytes"):
            data, self._seen = self._bytes()
            self._file = file_hash(data)
            known = memo.get(self._file) if memo is not None else None
            if known is None:
                pixels, as_is = from_file_bytes(data)
                known = _facts(pixels, as_is=as_is)
            elif self._seen is None:
                return known
            if memo is not None:
                memo.put(self._file, known, self._seen)
            return known
        if self._kind == "shrunk":
            source: ImageRef = self._source
            side = self.max_side or 0
            known = memo.get_shrunk(source.check(memo).digest, side) if memo is not None else None
            if known is not None:
                return known
            facts = _facts(self._decode()[0])
            if memo is not None:
                memo.put_shrunk(source.digest, side, facts)
            return facts
        return _facts(self._decode()[0])

    def glance(self) -> Look | None:
        """How the file of an unchecked path looks now; None for everything else, and where it cannot be read (the check will
        say why)."""
        if self._kind != "path" or self._facts is not None or self.problem is not None:
            return None
        try:
            return _read_file(self._source)[1]
        except ImageError:
            return None

    def recognise(self, look: Look, file: str, facts: Facts) -> None:
        """Take the facts of the file that looked like this; instead of a check."""
        self._seen, self._file, self._facts = look, file, facts

    # ------------------------------------------------------------------------------------------------------ pixels

    def array(self) -> Pixels:
        """Canonical pixels: (H, W, 3) uint8, sRGB, read-only.

        Raises:
            ImageError: the picture cannot be read. IntegrityError: it changed since it was checked.
        """
        facts = self.check()
        try:
            pixels, trusted = self._decode()
        except ImageError as error:
            raise self._changed(f"it can no longer be read: {error.what}") from error
        if not trusted and pixel_digest(pixels) != facts.digest:
            raise self._changed("its pixels are others now")
        view = pixels.view()
        view.flags.writeable = False
        return view

    def png(self) -> bytes:
        """Lossless PNG of the canonical pixels; of a PNG file that is canonical already, its own pixel data untouched."""
        if self.check().as_is:
            data, look = self._read_again()
            if self._same(data, look):
                facts = png.inspect(data, checksums=False)  # the bytes are those of the check
                if facts.as_is:
                    return png.pixels_only(data, facts)
        return png.encode(self.array())

    def pil(self) -> Image.Image:
        """Canonical pixels as a PIL image of mode RGB (a copy)."""
        return Image.fromarray(np.array(self.array()))

    def shrunk(self, max_side: int) -> ImageRef:
        """The same picture with its longer side at most `max_side` pixels (Lanczos), itself where it fits already."""
        if isinstance(max_side, bool) or not isinstance(max_side, int) or max_side < 1:
            raise UsageError(f"max_side must be a positive whole number of pixels, got {max_side!r}")
        if max(self.size) <= max_side:
            return self
        if self._shrunk is None or self._shrunk.max_side != max_side:
            self._shrunk = ImageRef(self, "shrunk", self.name, max_side)
        return self._shrunk

    def _decode(self) -> tuple[Pixels, bool]:
        """Pixels, and whether they are known to be those of the check without hashing them again."""
        if self._kind in ("path", "bytes"):
            data, look = self._bytes() if self._facts is None else self._read_again()
            return from_file_bytes(data)[0], self._same(data, look)
        if self._kind == "pil":
            with _pil_lock:
                return from_pil(self._source), False
        if self._kind == "array":
            return from_array(self._source), False
        image: Image.Image = self._source.pil()
        scale = (self.max_side or 0) / max(image.size)
        width, height = (max(1, round(side * scale)) for side in image.size)
        return np.asarray(image.resize((width, height), Image.Resampling.LANCZOS)), False

    def _same(self, data: bytes, look: Look | None) -> bool:
        """Whether these bytes are those of the check: the very object, a file that looks the same, or one of the same hash."""
        return self._kind == "bytes" or (look is not None and look == self._seen) or file_hash(data) == self._file

    def _read_again(self) -> tuple[bytes, Look | None]:
        try:
            return self._bytes()
        except ImageError as error:
            raise self._changed(error.what) from error

    def _bytes(self) -> tuple[bytes, Look | None]:
        if self._kind == "bytes":
            return bytes(self._source), None
        return _read_file(self._source)

    def _changed(self, how: str) -> IntegrityError:
        return IntegrityError(
            f"{self.name} changed between the check and its use: {how}; run again without writing to it meanwhile"
        )


class BadImage:
    """In the place of a picture that cannot be judged (`on_bad_image="skip"`).

    Attributes:
        name: how the user called it. problem: what is wrong with it.
    """

    __slots__ = ("name", "problem")

    def __init__(self, name: str, problem: str) -> None:
        self.name = name
        self.problem = problem

    def __repr__(self) -> str:
        return f"<BadImage {self.name}: {self.problem}>"


def as_image(source: Any, *, name: str | None = None) -> ImageRef:
    """A picture of anything image-like; nothing is read yet (see `ImageRef.check`).

    Args:
        source: a path (str or Path), encoded bytes, a binary file object, a PIL image, a numpy array, a torch tensor,
            anything with `__array__`, a `{"bytes": …, "path": …}` mapping (as Hugging Face data sets hold), or an ImageRef.
        name: how to call it in messages; default: the path, or the kind of object.

    Raises:
        ImageError: the object is none of these.
    """
    if isinstance(source, ImageRef):
        return source
    if isinstance(source, (str, os.PathLike)):
        text = os.fspath(source)
        if not isinstance(text, str):
            text = os.fsdecode(text)
        label = text if name is None else name
        if not text.strip():
            raise ImageError("an empty path", name=label)
        if "\0" in text:
            raise ImageError("a path with a NUL character", name=label)
        if text.partition("://")[0] in ("http", "https", "ftp", "s3", "gs", "hf"):
            raise ImageError("pictures are not downloaded; fetch it first and pass the file", name=label)
        return ImageRef(text, "path", label)
    label = name or f"<{type(source).__name__}>"
    if isinstance(source, (bytes, bytearray, memoryview)):
        return ImageRef(bytes(source), "bytes", label)
    if isinstance(source, Image.Image):
        return ImageRef(source, "pil", label)
    if isinstance(source, Mapping) and set(source) <= {"bytes", "path"}:
        if source.get("bytes") is not None:
            return as_image(source["bytes"], name=name or source.get("path"))
        if source.get("path"):
            return as_image(source["path"], name=name)
    if isinstance(source, io.IOBase) or (hasattr(source, "read") and hasattr(source, "seek")):
        source.seek(0)
        data = source.read()
        if isinstance(data, bytes):
            return ImageRef(data, "bytes", label)
        raise ImageError("a text file object; open it in binary mode ('rb')", name=label)
    if is_tensor(source) or isinstance(source, np.ndarray) or hasattr(source, "__array__"):
        return ImageRef(source, "array", label)
    raise ImageError(
        f"expected a path, bytes, a PIL image, a numpy array or a torch tensor, got {type(source).__name__}", name=label
    )


def _facts(pixels: Pixels, *, as_is: bool = False) -> Facts:
    return Facts(pixel_digest(pixels), (pixels.shape[1], pixels.shape[0]), as_is)


def _read_file(text: str) -> tuple[bytes, Look]:
    path = os.path.expanduser(text) if text.startswith("~") else text
    try:
        mode = os.stat(path).st_mode  # before it is opened: opening a pipe would wait for its other end
        if not stat.S_ISREG(mode):
            raise ImageError("a folder" if stat.S_ISDIR(mode) else "not a regular file")
        with open(path, "rb", buffering=0) as file:
            # Before the bytes: a write from here on shows in the next look.
            state = os.fstat(file.fileno())
            if state.st_size > MAX_BYTES:
                raise ImageError(f"the file has {state.st_size:,} bytes; the limit is {MAX_BYTES:,}")
            data = file.read()
    except (FileNotFoundError, NotADirectoryError, UnicodeEncodeError):
        raise ImageError("no such file") from None
    except OSError as error:
        raise ImageError(f"cannot be read: {error.strerror or error}") from error
    where = (state.st_dev, state.st_ino, len(data), state.st_mtime_ns, state.st_ctime_ns)
    return data, Look(*where, zlib.crc32(data))
