"""The report page: one self-contained file, no network, everything escaped (Jinja2 autoescape, strict CSP)."""

from __future__ import annotations

import base64
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from .charts import Row, axis, excess_strip, rows_of, strip
from .gallery import FACETS, Gallery, gallery
from .page import environment, inlined, json_island
from .reliability import doubts
from .tabulate import Table, control_table, cost_table, isr_table, judge_table, review_table
from .text import summary

if TYPE_CHECKING:
    from ..report import Report

__all__ = ["BUDGET", "notebook", "render", "write"]

#: Bytes of PNG that one page embeds (a third more once encoded): what a browser still opens at once.
BUDGET = 40_000_000
#: Prompts, and groups of any other column, in one chart; the table beside it holds all.
CHART_ROWS = 30
#: More prompts than this get no section of their own (a row each says nothing then, and takes long to compute).
MAX_PROMPTS = 300
#: More combinations than this get no control table of their own: every one is a bootstrap.
MAX_CROSSED = 200
#: What a control arm is kept apart by (docs/definitions.md, section 4).
ARM_COLUMNS = ("method", "editor", "prompt_kind", "purifier")
TITLES = {
    "method": "By method", "editor": "By editor", "prompt_kind": "Original and unseen prompts", "category": "By category",
    "purifier": "By purifier",
}  # fmt: skip


@dataclass(frozen=True)
class Chart:
    """rows with their marks; note: what is not shown."""

    title: str
    rows: tuple[tuple[Row, Markup], ...]
    note: str = ""


@dataclass(frozen=True)
class Section:
    """A heading with a chart and tables."""

    key: str
    title: str
    chart: Chart | None
    tables: tuple[Table, ...]


def render(report: Report, *, budget: int = BUDGET, assets: Path | None = None) -> str:
    """The page as text.

    Args:
        budget: bytes of PNG to embed; cases beyond it are listed without pictures.
        assets: write the pictures into this folder (beside the page) and refer to them there instead.
    """
    found = gallery(report, budget=budget, assets=assets)
    images = "data:" if assets is None else "data: 'self' file:"
    arm = report.control_arm
    return (
        environment()
        .get_template("report.html")
        .render(
            page=inlined(styles=("report.css",), scripts=("tables.js", "report.js"), images=images),
            report=report,
            lock=report.lock,
            lock_text=json.dumps(report.lock, indent=2, ensure_ascii=False),
            arm=arm,
            doubts=doubts(report),
            warnings=report.warnings,
            headline=strip(_headline_row(report)),
            excess=None
            if arm is None or arm.excess is None
            else excess_strip(arm.excess.difference, arm.excess.interval.low, arm.excess.interval.high, arm.bounds),
            axis=axis(),
            by_judge=report.by_judge().to_dict("records"),
            disagreements=len(report.disagreements),
            excess_axis=axis(("−100", "−50", "0", "+50", "+100")),
            sections=_sections(report),
            judge_tables=[t for t in (judge_table(report), review_table(report), cost_table(report)) if t is not None],
            gallery=found,
            data=json_island(found.data),
            facet_titles={name: name.replace("_", " ") for name in FACETS},
            pictures=[base64.b64encode(png).decode("ascii") for png in found.pictures],
            notes=_gallery_notes(found, assets),
            methods=report.methods_text(),
        )
    )


def write(report: Report, path: str | Path, *, assets: bool = False, budget: int = BUDGET) -> Path:
    """Write the page; with `assets`, the pictures as PNG files into the folder `<name>_pictures` beside it."""
    target = Path(path)
    folder = target.with_name(f"{target.stem}_pictures") if assets else None
    target.write_text(render(report, budget=budget, assets=folder), "utf-8")
    return target


def notebook(report: Report) -> str:
    """A small table for notebooks."""
    if not report.n:
        return f"<pre>{escape(summary(report))}</pre>"
    return f"<pre>{escape(summary(report))}</pre>" + str(report.by("method").to_html(float_format=lambda v: f"{v:.3f}"))


def _headline_row(report: Report) -> Row:
    rate = report.rate
    arm = report.control_arm
    return Row(
        label="all edits", n=rate.n, value=rate.value, low=report.interval.low, high=report.interval.high,
        bounds=report.bounds, band=report.band if len(report.judges) > 1 else (None, None),
        control=None if arm is None else arm.paired_control,
    )  # fmt: skip


def _sections(report: Report) -> list[Section]:
    """One section per column that varies, the control arm by what keeps it apart, and all of them crossed."""
    cases = [c for c in report.case_records if c.arm == "immunized"]
    varying = [name for name in FACETS if len({getattr(c, name) for c in cases}) > 1]
    controls = any(c.control is not None for c in cases)
    band = len(report.judges) > 1
    found = []
    for name in varying:
        table, records = isr_table(report, [name], f"ISR by {name.replace('_', ' ')}")
        tables = [table]
        rates: Mapping[Any, float | None] = {}
        if controls and name in ARM_COLUMNS:
            arm = control_table(report, [name], f"Control arm by {name.replace('_', ' ')}")
            if arm is not None:
                tables.append(arm[0])
                rates = {r[name]: r["paired_control"] for r in arm[1]}
        rows = rows_of(records, name, band=band, controls=rates)
        found.append(Section(name, TITLES[name], _chart(TITLES[name], rows), tuple(tables)))
    crossed = [name for name in ARM_COLUMNS if name in varying]
    if len(crossed) > 1:
        title = " × ".join(name.replace("_", " ") for name in crossed)
        tables = [isr_table(report, crossed, f"ISR by {title}")[0]]
        few = len({tuple(getattr(c, name) for name in crossed) for c in cases}) <= MAX_CROSSED
        if controls and few and (arm := control_table(report, crossed, f"Control arm by {title}")) is not None:
            tables.append(arm[0])
        found.append(Section("crossed", title[0].upper() + title[1:], None, tuple(tables)))
    prompts = Counter(c.prompt for c in cases)
    if 1 < len(prompts) <= MAX_PROMPTS and max(prompts.values()) > 1:
        table, records = isr_table(report, ["prompt"], "ISR by prompt")
        rows = rows_of(records, "prompt", band=band)
        found.append(Section("prompt", "By prompt", _chart("ISR by prompt", rows), (table,)))
    return found


def _chart(title: str, rows: list[Row]) -> Chart:
    """The groups with the most cases, the highest ISR first."""
    shown = sorted(rows, key=lambda r: -r.n)[:CHART_ROWS]
    shown.sort(key=lambda r: (-r.value, r.label))
    note = (
        "" if len(shown) == len(rows) else f"The {len(shown)} with the most edits of {len(rows)}; the table holds all."
    )
    return Chart(title, tuple((row, strip(row)) for row in shown), note)


def _gallery_notes(found: Gallery, assets: Path | None) -> list[str]:
    notes = []
    if found.left_out:
        notes.append(
            f"{found.left_out} cases are listed without pictures, which would make this page too large. "
            "With isr report RUN --html FILE --assets the pictures stand in a folder beside the page."
        )
    if found.not_kept:
        notes.append(f"{found.not_kept} cases: picture not kept in this run.")
    if found.unlisted:
        notes.append(f"{found.unlisted} more cases are in the tables but not listed here.")
    if assets is not None:
        notes.append(f"The pictures stand in the folder {assets.name} beside this page; keep the two together.")
    return notes
