"""Stratified random sampling of cases for people to rate, with the inclusion probability of every drawn case.

Simple random sampling without replacement inside each stratum: a case of stratum h is drawn with probability n_h / N_h,
whatever the allocation (Cochran, Sampling Techniques, 3rd ed. 1977, sections 5.2 and 5.5). The weights 1/π are what a
corrected ISR needs (docs/definitions.md, section 9).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal

import numpy as np
import pandas as pd

from isr.errors import UsageError
from isr.stats.intervals import wilson
from isr.stats.prediction_powered import MIN_LABELS

__all__ = ["ALLOCATIONS", "Sample", "advice", "allocate", "stratified_sample"]

Allocation = Literal["proportional", "equal"]
ALLOCATIONS = ("proportional", "equal")
#: Agreement that the paper's people reach on the final question (Table I); only used to show how wide its interval will be.
TYPICAL_AGREEMENT = 0.76


@dataclass(frozen=True)
class Sample:
    """A drawn sample.

    Attributes:
        drawn: case_id, stratum (its values joined by " · "), inclusion_probability; one row per drawn case, in drawing order
            of no meaning (strata in order, sorted by case_id inside).
        strata: one row per stratum: the columns, population, drawn, inclusion_probability.
        columns, allocation, seed: what it was drawn with.
    """

    drawn: pd.DataFrame
    strata: pd.DataFrame
    columns: tuple[str, ...]
    allocation: str
    seed: int

    @property
    def n(self) -> int:
        return len(self.drawn)

    def preview(self) -> str:
        """The strata as a text table, for the person who is about to start the study."""
        table = self.strata.assign(inclusion_probability=self.strata["inclusion_probability"].map("{:.3f}".format))
        total = f"{self.n} of {int(self.strata['population'].sum())} cases in {len(self.strata)} strata, {self.allocation} allocation, seed {self.seed}"
        return f"{table.to_string(index=False)}\n{total}"


def allocate(sizes: Sequence[int], n: int, how: Allocation = "proportional") -> list[int]:
    """How many to draw from strata of these sizes; the numbers add up to n, and every stratum gets at least one.

    Args:
        sizes: cases per stratum, each at least 1. n: cases in all.
        how: "proportional" (n · N_h / N by largest remainders) or "equal" (alike; what a small stratum cannot give goes to
            the others).

    Raises:
        UsageError: n is smaller than the number of strata or larger than the population.
    """
    if how not in ALLOCATIONS:
        raise UsageError(f"allocation: expected one of {', '.join(ALLOCATIONS)}, got {how!r}")
    if not sizes or min(sizes) < 1:
        raise UsageError(f"sizes: expected at least one stratum, each with at least 1 case, got {list(sizes)}")
    total, strata = sum(sizes), len(sizes)
    if n < strata:
        raise UsageError(
            f"n: {n} items cannot cover {strata} strata with at least one each; raise n to {strata} or stratify by fewer columns"
        )
    if n > total:
        raise UsageError(f"n: {n} items were asked for, and only {total} cases are there; lower n")
    if how == "equal":
        return _fill(list(sizes), n)
    # One each first, then the rest by largest remainder of what proportionality still owes; never over a stratum's size.
    share = [n * size / total for size in sizes]
    counts = [min(max(1, int(s)), size) for s, size in zip(share, sizes, strict=True)]
    while sum(counts) != n:
        owed = [s - c for s, c in zip(share, counts, strict=True)]
        if sum(counts) < n:
            index = max((i for i in range(strata) if counts[i] < sizes[i]), key=lambda i: (owed[i], -i))
            counts[index] += 1
        else:
            index = min((i for i in range(strata) if counts[i] > 1), key=lambda i: (owed[i], i))
            counts[index] -= 1
    return counts


def _fill(sizes: list[int], n: int) -> list[int]:
    counts = [0] * len(sizes)
    left = n
    while left:
        open_strata = [i for i, size in enumerate(sizes) if counts[i] < size]
        each = left // len(open_strata)
        for index in open_strata[:left] if each == 0 else open_strata:
            step = min(max(each, 1), sizes[index] - counts[index])
            counts[index] += step
            left -= step
    return counts


def stratified_sample(
    cases: pd.DataFrame,
    n: int,
    by: Sequence[str] = (),
    *,
    allocation: Allocation = "proportional",
    seed: int = 0,
    allow_empty: bool = False,
) -> Sample:
    """Draw n cases, reproducibly: the same cases, columns and seed give the same sample in whatever order the rows come.

    Args:
        cases: one row per case, with `case_id` and the columns of `by`. n: how many to draw.
        by: columns that make the strata; none: one stratum. allocation: see `allocate`.
        allow_empty: accept combinations of values that no case has (a method that was never run on unseen prompts, say).

    Raises:
        UsageError: an unknown column, missing values, empty combinations, or an n that does not fit.
    """
    if isinstance(n, bool) or n < 1:
        raise UsageError(f"n: expected a positive number of items, got {n!r}")
    if bool(cases["case_id"].duplicated().any()):
        raise UsageError("cases: expected one row per case_id")
    columns = tuple(by)
    if len(set(columns)) != len(columns):
        raise UsageError(f"stratify: a column stands twice in {', '.join(columns)}")
    for column in columns:
        if column not in cases.columns:
            raise UsageError(f"stratify: no column {column!r}; these cases have {', '.join(map(str, cases.columns))}")
        missing = int(cases[column].isna().sum())
        if missing:
            raise UsageError(
                f"stratify: {missing} of {len(cases)} cases have no {column!r}; fill that column in or stratify without it"
            )
    groups = _groups(cases, columns)
    if len(columns) > 1 and not allow_empty:
        _no_empty(cases, columns, groups)
    counts = allocate([len(ids) for ids in groups.values()], n, allocation)
    rows: list[dict[str, Any]] = []
    strata: list[dict[str, Any]] = []
    for (key, ids), count in zip(groups.items(), counts, strict=True):
        # A generator per stratum, so that a stratum that is added or grows does not change what is drawn in the others.
        mark = int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:8], "big")
        chosen = sorted(np.random.default_rng([seed, mark]).choice(len(ids), size=count, replace=False))
        name = " · ".join(map(str, key)) or "all cases"
        probability = count / len(ids)
        strata.append(
            dict(zip(columns, key, strict=True))
            | {"population": len(ids), "drawn": count, "inclusion_probability": probability}
        )
        rows += [{"case_id": ids[i], "stratum": name, "inclusion_probability": probability} for i in chosen]
    return Sample(pd.DataFrame(rows), pd.DataFrame(strata), columns, allocation, seed)


def _groups(cases: pd.DataFrame, columns: tuple[str, ...]) -> dict[tuple[str, ...], list[str]]:
    """case_ids by stratum, both sorted, so that the order of the rows does not matter."""
    found: dict[tuple[str, ...], list[str]] = {}
    keys = zip(*(cases[c].astype(str) for c in columns), strict=True) if columns else iter([()] * len(cases))
    for key, case_id in zip(keys, cases["case_id"], strict=True):
        found.setdefault(tuple(key), []).append(str(case_id))
    return {key: sorted(found[key]) for key in sorted(found)}


def _no_empty(cases: pd.DataFrame, columns: tuple[str, ...], groups: dict[tuple[str, ...], list[str]]) -> None:
    values = [sorted(cases[c].astype(str).unique()) for c in columns]
    empty = [key for key in product(*values) if key not in groups]
    if empty:
        shown = "; ".join(", ".join(f"{c}={v}" for c, v in zip(columns, key, strict=True)) for key in empty[:5])
        more = f" and {len(empty) - 5} more" if len(empty) > 5 else ""
        raise UsageError(
            f"stratify: {len(empty)} of {len(groups) + len(empty)} combinations hold no case: {shown}{more}. Stratify by fewer "
            "columns, complete the run, or say that this is meant (allow_empty=True, --allow-empty)"
        )


def advice(drawn: pd.DataFrame, method: str = "method", *, raters: int = 3) -> list[str]:
    """What a sample of this size is good for, in sentences: agreement (Table I), a corrected ISR in all and per method.

    Args:
        drawn: one row per drawn item, with the column `method` where there is one. raters: people per item.
    """
    n = len(drawn)
    interval = wilson(round(TYPICAL_AGREEMENT * n), n)
    half = 100 * (interval.high - interval.low) / 2
    lines = [
        f"Table I: {n} items give two raters' agreement to about ±{half:.0f} points (at {TYPICAL_AGREEMENT:.0%}; wider where images repeat)."
    ]
    if raters < 2:
        lines.append("One rater has nobody to agree with: Table I needs two, and a majority needs three.")
    elif raters % 2 == 0:
        lines.append(
            f"{raters} raters per item can tie, and a tie leaves the item out of the correction; take an odd number."
        )
    if n < MIN_LABELS:
        lines.append(
            f"Corrected ISR: refused under {MIN_LABELS} labels in all; this sample can serve for agreement only."
        )
        return lines
    if method not in drawn.columns or drawn[method].isna().all():
        lines.append(f"Corrected ISR: {n} labels are enough for one pooled figure.")
        return lines
    counts = drawn[method].value_counts()
    low, high = int(counts.min()), int(counts.max())
    per = f"{low}" if low == high else f"{low} to {high}"
    if low < MIN_LABELS:
        short = ", ".join(str(m) for m in sorted(counts[counts < MIN_LABELS].index, key=str))
        lines.append(
            f"Corrected ISR: {n} items over {len(counts)} methods are {per} a method: enough for Table I and for a pooled "
            f"correction, too few for a corrected ISR of {short}, which needs {MIN_LABELS} usable labels each. With equal "
            f'shares that is n = {MIN_LABELS * len(counts)} or, allowing for ties and "cannot judge", about '
            f"{round(1.15 * MIN_LABELS * len(counts))}."
        )
    else:
        lines.append(
            f'Corrected ISR: {per} items a method allow a correction per method, as long as ties and "cannot judge" leave '
            f"{MIN_LABELS} of each."
        )
    return lines
