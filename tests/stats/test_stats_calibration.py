"""Confusion, Rogan–Gladen, correlation of errors and Dawid–Skene, by hand and against scikit-learn and numpy."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import confusion_matrix, recall_score

from isr.errors import UsageError
from isr.stats.calibration import confusion, error_correlation, rogan_gladen, weighted_wilson
from isr.stats.dawid_skene import dawid_skene
from isr.stats.intervals import clustered_wilson, critical_value, score_interval, wilson

NAN = np.nan


def cells(tp: int, fp: int, fn: int, tn: int) -> tuple[np.ndarray, np.ndarray]:
    """(judge, people)."""
    return np.repeat([1.0, 1, 0, 0], [tp, fp, fn, tn]), np.repeat([1.0, 0, 1, 0], [tp, fp, fn, tn])


def test_confusion_by_hand_and_sklearn() -> None:
    # Sensitivity 40/50, specificity 30/40.
    judge, people = cells(40, 10, 10, 30)
    found = confusion(judge, people)
    assert (found.sensitivity.value, found.specificity.value) == (0.8, 0.75)
    tn, fp, fn, tp = confusion_matrix(people, judge).ravel()
    assert (found.true_positive, found.false_positive, found.false_negative, found.true_negative) == (tp, fp, fn, tn)
    assert found.sensitivity.value == pytest.approx(recall_score(people, judge))
    assert found.specificity.value == pytest.approx(recall_score(people, judge, pos_label=0))
    assert found.sensitivity.interval is not None
    assert found.sensitivity.interval.low < 0.8 < found.sensitivity.interval.high


def test_confusion_leaves_missing_out_and_counts_it() -> None:
    found = confusion([1, NAN, 0, 1], [1, 1, NAN, 0])
    assert found.n_left_out == 2
    assert (found.true_positive, found.false_positive) == (1, 1)


def test_no_item_to_divide_by() -> None:
    found = confusion([1, 0], [1, 1])
    assert found.specificity.value is None
    assert found.specificity.reason == "no item that people call false"
    assert rogan_gladen(0.5, wilson(1, 2), found).reason == "no item that people call false"


def test_weights_change_the_shares() -> None:
    # People yes on three items, judge right on the first only, whose weight is 3 of 5.
    found = confusion([1, 0, 0, 0], [1, 1, 1, 0], weights=[3, 1, 1, 1])
    assert found.sensitivity.value == pytest.approx(0.6)


def test_weighted_wilson() -> None:
    y, ids = [1, 1, 0, 1, 0, 1], list("aabbcc")
    assert weighted_wilson(y, np.full(6, 4.0), ids).low == pytest.approx(clustered_wilson(y, ids).low)
    assert weighted_wilson(y, [5, 1, 1, 1, 1, 1], ids).n_eff < 6  # type: ignore[operator]
    scaled = [weighted_wilson(y, w, ids) for w in ([1, 2, 3, 1, 2, 3], [10, 20, 30, 10, 20, 30])]
    assert scaled[0] == scaled[1]
    with pytest.raises(UsageError, match="weights: expected 6"):
        weighted_wilson(y, [1, 0, 1, 1, 1, 1])


def test_weighted_wilson_covers() -> None:
    """A rate of 0.7 where drawing is four times as likely for half of the items, whose rate is higher."""
    rng = np.random.default_rng(8)
    hits = 0
    for _ in range(400):
        group = rng.random(400) < 0.5
        y = rng.random(400) < np.where(group, 0.9, 0.5)
        p = np.where(group, 0.4, 0.1)
        drawn = rng.random(400) < p
        hits += 0.7 in weighted_wilson(y[drawn], 1 / p[drawn])
    assert hits / 400 >= 0.92


def test_rogan_gladen_by_hand() -> None:
    # p .65, se .8, sp .75: (.65 + .75 − 1)/(.55) = .727273.
    judge, people = cells(40, 10, 10, 30)
    judged = confusion(judge, people)
    apparent = wilson(650, 1000)
    found = rogan_gladen(0.65, apparent, judged)
    assert found.value == pytest.approx(0.4 / 0.55)
    # Variance: [.65·.35/1000 + .727273²·.16/n_se + .272727²·.1875/n_sp] / .55².
    assert judged.sensitivity.interval is not None
    assert judged.specificity.interval is not None
    n_se, n_sp = judged.sensitivity.interval.n_eff, judged.specificity.interval.n_eff
    assert n_se is not None
    assert n_sp is not None
    assert n_se == pytest.approx(50, rel=0.05)
    spread = np.sqrt(0.65 * 0.35 / 1000 + 0.7272727**2 * 0.16 / n_se + 0.2727273**2 * 0.1875 / n_sp) / 0.55
    assert found.high == pytest.approx(0.7272727 + critical_value(0.95) * spread, abs=1e-6)


def test_rogan_gladen_is_not_clipped_and_may_be_undefined() -> None:
    judge, people = cells(90, 30, 10, 70)
    low = rogan_gladen(0.2, wilson(20, 100), confusion(judge, people))
    assert low.value == pytest.approx(-0.1 / 0.6)
    judge, people = cells(10, 30, 30, 10)
    none = rogan_gladen(0.5, wilson(50, 100), confusion(judge, people))
    assert none.value is None
    assert "no better than chance" in none.reason


def test_error_correlation_is_phi() -> None:
    rng = np.random.default_rng(1)
    people = rng.integers(0, 2, 300).astype(float)
    hard = rng.random(300) < 0.3
    judges = pd.DataFrame({j: np.where((rng.random(300) < 0.5) & hard, 1 - people, people) for j in ("x", "y")})
    judges.loc[0, "x"] = NAN
    row = error_correlation(judges, people).iloc[0]
    rest = slice(1, None)
    wrong = [(judges[j].to_numpy()[rest] != people[rest]).astype(float) for j in ("x", "y")]
    assert row["n"] == 299
    assert row["phi"] == pytest.approx(np.corrcoef(*wrong)[0, 1])
    assert row["both_wrong"] > row["expected_if_independent"]


def test_error_correlation_is_weighted_by_hand() -> None:
    # errors of x: items 0, 1; of y: items 1, 2; weights 1, 2, 1, 4 → shares 1/8, 2/8, 1/8, 4/8
    judges = pd.DataFrame({"x": [1.0, 1, 0, 0], "y": [0.0, 1, 1, 0]})
    row = error_correlation(judges, [0.0, 0, 0, 0], weights=[1, 2, 1, 4]).iloc[0]
    assert (row["n"], row["error_a"], row["error_b"], row["both_wrong"]) == (4, 3 / 8, 3 / 8, 2 / 8)
    # φ = (2/8 − 9/64) / (3/8 · 5/8) = (7/64) / (15/64)
    assert row["phi"] == pytest.approx(7 / 15)
    with pytest.raises(UsageError, match="weights: expected 4 positive"):
        error_correlation(judges, [0.0, 0, 0, 0], weights=[1, 0, 1, 1])


def test_error_correlation_degenerate() -> None:
    perfect = error_correlation(pd.DataFrame({"x": [1.0, 0], "y": [1.0, 1]}), [1.0, 0]).iloc[0]
    assert np.isnan(perfect["phi"])
    assert perfect["reason"] == "a judge that never (or always) errs has no correlation"
    apart = error_correlation(pd.DataFrame({"x": [1.0, NAN], "y": [NAN, 1.0]}), [1.0, 0]).iloc[0]
    assert apart["reason"] == "no item that both judges and people decided"
    with pytest.raises(UsageError, match="people: expected 2 items, got 1"):
        error_correlation(pd.DataFrame({"x": [1.0, 0]}), [1])


# ---------------------------------------------------------------------------------------------------- Dawid–Skene


def test_first_step_by_hand() -> None:
    # Ratings 110, 100, 001, 111 → shares 2/3, 1/3, 1/3, 1; prevalence 7/12. Rater 0: Σ posterior on its yes = 2/3 + 1/3 + 1 = 2 of
    # 7/3 → sensitivity 6/7; Σ(1 − posterior) on its no = 2/3 of 5/3 → specificity 2/5.
    found = dawid_skene([[1, 1, 0], [1, 0, 0], [0, 0, 1], [1, 1, 1]], max_iterations=1)
    assert found.prevalence == pytest.approx(7 / 12)
    assert found.sensitivity[0] == pytest.approx(6 / 7)
    assert found.specificity[0] == pytest.approx(2 / 5)
    assert not found.converged
    # Posterior of item 0 = Bayes with these rates. Raters 1 and 2: sensitivity (2/3 + 1)/(7/3) = 5/7 and (1/3 + 1)/(7/3) = 4/7;
    # specificity (2/3 + 2/3)/(5/3) = 4/5 and (1/3 + 2/3)/(5/3) = 3/5.
    yes, no = 7 / 12 * 6 / 7 * 5 / 7 * 3 / 7, 5 / 12 * 3 / 5 * 1 / 5 * 3 / 5
    assert found.posterior[0] == pytest.approx(yes / (yes + no))


def test_recovers_simulated_raters_and_beats_the_majority() -> None:
    rng = np.random.default_rng(2)
    n, se, sp = 4000, np.array([0.95, 0.9, 0.65, 0.6, 0.6]), np.array([0.9, 0.95, 0.6, 0.65, 0.7])
    truth = rng.random(n) < 0.35
    ratings = np.where(rng.random((n, 5)) < np.where(truth[:, None], se, 1 - sp), 1.0, 0.0)
    ratings[rng.random((n, 5)) < 0.1] = NAN
    ratings = ratings[~np.isnan(ratings).all(axis=1)]
    truth = truth[: len(ratings)]
    found = dawid_skene(ratings)
    assert found.converged
    assert found.prevalence == pytest.approx(0.35, abs=0.03)
    assert found.sensitivity == pytest.approx(se, abs=0.05)
    assert found.specificity == pytest.approx(sp, abs=0.05)
    assert (np.diff(found.log_likelihoods) > -1e-9).all()
    majority = np.nanmean(ratings, axis=1) > 0.5
    assert ((found.posterior > 0.5) == truth).mean() > (majority == truth).mean() + 0.03


def test_dawid_skene_degenerate_and_refusals() -> None:
    same = dawid_skene(np.ones((5, 3)))
    assert same.posterior == pytest.approx(np.ones(5))
    assert np.isnan(same.specificity).all()
    with pytest.raises(UsageError, match=r"raters ≥ 3"):
        dawid_skene([[1, 0]])
    with pytest.raises(UsageError, match="1 items have no rating"):
        dawid_skene([[1, 0, 1], [NAN, NAN, NAN]])
    with pytest.raises(UsageError, match="1, 0 or NaN only"):
        dawid_skene([[2, 0, 1]])


def test_interval_of_a_share_is_the_clustered_one() -> None:
    judge, people = cells(40, 10, 10, 30)
    ids = np.arange(90) % 18
    found = confusion(judge, people, ids)
    assert found.sensitivity.interval is not None
    expected = clustered_wilson(judge[people == 1], ids[people == 1])
    assert (found.sensitivity.interval.low, found.sensitivity.interval.high) == pytest.approx(
        (expected.low, expected.high)
    )
    assert score_interval(0.8, 50, 2.0)[0] > 0.6
