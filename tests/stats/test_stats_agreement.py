"""Agreement coefficients against krippendorff, statsmodels, scikit-learn, published tables, and recorded irrCAC values."""

from __future__ import annotations

import krippendorff
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import cohen_kappa_score
from statsmodels.stats.inter_rater import aggregate_raters
from statsmodels.stats.inter_rater import fleiss_kappa as statsmodels_fleiss

from isr.errors import UsageError
from isr.stats.agreement import (
    bias_index,
    cohen_kappa,
    fleiss_kappa,
    gwet_ac1,
    krippendorff_alpha,
    percent_agreement,
    prevalence_index,
)

NAN = np.nan

# Krippendorff (2011), p. 8: 4 observers, 12 units; nominal α published as .743.
CANONICAL = np.array(
    [
        [1, 2, 3, 3, 2, 1, 4, 1, 2, NAN, NAN, NAN],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, NAN, 3],
        [NAN, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, NAN],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, NAN],
    ]
).T

# 24 items × 5 raters, binary, with and without missing ratings; coefficients recorded from irrCAC 0.4.4 (digits=10), which
# cannot be installed beside this package (it pins scipy 1.12 and pandas < 3).
WITH_MISSING = """
. 1 1 1 0 / 1 . . . . / . . . 1 1 / 1 1 . 0 1 / 1 1 1 1 0 / 1 . 1 . 1 / 1 . 1 . 1 / 0 0 . 1 1 / 1 1 1 1 1 / 1 1 1 1 . /
0 1 1 . 1 / 1 1 1 . . / . 1 1 . . / 1 1 0 1 1 / 0 0 1 0 0 / 0 0 0 0 0 / 0 0 0 0 0 / 1 1 0 1 1 / 1 1 1 0 1 / 1 1 . 1 . /
. . . . 1 / 0 1 1 1 1 / . . . 1 1 / 1 1 . 1 0
"""
MISSING = np.array([[NAN if c == "." else float(c) for c in row.split()] for row in WITH_MISSING.split("/")])
IRRCAC = {"fleiss": 0.3307711358, "gwet": 0.6488576805, "krippendorff": 0.3711827957, "conger_first_two": 0.6856617647}


def table(n11: int, n10: int, n01: int, n00: int) -> tuple[list[int], list[int]]:
    return [1] * (n11 + n10) + [0] * (n01 + n00), [1] * n11 + [0] * n10 + [1] * n01 + [0] * n00


def test_canonical_data() -> None:
    assert krippendorff_alpha(CANONICAL).value == pytest.approx(0.743, abs=5e-4)
    assert krippendorff_alpha(CANONICAL).value == pytest.approx(
        krippendorff.alpha(CANONICAL.T, level_of_measurement="nominal"), abs=1e-12
    )
    # irrCAC 0.4.4 on the same data: AC1 .7754441, Fleiss .7611693.
    assert gwet_ac1(CANONICAL).value == pytest.approx(0.7754441, abs=1e-6)
    assert fleiss_kappa(CANONICAL).value == pytest.approx(0.7611693, abs=1e-6)
    assert krippendorff_alpha(CANONICAL).n_items == 11


def test_recorded_irrcac_values_with_missing_ratings() -> None:
    assert fleiss_kappa(MISSING).value == pytest.approx(IRRCAC["fleiss"], abs=1e-6)
    assert gwet_ac1(MISSING).value == pytest.approx(IRRCAC["gwet"], abs=1e-6)
    assert krippendorff_alpha(MISSING).value == pytest.approx(IRRCAC["krippendorff"], abs=1e-6)


def test_fleiss_published_table() -> None:
    # Fleiss (1971) layout, the 10 × 5 table with 14 raters widely used as an example: κ = 0.210.
    counts = np.array(
        [[0, 0, 0, 0, 14], [0, 2, 6, 4, 2], [0, 0, 3, 5, 6], [0, 3, 9, 2, 0], [2, 2, 8, 1, 1],
         [7, 7, 0, 0, 0], [3, 2, 6, 3, 0], [2, 5, 3, 2, 2], [6, 5, 2, 1, 0], [0, 2, 2, 3, 7]]
    )  # fmt: skip
    ratings = np.array([[k for k, c in enumerate(row) for _ in range(c)] for row in counts])
    assert fleiss_kappa(ratings).value == pytest.approx(0.210, abs=5e-4)
    assert fleiss_kappa(ratings).value == pytest.approx(statsmodels_fleiss(counts), abs=1e-12)


def test_gwet_three_categories_published_table() -> None:
    # Gwet's abstractors: 13 0 0 / 0 20 7 / 0 4 56. Agreement .89; chance κ .13·.13 + .27·.24 + .60·.63 = .4597 → .43030/.5403 =
    # .79641 (published); AC1: π = .13, .255, .615, Σπ(1−π)/2 = .269925 → .620075/.730075 = .84933 (irrCAC too).
    cells = np.array([[13, 0, 0], [0, 20, 7], [0, 4, 56]])
    pairs = np.array([(i, j) for i in range(3) for j in range(3) for _ in range(cells[i, j])])
    assert cohen_kappa(pairs[:, 0], pairs[:, 1]).value == pytest.approx(0.79641, abs=1e-5)
    assert gwet_ac1(pairs).value == pytest.approx(0.620075 / 0.730075, abs=1e-12)


def test_two_by_two_by_hand() -> None:
    # 20/5/10/15: po = 35/50 = .7; pe = (25·30 + 25·20)/2500 = .5; κ = .2/.5 = .4. Prevalence |20 − 15|/50 = .1, bias
    # |5 − 10|/50 = .1. Fleiss (Scott): π = 55/100; pe = .3025 + .2025 = .505; (.7 − .505)/.495 = .393939.
    # AC1: pe = 2·.55·.45 = .495; (.7 − .495)/.505 = .405941. α: n = 100, D_o = 15 items · 2 = 30, n² − Σn_k² = 4950:
    # 1 − 99·30/4950 = .4.
    a, b = table(20, 5, 10, 15)
    both = np.column_stack([a, b])
    assert percent_agreement(both).value == pytest.approx(0.7)
    assert cohen_kappa(a, b).value == pytest.approx(0.4)
    assert prevalence_index(a, b).value == pytest.approx(0.1)
    assert bias_index(a, b).value == pytest.approx(0.1)
    assert fleiss_kappa(both).value == pytest.approx(0.195 / 0.495)
    assert gwet_ac1(both).value == pytest.approx(0.205 / 0.505)
    assert krippendorff_alpha(both).value == pytest.approx(0.4)


def test_high_agreement_low_kappa() -> None:
    # The paradox that the indices explain: 72/12/12/4 agree on 76 %, yet κ = (.76 − .7312)/.2688 = .10714; prevalence .68.
    a, b = table(72, 12, 12, 4)
    assert percent_agreement(np.column_stack([a, b])).value == pytest.approx(0.76)
    assert cohen_kappa(a, b).value == pytest.approx(0.0288 / 0.2688)
    assert prevalence_index(a, b).value == pytest.approx(0.68)
    assert bias_index(a, b).value == 0


ROWS = st.lists(st.lists(st.sampled_from([0.0, 1.0, NAN]), min_size=4, max_size=4), min_size=3, max_size=30)


@settings(deadline=None, max_examples=60)
@given(ROWS)
def test_against_outside_implementations_with_missing(rows: list[list[float]]) -> None:
    x = np.array(rows)
    paired = (~np.isnan(x)).sum(axis=1) >= 2
    ours = krippendorff_alpha(x)
    if not paired.any() or len(np.unique(x[paired][~np.isnan(x[paired])])) < 2:
        assert ours.value is None
        assert ours.reason in (
            "no item has two ratings",
            "every rating is the same category, so chance agreement is complete",
        )
        return
    assert ours.value == pytest.approx(krippendorff.alpha(x.T, level_of_measurement="nominal"), abs=1e-9)
    both = ~np.isnan(x[:, 0]) & ~np.isnan(x[:, 1])
    kappa = cohen_kappa(x[:, 0], x[:, 1])
    if not both.any() or len(np.unique(x[both][:, :2])) < 2:
        assert kappa.value is None
    else:
        assert kappa.value == pytest.approx(cohen_kappa_score(x[both, 0], x[both, 1]), abs=1e-9)
        assert kappa.n_items == both.sum()


@settings(deadline=None, max_examples=60)
@given(st.lists(st.lists(st.integers(0, 2), min_size=3, max_size=3), min_size=2, max_size=20))
def test_against_statsmodels_without_missing(rows: list[list[int]]) -> None:
    x = np.array(rows)
    ours = fleiss_kappa(x)
    if len(np.unique(x)) < 2:
        assert ours.value is None
        return
    assert ours.value == pytest.approx(statsmodels_fleiss(aggregate_raters(x)[0]), abs=1e-9)
    # Mean over pairs equals Fleiss' observed agreement when nothing is missing.
    pairs = [(0, 1), (0, 2), (1, 2)]
    assert percent_agreement(x).value == pytest.approx(np.mean([(x[:, a] == x[:, b]).mean() for a, b in pairs]))


@settings(deadline=None, max_examples=40)
@given(ROWS, st.randoms(use_true_random=False))
def test_order_and_labels_do_not_matter(rows: list[list[float]], random: object) -> None:
    x = np.array(rows)
    items, raters = list(range(len(x))), list(range(4))
    random.shuffle(items)  # type: ignore[attr-defined]
    random.shuffle(raters)  # type: ignore[attr-defined]
    moved = x[items][:, raters]
    for f in (percent_agreement, fleiss_kappa, krippendorff_alpha, gwet_ac1):
        one = f(x)
        for other in (f(moved), f(1 - x)):
            assert other.reason == one.reason
            assert other.value == (None if one.value is None else pytest.approx(one.value, abs=1e-12))


def test_a_rater_without_answers_and_items_with_one_change_no_alpha() -> None:
    more = np.vstack([np.column_stack([MISSING, np.full(len(MISSING), NAN)]), [1, NAN, NAN, NAN, NAN, NAN]])
    assert krippendorff_alpha(more).value == pytest.approx(krippendorff_alpha(MISSING).value)
    assert percent_agreement(more).value == pytest.approx(percent_agreement(MISSING).value)


def test_degenerate_tables_are_undefined_with_a_reason() -> None:
    same = np.ones((10, 3))
    for f in (fleiss_kappa, krippendorff_alpha):
        assert f(same).value is None
        assert f(same).reason == "every rating is the same category, so chance agreement is complete"
    assert percent_agreement(same).value == 1.0
    # AC1 knows of the category that nobody used only if it is told: then chance is 0 and agreement complete.
    assert gwet_ac1(same).value is None
    assert gwet_ac1(same, categories=(0, 1)).value == 1.0
    assert cohen_kappa([1, 1], [1, 1]).value is None
    # One constant rater is not degenerate: κ is 0.
    assert cohen_kappa([1, 1, 1, 1], [1, 0, 1, 0]).value == 0.0
    apart = np.array([[1, NAN], [NAN, 0]])
    for f in (percent_agreement, fleiss_kappa, krippendorff_alpha, gwet_ac1):
        assert f(apart).value is None
        assert f(apart).reason == "no item has two ratings"
    assert cohen_kappa([1, NAN], [NAN, 0]).reason == "no item has two ratings"
    assert percent_agreement(np.zeros((0, 2))).value is None


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fleiss_kappa([[1], [0]]), "at least two raters"),
        (lambda: cohen_kappa([1, 0], [1]), "b: expected the shape of `a`"),
        (lambda: prevalence_index([2, 1], [1, 1]), "categories: the ratings hold 2"),
    ],
)
def test_errors(call: object, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        call()  # type: ignore[operator]
