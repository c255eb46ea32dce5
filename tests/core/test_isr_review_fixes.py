"""Defects that a review of the core found; each was first a failing test."""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from evaluate_help import Scripted, picture, pictures, text, verdict

import isr
from isr.engine.retry import RetryPolicy
from isr.errors import JudgeStoppedError, TransientError, UsageError
from isr.merging import merge
from isr.protocols import AskJudge, JudgeLimits, Question, Reply
from isr.schema import NoVerdict, Usage

FAST = RetryPolicy(attempts=2, base=0.0, cap=0.0)


def run(judges: Any, n: int = 4, **options: Any) -> isr.Report:
    options = {"cache": False, "progress": False, "retry": FAST, "originals": pictures(n, 100), **options}
    return isr.evaluate(pictures(n), [f"edit {i}" for i in range(n)], judges=judges, **options)


def test_a_retry_after_that_is_not_waited_for_does_not_hold_the_other_calls() -> None:
    first = [TransientError("tomorrow", retry_after=28_800.0, status=429)]

    def answer(question: Question) -> Any:
        return first.pop() if first else text(True)

    started = time.monotonic()
    report = run([Scripted(answer, "a", concurrency=1)], retry=RetryPolicy(longest_wait=1))
    assert time.monotonic() - started < 5
    assert dict(report.no_verdicts) == {"exhausted": 1}


def test_a_judge_that_raises_cancelled_error_is_a_missing_verdict() -> None:
    report = run([Scripted(lambda q: asyncio.CancelledError() if q.prompt == "edit 2" else text(), "a", concurrency=1)])
    assert report.n == 4
    assert dict(report.no_verdicts) == {"judge_error": 1}


def test_a_users_policy_is_not_taken_for_a_built_in_one_of_its_name(tmp_path: Path) -> None:
    def strict(answers: Any) -> Any:
        return "success"

    report = run([Scripted(lambda q: text(), "a")], consensus=strict)
    assert report.isr == 1.0
    report.save(tmp_path / "run")
    with pytest.raises(UsageError, match="consensus=function"):
        isr.Report.load(tmp_path / "run")
    with pytest.raises(UsageError, match="lazy"):
        run([Scripted(lambda q: text(), "a")], consensus=strict, lazy=True)
    other = run([Scripted(lambda q: text(), "a")], consensus=lambda answers: "failure")
    assert any("consensus" in d for d in report.comparable_with(other))


def test_a_judge_class_is_not_cached_unless_it_says_what_it_is(tmp_path: Path) -> None:
    class Mine(AskJudge):
        name = "mine"
        said = True

        async def ask(self, question: Question) -> Reply:
            return Reply(answer=verdict(self.said))

    class Versioned(Mine):
        version = "1"

    assert run([Mine()], cache=tmp_path).isr == 1.0
    Mine.said = False
    assert run([Mine()], cache=tmp_path).isr == 0.0
    assert run([Versioned()], cache=tmp_path).isr == 0.0
    Mine.said = True
    assert run([Versioned()], cache=tmp_path).isr == 0.0  # the author vouches for version 1


def two(lazy: bool) -> isr.Report:
    a = Scripted(lambda q: text(q.prompt in {"edit 0", "edit 1"}), "a")
    return run([a, Scripted(lambda q: text(True), "b")], lazy=lazy)


def test_a_lazy_run_never_overwrites_answers_and_its_mixture_is_called_lazy(tmp_path: Path) -> None:
    two(False).save(tmp_path / "run")
    two(True).save(tmp_path / "run")
    loaded = isr.Report.load(tmp_path / "run")
    assert not any(j.answer.kind == "not_asked" for j in loaded.judgement_records)
    two(True).save(tmp_path / "lazy")
    first = two(False)
    first.save(tmp_path / "full")
    merged = merge([tmp_path / "full", tmp_path / "lazy"], tmp_path / "both")
    assert isr.Report.load(tmp_path / "both").isr == first.isr
    assert merged.lazy is any(j.answer.kind == "not_asked" for j in merged.judgement_records)


def test_a_failed_rerun_erases_no_verdict(tmp_path: Path) -> None:
    run([Scripted(lambda q: text(True), "a")]).save(tmp_path / "run")
    run([Scripted(lambda q: TransientError("down"), "a")]).save(tmp_path / "run")
    assert isr.Report.load(tmp_path / "run").isr == 1.0


@pytest.mark.parametrize("error", [TransientError, JudgeStoppedError, ValueError])
def test_no_secret_of_the_environment_reaches_disk_or_error(
    error: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MYSVC_API_KEY", "sk-very-secret-0123")
    judge = Scripted(lambda q: error("GET https://x/?key=sk-very-secret-0123 failed"), "a")
    if error is JudgeStoppedError:
        with pytest.raises(JudgeStoppedError) as stopped:
            run([judge], n=1)
        assert "sk-very-secret" not in f"{stopped.value} {stopped.value.__cause__}"
        return
    report = run([judge], n=1)
    report.save(tmp_path / "run")
    assert "sk-very-secret" not in (tmp_path / "run" / "judgements.jsonl").read_text()
    assert "sk-very-secret" not in report.judgements.to_string()


def test_reuse_takes_only_replies_that_may_be_stored_and_names_a_wrong_folder(tmp_path: Path) -> None:
    down = run([Scripted(lambda q: Reply(answer=NoVerdict(reason="bad_image", detail="HTTP 400")), "a")])
    down.save(tmp_path / "run")
    later = Scripted(lambda q: text(True), "a")
    assert run([later], cache=tmp_path / "c", reuse=[tmp_path / "run"]).isr == 1.0
    with pytest.raises(UsageError, match=r"run\.json"):
        run([later], reuse=[tmp_path / "nowhere"])


def test_retrying_duplicates_asks_each_question_once(tmp_path: Path) -> None:
    def same(judge: Any, **options: Any) -> isr.Report:
        return isr.evaluate(
            [picture(1)] * 4,
            ["x"] * 4,
            originals=[picture(2)] * 4,
            judges=[judge],
            cache=tmp_path,
            progress=False,
            **options,
        )

    same(Scripted(lambda q: NoVerdict(reason="blocked"), "a"))
    again = Scripted(lambda q: NoVerdict(reason="refused"), "a")
    report = same(again, retry_no_verdicts=True)
    assert len(again.asked) == 1
    assert dict(report.no_verdicts) == {"refused": 4}
    last = Scripted(lambda q: text(True), "a")
    assert same(last, retry_no_verdicts=True).isr == 1.0
    assert len(last.asked) == 1


def test_a_report_without_immunized_rows_can_be_looked_at(tmp_path: Path) -> None:
    report = run([Scripted(lambda q: text(), "a")], columns={"arm": ["control"] * 4})
    assert "no immunized" in repr(report)
    assert "4 control" in report.summary()
    assert not any("No control arm" in w for w in report.warnings)
    assert "no immunized" in report._repr_html_()
    report.save(tmp_path / "run")
    assert isr.Report.load(tmp_path / "run").by("arm")["n"].tolist() == [4]


def test_the_lock_follows_the_stored_replies(tmp_path: Path) -> None:
    def served(name: str, prompts: set[str]) -> Scripted:
        return Scripted(lambda q: Reply(text=text(), served_model=name), "a")

    def part(n: int, judge: Any, cache: Path) -> isr.Report:
        return isr.evaluate(
            pictures(n),
            [f"edit {i}" for i in range(n)],
            originals=pictures(n, 100),
            judges=[judge],
            cache=cache,
            progress=False,
        )

    part(2, served("snap-1", set()), tmp_path / "c").save(tmp_path / "run")
    part(4, served("snap-2", set()), tmp_path / "c").save(tmp_path / "run")
    loaded = isr.Report.load(tmp_path / "run")
    assert loaded.lock["judges"][0]["served"] == {"snap-1": 2, "snap-2": 2}
    assert any("snap-1, snap-2" in w for w in loaded.warnings)
    part(2, served("snap-3", set()), tmp_path / "c2").save(
        tmp_path / "run"
    )  # another snapshot is a warning, not a refusal


def test_a_rerun_from_the_cache_opens_no_connection(tmp_path: Path) -> None:
    opened = []

    class Keyed(Scripted):
        def connect(self) -> Any:
            opened.append(1)
            return super().connect()

    run([Keyed(lambda q: text(True), "a")], cache=tmp_path)
    assert len(opened) == 1
    assert run([Keyed(lambda q: text(True), "a")], cache=tmp_path).isr == 1.0
    assert len(opened) == 1


class Plugin(Scripted):
    def identity(self) -> dict[str, Any]:
        return {"provider": "stranger", "name": self.name}


def test_a_cap_without_a_price_is_refused_for_strangers_too() -> None:
    with pytest.raises(UsageError, match="no price is known"):
        run([Plugin(lambda q: text(), "p")], max_cost=1.0)


def test_a_broken_answer_of_status_200_may_have_been_billed(tmp_path: Path) -> None:
    prices = tmp_path / "p.toml"
    prices.write_text('written = 2026-11-20\n[[price]]\nmodel = "p"\ninput = 0\noutput = 1000\n')
    broken = Plugin(
        [TransientError("cut off", status=200), Reply(text=text(True), usage=Usage(input_tokens=1, output_tokens=1))],
        "p",
        concurrency=1,
    )
    # worst case 131,072 tokens = 131 $: the cut-off answer counts as spent, and a second try no longer fits under 140 $
    assert dict(run([broken], n=1, max_cost=140.0, prices=prices).no_verdicts) == {"over_budget": 1}


def test_replay_finds_verdicts_without_evidence(tmp_path: Path) -> None:
    report = run([Scripted(lambda q: text(), "a")], votes=3)
    bare = [j.model_copy(update={"calls": ()}) for j in report.judgement_records]
    assert len(isr.replay(isr.Report(report.lock, report.case_records, bare)).differences) == 4
    cut = [j.model_copy(update={"calls": j.calls[:1]}) for j in report.judgement_records]
    assert len(isr.replay(isr.Report(report.lock, report.case_records, cut)).differences) == 4


def test_a_picture_that_is_gone_does_not_wedge_the_folder(tmp_path: Path) -> None:
    files = []
    for i in range(2):
        picture(i).save(tmp_path / f"{i}.png")
        files.append(tmp_path / f"{i}.png")
    report = isr.evaluate(
        files, ["x", "y"], originals=pictures(2, 9), judges=[Scripted(lambda q: text(), "a")], cache=False
    )
    files[1].unlink()
    with pytest.raises(isr.IsrError):
        report.save(tmp_path / "run")
    report.save(tmp_path / "run", images=False)
    assert isr.Report.load(tmp_path / "run").n == 2
    with pytest.raises(UsageError, match="not a folder"):
        report.save(files[0])


def test_what_could_not_be_read_back_is_never_written(tmp_path: Path) -> None:
    long = "x" * (17 * 2**20)
    report = isr.evaluate(
        [picture(1)],
        [long],
        originals=[picture(2)],
        judges=[Scripted(lambda q: text(), "a")],
        cache=False,
        progress=False,
    )
    with pytest.raises(UsageError, match="longer than"):
        report.save(tmp_path / "run")


def test_two_runs_at_once_on_one_cache_pay_once(tmp_path: Path) -> None:
    judges = [Scripted(lambda q: text(True), "a", concurrency=2) for _ in range(2)]

    class Slow(Scripted):
        async def ask(self, question: Question) -> Reply:
            await asyncio.sleep(0.1)
            return await super().ask(question)

    judges = [Slow(lambda q: text(True), "a", concurrency=1) for _ in range(2)]
    threads = [threading.Thread(target=run, args=([j],), kwargs={"cache": tmp_path, "n": 6}) for j in judges]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert sum(len(j.asked) for j in judges) <= 6 + 2  # at most one in flight in each


@pytest.mark.parametrize(
    "reply",
    [Reply(text=5), Reply(answer=True), Reply(answer="x"), Reply(text=text(), answer=verdict())],  # type: ignore[arg-type]
)
def test_a_malformed_reply_is_a_judge_error(reply: Reply) -> None:
    assert dict(run([Scripted(lambda q: reply, "a")], n=1).no_verdicts) == {"judge_error": 1}


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    class Full:
        def get(self, key: str) -> None:
            return None

        def put(self, key: str, call: Any) -> None:
            raise OSError(28, "No space left on device")

        def memo(self) -> None:
            return None

    with pytest.raises(UsageError, match="No space left"):
        run([Scripted(lambda q: text(), "a")], cache=Full())


def test_seeds_stay_whole_numbers_and_tags_do_not_hide_figures() -> None:
    report = run(
        [Scripted(lambda q: text(), "a")],
        columns={
            "seed": [2**53, 2**53 + 1, None, 3], "n": ["x", "y", "x", "y"], "outcome": ["t"] * 4,
            "strict_outcome": ["t"] * 4, "any_outcome": ["t"] * 4,
        },
    )  # fmt: skip
    assert sorted(map(str, report.by("seed")["seed"])) == sorted(["9007199254740992", "9007199254740993", "None", "3"])
    assert set(report.by("tag_n")["tag_n"]) == {"x", "y"}
    for name in ("tag_strict_outcome", "tag_any_outcome"):  # isr compare has columns of these names
        assert set(report.cases[name]) == {"t"}
    assert set(report.cases["outcome"]) == {"failure"}


def test_policies_that_return_nonsense_and_silly_retries_are_named() -> None:
    with pytest.raises(UsageError, match="must return"):
        run([Scripted(lambda q: text(), "a")], consensus=lambda answers: ["success"]).isr  # noqa: B018
    for retry in (3, "often"):
        with pytest.raises(UsageError, match="retry"):
            run([Scripted(lambda q: text(), "a")], retry=retry)
    with pytest.raises(UsageError, match="attempts"):
        RetryPolicy(attempts=0)


def test_the_single_judge_is_not_called_isr_in_text_and_table() -> None:
    report = run([Scripted(lambda q: text(), "a")], columns={"method": ["m"] * 4})
    assert "Immunization Success Rate (ISR; Dong" not in report.methods_text()
    assert "single judge" in report.methods_text()
    assert "ISR" not in report.to_latex().split(r"\toprule")[1]


def test_a_shard_keeps_control_and_edit_together_without_originals() -> None:
    judge = Scripted(lambda q: text(), "a")
    for i in (1, 2, 3):
        part = isr.evaluate(
            pictures(9),
            [f"p{k}" for k in range(9)],
            controls=pictures(9, 50),
            judges=[judge],
            cache=False,
            shard=(i, 3),
            progress=False,
        )
        ids = {c.case_id for c in part.case_records}
        assert all(c.control in ids for c in part.case_records if c.arm == "immunized")


def test_limits_are_checked_in_planning() -> None:
    judge = Scripted(lambda q: text(), "a")
    judge.limits = JudgeLimits(concurrency=0)
    with pytest.raises(UsageError, match="concurrency"):
        run([judge])
