"""Hypothesis tests for paired outcomes, and Holm's correction.

Sources: sign-flip (randomisation) test on cluster totals: Fisher (1935), The Design of Experiments, section 21;
McNemar mid-p: Fagerland, Lydersen & Laake (2013), BMC Med. Res. Methodol. 13:91, p. 4; Holm (1979), Scand. J. Stat. 6, p. 65–70.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import special

from ..errors import UsageError
from ._inputs import FloatArray

__all__ = ["PValue", "holm", "mcnemar_mid_p", "sign_flip"]

#: Largest Σ|d| for which the null distribution is convolved exactly.
EXACT_TOTAL = 20_000
#: Random sign assignments where it is not.
DRAWS = 100_000


class PValue(NamedTuple):
    """A two-sided p-value and how it was computed."""

    p: float
    method: str


def _exact(totals: npt.NDArray[np.int64]) -> float:
    """P(|Σ ± d_g| ≥ |Σ d_g|) over all 2^G sign assignments, by convolution: images with the same |d| form a binomial."""
    sizes, counts = np.unique(np.abs(totals[totals != 0]), return_counts=True)
    reach = int((sizes * counts).sum())
    if reach == 0:
        return 1.0
    # Position i holds P(number of positive units = i); Σ ± d = 2 i − reach.
    distribution = np.ones(1)
    for size, count in zip(sizes.tolist(), counts.tolist(), strict=True):
        k = np.arange(count + 1)
        logs = special.gammaln(count + 1) - special.gammaln(k + 1) - special.gammaln(count - k + 1)
        spaced = np.zeros(size * count + 1)
        spaced[::size] = np.exp(logs - count * np.log(2.0))
        distribution = np.convolve(distribution, spaced)
    values = np.abs(2 * np.arange(reach + 1) - reach)
    return float(min(1.0, distribution[values >= abs(int(totals.sum()))].sum()))


def sign_flip(differences: Any, *, seed: int = 0) -> PValue:
    """Two-sided sign-flip permutation test of per-image *sums* of differences, statistic |Σ_g d_g|.

    Under the null the two methods are exchangeable within an image, all its cases together. Sums, not means: every case
    then weighs the same, as in ISR. Whole-number sums (outcomes always are) are tested over all 2^G assignments exactly;
    others, and totals beyond 20,000, by 100,000 random assignments with (1 + hits) / (1 + draws).

    Args:
        differences: (G,) per-image sums of a − b. seed: of the random assignments, where any are drawn.
    """
    totals = np.asarray(differences, dtype=np.float64)
    if totals.ndim != 1 or len(totals) == 0 or not np.isfinite(totals).all():
        raise UsageError(f"differences: expected a non-empty one-dimensional finite array, got {differences!r}")
    if bool((totals == np.round(totals)).all()) and float(np.abs(totals).sum()) <= EXACT_TOTAL:
        return PValue(_exact(totals.astype(np.int64)), "sign-flip permutation of per-image sums, exact")
    rng = np.random.default_rng(seed)
    observed = abs(float(totals.sum()))
    hits, left = 0, DRAWS
    while left:
        rows = min(left, max(1, 4_000_000 // len(totals)))
        signs = rng.integers(0, 2, size=(rows, len(totals)), dtype=np.int8) * 2 - 1
        hits += int((np.abs(signs @ totals) >= observed - 1e-9 * max(1.0, observed)).sum())
        left -= rows
    return PValue((1 + hits) / (1 + DRAWS), f"sign-flip permutation of per-image sums, {DRAWS} random assignments")


def mcnemar_mid_p(only_a: int, only_b: int) -> float:
    """McNemar's mid-p for independent pairs: the exact binomial two-sided p minus the probability of what was observed.

    Args:
        only_a, only_b: discordant pairs in favour of each side. With none, or equal numbers, the result is 1.
    """
    if only_a < 0 or only_b < 0 or int(only_a) != only_a or int(only_b) != only_b:
        raise UsageError(f"only_a, only_b: expected whole numbers of at least 0, got {only_a!r}, {only_b!r}")
    n, smaller = int(only_a + only_b), int(min(only_a, only_b))
    if n == 0 or only_a == only_b:
        return 1.0
    point: float = np.exp(
        special.gammaln(n + 1) - special.gammaln(smaller + 1) - special.gammaln(n - smaller + 1) - n * np.log(2.0)
    )
    return float(2 * special.bdtr(smaller, n, 0.5) - point)


def holm(p_values: Any) -> FloatArray:
    """Holm's step-down adjusted p-values, in the order given; controls the family-wise error without assumptions.

    Args:
        p_values: (m,) in [0, 1]; m = 0 gives an empty array.
    """
    p = np.asarray(p_values, dtype=np.float64)
    if p.ndim != 1 or not bool(((p >= 0) & (p <= 1)).all()):
        raise UsageError(f"p_values: expected a one-dimensional array within [0, 1], got {p_values!r}")
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * (len(p) - np.arange(len(p))))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted
