"""Cluster bootstrap of statistics that are functions of per-image sums, and BCa intervals.

Images are drawn with replacement; a resample is a row of counts, so all resamples of all sums are one matrix product.
Sources: Efron (1987), JASA 82, p. 171–185 (BCa, Eqs. 2.3, 6.6); Davison & Hinkley (1997), section 3.8 (clusters).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from scipy import special

from ..errors import UsageError
from ._inputs import FloatArray, need_level

__all__ = ["bca", "bootstrap_sums", "canonical", "jackknife_sums", "percentile", "resample_counts"]

#: Floats in one block of resample counts: bounds memory at about 64 MB whatever the number of images.
BLOCK = 8_000_000


def resample_counts(n_clusters: int, n_boot: int, seed: int) -> Iterator[FloatArray]:
    """Blocks (rows ≤ n_boot, n_clusters) of how often each cluster is drawn; every row sums to n_clusters.

    The draws depend on (n_clusters, n_boot, seed) only, so comparisons over the same images share their resamples.
    """
    if n_boot < 1:
        raise UsageError(f"n_boot: expected at least 1 resample, got {n_boot}")
    rng = np.random.default_rng(seed)
    rows = max(1, BLOCK // max(n_clusters, 1))
    for start in range(0, n_boot, rows):
        size = min(rows, n_boot - start)
        drawn = rng.integers(0, n_clusters, size=(size, n_clusters), dtype=np.int64)
        drawn += np.arange(size, dtype=np.int64)[:, None] * n_clusters
        yield np.bincount(drawn.ravel(), minlength=size * n_clusters).reshape(size, n_clusters).astype(np.float64)


def canonical(sums: FloatArray) -> FloatArray:
    """Clusters in lexicographic order of their sums: intervals then depend neither on row order nor on image names."""
    return np.asarray(sums[np.lexsort(sums.T[::-1])], dtype=np.float64)


def bootstrap_sums(sums: FloatArray, n_boot: int, seed: int) -> FloatArray:
    """Column totals of each resample.

    Args:
        sums: (G, m) per-cluster sums.

    Returns:
        (n_boot, m).
    """
    return np.concatenate([counts @ sums for counts in resample_counts(len(sums), n_boot, seed)])


def jackknife_sums(sums: FloatArray) -> FloatArray:
    """Column totals with each cluster left out in turn, (G, m)."""
    return np.asarray(sums.sum(axis=0) - sums, dtype=np.float64)


def percentile(boots: FloatArray, level: float) -> tuple[float, float]:
    """Percentile interval of finite bootstrap values (B,)."""
    tail = (1 - need_level(level)) / 2
    low, high = np.quantile(boots, [tail, 1 - tail])
    return float(low), float(high)


def bca(estimate: float, boots: FloatArray, jackknife: FloatArray, level: float) -> tuple[float, float]:
    """Bias-corrected and accelerated interval (Efron 1987).

    z0 counts resamples below the estimate and half of those equal to it, since rates are discrete; the acceleration is
    Σ(θ̄ − θ_i)³ / 6(Σ(θ̄ − θ_i)²)^{3/2} over the leave-one-image-out values.

    Args:
        estimate: θ on the data. boots: (B,) θ on resamples. jackknife: (G,) θ without image g.
    """
    tolerance = 1e-12 * max(1.0, abs(estimate))
    below = float((boots < estimate - tolerance).mean()) + 0.5 * float((np.abs(boots - estimate) <= tolerance).mean())
    # All resamples on one side would make z0 infinite; B resamples cannot resolve more than half a resample anyway.
    below = min(max(below, 0.5 / len(boots)), 1 - 0.5 / len(boots))
    z0 = float(special.ndtri(below))
    deviations = jackknife.mean() - jackknife
    scale = float((deviations**2).sum()) ** 1.5
    acceleration = float((deviations**3).sum()) / (6 * scale) if scale > 0 else 0.0
    tail = (1 - need_level(level)) / 2
    z = z0 + special.ndtri(np.array([tail, 1 - tail]))
    low, high = np.quantile(boots, special.ndtr(z0 + z / np.maximum(1 - acceleration * z, 1e-9)))
    return float(low), float(high)
