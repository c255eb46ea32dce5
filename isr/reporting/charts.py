"""Intervals and bands as inline SVG, made by code: one line of marks per group, all on one scale from 0 to 100 %.

Horizontal places are percentages, so a chart fits a phone and a sheet of paper without scaling its text. What a mark means is
told by its shape (bar, line with ends, dot, diamond), never by colour alone, and every drawing carries its numbers in words.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from .page import signed
from .text import percent, percent_range

__all__ = ["Row", "axis", "excess_strip", "rows_of", "strip"]

#: Pixels; the rows of a chart touch, so that their grid lines join.
HEIGHT = 34
MIDDLE = HEIGHT / 2


@dataclass(frozen=True)
class Row:
    """One group of a chart (fractions).

    Attributes:
        label: its name. n: cases. value, low, high: ISR and interval. bounds, band: as in the report; a band's upper end
            may be absent. control: paired control rate where it is known.
    """

    label: str
    n: int
    value: float
    low: float
    high: float
    bounds: tuple[float, float]
    band: tuple[float | None, float | None]
    control: float | None = None

    def words(self) -> str:
        """The row as a sentence, for screen readers and tooltips."""
        told = f"{self.label}: {percent(self.value)} of {self.n}, interval {percent_range(self.low, self.high)}"
        told += f", bounds {percent_range(*self.bounds)}"
        if self.band[0] is not None:
            told += f", band {percent_range(*self.band)}"
        if self.control is not None:
            told += f", control {percent(self.control)}"
        return told


def rows_of(
    records: Sequence[Mapping[Any, Any]], column: str, *, band: bool, controls: Mapping[Any, float | None] | None = None
) -> list[Row]:
    """Rows of a chart from `Report.by(column)` records."""
    found = []
    for r in records:
        label = "(none)" if r[column] is None else str(r[column])
        found.append(
            Row(
                label=label, n=int(r["n"]), value=float(r["isr"]), low=float(r["low"]), high=float(r["high"]),
                bounds=(float(r["bound_low"]), float(r["bound_high"])),
                band=(_maybe(r["band_low"]), _maybe(r["band_high"])) if band else (None, None),
                control=(controls or {}).get(r[column]),
            )
        )  # fmt: skip
    return found


def _maybe(value: Any) -> float | None:
    return None if value is None or value != value else float(value)  # noqa: PLR0124 - NaN is the only value unlike itself


def strip(row: Row) -> Markup:
    """The marks of one row."""
    parts = [_grid()]
    low, high = row.band
    if low is not None:
        # after `lazy` the band has no upper end: it fades out by a dashed outline to the right edge
        parts.append(_bar("band" if high is not None else "band open", low, 1.0 if high is None else high, 12))
    if row.bounds[1] > row.bounds[0]:
        parts.append(_bar("bounds", *row.bounds, 5))
    parts.append(_interval("interval", row.low, row.high))
    if row.control is not None:
        parts.append(_mark("control", row.control, "M0 -5.5 5.5 0 0 5.5 -5.5 0Z"))
    parts.append(f'<circle class="point" cx="{_x(row.value)}" cy="{MIDDLE}" r="4.5"/>')
    return _svg(row.words(), parts)


def excess_strip(value: float, low: float, high: float, bounds: tuple[float, float]) -> Markup:
    """Excess in points on a scale from −100 to +100."""

    def place(v: float) -> float:
        return (min(max(v, -1.0), 1.0) + 1) / 2

    words = (
        f"excess {signed(value)} points, interval {signed(low)} to {signed(high)}, "
        f"bounds {signed(bounds[0])} to {signed(bounds[1])}"
    )
    parts = [_grid(zero=0.5), _bar("bounds", place(bounds[0]), place(bounds[1]), 5)]
    parts.append(_interval("interval", place(low), place(high)))
    parts.append(f'<circle class="point" cx="{_x(place(value))}" cy="{MIDDLE}" r="4.5"/>')
    return _svg(words, parts)


def axis(labels: Sequence[str] = ("0", "25", "50", "75", "100 %")) -> Markup:
    """The scale under (or over) a chart; hidden from screen readers, which get the numbers."""
    parts = []
    for index, label in enumerate(labels):
        at = index / (len(labels) - 1)
        anchor = "end" if index == len(labels) - 1 else "middle"
        parts.append(f'<text x="{_x(at)}" y="12" text-anchor="{anchor}">{Markup.escape(label)}</text>')
    return Markup('<svg class="axis" width="100%" height="16" aria-hidden="true">' + "".join(parts) + "</svg>")  # noqa: S704


def _x(fraction: float) -> str:
    return f"{100 * min(max(fraction, 0.0), 1.0):.2f}%"


def _grid(zero: float | None = None) -> str:
    lines = [
        f'<line class="grid{" zero" if at == zero else ""}" x1="{_x(at)}" x2="{_x(at)}" y1="0" y2="{HEIGHT}"/>'
        for at in (0.0, 0.25, 0.5, 0.75, 1.0)
    ]
    return "".join(lines)


def _bar(kind: str, low: float, high: float, height: float) -> str:
    return f'<rect class="{kind}" x="{_x(low)}" width="{_x(high - low)}" y="{MIDDLE - height / 2}" height="{height}" rx="2"/>'


def _interval(kind: str, low: float, high: float) -> str:
    ends = "".join(
        f'<line class="{kind}" x1="{_x(v)}" x2="{_x(v)}" y1="{MIDDLE - 5}" y2="{MIDDLE + 5}"/>' for v in (low, high)
    )
    return f'<line class="{kind}" x1="{_x(low)}" x2="{_x(high)}" y1="{MIDDLE}" y2="{MIDDLE}"/>{ends}'


def _mark(kind: str, at: float, path: str) -> str:
    return f'<svg class="mark" x="{_x(at)}" y="{MIDDLE}"><path class="{kind}" d="{path}"/></svg>'


def _svg(words: str, parts: Sequence[str]) -> Markup:
    told = Markup.escape(words)
    return Markup(  # noqa: S704 - numbers and our own marks; the words are escaped
        f'<svg class="strip" width="100%" height="{HEIGHT}" role="img"><title>{told}</title>{"".join(parts)}</svg>'
    )
