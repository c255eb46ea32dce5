"""Values of a case's columns: what counts as missing, and each column's own type."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np

from ..errors import Problem
from ..manifest import COLUMNS, column_problems
from ..schema import ARMS, PROMPT_KINDS, TagValue

__all__ = ["clean_columns", "is_missing"]

_TEXT = ("id", "image_id", "method", "editor", "category", "purifier")


class HasColumns(Protocol):
    """What `EditCase` offers here."""

    @property
    def tags(self) -> Mapping[str, Any]: ...


def is_missing(value: object) -> bool:
    """None, NaN, pandas' NA and NaT, or empty text: the table says nothing here."""
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return True
    if isinstance(value, str):
        return not value.strip()
    return isinstance(value, (float, np.floating)) and math.isnan(value)


def clean_columns(
    case: HasColumns, label: Callable[[str], str], problems: list[Problem]
) -> tuple[dict[str, Any], dict[str, TagValue]]:
    """The typed columns and tags of a case; what cannot be read is added to `problems` and left out."""

    def wrong(name: str, what: str) -> None:
        problems.append(Problem(label(name), what))

    columns: dict[str, Any] = {name: _text(getattr(case, name), name, wrong) for name in _TEXT}
    columns["seed"] = _seed(getattr(case, "seed", None), wrong)
    columns["prompt_kind"] = _choice(getattr(case, "prompt_kind", None), "prompt_kind", PROMPT_KINDS, None, wrong)
    columns["arm"] = _choice(getattr(case, "arm", None), "arm", ARMS, "immunized", wrong)
    tags: dict[str, TagValue] = {}
    if not isinstance(case.tags, Mapping):
        wrong("tags", f"expected a mapping, got {type(case.tags).__name__}")
        return columns, tags
    for name, value in case.tags.items():
        if not isinstance(name, str):
            wrong("tags", f"names of tags are text, got {name!r}")
        elif name in COLUMNS:
            wrong("tags", f"{name!r} is a column of its own, not a tag")
        else:
            tags[name] = _tag(value, name, wrong)
    problems += [p for p in column_problems(tags, label("tags")) if "name of the results" in p.what]
    return columns, tags


def _text(value: Any, name: str, wrong: Callable[[str, str], None]) -> str | None:
    if is_missing(value):
        return None
    if isinstance(value, str):
        return str(value)
    if isinstance(value, (int, np.integer)) and not isinstance(value, bool):
        return str(int(value))
    if isinstance(value, (float, np.floating)) and float(value).is_integer():
        return str(int(value))
    wrong(name, f"expected text, got {type(value).__name__} ({value!r:.40})")
    return None


def _seed(value: Any, wrong: Callable[[str, str], None]) -> int | None:
    if is_missing(value):
        return None
    if isinstance(value, (int, np.integer)) and not isinstance(value, bool):
        return int(value)
    if isinstance(value, (float, np.floating)) and float(value).is_integer():
        return int(value)
    if isinstance(value, str) and re.fullmatch(r"\s*[+-]?[0-9]{1,30}(\.0*)?\s*", value):
        return int(value.partition(".")[0])
    wrong("seed", f"expected a whole number, got {value!r:.40}")
    return None


def _choice(
    value: Any, name: str, allowed: tuple[str, ...], default: str | None, wrong: Callable[[str, str], None]
) -> str | None:
    if is_missing(value):
        return default
    if isinstance(value, str) and value in allowed:
        return str(value)
    wrong(name, f"expected {' or '.join(map(repr, allowed))}, got {value!r:.40}")
    return default


def _tag(value: Any, name: str, wrong: Callable[[str, str], None]) -> TagValue:
    if value is None or (is_missing(value) and not isinstance(value, str)):
        return None
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        if math.isfinite(value):
            return value
        wrong(name, f"a tag must be finite, got {value!r}")
        return None
    if hasattr(value, "isoformat"):  # dates and times, pandas' included
        return str(value.isoformat())
    wrong(name, f"a tag is text, a number or true/false, got {type(value).__name__}")
    return None
