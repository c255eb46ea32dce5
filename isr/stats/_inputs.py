"""Checks and codings that every statistic shares: one place decides what a 0/1 column or a cluster is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pandas as pd

from ..errors import UsageError

__all__ = [
    "FloatArray",
    "Ids",
    "IntArray",
    "cluster_codes",
    "cluster_sums",
    "need_columns",
    "need_level",
    "outcome_codes",
    "zero_one",
]

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
#: Identifiers of any hashable kind, one per row.
Ids: TypeAlias = "Sequence[Any] | npt.NDArray[Any] | pd.Series[Any]"

#: Success, failure, undetermined as integers; -1 never enters a sum.
OUTCOME_CODES = {"success": 1, "failure": 0, "undetermined": -1}


def need_level(level: float) -> float:
    """A confidence level strictly between 0 and 1 (a fraction, not per cent)."""
    if not 0.0 < level < 1.0:
        raise UsageError(f"level: expected a fraction between 0 and 1 such as 0.95, got {level!r}")
    return float(level)


def zero_one(name: str, values: Any) -> FloatArray:
    """A one-dimensional array of 0 and 1 (bool allowed) as float64; anything else, missing values included, raises."""
    array = np.asarray(values)
    if array.ndim != 1:
        raise UsageError(f"{name}: expected a one-dimensional array, got shape {array.shape}")
    if array.dtype.kind == "O":
        wrong = [v for v in array if not isinstance(v, (bool, np.bool_, int, np.integer, float)) or v not in (0, 1)]
        if wrong:
            raise UsageError(
                f"{name}: expected only 0 and 1 (or booleans), got {wrong[0]!r}; leave missing answers out first"
            )
    elif array.dtype.kind not in "biuf":
        raise UsageError(f"{name}: expected 0 and 1 (or booleans), got dtype {array.dtype}")
    out = array.astype(np.float64)
    bad = ~((out == 0.0) | (out == 1.0))
    if bad.any():
        raise UsageError(
            f"{name}: expected only 0 and 1 (or booleans), got {out[bad][0]!r}; leave missing answers out first"
        )
    return out


def cluster_codes(name: str, ids: Ids | None, n: int) -> tuple[IntArray, int]:
    """Cluster number (0-based, in order of appearance) per row, and the number of clusters.

    `None` makes every row its own cluster (independent cases). A missing id raises: a case without an image would
    otherwise silently form a cluster with every other one.
    """
    if ids is None:
        return np.arange(n, dtype=np.int64), n
    series = pd.Series(list(ids) if not isinstance(ids, (pd.Series, np.ndarray)) else np.asarray(ids), dtype=object)
    if len(series) != n:
        raise UsageError(f"{name}: expected one id per row ({n}), got {len(series)}")
    if bool(series.isna().any()):
        first = int(np.flatnonzero(series.isna().to_numpy())[0])
        raise UsageError(
            f"{name}: row {first} has no id; give one to every row, or None where all rows are independent"
        )
    codes, uniques = pd.factorize(series)
    return codes.astype(np.int64), len(uniques)


def cluster_sums(codes: IntArray, count: int, weights: FloatArray | None = None) -> FloatArray:
    """Per-cluster sums of `weights` (of ones by default), shape (count,)."""
    return np.bincount(codes, weights=weights, minlength=count).astype(np.float64)


def outcome_codes(name: str, outcomes: Any) -> npt.NDArray[np.int8]:
    """Outcome strings as 1 (success), 0 (failure) and -1 (undetermined), int8, shape (N,)."""
    series = pd.Series(np.asarray(outcomes, dtype=object), dtype=object)
    coded = series.map(OUTCOME_CODES)
    if bool(coded.isna().any()):
        wrong = series[coded.isna()].iloc[0]
        raise UsageError(f"{name}: expected {', '.join(map(repr, OUTCOME_CODES))}, got {wrong!r}")
    return np.asarray(coded, dtype=np.int8)


def need_columns(name: str, table: pd.DataFrame, columns: Sequence[str]) -> None:
    """Raise with everything that a table lacks."""
    missing = [c for c in columns if c not in table.columns]
    if missing:
        raise UsageError(f"{name}: column(s) {missing} missing; it has {list(table.columns)}")
