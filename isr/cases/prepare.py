"""Validate the whole input before the first call, or one case after another."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from ..errors import Problem, ProblemsError, UsageError
from ..images import FileMemo, ImageRef, find_problems
from .forms import drafts_of, stream_of
from .items import Item, clean, rules_over_cases
from .records import Builder, build
from .shelf import Shelf
from .types import EditCase, OnBadImage, Prepared, PreparedCase

__all__ = ["iter_prepared", "prepare"]


def prepare(
    edits: Any,
    prompts: Any = None,
    *,
    originals: Any = None,
    controls: Any = None,
    columns: Any = None,
    on_bad_image: OnBadImage = "raise",
    memo: FileMemo | None = None,
    max_side: int | None = None,
    threads: int | None = None,
) -> Prepared:
    """Validate the whole input before the first call.

    Args:
        edits: a list of pictures (with `prompts`), one picture (with one prompt), a list of `EditCase`s or of mappings, a
            data frame, or the path of a manifest (.csv, .tsv, .jsonl, .ndjson, .parquet).
        prompts: one edit prompt per picture.
        originals: one picture per edit, or None. Some but not all is an error: the two measurements never share a call.
        controls: one picture per edit, or None; entries may be None.
        columns: further columns as a dict or data frame, one value per edit (or one text or number for all of them).
        on_bad_image: "raise" lists every bad picture and stops; "skip" keeps their cases, as `NoVerdict("bad_image")`.
        memo: digests by file hash. max_side: shrink edits and originals for the judges to this longest side, in pixels.
        threads: for decoding; default: one per core, at most 8.

    Raises:
        ProblemsError: everything that is wrong, each with the item's name. UsageError: arguments that do not fit together.
    """
    if on_bad_image not in ("raise", "skip"):
        raise UsageError(f'on_bad_image must be "raise" or "skip", got {on_bad_image!r}')
    _check_max_side(max_side)
    problems: list[Problem] = []
    drafts = list(drafts_of(edits, prompts, originals=originals, controls=controls, columns=columns, problems=problems))
    if not drafts and not problems:
        raise UsageError("edits is empty; there is nothing to judge")
    problems += [Problem(draft.label("row"), draft.problem) for draft in drafts if draft.problem is not None]
    drafts = [draft for draft in drafts if draft.problem is None]
    shelf = Shelf()
    items = [clean(draft, shelf, problems) for draft in drafts]
    problems += rules_over_cases(items)

    pictures = shelf.all()
    found = find_problems([image for image, _ in pictures], memo=memo, threads=threads)
    bad = [Problem(label, what) for (_, label), what in zip(pictures, found, strict=True) if what is not None]
    bad += shelf.refused
    if problems or (bad and on_bad_image == "raise"):
        hint = 'Bad pictures alone can be left out with on_bad_image="skip".' if bad else ""
        raise ProblemsError([*problems, *bad], hint=hint)
    if max_side is not None:
        find_problems([i.shrunk(max_side) for i, _ in pictures if i.problem is None], memo=memo, threads=threads)
    return build(items, max_side, tuple(bad))


def iter_prepared(
    cases: Iterable[EditCase] | Iterable[Mapping[str, Any]] | str | os.PathLike[str],
    *,
    memo: FileMemo | None = None,
    max_side: int | None = None,
    threads: int | None = None,
) -> Iterator[PreparedCase]:
    """`prepare` for streams: memory does not grow with the pictures, and bad pictures are always skipped.

    Each case comes out in order, after the control row that it needs where that one is new. An explicit row with
    arm="control" is paired with the rows that come after it. What grows is one short hash per case.

    Args:
        cases: an iterable of `EditCase`s or of mappings, or the path of a manifest.

    Raises:
        ProblemsError: when a case is reached whose columns or prompt are wrong; the cases before it have come out.
    """
    _check_max_side(max_side)
    workers = threads or min(8, os.cpu_count() or 1)
    shelf = Shelf(keep=1024)
    builder = Builder(max_side)
    first: Item | None = None
    waiting: deque[tuple[Item, Future[None]]] = deque()

    def look(item: Item) -> None:
        pictures = [image for image in (item.edited, item.original, item.control) if isinstance(image, ImageRef)]
        find_problems(pictures, memo=memo, threads=1)
        if max_side is not None:
            find_problems([i.shrunk(max_side) for i in pictures if i.problem is None], memo=memo, threads=1)

    def settle() -> Iterator[PreparedCase]:
        item, future = waiting.popleft()
        future.result()
        made, case = builder.add(item)
        if made is not None:
            yield made
        yield case
        if builder.clash:
            raise ProblemsError(builder.clash)

    with ThreadPoolExecutor(workers, thread_name_prefix="isr-images") as pool:
        for draft in stream_of(cases):
            problems: list[Problem] = []
            if draft.problem is not None:
                problems.append(Problem(draft.label("row"), draft.problem))
            else:
                item = clean(draft, shelf, problems)
                problems += rules_over_cases([first, item] if first else [item], ids=False)
            if problems:
                while waiting:
                    yield from settle()
                raise ProblemsError(problems)
            first = first or item
            waiting.append((item, pool.submit(look, item)))
            # A slow source (an editor that makes the edits) is not waited for with cases that are ready.
            while waiting and (len(waiting) >= 4 * workers or waiting[0][1].done()):
                yield from settle()
        while waiting:
            yield from settle()


def _check_max_side(max_side: int | None) -> None:
    if max_side is not None and (isinstance(max_side, bool) or not isinstance(max_side, int) or max_side < 1):
        raise UsageError(f"max_side must be a positive whole number of pixels or None, got {max_side!r}")
