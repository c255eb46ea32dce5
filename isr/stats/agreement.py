"""Agreement coefficients for nominal ratings with missing values.

Every coefficient is a function of sums over items, so a bootstrap over images is one matrix product (see `ItemSums`).
Sources: Cohen (1960), Educ. Psychol. Meas. 20, p. 37–46; Fleiss (1971), Psychol. Bull. 76, p. 378–382; Krippendorff (2011),
Computing Krippendorff's Alpha-Reliability, p. 4–6 (nominal, missing data); Gwet (2008), BJMSP 61, p. 29–48 (AC1), and Gwet
(2014), Handbook of Inter-Rater Reliability, ch. 2 and 3 (missing ratings); prevalence and bias index: Byrt, Bishop & Carlin
(1993), J. Clin. Epidemiol. 46, p. 423–429.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import UsageError
from ._inputs import FloatArray

__all__ = [
    "Coefficient",
    "GroupSums",
    "PairSums",
    "bias_index",
    "cohen_kappa",
    "fleiss_kappa",
    "gwet_ac1",
    "krippendorff_alpha",
    "percent_agreement",
    "prevalence_index",
]

#: Denominators below this are zero up to rounding: the coefficient is then undefined, never smoothed.
ZERO = 1e-12
ONE_CATEGORY = "every rating is the same category, so chance agreement is complete"
NO_PAIR = "no item has two ratings"


@dataclass(frozen=True)
class Coefficient:
    """An agreement coefficient, or the reason why it does not exist.

    Attributes:
        value: None where undefined. n_items: items that carry it (with at least two ratings). reason: empty where defined.
    """

    value: float | None
    n_items: int
    reason: str = ""


def _divide(numerator: FloatArray, denominator: FloatArray) -> FloatArray:
    """NaN where the denominator is zero."""
    safe = np.abs(denominator) > ZERO
    return np.where(safe, numerator / np.where(safe, denominator, 1.0), np.nan)


class PairSums:
    """Contingency tables of rater pairs as sums over items.

    Args:
        ratings: (items, raters) category numbers 0…K−1, NaN for missing. pairs: rater indices. categories: K.

    The methods take sums over items of shape (m, …), features first, where … are resamples, and return (pairs, …).
    """

    def __init__(self, ratings: FloatArray, pairs: Sequence[tuple[int, int]], categories: int) -> None:
        self.n_pairs, self.k = len(pairs), categories
        tables = [
            (ratings[:, a, None, None] == np.arange(categories)[:, None])
            & (ratings[:, b, None, None] == np.arange(categories)[None, :])
            for a, b in pairs
        ]
        #: (items, m = pairs · K · K); add it up over items, with any weights, and pass it to the methods below.
        self.items: FloatArray = np.concatenate(
            [np.zeros((len(ratings), 0)), *(t.reshape(len(ratings), categories**2) for t in tables)], axis=1
        )

    def tables(self, sums: FloatArray) -> FloatArray:
        """(pairs, K, K, …): rows are the first rater's categories."""
        return sums.reshape(self.n_pairs, self.k, self.k, *sums.shape[1:])

    def _agreed(self, sums: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        t = self.tables(sums)
        same = t[:, 0, 0].copy()
        for k in range(1, self.k):
            same += t[:, k, k]
        n = t.sum(axis=(1, 2))
        return t, n, _divide(same, n)

    def percent(self, sums: FloatArray) -> FloatArray:
        """Share of shared items on which the pair agrees."""
        return self._agreed(sums)[2]

    def cohen(self, sums: FloatArray) -> FloatArray:
        """Cohen's κ."""
        t, n, agreed = self._agreed(sums)
        chance = _divide((t.sum(axis=2) * t.sum(axis=1)).sum(axis=1), n * n)
        return _divide(agreed - chance, 1 - chance)

    def prevalence(self, sums: FloatArray) -> FloatArray:
        """|both yes − both no| / n for two categories (Byrt et al., p. 425)."""
        t = self.tables(sums)
        return _divide(np.abs(t[:, 1, 1] - t[:, 0, 0]), t.sum(axis=(1, 2)))

    def bias(self, sums: FloatArray) -> FloatArray:
        """|first yes, second no − first no, second yes| / n for two categories."""
        t = self.tables(sums)
        return _divide(np.abs(t[:, 1, 0] - t[:, 0, 1]), t.sum(axis=(1, 2)))


class GroupSums:
    """What Fleiss' κ, Krippendorff's α and Gwet's AC1 of one group of raters need, as sums over items.

    Args: as for `PairSums`; all raters given form the group. The methods take sums (m, …) and return (…).
    """

    def __init__(self, ratings: FloatArray, categories: int) -> None:
        self.k = categories
        counts = (ratings[:, :, None] == np.arange(categories)).sum(axis=1).astype(np.float64)
        given = counts.sum(axis=1)
        several = given >= 2
        pairs = np.where(several, given * (given - 1), 1.0)
        agree = np.where(several, (counts * (counts - 1)).sum(axis=1) / pairs, 0.0)
        shares = counts / np.where(given > 0, given, 1.0)[:, None]
        disagree = np.where(
            several, (counts * (given[:, None] - counts)).sum(axis=1) / np.where(several, given - 1, 1.0), 0.0
        )
        #: (items, m = 4 + 2K): items with ≥ 2 ratings, their agreement, α's observed disagreement, items with ≥ 1 rating,
        #: category shares, ratings per category on items with ≥ 2.
        self.items: FloatArray = np.column_stack(
            [several, agree, disagree, given >= 1, shares, counts * several[:, None]]
        ).astype(np.float64)

    def n_items(self, sums: FloatArray) -> FloatArray:
        return np.asarray(sums[0])

    def agreed(self, sums: FloatArray) -> FloatArray:
        """Mean over items with two or more ratings of the share of agreeing pairs."""
        return _divide(sums[1], sums[0])

    def _prevalences(self, sums: FloatArray) -> FloatArray:
        return _divide(sums[4 : 4 + self.k], sums[None, 3])

    def fleiss(self, sums: FloatArray) -> FloatArray:
        """Fleiss' κ; with missing ratings, Gwet's (2014) generalisation: items with one rating inform the prevalences."""
        chance = (self._prevalences(sums) ** 2).sum(axis=0)
        return _divide(self.agreed(sums) - chance, 1 - chance)

    def ac1(self, sums: FloatArray) -> FloatArray:
        """Gwet's AC1: chance agreement Σ π(1 − π) / (K − 1)."""
        if self.k < 2:
            return np.full(sums.shape[1:], np.nan)
        prevalence = self._prevalences(sums)
        chance = (prevalence * (1 - prevalence)).sum(axis=0) / (self.k - 1)
        return _divide(self.agreed(sums) - chance, 1 - chance)

    def alpha(self, sums: FloatArray) -> FloatArray:
        """Krippendorff's α for nominal data: 1 − (n − 1) Σ_u (disagreeing pairs in u)/(m_u − 1) / (n² − Σ n_k²)."""
        per_category = sums[4 + self.k :]
        n = per_category.sum(axis=0)
        return 1 - _divide((n - 1) * sums[2], n * n - (per_category**2).sum(axis=0))


def _coded(ratings: Any, categories: Sequence[Any] | None) -> tuple[FloatArray, int]:
    """Ratings as category numbers with NaN, and the number of categories."""
    matrix = np.asarray(ratings, dtype=np.float64)
    if matrix.ndim != 2 or matrix.shape[1] < 2:
        raise UsageError(f"ratings: expected shape (items, raters) with at least two raters, got {matrix.shape}")
    given = ~np.isnan(matrix)
    seen = np.unique(matrix[given])
    known = seen if categories is None else np.unique(np.asarray(categories, dtype=np.float64))
    if not np.isin(seen, known).all():
        raise UsageError(
            f"categories: the ratings hold {seen[~np.isin(seen, known)][0]:g}, which is not among {known.tolist()}"
        )
    coded = np.full(matrix.shape, np.nan)
    coded[given] = np.searchsorted(known, matrix[given])
    return coded, len(known)


def _group(ratings: Any, categories: Sequence[Any] | None, name: str) -> Coefficient:
    coded, k = _coded(ratings, categories)
    group = GroupSums(coded, k)
    sums = group.items.sum(axis=0)
    n = int(group.n_items(sums))
    if n == 0:
        return Coefficient(None, 0, NO_PAIR)
    value = float(getattr(group, name)(sums))
    return Coefficient(None, n, ONE_CATEGORY) if np.isnan(value) else Coefficient(value, n)


def _pair(a: Any, b: Any, categories: Sequence[Any] | None, name: str) -> Coefficient:
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if first.ndim != 1 or first.shape != second.shape:
        raise UsageError(f"b: expected the shape of `a`, {first.shape} (one-dimensional), got {second.shape}")
    coded, k = _coded(np.column_stack([first, second]), categories)
    pair = PairSums(coded, [(0, 1)], max(k, 1))
    sums = pair.items.sum(axis=0)
    n = int(pair.tables(sums).sum())
    if n == 0:
        return Coefficient(None, 0, NO_PAIR)
    value = float(getattr(pair, name)(sums)[0])
    return Coefficient(None, n, ONE_CATEGORY) if np.isnan(value) else Coefficient(value, n)


def percent_agreement(ratings: Any) -> Coefficient:
    """Mean over rater pairs of the share of shared items on which they agree (a fraction), as in the paper's Table I.

    Args:
        ratings: (items, raters), NaN where missing. Pairs without a shared item are left out.
    """
    coded, k = _coded(ratings, None)
    raters = coded.shape[1]
    pairs = PairSums(coded, [(a, b) for a in range(raters) for b in range(a + 1, raters)], max(k, 1))
    values = pairs.percent(pairs.items.sum(axis=0))
    n = int(((~np.isnan(coded)).sum(axis=1) >= 2).sum())
    return Coefficient(float(np.nanmean(values)), n) if n else Coefficient(None, 0, NO_PAIR)


def cohen_kappa(a: Any, b: Any) -> Coefficient:
    """Cohen's κ of two raters on the items that both rated; NaN is missing."""
    return _pair(a, b, None, "cohen")


def prevalence_index(a: Any, b: Any) -> Coefficient:
    """|both yes − both no| / n of two raters' 0/1 answers: near 1, κ is low however well they agree."""
    return _pair(a, b, (0, 1), "prevalence")


def bias_index(a: Any, b: Any) -> Coefficient:
    """|share of yes of a − of b| on shared items, for 0/1 answers."""
    return _pair(a, b, (0, 1), "bias")


def fleiss_kappa(ratings: Any) -> Coefficient:
    """Fleiss' κ, (items, raters); with missing ratings as Gwet (2014) generalises it."""
    return _group(ratings, None, "fleiss")


def krippendorff_alpha(ratings: Any) -> Coefficient:
    """Krippendorff's α for nominal categories, (items, raters), NaN where missing."""
    return _group(ratings, None, "alpha")


def gwet_ac1(ratings: Any, *, categories: Sequence[Any] | None = None) -> Coefficient:
    """Gwet's AC1, (items, raters).

    Args:
        categories: all categories that could have been used, e.g. (0, 1); None: those that were. It matters: chance
            agreement is spread over them. With one category it is undefined.
    """
    return _group(ratings, categories, "ac1")
