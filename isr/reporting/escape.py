"""Escaping for LaTeX and CSV. (HTML is escaped by Jinja2's autoescape.) Prompts, judge prose, tags and file names are
foreign text: none of it may become a command of the document or a formula of a spreadsheet."""

from __future__ import annotations

import re
import unicodedata
from typing import Any

import pandas as pd

__all__ = ["csv_cell", "csv_safe", "latex"]

_LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%", "_": r"\_",
    "^": r"\textasciicircum{}", "~": r"\textasciitilde{}", "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}",
    '"': r"\textquotedbl{}", "`": r"\textasciigrave{}", "–": "--", "—": "---", "…": r"\ldots{}", "×": r"$\times$",
    "→": r"$\rightarrow$", "≥": r"$\geq$", "≤": r"$\leq$", "ε": r"$\epsilon$", "α": r"$\alpha$", "κ": r"$\kappa$",
}  # fmt: skip
_FORMULA = re.compile(r"\A[\s]*[=+\-@\t\r]")


def latex(text: object) -> str:
    """Plain text for LaTeX: every special character escaped, line breaks and control characters turned into spaces."""
    out = []
    for char in str(text):
        if char in _LATEX:
            out.append(_LATEX[char])
        elif unicodedata.category(char).startswith("C") or char in "\u2028\u2029":
            out.append(" ")
        else:
            out.append(char)
    return "".join(out)


def csv_cell(value: Any) -> Any:
    """Text that a spreadsheet would run as a formula gets a leading apostrophe; numbers pass."""
    return "'" + value if isinstance(value, str) and _FORMULA.match(value) else value


def csv_safe(table: pd.DataFrame) -> pd.DataFrame:
    """The table with every text cell and heading made safe for spreadsheets."""
    safe = table.copy()
    for column in safe.columns:
        if safe[column].dtype == object or pd.api.types.is_string_dtype(safe[column].dtype):
            safe[column] = safe[column].map(csv_cell)
    safe.columns = [csv_cell(str(c)) for c in safe.columns]
    return safe
