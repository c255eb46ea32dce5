"""Functions as judges that fail oddly, stored answers that stand, streams that are left, controls that are kept."""

from __future__ import annotations

import asyncio
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError as FutureCancelledError
from pathlib import Path
from typing import Any

import pytest
from evaluate_help import Scripted, picture, pictures, text
from isr.judges.function import FunctionJudge

import isr
from isr.cli import main
from isr.engine.retry import RetryPolicy
from isr.errors import JudgeStoppedError, TransientError, UsageError
from isr.protocols import JudgeLimits, Reply
from isr.registry import JUDGES
from isr.schema import NoVerdict

SECRET = "sk-very-secret-123456"


def within(seconds: float, work: Callable[[], Any]) -> Any:
    """The result of `work`, or a failure where it hangs."""
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(work()), daemon=True)
    thread.start()
    thread.join(seconds)
    assert found, f"nothing came within {seconds} s"
    return found[0]


def run(judges: Any, n: int = 2, **options: Any) -> isr.Report:
    prompts = [f"edit {i}" for i in range(n)]
    given = {"originals": pictures(n, 900), "cache": False, "progress": False, **options}
    return isr.evaluate(pictures(n), prompts, judges=judges, **given)


# ------------------------------------------------------------------------------------------------- function judges


@pytest.mark.parametrize("error", [StopIteration, asyncio.CancelledError, FutureCancelledError])
def test_a_plain_function_may_raise_what_asyncio_cannot_carry(error: type[BaseException]) -> None:
    def judge(case: Any) -> Any:
        if case.prompt == "edit 1":
            raise error
        return True, False

    report = within(20, lambda: run([judge]))
    assert (report.n, dict(report.no_verdicts)) == (2, {"judge_error": 1})
    assert error.__name__ in str(report.judgements["detail"].tolist())


def test_an_async_function_that_raises_cancelled_by_itself_is_a_missing_verdict() -> None:
    async def judge(case: Any) -> Any:
        if case.prompt == "edit 1":
            raise asyncio.CancelledError
        return True, False

    report = within(20, lambda: run([judge]))
    assert (report.n, dict(report.no_verdicts)) == (2, {"judge_error": 1})


def test_a_function_whose_run_is_really_cancelled_stops() -> None:
    async def judge(case: Any) -> Any:
        await asyncio.sleep(30)

    async def work() -> None:
        coroutine = isr.aevaluate(
            pictures(1), ["x"], originals=pictures(1, 9), judges=[judge], cache=False, progress=False
        )
        task = asyncio.create_task(coroutine)
        await asyncio.sleep(0.3)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(asyncio.wait_for(work(), 15))


def test_a_functions_own_errors_are_scrubbed_and_keep_their_facts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MYSVC_API_KEY", SECRET)

    async def caught(error: Exception) -> BaseException:
        def fail(case: Any) -> Any:
            raise error

        async with FunctionJudge(fail).connect() as ask:
            with pytest.raises(type(error)) as found:
                await ask(isr.protocols.Question("i", "d", (), {}, "s", "p"))
            return found.value

    passing = asyncio.run(caught(TransientError(f"GET ?key={SECRET} timed out", retry_after=3.0, status=503)))
    assert isinstance(passing, TransientError)
    assert SECRET not in str(passing)
    assert (passing.retry_after, passing.status, passing.__suppress_context__) == (3.0, 503, True)
    final = asyncio.run(caught(JudgeStoppedError(f"bad key {SECRET}", judge="svc", status=401)))
    assert isinstance(final, JudgeStoppedError)
    assert SECRET not in str(final)
    assert (final.judge, final.status) == ("svc", 401)


def test_no_key_reaches_the_run_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MYSVC_API_KEY", SECRET)

    def judge(case: Any) -> Any:
        raise TransientError(f"GET ?key={SECRET} timed out")

    report = run([judge], retry=RetryPolicy(attempts=1))
    report.save(tmp_path / "run")
    assert SECRET not in (tmp_path / "run" / "judgements.jsonl").read_text()
    assert dict(report.no_verdicts) == {"exhausted": 2}


# ------------------------------------------------------------------------------------------------- stored answers


@pytest.mark.parametrize("first", ["refused", "unparseable"])
def test_a_replayed_run_gives_the_answers_that_stand(tmp_path: Path, first: str) -> None:
    """The stored chain is refused → verdict, or unreadable → unreadable → verdict (the second on request)."""
    last = 1 if first == "refused" else 2

    def answer(question: Any) -> Any:
        if question.ask >= last:
            return text(question.prompt == "edit 0")
        return NoVerdict(reason="refused") if first == "refused" else "{}"

    run([Scripted(answer)], cache=tmp_path / "cache")
    stored = run([Scripted(answer)], cache=tmp_path / "cache", retry_no_verdicts=True)
    assert (stored.isr, stored.n_no_verdict) == (0.5, 0)
    stored.save(tmp_path / "run")
    again = run(f"replay:{tmp_path / 'run'}")
    assert (again.isr, again.n_no_verdict) == (0.5, 0)


def test_a_replayed_run_keeps_the_re_ask_of_an_unreadable_reply(tmp_path: Path) -> None:
    def answer(question: Any) -> Any:
        return "{}" if question.ask == 0 or question.prompt == "edit 1" else text(True)

    stored = run([Scripted(answer)])
    stored.save(tmp_path / "run")
    again = run(f"replay:{tmp_path / 'run'}")
    assert [len(j.calls) for j in again.judgement_records] == [len(j.calls) for j in stored.judgement_records] == [2, 2]
    assert [j.answer for j in again.judgement_records] == [j.answer for j in stored.judgement_records]


# ------------------------------------------------------------------------------------------------- streams


def edit_case(i: int, **columns: Any) -> isr.EditCase:
    return isr.EditCase(picture(i), f"edit {i}", original=picture(i + 500), **columns)


class Slow(isr.AskJudge):
    """Answers the first case at once and all others after a long time."""

    name = "slow"
    limits = JudgeLimits(concurrency=8)

    async def ask(self, question: Any) -> Reply:
        if question.prompt != "edit 0":
            await asyncio.sleep(30)
        return Reply(text=text(True))


def of_streams() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith(("isr-stream", "isr-images"))]


@pytest.mark.parametrize("delay", [0.0, 0.4])
def test_leaving_a_stream_does_not_wait_for_the_next_answer(delay: float, tmp_path: Path) -> None:
    found = isr.stream(map(edit_case, range(6)), judges=[Slow()], cache=False, out=tmp_path / "run")
    assert next(found).case.prompt == "edit 0"
    time.sleep(delay)
    start = time.monotonic()
    found.close()  # type: ignore[attr-defined]
    assert time.monotonic() - start < 15  # an answer takes 30 s
    assert of_streams() == []
    assert isr.Report.load(tmp_path / "run").n == 1


def test_an_interrupt_in_the_loop_stops_the_stream() -> None:
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):  # noqa: PT012 - the loop is what is tested
        for _ in isr.stream(map(edit_case, range(6)), judges=[Slow()], cache=False):
            raise KeyboardInterrupt
    assert time.monotonic() - start < 25
    assert of_streams() == []


def test_progress_of_a_stream(capsys: pytest.CaptureFixture[str]) -> None:
    judge = Scripted(lambda q: text(True))
    assert len(list(isr.stream(map(edit_case, range(3)), judges=[judge], cache=False, progress=True))) == 3
    assert "judging" in capsys.readouterr().err
    assert len(list(isr.stream(map(edit_case, range(3)), judges=[judge], cache=False, progress=False))) == 3
    assert capsys.readouterr().err == ""


def test_a_resumed_stream_adds_up_what_was_served_and_keeps_the_notes(tmp_path: Path) -> None:
    def answers(model: str) -> Scripted:
        return Scripted(lambda q: Reply(text=text(True), served_model=model))

    def some(n: int) -> Iterator[isr.EditCase]:
        yield isr.EditCase(b"broken", "edit 99", original=picture(1))
        yield from map(edit_case, range(n))

    out = tmp_path / "run"
    list(isr.stream(some(3), judges=[answers("snap-1")], cache=False, out=out))
    lock = json.loads((out / "run.json").read_text())
    list(isr.stream(some(5), judges=[answers("snap-2")], cache=False, out=out))
    # nothing new: nothing is asked, and nothing is forgotten
    list(isr.stream(some(5), judges=[answers("snap-3")], cache=False, out=out))
    report = isr.Report.load(out)
    assert report.lock["judges"][0]["served"] == {"snap-1": 3, "snap-2": 2}
    assert report.lock["created"] == lock["created"]
    assert lock["notes"] == report.lock["notes"]
    assert [n for n in report.lock["notes"] if "could not be read" in n] == [
        "1 cases hold a picture that could not be read; they count as no verdict (bad_image)."
    ]
    assert report.lock["settings"]["on_bad_image"] == "skip"
    assert report.n == 6


def test_a_stream_that_is_left_records_what_was_served(tmp_path: Path) -> None:
    judge = Scripted(lambda q: text(True), concurrency=1)
    found = isr.stream(map(edit_case, range(200)), judges=[judge], cache=False, out=tmp_path / "run")
    for _ in range(70):
        next(found)
    found.close()  # type: ignore[attr-defined]
    report = isr.Report.load(tmp_path / "run")
    assert report.lock["judges"][0]["served"]["scripted-1"] >= report.n >= 70


def test_the_notes_of_a_stream_are_those_of_a_list(tmp_path: Path) -> None:
    def alone() -> list[isr.EditCase]:
        return [isr.EditCase(picture(i), "p", arm="control" if i == 2 else "immunized") for i in (0, 1, 1, 2)]

    streamed = isr.evaluate(iter(alone()), judges=[Scripted(lambda q: text(True))], cache=False, progress=False)
    listed = isr.evaluate(alone(), judges=[Scripted(lambda q: text(True))], cache=False, progress=False)
    assert streamed.lock["notes"] == listed.lock["notes"]
    assert len(listed.lock["notes"]) == 5


def test_a_control_row_that_comes_too_late_is_told() -> None:
    rows = [edit_case(0), edit_case(1)]
    late = [isr.EditCase(picture(700 + i), f"edit {i}", original=picture(i + 500), arm="control") for i in range(2)]

    def notes(cases: list[isr.EditCase]) -> str:
        report = isr.evaluate(iter(cases), judges=[Scripted(lambda q: text(True))], cache=False, progress=False)
        return "\n".join(report.lock["notes"])

    found = notes([*rows, *late])
    assert "2 of 2 edits have no control" in found
    assert "put control rows first" in found
    assert "put control rows first" in notes([rows[0], late[0]])
    assert notes([*late, *rows]) == ""
    # made from control=, after an edit of the same columns that has none
    assert notes([edit_case(0), edit_case(0, method="m", control=picture(700))]) == (
        "1 of 2 edits have no control; paired figures use the others only."
    )


def test_a_stream_does_not_go_on_without_the_originals(tmp_path: Path) -> None:
    judge = Scripted(lambda q: text(True))
    list(isr.stream([edit_case(0)], judges=[judge], cache=False, out=tmp_path / "run"))
    with pytest.raises(UsageError, match="was judged with originals, and this case comes without"):
        list(isr.stream([isr.EditCase(picture(1), "p")], judges=[judge], cache=False, out=tmp_path / "run"))


# ------------------------------------------------------------------------------------------------- bridges and comparisons


def even(question: Any) -> str:
    return text(int(question.prompt.split()[1]) % 2 == 0)


def test_controls_of_two_methods_without_seeds_are_carried_over(tmp_path: Path) -> None:
    """Two methods, one prompt and image, each with a control picture of its own."""
    report = isr.evaluate(
        [picture(0), picture(1)], ["edit 0"] * 2, originals=[picture(9)] * 2, controls=[picture(2), picture(3)],
        columns={"method": ["a", "b"], "category": ["x", "y"]}, judges=[Scripted(even)], cache=False, progress=False,
    )  # fmt: skip
    found = isr.bridge(report, [Scripted(even, "b")], cache=False, progress=False)
    assert [(c.case_id, c.control, c.category) for c in found.new.case_records] == [
        (c.case_id, c.control, c.category) for c in report.case_records
    ]
    assert len(found.new.case_records) == 4


def test_pairs_without_image_ids_are_carried_over() -> None:
    report = isr.evaluate(
        pictures(2), ["edit 0", "edit 1"], controls=pictures(2, 5), judges=[Scripted(even)], cache=False, progress=False
    )
    found = isr.bridge(report, [Scripted(even, "b")], cache=False, progress=False)
    assert [(c.case_id, c.control) for c in found.new.case_records] == [
        (c.case_id, c.control) for c in report.case_records
    ]
    assert found.new.control_arm is not None
    assert found.new.control_arm.n_pairs == 2


@pytest.mark.parametrize(
    "columns", [{"id": "n"}, {"method": "none"}, {"tags": {"who": "me"}}, {"category": "other"}, {}]
)
def test_explicit_control_rows_are_carried_over_as_they_are(columns: dict[str, Any]) -> None:
    cases = [
        edit_case(0, method="a", category="c"),
        edit_case(0, method="b", category="c"),
        isr.EditCase(picture(7), "edit 0", original=picture(500), arm="control", **{"category": "c", **columns}),
        isr.EditCase(picture(8), "edit 0", original=picture(501), arm="control"),  # of nobody
    ]
    report = isr.evaluate(cases, judges=[Scripted(even)], cache=False, progress=False)
    found = isr.bridge(report, [Scripted(even, "b")], cache=False, progress=False)

    def rows(which: isr.Report) -> dict[str, Any]:
        names = {"edited_name", "original_name"}
        return {c.case_id: c.model_dump(exclude=names) for c in which.case_records}

    assert rows(found.new) == rows(report)
    assert [c.control for c in report.case_records[:2]] == [report.case_records[2].case_id] * 2


def test_a_lazy_run_is_bridged_without_agreement() -> None:
    report = run([Scripted(even, "a"), Scripted(even, "b")], lazy=True)
    for name in ("c", "a"):  # another judge, and one of the same name
        found = isr.bridge(report, [Scripted(even, name)], cache=False, progress=False)
        assert (found.agreement, found.absent) == (None, "lazy")
        assert "absent: lazy" in str(found)
    whole = isr.bridge(run([Scripted(even, "a")]), [Scripted(even, "c")], cache=False, progress=False)
    assert whole.agreement is not None
    assert "absent" not in str(whole)
    new_lazy = isr.bridge(
        run([Scripted(even, "a")]), [Scripted(even, "c"), Scripted(even, "d")], lazy=True, cache=False
    )
    assert new_lazy.absent == "lazy"


def test_folders_of_one_name_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for place, start in (("a", 0), ("b", 300)):
        isr.evaluate(
            pictures(4, start), [f"edit {i}" for i in range(4)], originals=pictures(4, 900),
            columns={"method": ["m"] * 4}, judges=[Scripted(even)], cache=False, progress=False,
        ).save(tmp_path / place / "run")  # fmt: skip
    monkeypatch.chdir(tmp_path)
    for given in (("a/run", "b/run"), ("a/run/", tmp_path / "b" / "run")):
        found = isr.compare(*given, n_boot=200)
        assert set(found.rates["method"]) == {"m (a/run)", "m (b/run)"}
    with pytest.raises(UsageError, match="given twice"):
        isr.compare("a/run", tmp_path / "a" / "run")


# ------------------------------------------------------------------------------------------------- the metric class


def metric() -> isr.ImmunizationSuccessRate:
    return isr.ImmunizationSuccessRate(judges=[Scripted(even)], cache=False, progress=False)


def test_control_rows_given_to_the_metric_are_kept() -> None:
    prompts = [f"edit {i}" for i in range(2)]
    one = metric()
    one.update(pictures(2), prompts, originals=pictures(2, 900))
    one.update(pictures(2, 50), prompts, originals=pictures(2, 900), columns={"arm": ["control"] * 2})
    assert len(one.report.case_records) == 4
    assert one.report.control_arm is not None
    assert one.report.control_arm.n_pairs == 2
    # in one batch, and without originals (then they stay unpaired)
    two = metric()
    two.update(pictures(4), prompts * 2, columns={"arm": ["immunized", "control", "control", "immunized"]})
    assert sorted(c.arm for c in two.report.case_records) == ["control", "control", "immunized", "immunized"]


def test_controls_of_the_metric_stay_with_their_edits() -> None:
    one = metric()
    prompts = (f"edit {i}" for i in range(2))
    one.update(iter(pictures(2)), prompts, controls=[picture(50), None])
    assert sorted((c.arm, c.control is not None) for c in one.report.case_records) == [
        ("control", False), ("immunized", False), ("immunized", True),
    ]  # fmt: skip


# ------------------------------------------------------------------------------------------------- the command line


class Counted(isr.AskJudge):
    name = "counted"
    asked = 0

    def __init__(self, *arguments: Any) -> None:
        pass

    async def ask(self, question: Any) -> Reply:
        Counted.asked += 1
        return Reply(text=even(question))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setitem(JUDGES._local, "counted", Counted)
    Counted.asked = 0
    rows = []
    for i in range(4):
        picture(i).save(tmp_path / f"e{i}.png")
        picture(i + 500).save(tmp_path / f"o{i}.png")
        rows.append(f"e{i}.png,edit {i},o{i}.png")
    (tmp_path / "m.csv").write_text("\n".join(["edited,prompt,original", *rows]) + "\n")
    (tmp_path / "noise.csv").write_text("\n".join(["edited,prompt,original,arm", *(f"{r},noise" for r in rows)]) + "\n")
    return tmp_path


def evaluate(folder: Path, *options: Any, manifest: str = "m.csv") -> int:
    given = ["evaluate", folder / manifest, "--judge", "counted", "--no-cache", "--quiet", *options]
    return main([str(o) for o in given])


def test_places_where_nothing_can_be_written_are_found_before_judging(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "busy").mkdir()
    (folder / "busy" / "x").write_text("x")
    (folder / "file").write_text("x")
    wrong = {
        ("--out", folder / "busy"): "--out: .*not empty and holds no run",
        ("--out", folder / "file"): "--out: .*is a file",
        ("--out", folder / "file" / "run"): "--out: .*is a file, so nothing",
        ("--html", folder / "no" / "x.html"): "--html: the folder .* does not exist",
        ("--html", folder / "busy"): "--html: .* is a folder",
    }
    for options, message in wrong.items():
        assert evaluate(folder, *options) == 1
        seen = capsys.readouterr()
        assert re.search(message, seen.err)
        assert seen.out == ""
    assert Counted.asked == 0


def test_a_folder_without_permission_is_found_before_judging(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.access", lambda *_: False)  # (a test that runs as root may write everywhere)
    for options in (("--out", folder / "a" / "run"), ("--html", folder / "x.html")):
        assert evaluate(folder, *options) == 1
        assert re.search(f"{options[0]}: .*no permission", capsys.readouterr().err)
    assert Counted.asked == 0


def test_a_run_without_immunized_rows_is_saved_and_shown(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate(folder, "--out", folder / "run", manifest="noise.csv") == 0
    assert "no immunized rows" in capsys.readouterr().out
    assert len(isr.Report.load(folder / "run").case_records) == 4


def test_a_run_is_saved_before_it_is_shown(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(report: Any) -> str:
        raise RuntimeError("cannot be shown")

    with monkeypatch.context() as patch:
        patch.setattr(isr.Report, "summary", broken)
        with pytest.raises(RuntimeError, match="cannot be shown"):
            evaluate(folder, "--out", folder / "run")
    assert isr.Report.load(folder / "run").n == 4

    def full(report: Any, *_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(isr.Report, "save", full)
    assert evaluate(folder, "--out", folder / "other") == 1
    seen = capsys.readouterr()
    assert "50.0 %" in seen.out
    assert re.search("--out: .*No space left on device", seen.err)


def test_reports_refuse_what_does_not_go_together(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate(folder, "--out", folder / "run") == 0
    capsys.readouterr()
    wrong = {
        ("--csv", folder / "no" / "x.csv"): "--csv: the folder .* does not exist",
        ("--html", folder / "no" / "x.html"): "--html: the folder .* does not exist",
        ("--assets",): "--assets .*--html",
        ("--by", "judge", "--latex"): "--latex: .*one case column",
        ("--by", "", "--latex"): "--latex: .*one case column",
        ("--by", "method,arm", "--latex"): "--latex: .*one case column",
        ("--by", "judge,method"): "--by: judge stands alone",
        ("--figures", folder / "m.csv"): "--figures: ",
    }
    for options, message in wrong.items():
        assert main(["report", str(folder / "run"), *map(str, options)]) == 1, options
        seen = capsys.readouterr()
        assert re.search(message, seen.err), seen.err
        if options[0] != "--figures":
            assert seen.out == ""
    right = [("--by", ""), ("--by", "judge"), ("--latex",), ("--csv", folder / "x.csv")]
    right += [("--html", folder / "x.html", "--assets")]
    for options in right:
        assert main(["report", str(folder / "run"), *map(str, options)]) == 0, options
    assert (folder / "x.csv").read_text().count("\n") == 5
    assert (folder / "x_pictures").is_dir()


def test_a_merge_names_the_folder_that_it_cannot_write(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for i in (1, 2):
        assert evaluate(folder, "--out", folder / f"s{i}") == 0
    assert main(["merge", str(folder / "s1"), str(folder / "s2"), "--out", str(folder / "m.csv")]) == 1
    assert "--out: " in capsys.readouterr().err
