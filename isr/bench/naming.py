"""File names read by patterns: every way in which a name fits, and the pictures that belong to one another."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import Problem

__all__ = ["FIELD", "PICTURES", "Candidates", "Named", "matches", "ways"]

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
FIELD = re.compile(r"\{([a-z][a-z0-9_]*)\}")
_ENDING = re.compile(r"\.[A-Za-z]+")
#: More than this is said to be ambiguous without listing them.
_MOST = 64


@dataclass(frozen=True)
class Named:
    """A picture whose name fits a pattern. ways: what its fields may be ("a_b_c" fits "{image}_{id}" in two ways)."""

    name: str
    ways: tuple[Mapping[str, str], ...]


def ways(pattern: str, name: str) -> Iterator[dict[str, str]]:
    """Every reading of a name; shorter first fields first. A field that stands twice says the same both times; no field holds
    a slash. A pattern without a picture's ending takes any ending of letters."""
    tokens = FIELD.split(pattern)  # text, field, text, …
    open_end = Path(pattern).suffix.lower() not in PICTURES

    def rest(i: int, at: int, fields: dict[str, str]) -> Iterator[dict[str, str]]:
        if i == len(tokens):
            if _ENDING.fullmatch(name, at) if open_end else at == len(name):
                yield fields
            return
        known = fields.get(tokens[i]) if i % 2 else tokens[i]
        if known is not None:
            if name.startswith(known, at):
                yield from rest(i + 1, at + len(known), fields)
            return
        slash = name.find("/", at)
        for end in range(at + 1, (len(name) if slash < 0 else slash) + 1):
            if not tokens[i + 1] or name.startswith(tokens[i + 1], end):
                yield from rest(i + 1, end, {**fields, tokens[i]: name[at:end]})

    yield from rest(0, 0, {})


def matches(role: str, pattern: str, names: Sequence[str], problems: list[Problem]) -> list[Named]:
    """The names that fit a pattern; two that say the same are a problem."""
    found = []
    seen: dict[tuple[tuple[str, str], ...], str] = {}
    for name in names:
        read = []
        for fields in ways(pattern, name):
            read.append(fields)
            if len(read) == _MOST:
                break
        if not read:
            continue
        found.append(Named(name, tuple(read)))
        key = tuple(sorted(read[0].items()))
        if len(read) == 1 and key in seen:
            problems.append(
                Problem(name, f"and {seen[key]} are both {role} of {read[0]}; keep one, or make files.{role} narrower")
            )
        seen[key] = name
    return found


class Candidates:
    """The pictures of one role, found by their image."""

    def __init__(self, found: Sequence[Named]) -> None:
        self._by_image: dict[str, list[tuple[Mapping[str, str], str]]] = {}
        for one in found:
            for fields in one.ways:
                self._by_image.setdefault(fields["image"], []).append((fields, one.name))

    def of(self, fields: Mapping[str, str]) -> list[str]:
        """Those that agree in every field both have."""
        fitting = [
            name
            for other, name in self._by_image.get(fields["image"], ())
            if all(fields.get(k, v) == v for k, v in other.items())
        ]
        return list(dict.fromkeys(fitting))
