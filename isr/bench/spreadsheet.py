"""CSV and TSV as spreadsheets write them: quoted texts with commas and line breaks, and crooked rows named by their line."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path

from ..errors import UsageError

__all__ = ["rows_of"]


def rows_of(path: Path, argument: str) -> Iterator[tuple[int, dict[str, str]]]:
    """(line in the file, row by head); a cell that is missing at the end of a row is an empty text.

    Raises:
        UsageError: not readable, or a row with more cells than the head.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")  # line breaks inside of quoted texts stay as they are
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{argument}: cannot read {str(path)!r}: {error}") from error
    table = csv.DictReader(
        io.StringIO(text, newline=""), delimiter="\t" if path.suffix.lower() == ".tsv" else ",", restval=""
    )
    try:
        for row in table:
            if None in row:
                raise UsageError(
                    f"{argument}: {path.name}, line {table.line_num}: more fields than the head names; quote texts that hold commas"
                )
            yield table.line_num, row
    except csv.Error as error:
        raise UsageError(f"{argument}: {path.name}, line {table.line_num}: {error}") from error
