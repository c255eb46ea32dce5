"""Prediction-powered ISR against ppi-python's recorded values, hand-worked tables, and coverage by simulation."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isr.errors import UsageError
from isr.stats.prediction_powered import corrected_isr, ppi_mean, prediction_powered

NAN = np.nan


def example() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """200 labelled and 1,200 other items; labelled cells (people, judge): 68 (1,1), 9 (1,0), 22 (0,1), 101 (0,0); 513 yes."""
    y = np.repeat([1.0, 1, 0, 0], [68, 9, 22, 101])
    f = np.repeat([1.0, 0, 1, 0], [68, 9, 22, 101])
    return y, f, np.repeat([1.0, 0], [513, 687])


@pytest.mark.parametrize(
    ("lam", "estimate", "low", "high"),
    # ppi-python 0.2.3, ppi_mean_pointestimate and ppi_mean_ci(alpha=.05) on the same counts, run apart from this package.
    [(None, 0.37189395, 0.31997709, 0.42381081), (1.0, 0.3625, 0.30184147, 0.42315853)],
)
def test_closed_form_equals_ppi_python(lam: float | None, estimate: float, low: float, high: float) -> None:
    value, interval, _ = ppi_mean(*example(), lam=lam)
    assert (value, interval.low, interval.high) == pytest.approx((estimate, low, high), abs=1e-8)


def test_closed_form_by_hand() -> None:
    # λ = 1: 513/1200 + (77 − 90)/200 = .4275 − .065 = .3625.
    assert ppi_mean(*example(), lam=1.0)[0] == pytest.approx(0.3625)
    # λ = 0: labels alone, 77/200.
    assert ppi_mean(*example(), lam=0.0)[0] == pytest.approx(0.385)


def whole() -> tuple[np.ndarray, np.ndarray]:
    y, f, u = example()
    return np.concatenate([f, u]), np.concatenate([y, np.full(len(u), NAN)])


def test_clustered_form_equals_closed_form_for_independent_cases() -> None:
    f, y = whole()
    for lam in (0.0, 0.4, 1.0):
        # The closed form compares with the other 1,200; ours with all 1,400: the same estimator at λ·1200/1400.
        ours = prediction_powered(f, y, lam=lam * 1400 / 1200)
        value, interval, _ = ppi_mean(*example(), lam=lam)
        assert ours.value == pytest.approx(value, abs=1e-12)
        # Wider by t on 199 instead of the normal quantile, and by half an image of each kind of error: at most 2.5 %.
        ratio = (ours.interval.high - ours.interval.low) / (interval.high - interval.low)
        assert 1.0 < ratio < 1.025
    tuned = prediction_powered(f, y)
    assert tuned.lam * 1200 / 1400 == pytest.approx(ppi_mean(*example())[2], abs=0.02)
    assert tuned.interval.high - tuned.interval.low <= 2 * tuned.labels_only_half_width


def test_weights_by_hand() -> None:
    # Six cases, judge 1 1 0 0 1 0. Labelled: case 0 (y 1, π ½), 2 (y 1, π ¼), 5 (y 0, π 1): w 2, 4, 1, Σw 7.
    # ȳ = 6/7, f̄_w = 2/7, f̄ = 3/6. λ = 1: 6/7 + 3/6 − 2/7 = 15/14; λ = ½: 6/7 + ½(3/14) = 27/28.
    f, y = [1, 1, 0, 0, 1, 0], [1, NAN, 1, NAN, NAN, 0]
    inclusion = [0.5, NAN, 0.25, NAN, NAN, 1.0]
    found = prediction_powered(f, y, inclusion, lam=0.5)
    assert found.value == pytest.approx(27 / 28)
    assert (found.judge_only, found.labels_only, found.n_labels, found.n_cases) == (0.5, pytest.approx(6 / 7), 3, 6)


def test_every_case_labelled_is_the_labels_mean() -> None:
    found = prediction_powered([1, 0, 1, 1], [1, 0, 0, 1])
    assert found.value == 0.5
    assert found.lam == 0.0
    assert found.to_halve.n is None
    assert found.to_halve.reason == "not reachable: all 4 cases are labelled; only more images help"


def test_a_perfect_judge_is_trusted() -> None:
    f = np.tile([1.0, 0, 1, 0, 0], 100)
    y = np.where(np.arange(500) < 60, f, NAN)
    found = prediction_powered(f, y)
    assert found.value == pytest.approx(f.mean())
    assert found.lam == pytest.approx(1.0, abs=0.05)
    # 60 labels without an error leave room for errors: the interval is wider than that of the judge's own 500 cases.
    assert found.interval.high - found.interval.low > 2 * 1.96 * np.sqrt(0.24 / 500)
    assert found.interval.high - found.interval.low < found.labels_only_half_width


def test_a_useless_judge_costs_nothing() -> None:
    rng = np.random.default_rng(0)
    y = np.where(np.arange(600) < 150, rng.integers(0, 2, 600), NAN)
    found = prediction_powered(rng.integers(0, 2, 600), y)
    assert found.lam < 0.3
    assert found.interval.high - found.interval.low <= 2 * found.labels_only_half_width * 1.01


def simulate(rng: np.random.Generator, images: int = 120, prompts: int = 4) -> tuple[np.ndarray, ...]:
    """Truth, judge, image, inclusion probability: clustered, the judge biased, unlike probabilities by judge outcome."""
    image_rate = rng.beta(2, 2, images)
    ids = np.repeat(np.arange(images), prompts)
    truth = (rng.random(len(ids)) < image_rate[ids]).astype(float)
    judge = np.where(rng.random(len(ids)) < np.where(truth == 1, 0.9, 0.75), truth, 1 - truth)
    inclusion = np.where(judge == 1, 0.2, 0.4)
    return truth, judge, ids, inclusion


def test_coverage_and_bias_under_clusters_and_unlike_probabilities() -> None:
    rng = np.random.default_rng(11)
    hits, values, runs = 0, [], 300
    for _ in range(runs):
        truth, judge, ids, inclusion = simulate(rng)
        drawn = rng.random(len(truth)) < inclusion
        found = prediction_powered(judge, np.where(drawn, truth, NAN), inclusion, ids)
        hits += found.interval.low <= 0.5 <= found.interval.high
        values.append(found.value)
    assert np.mean(values) == pytest.approx(0.5, abs=0.01)  # the judge alone says 0.575
    assert hits / runs >= 0.91  # 95 % less three standard errors of 300 runs


def test_labels_from_one_image_know_nothing() -> None:
    found = prediction_powered([1, 0, 1, 0], [1, 0, NAN, NAN], None, ["a", "a", "b", "b"])
    assert (found.interval.low, found.interval.high) == (0.0, 1.0)
    assert found.to_halve.reason == "labels come from one image; label others first"


def test_coverage_with_few_labels_and_a_good_judge() -> None:
    """30 labels hold no error of a 95 % judge every fifth time: the interval must not shrink to the judge's own."""
    rng = np.random.default_rng(12)
    hits, runs = 0, 400
    for _ in range(runs):
        truth = (rng.random(600) < 0.7).astype(float)
        judge = np.where(rng.random(600) < 0.95, truth, 1 - truth)
        found = prediction_powered(judge, np.where(np.arange(600) < 30, truth, NAN))
        hits += found.interval.low <= 0.7 <= found.interval.high
    assert hits / runs >= 0.91


def test_labels_to_halve_does_halve() -> None:
    rng = np.random.default_rng(5)
    ids = np.arange(4000)
    truth = (rng.random(4000) < 0.4).astype(float)
    judge = np.where(rng.random(4000) < 0.8, truth, 1 - truth)
    order = rng.permutation(4000)

    def labelled(n: int) -> np.ndarray:
        y = np.full(4000, NAN)
        y[order[:n]] = truth[order[:n]]
        return y

    first = prediction_powered(judge, labelled(100), None, ids)
    wanted = first.to_halve.n
    assert wanted is not None
    assert 400 < wanted < 600
    second = prediction_powered(judge, labelled(wanted), None, ids)
    width = [r.interval.high - r.interval.low for r in (first, second)]
    assert width[1] == pytest.approx(width[0] / 2, rel=0.1)


def test_halving_is_not_reachable_with_few_images() -> None:
    # Ten images that differ wholly: however many of their cases are labelled, there are ten of them.
    truth = np.repeat([1.0, 0] * 5, 30)
    y = np.where(np.arange(300) % 3 == 0, truth, NAN)
    found = prediction_powered(truth, y, None, np.repeat(np.arange(10), 30))
    assert found.to_halve.n is None
    assert found.to_halve.reason.startswith("not reachable: with all 300 cases labelled")


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.booleans(), st.sampled_from([0.0, 1.0, NAN]), st.integers(0, 4)), min_size=6, max_size=30))
def test_properties(rows: list[tuple[bool, float, int]]) -> None:
    f, y, ids = (np.array([r[i] for r in rows], dtype=float) for i in range(3))
    if (~np.isnan(y)).sum() < 2:
        return
    found = prediction_powered(f, y, None, ids)
    order = np.argsort(f + ids, kind="stable")
    again = prediction_powered(f[order], y[order], None, ids[order])
    assert (again.value, again.interval.low, again.interval.high) == pytest.approx(
        (found.value, found.interval.low, found.interval.high), abs=1e-9
    )
    # Weights matter by their ratios only.
    halved = prediction_powered(f, y, np.full(len(f), 0.5), ids)
    assert halved.value == pytest.approx(found.value, abs=1e-12)
    # Relabelling yes as no mirrors the estimate.
    mirrored = prediction_powered(1 - f, 1 - y, None, ids)
    assert mirrored.value == pytest.approx(1 - found.value, abs=1e-9)


def tables(per_method: dict[str, int]) -> tuple[pd.DataFrame, pd.DataFrame]:
    rng = np.random.default_rng(3)
    cases, labels = [], []
    for name, n in per_method.items():
        for i in range(200):
            good = rng.random() < 0.6
            says = good if rng.random() < 0.85 else not good
            cases.append((f"{name}-{i}", name, f"i{i % 50}", "success" if says else "failure"))
            if i < n:
                labels.append((f"{name}-{i}", good, n / 200))
    return (
        pd.DataFrame(cases, columns=["case_id", "method", "image_id", "outcome"]),
        pd.DataFrame(labels, columns=["case_id", "defeated", "inclusion_probability"]),
    )


def test_per_method_from_thirty_labels_on_and_pooled() -> None:
    cases, labels = tables({"a": 40, "b": 29})
    table = corrected_isr(cases, labels).set_index("method")
    assert table.loc["a", "n_labels"] == 40
    assert table.loc["a", "low"] < table.loc["a", "value"] < table.loc["a", "high"]
    assert np.isnan(table.loc["b", "value"])
    assert table.loc["b", "reason"] == "only 29 labels of this method, fewer than 30; see the pooled row"
    pooled = table[table.index.isna()].iloc[0]
    assert (pooled["n_labels"], pooled["n_cases"]) == (69, 400)
    only = cases[cases["method"] == "a"].reset_index(drop=True)
    y = only["case_id"].map(labels.set_index("case_id")["defeated"]).astype(float)
    direct = prediction_powered((only["outcome"] == "success").astype(float), y, None, only["image_id"])
    assert table.loc["a", "value"] == pytest.approx(direct.value)


def test_what_is_left_out_is_counted() -> None:
    cases, labels = tables({"a": 40})
    labels = labels.astype({"defeated": object})
    labels.loc[0, "defeated"] = None
    labels.loc[1, "inclusion_probability"] = NAN
    table = corrected_isr(cases, labels)
    assert table["n_labels"].tolist() == [38, 38]
    assert table.attrs["notes"] == (
        "1 items without a majority (ties, cannot judge) were left out",
        "1 items that were not drawn with a known probability were left out",
    )


def test_an_undetermined_case_is_no_success() -> None:
    cases, labels = tables({"a": 40})
    changed = cases.assign(outcome=cases["outcome"].where(cases["outcome"] == "success", "undetermined"))
    pd.testing.assert_frame_equal(corrected_isr(changed, labels), corrected_isr(cases, labels))


def test_refusals() -> None:
    cases, labels = tables({"a": 29})
    with pytest.raises(UsageError, match="a corrected ISR needs at least 30 labels of randomly drawn items, got 29"):
        corrected_isr(cases, labels)
    cases, labels = tables({"a": 40})
    with pytest.raises(UsageError, match=r"labels: 40 case_ids are not among the cases, the first is 'a-0'"):
        corrected_isr(cases.iloc[40:], labels)
    with pytest.raises(UsageError, match="expected one row per case_id, 40 are repeated"):
        corrected_isr(cases, pd.concat([labels, labels]))
    with pytest.raises(UsageError, match=r"column\(s\) \['inclusion_probability'\] missing"):
        corrected_isr(cases, labels.drop(columns="inclusion_probability"))
    with pytest.raises(UsageError, match=r"needs the probability in \(0, 1\].*items picked for another reason"):
        prediction_powered([1, 0, 1], [1, 0, NAN], [0.5, 0.0, NAN])
    with pytest.raises(UsageError, match="at least 2 labelled cases, got 1"):
        prediction_powered([1, 0], [1, NAN])
    with pytest.raises(UsageError, match="labels: expected one entry per case"):
        prediction_powered([1, 0], [1])
    with pytest.raises(UsageError, match="expected n ≥ 2, the same n"):
        ppi_mean([1], [1], [0])
