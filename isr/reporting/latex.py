"""The ISR table in the paper's shape (Tables II–IV): one row per method, original and unseen prompts side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from ..errors import UsageError
from .escape import latex

if TYPE_CHECKING:
    from ..comparing import Comparison
    from ..report import Report

__all__ = ["comparison_table", "isr_table"]

_KINDS = ("original", "unseen")


def isr_table(report: Report, by: str = "method") -> str:
    """LaTeX (booktabs). Each cell: ISR with its interval; the caption states consensus, judges, rubric and interval."""
    records = [c for c in report.case_records if c.arm == "immunized"]
    if not records:
        raise UsageError("to_latex: this run holds no case of the immunized arm")
    name = "ISR" if len(report.judges) > 1 else "Defeated"  # one judge alone is not the paper's ISR
    kinds = [k for k in _KINDS if any(c.prompt_kind == k for c in records)]
    if kinds and all(c.prompt_kind is not None for c in records):
        table = report.by(by, "prompt_kind")
        heads = [f"{k.capitalize()} Prompt{'s' if k == 'unseen' else ''}" for k in kinds]
        cells: dict[Any, dict[str, str]] = {}
        for row in table.to_dict("records"):
            cells.setdefault(row[by], {})[row["prompt_kind"]] = _cell(row)
        rows = [
            [latex(name if name is not None else "--"), *(c.get(k, "--") for k in kinds)] for name, c in cells.items()
        ]
    else:
        heads = [f"{name} $\\uparrow$"]
        rows = [
            [latex(row[by] if row[by] is not None else "--"), _cell(row)] for row in report.by(by).to_dict("records")
        ]
    if kinds and len(heads) == len(kinds) and heads[0].endswith(("Prompt", "Prompts")):
        heads = [f"{h} {name} $\\uparrow$" for h in heads]
    caption = (
        f"{latex(report.title)}, in per cent, with {_intervals(report.interval.method, report.interval.level)}. "
        + _judged(report.lock)
    )
    return _table(
        caption, [latex(by.replace("_", " ").capitalize()), *heads], [" & ".join(row) + r" \\" for row in rows]
    )


def comparison_table(found: Comparison) -> str:
    """LaTeX (booktabs) of compared methods, one row each; original and unseen prompts side by side, editors and purifiers one
    block of rows each. Bold as in the paper's tables, but by a test: not significantly below the best of its column."""
    records: list[Mapping[Any, Any]] = list(found.rates.to_dict("records"))
    judges = found.lock.get("judges", ())
    name = "ISR" if len(judges) > 1 else "Defeated"
    kinds = [k for k in _KINDS if any(r.get("prompt_kind") == k for r in records)]
    side_by_side = bool(kinds) and all(r.get("prompt_kind") in kinds for r in records)
    heads = [f"{k.capitalize()} Prompt{'s' if k == 'unseen' else ''} {name} $\\uparrow$" for k in kinds]
    if not side_by_side:
        kinds, heads = [""], [f"{name} $\\uparrow$"]
    of_block = [
        c for c in ("editor", "purifier", *(() if side_by_side else ("prompt_kind",))) if c in found.rates.columns
    ]
    blocks: dict[tuple[str, ...], dict[Any, dict[str, str]]] = {}
    for row in records:
        key = tuple("none" if _missing(row[c]) else str(row[c]) for c in of_block)
        kind = str(row["prompt_kind"]) if side_by_side else ""
        cell = rf"\textbf{{{_cell(row)}}}" if row["bold"] else _cell(row)
        blocks.setdefault(key, {}).setdefault(row["method"], {})[kind] = cell
    lines: list[str] = []
    for number, (key, methods) in enumerate(blocks.items()):
        if len(blocks) > 1:
            told = ", ".join(f"{c.replace('_', ' ')}: {v}" for c, v in zip(of_block, key, strict=True))
            lines += [r"\midrule"] * (number > 0)
            lines.append(rf"\multicolumn{{{1 + len(heads)}}}{{l}}{{\textit{{{latex(told)}}}}} \\")
        lines += [" & ".join([latex(m), *(c.get(k, "--") for k in kinds)]) + r" \\" for m, c in methods.items()]
    family = " \\(\\times\\) ".join(["editor", "prompt kind", "purifier"])
    methods_used = sorted({str(r["interval"]) for r in records})
    caption = (
        f"{'Immunization Success Rate' if name == 'ISR' else 'Defeated edits, single judge (not ISR as in the paper)'}, in per "
        f"cent, with {_intervals(', '.join(methods_used), found.level)}. Bold: not significantly below the best of its column "
        f"(paired on shared cases, Holm-adjusted within {family}, \\(\\alpha = {found.alpha:g}\\)). "
        + _judged(found.lock)
    )  # fmt: skip
    return _table(caption, ["Method", *heads], lines)


def _missing(value: Any) -> bool:
    return value is None or bool(pd.isna(value))


def _intervals(method: str, level: float) -> str:
    return f"{latex(method)} {100 * level:g}\\% intervals"


def _judged(lock: Mapping[str, Any]) -> str:
    """Who judged, and with which wording."""
    if not lock:
        return ""
    names = ", ".join(str(j["name"]) for j in lock["judges"])
    rubric = f"{latex(lock['rubric']['name'])} {latex(lock['rubric']['version'])} ({latex(lock['rubric_hash'][:8])})"
    consensus = f"; consensus: {latex(str(lock['consensus']).partition('#')[0])}" if len(lock["judges"]) > 1 else ""
    caveat = ""
    if any(j.get("identity", {}).get("provider") == "referee" for j in lock["judges"]):
        from ..data.miniworld import CAVEAT

        caveat = f" MiniWorld: {latex(CAVEAT).replace('×', '$' + chr(92) + 'times$')}"
    return f"Judges: {latex(names)}{consensus}. Rubric {rubric}.{caveat}"


def _table(caption: str, heads: Sequence[str], lines: Sequence[str]) -> str:
    parts = [
        r"\begin{table}[t]", r"\centering", rf"\caption{{{caption}}}", rf"\begin{{tabular}}{{l{'c' * (len(heads) - 1)}}}",
        r"\toprule", " & ".join(heads) + r" \\", r"\midrule", *lines, r"\bottomrule", r"\end{tabular}", r"\end{table}",
    ]  # fmt: skip
    return "\n".join(parts) + "\n"


def _cell(row: Any) -> str:
    return f"{100 * row['isr']:.1f} [{100 * row['low']:.1f}, {100 * row['high']:.1f}]"
