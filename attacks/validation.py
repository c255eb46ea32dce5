"""Checks of options: numbers and flags by their annotation, ranges, lists. Imports nothing heavy."""

from __future__ import annotations

import dataclasses
import math
import numbers
from collections.abc import Mapping, Sequence, Set
from typing import Any

from isr.errors import UsageError

__all__ = ["as_plain", "at_least", "check_types", "list_of", "one_of", "own_numbers"]

_KINDS = {"bool": "True or False", "int": "a whole number", "float": "a number"}


def check_types(cls: type, values: Mapping[str, Any]) -> None:
    """Refuse values of `bool`, `int` and `float` fields (also `… | None`) that are none, naming field and value.

    Text is no number and no flag: `"False"` would count as true. True is no number, 1 no flag, NaN nothing. Annotations are
    read as they are written and never evaluated; other fields are their class's business.

    Args:
        cls: a dataclass. values: by field name; fields that are left out are not looked at.
    """
    for field in dataclasses.fields(cls):
        written = field.type if isinstance(field.type, str) else getattr(field.type, "__name__", str(field.type))
        kinds = [kind.strip() for kind in written.split("|")]
        if field.name in values and all(kind in _KINDS or kind == "None" for kind in kinds):
            value = as_plain(values[field.name])
            if not any(_is(value, kind) for kind in kinds):
                expected = " or ".join(_KINDS.get(kind, kind) for kind in kinds)
                raise UsageError(f"{field.name} must be {expected}, not {value!r}")


def _is(value: Any, kind: str) -> bool:
    if kind == "None":
        return value is None
    if kind == "bool" or isinstance(value, bool):
        return kind == "bool" and isinstance(value, bool)
    return isinstance(value, int) or (kind == "float" and isinstance(value, float) and not math.isnan(value))


def as_plain(value: Any) -> Any:
    """A number or flag of NumPy, torch or another kind as Python's own, which can be recorded; everything else as it is."""
    if getattr(value, "ndim", None) == 0 and callable(item := getattr(value, "item", None)):
        value = item()
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return value
    return int(value) if isinstance(value, numbers.Integral) else float(value)


def own_numbers(record: Any) -> None:
    """Make the numbers and flags among a (frozen) dataclass's fields Python's own."""
    for field in dataclasses.fields(record):
        object.__setattr__(record, field.name, as_plain(getattr(record, field.name)))


def at_least(low: float, **values: float) -> None:
    """Refuse named numbers below `low`, infinite or NaN."""
    for name, value in values.items():
        if not math.isfinite(value):
            raise UsageError(f"{name} must be at least {low:g} and finite, not {value!r}")
        if value < low:
            raise UsageError(f"{name} must be at least {low:g}, not {value!r}")


def one_of(allowed: Sequence[str], **values: Any) -> None:
    """Refuse named words that are none of `allowed`."""
    for name, value in values.items():
        if value not in allowed:
            raise UsageError(f"{name} must be one of {', '.join(allowed)}, not {value!r}")


def list_of(
    kind: type | tuple[type, ...], value: Any, *, low: float = -math.inf, high: float = math.inf
) -> tuple[Any, ...] | None:
    """The items of anything that `list()` takes in an order of its own (no text): at least one, all of a kind, numbers Python's
    own, within [low, high], and True none of them. None where it is no such list."""
    if isinstance(value, str | bytes | Mapping | Set):
        return None
    try:
        items = tuple(map(as_plain, value))
    except TypeError:
        return None
    if not items or not all(isinstance(item, kind) and not isinstance(item, bool) for item in items):
        return None
    return items if kind is str or all(low <= item <= high for item in items) else None
