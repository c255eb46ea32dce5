"""Comparing methods and runs, carrying a run over to new judges, Table I from reports."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from evaluate_help import Scripted, picture, pictures, text
from PIL import Image

import isr
from isr.agreeing import read_ratings
from isr.cli import main
from isr.errors import UsageError
from isr.reporting import plots
from isr.reporting.figures import save_figures

N = 20


def run(method: str, wins: set[int], *, judge: str = "a", start: int = 0, **options: Any) -> isr.Report:
    def answer(question: Any) -> str:
        return text(int(question.prompt.split()[1]) in wins)

    return isr.evaluate(
        pictures(N, start), [f"edit {i}" for i in range(N)], originals=pictures(N, 900), judges=[Scripted(answer, judge)],
        columns={"method": [method] * N, "seed": list(range(N))}, cache=False, progress=False, **options,
    )  # fmt: skip


def test_two_runs_are_paired_by_image_prompt_and_seed(tmp_path: Path) -> None:
    run("good", set(range(15))).save(tmp_path / "a")
    run("weak", set(range(5)), start=300).save(tmp_path / "b")
    found = isr.compare(tmp_path / "a", tmp_path / "b")
    pair = found.pairs.iloc[0]
    # 15 against 5 of 20 on the same cases: 10 discordant, all one way
    assert (pair["a"], pair["b"], pair["only_a"], pair["only_b"], pair["n"]) == ("good", "weak", 10, 0, 20)
    assert pair["difference"] == pytest.approx(0.5)
    assert pair["p"] == pytest.approx(2 * 0.5**10 - 0.5**10)  # McNemar mid-p: 2·P(X=0) − P(X=0), X ~ B(10, ½)
    assert found.rates.set_index("method")["bold"].to_dict() == {"good": True, "weak": False}
    assert found.beats_every("good").holds
    assert main(["compare", str(tmp_path / "a"), str(tmp_path / "b")]) == 0


def test_compared_methods_have_their_bands(tmp_path: Path) -> None:
    def judged(method: str, start: int, lasts: tuple[int, int], **options: Any) -> isr.Report:
        a, b = (
            Scripted(lambda q, last=last: text(int(q.prompt.split()[1]) < last), name)
            for name, last in zip("ab", lasts, strict=True)
        )
        return isr.evaluate(
            pictures(N, start), [f"edit {i}" for i in range(N)], originals=pictures(N, 900), judges=[a, b],
            columns={"method": [method] * N}, cache=False, progress=False, **options,
        )  # fmt: skip

    first, second = judged("m", 0, (10, 14)), judged("n", 300, (4, 2))
    rates = isr.compare(first, second).rates.set_index("method")
    # strict: both judges, 10 and 2 of 20; any: either of them, 14 and 4 of 20
    assert rates["isr"].to_dict() == pytest.approx({"m": 10 / 20, "n": 2 / 20})
    assert rates["band_low"].to_dict() == pytest.approx({"m": 10 / 20, "n": 2 / 20})
    assert rates["band_high"].to_dict() == pytest.approx({"m": 14 / 20, "n": 4 / 20})
    plots.plot_isr(rates.reset_index())
    # After lazy judging nobody knows what the judges that were not asked would have said.
    rates = isr.compare(first, judged("n", 300, (4, 2), lazy=True)).rates.set_index("method")
    assert rates["band_high"]["m"] == pytest.approx(14 / 20)
    assert rates["band_low"]["n"] == pytest.approx(2 / 20)
    assert pd.isna(rates["band_high"]["n"])


def test_unlike_locks_are_refused_and_the_difference_is_named(tmp_path: Path) -> None:
    a, b = run("good", {1}), run("weak", {2}, judge="b", start=300)
    with pytest.raises(UsageError, match=r"judges: \['a'\] against \['b'\]"):
        isr.compare(a, b)
    with pytest.raises(UsageError, match="votes: 1 against 3"):
        isr.compare(a, run("weak", {2}, start=300, votes=3))


def test_the_same_method_in_two_runs_is_told_apart_by_folder(tmp_path: Path) -> None:
    run("m", {1, 2}).save(tmp_path / "eps3")
    run("m", {1, 2, 3}, start=300).save(tmp_path / "eps6")
    found = isr.compare(tmp_path / "eps3", tmp_path / "eps6")
    assert set(found.rates["method"]) == {"m (eps3)", "m (eps6)"}


def test_one_method_is_nothing_to_compare() -> None:
    with pytest.raises(UsageError, match="at least two methods"):
        isr.compare(run("m", {1}))


def test_a_bridge_keeps_the_cases_and_reports_what_flipped(tmp_path: Path) -> None:
    old = run("m", set(range(10)), controls=pictures(N, 600))
    old.save(tmp_path / "old")
    new_judge = Scripted(lambda q: text(int(q.prompt.split()[1]) in set(range(2, 13))), "b")
    found = isr.bridge(tmp_path / "old", [new_judge], cache=False, progress=False)
    assert [c.case_id for c in found.new.case_records] == [c.case_id for c in old.case_records]
    assert [c.control for c in found.new.case_records] == [c.control for c in old.case_records]
    # old: 0–9, new: 2–12 -> 3 gained, 2 lost
    assert found.difference.difference == pytest.approx((11 - 10) / N)
    assert (found.difference.only_a, found.difference.only_b) == (3, 2)
    assert set(found.flipped["prompt"]) == {"edit 0", "edit 1", "edit 10", "edit 11", "edit 12"}
    assert "3 became successes, 2 stopped being one" in str(found)
    # 20 edits and 20 controls, both judged alike: 10 of 40 answers differ
    assert found.agreement.value("mllm_mllm", "semantic_mismatch") == pytest.approx(1 - 2 * 5 / 40)


def test_a_bridge_says_what_missing_answers_leave_open(tmp_path: Path) -> None:
    old = run("m", set(range(10)))
    found = isr.bridge(old, [Scripted(lambda q: "no comment", "b")], cache=False, progress=False)
    # Every new answer is missing: ISR 0 of 20 is all that is known to be a success, and 100 % is as possible.
    assert "new b: 0.0 %, bounds [0.0, 100.0] %, 20 undetermined" in str(found)
    assert "old a: 50.0 %, bounds [50.0, 50.0] %, 0 undetermined" in str(found)
    assert found.bounds == pytest.approx((0.0 - 0.5, 1.0 - 0.5))
    assert "bounds [-50.0, +50.0]" in str(found)


def test_a_bridge_without_an_immunized_arm_is_refused_before_anyone_is_asked() -> None:
    noise = isr.evaluate(
        pictures(2), ["edit 0", "edit 1"], originals=pictures(2, 900), judges=[Scripted(lambda q: text(), "a")],
        columns={"arm": ["noise", "noise"]}, cache=False, progress=False,
    )  # fmt: skip
    asked: list[Any] = []

    def never(question: Any) -> str:
        asked.append(question)
        return text()

    with pytest.raises(UsageError, match="no case of the immunized arm"):
        isr.bridge(noise, [Scripted(never, "b")], cache=False, progress=False)
    assert not asked


def test_a_bridge_needs_pictures(tmp_path: Path) -> None:
    run("m", {1}).save(tmp_path / "old", images=False)
    with pytest.raises(UsageError, match="images=True"):
        isr.bridge(tmp_path / "old", [Scripted(lambda q: text(), "b")])


def two_judges() -> isr.Report:
    a = Scripted(lambda q: text(int(q.prompt.split()[1]) < 10), "a")
    b = Scripted(lambda q: text(int(q.prompt.split()[1]) < 14), "b")
    return isr.evaluate(
        pictures(N),
        [f"edit {i}" for i in range(N)],
        originals=pictures(N, 900),
        judges=[a, b],
        cache=False,
        progress=False,
    )


def test_table_one_from_a_report_and_a_csv(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = two_judges()
    report.save(tmp_path / "run")
    rows = [
        {"rater": f"human:{r}", "case_id": c.case_id, "semantic_mismatch": "yes" if i < 12 + r else "no", "degradation": "no", "overall": "true" if i < 12 else ""}
        for r in range(3)
        for i, c in enumerate(report.case_records)
    ]  # fmt: skip
    pd.DataFrame(rows).to_csv(tmp_path / "ratings.csv", index=False)
    found = isr.agreement(human=tmp_path / "ratings.csv", mllm=tmp_path / "run", n_boot=200)
    # models differ on 4 of 20; people on 1, 1 and 2 of 20 -> mean of 19/20, 19/20, 18/20
    assert found.value("mllm_mllm", "semantic_mismatch") == pytest.approx(16 / 20)
    assert found.value("human_human", "semantic_mismatch") == pytest.approx((19 + 19 + 18) / 60)
    # people 12, 13, 14 against models 10, 14: differences 2, 3, 4, 2, 1, 0
    assert found.value("human_mllm", "semantic_mismatch") == pytest.approx(1 - (2 + 3 + 4 + 2 + 1 + 0) / 6 / 20)
    assert main(["agree", str(tmp_path / "ratings.csv"), str(tmp_path / "run"), "--latex", "--resamples", "100"]) == 0
    assert "reported" in capsys.readouterr().out


def with_controls() -> isr.Report:
    """20 edits of which the judges differ on 4 (10–13), and 20 controls that both call fine."""
    edits = {e.tobytes() for e in map(picture, range(N))}

    def judge(name: str, last: int) -> Scripted:
        def answer(q: Any) -> str:
            return text(
                int(q.prompt.split()[1]) < last and Image.open(BytesIO(q.picture("edited").png)).tobytes() in edits
            )

        return Scripted(answer, name)

    return isr.evaluate(
        pictures(N), [f"edit {i}" for i in range(N)], originals=pictures(N, 900), controls=pictures(N, 600),
        judges=[judge("a", 10), judge("b", 14)], columns={"category": ["landscape"] * N}, cache=False, progress=False,
    )  # fmt: skip


def test_agreement_of_models_is_about_the_immunized_edits() -> None:
    found = isr.agreement(mllm=with_controls(), n_boot=50)
    # Controls on which nothing is wrong are easy: with them 36 of 40 would agree instead of 16 of 20.
    assert found.value("mllm_mllm", "semantic_mismatch") == pytest.approx(16 / 20)
    assert found.n_items == 20
    assert "20 cases of other arms (control) were left out" in found.notes[-1]


def test_people_who_rated_controls_are_compared_on_controls() -> None:
    report = with_controls()
    controls = [c.case_id for c in report.case_records if c.arm == "control"]
    rows = pd.DataFrame(
        [{"rater": "x", "case_id": c, "semantic_mismatch": i < 5, "degradation": False} for i, c in enumerate(controls)]
    )
    found = isr.agreement(human=rows, mllm=report, n_boot=50)
    assert found.n_items == 20
    assert found.value("human_mllm", "semantic_mismatch") == pytest.approx(15 / 20)


def test_pictures_of_disagreement_are_about_the_immunized_edits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[pd.DataFrame] = []
    plain = plots.disagreement_table

    def watched(*args: Any, **options: Any) -> pd.DataFrame:
        drawn.append(plain(*args, **options))
        return drawn[-1]

    monkeypatch.setattr(plots, "disagreement_table", watched)
    told = save_figures(with_controls(), tmp_path, suffix="svg")
    assert (tmp_path / "disagreement.svg").is_file(), told
    row = drawn[0].set_index("criterion").loc["defeated"]
    assert (row["n"], row["share"]) == (20, pytest.approx(4 / 20))


def test_a_lazy_run_has_no_agreement() -> None:
    a, b = Scripted(lambda q: text(True), "a"), Scripted(lambda q: text(), "b")
    report = isr.evaluate(pictures(2), ["x", "y"], originals=pictures(2, 9), judges=[a, b], lazy=True, cache=False)
    with pytest.raises(UsageError, match="lazy"):
        isr.agreement(mllm=report)


def test_a_csv_with_other_words_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "r.csv"
    path.write_text("rater,case_id,semantic_mismatch,degradation\nx,1,maybe,no\n")
    with pytest.raises(UsageError, match="'maybe'"):
        read_ratings(path)


def test_sample_size_from_the_shell(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sample-size", "--baseline", "0.7", "--difference", "0.09"]) == 0
    out = capsys.readouterr().out
    assert f"{isr.sample_size(0.7, 0.09).images} images" in out
    more = ["--cases-per-image", "5", "--design-effect", "2.5", "--alpha", "0.01", "--comparisons", "7"]
    assert main(["sample-size", "--baseline", "0.7", "--difference", "0.09", *more]) == 0
    wanted = isr.sample_size(0.7, 0.09, cases_per_image=5, design_effect=2.5, alpha=0.01, comparisons=7)
    assert f"{wanted.images} images with 5 edits each" in capsys.readouterr().out


def test_pictures_differ_between_arms() -> None:
    assert picture(0).tobytes() != picture(300).tobytes()


def test_a_comparison_in_latex_has_the_best_in_bold(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("good", set(range(15))).save(tmp_path / "a")
    run(r"\input{x} & weak", set(range(5)), start=300).save(tmp_path / "b")
    run("near", set(range(13)), start=600).save(tmp_path / "c")
    runs = [str(tmp_path / name) for name in "abc"]
    table = isr.compare(*runs).to_latex()
    body = table.split(r"\midrule")[1].splitlines()
    # 15/20, 5/20 and 13/20: 13 against 15 is two discordant cases, mid-p = 2·(½)² − (½)² = 0.25: not significantly below.
    assert body[1].startswith(r"good & \textbf{75.0 [")
    assert body[2].startswith(r"\textbackslash{}input\{x\} \& weak & 25.0 [")
    assert body[3].startswith(r"near & \textbf{65.0 [")
    assert r"Bold: not significantly below the best of its column" in table
    assert r"Holm-adjusted" in table
    assert "Judges: a. Rubric" in table
    assert "Immunization Success Rate" not in table  # one judge alone is not the paper's ISR
    assert main(["compare", *runs, "--latex"]) == 0
    assert capsys.readouterr().out == table + "\n"


def test_prompt_kinds_stand_side_by_side_and_editors_in_blocks() -> None:
    kinds = ["original"] * 10 + ["unseen"] * 10

    def of(method: str, editor: str, wins: set[int], start: int) -> isr.Report:
        def answer(question: Any) -> str:
            return text(int(question.prompt.split()[1]) in wins)

        return isr.evaluate(
            pictures(N, start), [f"edit {i}" for i in range(N)], originals=pictures(N, 900),
            judges=[Scripted(answer, "a"), Scripted(answer, "b")], cache=False, progress=False,
            columns={"method": [method] * N, "editor": [editor] * N, "prompt_kind": kinds, "seed": list(range(N))},
        )  # fmt: skip

    found = isr.compare(
        of("m", "ip2p", set(range(10)), 0), of("n", "ip2p", {10, 11}, 100),
        of("m", "sd_3", {0}, 200), of("n", "sd_3", {0}, 300),
    )  # fmt: skip
    lines = found.to_latex().splitlines()
    assert lines[5] == r"Method & Original Prompt ISR $\uparrow$ & Unseen Prompts ISR $\uparrow$ \\"
    body = lines[7 : lines.index(r"\bottomrule")]
    assert [line.partition(" & ")[0] for line in body] == [
        r"\multicolumn{3}{l}{\textit{editor: ip2p}} \\", "m", "n", r"\midrule",
        r"\multicolumn{3}{l}{\textit{editor: sd\_3}} \\", "m", "n",
    ]  # fmt: skip
    # ip2p: 100 % against 0 % on original prompts (10 discordant); 0 against 2 of 10 on unseen ones (not significant).
    assert body[1].count(r"\textbf") == 2
    assert body[2].split(" & ")[1].startswith("0.0 [")
    assert body[2].split(" & ")[2].startswith(r"\textbf{20.0 [")


@pytest.mark.parametrize(("option", "said"), [("--out", "is a file"), ("--flips", "does not exist")])
def test_a_bridge_looks_at_its_files_before_it_asks(
    option: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from isr.registry import JUDGES

    new = Scripted(lambda q: text(), "new")
    monkeypatch.setitem(JUDGES._local, "bridge-test", lambda _="": new)
    run("m", {1}).save(tmp_path / "run")
    (tmp_path / "file").write_text("x")
    place = tmp_path / "file" if option == "--out" else tmp_path / "none" / "flips.csv"
    assert main(["bridge", str(tmp_path / "run"), "--judges", "bridge-test", option, str(place)]) == 1
    assert said in capsys.readouterr().err
    assert new.asked == []


def test_evaluate_finds_a_run_of_other_judges_before_it_asks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from isr.registry import JUDGES

    new = Scripted(lambda q: text(), "new")
    monkeypatch.setitem(JUDGES._local, "other-test", lambda _="": new)
    run("m", {1}).save(tmp_path / "run")
    pictures(1)[0].save(tmp_path / "e.png")
    (tmp_path / "m.csv").write_text("edited,prompt\ne.png,p\n")
    arguments = ["evaluate", str(tmp_path / "m.csv"), "--judge", "other-test", "--no-cache", "--out"]
    assert main([*arguments, str(tmp_path / "run")]) == 1
    assert "judged differently" in capsys.readouterr().err
    assert new.asked == []
    assert main([*arguments, str(tmp_path / "new")]) == 0
    assert main([*arguments, str(tmp_path / "new")]) == 0  # the same judge again is no other measurement
