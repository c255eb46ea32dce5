"""Rates, bounds, band and ISR@k: hand-worked tables, and every assignment of the undetermined cases by brute force."""

from __future__ import annotations

from itertools import product

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isr.errors import UsageError
from isr.stats.isr_at_k import isr_at_k
from isr.stats.outcomes import band, criterion_rate, isr, isr_table

S, F, U = "success", "failure", "undetermined"
OUTCOMES = st.lists(st.sampled_from([S, F, U]), min_size=1, max_size=8)


def assignments(outcomes: list[str]) -> list[list[str]]:
    """All ways of deciding the undetermined cases."""
    return [list(choice) for choice in product(*[(S, F) if o == U else (o,) for o in outcomes])]


def test_by_hand() -> None:
    # 10 cases: 6 successes, 3 failures, 1 undetermined → ISR 6/10; bounds [6/10, 7/10].
    rate = isr([S] * 6 + [F] * 3 + [U])
    assert (rate.value, rate.bounds, rate.n) == (0.6, (0.6, 0.7), 10)
    assert (rate.n_success, rate.n_failure, rate.n_undetermined) == (6, 3, 1)
    assert rate.interval.method == "Wilson"


@settings(deadline=None, max_examples=40)
@given(OUTCOMES)
def test_bounds_are_what_assignments_reach(outcomes: list[str]) -> None:
    rates = [sum(o == S for o in a) / len(a) for a in assignments(outcomes)]
    rate = isr(outcomes)
    assert rate.bounds == (pytest.approx(min(rates)), pytest.approx(max(rates)))
    assert rate.bounds[0] <= rate.value <= rate.bounds[1]
    assert rate.value in rate.interval


@settings(deadline=None, max_examples=40)
@given(OUTCOMES, st.data())
def test_deciding_a_case_never_widens_the_bounds(outcomes: list[str], data: st.DataObject) -> None:
    i = data.draw(st.integers(0, len(outcomes) - 1))
    before = isr(outcomes).bounds
    decided = outcomes.copy()
    decided[i] = data.draw(st.sampled_from([S, F])) if outcomes[i] == U else outcomes[i]
    after = isr(decided).bounds
    assert before[0] <= after[0] <= after[1] <= before[1]


def policies(answers: list[int | None]) -> tuple[str, str]:
    """`strict` and `any` of definitions.md section 3, spelled out for this test."""
    strict = F if 0 in answers else (S if None not in answers else U)
    lenient = S if 1 in answers else (F if None not in answers else U)
    return strict, lenient


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(*[st.sampled_from([0, 1, None])] * 2), min_size=1, max_size=6))
def test_band_holds_isr_under_every_completion_of_the_judges(table: list[tuple[int | None, int | None]]) -> None:
    strict, lenient = zip(*[policies(list(row)) for row in table], strict=True)
    low, high = band(strict, lenient)
    assert low <= isr(strict).value <= high
    assert low <= isr(lenient).value <= high
    for completed in product(*[product(*[(0, 1) if a is None else (a,) for a in row]) for row in table]):
        both = [policies(list(row)) for row in completed]
        for policy in (0, 1):
            assert low - 1e-12 <= sum(b[policy] == S for b in both) / len(both) <= high + 1e-12


def test_band_by_hand() -> None:
    # strict: S F U F → lower bound 1/4. any: S S U F → upper bound (2 + 1)/4.
    assert band([S, F, U, F], [S, S, U, F]) == (0.25, 0.75)
    assert band([S, F, U, F], [None] * 4) == (0.25, None)  # lazy hides what the skipped judges would have said


def test_band_refuses_swapped_columns() -> None:
    with pytest.raises(UsageError, match="swapped"):
        band([S, S], [S, F])
    with pytest.raises(UsageError, match="expected the 2"):
        band([S, F], [S])


def test_criterion_rate_by_hand() -> None:
    # Cases: (1,1) true; (1,0) split; (1,–) true by its only verdict; (–,–) not in the denominator; (0,0) false → 2/4.
    nan = np.nan
    rate = criterion_rate([[1, 1], [1, 0], [1, nan], [nan, nan], [0, 0]])
    assert (rate.value, rate.n_judged, rate.n, rate.n_true) == (0.5, 4, 5, 2)
    absent = criterion_rate([[nan, nan]])
    assert absent.value is None
    assert absent.interval is None
    assert absent.reason == "no judge gave a verdict on any case"
    with pytest.raises(UsageError, match="expected 1, 0 or NaN"):
        criterion_rate([[2.0]])


def test_table_by_group() -> None:
    cases = pd.DataFrame(
        {
            "method": ["a", "a", "b", "b", None],
            "image_id": ["1", "2", "1", "1", "1"],
            "outcome": [S, U, F, S, S],
        }
    )
    table = isr_table(cases)
    assert table["isr"].tolist() == [0.5, 0.5, 1.0]
    assert table["n_undetermined"].tolist() == [1, 0, 0]
    assert table["interval"].tolist() == ["Wilson", "Wilson on effective n, clustered by image", "Wilson"]
    assert pd.isna(table["method"].iloc[2])
    assert table.iloc[::-1].reset_index(drop=True)["isr"].tolist() == [1.0, 0.5, 0.5]


@pytest.mark.parametrize("outcomes", [["defeated"], [None], [1]])
def test_unknown_outcomes(outcomes: list[object]) -> None:
    with pytest.raises(UsageError, match="outcomes: expected 'success', 'failure', 'undetermined', got"):
        isr(outcomes)


def test_no_cases() -> None:
    with pytest.raises(UsageError, match="ISR of no cases does not exist"):
        isr([])


def at_k(rows: list[tuple[str, str, int, str]]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["image_id", "prompt", "seed", "outcome"])


def test_isr_at_k_by_hand() -> None:
    # Pairs: (1,p) S S → success; (1,q) S F → failure; (2,p) S U → undetermined; (3,p) F U → failure → 1/4, bounds [1/4, 2/4].
    cases = at_k(
        [("1", "p", 0, S), ("1", "p", 1, S), ("1", "q", 0, S), ("1", "q", 1, F),
         ("2", "p", 0, S), ("2", "p", 1, U), ("3", "p", 0, F), ("3", "p", 1, U)]
    )  # fmt: skip
    rate = isr_at_k(cases, 2)
    assert (rate.value, rate.bounds, rate.n) == (0.25, (0.25, 0.5), 4)
    assert rate.interval.n_clusters == 3
    shuffled = isr_at_k(cases.sample(frac=1, random_state=1), 2)
    assert (shuffled.value, shuffled.bounds) == (rate.value, rate.bounds)


@settings(deadline=None, max_examples=25)
@given(st.lists(st.tuples(st.sampled_from([S, F, U]), st.sampled_from([S, F, U])), min_size=1, max_size=4))
def test_isr_at_k_bounds_by_brute_force(pairs: list[tuple[str, str]]) -> None:
    cases = at_k([(str(i), "p", seed, o) for i, pair in enumerate(pairs) for seed, o in enumerate(pair)])
    values = []
    for decided in assignments([o for pair in pairs for o in pair]):
        values.append(sum(decided[2 * i] == S and decided[2 * i + 1] == S for i in range(len(pairs))) / len(pairs))
    assert isr_at_k(cases, 2).bounds == (pytest.approx(min(values)), pytest.approx(max(values)))
    assert isr_at_k(cases, 2).value <= isr(cases["outcome"]).value + 1e-12


def test_isr_at_k_needs_all_k() -> None:
    cases = at_k([("1", "p", 0, S), ("1", "p", 1, S), ("2", "p", 0, S)])
    with pytest.raises(UsageError, match=r"ISR@2 needs exactly 2 edits.*1 of 2 differ.*has 1 edits and 1 seeds"):
        isr_at_k(cases, 2)
    repeated = at_k([("1", "p", 0, S), ("1", "p", 0, S)])
    with pytest.raises(UsageError, match="has 2 edits and 1 seeds"):
        isr_at_k(repeated, 2)
    with pytest.raises(UsageError, match=r"column\(s\) \['seed'\] missing"):
        isr_at_k(cases.drop(columns="seed"), 2)
