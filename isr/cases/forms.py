"""Every form in which cases are handed in, turned into drafts: one `EditCase` each, and how to name its parts."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..errors import Problem, ProblemsError, UsageError
from ..images import ImageRef, is_tensor
from ..manifest import (
    COLUMNS,
    IMAGE_COLUMNS,
    SUFFIXES,
    Row,
    column_problems,
    frame_rows,
    is_frame,
    is_manifest,
    mapping_rows,
    read_rows,
)
from .columns import is_missing
from .types import EditCase

__all__ = ["Draft", "drafts_of", "is_dataset", "is_stream", "stream_of"]


@dataclass(frozen=True)
class Draft:
    """A case as handed in, and how to name its parts in a message."""

    case: EditCase
    label: Callable[[str], str]
    base: Path | None = None
    problem: str | None = None


_ARGUMENTS = {"edited": "edits", "prompt": "prompts", "original": "originals", "control": "controls"}


def drafts_of(
    edits: Any, prompts: Any, *, originals: Any, controls: Any, columns: Any, problems: list[Problem]
) -> Iterator[Draft]:
    """Drafts of whatever `prepare` was given; wrong names of columns are added to `problems`."""
    table = _table(edits)
    if table is not None:
        given = {"prompts": prompts, "originals": originals, "controls": controls, "columns": columns}
        extra = [name for name, value in given.items() if value is not None]
        if extra:
            raise UsageError(
                f"{' and '.join(extra)} cannot be given beside a table of cases; put them into its columns"
            )
        yield from table
        return
    if prompts is None:
        raise UsageError(
            "prompts is missing: give one edit prompt per picture, or a table of cases "
            f"(a manifest ending in {', '.join(SUFFIXES)}, a data frame, EditCases)"
        )
    yield from _from_arguments(
        edits, prompts, originals=originals, controls=controls, columns=columns, problems=problems
    )


def _table(edits: Any) -> Iterator[Draft] | None:
    """Drafts of a table of cases, or None where `edits` is a picture or a list of them."""
    if is_manifest(edits):
        return map(_from_row, read_rows(edits))
    if is_frame(edits):
        return map(_from_row, frame_rows(edits))
    if isinstance(edits, EditCase):
        return iter([_from_case(0, edits)])
    if isinstance(edits, Mapping) and not set(edits) <= {"bytes", "path"}:
        raise UsageError(
            "edits is one mapping; give a list of mappings, a data frame, or a list of pictures with prompts"
        )
    if isinstance(edits, (list, tuple)) and edits and isinstance(edits[0], EditCase):
        return (_from_case(index, case) for index, case in enumerate(edits))
    if isinstance(edits, (list, tuple)) and edits and _is_row(edits[0]):
        return map(_from_row, mapping_rows(edits))
    if is_dataset(edits):
        return map(_from_row, mapping_rows(_undecoded(edits)))
    return None


def is_dataset(value: Any) -> bool:
    """A data set of Hugging Face's `datasets`, in memory, on disk or streamed (that package is not imported for the answer)."""
    return hasattr(value, "column_names") and hasattr(value, "features") and hasattr(value, "cast_column")


def is_stream(value: Any) -> bool:
    """An iterator, or a data set that is streamed: read once, never held as a whole."""
    return isinstance(value, Iterator) or (is_dataset(value) and not hasattr(value, "__len__"))


def _undecoded(dataset: Any) -> Any:
    """The same data set with picture columns as the files they are: read as any other file here (Pillow would cut 16 bits
    to 8), and held compressed until they are sent."""
    plain = dataset.with_format(None)
    for name, feature in (dataset.features or {}).items():
        if type(feature).__name__ == "Image" and feature.decode and feature.mode is None:
            plain = plain.cast_column(name, type(feature)(decode=False))
    return plain


def stream_of(cases: Any) -> Iterator[Draft]:
    """Drafts of an iterable, one at a time."""
    if is_manifest(cases) or is_frame(cases):
        table = _table(cases)
        if table is not None:
            yield from table
        return
    if isinstance(cases, (str, bytes, os.PathLike)):
        raise UsageError(f"expected an iterable of EditCases or the path of a manifest, got {cases!r}")
    cases = iter(_undecoded(cases) if is_dataset(cases) else cases)
    checked: set[str] = set()
    for index, case in enumerate(cases):
        if isinstance(case, Mapping):
            new = [str(name) for name in case if name not in checked]
            wrong = column_problems(new, f"row {index}")
            if wrong:
                raise ProblemsError(wrong)
            checked.update(new)
            yield _from_row(Row(f"row {index}", case))
        else:
            yield _from_case(index, case)


def _is_row(value: Any) -> bool:
    return isinstance(value, Mapping) and not set(value) <= {"bytes", "path"}


def _from_case(index: int, case: Any) -> Draft:
    if not isinstance(case, EditCase):
        raise UsageError(f"cases[{index}]: expected an EditCase like the ones before, got {type(case).__name__}")
    return Draft(case, lambda role: f"cases[{index}].{role}")


def _from_row(row: Row) -> Draft:
    if row.problem is not None:
        return Draft(
            EditCase(None, ""), lambda role: row.where if role == "row" else f"{row.where}, {role}", problem=row.problem
        )
    values = {str(name): value for name, value in row.values.items() if not is_missing(value)}
    tags = dict(values.pop("tags", None) or {}) if isinstance(values.get("tags"), (Mapping, type(None))) else values
    if tags is values:
        raise ProblemsError([Problem(f"{row.where}, tags", f"expected a mapping, got {type(values['tags']).__name__}")])
    known = {name: values.pop(name) for name in COLUMNS if name in values}
    known.setdefault("edited", None)
    known.setdefault("prompt", None)
    return Draft(EditCase(**known, tags={**tags, **values}), lambda role: f"{row.where}, {role}", row.base)


def _from_arguments(
    edits: Any, prompts: Any, *, originals: Any, controls: Any, columns: Any, problems: list[Problem]
) -> Iterator[Draft]:
    single = _is_picture(edits)
    if single:
        if not isinstance(prompts, str):
            raise UsageError(f"edits is one picture, so prompts must be one text; got {type(prompts).__name__}")
        for name, value in (("originals", originals), ("controls", controls)):
            if value is not None and not _is_picture(value):
                raise UsageError(f"edits is one picture, so {name} must be one picture; got {type(value).__name__}")
        lists: dict[str, list[Any]] = {"edits": [edits], "prompts": [prompts]}
        lists["originals"] = [originals]
        lists["controls"] = [controls]
    else:
        lists = {"edits": _listed(edits, "edits")}
        n = len(lists["edits"])
        if isinstance(prompts, str):
            raise UsageError(f"prompts is one text but edits is a list of {n}; give a list with one prompt per picture")
        lists["prompts"] = _listed(prompts, "prompts")
        for name, value in (("originals", originals), ("controls", controls)):
            if value is not None and _is_picture(value):
                raise UsageError(f"{name} is one picture but edits is a list of {n}; give a list with one per edit")
            lists[name] = [None] * n if value is None else _listed(value, name)
    n = len(lists["edits"])
    extra = _columns(columns, n, problems)
    lengths = {name: len(values) for name, values in [*lists.items(), *extra.items()]}
    if set(lengths.values()) != {n}:
        wrong = ", ".join(f"{name} has {count}" for name, count in lengths.items() if count != n)
        raise UsageError(f"lengths differ: edits has {n}, {wrong}; give one entry per edit, in the same order")
    if originals is not None and not single and all(is_missing(value) for value in lists["originals"]):
        raise UsageError("originals holds no picture at all; leave originals out to judge without them")

    def label(index: int) -> Callable[[str], str]:
        place = "" if single else f"[{index}]"
        return lambda role: f"{_ARGUMENTS.get(role, f'columns[{role!r}]')}{place}"

    for index in range(n):
        values = {name: column[index] for name, column in extra.items()}
        tags = values.pop("tags", None)
        merged: dict[str, Any] = dict(tags) if isinstance(tags, Mapping) else {}
        if tags is not None and not isinstance(tags, Mapping) and not is_missing(tags):
            problems.append(Problem(label(index)("tags"), f"expected a mapping, got {type(tags).__name__}"))
        merged.update({name: values.pop(name) for name in list(values) if name not in COLUMNS})
        yield Draft(
            EditCase(
                edited=lists["edits"][index],
                prompt=lists["prompts"][index],
                original=lists["originals"][index],
                control=lists["controls"][index],
                tags=merged,
                **{name: value for name, value in values.items() if not is_missing(value)},
            ),
            label(index),
        )


def _is_picture(value: Any) -> bool:
    """One picture, as opposed to a list of them."""
    if isinstance(value, (str, os.PathLike, bytes, bytearray, memoryview, Image.Image, ImageRef)):
        return True
    if isinstance(value, Mapping) or hasattr(value, "read"):
        return True
    return (isinstance(value, np.ndarray) or is_tensor(value)) and value.ndim in (2, 3) and value.dtype != object


def _listed(value: Any, name: str) -> list[Any]:
    if isinstance(value, (set, frozenset, Mapping)):
        raise UsageError(f"{name} must be an ordered list, got {type(value).__name__}")
    if not isinstance(value, Iterable) or getattr(value, "ndim", 1) == 0:
        raise UsageError(f"{name} must be a list with one entry per edit, got {type(value).__name__}")
    return list(value)


def _columns(columns: Any, n: int, problems: list[Problem]) -> dict[str, list[Any]]:
    if columns is None:
        return {}
    if is_frame(columns):
        columns = {str(name): list(columns[name]) for name in columns.columns}
    if not isinstance(columns, Mapping):
        raise UsageError(f"columns must be a dict or a data frame, got {type(columns).__name__}")
    table: dict[str, list[Any]] = {}
    problems += column_problems(map(str, columns), "columns")
    for name, values in columns.items():
        if name in ("prompt", *IMAGE_COLUMNS):
            raise UsageError(f"columns holds {name!r}; give it as the argument {_ARGUMENTS[name]}= instead")
        if values is None or isinstance(values, (str, bool, int, float)):
            table[str(name)] = [values] * n
        else:
            table[str(name)] = _listed(values, f"columns[{name!r}]")
    return table
