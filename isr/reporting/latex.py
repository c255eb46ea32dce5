"""The ISR table in the paper's shape (Tables II–IV): one row per method, original and unseen prompts side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..errors import UsageError
from .escape import latex

if TYPE_CHECKING:
    from ..report import Report

__all__ = ["isr_table"]

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
        f"{latex(report.title)}, in per cent, with {latex(report.interval.method)} {report.interval.level:.0%} intervals. ".replace(
            "95%", r"95\%"
        )
        + f"Judges: {latex(', '.join(report.judges))}. Rubric {latex(report.lock['rubric']['name'])} "
        f"{latex(report.lock['rubric']['version'])} ({latex(report.lock['rubric_hash'][:8])})."
    )
    lines = [
        r"\begin{table}[t]", r"\centering", rf"\caption{{{caption}}}", rf"\begin{{tabular}}{{l{'c' * len(heads)}}}",
        r"\toprule", " & ".join([latex(by.replace("_", " ").capitalize()), *heads]) + r" \\", r"\midrule",
        *(" & ".join(row) + r" \\" for row in rows), r"\bottomrule", r"\end{tabular}", r"\end{table}",
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def _cell(row: Any) -> str:
    return f"{100 * row['isr']:.1f} [{100 * row['low']:.1f}, {100 * row['high']:.1f}]"
