"""ISR corrected by human labels: prediction-powered inference (docs/definitions.md section 9).

Sources: Angelopoulos et al. (2023), Science 382, p. 669–674 (the mean); Angelopoulos, Duchi & Zrnic (2023), PPI++,
arXiv:2311.01453, section 6 (tuned λ); weights: Hájek's ratio estimator; clusters: linearised variance, as in `intervals`.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, sqrt
from typing import Any

import numpy as np
import pandas as pd

from ..errors import UsageError
from ._inputs import FloatArray, Ids, cluster_codes, cluster_sums, need_columns, need_level, outcome_codes, zero_one
from .intervals import Interval, critical_value, effective_n

__all__ = ["MIN_LABELS", "CorrectedISR", "LabelsNeeded", "corrected_isr", "ppi_mean", "prediction_powered"]

#: Fewer labels than this carry no correction (per method, and in all).
MIN_LABELS = 30


def ppi_mean(
    labels: Any, predictions: Any, unlabelled: Any, *, lam: float | None = None, level: float = 0.95
) -> tuple[float, Interval, float]:
    """Prediction-powered mean of independent, equally weighted items: the textbook closed form.

    θ = λ mean(f_u) + mean(y − λ f), variance λ² var(f_u)/N + var(y − λ f)/n, and λ = cov(y, f) / ((1 + n/N) var(f over all)),
    within [0, 1], where none is given.

    Args:
        labels: (n,) of 0/1 (people). predictions: (n,) of 0/1 (judges, same items). unlabelled: (N,) judges, other items.

    Returns:
        Estimate, interval (normal quantile), λ.
    """
    y, f, u = zero_one("labels", labels), zero_one("predictions", predictions), zero_one("unlabelled", unlabelled)
    if len(y) != len(f) or len(y) < 2 or len(u) < 1:
        raise UsageError(
            f"labels, predictions, unlabelled: expected n ≥ 2, the same n, and at least 1, got {len(y)}, {len(f)}, {len(u)}"
        )
    n, N = len(y), len(u)
    if lam is None:
        spread = float(np.var(np.concatenate([f, u]), ddof=1))
        covariance = float(((y - y.mean()) * (f - f.mean())).mean())
        lam = min(max(covariance / ((1 + n / N) * spread), 0.0), 1.0) if spread > 0 else 0.0
    estimate = float(lam * u.mean() + (y - lam * f).mean())
    half = critical_value(level) * sqrt(lam**2 * float(u.var()) / N + float((y - lam * f).var()) / n)
    interval = Interval(max(estimate - half, 0.0), min(estimate + half, 1.0), "prediction-powered, normal", level, n)
    return estimate, interval, lam


@dataclass(frozen=True)
class LabelsNeeded:
    """How many labels in all (not more) would halve the interval; None with the reason where none would."""

    n: int | None
    reason: str = ""


@dataclass(frozen=True)
class CorrectedISR:
    """A corrected ISR and what it rests on.

    Attributes:
        value: estimate; interval: t on labelled images − 1. judge_only: mean of the consensus outcome over all cases.
        labels_only: weighted mean of the labels, with its own half-width, so that the gain is visible.
        lam: how far the judges are trusted (0: labels only). n_labels: labels used; n_cases: all cases.
        to_halve: labels that would halve the interval.
    """

    value: float
    interval: Interval
    judge_only: float
    labels_only: float
    labels_only_half_width: float
    lam: float
    n_labels: int
    n_cases: int
    to_halve: LabelsNeeded


def _variance(influence: FloatArray, codes: Any, count: int) -> float:
    """Linearised variance of a mean whose per-case influences add up to 0: G/(G−1) Σ_g (Σ_{i∈g} u_i)²."""
    sums = cluster_sums(codes, count, influence)
    return float(count / max(count - 1, 1) * (sums**2).sum())


def prediction_powered(
    predictions: Any,
    labels: Any,
    inclusion: Any = None,
    clusters: Ids | None = None,
    *,
    lam: float | None = None,
    level: float = 0.95,
) -> CorrectedISR:
    """Prediction-powered mean of N cases of which a random sample is labelled; weighted, clustered by image.

    θ = λ f̄ + Σ w (y − λ f) / Σ w over the labelled, w = 1/π, f̄ over all N cases. Its influence per case is
    λ(f − f̄)/N + 1[labelled] w (e − ē)/Σw with e = y − λf; summed within images it gives the variance, so labelled and
    unlabelled cases of one image, and labels inside the N, are accounted for together. λ minimises that variance. As in
    `intervals.effective_n`, half an image of each kind of error (people yes, judge no; and the reverse) is added to it:
    30 labels without one error do not prove a judge that never errs. With labels from one image the interval is [0, 1].

    Args:
        predictions: (N,) of 0/1: the consensus outcome, 1 for success. labels: (N,) of 1, 0 and NaN (not labelled).
        inclusion: (N,) probability with which each labelled case was drawn, in (0, 1]; None: all alike.
        clusters: (N,) image ids, or None. lam: fixed λ.
    """
    need_level(level)
    f = zero_one("predictions", predictions)
    y = np.asarray(labels, dtype=np.float64)
    if y.shape != f.shape:
        raise UsageError(f"labels: expected one entry per case, shape {f.shape}, NaN where not labelled, got {y.shape}")
    labelled = ~np.isnan(y)
    zero_one("labels", y[labelled])
    n, N = int(labelled.sum()), len(f)
    if n < 2:
        raise UsageError(f"labels: expected at least 2 labelled cases, got {n}")
    weights = np.zeros(N)
    if inclusion is None:
        weights[labelled] = 1.0
    else:
        probability = np.asarray(inclusion, dtype=np.float64)
        if probability.shape != f.shape:
            raise UsageError(f"inclusion: expected one probability per case, shape {f.shape}, got {probability.shape}")
        drawn = probability[labelled]
        if not bool(((drawn > 0) & (drawn <= 1)).all()):
            bad = drawn[~((drawn > 0) & (drawn <= 1))][0]
            raise UsageError(
                f"inclusion: every labelled case needs the probability in (0, 1] with which it was drawn, got {bad!r}; items "
                "picked for another reason (disagreement, say) cannot be used"
            )
        weights[labelled] = 1 / drawn
    codes, count = cluster_codes("clusters", clusters, N)
    y = np.where(labelled, y, 0.0)
    share = weights / weights.sum()
    y_mean, f_mean, f_all = float(share @ y), float(share @ f), float(f.mean())
    from_labels = share * (y - y_mean)
    from_judges = (f - f_all) / N - share * (f - f_mean)
    a, b = cluster_sums(codes, count, from_labels), cluster_sums(codes, count, from_judges)
    labelled_images = len(np.unique(codes[labelled]))
    half_image = 0.5 / labelled_images**2
    if lam is None:
        # With every case labelled the judges add nothing, whatever λ is. Otherwise λ N_u/N is PPI++'s own λ, kept within [0, 1].
        square = float((b**2).sum())
        best = -float((a * b).sum()) / (square + half_image) if square > 1e-15 else 0.0
        lam = min(max(best, 0.0), N / max(N - n, 1))

    def variance_at(trust: float) -> float:
        error = y_mean - trust * f_mean
        padding = half_image * ((1 - error) ** 2 + (trust + error) ** 2)
        return _variance(from_labels + trust * from_judges, codes, count) + padding

    value = y_mean + lam * (f_all - f_mean)
    variance = variance_at(lam)
    t = critical_value(level, labelled_images - 1)
    half = t * sqrt(variance) if labelled_images > 1 else 1.0
    method = "prediction-powered, weighted by 1/π, clustered by image" if clusters is not None else "prediction-powered"
    interval = Interval(max(value - half, 0.0), min(value + half, 1.0), method, level, n, None, labelled_images)
    sizes, totals = cluster_sums(codes, count), cluster_sums(codes, count, f)
    floor = value * (1 - value) / effective_n(totals, sizes) if 0 < value < 1 else 0.0
    return CorrectedISR(
        value=value,
        interval=interval,
        judge_only=f_all,
        labels_only=y_mean,
        labels_only_half_width=t * sqrt(variance_at(0.0)) if labelled_images > 1 else 1.0,
        lam=lam,
        n_labels=n,
        n_cases=N,
        to_halve=_labels_to_halve(variance, floor, n, N, images=labelled_images),
    )


def _labels_to_halve(variance: float, floor: float, n: int, N: int, *, images: int) -> LabelsNeeded:
    """Labels n′ with V(n′) = V/4, where V falls from V(n) to the variance with every case labelled as 1/n′ does:
    V(n′) = V_N + (V − V_N)(1/n′ − 1/N)/(1/n − 1/N). V_N is that of the ISR of all cases, images being a sample.
    """
    if images < 2:
        return LabelsNeeded(None, "labels come from one image; label others first")
    if n >= N:
        return LabelsNeeded(None, f"not reachable: all {N} cases are labelled; only more images help")
    if variance / 4 <= floor or variance <= floor:
        return LabelsNeeded(
            None,
            f"not reachable: with all {N} cases labelled the interval would still be {sqrt(floor / variance):.0%} as wide",
        )
    inverse = 1 / N + (variance / 4 - floor) / (variance - floor) * (1 / n - 1 / N)
    return LabelsNeeded(min(ceil(1 / inverse), N))


def corrected_isr(
    cases: pd.DataFrame,
    labels: pd.DataFrame,
    *,
    method: str = "method",
    outcome: str = "outcome",
    image: str | None = "image_id",
    level: float = 0.95,
) -> pd.DataFrame:
    """Corrected ISR per method where 30 labels allow it, and pooled over methods.

    Args:
        cases: all judged cases (immunized arm): case_id, outcome and, where there are such, method and image columns.
        labels: one row per labelled item: case_id, `defeated` (majority of the raters; missing for ties and "cannot judge")
            and `inclusion_probability` (missing for items that were not drawn at random: they are left out).

    Returns:
        One row per method and one `pooled` row (its method is missing): value, low, high, judge_only, labels_only, lam,
        n_labels, n_cases, labels_to_halve, reason (why absent, or why halving is not reachable); `attrs["notes"]` counts what
        was left out.

    Raises:
        UsageError: under 30 usable labels in all.
    """
    need_columns("cases", cases, ["case_id", outcome, *([image] if image else [])])
    need_columns("labels", labels, ["case_id", "defeated", "inclusion_probability"])
    for name, table in (("cases", cases), ("labels", labels)):
        if bool(table["case_id"].duplicated().any()):
            raise UsageError(
                f"{name}: expected one row per case_id, {int(table['case_id'].duplicated().sum())} are repeated"
            )
    unknown = ~labels["case_id"].isin(set(cases["case_id"]))
    if bool(unknown.any()):
        raise UsageError(
            f"labels: {int(unknown.sum())} case_ids are not among the cases, the first is {labels.loc[unknown, 'case_id'].iloc[0]!r}"
        )
    undecided = labels["defeated"].isna()
    undrawn = labels["inclusion_probability"].isna() & ~undecided
    usable = labels[~undecided & ~undrawn]
    notes = [
        note for note, count in (
            (f"{int(undecided.sum())} items without a majority (ties, cannot judge) were left out", undecided.sum()),
            (f"{int(undrawn.sum())} items that were not drawn with a known probability were left out", undrawn.sum()),
        ) if count
    ]  # fmt: skip
    if len(usable) < MIN_LABELS:
        raise UsageError(
            f"labels: a corrected ISR needs at least {MIN_LABELS} labels of randomly drawn items, got {len(usable)}"
            + (f" ({'; '.join(notes)})" if notes else "")
        )
    joined = cases.merge(usable[["case_id", "defeated", "inclusion_probability"]], on="case_id", how="left")
    joined["_f"] = (outcome_codes(outcome, joined[outcome].to_numpy(dtype=object)) == 1).astype(np.float64)
    joined["_y"] = np.nan
    has = joined["defeated"].notna()
    joined.loc[has, "_y"] = zero_one("labels: column 'defeated'", joined.loc[has, "defeated"].to_numpy(dtype=object))
    groups: list[tuple[Any, pd.DataFrame]] = []
    if method in joined.columns:
        groups += [(key, group) for key, group in joined.groupby(method, sort=False)]
    groups.append((None, joined))
    rows = []
    for key, group in groups:
        n = int(group["_y"].notna().sum())
        row: dict[str, Any] = {
            "method": key, "value": np.nan, "low": np.nan, "high": np.nan, "judge_only": float(group["_f"].mean()),
            "labels_only": np.nan, "lam": np.nan, "n_labels": n, "n_cases": len(group), "labels_to_halve": np.nan, "reason": "",
        }  # fmt: skip
        if n < MIN_LABELS:
            row["reason"] = f"only {n} labels of this method, fewer than {MIN_LABELS}; see the pooled row"
        else:
            ids = group[image].to_numpy(dtype=object) if image else None
            inclusion = group["inclusion_probability"].to_numpy(dtype=np.float64)
            found = prediction_powered(group["_f"], group["_y"], inclusion, ids, level=level)
            row |= {
                "value": found.value, "low": found.interval.low, "high": found.interval.high, "lam": found.lam,
                "labels_only": found.labels_only, "reason": found.to_halve.reason,
                "labels_to_halve": np.nan if found.to_halve.n is None else found.to_halve.n,
            }  # fmt: skip
        rows.append(row)
    table = pd.DataFrame(rows)
    table.attrs["notes"] = tuple(notes)
    return table
