"""Report, run directory, replay and command line: exact round trips, refusals, escaping."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from evaluate_help import Scripted, picture, pictures, text, verdict

import isr
from isr.cli import main
from isr.errors import IntegrityError, UsageError
from isr.images import as_image
from isr.reporting.escape import csv_cell, csv_safe, latex
from isr.schema import NoVerdict
from isr.store import RunFiles, is_digest

EVIL = '=HYPERLINK("http://x")<script>alert(1)</script> \\input{/etc/passwd} % & _ $x$ {'


def make(n: int = 6, **options: Any) -> isr.Report:
    def answer(question: Any) -> Any:
        i = int(question.prompt.split()[-1])
        return [text(True), text(False, True), text(), "garbage", NoVerdict(reason="blocked"), text(True, True)][i % 6]

    columns = {"method": ["m1", "m2"] * (n // 2), "prompt_kind": ["original"] * (n // 2) + ["unseen"] * (n - n // 2)}
    columns["category"] = [EVIL] * n
    return isr.evaluate(
        pictures(n), [f"{EVIL} {i}" for i in range(n)], originals=pictures(n, 50), controls=pictures(n, 80), columns=columns,
        judges=[Scripted(answer, "a"), Scripted(lambda q: text(True), "b")], cache=False, progress=False, **options,
    )  # fmt: skip


@pytest.fixture(scope="module")
def report() -> isr.Report:
    return make()


def numbers(report: isr.Report) -> Any:
    return (
        report.isr,
        report.bounds,
        report.band,
        report.interval,
        report.n_no_verdict,
        report.n_undetermined,
        report.excess,
    )


def test_save_and_load_lose_nothing(report: isr.Report, tmp_path: Path) -> None:
    report.save(tmp_path / "run")
    loaded = isr.Report.load(tmp_path / "run")
    assert loaded.case_records == report.case_records
    assert loaded.judgement_records == report.judgement_records
    assert loaded.lock == json.loads(json.dumps(report.lock))
    assert numbers(loaded) == numbers(report)
    pd.testing.assert_frame_equal(loaded.judgements, report.judgements)
    pd.testing.assert_frame_equal(loaded.by("method"), report.by("method"))
    for case in report.case_records:
        assert case.edited is not None
        png = loaded.picture(case.edited)
        assert png is not None
        assert as_image(png, name="x").digest == case.edited


def test_saving_again_appends_nothing_and_rewrites_nothing(report: isr.Report, tmp_path: Path) -> None:
    report.save(tmp_path / "run")
    before = {p.name: p.read_bytes() for p in (tmp_path / "run").glob("*.jsonl")}
    make().save(tmp_path / "run")
    after = {p.name: p.read_bytes() for p in (tmp_path / "run").glob("*.jsonl")}
    for name, content in before.items():
        assert after[name].startswith(content)
    assert after["cases.jsonl"] == before["cases.jsonl"]


def test_more_edits_join_a_run(tmp_path: Path) -> None:
    def part(n: int) -> isr.Report:
        judge = Scripted(lambda q: text(q.prompt in {"p 0", "p 5"}), "a")
        return isr.evaluate(
            pictures(n), [f"p {i}" for i in range(n)], originals=pictures(n, 50), judges=[judge], cache=False
        )

    part(4).save(tmp_path / "run")
    before = (tmp_path / "run" / "judgements.jsonl").read_bytes()
    part(6).save(tmp_path / "run")
    assert (tmp_path / "run" / "judgements.jsonl").read_bytes().startswith(before)
    loaded = isr.Report.load(tmp_path / "run")
    assert (loaded.n, loaded.isr) == (6, 2 / 6)


def test_another_way_of_judging_is_refused(report: isr.Report, tmp_path: Path) -> None:
    report.save(tmp_path / "run")
    with pytest.raises(UsageError, match=r"consensus: 'strict' against 'any'"):
        make(consensus="any").save(tmp_path / "run")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("mine")
    with pytest.raises(UsageError, match="not empty"):
        report.save(tmp_path / "other")


def test_without_pictures(report: isr.Report, tmp_path: Path) -> None:
    report.save(tmp_path / "run", images=False)
    assert not (tmp_path / "run" / "images").exists()
    loaded = isr.Report.load(tmp_path / "run")
    assert numbers(loaded) == numbers(report)
    assert "picture not kept" in loaded.to_html()


def test_a_torn_last_row_is_dropped_and_written_again(report: isr.Report, tmp_path: Path) -> None:
    folder = report.save(tmp_path / "run")
    path = folder / "judgements.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:-40])
    assert len(RunFiles.at(folder).judgements()) == len(report.judgement_records) - 1
    with pytest.raises(UsageError, match="incomplete"):
        _ = isr.Report.load(folder).outcomes
    report.save(folder)
    assert isr.Report.load(folder).judgement_records == report.judgement_records


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("run.json", lambda s: s.replace('"layout": 1', '"layout": 99'), "layout 99"),
        ("run.json", lambda s: s[:-30], "not valid JSON"),
        ("run.json", lambda s: s.replace('"judges"', '"jugdes"'), "'judges' must be a list"),
        ("cases.jsonl", lambda s: s.replace('"edited":"', '"edited":"../../'), "not a digest"),
        ("cases.jsonl", lambda s: s.replace('"prompt":', '"surprise":'), "surprise|prompt"),
        (
            "judgements.jsonl",
            lambda s: s.replace('"semantic_mismatch":true', '"semantic_mismatch":1'),
            "semantic_mismatch",
        ),
        ("judgements.jsonl", lambda s: s.replace('"case_id":"', '"case_id":"f'), "not in cases.jsonl"),
    ],
)
def test_a_strangers_run_is_read_with_care(
    report: isr.Report, tmp_path: Path, file: str, change: Any, message: str
) -> None:
    folder = report.save(tmp_path / "run")
    (folder / file).write_text(change((folder / file).read_text()))
    with pytest.raises((IntegrityError, UsageError), match=message):
        isr.Report.load(folder)


def test_swapped_and_linked_pictures_are_refused(report: isr.Report, tmp_path: Path) -> None:
    folder = report.save(tmp_path / "run")
    digest = report.case_records[0].edited
    assert digest is not None
    path = folder / "images" / f"{digest}.png"
    picture(999).save(path)
    with pytest.raises(IntegrityError, match="not that of its name"):
        isr.Report.load(folder).picture(digest)
    path.unlink()
    os.symlink("/etc/passwd", path)
    with pytest.raises(IntegrityError, match="a link"):
        isr.Report.load(folder).picture(digest)
    (folder / "cases.jsonl").rename(folder / "c")
    os.symlink(folder / "c", folder / "cases.jsonl")
    with pytest.raises(IntegrityError, match="a link"):
        isr.Report.load(folder)


def test_no_run_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no run\.json"):
        isr.Report.load(tmp_path)


@pytest.mark.parametrize(
    ("value", "good"),
    [("a" * 64, True), ("A" * 64, False), ("a" * 63, False), ("../x", False), (7, False), ("a" * 64 + "\n", False)],
)
def test_digests(value: object, good: bool) -> None:
    assert is_digest(value) is good


def test_replay_recomputes_everything(report: isr.Report, tmp_path: Path) -> None:
    folder = report.save(tmp_path / "run")
    again = isr.replay(folder)
    assert again.differences == ()
    assert numbers(again.report) == numbers(report)
    assert (again.recomputed, again.kept) == (len(report.judgement_records), 0)


def test_replay_finds_an_edited_answer(report: isr.Report, tmp_path: Path) -> None:
    folder = report.save(tmp_path / "run")
    lines = (folder / "judgements.jsonl").read_text().splitlines()
    row = json.loads(lines[0])
    row["answer"]["semantic_mismatch"] = not row["answer"]["semantic_mismatch"]
    (folder / "judgements.jsonl").write_text("\n".join([json.dumps(row), *lines[1:]]) + "\n")
    found = isr.replay(folder)
    assert len(found.differences) == 1
    assert found.report.isr == report.isr
    assert main(["replay", str(folder)]) == 1


def test_replay_refuses_another_rubric(report: isr.Report, tmp_path: Path) -> None:
    folder = report.save(tmp_path / "run")
    lock = json.loads((folder / "run.json").read_text())
    lock["rubric"]["criteria"][0]["question"] += " Really?"
    (folder / "run.json").write_text(json.dumps(lock))
    with pytest.raises(IntegrityError, match="hashes to"):
        isr.replay(folder)


def test_groups_and_columns(report: isr.Report) -> None:
    table = report.by("method", "prompt_kind")
    assert table["n"].sum() == report.n
    assert set(table.columns) >= {
        "method",
        "prompt_kind",
        "isr",
        "low",
        "high",
        "band_low",
        "band_high",
        "mismatch_rate",
        "mismatch_n",
    }
    # the control arm enters only when asked for by arm
    arms = report.by("arm").set_index("arm")
    assert arms.loc["immunized", "isr"] == report.isr
    assert arms["n"].sum() == len(report.case_records)
    with pytest.raises(UsageError, match="no column 'flavour'"):
        report.by("flavour")


def test_rates_by_hand() -> None:
    # judge a: mismatch, degradation, neither; judge b: mismatch on every case
    a = Scripted([verdict(True), verdict(False, True), verdict()], "a", concurrency=1)
    report = isr.evaluate(
        pictures(3),
        ["a", "b", "c"],
        originals=pictures(3, 9),
        judges=[a, Scripted(lambda q: verdict(True), "b")],
        cache=False,
    )
    row = report.by("method").iloc[0]
    assert (row["mismatch_rate"], row["mismatch_n"]) == (1 / 3, 3)  # both say mismatch on the first only
    assert (row["degradation_rate"], row["degradation_n"]) == (0.0, 3)


def test_html_is_self_contained_and_escapes(report: isr.Report, tmp_path: Path) -> None:
    page = report.to_html(tmp_path / "r.html")
    assert page == (tmp_path / "r.html").read_text("utf-8")
    assert "<script>alert(1)" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert "Content-Security-Policy" in page
    for outside in ("http://", "https://"):
        assert f'src="{outside}' not in page
        assert f'href="{outside}' not in page


def test_latex_escapes(report: isr.Report) -> None:
    table = report.to_latex("category")
    assert r"\input" not in table.replace(r"\textbackslash{}input", "")
    assert r"\textbackslash{}input\{/etc/passwd\}" in table
    assert table.count(r"\begin{tabular}") == 1
    assert latex("a\nb\x00\u2028c") == "a b  c"


def test_csv_cells_are_no_formulas() -> None:
    for text_ in ("=1+1", "+1", "-1", "@x", " =1", "\t=1"):
        assert csv_cell(text_) == "'" + text_
    assert csv_cell("plain") == "plain"
    assert csv_cell(-1.5) == -1.5
    table = csv_safe(pd.DataFrame({"=a": ["=b", None, "c"], "n": [1.0, -2.0, None]}))
    assert list(table.columns) == ["'=a", "n"]
    assert table.iloc[0, 0] == "'=b"
    assert table["n"].iloc[1] == -2.0


def test_methods_text_names_what_was_measured(report: isr.Report) -> None:
    told = report.methods_text()
    assert report.lock["rubric_hash"][:8] in told
    assert "strict consensus" in told
    assert "2512.14320" in told


def test_a_users_policy_has_to_be_given_again(tmp_path: Path) -> None:
    def lenient(answers: Any) -> Any:
        return "success"

    run = isr.evaluate(
        pictures(1),
        ["x"],
        originals=pictures(1, 5),
        judges=[Scripted(lambda q: verdict(), "a")],
        consensus=lenient,
        cache=False,
    )
    assert run.isr == 1.0
    folder = run.save(tmp_path / "run")
    with pytest.raises(UsageError, match=r"consensus=function"):
        isr.Report.load(folder)
    assert isr.Report.load(folder, consensus=lenient).isr == 1.0


def manifest(folder: Path) -> Path:
    rows = []
    for i in range(4):
        picture(i).save(folder / f"e{i}.png")
        picture(i + 50).save(folder / f"o{i}.png")
        rows.append(
            {"edited": f"e{i}.png", "original": f"o{i}.png", "prompt": f"edit {i}", "method": "m1" if i < 2 else "m2"}
        )
    path = folder / "manifest.csv"
    pd.DataFrame(rows).to_csv(path, index=False)
    return path


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from isr.registry import JUDGES

    monkeypatch.setattr(JUDGES, "_local", {"fixed": lambda *a, **k: Scripted(lambda q: text(True), "fixed")})
    path = manifest(tmp_path)
    common = [str(path), "--judge", "fixed", "--cache", str(tmp_path / "cache")]
    assert main(["estimate", *common]) == 0
    assert "4 – 8" in capsys.readouterr().out
    assert (
        main(["evaluate", *common, "--out", str(tmp_path / "run"), "--html", str(tmp_path / "r.html"), "--quiet"]) == 0
    )
    assert "100.0 %" in capsys.readouterr().out
    assert main(["estimate", *common]) == 0
    assert "4" in capsys.readouterr().out
    assert main(["report", str(tmp_path / "run"), "--by", "method", "--csv", str(tmp_path / "j.csv")]) == 0
    assert "m2" in capsys.readouterr().out
    assert len(pd.read_csv(tmp_path / "j.csv")) == 4
    assert main(["report", str(tmp_path / "run"), "--latex"]) == 0
    assert r"\toprule" in capsys.readouterr().out
    assert main(["replay", str(tmp_path / "run")]) == 0
    assert "0 rest on none" in capsys.readouterr().out
    assert main(["judges"]) == 0
    assert main(["evaluate", str(tmp_path / "nowhere.csv"), "--judge", "fixed"]) == 1
    assert "nowhere.csv" in capsys.readouterr().err


def test_every_command_has_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        main(["--help"])
    assert done.value.code == 0
    out = capsys.readouterr().out
    for command in ("evaluate", "estimate", "report", "replay", "judges", "doctor", "demo"):
        assert command in out


def test_the_demo_runs_and_says_what_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Trained weights, two pictures, two steps per attack: what `make demo` does, in small."""
    for package in ("torch", "diffusers", "isr_miniworld"):
        pytest.importorskip(package)
    assert main(["demo", "--out", str(tmp_path / "demo"), "--images", "2", "--iterations", "2"]) == 0
    out = capsys.readouterr().out
    assert "stand-ins" in out
    assert "orderings need not carry over" in out
    assert (tmp_path / "demo" / "report.html").stat().st_size > 1000
    report = isr.Report.load(tmp_path / "demo")
    assert sorted((c.arm, str(c.method)) for c in report.case_records) == [
        *[("control", "None")] * 2, *[("immunized", "photoguard-encoder")] * 2, *[("immunized", "sifm")] * 2, *[("noise", "noise")] * 2,
    ]  # fmt: skip
    assert report.n_no_verdict == 0
    assert report.control_arm is not None
    assert "orderings need not carry over" in report.to_latex()


def test_figures_are_drawn_where_the_run_has_the_data(report: isr.Report, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    told = report.figures(tmp_path / "f", suffix="png")
    assert (tmp_path / "f" / "isr.png").read_bytes().startswith(b"\x89PNG")
    assert set(told) == {"isr", "differences", "agreement", "disagreement"}
    assert told["differences"].startswith("absent: ")  # m1 and m2 share no prompt here
    assert (tmp_path / "f" / "agreement.png").is_file()
