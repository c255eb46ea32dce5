"""Rates of three-valued outcomes: ISR with interval, bounds and band (paper Eq. 8; docs/definitions.md section 3).

An undetermined case stays in the denominator and is not a success; bounds say what it could change.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from ..errors import UsageError
from ._inputs import Ids, need_columns, outcome_codes
from .intervals import Interval, IntervalMethod, proportion_interval

__all__ = ["CriterionRate", "Rate", "band", "criterion_rate", "isr", "isr_table"]


@dataclass(frozen=True)
class Rate:
    """ISR of a set of cases.

    Attributes:
        value: successes / n, as a fraction. n: all cases, undetermined ones included.
        bounds: [successes, successes + undetermined] / n: where ISR can lie whatever the missing answers were.
        interval: sampling interval of `value`.
    """

    value: float
    n: int
    n_success: int
    n_failure: int
    n_undetermined: int
    bounds: tuple[float, float]
    interval: Interval


def isr(outcomes: Any, image_ids: Ids | None = None, *, level: float = 0.95, method: IntervalMethod = "auto") -> Rate:
    """Immunization Success Rate: successes / all cases (Eq. 8), with bounds and interval.

    Args:
        outcomes: (N,) of "success", "failure", "undetermined"; N ≥ 1.
        image_ids: (N,) cluster of every case; None: cases are independent.
    """
    codes = outcome_codes("outcomes", outcomes)
    n = len(codes)
    if n == 0:
        raise UsageError("outcomes: expected at least one case, got none; ISR of no cases does not exist")
    success, undetermined = int((codes == 1).sum()), int((codes == -1).sum())
    return Rate(
        value=success / n,
        n=n,
        n_success=success,
        n_failure=n - success - undetermined,
        n_undetermined=undetermined,
        bounds=(success / n, (success + undetermined) / n),
        interval=proportion_interval(codes == 1, image_ids, level=level, method=method),
    )


def band(strict: Any, any_judge: Any) -> tuple[float, float | None]:
    """From `strict`'s lower bound to `any`'s upper bound: what the choice between the judges' AND and OR spans.

    Args:
        strict, any_judge: (N,) outcomes of the same cases, in the same order, under the two policies. Where any of
            `any_judge` is None (not known after `lazy`), the upper end is None.
    """
    if bool(pd.isna(np.asarray(any_judge, dtype=object)).any()):
        return float((outcome_codes("strict", strict) == 1).mean()), None
    low, high = outcome_codes("strict", strict), outcome_codes("any_judge", any_judge)
    if len(low) != len(high) or len(low) == 0:
        raise UsageError(f"any_judge: expected the {len(low)} (at least 1) cases of `strict`, got {len(high)}")
    if bool(((low == 1) & (high != 1)).any()) or bool(((high == 0) & (low != 0)).any()):
        raise UsageError(
            "any_judge: a case is a success under `strict` but not under `any` (or a failure under `any` only); "
            "the two columns are swapped or not of the same cases"
        )
    return float((low == 1).mean()), float((high != 0).mean())


@dataclass(frozen=True)
class CriterionRate:
    """Share of cases on which every judge that gave a verdict calls the criterion true.

    Attributes:
        value: None where no case has a verdict (`reason` says so). n_judged: the denominator, cases with a verdict.
        n: all cases.
    """

    value: float | None
    n_judged: int
    n: int
    n_true: int
    interval: Interval | None
    reason: str = ""


def criterion_rate(answers: Any, image_ids: Ids | None = None, *, level: float = 0.95) -> CriterionRate:
    """Rate of one criterion (mismatch or degradation) over judges.

    Args:
        answers: (cases, judges) of 1, 0 and NaN (no verdict, or not asked).
        image_ids: (cases,) clusters, or None.
    """
    matrix = np.asarray(answers, dtype=np.float64)
    if matrix.ndim != 2:
        raise UsageError(f"answers: expected shape (cases, judges), got {matrix.shape}")
    given = ~np.isnan(matrix)
    if not np.isin(matrix[given], (0.0, 1.0)).all():
        raise UsageError("answers: expected 1, 0 or NaN (no verdict) only")
    judged = given.any(axis=1)
    true = judged & ((matrix == 1.0) | ~given).all(axis=1)
    n_judged = int(judged.sum())
    if n_judged == 0:
        return CriterionRate(None, 0, len(matrix), 0, None, "no judge gave a verdict on any case")
    ids = None if image_ids is None else np.asarray(image_ids, dtype=object)[judged]
    interval = proportion_interval(true[judged], ids, level=level)
    return CriterionRate(int(true.sum()) / n_judged, n_judged, len(matrix), int(true.sum()), interval)


def isr_table(
    cases: pd.DataFrame,
    by: Sequence[str] = ("method",),
    *,
    outcome: str = "outcome",
    image: str | None = "image_id",
    level: float = 0.95,
) -> pd.DataFrame:
    """ISR by group, one row each, in order of first appearance; missing group values form a group of their own.

    Args:
        cases: one row per case with `by`, `outcome` and (unless None) `image` columns.

    Returns:
        Columns: by…, isr, low, high, bound_low, bound_high, n, n_success, n_failure, n_undetermined, n_eff, n_images,
        interval (method name).
    """
    need_columns("cases", cases, [*by, outcome, *([image] if image else [])])
    rows: list[dict[str, Any]] = []
    groups: Any = cases.groupby(list(by), sort=False, dropna=False) if by else [((), cases)]
    for key, group in groups:
        ids: npt.NDArray[Any] | None = group[image].to_numpy(dtype=object) if image else None
        rate = isr(group[outcome].to_numpy(dtype=object), ids, level=level)
        rows.append(
            dict(zip(by, key, strict=True))
            | {
                "isr": rate.value, "low": rate.interval.low, "high": rate.interval.high,
                "bound_low": rate.bounds[0], "bound_high": rate.bounds[1], "n": rate.n, "n_success": rate.n_success,
                "n_failure": rate.n_failure, "n_undetermined": rate.n_undetermined, "n_eff": rate.interval.n_eff,
                "n_images": rate.interval.n_clusters, "interval": rate.interval.method,
            }
        )  # fmt: skip
    return pd.DataFrame(rows)
