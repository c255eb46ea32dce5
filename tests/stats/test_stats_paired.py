"""Paired differences and their tests against scipy, statsmodels, full enumeration and hand-worked numbers."""

from __future__ import annotations

from itertools import product
from math import log

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests

from isr.errors import UsageError
from isr.stats.bootstrap import bca, bootstrap_sums, jackknife_sums, percentile, resample_counts
from isr.stats.paired import paired_difference, paired_score_interval
from isr.stats.significance import holm, mcnemar_mid_p, sign_flip

Z = 1.959963984540054


# ------------------------------------------------------------------------------------------------------- sign-flip


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(-5, 5), min_size=1, max_size=9))
def test_sign_flip_equals_full_enumeration(sums: list[int]) -> None:
    hits = [
        abs(sum(s * d for s, d in zip(signs, sums, strict=True))) >= abs(sum(sums))
        for signs in product((-1, 1), repeat=len(sums))
    ]
    result = sign_flip(sums)
    assert result.p == pytest.approx(float(np.mean(hits)), abs=1e-12)
    assert "exact" in result.method


def test_sign_flip_by_hand() -> None:
    # Sums 3, 1, −1: total 3. The 8 assignments give ±3±1±1: |total| = 5, 3, 3, 1 (twice each): 6 of 8 reach 3.
    assert sign_flip([3, 1, -1]).p == pytest.approx(6 / 8)
    assert sign_flip([0, 0]).p == 1.0


def test_sign_flip_equals_scipy_permutation_test() -> None:
    d = np.array([2, 1, 0, 3, -1, 2, 1, 1, -2, 4])
    reference = stats.permutation_test(
        (d,), lambda x: abs(x.sum()), permutation_type="samples", n_resamples=np.inf, alternative="greater"
    )
    assert sign_flip(d).p == pytest.approx(reference.pvalue, abs=1e-12)


def test_sign_flip_with_fractions_is_drawn_and_close_to_exact() -> None:
    d = np.array([0.5, 1.25, -0.25, 2.0, 0.75, -1.0, 1.5])
    exact = np.mean([abs(np.dot(s, d)) >= abs(d.sum()) - 1e-12 for s in product((-1, 1), repeat=7)])
    drawn = sign_flip(d, seed=3)
    assert drawn == sign_flip(d, seed=3)
    assert drawn.p == pytest.approx(exact, abs=0.006)  # 4 standard errors of 100,000 draws
    assert "100000 random assignments" in drawn.method


def test_sign_flip_is_stable_for_many_images() -> None:
    rng = np.random.default_rng(0)
    d = rng.integers(-2, 4, size=3000)
    z = abs(d.sum()) / np.sqrt((d**2).sum())
    assert sign_flip(d).p == pytest.approx(2 * stats.norm.sf(z), rel=1e-6, abs=1e-14)
    balanced = np.tile([1, -1, 2, -2], 500)
    assert sign_flip(balanced).p == pytest.approx(1.0)


# ---------------------------------------------------------------------------------------------- McNemar and Holm


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 60), st.integers(0, 60))
def test_mid_p_equals_statsmodels_exact_minus_point(b: int, c: int) -> None:
    if b == c:
        assert mcnemar_mid_p(b, c) == 1.0
        return
    exact = mcnemar([[0, b], [c, 0]], exact=True).pvalue
    assert mcnemar_mid_p(b, c) == pytest.approx(exact - stats.binom.pmf(min(b, c), b + c, 0.5), abs=1e-12)


def test_mid_p_by_hand() -> None:
    # Discordant 1 and 7 (Fagerland et al. 2013 work such a table): n = 8, P(X=0) = 1/256, P(X=1) = 8/256.
    # Exact two-sided 2·9/256 = 0.0703; mid-p 2·9/256 − 8/256 = 10/256 = 0.0390625.
    assert mcnemar_mid_p(1, 7) == pytest.approx(10 / 256)
    assert mcnemar_mid_p(0, 0) == 1.0


@pytest.mark.parametrize("m", [1, 2, 5, 28])
def test_holm_equals_statsmodels(m: int) -> None:
    rng = np.random.default_rng(m)
    for p in (rng.random(m), rng.random(m) / 50, np.full(m, 0.03), np.round(rng.random(m), 1), np.zeros(m), np.ones(m)):
        assert holm(p) == pytest.approx(multipletests(p, method="holm")[1], abs=1e-12)


def test_holm_by_hand() -> None:
    # Sorted .01 .02 .04 → ×3, ×2, ×1 = .03 .04 .04; back in the order given.
    assert holm([0.04, 0.01, 0.02]) == pytest.approx([0.04, 0.03, 0.04])
    assert len(holm([])) == 0


# ------------------------------------------------------------------------------------------------------ bootstrap


def test_bca_equals_scipy_on_the_same_resamples() -> None:
    rng = np.random.default_rng(5)
    data = rng.exponential(size=40)
    reference = stats.bootstrap((data,), np.mean, n_resamples=4000, method="BCa", rng=np.random.default_rng(1))
    jackknife = (data.sum() - data) / (len(data) - 1)
    ours = bca(float(data.mean()), reference.bootstrap_distribution, jackknife, 0.95)
    assert ours == pytest.approx(tuple(reference.confidence_interval), abs=1e-9)
    basic = stats.bootstrap((data,), np.mean, n_resamples=4000, method="percentile", rng=np.random.default_rng(1))
    assert percentile(reference.bootstrap_distribution, 0.95) == pytest.approx(
        tuple(basic.confidence_interval), abs=1e-9
    )


def test_resamples_are_the_cluster_bootstrap() -> None:
    sums = np.arange(12.0).reshape(6, 2)
    counts = np.concatenate(list(resample_counts(6, 5000, 0)))
    assert (counts.sum(axis=1) == 6).all()
    assert counts.mean(axis=0) == pytest.approx(np.ones(6), abs=0.06)
    assert counts.var(axis=0) == pytest.approx(np.full(6, 5 / 6), abs=0.08)  # multinomial: G · 1/G · (1 − 1/G)
    assert bootstrap_sums(sums, 5000, 0) == pytest.approx(counts @ sums)
    assert jackknife_sums(sums)[0] == pytest.approx(sums[1:].sum(axis=0))


def test_resamples_do_not_depend_on_the_block_size(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = np.concatenate(list(resample_counts(7, 50, 3)))
    monkeypatch.setattr("isr.stats.bootstrap.BLOCK", 70)
    assert (np.concatenate(list(resample_counts(7, 50, 3))) == whole).all()


# ---------------------------------------------------------------------------------------------- Tango's interval


def _tango_by_likelihood(n10: int, n01: int, n: int) -> tuple[float, float]:
    """Ends found with the constrained likelihood maximised numerically: nothing of the closed form is used."""

    def statistic(delta: float) -> float:
        def negative(q: float) -> float:
            cells = ((n10, q + delta), (n01, q), (n - n10 - n01, 1 - 2 * q - delta))
            return -sum(k * log(max(p, 1e-300)) for k, p in cells if k)

        low, high = max(0.0, -delta), (1 - delta) / 2
        q = optimize.minimize_scalar(negative, bounds=(low, high), method="bounded", options={"xatol": 1e-12}).x
        return float((n10 - n01 - n * delta) / np.sqrt(n * (2 * q + delta - delta**2)))

    observed = (n10 - n01) / n
    low = optimize.brentq(lambda d: statistic(d) - Z, -1 + 1e-9, observed - 1e-9) if observed > -1 else -1.0
    high = optimize.brentq(lambda d: statistic(d) + Z, observed + 1e-9, 1 - 1e-9) if observed < 1 else 1.0
    return float(low), float(high)


@pytest.mark.parametrize(
    ("n10", "n01", "n"), [(12, 9, 44), (40, 20, 160), (5, 1, 20), (0, 3, 30), (7, 0, 25), (20, 20, 40)]
)
def test_score_interval_equals_numerical_likelihood(n10: int, n01: int, n: int) -> None:
    assert paired_score_interval(n10 / n, n01 / n, n, Z) == pytest.approx(_tango_by_likelihood(n10, n01, n), abs=2e-6)


def test_score_interval_without_discordance_by_hand() -> None:
    # q = 0, so nΔ² = z² |Δ|(1 − |Δ|): Δ = ± z²/(n + z²) = ± 3.841459/53.841459 = ± 0.071348.
    low, high = paired_score_interval(0.0, 0.0, 50, Z)
    assert (low, high) == pytest.approx((-0.071348, 0.071348), abs=1e-6)


def test_score_interval_ends() -> None:
    assert paired_score_interval(1.0, 0.0, 10, Z)[1] == 1.0
    assert paired_score_interval(0.3, 0.2, 5, float("inf")) == (-1.0, 1.0)
    with pytest.raises(UsageError, match="shares that add up to at most 1"):
        paired_score_interval(0.7, 0.5, 10, Z)


# ------------------------------------------------------------------------------------------------ the whole result


def test_paired_difference_by_hand() -> None:
    # Images a, b, c with 2 cases each. a: (1,0)(1,1) → sum 1; b: (1,0)(1,0) → 2; c: (0,1)(0,0) → −1. Difference 2/6.
    # Sign-flip of 1, 2, −1 (total 2): totals ±1±2±1 = 4, 2, 2, 0, 0, −2, −2, −4 → 6 of 8 reach |2|.
    result = paired_difference([1, 1, 1, 1, 0, 0], [0, 1, 0, 0, 1, 0], list("aabbcc"))
    assert result.difference == pytest.approx(2 / 6)
    assert (result.only_a, result.only_b, result.n, result.n_clusters) == (3, 1, 6, 3)
    assert (result.rate_a, result.rate_b) == (pytest.approx(4 / 6), pytest.approx(2 / 6))
    assert result.p_value == pytest.approx(6 / 8)
    # Three images are too few for a bootstrap.
    assert result.interval.method == "paired score on effective n (fewer than 10 images differ from the rest)"
    assert result.interval.low <= result.difference <= result.interval.high


def test_effective_pairs_by_hand() -> None:
    # Images of 2 cases with sums 1, 2, −1; n = 6, p10 = 3/6, p01 = 1/6. A quarter image (half a case) each way: n' = 7,
    # p10 = 3.5/7 = .5, p01 = 1.5/7 = .2142857, θ = 2/7. Squares (1 − 4/7)² + (2 − 4/7)² + (−1 − 4/7)² = (9 + 100 + 121)/49
    # = 4.693878, plus (2²/4)((5/7)² + (9/7)²) = 106/49 = 2.163265: 6.857143. V = 3.5/2.5 · 6.857143/49 = .1959184.
    # n_eff = 6 (.7142857 − .0816327)/(7 · .1959184) = 3.795918/1.371429 = 2.767857.
    result = paired_difference([1, 1, 1, 1, 0, 0], [0, 1, 0, 0, 1, 0], list("aabbcc"))
    assert result.interval.n_eff == pytest.approx(2.767857, abs=1e-6)
    assert (result.interval.low, result.interval.high) == pytest.approx(
        paired_score_interval(3 / 6, 1 / 6, 2.767857, stats.t.ppf(0.975, 2)), abs=1e-6
    )


def test_which_interval() -> None:
    """The bootstrap from ten images on that depart from the commonest difference."""
    ids = np.repeat(np.arange(40), 3)
    for departing, name in ((9, "paired score"), (10, "BCa")):
        a = np.zeros(120)
        a[: 3 * departing : 3] = 1
        assert paired_difference(a, np.zeros(120), ids).interval.method.startswith(name)
    independent = paired_difference(np.arange(30) < 4, np.zeros(30))
    assert independent.interval.n_eff == 30
    assert (independent.interval.low, independent.interval.high) == pytest.approx(
        _tango_by_likelihood(4, 0, 30), abs=2e-6
    )


def test_one_case_per_image_uses_mcnemar() -> None:
    result = paired_difference([1] * 7 + [0] * 3, [0] * 7 + [1] + [0] * 2)
    assert result.test == "McNemar mid-p"
    assert result.p_value == mcnemar_mid_p(7, 1)
    assert result.p_sign_flip == pytest.approx(mcnemar([[0, 7], [1, 0]], exact=True).pvalue)


@pytest.mark.parametrize("value", [0, 1])
def test_all_pairs_alike_get_the_score_interval(value: int) -> None:
    y = np.full(50, value)
    result = paired_difference(y, y, np.repeat(np.arange(10), 5))
    assert result.interval.method == "paired score on effective n (all per-image differences are equal)"
    assert result.interval.n_eff == 10
    assert result.p_value == 1.0
    # t(9) = 2.262157: ± t²/(10 + t²) = ± 5.117355/15.117355 = ± 0.338509.
    assert (result.interval.low, result.interval.high) == pytest.approx((-0.338509, 0.338509), abs=1e-6)


def test_equal_non_zero_differences_get_the_score_interval() -> None:
    result = paired_difference(np.tile([1, 1, 0], 20), np.tile([1, 0, 0], 20), np.repeat(np.arange(20), 3))
    assert result.interval.method.startswith("paired score on effective n")
    assert result.interval.low < 1 / 3 < result.interval.high
    assert result.p_value == pytest.approx(2 / 2**20)


def test_one_image_knows_nothing() -> None:
    result = paired_difference([1, 1, 0], [0, 1, 0], ["a"] * 3)
    assert (result.interval.low, result.interval.high) == (-1.0, 1.0)
    assert result.p_value == 1.0


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 20), st.booleans(), st.booleans()), min_size=2, max_size=50),
    st.randoms(use_true_random=False),
)
def test_properties(rows: list[tuple[int, bool, bool]], random: object) -> None:
    ids, a, b = ([r[i] for r in rows] for i in range(3))
    one = paired_difference(a, b, ids, n_boot=400)
    assert -1 <= one.interval.low <= one.interval.high <= 1
    swapped = paired_difference(b, a, ids, n_boot=400)
    assert swapped.difference == pytest.approx(-one.difference)
    assert swapped.p_value == pytest.approx(one.p_value)
    # Neither the order of rows nor the names of images matter.
    order = list(range(len(rows)))
    random.shuffle(order)  # type: ignore[attr-defined]
    shuffled = paired_difference(
        [a[i] for i in order], [b[i] for i in order], [f"x{ids[i]}" for i in order], n_boot=400
    )
    assert (shuffled.difference, shuffled.p_value) == (pytest.approx(one.difference), pytest.approx(one.p_value))
    assert (shuffled.interval.low, shuffled.interval.high) == pytest.approx(
        (one.interval.low, one.interval.high), abs=1e-9
    )
    assert shuffled.interval.method == one.interval.method
    assert one.interval.low - 1e-9 <= one.difference <= one.interval.high + 1e-9 or one.interval.method.startswith(
        "BCa"
    )


def test_duplicating_cases_within_images_adds_no_information() -> None:
    rng = np.random.default_rng(2)
    a, b, ids = rng.integers(0, 2, 60), rng.integers(0, 2, 60), np.repeat(np.arange(20), 3)
    one = paired_difference(a, b, ids)
    five = paired_difference(np.repeat(a, 5), np.repeat(b, 5), np.repeat(ids, 5))
    assert (five.interval.low, five.interval.high) == pytest.approx((one.interval.low, one.interval.high))
    assert five.p_value == pytest.approx(one.p_value)


def test_seed_decides() -> None:
    rng = np.random.default_rng(2)
    a, b, ids = rng.integers(0, 2, 500), rng.integers(0, 2, 500), rng.integers(0, 60, 500)
    assert paired_difference(a, b, ids, seed=1) == paired_difference(a, b, ids, seed=1)
    assert paired_difference(a, b, ids, seed=1).interval != paired_difference(a, b, ids, seed=2).interval


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: paired_difference([1, 0], [1]), "b: expected the 2 cases of `a`"),
        (lambda: paired_difference([], []), "at least 1"),
        (lambda: paired_difference([1, 2], [1, 0]), "a: expected only 0 and 1"),
        (lambda: paired_difference([[1]], [[1]]), "a: expected a one-dimensional array"),
        (lambda: sign_flip([]), "differences: expected a non-empty"),
        (lambda: sign_flip([float("nan")]), "finite"),
        (lambda: mcnemar_mid_p(-1, 2), "whole numbers of at least 0"),
        (lambda: holm([0.1, 1.5]), r"within \[0, 1\]"),
        (lambda: list(resample_counts(3, 0, 0)), "n_boot: expected at least 1"),
    ],
)
def test_errors(call: object, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        call()  # type: ignore[operator]
