"""evaluate(): what is asked of whom, what becomes of every kind of answer, and what is resumed."""

from __future__ import annotations

import asyncio
import threading
import warnings
from pathlib import Path
from typing import Any

import pytest
from evaluate_help import Scripted, picture, pictures, text, verdict
from hypothesis import given, settings
from hypothesis import strategies as st

import isr
from isr.engine import runner
from isr.engine.cache import DiskCache
from isr.engine.retry import RetryPolicy
from isr.errors import JudgeStoppedError, ProblemsError, TransientError, UsageError
from isr.protocols import JudgeLimits, Reply
from isr.schema import NO_VERDICT_REASONS, NotAsked, NoVerdict, Verdict

FAST = RetryPolicy(attempts=2, base=0.0, cap=0.0)
PROMPTS = [f"edit {i}" for i in range(6)]


def run(judges: list[Any], n: int = 6, **options: Any) -> isr.Report:
    options = {"cache": False, "progress": False, "retry": FAST, "originals": pictures(n, 100), **options}
    return isr.evaluate(pictures(n), PROMPTS[:n], judges=judges, **options)


def by_prompt(table: dict[str, Any], default: Any) -> Any:
    return lambda question: table.get(question.prompt, default)


def test_strict_consensus_of_two() -> None:
    a = Scripted(by_prompt({"edit 0": verdict(True), "edit 1": verdict(True), "edit 2": verdict(True)}, verdict()), "a")
    b = Scripted(by_prompt({"edit 0": verdict(False, True), "edit 1": verdict()}, verdict(True)), "b")
    report = run([a, b])
    # both say defeated on 0 and 2; b alone on 3, 4, 5; a alone on 1
    assert report.isr == 2 / 6
    assert report.bounds == (2 / 6, 2 / 6)
    assert report.band == (2 / 6, 6 / 6)
    assert [o.value for o in report.outcomes] == ["success", "failure", "success", "failure", "failure", "failure"]
    assert len(report.disagreements) == 5  # case 0 too: the two give different reasons
    assert list(report.by_judge()["defeated_rate"]) == [3 / 6, 5 / 6]


def test_missing_verdicts_widen_the_bounds_and_never_count() -> None:
    a = Scripted(by_prompt({"edit 0": NoVerdict(reason="blocked")}, verdict(True)), "a")
    b = Scripted(by_prompt({"edit 1": NoVerdict(reason="refused")}, verdict(True)), "b")
    report = run([a, b])
    assert report.isr == 4 / 6
    assert report.bounds == (4 / 6, 6 / 6)
    assert (report.n_no_verdict, report.n_undetermined) == (2, 2)
    assert dict(report.no_verdicts) == {"blocked": 1, "refused": 1}


def test_a_missing_verdict_beside_a_no_is_a_failure_not_undetermined() -> None:
    a = Scripted([NoVerdict(reason="blocked")] * 6, "a")
    report = run([a, Scripted(lambda q: verdict(), "b")])
    assert (report.isr, report.n_undetermined, report.n_no_verdict) == (0.0, 0, 6)


@pytest.mark.parametrize("error", [ValueError("boom"), ZeroDivisionError(), KeyError("x"), RuntimeError("dead")])
def test_an_exception_is_a_missing_verdict(error: Exception) -> None:
    report = run([Scripted(lambda q: error, "a"), Scripted(lambda q: verdict(True), "b")], n=2)
    assert (report.isr, report.bounds) == (0.0, (0.0, 1.0))
    assert dict(report.no_verdicts) == {"judge_error": 2}


def test_a_judge_that_returns_nonsense_is_a_missing_verdict() -> None:
    report = run([Scripted(lambda q: 42, "a")], n=1)
    assert dict(report.no_verdicts) == {"judge_error": 1}


def test_transient_failures_are_retried_then_exhausted() -> None:
    a = Scripted([TransientError("busy", status=503), verdict(True)], "a", concurrency=1)
    report = run([a], n=1)
    assert report.isr == 1.0
    assert [x.ended for x in report.judgement_records[0].calls[0].attempts] == ["busy", "ok"]
    gone = Scripted(lambda q: TransientError("busy"), "a")
    report = run([gone], n=1)
    assert dict(report.no_verdicts) == {"exhausted": 1}
    assert len(gone.asked) == 2


def test_an_unreadable_reply_is_asked_for_once_more() -> None:
    a = Scripted(["not json", text(True)], "a", concurrency=1)
    report = run([a], n=1)
    assert report.isr == 1.0
    calls = report.judgement_records[0].calls
    assert [(c.ask, c.answer.kind) for c in calls] == [(0, "no_verdict"), (1, "verdict")]
    b = Scripted(["not json", "nor this", text(True)], "b", concurrency=1)
    report = run([b], n=1)
    assert dict(report.no_verdicts) == {"unparseable": 1}
    assert len(b.asked) == 2


def test_votes_are_calls_of_their_own() -> None:
    script = [text(True), text(True), text(False, True)]
    a = Scripted(script, "a", concurrency=1)
    report = run([a], n=1, votes=3)
    assert [q.vote for q in a.asked] == [0, 1, 2]
    assert isinstance(report.judgement_records[0].answer, Verdict)
    assert report.isr == 1.0
    assert len(report.judgement_records[0].calls) == 3


def test_lazy_gives_the_same_isr_with_fewer_calls() -> None:
    table = {"edit 0": verdict(True), "edit 1": NoVerdict(reason="blocked"), "edit 2": verdict(True)}
    full = run([Scripted(by_prompt(table, verdict()), "a"), Scripted(lambda q: verdict(True), "b")])
    b = Scripted(lambda q: verdict(True), "b")
    lazy = run([Scripted(by_prompt(table, verdict()), "a"), b], lazy=True)
    assert (lazy.isr, lazy.bounds) == (full.isr, full.bounds)
    assert sorted(q.prompt for q in b.asked) == ["edit 0", "edit 1", "edit 2"]
    assert lazy.band == (full.band[0], None)
    assert lazy.by_judge()["absent"].tolist() == ["lazy", "lazy"]
    assert sum(isinstance(j.answer, NotAsked) for j in lazy.judgement_records) == 3
    assert lazy.by("judge")["defeated_rate"].isna().all()
    with pytest.raises(UsageError, match="lazy"):
        run([Scripted(lambda q: verdict(), "a")], lazy=True, consensus="any")


def test_a_stopped_judge_stops_the_run_and_the_same_call_resumes_it(tmp_path: Path) -> None:
    a = Scripted(lambda q: text(True), "a", concurrency=1)
    b = Scripted(
        lambda q: JudgeStoppedError("401: bad key") if q.prompt == "edit 3" else text(True), "b", concurrency=1
    )
    with pytest.raises(JudgeStoppedError, match="bad key"):
        run([a, b], cache=tmp_path)
    again_a, again_b = Scripted(lambda q: text(True), "a"), Scripted(lambda q: text(True), "b")
    report = run([again_a, again_b], cache=tmp_path)
    assert report.isr == 1.0
    assert len(a.asked) + len(again_a.asked) == 6
    asked = {q.prompt for q in b.asked} - {"edit 3"}
    assert asked.isdisjoint(q.prompt for q in again_b.asked)


def test_the_cache_answers_a_second_run(tmp_path: Path) -> None:
    first = run([Scripted(lambda q: text(True), "a")], cache=tmp_path)
    silent = Scripted(lambda q: AssertionError("asked again"), "a")
    second = run([silent], cache=tmp_path)
    assert silent.asked == []
    assert second.judgements["cached"].all()
    assert second.isr == first.isr
    assert [c.text for j in second.judgement_records for c in j.calls] == [
        c.text for j in first.judgement_records for c in j.calls
    ]


def test_only_what_is_not_stored_is_asked(tmp_path: Path) -> None:
    first, second = Scripted(lambda q: text(True), "a"), Scripted(lambda q: text(True), "b")
    run([first], n=4, cache=tmp_path)
    run([second], n=2, cache=tmp_path)
    first, second = Scripted(lambda q: text(True), "a"), Scripted(lambda q: text(), "b")
    report = run([first, second], cache=tmp_path)
    assert sorted(q.prompt for q in first.asked) == PROMPTS[4:]
    assert sorted(q.prompt for q in second.asked) == PROMPTS[2:]
    assert [[j.answer.defeated for j in report.judgement_records if j.judge == name] for name in "ab"] == [  # type: ignore[union-attr]
        [True] * 6,
        [True, True, False, False, False, False],
    ]
    assert [j["served"] for j in report.lock["judges"]] == [{"scripted-1": 6}] * 2


def test_a_lazy_rerun_takes_no_stored_answer_that_it_does_not_need(tmp_path: Path) -> None:
    def judges() -> list[Scripted]:
        return [Scripted(by_prompt({"edit 0": text(True)}, text()), "a"), Scripted(lambda q: text(True), "b")]

    run(judges(), cache=tmp_path)
    again = judges()
    lazy = run(again, cache=tmp_path, lazy=True)
    assert [q.asked for q in again] == [[], []]
    assert sum(isinstance(j.answer, NotAsked) for j in lazy.judgement_records) == 5
    assert [j["served"] for j in lazy.lock["judges"]] == [{"scripted-1": 6}, {"scripted-1": 1}]


def test_a_reply_that_another_process_received_meanwhile_is_not_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = run([Scripted(lambda q: text(True), "a")], n=2, cache=tmp_path / "theirs")
    theirs = {j.calls[0].key: j.calls[0] for j in report.judgement_records}

    def answer(_: Any) -> str:
        for key, call in theirs.items():
            DiskCache(tmp_path / "ours").put(key, call)
        return text()

    monkeypatch.setattr(runner, "LOOK_HOLDS", 0.0)
    judge = Scripted(answer, "a", concurrency=1)
    mine = run([judge], n=2, cache=tmp_path / "ours")
    assert len(judge.asked) == 1
    assert sorted(c.cached for j in mine.judgement_records for c in j.calls) == [False, True]
    assert mine.isr == 0.5


def test_a_stored_no_verdict_is_asked_again_only_on_request(tmp_path: Path) -> None:
    run([Scripted(lambda q: NoVerdict(reason="blocked"), "a")], cache=tmp_path, n=1)
    quiet = Scripted(lambda q: text(True), "a")
    assert dict(run([quiet], cache=tmp_path, n=1).no_verdicts) == {"blocked": 1}
    assert quiet.asked == []
    again = run([quiet], cache=tmp_path, n=1, retry_no_verdicts=True)
    assert again.isr == 1.0
    assert [q.ask for q in quiet.asked] == [1]
    # the later answer stands from now on, without the option too
    assert run([quiet], cache=tmp_path, n=1).isr == 1.0
    assert len(quiet.asked) == 1


@pytest.mark.parametrize("failure", [TransientError("busy"), ValueError("bug")])
def test_what_was_never_received_is_never_stored(tmp_path: Path, failure: Exception) -> None:
    run([Scripted(lambda q: failure, "a")], cache=tmp_path, n=1)
    later = Scripted(lambda q: text(True), "a")
    assert run([later], cache=tmp_path, n=1).isr == 1.0
    assert len(later.asked) == 1


def test_exact_duplicates_are_asked_once_and_counted_twice() -> None:
    a = Scripted(lambda q: text(True), "a")
    report = isr.evaluate(
        [picture(1)] * 3, ["same"] * 3, originals=[picture(2)] * 3, judges=[a], cache=False, progress=False
    )
    assert report.n == 3
    assert len({c.case_id for c in report.case_records}) == 3
    assert len(a.asked) == 1


def test_controls_are_judged_once_and_give_the_excess() -> None:
    n = 6
    controls = [picture(500), *pictures(n - 1, 501)]
    a = Scripted(lambda q: verdict(True) if q.prompt in {"edit 0", "edit 1", "edit 2", "edit 3"} else verdict(), "a")

    def of_control(question: Any) -> Verdict:
        return (
            verdict(question.prompt == "edit 0")
            if question.picture("edited").digest in ids
            else verdict(question.prompt in {"edit 0", "edit 1", "edit 2", "edit 3"})
        )

    from isr.images import as_image

    ids = {as_image(c, name="c").digest for c in controls}
    a.script = of_control
    report = run([a], controls=controls, columns={"method": ["m"] * n})
    assert report.n == n
    assert report.isr == 4 / 6
    arm = report.control_arm
    assert arm is not None
    assert (arm.cells.ok_ok, arm.cells.broken, arm.cells.mended, arm.cells.defeated_defeated) == (2, 3, 0, 1)
    assert report.excess == pytest.approx(4 / 6 - 1 / 6)
    assert "excess" in report.summary()


def test_one_judge_alone_is_called_so() -> None:
    report = run([Scripted(lambda q: verdict(True), "a")])
    assert "single judge" in report.title
    assert any("Single judge" in w for w in report.warnings)


def test_two_judges_of_one_name_are_refused() -> None:
    with pytest.raises(UsageError, match="votes=k"):
        run([Scripted(lambda q: verdict(), "a"), Scripted(lambda q: verdict(), "a")])


def test_two_snapshots_in_one_run_are_a_warning() -> None:
    served = iter(["m-001", "m-002", *["m-002"] * 10])
    a = Scripted(lambda q: Reply(text=text(), served_model=next(served)), "a")
    assert any("m-001, m-002" in w for w in run([a]).warnings)


def test_requests_over_the_inline_limit_are_found_before_any_call() -> None:
    a = Scripted(lambda q: verdict(), "a")
    a.limits = JudgeLimits(max_request_bytes=70_000)
    big = [picture(i, side=300) for i in range(2)]
    with pytest.raises(ProblemsError, match="max_side") as caught:
        isr.evaluate(big, ["x", "y"], originals=big, judges=[a], cache=False)
    assert len(caught.value.problems) == 2
    assert a.asked == []


def test_bad_images_stop_everything_or_are_counted(tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"not a picture")
    a = Scripted(lambda q: verdict(True), "a")
    edits = [*pictures(2), broken]
    with pytest.raises(ProblemsError, match=r"broken\.png"):
        isr.evaluate(edits, PROMPTS[:3], originals=pictures(3, 9), judges=[a], cache=False)
    assert a.asked == []
    report = isr.evaluate(edits, PROMPTS[:3], originals=pictures(3, 9), judges=[a], cache=False, on_bad_image="skip")
    assert (report.n, report.isr, report.bounds) == (3, 2 / 3, (2 / 3, 1.0))
    assert dict(report.no_verdicts) == {"bad_image": 1}
    assert len(a.asked) == 2


def test_a_picture_that_changes_meanwhile_is_a_bad_image(tmp_path: Path) -> None:
    path = tmp_path / "edit.png"
    picture(1).save(path)

    def swap(question: Any) -> Verdict:
        picture(2).save(path)
        return verdict(True)

    first = picture(3)
    a = Scripted(swap, "a", concurrency=1)
    report = isr.evaluate([path, path], ["one", "two"], originals=[first, first], judges=[a], cache=False)
    reasons = [j.answer.reason for j in report.judgement_records if isinstance(j.answer, NoVerdict)]
    assert reasons in (["bad_image"], [])  # two workers may both have read it before the swap
    assert report.n == 2


def test_max_side_shrinks_both_and_is_recorded() -> None:
    a = Scripted(lambda q: verdict(True), "a")
    report = isr.evaluate([picture(1, 40)], ["x"], originals=[picture(2, 64)], judges=[a], cache=False, max_side=16)
    assert [p.size for p in a.asked[0].pictures] == [(16, 16), (16, 16)]
    assert report.lock["settings"]["max_side"] == 16
    assert "max_side=16" in report.lock["settings"]["codec"]


def test_judges_are_blind_to_the_method() -> None:
    a = Scripted(lambda q: verdict(), "a")
    run([a], n=1, columns={"method": ["sifm"], "editor": ["ip2p"], "category": ["portrait"]})
    assert "sifm" not in repr(a.asked[0])
    assert "ip2p" not in repr(a.asked[0])
    assert a.asked[0].columns["category"] == "portrait"


def test_notebooks_threads_and_async_code() -> None:
    judges = [Scripted(lambda q: verdict(True), "a")]

    async def notebook() -> tuple[float, float]:
        nested = run(judges).isr  # evaluate() inside a running loop
        direct = await isr.aevaluate(
            pictures(6), PROMPTS, originals=pictures(6, 100), judges=judges, cache=False, progress=False
        )
        return nested, direct.isr

    assert asyncio.run(notebook()) == (1.0, 1.0)
    found: list[float] = []
    threads = [threading.Thread(target=lambda: found.append(run(judges).isr)) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert found == [1.0] * 4


def test_an_error_inside_a_notebook_reaches_the_caller() -> None:
    async def notebook() -> None:
        run([Scripted(lambda q: JudgeStoppedError("no key"), "a")])

    with pytest.raises(JudgeStoppedError, match="no key"):
        asyncio.run(notebook())


REPLIES = st.one_of(
    st.sampled_from([text(True), text(), text(False, True), text(True, True)]),
    st.sampled_from(["", "prose", text(True)[:-3], "[]", text(True) + text()]),
    st.sampled_from(NO_VERDICT_REASONS).map(lambda r: NoVerdict(reason=r)),
    st.sampled_from(
        [
            TransientError("busy"),
            TransientError("late", retry_after=0.0),
            ValueError("bug"),
            KeyError("k"),
            OSError("net"),
        ]
    ),
    st.sampled_from([42, None, Reply(), Reply(text=text(True), answer=NoVerdict(reason="model_substituted"))]),
)


@settings(max_examples=60)
@given(
    st.lists(st.lists(REPLIES, min_size=4, max_size=8), min_size=3, max_size=6), st.sampled_from([1, 3]), st.booleans()
)
def test_no_sequence_of_replies_turns_an_error_into_a_score_or_loses_a_case(
    scripts: list[list[Any]], votes: int, lazy: bool
) -> None:
    n = len(scripts)
    turns: dict[tuple[str, str], int] = {}

    def judge(name: str) -> Scripted:
        def answer(question: Any) -> Any:
            turn = turns.get((name, question.prompt), 0)
            turns[name, question.prompt] = turn + 1
            script = scripts[int(question.prompt.split()[1])]
            return script[(turn + (name == "b")) % len(script)]

        return Scripted(answer, name)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = run(
            [judge("a"), judge("b")], n=n, votes=votes, lazy=lazy, retry=RetryPolicy(attempts=2, base=0, cap=0)
        )
    assert report.n == n
    assert len(report.judgement_records) == 2 * n
    for judgement in report.judgement_records:
        readable = [
            c
            for c in judgement.calls
            if c.text in {text(True), text(), text(False, True), text(True, True)} and c.failure is None
        ]
        if isinstance(judgement.answer, Verdict):
            # a verdict rests on more than half of all votes having been read as verdicts
            assert 2 * len(readable) > votes
        for call in judgement.calls:
            if isinstance(call.answer, Verdict):
                assert call in readable
    low, high = report.bounds
    assert low <= report.isr <= high
    assert round(report.isr * n) + sum(o.value == "failure" for o in report.outcomes) + report.n_undetermined == n
