"""Comparing methods: pairs, families, the bold rule and "beats every baseline"; and sample size."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from isr.errors import UsageError
from isr.stats.compare import beats_every, compare_methods, mark_best, rates_and_comparison
from isr.stats.outcomes import isr_table
from isr.stats.paired import paired_difference
from isr.stats.power import paired_power, sample_size
from isr.stats.significance import holm

S, F, U = "success", "failure", "undetermined"


def cases(
    rates: dict[str, float], *, images: int = 40, prompts: int = 3, seed: int = 0, **columns: object
) -> pd.DataFrame:
    """Outcomes with the given rates; the k-th case is a success where a shared hardness falls below the rate."""
    rng = np.random.default_rng(seed)
    hardness = 0.5 * rng.random((images, 1)) + 0.5 * rng.random((images, prompts))
    rows = [
        {"method": m, "image_id": f"i{i}", "prompt": f"p{j}", "seed": 0,
         "outcome": S if hardness[i, j] + 0.1 * rng.standard_normal() < np.quantile(hardness, rate) else F} | columns
        for m, rate in rates.items() for i in range(images) for j in range(prompts)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def test_equals_the_single_comparison() -> None:
    table = cases({"a": 0.8, "b": 0.6, "c": 0.3})
    pairs = compare_methods(table, n_boot=2000)
    assert list(zip(pairs["a"], pairs["b"], strict=True)) == [("a", "b"), ("a", "c"), ("b", "c")]
    wide = table.set_index(["image_id", "prompt", "method"])["outcome"].unstack()
    ids = wide.index.get_level_values("image_id").to_numpy()
    for _, row in pairs.iterrows():
        single = paired_difference(wide[row["a"]] == S, wide[row["b"]] == S, ids, n_boot=2000)
        assert (row["difference"], row["low"], row["high"]) == pytest.approx(
            (single.difference, single.interval.low, single.interval.high)
        )
        assert (row["p"], row["test"]) == (pytest.approx(single.p_value), single.test)
        assert (row["only_a"], row["only_b"], row["n_images"]) == (single.only_a, single.only_b, single.n_clusters)
    assert pairs["p_holm"].tolist() == pytest.approx(holm(pairs["p"]).tolist())


def test_families_are_corrected_apart() -> None:
    one, other = cases({"a": 0.8, "b": 0.7}, editor="x"), cases({"a": 0.8, "b": 0.7, "c": 0.6}, editor="y", seed=1)
    together = compare_methods(pd.concat([one, other]), n_boot=200)
    assert together["editor"].tolist() == ["x", "y", "y", "y"]
    assert together.loc[0, "p_holm"] == pytest.approx(together.loc[0, "p"])
    alone = compare_methods(other, n_boot=200)
    pd.testing.assert_frame_equal(together.iloc[1:].reset_index(drop=True), alone)


def test_row_order_does_not_matter() -> None:
    table = cases({"a": 0.8, "b": 0.6})
    shuffled = table.sample(frac=1, random_state=3)
    first, second = compare_methods(table, n_boot=500), compare_methods(shuffled, n_boot=500)
    sign = 1 if second.loc[0, "a"] == first.loc[0, "a"] else -1
    assert second.loc[0, "difference"] == pytest.approx(sign * first.loc[0, "difference"])
    assert second.loc[0, "p"] == pytest.approx(first.loc[0, "p"])


def test_undetermined_is_no_success_and_widens_the_bounds() -> None:
    # a: S U S F, b: S F U F → rates 2/4 and 1/4; bounds [2/4 − 2/4, 3/4 − 1/4].
    table = pd.DataFrame(
        {"method": list("aaaabbbb"), "image_id": list("12341234"), "prompt": "p", "outcome": [S, U, S, F, S, F, U, F]}
    )
    row = compare_methods(table, n_boot=100).iloc[0]
    assert (row["rate_a"], row["rate_b"], row["difference"]) == (0.5, 0.25, 0.25)
    assert (row["bound_low"], row["bound_high"]) == (0.0, 0.5)
    assert row["test"] == "McNemar mid-p"


def test_only_shared_cases_are_compared() -> None:
    table = cases({"a": 0.8, "b": 0.6}, images=10, prompts=2)
    table = table.drop(table[(table["method"] == "b") & (table["image_id"] == "i0")].index)
    row = compare_methods(table, n_boot=100).iloc[0]
    assert (row["n"], row["n_images"], row["n_unpaired"]) == (18, 9, 2)
    apart = pd.concat([table[(table["method"] == "a") & (table["image_id"] == "i0")], table[(table["method"] == "b")]])
    assert len(compare_methods(apart, n_boot=100)) == 0


def test_missing_seeds_pair_with_missing_seeds() -> None:
    table = cases({"a": 0.8, "b": 0.6}, images=6, prompts=1).assign(seed=None)
    assert compare_methods(table, n_boot=100).loc[0, "n"] == 6


def test_methods_need_not_be_words() -> None:
    words = cases({"1": 0.8, "2": 0.6, "3": 0.3})
    numbers = words.assign(method=words["method"].astype(int))
    pairs = compare_methods(numbers, n_boot=200)
    assert list(zip(pairs["a"], pairs["b"], strict=True)) == [(1, 2), (1, 3), (2, 3)]
    same = ["difference", "low", "high", "p_holm"]
    pd.testing.assert_frame_equal(pairs[same], compare_methods(words, n_boot=200)[same])
    marked = mark_best(isr_table(numbers), pairs)
    assert marked["bold"].tolist() == mark_best(isr_table(words), compare_methods(words, n_boot=200))["bold"].tolist()
    assert marked["p_below_best"].notna().sum() == 2  # each of the others was held against the best
    assert beats_every(pairs, 1).n_baselines == 2


def test_a_row_without_a_method_is_named_as_such() -> None:
    table = cases({"a": 0.8, "b": 0.6})
    table.loc[[0, 1], "method"] = None
    with pytest.raises(UsageError, match=r"2 rows of family .* have no 'method'"):
        compare_methods(table, n_boot=100)


def test_repeated_cases_are_refused() -> None:
    table = cases({"a": 0.8, "b": 0.6}, images=4, prompts=1)
    with pytest.raises(
        UsageError, match=r"8 rows of family .* share .*; a comparison needs one row per case and method"
    ):
        compare_methods(pd.concat([table.iloc[:4], table.iloc[:4]]))
    with pytest.raises(UsageError, match=r"key: expected the columns that make a case, 'image_id' among them"):
        compare_methods(table, key=("prompt",))
    with pytest.raises(UsageError, match=r"column\(s\) \['outcome'\] missing"):
        compare_methods(table.drop(columns="outcome"))


def test_bold_rule() -> None:
    table = cases({"best": 0.85, "close": 0.82, "far": 0.3}, images=60)
    rates, pairs = rates_and_comparison(table, n_boot=300)
    marked = rates.set_index("method")
    p = pairs.set_index(["a", "b"])["p_holm"]
    assert p["best", "close"] > 0.05 > p["best", "far"]
    assert marked["bold"].to_dict() == {"best": True, "close": True, "far": False}
    assert marked.loc["far", "p_below_best"] == pytest.approx(p["best", "far"])
    assert np.isnan(marked.loc["best", "p_below_best"])


def test_below_any_of_tied_bests_is_not_bold() -> None:
    rates = pd.DataFrame({"method": ["x", "y", "z"], "isr": [0.8, 0.8, 0.6]})
    pairs = pd.DataFrame(
        {"a": ["x", "x", "y"], "b": ["y", "z", "z"], "difference": [0.0, 0.2, 0.2], "p_holm": [1.0, 0.2, 0.01]}
    )
    marked = mark_best(rates, pairs, by=()).set_index("method")
    assert marked["bold"].to_dict() == {"x": True, "y": True, "z": False}
    untested = mark_best(rates, pairs.iloc[:1], by=()).set_index("method")
    assert not untested.loc["z", "bold"]
    assert np.isnan(untested.loc["z", "p_below_best"])


def test_bold_within_each_family() -> None:
    table = pd.concat(
        [cases({"a": 0.9, "b": 0.3}, editor="x", purifier=None), cases({"a": 0.3, "b": 0.9}, editor="y", purifier=None)]
    )
    rates, _ = rates_and_comparison(table, n_boot=100)
    assert rates.set_index(["editor", "method"])["bold"].to_dict() == {
        ("x", "a"): True, ("x", "b"): False, ("y", "a"): False, ("y", "b"): True,
    }  # fmt: skip


def test_beats_every_needs_every_single_comparison() -> None:
    def pairs(*rows: tuple[str, str, float, float]) -> pd.DataFrame:
        return pd.DataFrame(rows, columns=["a", "b", "difference", "p"])

    both = pairs(("m", "x", 0.2, 0.01), ("y", "m", -0.1, 0.03), ("x", "y", 0.1, 0.5))
    result = beats_every(both, "m")
    assert (result.holds, result.p, result.worst, result.n_baselines) == (True, 0.03, "y", 2)
    not_y = pairs(("m", "x", 0.2, 0.01), ("y", "m", -0.1, 0.30), ("x", "y", 0.1, 0.5))
    assert beats_every(not_y, "m").holds is False
    assert beats_every(not_y, "m").worst == "y"
    lost = pairs(("m", "x", 0.2, 0.04), ("y", "m", 0.1, 0.001), ("x", "y", 0.1, 0.5))
    result = beats_every(lost, "m")
    assert (result.holds, result.p, result.worst) == (False, 1.0, "y")
    with pytest.raises(UsageError, match="method: 'q' is in no comparison"):
        beats_every(both, "q")
    with pytest.raises(UsageError, match="expected one comparison of 'm' with each of the other 2 methods, got 1"):
        beats_every(both.iloc[[0, 2]], "m")


def test_rates_match_isr_table() -> None:
    table = cases({"a": 0.8, "b": 0.6}, editor="x")
    rates, _ = rates_and_comparison(table, n_boot=100)
    pd.testing.assert_frame_equal(rates.drop(columns=["bold", "p_below_best"]), isr_table(table, ("editor", "method")))


# ----------------------------------------------------------------------------------------------------- sample size


def test_sample_size_by_hand() -> None:
    # p 0.70 → 0.79 as if independent: ψ = 0.70·0.21 + 0.79·0.30 = 0.384; ψ − δ² = 0.3759.
    # (1.959964 √0.384 + 0.841621 √0.3759)² / 0.0081 = (1.214550 + 0.516001)²/0.0081 = 2.994807/0.0081 = 369.73 → 370.
    plan = sample_size(0.70, 0.09)
    assert (plan.images, plan.cases, plan.independent_cases) == (370, 370, 370)
    assert plan.discordance == pytest.approx(0.384)
    assert plan.power == pytest.approx(0.8, abs=0.001)
    # Five prompts per image, ICC 0.3: design effect 1 + 4·0.3 = 2.2 → 370·2.2/5 = 162.8 → 163 images.
    clustered = sample_size(0.70, 0.09, cases_per_image=5, icc=0.3)
    assert (clustered.images, clustered.cases, clustered.design_effect) == (163, 815, pytest.approx(2.2))
    assert sample_size(0.70, 0.09, cases_per_image=5, design_effect=2.2).images == 163


def test_power_against_the_exact_distribution() -> None:
    """The asymptotic test's true power, summed over all (only_a, only_b), lies close to what was asked for."""
    plan = sample_size(0.70, 0.10, discordance=0.25, power=0.8)
    n, p10, p01 = plan.cases, (0.25 + 0.10) / 2, (0.25 - 0.10) / 2
    discordant = np.arange(n + 1)
    weight = stats.binom.pmf(discordant, n, p10 + p01)
    exact = 0.0
    for m, w in zip(discordant, weight, strict=True):
        if w > 1e-12 and m:
            b = np.arange(m + 1)
            reject = np.abs(2 * b - m) / np.sqrt(m) >= stats.norm.ppf(0.975)
            exact += w * stats.binom.pmf(b, m, p10 / (p10 + p01))[reject].sum()
    assert exact == pytest.approx(0.8, abs=0.03)


def test_sample_size_moves_the_right_way() -> None:
    base = sample_size(0.7, 0.1).images
    assert sample_size(0.7, 0.05).images > 3 * base
    assert sample_size(0.7, 0.1, discordance=0.2).images < base
    assert sample_size(0.7, 0.1, power=0.9).images > base
    assert sample_size(0.7, 0.1, comparisons=28).images > base
    assert sample_size(0.8, -0.1).images == pytest.approx(base, abs=1)
    assert paired_power(100, 0.1, 0.2) < paired_power(200, 0.1, 0.2) < 1
    assert paired_power(50, 0.2, 0.2) > 0.7
    every = sample_size(0.5, 0.5, discordance=0.5)
    assert every.images >= 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sample_size(70, 9), "baseline: expected a fraction"),
        (lambda: sample_size(0.7, 0), "difference: expected a fraction other than 0"),
        (lambda: sample_size(0.7, 0.4), "five points are 0.05"),
        (
            lambda: sample_size(0.7, 0.1, discordance=0.05),
            "discordance: with rates 0.7 and 0.8 it lies between 0.1 and 0.5",
        ),
        (lambda: sample_size(0.7, 0.1, cases_per_image=5), "icc: needed with cases_per_image = 5"),
        (lambda: sample_size(0.7, 0.1, icc=0.1, design_effect=1.2), "give either icc or design_effect"),
        (lambda: sample_size(0.7, 0.1, icc=2), r"icc: expected a correlation in \[0, 1\]"),
        (lambda: sample_size(0.7, 0.1, design_effect=0), "design_effect: expected a positive number"),
        (lambda: sample_size(0.7, 0.1, power=80), "power: expected a fraction"),
        (lambda: sample_size(0.7, 0.1, comparisons=0), "comparisons: expected a whole number"),
    ],
)
def test_errors(call: object, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        call()  # type: ignore[operator]
