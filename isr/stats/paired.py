"""Difference of two success rates on the same cases, with an interval clustered by image and its tests.

The interval is a BCa cluster bootstrap. Where all images differ by the same amount (all pairs alike, say) resampling says
nothing, and where fewer than ten depart from the commonest difference it says too little (coverage falls to 75 %; figures in
docs/statistics.md): there Tango's paired score interval on the effective n stands in, under its own name.
Source of the latter: Tango (1998), Stat. Med. 17, p. 891–908, Eqs. 6–9.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any

import numpy as np

from ..errors import UsageError
from ._inputs import FloatArray, Ids, cluster_codes, cluster_sums, need_level, zero_one
from .bootstrap import bca, bootstrap_sums, canonical, jackknife_sums
from .intervals import Interval, critical_value
from .significance import PValue, mcnemar_mid_p, sign_flip

__all__ = ["PairedDifference", "difference_intervals", "paired_difference", "paired_score_interval"]

#: Images that must depart from the commonest per-image difference before the bootstrap is trusted.
MIN_DIFFERING = 10
#: Names of the intervals in reports.
EQUAL_METHOD = "paired score on effective n (all per-image differences are equal)"
SCORE_METHOD = f"paired score on effective n (fewer than {MIN_DIFFERING} images differ from the rest)"
BCA_METHOD = "BCa bootstrap over images"


@dataclass(frozen=True)
class PairedDifference:
    """Rate of a minus rate of b on the same n cases (fractions; times 100 for points).

    Attributes:
        rate_a, rate_b: on these pairs. only_a, only_b: discordant cases (a success and b not; the reverse).
        interval: clustered by image. p_value, test: McNemar mid-p with one case per image, else sign-flip.
        p_sign_flip: the permutation p in either case. n_clusters: images.
    """

    difference: float
    interval: Interval
    rate_a: float
    rate_b: float
    only_a: int
    only_b: int
    n: int
    n_clusters: int
    p_value: float
    test: str
    p_sign_flip: float


def paired_score_interval(p10: float, p01: float, n: float, z: float) -> tuple[float, float]:
    """Tango's score interval of Δ = p10 − p01 for paired proportions; `n` may be fractional (an effective n).

    The ends solve (p10 − p01 − Δ)² n = z² (2q + Δ(1 − Δ)), q being the constrained maximum-likelihood estimate of p01:
    the larger root of 2q² + (−p10 − p01 + (2 − p10 + p01)Δ) q − p01 Δ(1 − Δ) = 0.

    Args:
        p10, p01: shares of pairs in favour of a, of b. z: two-sided quantile (∞ gives [−1, 1]).
    """
    if p10 < 0 or p01 < 0 or p10 + p01 > 1 + 1e-12 or n <= 0:
        raise UsageError(
            f"p10, p01, n: expected shares that add up to at most 1 and n > 0, got {p10!r}, {p01!r}, {n!r}"
        )
    if not np.isfinite(z):
        return -1.0, 1.0
    observed = p10 - p01

    def inside(delta: float) -> bool:
        b = -p10 - p01 + (2 - observed) * delta
        q = (sqrt(max(b * b + 8 * p01 * delta * (1 - delta), 0.0)) - b) / 4
        return n * (observed - delta) ** 2 <= z * z * max(2 * q + delta * (1 - delta), 0.0)

    def end(outer: float) -> float:
        if inside(outer):
            return outer
        within = observed
        for _ in range(100):
            middle = (within + outer) / 2
            within, outer = (middle, outer) if inside(middle) else (within, middle)
        return within

    return end(-1.0), end(1.0)


def _effective_pairs(sums: FloatArray, sizes: FloatArray, p10: float, p01: float) -> float:
    """Effective number of pairs: n over the design effect of the difference, at most n.

    As for a single rate (`intervals.effective_n`), images that did not show up are allowed for: a quarter of an image wholly
    in favour of a, and a quarter wholly in favour of b. Without any variance between images it is their number.
    """
    clusters, n = len(sizes), float(sizes.sum())
    difference = float(sums.sum()) / n
    if not bool((np.abs(sums - difference * sizes) > 1e-9).any()):
        return float(clusters)
    size = n / clusters
    padded = n + size / 2
    p10, p01 = (p10 * n + size / 4) / padded, (p01 * n + size / 4) / padded
    difference = p10 - p01
    squares = float(((sums - difference * sizes) ** 2).sum()) + size**2 / 4 * (
        (1 - difference) ** 2 + (1 + difference) ** 2
    )
    images = clusters + 0.5
    variance = images / (images - 1) * squares / padded**2
    return min(n, n * (p10 + p01 - difference**2) / (padded * variance))


def difference_intervals(
    per_image: Sequence[tuple[FloatArray, FloatArray, float, float]], *, level: float, n_boot: int, seed: int
) -> list[Interval]:
    """Intervals of several differences over the same number of images, from one set of resamples.

    Args:
        per_image: for each difference: (G,) sums of a − b, (G,) numbers of cases (all > 0), p10, p01.
    """
    clusters = len(per_image[0][0])
    boots = None
    intervals = []
    for index, (sums, sizes, p10, p01) in enumerate(per_image):
        n = int(sizes.sum())
        estimate = float(sums.sum() / sizes.sum())
        _, repeats = np.unique(np.round(sums / sizes, 9), return_counts=True)
        if clusters - int(repeats.max()) < MIN_DIFFERING:
            # One case per image is Tango's own setting: normal quantile on n. Clustered: as for one rate, t on images − 1.
            independent = n == clusters > 1
            n_eff = float(n) if independent else _effective_pairs(sums, sizes, p10, p01)
            low, high = paired_score_interval(
                p10, p01, n_eff, critical_value(level, None if independent else clusters - 1)
            )
            name = EQUAL_METHOD if len(repeats) == 1 else SCORE_METHOD
            intervals.append(Interval(low, high, name, level, n, n_eff, clusters))
            continue
        if boots is None:
            stacked = np.column_stack([canonical(np.column_stack([s, c])) for s, c, _, _ in per_image])
            boots = bootstrap_sums(stacked, n_boot, seed)
            left_out = jackknife_sums(stacked)
        values = boots[:, 2 * index] / boots[:, 2 * index + 1]
        jackknife = left_out[:, 2 * index] / left_out[:, 2 * index + 1]
        low, high = bca(estimate, values, jackknife, level)
        intervals.append(Interval(low, high, BCA_METHOD, level, n, None, clusters))
    return intervals


def lead_test(sums: FloatArray, only_a: int, only_b: int, n: int, seed: int) -> tuple[PValue, float]:
    """The test that a report leads with, and the sign-flip p."""
    flip = sign_flip(sums, seed=seed)
    if n == len(sums):
        return PValue(mcnemar_mid_p(only_a, only_b), "McNemar mid-p"), flip.p
    return flip, flip.p


def paired_difference(
    a: Any, b: Any, clusters: Ids | None = None, *, level: float = 0.95, n_boot: int = 10_000, seed: int = 0
) -> PairedDifference:
    """Difference of two success rates on the same cases.

    Args:
        a, b: (N,) of 0/1, aligned; N ≥ 1. An undetermined case is 0 (not a success) when ISRs are compared.
        clusters: (N,) image ids; None: every case its own.
        n_boot: resamples. seed: of the resamples (the exact permutation test needs none).
    """
    need_level(level)
    first, second = zero_one("a", a), zero_one("b", b)
    if len(first) != len(second) or len(first) == 0:
        raise UsageError(f"b: expected the {len(first)} cases of `a` (at least 1), got {len(second)}")
    codes, count = cluster_codes("clusters", clusters, len(first))
    sums, sizes = cluster_sums(codes, count, first - second), cluster_sums(codes, count)
    n = len(first)
    only_a, only_b = int((first > second).sum()), int((second > first).sum())
    (interval,) = difference_intervals([(sums, sizes, only_a / n, only_b / n)], level=level, n_boot=n_boot, seed=seed)
    test, p_flip = lead_test(sums, only_a, only_b, n, seed)
    return PairedDifference(
        difference=float((first - second).mean()),
        interval=interval,
        rate_a=float(first.mean()),
        rate_b=float(second.mean()),
        only_a=only_a,
        only_b=only_b,
        n=n,
        n_clusters=count,
        p_value=test.p,
        test=test.method,
        p_sign_flip=p_flip,
    )
