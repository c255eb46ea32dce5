"""Intervals against statsmodels, hand-worked numbers, exact coverage and degenerate cases."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from statsmodels.stats.proportion import proportion_confint

from isr.errors import UsageError
from isr.stats.intervals import (
    clopper_pearson,
    clustered_wilson,
    critical_value,
    effective_n,
    proportion_interval,
    score_interval,
    wilson,
)

COUNTS = [(0, 1), (1, 1), (0, 50), (1, 50), (25, 50), (79, 100), (97, 100), (500, 500), (341, 500)]


@pytest.mark.parametrize(("k", "n"), COUNTS)
@pytest.mark.parametrize("level", [0.8, 0.95, 0.99])
def test_wilson_equals_statsmodels(k: int, n: int, level: float) -> None:
    ours = wilson(k, n, level=level)
    low, high = proportion_confint(k, n, alpha=1 - level, method="wilson")
    assert (ours.low, ours.high) == pytest.approx((max(low, 0.0), min(high, 1.0)), abs=1e-12)


@pytest.mark.parametrize(("k", "n"), COUNTS)
@pytest.mark.parametrize("level", [0.8, 0.95, 0.99])
def test_clopper_pearson_equals_statsmodels(k: int, n: int, level: float) -> None:
    ours = clopper_pearson(k, n, level=level)
    assert (ours.low, ours.high) == pytest.approx(proportion_confint(k, n, alpha=1 - level, method="beta"), abs=1e-12)


def test_wilson_by_hand() -> None:
    # 79 of 100, z = 1.959964: z² = 3.841459. Denominator 1.03841459.
    # Centre (0.79 + 0.01920729)/1.03841459 = 0.77926; half 1.959964 √(0.001659 + 0.0000960365)/1.03841459
    # = 1.959964 · 0.0418931 / 1.03841459 = 0.0790715. → 0.700185 … 0.858329
    interval = wilson(79, 100)
    assert interval.low == pytest.approx(0.70018, abs=1e-4)
    assert interval.high == pytest.approx(0.85834, abs=1e-4)
    assert interval.describe() == "Wilson, 95%, n = 100"


def test_effective_n_by_hand() -> None:
    # Four images of two cases with 2, 2, 1, 0 successes: n = 8, mean size 2. Half an all-success and half an all-failure
    # image added: n' = 10, p = (5 + 1)/10 = 0.6.
    # Squares: (2−1.2)² + (2−1.2)² + (1−1.2)² + (0−1.2)² = 0.64 + 0.64 + 0.04 + 1.44 = 2.76, plus ½·4·(0.4² + 0.6²) = 1.04.
    # V = 5/4 · 3.80 / 100 = 0.0475; deff = 0.0475 · 10 / 0.24 = 1.979166…; n_eff = 8 / 1.979166 = 4.042105.
    assert effective_n(np.array([2.0, 2, 1, 0]), np.full(4, 2.0)) == pytest.approx(8 / (0.0475 * 10 / 0.24))


def test_clustered_wilson_by_hand() -> None:
    # The table above: p = 5/8, n_eff = 4.0421053, t(3) = 3.1824463 (t table: 3.182).
    y, images = [1, 1, 1, 1, 1, 0, 0, 0], ["a", "a", "b", "b", "c", "c", "d", "d"]
    interval = clustered_wilson(y, images)
    assert critical_value(0.95, 3) == pytest.approx(3.1824463, abs=1e-6)
    # z² = 10.127965; z²/n = 2.505616; centre (0.625 + 1.252808)/3.505616 = 0.535657;
    # half 3.182446 √(0.234375/4.0421053 + 10.127965/(4 · 16.338615))/3.505616 = 3.182446 · 0.461468/3.505616 = 0.418927.
    assert (interval.low, interval.high) == pytest.approx((0.116730, 0.954584), abs=1e-5)
    assert (interval.low, interval.high) == pytest.approx(score_interval(0.625, 4.042105263157895, 3.182446305284263))
    assert interval.n_eff == pytest.approx(4.0421053)
    assert interval.n_clusters == 4
    assert "effective n = 4.0, 4 images" in interval.describe()


@pytest.mark.parametrize("share", [0, 2, 5])
def test_images_that_do_not_differ_count_once_each(share: int) -> None:
    y = np.tile([1] * share + [0] * (5 - share), 20)
    interval = clustered_wilson(y, np.repeat(np.arange(20), 5))
    assert interval.n_eff == 20


def test_one_image_knows_nothing() -> None:
    interval = clustered_wilson([1, 0, 1], ["a", "a", "a"])
    assert (interval.low, interval.high) == (0.0, 1.0)


def test_perfectly_correlated_images_weigh_like_one_case_each() -> None:
    per_image = np.array([1] * 14 + [0] * 6)
    interval = clustered_wilson(np.repeat(per_image, 7), np.repeat(np.arange(20), 7))
    assert interval.n_eff == pytest.approx(20, rel=0.06)


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.lists(st.booleans(), min_size=1, max_size=4), min_size=2, max_size=12),
    st.randoms(use_true_random=False),
)
def test_clustered_properties(images: list[list[bool]], random: object) -> None:
    y = [v for image in images for v in image]
    ids = [i for i, image in enumerate(images) for _ in image]
    interval = clustered_wilson(y, ids)
    rate = sum(y) / len(y)
    assert 0 <= interval.low <= rate <= interval.high <= 1
    assert interval.n_eff is not None
    assert 0 < interval.n_eff <= len(y) + 1e-9
    # Row order and the names of images do not matter.
    order = list(range(len(y)))
    random.shuffle(order)  # type: ignore[attr-defined]
    shuffled = clustered_wilson([y[i] for i in order], [f"image {ids[i]}" for i in order])
    assert (shuffled.low, shuffled.high) == pytest.approx((interval.low, interval.high), abs=1e-12)
    # Failures and successes are treated alike.
    mirrored = clustered_wilson([not v for v in y], ids)
    assert (1 - mirrored.high, 1 - mirrored.low) == pytest.approx((interval.low, interval.high), abs=1e-9)
    # Repeating every image as a new image narrows the interval; a higher level widens it.
    doubled = clustered_wilson(y + y, ids + [i + 100 for i in ids])
    assert doubled.high - doubled.low <= interval.high - interval.low + 1e-9
    wide = clustered_wilson(y, ids, level=0.99)
    assert wide.low <= interval.low + 1e-12
    assert wide.high >= interval.high - 1e-12


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 300), st.data())
def test_unclustered_properties(n: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(0, n))
    for method in (wilson, clopper_pearson):
        interval = method(k, n)
        assert 0 <= interval.low <= k / n <= interval.high <= 1
        if k < n:
            higher = method(k + 1, n)
            assert higher.low >= interval.low
            assert higher.high >= interval.high


def test_rule_for_choosing() -> None:
    y = [1, 0, 1, 1]
    assert proportion_interval(y).method == "Wilson"
    assert proportion_interval(y, ["a", "b", "c", "d"]).method == "Wilson"
    assert proportion_interval(y, ["a", "a", "b", "b"]).method == "Wilson on effective n, clustered by image"
    assert proportion_interval(y, method="clopper-pearson").method == "Clopper–Pearson"
    with pytest.raises(UsageError, match=r"'wilson' treats cases as independent, but 4 cases come from 2 images"):
        proportion_interval(y, ["a", "a", "b", "b"], method="wilson")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: wilson(3, 0), "n: expected a whole number of at least 1, got 0"),
        (lambda: wilson(5, 4), "successes: expected a whole number between 0 and n = 4, got 5"),
        (lambda: wilson(1, 4, level=95), "level: expected a fraction between 0 and 1 such as 0.95, got 95"),
        (lambda: clustered_wilson([], []), "expected at least one case, got none"),
        (lambda: clustered_wilson([1, 0.5], ["a", "b"]), "successes: expected only 0 and 1"),
        (lambda: clustered_wilson([1, None], ["a", "b"]), "successes: expected only 0 and 1"),
        (lambda: clustered_wilson([1, float("nan")], ["a", "b"]), "successes: expected only 0 and 1"),
        (lambda: clustered_wilson([1, 0], ["a"]), r"clusters: expected one id per row \(2\), got 1"),
        (lambda: clustered_wilson([1, 0], ["a", None]), "clusters: row 1 has no id"),
        (lambda: proportion_interval([1, 0], method="wald"), "method: expected 'auto'"),  # type: ignore[arg-type]
    ],
)
def test_errors(call: object, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        call()  # type: ignore[operator]


@pytest.mark.parametrize(("n", "p"), [(50, 0.02), (50, 0.3), (100, 0.79), (200, 0.98), (500, 0.5)])
def test_exact_coverage(n: int, p: float) -> None:
    """Coverage summed over the binomial distribution, not simulated (the grid of the claim is in benchmarks/)."""
    from scipy.stats import binom

    k = np.arange(n + 1)
    weights = binom.pmf(k, n, p)
    covered = {
        m.__name__: sum(w for i, w in zip(k, weights, strict=True) if p in m(int(i), n))
        for m in (wilson, clopper_pearson)
    }
    assert covered["wilson"] >= 0.91
    assert covered["clopper_pearson"] >= 0.95
