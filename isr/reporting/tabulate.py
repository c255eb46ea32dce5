"""Tables of the report page: what a cell shows and what it sorts by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd

from ..schema import NoVerdict, Verdict
from .page import signed
from .text import percent, percent_range

if TYPE_CHECKING:
    from ..report import Report

__all__ = ["Cell", "Column", "Table", "control_table", "cost_table", "isr_table", "judge_table", "review_table"]


@dataclass(frozen=True)
class Column:
    """A heading. number: right-aligned and sorted as a number. facet: the table can be filtered by its values."""

    title: str
    number: bool = True
    facet: bool = False
    about: str = ""


@dataclass(frozen=True)
class Cell:
    """text: what is read. sort: what it sorts by (None sorts last). small: a remark beside it."""

    text: str
    sort: float | str | None = None
    small: str = ""


@dataclass(frozen=True)
class Table:
    """A table with a caption that says what it shows."""

    key: str
    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]

    @property
    def facets(self) -> list[tuple[int, str, list[str]]]:
        """(column index, title, values) of the columns to filter by, where there is a choice."""
        found = []
        for index, column in enumerate(self.columns):
            values = list(dict.fromkeys(row[index].text for row in self.rows)) if column.facet else []
            if len(values) > 1:
                found.append((index, column.title, values))
        return found


def _given(value: Any) -> bool:
    return value is not None and not pd.isna(value)


def _name(value: Any) -> Cell:
    text = str(value) if _given(value) else "—"
    return Cell(text, text)


def _count(value: Any) -> Cell:
    return Cell(str(int(value)), float(value)) if _given(value) else Cell("—")


def _rate(value: Any, small: str = "") -> Cell:
    return Cell(percent(float(value)), float(value), small) if _given(value) else Cell("n/a", None, small)


def _span(low: Any, high: Any) -> Cell:
    first, last = (float(v) if _given(v) else None for v in (low, high))
    return Cell(percent_range(first, last), first)


def _points_span(low: Any, high: Any) -> Cell:
    if not (_given(low) and _given(high)):
        return Cell("n/a")
    return Cell(f"[{signed(low)}, {signed(high)}]", float(low))


def _names(columns: Sequence[str], *, facet: bool) -> tuple[Column, ...]:
    return tuple(Column(c.replace("_", " "), number=False, facet=facet) for c in columns)


def isr_table(report: Report, columns: Sequence[str], caption: str) -> tuple[Table, list[Mapping[Any, Any]]]:
    """ISR by these columns; with the records behind it (for the chart)."""
    records: list[Mapping[Any, Any]] = list(report.by(*columns).to_dict("records"))
    many = len(report.judges) > 1
    heads = (
        *_names(columns, facet=len(columns) > 1),
        Column("n", about="edits of the immunized arm"),
        Column("ISR", about="share of edits that are defeated"),
        Column("interval", about="95 %, over images where they repeat"),
        Column("bounds", about="whatever the missing verdicts would have been"),
        *((Column("band", about="strict to any consensus"),) if many else ()),
        Column("mismatch", about="of the edits on which all judges with a verdict agree"),
        Column("degradation", about="of the edits on which all judges with a verdict agree"),
        Column("no verdict", about="judgements"),
    )
    rows = []
    for r in records:
        rows.append(
            (
                *(_name(r[c]) for c in columns),
                _count(r["n"]),
                _rate(r["isr"]),
                _span(r["low"], r["high"]),
                _span(r["bound_low"], r["bound_high"]),
                *((_span(r["band_low"], r["band_high"]),) if many else ()),
                _rate(r["mismatch_rate"], f"of {r['mismatch_n']}"),
                _rate(r["degradation_rate"], f"of {r['degradation_n']}"),
                _count(r["no_verdicts"]),
            )
        )
    return Table("isr-" + "-".join(columns), caption, heads, tuple(rows)), records


def control_table(report: Report, columns: Sequence[str], caption: str) -> tuple[Table, list[Mapping[Any, Any]]] | None:
    """The control arm by these columns: excess, cells, broken share beside the noise arm, Abbott; None without controls."""
    frame = report.control_by(*columns)
    if frame.empty:
        return None
    records: list[Mapping[Any, Any]] = list(frame.to_dict("records"))
    heads = (
        *_names(columns, facet=len(columns) > 1),
        Column("ISR, all", about="over all cases"),
        Column("pairs", about="both outcomes determined"),
        Column("ISR, paired"),
        Column("control", about="defeated without protection, on the same pairs"),
        Column("excess", about="points: ISR, paired − control"),
        Column("interval", about="of the excess, in points"),
        Column("bounds", about="of the excess over all cases, in points"),
        Column("ok→ok"),
        Column("broken", about="control ok, immunized edit defeated"),
        Column("mended", about="control defeated, immunized edit ok"),
        Column("both defeated"),
        Column("broken share", about="of the controls that were ok"),
        Column("noise arm", about="broken share under random noise of the same budget"),
        Column("Abbott", about="(ISR − c) / (1 − c)"),
        Column("open pairs", about="undetermined in either arm"),
    )
    rows = []
    for r in records:
        excess = (
            Cell(signed(r["excess"]), float(r["excess"])) if _given(r["excess"]) else Cell("absent", None, r["reason"])
        )
        rows.append(
            (
                *(_name(r[c]) for c in columns),
                _rate(r["isr"], f"of {r['n']}"),
                _count(r["n_pairs"]),
                _rate(r["paired_isr"]),
                _rate(r["paired_control"]),
                excess,
                _points_span(r["excess_low"], r["excess_high"]),
                _points_span(r["bound_low"], r["bound_high"]),
                *(_count(r[c]) for c in ("ok_ok", "broken", "mended", "defeated_defeated")),
                _share(r, "broken_share"),
                _share(r, "noise_broken_share"),
                _share(r, "abbott"),
                _count(r["pairs_undetermined"]),
            )
        )
    return Table("control-" + "-".join(columns), caption, heads, tuple(rows)), records


def _share(row: Mapping[Any, Any], name: str) -> Cell:
    value = row[name]
    if _given(value):
        return Cell(percent(float(value)), float(value))
    reason = str(row[f"{name}_absent"])
    return Cell(
        reason if name == "noise_broken_share" else "absent", None, "" if name == "noise_broken_share" else reason
    )


def judge_table(report: Report) -> Table:
    """Each judge alone."""
    heads = (
        Column("judge", number=False),
        Column("verdicts"),
        *(Column(title) for title in ("defeated", "interval", "mismatch", "degradation", "no verdict")),
    )
    rows = []
    for r in report.by_judge().to_dict("records"):
        absent = f"absent: {r['absent']}" if r["absent"] else ""
        rows.append(
            (
                _name(r["judge"]),
                Cell(f"{r['verdicts']} of {r['cases']}", float(r["verdicts"]), absent),
                _rate(r["defeated_rate"]),
                _span(r["defeated_low"], r["defeated_high"]) if _given(r["defeated_low"]) else Cell("n/a"),
                _rate(r["semantic_mismatch_rate"]),
                _rate(r["degradation_rate"]),
                Cell(str(r["no_verdicts"]), float(r["no_verdicts"]), str(r["why_no_verdict"])),
            )
        )
    return Table("judges", "Each judge alone, over its own verdicts", heads, tuple(rows))


def review_table(report: Report) -> Table | None:
    """Raters beside the judge lock (reviews, people): what they cover and how often they and the consensus agree."""
    names = sorted({j.judge for j in report.judgement_records} - set(report.judges))
    if not names:
        return None
    outcome = {o.case_id: o.value for o in report.outcomes}
    heads = (Column("rater", number=False), Column("cases"), Column("answered"), Column("cannot judge"), Column("defeated"),
             Column("agree with the consensus", about="where both are decided"))  # fmt: skip
    rows = []
    for name in names:
        mine = [j for j in report.judgement_records if j.judge == name]
        told = [(j.case_id, j.answer) for j in mine if isinstance(j.answer, Verdict)]
        both = [(a.defeated, outcome[c] == "success") for c, a in told if outcome[c] != "undetermined"]
        same = sum(a == b for a, b in both)
        rows.append(
            (
                _name(name),
                _count(len(mine)),
                _count(len(told)),
                _count(sum(isinstance(j.answer, NoVerdict) for j in mine)),
                Cell(f"{sum(a.defeated for _, a in told)} of {len(told)}", float(len(told))),
                Cell(f"{same} of {len(both)}", same / len(both)) if both else Cell("—"),
            )
        )
    caption = "Raters who cover a part of the cases, mostly disputed ones; they never enter the consensus"
    return Table("reviews", caption, heads, tuple(rows))


def cost_table(report: Report) -> Table | None:
    """US dollars per judge; None where no price is known."""
    frame = report.costs()
    if frame.empty or not frame["cost"].notna().any():
        return None
    heads = (Column("judge", number=False), Column("calls"), Column("from the cache"), Column("cost", about="US dollars"),
             Column("per decided case"), Column("lazy would have saved"), Column("batch would have saved"))  # fmt: skip

    def dollars(value: Any) -> Cell:
        return (
            Cell(f"${value:,.4f}" if value < 1 else f"${value:,.2f}", float(value))
            if _given(value)
            else Cell("unknown")
        )

    rows = []
    for r in frame.to_dict("records"):
        unknown = int(r["calls_without_price"])
        cost = dollars(r["cost"])
        rows.append(
            (
                _name(r["judge"]), _count(r["calls"]), _count(r["cached"]),
                Cell(cost.text, cost.sort, f"{unknown} calls without a price" if unknown else ""),
                dollars(r["per_decided"]), dollars(r["lazy_saving"]), dollars(r["batch_saving"]),
            )
        )  # fmt: skip
    return Table("costs", "What the received replies cost, in US dollars", heads, tuple(rows))
