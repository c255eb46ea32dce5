"""Tables II to VII of the paper and what stands beside them, from the results of a run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from ..reporting.escape import csv_safe
from ..store import write_atomic
from .misleading import metric_table
from .papertable import PaperTable, TextCell
from .plan import NONE
from .reported import reported_for, reported_rows, reported_source
from .results import GROUP, Results
from .similarity import told as similarity_told
from .similarity_table import similarity_table
from .worst_case import worst_case_table

__all__ = ["FORMATS", "make_tables", "write_tables"]

FORMATS = ("md", "tex", "csv", "html")
_KINDS = {
    "original": "Original prompt",
    "unseen": "Unseen prompts",
    "unstated": "Prompts not stated",
    "": "All prompts",
}
_NAMES = {
    "psnr": "PSNR",
    "ssim": "SSIM",
    "vifp": "VIFp",
    "fsim": "FSIM",
    "lpips": "LPIPS",
    "clip": "CLIP",
    "fid": "FID",
}
_DASH = "–"


def _given(value: Any) -> bool:
    return value is not None and not (isinstance(value, float) and math.isnan(value))


def _percent(value: Any) -> str:
    return f"{100 * float(value):.1f}" if _given(value) else "n/a"


def _span(low: Any, high: Any) -> str:
    return f"[{_percent(low)}, {_percent(high)}]" if _given(low) or _given(high) else ""


def _points(value: Any) -> str:
    return f"{100 * float(value):+.1f}" if _given(value) else "n/a"


def _metric(name: str, value: Any) -> str:
    if not _given(value):
        return "n/a"
    number = float(value)
    return "inf" if math.isinf(number) else f"{number:.2f}" if name in ("psnr", "fid") else f"{number:.4f}"


def _head(name: str, results: Results) -> str:
    """The metric's name with the direction that an immunizer wants: edits far from the control edit."""
    told = results.conventions.get(name)
    closer = told[1] if told is not None else name not in ("lpips", "lpips-vgg", "fid")
    return f"{_NAMES.get(name, name)} {'↓' if closer else '↑'}"


#: What a judged run prints per prompt kind beside the metrics.
_JUDGED = ("n", "ISR ↑", "interval", "bounds", "band", "control", "excess", "excess interval")


def _block(results: Results, kinds: Sequence[str]) -> tuple[list[tuple[str, str]], list[str]]:
    """Heads of one table: metrics and ISR with everything that must stand beside it, per prompt kind."""
    heads: list[tuple[str, str]] = []
    for kind in kinds:
        group = _KINDS.get(kind, kind)
        heads += [(group, _head(name, results)) for name in results.experiment.metrics]
        heads += [(group, h) for h in (_JUDGED if results.report is not None else ("n",))]
    return heads, list(kinds)


def _measured(row: Mapping[str, Any] | None, results: Results) -> list[TextCell]:
    names = results.experiment.metrics
    width = len(names) + (len(_JUDGED) if results.report is not None else 1)
    if row is None:
        return [TextCell(_DASH)] * width
    cells = [TextCell(_metric(name, row.get(name))) for name in names]
    return [*cells, *([TextCell(str(int(row["n"])))] if results.report is None else _judged(row))]


def _judged(row: Mapping[str, Any]) -> list[TextCell]:
    """The cells under `_JUDGED`."""
    excess = _points(row.get("excess"))
    return [
        TextCell(str(int(row["n"]))), TextCell(_percent(row["isr"]), bold=bool(row.get("bold", False))),
        TextCell(_span(row["low"], row["high"])), TextCell(_span(row["bound_low"], row["bound_high"])),
        TextCell(_span(row["band_low"], row["band_high"])), TextCell(_percent(row.get("paired_control"))), TextCell(excess),
        TextCell("" if excess == "n/a" else f"[{_points(row['excess_low'])}, {_points(row['excess_high'])}]"),
    ]  # fmt: skip


def _reported(row: Mapping[str, Any] | None, results: Results) -> list[TextCell]:
    names = results.experiment.metrics
    if row is None:
        return _measured(None, results)
    cells = [TextCell(_metric(name, row.get(name)) if _given(row.get(name)) else _DASH) for name in names]
    if results.report is None:
        return [*cells, TextCell(_DASH)]
    return [*cells, TextCell(_DASH), TextCell(f"{100 * row['isr']:.0f}"), *[TextCell(_DASH)] * 6]


def _matrix_table(results: Results, rows: pd.DataFrame, key: str, caption: str, published: pd.DataFrame) -> PaperTable:
    kinds = [k for k in ("original", "unseen", "") if (rows["prompt_kind"] == k).any()]
    if not published.empty and (published["prompt_kind"] == "unstated").any():
        kinds.append("unstated")
    heads, kinds = _block(results, kinds)
    body: list[tuple[TextCell, ...]] = []
    for method in dict.fromkeys(rows["method"]):
        mine = {r["prompt_kind"]: r for r in rows[rows["method"] == method].to_dict("records")}
        cells = [c for kind in kinds for c in _measured(mine.get(kind), results)]
        body.append((TextCell("measured"), TextCell(str(method)), *cells))
    first = len(body)
    for (table, method), entries in published.groupby(["id", "method"], sort=False) if not published.empty else ():
        mine = {r["prompt_kind"]: r for r in entries.to_dict("records")}
        cells = [c for kind in kinds for c in _reported(mine.get(kind), results)]
        body.append((TextCell(f"reported, Table {table}"), TextCell(str(method)), *cells))
    notes = list(_notes(results))
    if len(body) > first:
        notes.append(
            f"reported: {reported_source()}; other pictures, seeds, judges or code than ours unless the result card says "
            "otherwise; never averaged or compared with measured rows."
        )
    return PaperTable(
        key,
        caption,
        (("", "origin"), ("", "method"), *heads),
        tuple(body),
        tuple(notes),
        frozenset(range(first, len(body))),
    )


def _notes(results: Results) -> list[str]:
    notes = [
        f"{_NAMES.get(n, n)}: {told[0]}" for n, told in results.conventions.items() if n in results.experiment.metrics
    ]
    if results.report is not None:
        notes.append(
            "ISR, interval (95 %, over images), bounds (whatever the missing verdicts were), band (strict to any), control (the "
            "same editor, prompt and seed without protection) in per cent; excess in points, on complete pairs. Bold: not "
            "significantly below the best of the methods (Holm over their pairs within the table's prompt kind; noise, the "
            "reference arm, is none of them)."
        )
        notes.append(f"{results.report.title}. Judges: {', '.join(results.report.judges)}.")
        notes += [w for w in results.report.warnings if "control rate" in w or "undetermined" in w]
    else:
        notes.append("Not judged: image metrics only, and there is no ISR.")
    missing = {n: r for n in results.experiment.metrics if (r := _reason(results, n))}
    notes += [f"{_NAMES.get(n, n)} n/a: {reason}" for n, reason in missing.items()]
    return notes


def _reason(results: Results, name: str) -> str:
    column = f"{name}_reason"
    if results.long.empty or column not in results.long:
        return ""
    return "; ".join(dict.fromkeys(str(r) for r in results.long[column] if r))


def make_tables(results: Results, *, also_reported: Sequence[str] = ()) -> list[PaperTable]:
    """Every table that the run has numbers for.

    Args:
        also_reported: further published tables ("II" … "VII") to print as tables of their own.
    """
    tables: list[PaperTable] = []
    long = results.long
    if not long.empty:
        plain = long[long["purifier"] == NONE]
        places = ["table", "source", "target", "purifier"]
        if results.report is None:
            plain = long  # a judged run has tables of its own for purifiers
        for (table, source, target, purifier), rows in plain.groupby(places, sort=False):
            where = f"white box on {target}" if source == target else f"transfer, {source} → {target}"
            what = "" if table == "main" else f"{table}: "
            key = "-".join([str(table), *([str(target)] if source == target else [str(source), "to", str(target)])])
            if purifier != NONE:
                key, where = f"{key}-{purifier}", f"{where}, after {purifier}"
            published = reported_for(results.experiment, str(source), str(target), str(table))
            published = published if purifier == NONE else published.iloc[:0]
            tables.append(_matrix_table(results, rows, _safe(key), f"Immunizers, {what}{where}", published))
        tables += _control_tables(results)
        tables += _purifier_tables(results)
        tables += _at_k(results)
        tables += _similarity(results)
        tables += _metrics_and_outcome(results)
    tables += _protection(results)
    for number in also_reported:
        tables.append(_published(number))
    return _told_apart(tables)


def _once(results: Results) -> list[dict[Any, Any]]:
    """Rows of the long table; a method that `also_in` shows in further tables once."""
    return results.long.drop_duplicates([c for c in GROUP if c != "table"]).to_dict("records")


def _told_apart(tables: Sequence[PaperTable]) -> list[PaperTable]:
    """Labels that differ in signs or case only would share a file: the second table of a key gets a number."""
    taken: set[str] = set()
    out = []
    for table in tables:
        key, number = table.key, 1
        while key.lower() in taken:
            number += 1
            key = f"{table.key}.{number}"
        taken.add(key.lower())
        out.append(replace(table, key=key))
    return out


def _control_tables(results: Results) -> list[PaperTable]:
    """Everything about the control arm, which is never printed in parts (docs/definitions.md, section 4)."""
    if results.report is None or "excess" not in results.long:
        return []
    heads = ("source", "target", "purifier", "method", "prompts", "ISR, all", "pairs", "ISR, paired", "control", "excess", "interval",
             "bounds", "ok→ok", "broken", "mended", "both defeated", "broken share", "noise arm", "Abbott")  # fmt: skip
    body = []
    reasons: dict[str, None] = {}
    for r in _once(results):
        if not _given(r.get("n_pairs")):
            continue
        shares = []
        for name in ("broken_share", "noise_broken_share", "abbott"):
            if name == "noise_broken_share" and r["arm"] == "noise":
                shares.append(_DASH)  # it is that arm
                continue
            shares.append(_percent(r[name]) if _given(r[name]) else "absent")
            if not _given(r[name]) and r[f"{name}_absent"]:
                reasons[f"{name.replace('_', ' ')} absent: {r[f'{name}_absent']}"] = None
        excess = _points(r["excess"])
        interval = "" if excess == "n/a" else f"[{_points(r['excess_low'])}, {_points(r['excess_high'])}]"
        cells = [str(r[c]) for c in ("source", "target", "purifier", "method", "prompt_kind")]
        cells += [
            _percent(r["isr"]),
            str(int(r["n_pairs"])),
            _percent(r["paired_isr"]),
            _percent(r["paired_control"]),
            excess,
            interval,
        ]
        cells.append(f"[{_points(r['excess_bound_low'])}, {_points(r['excess_bound_high'])}]")
        cells += [str(int(r[c])) for c in ("ok_ok", "broken", "mended", "defeated_defeated")]
        body.append(tuple(TextCell(c) for c in (*cells, *shares)))
    if not body:
        return []
    caption = "The control arm: the same edits without protection"
    return [PaperTable("control", caption, tuple(("", h) for h in heads), tuple(body), tuple(reasons))]


def _purifier_tables(results: Results) -> list[PaperTable]:
    purifiers = [NONE, *(p.title for p in results.experiment.purifiers)]
    if len(purifiers) < 2 or results.report is None:
        return []
    worst = worst_case_table(results)
    out = []
    for (table, source, target, kind), rows in results.long.groupby(
        ["table", "source", "target", "prompt_kind"], sort=False
    ):
        body = []
        for method in dict.fromkeys(rows["method"]):
            found = {r["purifier"]: r for r in rows[rows["method"] == method].to_dict("records")}
            where = (worst["table"] == table) & (worst["source"] == source) & (worst["target"] == target)
            last = worst[where & (worst["method"] == method) & (worst["prompt_kind"] == kind)].to_dict("records")
            lines = [*((p, found.get(p)) for p in purifiers), ("worst case per image", last[0] if last else None)]
            body += [(TextCell(str(method)), TextCell(str(name)), *_purified(row)) for name, row in lines]
        what = "" if table == "main" else f"{table}: "
        key = _safe(f"purifiers-{table}-{source}-to-{target}-{kind or 'all'}")
        out.append(
            PaperTable(
                key,
                f"Purifiers before the edit, {what}{source} → {target}, {_KINDS.get(str(kind), str(kind)).lower()}",
                tuple(("", h) for h in ("method", "purifier", *_JUDGED, "excess bounds")), tuple(body),
                (
                    "Each purifier has its own control: the same purifier on the unprotected original. Worst case per image: for every "
                    "edit the attacker takes the best of all purifiers, none among them; its control makes the same choice.",
                ),
            )
        )  # fmt: skip
    return out


def _purified(row: Mapping[Any, Any] | None) -> list[TextCell]:
    if row is None or not _given(row.get("isr")):
        return [TextCell(_DASH)] * (len(_JUDGED) + 1)
    low, high = (row.get(f"excess_bound_{end}") for end in ("low", "high"))
    return [*_judged(row), TextCell(f"[{_points(low)}, {_points(high)}]" if _given(low) else "")]


def _at_k(results: Results) -> list[PaperTable]:
    k = results.experiment.seeds.redraws
    if k < 2 or results.report is None or "isr_at_k" not in results.long:
        return []
    heads = [
        ("", h)
        for h in (
            "source",
            "target",
            "purifier",
            "method",
            "prompts",
            "ISR ↑",
            f"ISR@{k} ↑",
            "interval",
            "bounds",
            f"control@{k}",
            f"control@{k} bounds",
            "pairs",
        )
    ]
    body = []
    notes: dict[str, None] = {}
    for row in _once(results):
        given = _given(row.get("isr_at_k"))
        if not given and row.get("isr_at_k_reason"):
            notes[str(row["isr_at_k_reason"])] = None
        cells = [str(row[c]) for c in ("source", "target", "purifier", "method", "prompt_kind")]
        cells += [
            _percent(row["isr"]),
            _percent(row.get("isr_at_k")),
            _span(row.get("isr_at_k_low"), row.get("isr_at_k_high")),
            _span(row.get("isr_at_k_bound_low"), row.get("isr_at_k_bound_high")),
            _percent(row.get("control_at_k")),
            _span(row.get("control_at_k_bound_low"), row.get("control_at_k_bound_high")),
        ]
        cells.append(str(int(row["isr_at_k_n"])) if given else _DASH)
        body.append(tuple(TextCell(c) for c in cells))
    told = f"ISR@{k}: the attacker redraws {k} seeds and keeps the best edit, so all must fail; control@{k}: the same without protection; bounds: whatever the missing verdicts were. Per (image, prompt), in per cent."
    return [PaperTable("isr-at-k", f"The attacker redraws {k} seeds", tuple(heads), tuple(body), (told, *notes))]


def _similarity(results: Results) -> list[PaperTable]:
    frame = similarity_table(results)
    measures = results.experiment.similarity if results.report is not None else ()
    absent = {m: reason for m in measures if (reason := results.similarity_reason(m))}
    if frame.empty and not absent:
        return []
    heads = [("", h) for h in ("measure", "source", "target", "method", "similarity", "n", "ISR ↑", "interval")]
    body = [
        tuple(
            TextCell(c)
            for c in (
                str(r["measure"]), str(r["source"]), str(r["target"]), str(r["method"]), f"{r['similarity_low']:.2f} … {r['similarity_high']:.2f}",
                str(int(r["n"])), _percent(r["isr"]), _span(r["low"], r["high"]),
            )
        )
        for r in frame.to_dict("records")
    ]  # fmt: skip
    conventions = {m: results.conventions[m][0] for m in measures if m in results.conventions}
    notes = [similarity_told(m, conventions.get(m, "")) for m in measures]
    notes += [f"{m} n/a: {reason}" for m, reason in absent.items()]
    return [
        PaperTable("similarity", "ISR by similarity to the optimised prompt", tuple(heads), tuple(body), tuple(notes))
    ]


def _metrics_and_outcome(results: Results) -> list[PaperTable]:
    frame = metric_table(results)
    if frame.empty:
        return []
    heads = [("", h) for h in ("editor", "metric", "defeated", "not defeated", "AUC")]
    body = [
        tuple(
            TextCell(c)
            for c in (
                str(r["target"]), _NAMES.get(r["metric"], r["metric"]), str(r["n_defeated"]), str(r["n_not"]),
                f"{r['auc']:.2f}" if _given(r["auc"]) else "n/a",
            )
        )
        for r in frame.to_dict("records")
    ]  # fmt: skip
    note = (
        "AUC: how often the metric puts a defeated edit farther from the control edit (CLIP: from its prompt) than one that is not "
        "defeated. 1: always; 0.5: the metric says nothing about success; n/a: no value, or one of the two kinds is missing. White "
        "box, no purifier, all methods and prompts; descriptive, since edits of one image are not independent."
    )
    return [
        PaperTable(
            "metrics-and-outcome", "Image metrics against the judges' outcome", tuple(heads), tuple(body), (note,)
        )
    ]


def _protection(results: Results) -> list[PaperTable]:
    frame = results.protection
    if frame.empty:
        return []
    names = results.experiment.protection
    heads = [("", h) for h in ("method", "source", "images", "budget", "largest change (levels)", "largest L2")]
    heads += [("", _NAMES.get(n, n)) for n in names]
    body = []
    for r in frame.to_dict("records"):
        cells = [
            str(r["method"]),
            str(r["source"]) or _DASH,
            str(r["images"]),
            str(r["budget"]),
            str(r["levels_max"]),
            f"{r['l2_max']:.3f}",
        ]
        body.append(tuple(TextCell(c) for c in (*cells, *(_metric(n, r.get(n)) for n in names))))
    note = "Measured on the saved 8-bit pictures, over all of them; metrics are means against the originals."
    return [PaperTable("protection", "The immunized pictures", tuple(heads), tuple(body), (note,))]


def _published(number: str) -> PaperTable:
    """A published table by itself."""
    rows = reported_rows([number])
    metrics = [n for n in _NAMES if n in rows and rows[n].notna().any()]
    heads = [("", h) for h in ("origin", "editors", "method", "prompts", *(_NAMES[n] for n in metrics), "ISR")]
    body = []
    for r in rows.to_dict("records"):
        editors = str(r["target"]) if r["source"] == r["target"] else f"{r['source']} → {r['target']}"
        cells = ["reported", editors, str(r["method"]), str(r["prompt_kind"])]
        body.append(tuple(TextCell(c) for c in (*cells, *(_metric(n, r[n]) for n in metrics), f"{100 * r['isr']:.0f}")))
    return PaperTable(
        f"reported-{number}", f"Table {number} of the paper, as reported", tuple(heads), tuple(body), (reported_source(),),
        frozenset(range(len(body))),
    )  # fmt: skip


def _safe(name: str) -> str:
    """A file name of letters, digits, dot, dash and underscore."""
    return "".join(c if (c.isalnum() and c.isascii()) or c in "._-" else "-" for c in name).strip(".-") or "table"


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{title}</title><style>
body{{font:15px/1.45 system-ui,sans-serif;margin:2rem;color:#222}} table{{border-collapse:collapse;margin:1.5rem 0 .3rem}}
caption{{text-align:left;font-weight:600;padding-bottom:.4rem}} th,td{{padding:.25rem .6rem;text-align:right;white-space:nowrap}}
th:first-child,td:first-child,td:nth-child(2){{text-align:left}} thead tr:last-child th{{border-bottom:1px solid #888}}
tr.reported td{{color:#666;font-style:italic}} ul{{color:#555;font-size:.87em;max-width:60rem}}
</style></head><body>
<h1>{title}</h1>
{body}</body></html>
"""


def page(title: str, tables: Sequence[PaperTable]) -> str:
    """One HTML page without scripts or requests."""
    import html

    return _PAGE.format(title=html.escape(title), body="".join(t.html() for t in tables))


def write_tables(results: Results, folder: str | Path, *, also_reported: Sequence[str] = ()) -> list[Path]:
    """All tables in every format, and the long table as CSV; returns the files."""
    tables = make_tables(results, also_reported=also_reported)
    out = Path(folder)
    out.mkdir(parents=True, exist_ok=True)
    texts = {
        "tables.md": "\n".join(t.markdown() for t in tables),
        "tables.tex": "\n".join(t.latex() for t in tables),
        "tables.html": page(results.experiment.name, tables),
        "long.csv": str(csv_safe(results.long).to_csv(index=False)),
        **{f"{t.key}.csv": t.csv() for t in tables},
    }
    for name, text in texts.items():
        write_atomic(out / name, text.encode("utf-8"))
    return [out / name for name in texts]
