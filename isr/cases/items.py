"""Drafts → items: clean columns, named pictures, and the rules that hold over several cases."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import Problem
from ..images import BadImage
from .columns import clean_columns, is_missing
from .forms import Draft
from .shelf import Shelf, picture_name
from .types import Loaded

__all__ = ["Item", "clean", "rules_over_cases"]


@dataclass(frozen=True, slots=True)
class Item:
    """A case with clean columns and pictures that have names but were not looked at yet."""

    label: Callable[[str], str]
    prompt: str
    edited: Loaded
    original: Loaded | None
    control: Loaded | None
    columns: dict[str, Any]
    tags: dict[str, Any]
    names: dict[str, str]


def clean(draft: Draft, shelf: Shelf, problems: list[Problem]) -> Item:
    """One draft with typed columns; what is wrong with it is added to `problems`."""
    case, label = draft.case, draft.label
    prompt = _prompt(case.prompt, label("prompt"), problems)
    columns, tags = clean_columns(case, label, problems)
    edited: Loaded
    if is_missing(case.edited):
        others = f" (other columns found: {', '.join(map(str, case.tags))})" if case.tags else ""
        problems.append(
            Problem(label("edited"), f"no picture was given; every case needs the edit to be judged{others}")
        )
        edited = BadImage(label("edited"), "no picture was given")
    else:
        edited = shelf.put(case.edited, label("edited"), draft.base)
    original = None if is_missing(case.original) else shelf.put(case.original, label("original"), draft.base)
    control = None if is_missing(case.control) else shelf.put(case.control, label("control"), draft.base)
    if control is not None and columns["arm"] == "control":
        problems.append(Problem(label("control"), 'a row with arm="control" has no control of its own; leave it empty'))
    names = {role: picture_name(getattr(case, role), label(role)) for role in ("edited", "original", "control")}
    return Item(label, prompt, edited, original, control, columns, tags, names)


def _prompt(value: Any, label: str, problems: list[Problem]) -> str:
    if is_missing(value):
        problems.append(Problem(label, "no prompt; every case needs the edit prompt that was used"))
    elif not isinstance(value, str):
        problems.append(Problem(label, f"expected text, got {type(value).__name__} ({value!r:.40})"))
    elif not value.strip():
        problems.append(Problem(label, "the prompt is empty; every case needs the edit prompt that was used"))
    else:
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            problems.append(Problem(label, f"the prompt cannot be written as UTF-8: {error.reason}"))
            return ""
        return str(value)
    return ""


def rules_over_cases(items: Sequence[Item], *, ids: bool = True) -> list[Problem]:
    """Rules over several cases: originals for all or none, image ids for all or none, unique ids."""
    problems = []
    with_original = sum(item.original is not None for item in items)
    if 0 < with_original < len(items):
        problems += [
            Problem(
                item.label("original"),
                f"no original, but {with_original} of {len(items)} cases have one; judged with and without originals are "
                "different measurements: give all of them or none",
            )
            for item in items
            if item.original is None
        ]
    with_id = sum(item.columns["image_id"] is not None for item in items)
    if 0 < with_id < len(items):
        problems += [
            Problem(item.label("image_id"), f"empty, but {with_id} of {len(items)} cases have one; give all or none")
            for item in items
            if item.columns["image_id"] is None
        ]
    if ids:
        seen: dict[str, str] = {}
        for item in items:
            own = item.columns["id"]
            if own is None:
                continue
            if own in seen:
                problems.append(
                    Problem(
                        item.label("id"),
                        f"{own!r} is the id of {seen[own]} too; ids are unique (what repeats per image is image_id)",
                    )
                )
            else:
                seen[own] = item.label("id")
    return problems
