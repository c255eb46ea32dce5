"""Table I: pair means by hand, asked and derived overall columns, the bootstrap against plain loops, LaTeX, refusals."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from isr.errors import UsageError
from isr.stats.agreement import cohen_kappa, fleiss_kappa, gwet_ac1, krippendorff_alpha
from isr.stats.agreement_table import COLUMNS, AgreementTable, agreement, reported_table1
from isr.stats.bootstrap import canonical, resample_counts


def ratings(
    rater: str, mismatch: list[object], degradation: list[object], overall: list[object] | None = None
) -> pd.DataFrame:
    n = len(mismatch)
    frame = pd.DataFrame(
        {"rater": rater, "case_id": [f"c{i}" for i in range(n)], "image_id": [f"i{i // 2}" for i in range(n)],
         "semantic_mismatch": pd.Series(mismatch, dtype=object), "degradation": pd.Series(degradation, dtype=object)}
    )  # fmt: skip
    return frame if overall is None else frame.assign(overall=pd.Series(overall, dtype=object))


T, F = True, False
# Four items; people a, b and c, models x and y.
A = ratings("a", [T, T, F, F], [F, F, F, T], [T, T, F, T])
B = ratings("b", [T, F, F, F], [F, F, T, T], [T, F, T, F])
C = ratings("human:c", [T, T, T, None], [F, F, F, T], [T, T, T, None])
X = ratings("x", [T, T, F, T], [F, F, F, F])
Y = ratings("y", [F, T, F, T], [T, F, F, F])


def small(**options: object) -> AgreementTable:
    return agreement([A, B, C], [X, Y], n_boot=200, **options)  # type: ignore[arg-type]


def test_percent_by_hand() -> None:
    t = small()
    # Mismatch: a–b agree on c0, c2, c3: 3/4; a–c on c0, c1 of 3: 2/3; b–c on c0 of 3: 1/3. Mean 1.75/3 = .583333.
    assert t.value("human_human", "semantic_mismatch") == pytest.approx((3 / 4 + 2 / 3 + 1 / 3) / 3)
    # x–y: F at c0 differs: 3/4. a–x 3/4, a–y 2/4, b–x 2/4, b–y 1/4, c–x 2/3, c–y 1/3: mean 3/6.
    assert t.value("mllm_mllm", "semantic_mismatch") == pytest.approx(3 / 4)
    assert t.value("human_mllm", "semantic_mismatch") == pytest.approx(
        (3 / 4 + 2 / 4 + 2 / 4 + 1 / 4 + 2 / 3 + 1 / 3) / 6
    )
    # Overall: asked for people (a T T F T, b T F T F, c T T T –); derived for models (x T T F T, y T T F T).
    # a–b 1/4, a–c 2/3, b–c 2/3. People–models: a–x, a–y 4/4; b–x, b–y: c0 only → 1/4; c–x, c–y: 2/3.
    assert t.value("human_human", "overall") == pytest.approx((1 / 4 + 2 / 3 + 2 / 3) / 3)
    assert t.value("human_mllm", "overall") == pytest.approx((1 + 1 + 1 / 4 + 1 / 4 + 2 / 3 + 2 / 3) / 6)
    # Derived for people: a T T F T, b T F T T, c T T T T (c3: mismatch missing, degradation yes decides).
    # a–b 2/4, a–c 3/4, b–c 3/4.
    assert t.value("human_human", "overall_derived") == pytest.approx((2 / 4 + 3 / 4 + 3 / 4) / 3)
    assert t.value("mllm_mllm", "overall_derived") == t.value("mllm_mllm", "overall") == 1.0
    assert (t.n_items, t.n_images) == (4, 2)


def test_contradictions_per_rater() -> None:
    # b answers T F T F, from the criteria follows T F T T: one contradiction. c: T T T – against T T T T: none of three.
    raters = small().raters.set_index("rater")
    assert raters["contradictions"].to_dict() == {"human:a": 0, "human:b": 1, "human:c": 0, "x": 0, "y": 0}
    assert raters["n_asked_and_derived"].to_dict() == {"human:a": 4, "human:b": 4, "human:c": 3, "x": 0, "y": 0}
    asked_model = agreement([A, B], [X.assign(overall=[T, T, T, T]), Y], n_boot=50).raters.set_index("rater")
    assert asked_model.loc["x", "contradictions"] == 1
    assert asked_model.loc["x", "share_overall"] == 0.75  # still the derived answer


def test_group_coefficients_equal_the_pure_functions() -> None:
    t = small()
    human = np.column_stack([f["semantic_mismatch"].astype(float) for f in (A, B, C)])
    models = np.column_stack([f["semantic_mismatch"].astype(float) for f in (X, Y)])
    for group, matrix in (("human_human", human), ("mllm_mllm", models), ("all", np.column_stack([human, models]))):
        assert t.value(group, "semantic_mismatch", "fleiss") == pytest.approx(fleiss_kappa(matrix).value)
        assert t.value(group, "semantic_mismatch", "alpha") == pytest.approx(krippendorff_alpha(matrix).value)
        assert t.value(group, "semantic_mismatch", "ac1") == pytest.approx(gwet_ac1(matrix, categories=(0, 1)).value)
    cohens = [cohen_kappa(human[:, h], models[:, m]).value for h in range(3) for m in range(2)]
    assert t.value("human_mllm", "semantic_mismatch", "cohen") == pytest.approx(
        np.mean([c for c in cohens if c is not None])
    )
    assert t.row("human_mllm", "semantic_mismatch", "cohen")["n_pairs_undefined"] == sum(c is None for c in cohens)


def test_majority_is_apart_from_the_means() -> None:
    t = small()
    pairs = t.pairs[(t.pairs["column"] == "semantic_mismatch") & (t.pairs["group"] == "majority_mllm")]
    # Majority of a, b, c: T (3 of 3), T (2 of 3), F (2 of 3), F (2 of 2). x: c3 differs → 3/4; y: c0 and c3 → 2/4.
    assert pairs.set_index("rater_b")["percent"].to_dict() == {"x": 0.75, "y": 0.5}
    assert t.value("majority_mllm", "semantic_mismatch") == 0.625
    assert not (t.pairs[t.pairs["group"] != "majority_mllm"][["rater_a", "rater_b"]] == "human:majority").any().any()
    given = agreement([A, B, C, ratings("human:majority", [T] * 4, [T] * 4)], [X, Y], n_boot=200)
    pd.testing.assert_frame_equal(given.table, t.table)
    assert "human:majority in the input was left out" in given.notes[0]


def simulated(n: int = 90, missing: float = 0.1) -> tuple[list[pd.DataFrame], list[pd.DataFrame]]:
    rng = np.random.default_rng(1)
    truth = rng.random((n, 3)) < (0.5, 0.4, 0.6)

    def one(name: str) -> pd.DataFrame:
        answers = np.where(rng.random((n, 3)) < 0.85, truth, ~truth).astype(object)
        answers[rng.random((n, 3)) < missing] = None
        frame = pd.DataFrame(answers, columns=list(COLUMNS[:3]))
        return frame.assign(rater=name, case_id=[f"c{i}" for i in range(n)], image_id=[f"i{i % 30}" for i in range(n)])

    return [one(f"r{i}") for i in range(3)], [one(f"m{i}") for i in range(2)]


def test_bootstrap_equals_resampling_rows_by_hand() -> None:
    human, mllm = simulated()
    t = agreement(human, mllm, n_boot=150, seed=4)
    matrix = np.column_stack([f["degradation"].astype(float) for f in human])
    images = np.arange(90) % 30
    # The order in which the package resamples images: by their sums. Rebuilt here only to draw the same images.
    from isr.stats.agreement_table import _Column

    column = _Column(np.column_stack([f["degradation"].astype(float) for f in [*human, *mllm]]), 3, 2)
    sums = np.stack([column.items[images == g].sum(axis=0) for g in range(30)])
    order = np.lexsort(sums.T[::-1])
    assert (sums[order] == canonical(sums)).all()
    alphas, percents = [], []
    for counts in np.concatenate(list(resample_counts(30, 150, 4))):
        rows = np.concatenate([np.flatnonzero(images == order[g]) for g in range(30) for _ in range(int(counts[g]))])
        alphas.append(krippendorff_alpha(matrix[rows]).value)
        drawn = matrix[rows]
        percents.append(np.mean([np.mean((drawn[:, a] == drawn[:, b])[~np.isnan(drawn[:, a]) & ~np.isnan(drawn[:, b])])
                                 for a, b in ((0, 1), (0, 2), (1, 2))]))  # fmt: skip
    row = t.row("human_human", "degradation", "alpha")
    assert (row["low"], row["high"]) == pytest.approx(tuple(np.quantile(np.array(alphas, dtype=float), [0.025, 0.975])))
    row = t.row("human_human", "degradation", "percent")
    assert (row["low"], row["high"]) == pytest.approx(tuple(np.quantile(percents, [0.025, 0.975])))
    assert row["interval"] == "percentile bootstrap over images"


def test_row_order_does_not_matter() -> None:
    human, mllm = simulated()
    one = agreement(human, mllm, n_boot=300)
    other = agreement(pd.concat(human).sample(frac=1, random_state=0).sort_values("rater", kind="stable"),
                      [m.iloc[::-1] for m in mllm], n_boot=300)  # fmt: skip
    pd.testing.assert_frame_equal(one.table, other.table)


def test_items_are_those_that_people_rated() -> None:
    more = pd.concat([X, ratings("x", [T] * 9, [T] * 9).iloc[4:]])
    t = agreement([A, B, C], [more, Y], n_boot=50)
    pd.testing.assert_frame_equal(t.table, agreement([A, B, C], [X, Y], n_boot=50).table)
    assert "5 cases that only models judged were left out" in t.notes
    only = agreement(mllm=[more, Y], n_boot=50)
    assert only.n_items == 9
    assert only.row("human_human", "overall")["reason"] == "needs two people, has 0"
    assert only.value("mllm_mllm", "semantic_mismatch") == 0.75


def test_undefined_is_never_a_number() -> None:
    yes = [ratings(r, [T] * 6, [F] * 6, [T] * 6) for r in ("a", "b")]
    t = agreement(yes, [X, Y], n_boot=50)
    row = t.row("human_human", "semantic_mismatch", "cohen")
    assert t.value("human_human", "semantic_mismatch", "cohen") is None
    assert row["reason"] == "every rating is the same category, so chance agreement is complete"
    assert t.value("human_human", "semantic_mismatch", "percent") == 1.0
    assert (
        t.row("human_human", "semantic_mismatch", "percent")["reason"]
        == "no interval: every resample gives the same value"
    )
    assert t.value("human_human", "semantic_mismatch", "ac1") == 1.0
    latex = agreement(yes, None, n_boot=50).to_latex()
    assert r"MLLM to MLLM & --$^{1}$ & --$^{1}$ & --$^{1}$ & --$^{1}$ \\" in latex
    assert r"$^{1}$ needs two models, has 0" in latex


def test_intervals_are_withheld_when_resamples_are_undefined() -> None:
    # One disagreeing item among many identical ones: every third resample or so lacks it and κ is undefined there.
    a = ratings("a", [T] * 11 + [F], [F] * 12)
    b = ratings("b", [T] * 11 + [F], [F] * 12)
    row = agreement([a, b], n_boot=400).row("human_human", "semantic_mismatch", "cohen")
    assert row["value"] == 1.0
    assert np.isnan(row["low"])
    assert row["reason"].startswith("no interval: undefined in ")


def test_people_who_were_not_asked_the_third_question() -> None:
    t = agreement([f.drop(columns="overall") for f in (A, B)], [X, Y], n_boot=50)
    assert t.value("human_human", "overall") is None
    assert t.row("human_human", "overall")["reason"] == "no item has two ratings"
    assert t.value("human_human", "overall_derived") == 0.5
    assert any("no person answered the overall question" in note for note in t.notes)


def test_latex_in_the_paper_shape() -> None:
    latex = small().to_latex(intervals=False)
    lines = latex.splitlines()
    assert (
        lines[2]
        == r"Consistency Metric & Semantic Mismatch & Quality Degradation & Final Success (ISR) & Final Success, derived \\"
    )
    assert lines[4].startswith(r"Human to Human & 58\% & ")
    assert r"Human to MLLM (reported) & 73\% & 72\% & 74\% & -- \\" in latex
    assert "reported" not in small().to_latex(reported=False)
    assert small().to_latex(derived=False).startswith(r"\begin{tabular}{lccc}")
    human, mllm = simulated()
    assert "[" in agreement(human, mllm, n_boot=100).to_latex().splitlines()[4]
    shape = small().paper_shape()
    assert list(shape.index) == ["Human to Human", "MLLM to MLLM", "Human to MLLM"]


def test_the_papers_figures_are_marked_reported() -> None:
    reported = reported_table1()
    assert reported["kind"] == "reported"
    assert reported["values"]["human_mllm"] == [0.73, 0.72, 0.74]
    assert reported["values"]["human_human"] == [0.84, 0.79, 0.76]
    assert reported["values"]["mllm_mllm"] == [0.80, 0.70, 0.74]


def test_without_image_ids() -> None:
    t = agreement([f.drop(columns="image_id") for f in (A, B, C)], n_boot=50)
    assert t.n_images == 4
    assert "no image_id given: items count as independent" in t.notes


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (agreement, "expected ratings of at least two raters, got no rows"),
        (lambda: agreement([A, A]), r"human: rater 'a' answers case 'c0' more than once \(4 such rows\)"),
        (lambda: agreement([A], [C]), "mllm: rater 'human:c' is a person"),
        (lambda: agreement(A.drop(columns="degradation")), r"human: column\(s\) \['degradation'\] missing"),
        (
            lambda: agreement(A.assign(degradation="yes")),
            "human: column 'degradation': expected True, False or missing, got 'yes'",
        ),
        (lambda: agreement([A, B.assign(image_id="z")]), "image_id: case 'c0' has different image_ids"),
        (lambda: agreement(A.assign(image_id=["i0", None, "i1", "i1"])), "image_id: 1 of 4 items have none"),
        (lambda: agreement(A.assign(rater=None)), "every row needs a rater and a case_id"),
        (lambda: small().value("people", "overall"), "no row"),
    ],
)
def test_errors(call: object, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        call()  # type: ignore[operator]
