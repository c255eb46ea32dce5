"""Sampling: hand-worked allocations, exact inclusion probabilities, reproducibility, errors, advice."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from isr.human_study.orders import REPEAT_DISTANCE, rater_order, share_items
from isr.human_study.sampling import advice, allocate, stratified_sample

from isr.errors import UsageError


def table(sizes: dict[tuple[str, str], int]) -> pd.DataFrame:
    rows = [(f"{a}{b}{i}", a, b) for (a, b), n in sizes.items() for i in range(n)]
    return pd.DataFrame(rows, columns=["case_id", "method", "prompt_kind"])


@pytest.mark.parametrize(
    ("sizes", "n", "how", "expected"),
    [
        # 20 · (3, 10, 100)/113 = 0.53, 1.77, 17.70: one for the first, 1 and 17 for the others, the last to the largest rest (.77)
        ([3, 10, 100], 20, "proportional", [1, 2, 17]),
        # 10 · (1…1, 1000)/1005: each small one still gets its one
        ([1] * 5 + [1000], 10, "proportional", [1, 1, 1, 1, 1, 5]),
        ([50, 50], 10, "proportional", [5, 5]),
        # 20/3 = 6 each; the first has only 3; the 5 left go 2 and 2, then 1 to the second
        ([3, 10, 100], 20, "equal", [3, 9, 8]),
        ([5, 5, 5], 15, "equal", [5, 5, 5]),
    ],
)  # fmt: skip
def test_allocation_by_hand(sizes: list[int], n: int, how: str, expected: list[int]) -> None:
    assert allocate(sizes, n, how) == expected  # type: ignore[arg-type]


@given(
    sizes=st.lists(st.integers(1, 60), min_size=1, max_size=12), data=st.data(), how=st.sampled_from(["proportional", "equal"])
)  # fmt: skip
def test_allocation_adds_up_and_fits(sizes: list[int], data: st.DataObject, how: str) -> None:
    n = data.draw(st.integers(len(sizes), sum(sizes)))
    counts = allocate(sizes, n, how)  # type: ignore[arg-type]
    assert sum(counts) == n
    assert all(1 <= c <= s for c, s in zip(counts, sizes, strict=True))


def test_inclusion_probabilities_are_counts_over_population() -> None:
    sizes = {("a", "o"): 40, ("a", "u"): 20, ("b", "o"): 40, ("b", "u"): 20}
    sample = stratified_sample(table(sizes), 30, ["method", "prompt_kind"], seed=3)
    assert sample.strata[["population", "drawn"]].to_numpy().tolist() == [[40, 10], [20, 5], [40, 10], [20, 5]]
    assert set(sample.drawn["inclusion_probability"]) == {0.25}
    equal = stratified_sample(table(sizes), 32, ["method", "prompt_kind"], allocation="equal", seed=3)
    assert equal.strata["inclusion_probability"].tolist() == [8 / 40, 8 / 20, 8 / 40, 8 / 20]
    # Horvitz–Thompson: the weights of the drawn add up to the population
    assert (1 / equal.drawn["inclusion_probability"]).sum() == pytest.approx(120)


def test_every_case_is_drawn_with_its_probability() -> None:
    cases = table({("a", "o"): 8, ("b", "o"): 4})
    hits = pd.Series(0.0, index=cases["case_id"])
    for seed in range(500):
        hits[stratified_sample(cases, 6, ["method"], seed=seed).drawn["case_id"]] += 1
    # π = 4/8 and 2/4; standard error of 500 draws √(.25/500) = 0.022, so 0.1 is over four of them
    assert np.abs(hits / 500 - 0.5).max() < 0.1


def test_same_seed_same_sample_whatever_the_order() -> None:
    cases = table({("a", "o"): 20, ("b", "u"): 20, ("a", "u"): 20, ("b", "o"): 20})
    one = stratified_sample(cases, 20, ["method", "prompt_kind"], seed=1)
    two = stratified_sample(cases.sample(frac=1, random_state=7), 20, ["method", "prompt_kind"], seed=1)
    pd.testing.assert_frame_equal(one.drawn, two.drawn)
    assert set(one.drawn["case_id"]) != set(
        stratified_sample(cases, 20, ["method", "prompt_kind"], seed=2).drawn["case_id"]
    )
    assert "20 of 80 cases in 4 strata, proportional allocation, seed 1" in one.preview()


def test_a_new_stratum_leaves_the_others_as_they_were() -> None:
    few = table({("a", "o"): 30})
    more = table({("a", "o"): 30, ("b", "o"): 30})
    one = stratified_sample(few, 10, ["method"], seed=5).drawn["case_id"]
    two = stratified_sample(more, 20, ["method"], seed=5).drawn
    assert set(one) == set(two[two["stratum"] == "a"]["case_id"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n": 0}, "positive number"),
        ({"n": 99}, "99 items were asked for, and only 12"),
        ({"n": 2}, "2 items cannot cover 3 strata"),
        ({"by": ["colour"]}, "no column 'colour'; these cases have case_id, method, prompt_kind"),
        ({"by": ["method", "method"]}, "stands twice"),
        ({"by": ["method", "prompt_kind"]}, "1 of 4 combinations hold no case: method=b, prompt_kind=u"),
        ({"allocation": "neyman"}, "expected one of proportional, equal"),
    ],
)
def test_errors_name_what_is_wrong(change: dict[str, object], message: str) -> None:
    cases = table({("a", "o"): 4, ("a", "u"): 4, ("b", "o"): 4})
    arguments: dict[str, object] = {"n": 6, "by": ["method", "prompt_kind"], "allow_empty": "by" not in change} | change
    with pytest.raises(UsageError, match=message):
        stratified_sample(cases, **arguments)  # type: ignore[arg-type]


def test_missing_values_are_counted() -> None:
    cases = table({("a", "o"): 4}).assign(category=["x", None, None, "y"])
    with pytest.raises(UsageError, match="2 of 4 cases have no 'category'"):
        stratified_sample(cases, 2, ["category"])


def test_advice_on_the_papers_150_over_8_methods() -> None:
    methods = [f"m{i % 8}" for i in range(150)]
    text = " ".join(advice(pd.DataFrame({"method": methods})))
    assert "18 to 19 a method: enough for Table I" in text
    assert "too few for a corrected ISR" in text
    assert "n = 240" in text
    # Wilson at 114 of 150: centre (0.76 + 1.96²/300)/(1 + 1.96²/150) = 0.753, half-width ≈ 6.8 points
    assert "±7 points" in text
    enough = " ".join(advice(pd.DataFrame({"method": ["a"] * 40 + ["b"] * 30})))
    assert "30 to 40 items a method allow" in enough
    assert "refused under 30" in " ".join(advice(pd.DataFrame({"method": ["a"] * 29})))
    assert "can tie" in " ".join(advice(pd.DataFrame({"method": ["a"] * 40}), raters=2))


def test_orders_differ_between_raters_and_never_change() -> None:
    items = [f"i{n}" for n in range(60)]
    make = lambda rater: rater_order(items, seed=1, rater=rater, training=["t"], attention=["x", "y"], repeats=5)  # noqa: E731
    assert make(0) == make(0)
    assert make(0) != make(1)
    order = make(0)
    assert [s.kind for s in order].count("rating") == 60
    assert order[0].kind == "training"
    assert [s.kind for s in order].count("repeat") == 5
    assert [s.kind for s in order].count("attention") == 2
    first = {s.item: i for i, s in enumerate(order) if s.kind == "rating"}
    assert sorted(first) == sorted(items)
    assert all(i - first[s.item] >= REPEAT_DISTANCE for i, s in enumerate(order) if s.kind == "repeat")


@given(n=st.integers(1, 40), raters=st.integers(1, 9), data=st.data())
def test_shared_items_reach_the_right_number_of_raters(n: int, raters: int, data: st.DataObject) -> None:
    per_item = data.draw(st.integers(1, raters))
    items = [str(i) for i in range(n)]
    lists = [share_items(items, r, raters, per_item, 0) for r in range(raters)]
    counts = {item: sum(item in own for own in lists) for item in items}
    assert set(counts.values()) == {per_item}
    assert max(map(len, lists)) - min(map(len, lists)) <= 1


@given(n=st.integers(0, 15), repeats=st.integers(0, 20))
def test_short_lists_get_only_the_repeats_that_fit(n: int, repeats: int) -> None:
    order = rater_order([str(i) for i in range(n)], seed=0, rater=0, repeats=repeats)
    again = [s.item for s in order if s.kind == "repeat"]
    assert len(set(again)) == len(again) <= min(repeats, n)
