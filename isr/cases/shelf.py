"""Pictures by where they came from."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import Problem
from ..images import BadImage, ImageError, ImageRef, as_image
from .types import Loaded

__all__ = ["Shelf", "picture_name", "settled"]


class Shelf:
    """Pictures by where they came from, so that an original shared by many cases is read once.

    Args:
        keep: how many pictures given as paths to remember (None: all of them, and objects as well).

    Attributes:
        refused: things that are no pictures at all, by label (only where all are remembered).
    """

    def __init__(self, keep: int | None = None) -> None:
        self._keep = keep
        self._held: OrderedDict[Any, tuple[ImageRef, str]] = OrderedDict()
        self.refused: list[Problem] = []

    def put(self, source: Any, label: str, base: Path | None) -> Loaded:
        """The picture of a source; relative paths start from `base`. Messages call it `label`."""
        if isinstance(source, Mapping) and source.get("path") and source.get("bytes") is None:
            return self.put(source["path"], label, base)
        name, place = label, source
        if isinstance(source, (str, os.PathLike)):
            text = os.fspath(source)
            name = text if isinstance(text, str) else os.fsdecode(text)
            place = name if base is None else os.path.join(base, os.path.expanduser(name))
        key: Any = place if isinstance(place, str) else id(source)
        held = self._held.get(key)
        if held is not None:
            self._held.move_to_end(key)
            return held[0]
        shown = label if name == label else f"{label} ({name})"
        try:
            ref = as_image(place, name=name)
        except ImageError as error:
            if self._keep is None:
                self.refused.append(Problem(shown, error.what))
            return BadImage(name, error.what)
        if self._keep is None:  # the reference keeps the object alive, so that its id stays its own
            self._held[key] = (ref, shown)
        elif isinstance(place, str):
            self._held[key] = (ref, shown)
            if len(self._held) > self._keep:
                self._held.popitem(last=False)
        return ref

    def all(self) -> list[tuple[ImageRef, str]]:
        """Every picture once, with the label of its first use."""
        return list(self._held.values())


def picture_name(source: Any, label: str) -> str:
    """How records call a picture: its path as the user wrote it, or its place in the input."""
    if isinstance(source, Mapping) and isinstance(source.get("path"), str):
        source = source["path"]
    return os.fsdecode(source) if isinstance(source, (str, os.PathLike)) else label


def settled(image: Loaded) -> Loaded:
    """A picture after its check: itself, or what is wrong with it."""
    if isinstance(image, ImageRef) and image.problem is not None:
        return BadImage(image.name, image.problem)
    return image
