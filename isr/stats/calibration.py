"""How far to trust a judge: confusion with human labels, sensitivity, specificity, Rogan–Gladen, correlation of errors.

Sources: Rogan & Gladen (1978), Am. J. Epidemiol. 107, p. 71–76 (correction and its variance).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from math import sqrt
from typing import Any

import numpy as np
import pandas as pd

from ..errors import UsageError
from ._inputs import FloatArray, Ids, cluster_codes, cluster_sums, zero_one
from .intervals import Interval, critical_value, effective_n, score_interval

__all__ = [
    "Confusion",
    "RatedShare",
    "RoganGladen",
    "confusion",
    "error_correlation",
    "rogan_gladen",
    "weighted_wilson",
]


@dataclass(frozen=True)
class RatedShare:
    """A share of human-labelled items; None with the reason where there is none to divide by."""

    value: float | None
    interval: Interval | None
    n: int
    reason: str = ""


@dataclass(frozen=True)
class Confusion:
    """A judge against people on one criterion (unweighted counts; shares are weighted where weights are given).

    Attributes:
        true_positive …: people say yes/no, judge says yes/no. n_left_out: items where either gave no answer.
        sensitivity: P(judge yes | people yes). specificity: P(judge no | people no).
    """

    true_positive: int
    false_positive: int
    false_negative: int
    true_negative: int
    n_left_out: int
    sensitivity: RatedShare
    specificity: RatedShare


def weighted_wilson(y: Any, weights: Any, clusters: Ids | None = None, *, level: float = 0.95) -> Interval:
    """Wilson interval of Σ w y / Σ w on the effective n that weights and images leave, with a t quantile.

    Args:
        y: (n,) of 0/1. weights: (n,) positive, e.g. 1 / inclusion probability; only ratios matter. clusters: image ids.
    """
    values, w = zero_one("y", y), np.asarray(weights, dtype=np.float64)
    if w.shape != values.shape or len(values) == 0 or not bool((np.isfinite(w) & (w > 0)).all()):
        raise UsageError(f"weights: expected {len(values)} (at least 1) positive finite numbers, got shape {w.shape}")
    codes, count = cluster_codes("clusters", clusters, len(values))
    w = w * (len(w) / w.sum())
    n_eff = effective_n(cluster_sums(codes, count, w * values), cluster_sums(codes, count, w))
    low, high = score_interval(float((w * values).sum() / w.sum()), n_eff, critical_value(level, count - 1))
    return Interval(low, high, "Wilson on effective n, weighted, clustered by image", level, len(values), n_eff, count)


def _share(hit: FloatArray, weights: FloatArray | None, ids: Any, *, level: float, what: str) -> RatedShare:
    if len(hit) == 0:
        return RatedShare(None, None, 0, f"no item that people call {what}")
    w = np.ones(len(hit)) if weights is None else weights
    return RatedShare(float((w * hit).sum() / w.sum()), weighted_wilson(hit, w, ids, level=level), len(hit))


def confusion(
    judge: Any, people: Any, image_ids: Ids | None = None, *, weights: Any = None, level: float = 0.95
) -> Confusion:
    """Confusion of a judge (or of the consensus) with the people's majority.

    Args:
        judge, people: (N,) of 1, 0 and NaN (no verdict, tie, cannot judge). weights: (N,) 1 / inclusion probability; needed
            where items were drawn with unlike probabilities, else sensitivity and specificity are those of the sample.
    """
    first, second = np.asarray(judge, dtype=np.float64), np.asarray(people, dtype=np.float64)
    if first.ndim != 1 or first.shape != second.shape:
        raise UsageError(f"people: expected the {first.shape} items of `judge`, got {second.shape}")
    both = ~np.isnan(first) & ~np.isnan(second)
    a, b = zero_one("judge", first[both]), zero_one("people", second[both])
    ids = None if image_ids is None else np.asarray(image_ids, dtype=object)[both]
    w = None if weights is None else np.asarray(weights, dtype=np.float64)[both]
    shares = []
    for wanted, what in ((1.0, "true"), (0.0, "false")):
        rows = b == wanted
        shares.append(
            _share(
                (a[rows] == wanted).astype(np.float64),
                None if w is None else w[rows],
                None if ids is None else ids[rows],
                level=level,
                what=what,
            )
        )
    return Confusion(
        true_positive=int(((a == 1) & (b == 1)).sum()),
        false_positive=int(((a == 1) & (b == 0)).sum()),
        false_negative=int(((a == 0) & (b == 1)).sum()),
        true_negative=int(((a == 0) & (b == 0)).sum()),
        n_left_out=int((~both).sum()),
        sensitivity=shares[0],
        specificity=shares[1],
    )


@dataclass(frozen=True)
class RoganGladen:
    """Prevalence corrected by sensitivity and specificity; never clipped. None with the reason where it is undefined."""

    value: float | None
    low: float | None
    high: float | None
    level: float
    reason: str = ""


def rogan_gladen(apparent: float, interval: Interval, judged: Confusion) -> RoganGladen:
    """(p + sp − 1) / (se + sp − 1), with the delta-method interval of Rogan & Gladen (1978).

    The variance of each of the three rates is r(1 − r) over its effective n. It treats them as independent and assumes that
    sensitivity and specificity are the same for every method, which prediction-powered inference does not.

    Args:
        apparent: ISR by the judges over all cases. interval: its interval (for its effective n). judged: of the consensus.
    """
    se, sp = judged.sensitivity, judged.specificity
    level = interval.level
    if se.value is None or sp.value is None or se.interval is None or sp.interval is None:
        return RoganGladen(None, None, None, level, se.reason or sp.reason)
    youden = se.value + sp.value - 1
    if youden <= 0:
        return RoganGladen(
            None, None, None, level, f"sensitivity + specificity − 1 = {youden:.2f}: the judge is no better than chance"
        )
    value = (apparent + sp.value - 1) / youden

    def variance(rate: float, n: float | None) -> float:
        return rate * (1 - rate) / n if n else float("inf")

    spread = sqrt(
        variance(apparent, interval.n_eff)
        + value**2 * variance(se.value, se.interval.n_eff)
        + (1 - value) ** 2 * variance(sp.value, sp.interval.n_eff)
    )
    half = critical_value(level) * spread / youden
    return RoganGladen(value, value - half, value + half, level)


def error_correlation(judges: pd.DataFrame, people: Any, *, weights: Any = None) -> pd.DataFrame:
    """Correlation (φ) of the judges' errors, pair by pair: two judges that err together are worth less than two.

    Args:
        judges: (N, judges) of 1, 0 and NaN, one column per judge. people: (N,) of 1, 0 and NaN. weights: (N,) 1 / inclusion
            probability, where items were drawn with unlike probabilities.

    Returns:
        judge_a, judge_b, n (items that both and people decided), error_a, error_b, both_wrong, expected_if_independent,
        phi (missing where a judge never or always errs), reason.
    """
    truth = np.asarray(people, dtype=np.float64)
    if len(truth) != len(judges):
        raise UsageError(f"people: expected {len(judges)} items, got {len(truth)}")
    w = np.ones(len(truth)) if weights is None else np.asarray(weights, dtype=np.float64)
    if w.shape != truth.shape or not bool((np.isfinite(w) & (w > 0)).all()):
        raise UsageError(f"weights: expected {len(truth)} positive finite numbers, got shape {w.shape}")
    rows = []
    for a, b in combinations(judges.columns, 2):
        x, y = (judges[name].to_numpy(dtype=np.float64) for name in (a, b))
        given = ~np.isnan(x) & ~np.isnan(y) & ~np.isnan(truth)
        wrong_a, wrong_b = x[given] != truth[given], y[given] != truth[given]
        n = int(given.sum())
        row: dict[str, Any] = {"judge_a": a, "judge_b": b, "n": n, "phi": np.nan, "reason": ""}
        if n == 0:
            rows.append(row | {"reason": "no item that both judges and people decided"})
            continue
        share = w[given] / w[given].sum()
        p, q, both = (float(share[wrong].sum()) for wrong in (wrong_a, wrong_b, wrong_a & wrong_b))
        row |= {"error_a": p, "error_b": q, "both_wrong": both, "expected_if_independent": p * q}
        if any(len(set(wrong.tolist())) == 1 for wrong in (wrong_a, wrong_b)):
            row["reason"] = "a judge that never (or always) errs has no correlation"
        else:
            row["phi"] = (both - p * q) / sqrt(p * (1 - p) * q * (1 - q))
        rows.append(row)
    columns = [
        "judge_a",
        "judge_b",
        "n",
        "error_a",
        "error_b",
        "both_wrong",
        "expected_if_independent",
        "phi",
        "reason",
    ]
    return pd.DataFrame(rows, columns=columns)
