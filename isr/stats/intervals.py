"""Intervals of a proportion: Wilson, Clopper–Pearson, and Wilson on an effective sample size for clustered cases.

Sources: Wilson (1927), JASA 22, p. 209–212; Clopper & Pearson (1934), Biometrika 26, p. 404–413; effective sample size
n / deff: Kish (1965), Survey Sampling, section 5.4; its use inside a score interval with a t quantile: Dean & Pagano
(2015), J. Surv. Stat. Methodol. 3, p. 484–503, after Korn & Graubard (1998), Survey Methodology 24, p. 193–201.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from typing import Any, Literal

import numpy as np
from scipy import special

from ..errors import UsageError
from ._inputs import FloatArray, Ids, cluster_codes, cluster_sums, need_level, zero_one

__all__ = [
    "Interval",
    "clopper_pearson",
    "clustered_wilson",
    "critical_value",
    "effective_n",
    "proportion_interval",
    "score_interval",
    "wilson",
]

IntervalMethod = Literal["auto", "wilson", "clopper-pearson", "clustered-wilson"]


@dataclass(frozen=True)
class Interval:
    """A two-sided confidence interval.

    Attributes:
        low, high: ends. method: the name a report prints. level: e.g. 0.95.
        n: cases. n_eff: effective sample size, where the method uses one. n_clusters: images, where cases are clustered.
    """

    low: float
    high: float
    method: str
    level: float = 0.95
    n: int = 0
    n_eff: float | None = None
    n_clusters: int | None = None

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high

    def describe(self) -> str:
        """One line for a report's footnote: the method and what it rests on."""
        parts = [f"{self.method}, {self.level:.0%}, n = {self.n}"]
        if self.n_eff is not None and self.n_clusters is not None:
            parts.append(f"effective n = {self.n_eff:.1f}")
        if self.n_clusters is not None:
            parts.append(f"{self.n_clusters} images")
        return ", ".join(parts)


def critical_value(level: float, df: int | None = None) -> float:
    """Two-sided quantile: normal, or Student's t with `df` degrees of freedom (infinite for df < 1)."""
    upper = 0.5 + need_level(level) / 2
    if df is None:
        return float(special.ndtri(upper))
    return float(special.stdtrit(df, upper)) if df >= 1 else float("inf")


def score_interval(p: float, n: float, z: float) -> tuple[float, float]:
    """Wilson's interval of proportion `p` observed on (possibly fractional) `n`, for quantile `z`; inside [0, 1].

    Wilson (1927): (p + z²/2n ± z √(p(1−p)/n + z²/4n²)) / (1 + z²/n). With z = ∞ nothing is known: [0, 1].
    """
    if not np.isfinite(z):
        return 0.0, 1.0
    denominator = 1 + z * z / n
    centre = (p + z * z / (2 * n)) / denominator
    half = z * sqrt(max(p * (1 - p), 0.0) / n + z * z / (4 * n * n)) / denominator
    # At p = 0 and p = 1 the near end is exact; subtraction would leave 1e-17 there and a rate outside its own interval.
    low = 0.0 if p <= 0 else min(max(centre - half, 0.0), p)
    high = 1.0 if p >= 1 else max(min(centre + half, 1.0), p)
    return low, high


def _counts(successes: int, n: int) -> tuple[int, int]:
    if n < 1 or int(n) != n:
        raise UsageError(f"n: expected a whole number of at least 1, got {n!r}; no interval exists for no cases")
    if not 0 <= successes <= n or int(successes) != successes:
        raise UsageError(f"successes: expected a whole number between 0 and n = {n}, got {successes!r}")
    return int(successes), int(n)


def wilson(successes: int, n: int, *, level: float = 0.95) -> Interval:
    """Wilson score interval for independent cases."""
    successes, n = _counts(successes, n)
    low, high = score_interval(successes / n, n, critical_value(level))
    return Interval(low, high, "Wilson", level, n, float(n))


def clopper_pearson(successes: int, n: int, *, level: float = 0.95) -> Interval:
    """Clopper–Pearson ("exact") interval for independent cases: coverage never below `level`, hence wide."""
    successes, n = _counts(successes, n)
    tail = (1 - need_level(level)) / 2
    low = 0.0 if successes == 0 else float(special.betaincinv(successes, n - successes + 1, tail))
    high = 1.0 if successes == n else float(special.betaincinv(successes + 1, n - successes, 1 - tail))
    return Interval(low, high, "Clopper–Pearson", level, n, float(n))


def effective_n(totals: FloatArray, sizes: FloatArray) -> float:
    """Effective sample size of Σ totals successes on Σ sizes cases in G clusters.

    n / deff, where deff = V / (p(1−p)/n) and V = G/(G−1) Σ_g (s_g − p n_g)² / n² is the linearised variance of the rate.
    V and p are taken with half an all-success and half an all-failure image of mean size added (a Jeffreys-type prior on
    images): with few failing images, V alone rests on two or three squares and is too small when those images happen to
    fail once each, and the interval then covers as little as 80 % (docs/statistics.md holds the figures). The result is at
    most n. Where images do not differ at all (V = 0 in the data) it is the number of images.

    Args:
        totals: (G,) successes per image. sizes: (G,) cases per image, all > 0.
    """
    clusters = len(sizes)
    n = float(sizes.sum())
    p = float(totals.sum()) / n
    if clusters < 2 or not np.any(np.abs(totals - p * sizes) > 1e-9):
        return float(clusters)
    mean_size = n / clusters
    padded_n = n + mean_size
    p = (float(totals.sum()) + mean_size / 2) / padded_n
    squares = float(((totals - p * sizes) ** 2).sum()) + 0.5 * mean_size**2 * ((1 - p) ** 2 + p**2)
    variance = (clusters + 1) / clusters * squares / padded_n**2
    design_effect = variance * padded_n / (p * (1 - p))
    return min(n, n / design_effect)


def clustered_wilson(successes: Any, clusters: Ids, *, level: float = 0.95) -> Interval:
    """Wilson interval on the effective sample size, with a t quantile on images − 1 degrees of freedom.

    Args:
        successes: (N,) of 0/1. clusters: (N,) image ids.

    With one image the interval is [0, 1]: nothing is known of how images differ.
    """
    y = zero_one("successes", successes)
    if len(y) == 0:
        raise UsageError("successes: expected at least one case, got none; no interval exists for no cases")
    codes, count = cluster_codes("clusters", clusters, len(y))
    n_eff = effective_n(cluster_sums(codes, count, y), cluster_sums(codes, count))
    low, high = score_interval(float(y.mean()), n_eff, critical_value(level, count - 1))
    return Interval(low, high, "Wilson on effective n, clustered by image", level, len(y), n_eff, count)


def proportion_interval(
    successes: Any, clusters: Ids | None = None, *, level: float = 0.95, method: IntervalMethod = "auto"
) -> Interval:
    """The interval of a rate by the package's rule: Wilson for independent cases (no clusters, or one case per image),
    clustered Wilson otherwise; Clopper–Pearson on request, for independent cases only.
    """
    y = zero_one("successes", successes)
    codes, count = cluster_codes("clusters", clusters, len(y))
    independent = count == len(y)
    if method == "auto":
        method = "wilson" if independent else "clustered-wilson"
    if method == "clustered-wilson":
        return clustered_wilson(y, codes, level=level)
    if method not in ("wilson", "clopper-pearson"):
        raise UsageError(f"method: expected 'auto', 'wilson', 'clopper-pearson' or 'clustered-wilson', got {method!r}")
    if not independent:
        raise UsageError(
            f"method: {method!r} treats cases as independent, but {len(y)} cases come from {count} images; "
            "use 'clustered-wilson' (or 'auto'), or pass clusters=None if cases really are independent"
        )
    one = wilson if method == "wilson" else clopper_pearson
    return one(int(y.sum()), len(y), level=level)
