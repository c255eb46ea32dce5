"""Rows of cases from CSV, JSONL and Parquet manifests, data frames and mappings, with the names of their columns checked."""

from __future__ import annotations

import csv
import difflib
import io
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import IO, Any

from .errors import Problem, ProblemsError, UsageError, missing_extra
from .schema import CaseRecord

__all__ = [
    "COLUMNS",
    "IMAGE_COLUMNS",
    "SUFFIXES",
    "Row",
    "column_problems",
    "frame_rows",
    "is_frame",
    "is_manifest",
    "mapping_rows",
    "read_rows",
]

#: Columns that hold pictures.
IMAGE_COLUMNS = ("edited", "original", "control")
#: Every column with a meaning (docs/definitions.md, section 1); any other column is a free tag.
COLUMNS = (
    "edited", "prompt", "original", "control", "id", "image_id", "method", "editor", "prompt_kind", "category", "seed",
    "purifier", "arm",
)  # fmt: skip
#: Names that tables of results use themselves.
_RESERVED = tuple(name for name in CaseRecord.model_fields if name not in (*COLUMNS, "tags"))
SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")


@dataclass(frozen=True)
class Row:
    """One row of a table of cases.

    Attributes:
        where: how to find it again ("cases.csv line 5"). values: by column name, missing ones absent or empty.
        base: the folder that relative paths start from, or None for the working directory.
        problem: why the row could not be read, or None.
    """

    where: str
    values: Mapping[str, Any]
    base: Path | None = None
    problem: str | None = None


def is_manifest(value: object) -> bool:
    """A path whose suffix is that of a manifest."""
    return isinstance(value, (str, os.PathLike)) and str(os.fspath(value)).lower().endswith(SUFFIXES)


def is_frame(value: object) -> bool:
    """A pandas or polars data frame, recognised without importing either."""
    module = type(value).__module__.partition(".")[0]
    return module in ("pandas", "polars") and type(value).__name__ == "DataFrame"


def read_rows(path: str | os.PathLike[str]) -> Iterator[Row]:
    """Rows of a manifest, one at a time. Relative paths in it are relative to its folder.

    CSV and TSV: UTF-8 (with or without a byte-order mark) or UTF-16 with one, comma, semicolon or tab, every value text,
    an empty value missing. JSONL: one object per line. Parquet needs the extra `parquet`.

    Raises:
        UsageError: no such file, another kind of file, a header without the columns `edited` and `prompt`.
        ProblemsError: unknown columns that look like a known one, or lines that cannot be read.
    """
    file = Path(path).expanduser()
    kind = file.suffix.lower()
    if kind not in SUFFIXES:
        raise UsageError(f"{file}: a manifest ends in {', '.join(SUFFIXES)}, got {kind or 'no suffix'!r}")
    if not file.is_file():
        raise UsageError(f"{file}: no such manifest; paths are relative to the working directory {Path.cwd()}")
    rows = _csv(file) if kind in (".csv", ".tsv") else _jsonl(file) if kind in (".jsonl", ".ndjson") else _parquet(file)
    first = next(rows, None)
    if first is None:
        raise UsageError(f"{file}: the manifest holds no rows")
    yield first
    yield from rows


def frame_rows(frame: Any, *, where: str = "row", base: Path | None = None) -> Iterator[Row]:
    """Rows of a pandas or polars data frame; `where` is followed by the position, counted from 0."""
    names = [str(name) for name in frame.columns]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UsageError(f"the data frame has the column {twice[0]!r} more than once; rename one")
    _check_header(names, "the data frame")
    records = frame.itertuples(index=False, name=None) if hasattr(frame, "itertuples") else frame.iter_rows()
    for index, record in enumerate(records):
        yield Row(f"{where} {index}", dict(zip(names, record, strict=True)), base)


def mapping_rows(rows: Iterable[Any], *, where: str = "row") -> Iterator[Row]:
    """Rows given as mappings of column name to value (a list of dicts, a Hugging Face data set)."""
    checked: set[str] = set()
    for index, values in enumerate(rows):
        if not isinstance(values, Mapping):
            raise UsageError(f"{where} {index}: expected a mapping of columns, got {type(values).__name__}")
        place = f"{where} {index}"
        _check_new(values, checked, place)
        yield Row(place, values)


# --------------------------------------------------------------------------------------------------- column names


def column_problems(names: Iterable[str], where: str) -> list[Problem]:
    """What is wrong with the names of columns: near misses of known ones, and names that result tables use."""
    found = []
    for name in names:
        if name in COLUMNS or name == "tags":
            continue
        if name in _RESERVED:
            found.append(Problem(where, f"the column {name!r} is a name of the results' own; rename or drop it"))
        elif (meant := _near(name)) is not None:
            found.append(Problem(where, f"unknown column {name!r}; did you mean {meant!r}? (rename a tag that is not)"))
        elif not name.strip():
            found.append(Problem(where, "a column without a name; name or drop it"))
    return found


def _near(name: str) -> str | None:
    plain = re.sub(r"[^a-z0-9]", "", name.lower())
    for known in COLUMNS:
        bare = known.replace("_", "")
        if plain in (bare, bare + "s") or (len(plain) >= 4 and _one_slip(plain, bare)):
            return known
    return None


def _one_slip(a: str, b: str) -> bool:
    """One letter too many, too few, wrong, or two neighbours swapped. A final digit is a numbered tag (seed2), no slip."""
    if len(a) < len(b):
        a, b = b, a
    start = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), len(b))
    if len(a) == len(b):
        swapped = a[start + 2 :] == b[start + 2 :] and a[start : start + 2] == b[start : start + 2][::-1]
        return a[start + 1 :] == b[start + 1 :] or swapped
    return len(a) == len(b) + 1 and a[start + 1 :] == b[start:] and not a[start].isdigit()


def _check_header(names: list[str], where: str) -> None:
    problems = column_problems(names, where)
    for needed in ("edited", "prompt"):
        if needed not in names:
            near = difflib.get_close_matches(needed, names, n=1, cutoff=0.5)
            hint = f" (is it {near[0]!r}?)" if near else ""
            problems.append(
                Problem(where, f"the column {needed!r} is missing{hint}; columns found: {', '.join(names)}")
            )
    if problems:
        raise ProblemsError(problems, hint=f"Known columns: {', '.join(COLUMNS)}; others are free tags.")


def _check_new(values: Mapping[str, Any], checked: set[str], where: str) -> None:
    new = [str(name) for name in values if name not in checked]
    problems = column_problems(new, where)
    if problems:
        raise ProblemsError(problems, hint=f"Known columns: {', '.join(COLUMNS)}; others are free tags.")
    checked.update(new)


# ---------------------------------------------------------------------------------------------------------- files


def _csv(file: Path) -> Iterator[Row]:
    try:
        with _text(file) as stream:
            head = stream.readline()
            stream.seek(0)
            tab = file.suffix.lower() == ".tsv" or ("\t" in head and "," not in head)
            delimiter = "\t" if tab else ";" if ";" in head and "," not in head else ","
            yield from _csv_rows(file, csv.reader(stream, delimiter=delimiter, strict=True), delimiter)
    except UnicodeDecodeError as error:
        raise _not_utf8(file, error) from error


def _csv_rows(file: Path, reader: Any, delimiter: str) -> Iterator[Row]:
    try:
        names = [name.strip() for name in next(reader, [])]
        if not names:
            raise UsageError(f"{file}: the manifest is empty; its first line names the columns")
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise UsageError(f"{file}: the column {twice[0]!r} stands there more than once; rename one")
        _check_header(names, str(file))
        line = reader.line_num
        for values in reader:
            where, line = f"{file} line {line + 1}", reader.line_num
            if not values:
                continue
            if len(values) == len(names):
                yield Row(where, dict(zip(names, values, strict=True)), file.parent)
            else:
                what = f"{len(values)} values for {len(names)} columns; quote values that hold {delimiter!r}"
                yield Row(where, {}, problem=what)
    except csv.Error as error:
        raise UsageError(f"{file} line {reader.line_num}: not valid CSV: {error}") from error


def _jsonl(file: Path) -> Iterator[Row]:
    checked: set[str] = set()
    with _text(file) as stream:
        try:
            for number, line in enumerate(stream, 1):
                if not line.strip():
                    continue
                where = f"{file} line {number}"
                try:
                    values = json.loads(line, object_pairs_hook=_unique, parse_constant=_no_constant)
                except (ValueError, RecursionError) as error:
                    yield Row(where, {}, problem=f"not a JSON object: {error}")
                    continue
                if not isinstance(values, dict):
                    yield Row(where, {}, problem=f"expected a JSON object, got {type(values).__name__}")
                    continue
                _check_new(values, checked, where)
                yield Row(where, values, file.parent)
        except UnicodeDecodeError as error:
            raise _not_utf8(file, error) from error


def _parquet(file: Path) -> Iterator[Row]:
    try:
        from pyarrow import parquet
    except ImportError:
        raise missing_extra(f"Reading the Parquet manifest {file}", "parquet", "pyarrow") from None
    import pyarrow

    try:
        table = parquet.ParquetFile(file)
        _check_header(list(table.schema_arrow.names), str(file))
        batches = (batch.to_pylist() for batch in table.iter_batches(batch_size=1024))
        for index, values in enumerate(chain.from_iterable(batches)):
            yield Row(f"{file} row {index}", values, file.parent)
    except (pyarrow.ArrowException, OSError) as error:
        raise UsageError(f"{file}: not a readable Parquet file: {error}") from error


def _text(file: Path) -> IO[str]:
    with file.open("rb") as raw:
        mark = raw.read(2)
    encoding = "utf-16" if mark in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    return io.TextIOWrapper(file.open("rb"), encoding=encoding, newline="")


def _not_utf8(file: Path, error: UnicodeDecodeError) -> UsageError:
    return UsageError(
        f"{file}: not UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8 (in Excel: CSV UTF-8)"
    )


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(n for n in names if names.count(n) > 1)!r} stands there twice")
    return values


def _no_constant(word: str) -> Any:
    raise ValueError(f"{word} is not JSON; leave the value out or write null")
