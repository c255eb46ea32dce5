"""A table as people read it: heads in two levels, rows, notes. Rendered as Markdown, LaTeX, HTML and CSV.

Every text of the run (labels, prompts, reasons) is escaped in each form.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass, field

import pandas as pd

from ..reporting.escape import csv_safe, latex

__all__ = ["PaperTable", "TextCell"]


@dataclass(frozen=True)
class TextCell:
    """text: what is read. bold: not significantly below the best."""

    text: str
    bold: bool = False


@dataclass(frozen=True)
class PaperTable:
    """One table.

    Attributes:
        key: file name. caption: what it shows. heads: (group, head) per column; group "" stands alone. rows: cells per column.
        notes: under the table. reported: rows that hold published numbers, by index.
    """

    key: str
    caption: str
    heads: tuple[tuple[str, str], ...]
    rows: tuple[tuple[TextCell, ...], ...]
    notes: tuple[str, ...] = ()
    reported: frozenset[int] = field(default_factory=frozenset)

    @property
    def columns(self) -> list[str]:
        return [f"{group}: {head}" if group else head for group, head in self.heads]

    def markdown(self) -> str:
        lines = [f"**{_md(self.caption)}**", "", "| " + " | ".join(map(_md, self.columns)) + " |"]
        lines.append("|" + "---|" * len(self.heads))
        for row in self.rows:
            lines.append("| " + " | ".join(f"**{_md(c.text)}**" if c.bold else _md(c.text) for c in row) + " |")
        return "\n".join([*lines, "", *(f"- {_md(n)}" for n in self.notes)]) + "\n"

    def latex(self) -> str:
        """booktabs; needs no other package."""
        groups = _runs([g for g, _ in self.heads])
        over = " & ".join(rf"\multicolumn{{{n}}}{{c}}{{{latex(g)}}}" if g else " & ".join([""] * n) for g, n in groups)
        lines = [
            r"\begin{table*}[t]", r"\centering", rf"\caption{{{latex(self.caption)}}}",
            rf"\begin{{tabular}}{{l{'c' * (len(self.heads) - 1)}}}", r"\toprule",
            *([over + r" \\"] if any(g for g, _ in groups) else []),
            " & ".join(latex(h) for _, h in self.heads) + r" \\", r"\midrule",
        ]  # fmt: skip
        for i, row in enumerate(self.rows):
            if i in self.reported and i - 1 not in self.reported and i > 0:
                lines.append(r"\midrule")
            lines.append(" & ".join(rf"\textbf{{{latex(c.text)}}}" if c.bold else latex(c.text) for c in row) + r" \\")
        notes = [rf"\par\smallskip\footnotesize {latex(note)}" for note in self.notes]
        return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", *notes, r"\end{table*}"]) + "\n"

    def html(self) -> str:
        groups = "".join(
            f'<th colspan="{n}" scope="colgroup">{html.escape(g)}</th>' for g, n in _runs([g for g, _ in self.heads])
        )
        heads = "".join(f'<th scope="col">{html.escape(h)}</th>' for _, h in self.heads)
        body = []
        for i, row in enumerate(self.rows):
            cells = "".join(
                f"<td><strong>{html.escape(c.text)}</strong></td>" if c.bold else f"<td>{html.escape(c.text)}</td>"
                for c in row
            )
            body.append(f'<tr class="{"reported" if i in self.reported else "measured"}">{cells}</tr>')
        notes = "".join(f"<li>{html.escape(n)}</li>" for n in self.notes)
        return (
            f'<table id="{html.escape(self.key)}"><caption>{html.escape(self.caption)}</caption><thead><tr>{groups}</tr>'
            f"<tr>{heads}</tr></thead><tbody>{''.join(body)}</tbody></table>"
            + (f"<ul>{notes}</ul>" if notes else "")
            + "\n"
        )

    def csv(self) -> str:
        frame = pd.DataFrame([[c.text for c in row] for row in self.rows], columns=self.columns)
        return str(csv_safe(frame).to_csv(index=False))


def _runs(groups: Sequence[str]) -> list[tuple[str, int]]:
    runs: list[tuple[str, int]] = []
    for group in groups:
        if runs and runs[-1][0] == group:
            runs[-1] = (group, runs[-1][1] + 1)
        else:
            runs.append((group, 1))
    return runs


def _md(text: str) -> str:
    """Text for a Markdown table cell: no markup, no line breaks, no HTML."""
    clean = " ".join(str(text).split())
    for mark in "\\`*_[]<>|#":
        clean = clean.replace(mark, "\\" + mark)
    return clean
