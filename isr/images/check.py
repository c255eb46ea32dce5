"""Look at all pictures before the first call, on all cores."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from typing import Any

from ..errors import Problem, ProblemsError
from .errors import ImageError
from .memo import FileMemo
from .ref import ImageRef

__all__ = ["check_images", "find_problems"]


def find_problems(
    images: Sequence[ImageRef], *, memo: FileMemo | None = None, threads: int | None = None
) -> list[str | None]:
    """Check every picture; per picture what is wrong with it, or None. Reading and decoding run in threads (they free the
    GIL)."""

    def look(image: ImageRef) -> str | None:
        try:
            image.check(memo)
        except ImageError as error:
            return error.what
        return None

    workers = threads or min(8, os.cpu_count() or 1)
    if workers == 1 or len(images) < 2:
        return _in_blocks(images, look, memo, map)
    with ThreadPoolExecutor(workers, thread_name_prefix="isr-images") as pool:
        return _in_blocks(images, look, memo, pool.map)


#: Pictures whose facts are asked of the memo at once; few enough for the second reading of a new file to find it in memory.
_BLOCK = 128
#: Pictures that one thread glances at in a row: handing over one by one costs as much as the glance.
_PART = 8


def _in_blocks(
    images: Sequence[ImageRef], look: Callable[[ImageRef], str | None], memo: FileMemo | None, each: Callable[..., Any]
) -> list[str | None]:
    found: list[str | None] = []
    remembered = memo is not None
    for start in range(0, len(images), _BLOCK):
        block = images[start : start + _BLOCK]
        if memo is not None and remembered:
            parts = [block[i : i + _PART] for i in range(0, len(block), _PART)]
            looks = list(chain.from_iterable(each(lambda part: [image.glance() for image in part], parts)))
            known = memo.recall(one for one in looks if one is not None)
            for image, one in zip(block, looks, strict=True):
                if one in known:
                    image.recognise(one, *known[one])
            # Where nothing was known the next block will be new too: it is read once then, not twice.
            remembered = bool(known) or not any(looks)
        unknown = [image for image in block if not image.checked]
        told = {id(image): what for image, what in zip(unknown, each(look, unknown), strict=True)}
        found += [told.get(id(image)) for image in block]
    return found


def check_images(images: Sequence[ImageRef], *, memo: FileMemo | None = None, threads: int | None = None) -> None:
    """Check every picture.

    Raises:
        ProblemsError: listing all that cannot be judged, each by its name.
    """
    found = find_problems(images, memo=memo, threads=threads)
    problems = [Problem(image.name, what) for image, what in zip(images, found, strict=True) if what is not None]
    if problems:
        raise ProblemsError(problems)
