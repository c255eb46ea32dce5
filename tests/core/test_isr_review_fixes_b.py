"""Functions as judges that fail oddly, stored answers that stand, streams that are left, controls that are kept."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError as FutureCancelledError
from pathlib import Path
from typing import Any

import pytest
from evaluate_help import Scripted, pictures, text
from isr.judges.function import FunctionJudge

import isr
from isr.engine.retry import RetryPolicy
from isr.errors import JudgeStoppedError, TransientError
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
