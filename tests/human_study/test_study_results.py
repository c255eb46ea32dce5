"""Export, import, joining, calibration: from answers to Table I and a corrected ISR, by the command line too."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from isr.human_study.labels import import_labels, join_ratings
from isr.human_study.results import ratings_table, tidy_table
from isr.human_study.store import Store
from isr.human_study.study import Study
from study_help import make_run, make_study

import isr
from isr.agreeing import agreement
from isr.calibrating import calibrate, majority_labels
from isr.cli import main
from isr.errors import UsageError
from isr.schema import NoVerdict, Verdict

Said = dict[str, bool | None]


def say(mismatch: bool | None, degradation: bool | None, overall: bool | None = True) -> Said:
    return {"semantic_mismatch": mismatch, "degradation": degradation, "overall": overall}


def rate(store: Store, study: Study, *voices: object) -> None:
    """Every rater answers everything; a voice maps an item to what is said."""
    for rater, voice in zip(store.raters(), voices, strict=True):
        for place in store.assignments(rater.id):
            answer = voice(study.by_id[place.item])  # type: ignore[operator]
            store.record(rater, place, f"{rater.label}-{place.position:020}", answer, comment="=cmd|x", seconds=2.0)


@pytest.fixture(scope="module")
def run() -> isr.Report:
    return make_run(120)


@pytest.fixture(scope="module")
def rated(run: isr.Report, tmp_path_factory: pytest.TempPathFactory) -> tuple[Study, Store]:
    """60 of 120 cases, three raters: the first two say what judge a says, the third cannot judge degradation."""
    study, store = make_study(tmp_path_factory.mktemp("r") / "s", run, 60, raters=3, repeats=2, attention=2)
    truth = {(j.case_id, j.judge): j.answer for j in run.judgement_records}

    def like_a(item: object) -> Said:
        verdict = truth.get((item.case_id, "a"))  # type: ignore[attr-defined]
        return say(verdict.semantic_mismatch, verdict.degradation) if isinstance(verdict, Verdict) else say(True, False)

    rate(store, study, like_a, like_a, lambda item: like_a(item) | {"degradation": None})
    return study, store


def test_ratings_table(rated: tuple[Study, Store], run: isr.Report) -> None:
    _study, store = rated
    table = ratings_table(store)
    assert len(table) == 3 * 60
    assert set(table["rater"]) == {"human:R1", "human:R2", "human:R3"}
    assert not table.duplicated(["rater", "case_id"]).any()
    assert set(table["case_id"]) <= {c.case_id for c in run.case_records}
    assert set(table["inclusion_probability"]) == {0.5}
    assert set(table.loc[table["rater"] == "human:R3", "cannot_judge"]) == {"degradation"}
    assert table.loc[table["rater"] == "human:R3", "degradation"].isna().all()
    assert "comment" not in table
    assert set(ratings_table(store, comments=True)["comment"]) == {"=cmd|x"}


def test_tidy_table(rated: tuple[Study, Store]) -> None:
    _, store = rated
    table = tidy_table(store)
    per_place = table[table["rater"] == "human:R1"].groupby("kind")["order"].nunique().to_dict()
    assert per_place == {"training": 1, "rating": 60, "repeat": 2, "attention": 2}
    assert set(table["answer"]) == {"yes", "no", "cannot judge"}
    assert set(table.loc[table["kind"] == "repeat", "check"]) == {"same"}
    assert set(table.loc[table["kind"] == "rating", "check"]) == {""}
    assert set(table.loc[table["kind"] == "attention", "check"]) <= {"passed", "failed", ""}
    assert not set(table.columns) & {"received", "at", "label", "name"}  # no times of day, no names


def test_to_table_1_by_the_command_line(
    rated: tuple[Study, Store], run: isr.Report, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study, _store = rated
    run.save(tmp_path / "run")
    assert main(["study", "export", str(study.folder), str(tmp_path / "ratings.csv"), "--comments"]) == 0
    assert "Close it before looking at agreement" in capsys.readouterr().err
    text = (tmp_path / "ratings.csv").read_text()
    assert ",'=cmd|x" in text  # no formula reaches a spreadsheet
    assert (tmp_path / "ratings.answers.csv").is_file()
    found = agreement(human=tmp_path / "ratings.csv", mllm=tmp_path / "run", n_boot=50)
    # R1 and R2 agree everywhere; R3 gave no answer on degradation, so only their pair counts there
    assert found.value("human_human", "semantic_mismatch") == 1.0
    assert found.value("human_human", "degradation") == 1.0
    assert found.n_items == 60
    assert main(["agree", str(tmp_path / "ratings.csv"), str(tmp_path / "run"), "--latex", "--resamples", "50"]) == 0
    assert "Human to Human" in capsys.readouterr().out
    assert (
        main(
            [
                "calibrate",
                str(tmp_path / "ratings.csv"),
                str(tmp_path / "run"),
                "--next",
                str(tmp_path / "next.csv"),
                "--csv",
                str(tmp_path / "t"),
            ]
        )
        == 0
    )
    out = capsys.readouterr().out
    assert "prediction-powered" in out
    assert "not a random sample" in out
    assert (tmp_path / "t" / "corrected.csv").is_file()
    # the cases worth a look can go straight into a second study, without inclusion probabilities
    arguments = [
        "study",
        "new",
        str(tmp_path / "two"),
        "--from",
        str(tmp_path / "run"),
        "--n",
        "8",
        "--picked",
        str(tmp_path / "next.csv"),
    ]
    assert main([*arguments, "--preview"]) == 0
    assert not (tmp_path / "two").exists()
    assert main([*arguments, "--stratify", "method"]) == 0
    second = Study(tmp_path / "two")
    assert any(i.inclusion_probability is None for i in second.items if i.kind == "rating")
    assert main(["calibrate", str(tmp_path / "run")]) == 1


def test_joined_ratings_are_judges_of_the_report(rated: tuple[Study, Store], run: isr.Report, tmp_path: Path) -> None:
    _, store = rated
    table = ratings_table(store)
    joined = join_ratings(run, table)
    assert joined.isr == run.isr  # people never enter the consensus unasked
    answers = {(j.case_id, j.judge): j.answer for j in joined.judgement_records}
    case = table["case_id"].iloc[0]
    assert isinstance(answers[case, "human:R1"], Verdict)
    assert answers[case, "human:R3"] == NoVerdict(reason="abstained", detail="cannot judge: degradation")
    run.save(tmp_path / "run")
    table.to_csv(tmp_path / "r.csv", index=False)
    assert main(["study", "join", str(tmp_path / "r.csv"), str(tmp_path / "run")]) == 0
    assert main(["study", "join", str(tmp_path / "r.csv"), str(tmp_path / "run")]) == 0  # again: nothing new
    loaded = isr.Report.load(tmp_path / "run")
    assert len(loaded.judgement_records) == len(run.judgement_records) + 180
    assert set(loaded.judgements["judge"]) == {"a", "b", "human:R1", "human:R2", "human:R3"}
    found = agreement(human=loaded, n_boot=50)
    assert found.n_items == 60
    with pytest.raises(UsageError, match="another answer of human:R1"):
        join_ratings(loaded, table.assign(semantic_mismatch=~table["semantic_mismatch"]))
    with pytest.raises(UsageError, match="case 'zz' is not in this run"):
        join_ratings(run, table.assign(case_id="zz"))


def test_our_own_tidy_export_comes_back_in(rated: tuple[Study, Store], run: isr.Report, tmp_path: Path) -> None:
    _, store = rated
    tidy_table(store).to_csv(tmp_path / "tidy.csv", index=False)
    back = import_labels(tmp_path / "tidy.csv", run).sort_values(["rater", "case_id"]).reset_index(drop=True)
    wide = ratings_table(store).sort_values(["rater", "case_id"]).reset_index(drop=True)
    pd.testing.assert_frame_equal(back, wide[list(back.columns)], check_dtype=False)


def test_labels_of_another_tool(run: isr.Report, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "tool.csv"
    path.write_text("annotator,item,mis,deg\nann,row0,yes,no\nann,row1,0,1\nbob,row0,n/a,TRUE\n")
    rename = {"rater": "annotator", "semantic_mismatch": "mis", "degradation": "deg"}
    table = import_labels(path, run, rename=rename, id_column="item")
    cases = {c.id: c for c in run.case_records}
    assert table["case_id"].tolist() == [cases["row0"].case_id, cases["row1"].case_id, cases["row0"].case_id]
    assert table["rater"].tolist() == ["human:ann", "human:ann", "human:bob"]
    assert table["semantic_mismatch"].tolist() == [True, False, pd.NA]
    assert table["degradation"].tolist() == [False, True, True]
    assert table["image_id"].tolist() == ["image0"] * 3
    run.save(tmp_path / "run", images=False)
    assert main(["study", "import", str(path), str(tmp_path / "run"), str(tmp_path / "out.csv"), "--column", "rater=annotator",
                 "--column", "semantic_mismatch=mis", "--column", "degradation=deg", "--id-column", "item"]) == 0  # fmt: skip
    assert "3 ratings of 2 raters" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("who,case_id\nx,y\n", {}, "column 'rater' is missing; it has who, case_id"),
        (
            "rater,case_id,semantic_mismatch,degradation\na,zz,1,0\n",
            {},
            "1 rows name no case of this run, the first is 'zz'",
        ),
        (
            "rater,item,semantic_mismatch,degradation\na,row0,maybe,0\n",
            {"id_column": "item"},
            "holds 'maybe'; expected yes, no",
        ),
        ("rater,item,semantic_mismatch,degradation\na,row0,1,0\na,row0,0,0\n", {"id_column": "item"}, "more than once"),
        ("rater,item,semantic_mismatch,degradation\na,nope,1,0\n", {"id_column": "item"}, "id 'nope' names 0 cases"),
        ("rater,item,semantic_mismatch\na,row0,1\n", {"id_column": "item"}, "no answers for 'degradation'"),
        ("rater,item\na,row0\n", {"rename": {"colour": "item"}}, "'colour' is none of ours"),
        ("rater,item,criterion,answer\na,row0,nice,yes\n", {"id_column": "item"}, "expected the criteria .* got nice"),
        ("rater,item,semantic_mismatch,degradation\n ,row0,1,0\n", {"id_column": "item"}, "' ' is no name for a rater"),
        (
            "rater,item,semantic_mismatch,degradation\nmajority,row0,1,0\n",
            {"id_column": "item"},
            "derived and never read",
        ),
        (
            'rater,item,semantic_mismatch,degradation,inclusion_probability\na,row0,1,0,"0,5"\n',
            {"id_column": "item"},
            "holds '0,5'; expected a number in .* decimal point",
        ),
    ],
)
def test_bad_labels_are_explained(
    run: isr.Report, tmp_path: Path, text: str, options: dict[str, object], message: str
) -> None:
    path = tmp_path / "l.csv"
    path.write_text(text)
    with pytest.raises(UsageError, match=message):
        import_labels(path, run, **options)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------- calibration


def test_majority_by_hand() -> None:
    def row(case: str, rater: str, mismatch: object, degradation: object) -> dict[str, object]:
        return {
            "rater": rater,
            "case_id": case,
            "semantic_mismatch": mismatch,
            "degradation": degradation,
            "inclusion_probability": 0.25,
        }

    table = majority_labels(pd.DataFrame([
        # mismatch 2 of 3 yes; degradation 3 of 3 no; defeated 2 of 3
        row("x", "a", True, False), row("x", "b", True, False), row("x", "c", False, False),
        # mismatch: one yes, one no, one cannot: no majority of the three. defeated: yes by mismatch, yes by degradation, open
        row("y", "a", True, False), row("y", "b", False, True), row("y", "c", None, False),
        # two raters: a tie on everything
        row("z", "a", True, True), row("z", "b", False, False),
        # both say no mismatch, one cannot judge degradation: 1 of 2 is not more than half
        row("w", "a", False, None), row("w", "b", False, False),
        row("w", "human:majority", True, True),
    ]))  # fmt: skip
    found = table.set_index("case_id")[["semantic_mismatch", "degradation", "defeated"]]
    np.testing.assert_array_equal(
        found.to_numpy(), [[1, 0, 1], [np.nan, 0, 1], [np.nan, np.nan, np.nan], [0, np.nan, np.nan]]
    )
    assert table["inclusion_probability"].tolist() == [0.25] * 4
    with pytest.raises(UsageError, match="more than once"):
        majority_labels(pd.DataFrame([row("x", "a", True, False), row("x", "a", True, False)]))


def test_confusion_by_hand(rated: tuple[Study, Store], run: isr.Report) -> None:
    study, store = rated
    found = calibrate(ratings_table(store), run)
    table = found.confusion.set_index(["judge", "criterion"])
    # People's majority is what judge a says: no error of a on mismatch. b's error is counted directly from the run's answers.
    a = table.loc["a", "semantic_mismatch"]
    assert (a["fp"], a["fn"], a["sensitivity"], a["specificity"]) == (0, 0, 1.0, 1.0)
    sampled = {i.case_id for i in study.items if i.kind == "rating"}
    says = {
        (j.case_id, j.judge): j.answer.semantic_mismatch for j in run.judgement_records if isinstance(j.answer, Verdict)
    }
    tp = sum(says[c, "a"] and says[c, "b"] for c in sampled)
    fn = sum(says[c, "a"] and not says[c, "b"] for c in sampled)
    b = table.loc["b", "semantic_mismatch"]
    assert (b["tp"], b["fn"]) == (tp, fn)
    # all π are 0.5, so weights change nothing
    assert b["sensitivity"] == pytest.approx(tp / (tp + fn))
    assert 0 < b["sensitivity_low"] < b["sensitivity"] < b["sensitivity_high"] < 1


def test_the_correction_moves_towards_people(rated: tuple[Study, Store], run: isr.Report) -> None:
    study, store = rated
    found = calibrate(ratings_table(store), run)
    assert found.corrected is not None
    pooled = found.corrected[found.corrected["method"].isna()].iloc[0]
    # strict consensus of a (every 2nd) and b (every 3rd) is every 6th: 1/6. People agree with a: 1/2.
    assert pooled["judge_only"] == pytest.approx(run.isr)
    assert run.isr == pytest.approx(1 / 6)
    truth = np.mean(
        [isinstance(j.answer, Verdict) and j.answer.defeated for j in run.judgement_records if j.judge == "a"]
    )
    assert truth == 0.5
    assert abs(pooled["value"] - 0.5) < 0.15
    assert pooled["low"] < 0.5 < pooled["high"]
    assert pooled["n_labels"] == 60
    beside = found.rogan_gladen[found.rogan_gladen["method"].isna()].iloc[0]
    assert beside["isr"] == pytest.approx(1 / 6)
    assert beside["low"] < 0.5 < beside["high"]
    assert len(found.raters) == 3
    labelled = {i.case_id for i in study.items if i.kind == "rating"}
    assert len(found.next_items)
    assert not set(found.next_items["case_id"]) & labelled


def test_too_few_or_unknown_probabilities_refuse_the_correction(rated: tuple[Study, Store], run: isr.Report) -> None:
    _, store = rated
    table = ratings_table(store)
    few = calibrate(table[table["case_id"].isin(table["case_id"].unique()[:29])], run)
    assert few.corrected is None
    assert "at least 30" in few.refused
    assert "there are 29" in few.refused
    assert "refused" in str(few)
    unknown = calibrate(table.drop(columns="inclusion_probability"), run)
    assert unknown.corrected is None
    assert any("no inclusion probabilities" in n for n in unknown.notes)
    mixed = table.assign(
        inclusion_probability=table["inclusion_probability"].where(table["case_id"] != table["case_id"].iloc[0])
    )
    assert any("1 rated cases were not drawn at random" in n for n in calibrate(mixed, run).notes)


def test_calibration_refuses_what_it_cannot_use(rated: tuple[Study, Store], run: isr.Report) -> None:
    _, store = rated
    with pytest.raises(UsageError, match="none of the rated cases is in this run"):
        calibrate(ratings_table(store).assign(case_id=lambda t: "x" + t["case_id"]), run)
    with pytest.raises(UsageError, match="column 'degradation' is missing"):
        calibrate(ratings_table(store).drop(columns="degradation"), run)


def test_long_labels_keep_their_inclusion_probabilities(run: isr.Report, tmp_path: Path) -> None:
    path = tmp_path / "long.csv"
    rows = [f"ann,row{i},{c},yes,{p}" for i, p in ((0, "0.25"), (1, "")) for c in ("semantic_mismatch", "degradation")]
    path.write_text("rater,item,criterion,answer,inclusion_probability\n" + "\n".join(rows))
    table = import_labels(path, run, id_column="item").set_index("case_id")["inclusion_probability"]
    cases = {c.id: c.case_id for c in run.case_records}
    assert table[cases["row0"]] == 0.25
    assert np.isnan(table[cases["row1"]])
    path.write_text(path.read_text().replace("ann,row0,degradation,yes,0.25", "ann,row0,degradation,yes,0.5"))
    with pytest.raises(UsageError, match="different inclusion probabilities"):
        import_labels(path, run, id_column="item")


def test_a_revoked_rater_is_named_and_can_be_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study, store = make_study(tmp_path / "s")
    said: dict[str, bool | None] = {"semantic_mismatch": True, "degradation": False, "overall": True}
    for rater in store.raters():
        for place in store.assignments(rater.id):
            store.record(rater, place, f"key-{place.id:016}", said)
    store.revoke(store.rater("R2"))
    out = tmp_path / "r.csv"
    assert main(["study", "export", str(study.folder), str(out)]) == 0
    assert "R2 was revoked; 8 ratings given before are in the file (--without R2" in capsys.readouterr().err
    assert main(["study", "export", str(study.folder), str(out), "--without", "R2"]) == 0
    assert "revoked" not in capsys.readouterr().err
    assert set(pd.read_csv(out)["rater"]) == set(pd.read_csv(tmp_path / "r.answers.csv")["rater"]) == {"human:R1"}
    assert main(["study", "export", str(study.folder), str(out), "--without", "R7"]) != 0
    assert "nobody is called 'R7'; there are R1, R2" in capsys.readouterr().err
    assert main(["study", "export", str(study.folder), str(tmp_path / "no" / "r.csv")]) != 0
    assert "does not exist" in capsys.readouterr().err


def test_without_image_ids_the_intervals_do_not_claim_clusters() -> None:
    from study_help import Fixed, picture

    run = isr.evaluate(
        [picture(i) for i in range(6)], [f"do number {i}" for i in range(6)], judges=[Fixed("a", lambda i: (i % 2 == 0, False))],
        cache=False, progress=False,
    )  # fmt: skip
    assert {c.image_id for c in run.case_records} == {None}
    ratings = pd.DataFrame({"rater": "human:R1", "case_id": [c.case_id for c in run.case_records],
                            "semantic_mismatch": True, "degradation": False})  # fmt: skip
    found = calibrate(ratings, run)
    assert "cases taken as independent" in str(found)
    assert "clustered by image" not in str(found)
    assert any("without image_id" in note for note in found.notes)


def test_a_majority_in_the_file_is_no_rater(rated: tuple[Study, Store], run: isr.Report) -> None:
    _, store = rated
    table = ratings_table(store)
    extra = table[table["rater"] == "human:R1"].assign(rater="human:majority")
    with_majority = calibrate(pd.concat([table, extra], ignore_index=True), run)
    pd.testing.assert_frame_equal(with_majority.raters, calibrate(table, run).raters)
