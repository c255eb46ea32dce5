"""Look at all pictures before the first call, on all cores."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from ..errors import Problem, ProblemsError
from .errors import ImageError
from .memo import FileMemo
from .ref import ImageRef

__all__ = ["check_images", "find_problems"]


def find_problems(
    images: Sequence[ImageRef], *, memo: FileMemo | None = None, threads: int | None = None
) -> list[str | None]:
    """Check every picture; per picture what is wrong with it, or None. Decoding runs in threads (it frees the GIL)."""

    def look(image: ImageRef) -> str | None:
        try:
            image.check(memo)
        except ImageError as error:
            return error.what
        return None

    workers = threads or min(8, os.cpu_count() or 1)
    if workers == 1 or len(images) < 2:
        return [look(image) for image in images]
    with ThreadPoolExecutor(workers, thread_name_prefix="isr-images") as pool:
        return list(pool.map(look, images))


def check_images(images: Sequence[ImageRef], *, memo: FileMemo | None = None, threads: int | None = None) -> None:
    """Check every picture.

    Raises:
        ProblemsError: listing all that cannot be judged, each by its name.
    """
    found = find_problems(images, memo=memo, threads=threads)
    problems = [Problem(image.name, what) for image, what in zip(images, found, strict=True) if what is not None]
    if problems:
        raise ProblemsError(problems)
