"""A Python function as the judge: everything it may return, and everything that is no verdict."""

from __future__ import annotations

import asyncio
import json
import re
import threading
import time
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from isr.judges.function import FunctionJudge, JudgeCase, fingerprint, read_result
from judges_help import EDITED, ORIGINAL, RUBRIC, ask, ask_one, question

from isr.errors import JudgeStoppedError, TransientError, UsageError
from isr.protocols import Judge
from isr.schema import NotAsked, NoVerdict, Verdict

RUBRIC_REPLY = {
    "observations": "o",
    "reason_semantic_mismatch": "r",
    "reason_degradation": "s",
    "semantic_mismatch": True,
    "degradation": False,
}


def reason(reply: Any) -> str:
    assert isinstance(reply.answer, NoVerdict)
    return reply.answer.reason


def test_the_function_sees_the_case_as_other_judges_do() -> None:
    seen: list[JudgeCase] = []

    def look(case: JudgeCase) -> tuple[bool, bool]:
        seen.append(case)
        return True, False

    reply = ask_one(FunctionJudge(look), question("add a hat", columns={"category": "hat"}))
    assert reply.answer == Verdict(semantic_mismatch=True, degradation=False)
    (case,) = seen
    assert (case.prompt, case.columns) == ("add a hat", {"category": "hat"})
    assert (case.edited_png, case.original_png) == (EDITED.png, ORIGINAL.png)
    assert case.edited.mode == "RGB"
    assert case.edited.getpixel((3, 3)) == (30, 30, 200)
    assert case.original is not None
    assert case.original.getpixel((0, 0)) == (200, 30, 30)
    assert "png" not in repr(case).lower()


def test_without_an_original_there_is_none() -> None:
    reply = ask_one(
        FunctionJudge(lambda case: (case.original is None, case.original_png is None)), question(original=False)
    )
    assert reply.answer == Verdict(semantic_mismatch=True, degradation=True)


def test_each_call_gets_pictures_of_its_own() -> None:
    def scribble(case: JudgeCase) -> tuple[bool, bool]:
        untouched = case.edited.getpixel((0, 0)) == (30, 30, 200)
        case.edited.putpixel((0, 0), (0, 0, 0))
        return untouched, False

    one = question()
    for reply in ask(FunctionJudge(scribble), one, one):
        assert reply.answer == Verdict(semantic_mismatch=True, degradation=False)


@pytest.mark.parametrize(
    ("result", "answer"),
    [
        ((True, False), Verdict(semantic_mismatch=True, degradation=False)),
        ([False, True], Verdict(semantic_mismatch=False, degradation=True)),
        ((np.True_, np.bool_(False)), Verdict(semantic_mismatch=True, degradation=False)),
        ({"semantic_mismatch": False, "degradation": np.True_}, Verdict(semantic_mismatch=False, degradation=True)),
        (
            {"semantic_mismatch": True, "degradation": True, "observations": "x", "reasons": {"degradation": "y"}},
            Verdict(semantic_mismatch=True, degradation=True, observations="x", reasons={"degradation": "y"}),
        ),
        (Verdict(semantic_mismatch=True, degradation=True), Verdict(semantic_mismatch=True, degradation=True)),
        (NoVerdict(reason="abstained"), NoVerdict(reason="abstained")),
    ],
)
def test_verdicts_in_every_allowed_form(result, answer) -> None:
    reply = ask_one(FunctionJudge(lambda case: result))
    assert (reply.answer, reply.text) == (answer, None)


@pytest.mark.parametrize("result", [RUBRIC_REPLY, json.dumps(RUBRIC_REPLY)])
def test_the_rubrics_reply_is_left_to_the_rubric(result) -> None:
    reply = ask_one(FunctionJudge(lambda case: result))
    assert reply.answer is None
    verdict = RUBRIC.parse(reply.text or "")
    assert isinstance(verdict, Verdict)
    assert (verdict.semantic_mismatch, verdict.degradation, verdict.observations) == (True, False, "o")


@pytest.mark.parametrize(
    ("result", "said"),
    [
        (None, "it returned NoneType"),
        (True, "it returned bool"),
        (0.7, "it returned float"),
        ((1, 0), r"it returned \(int, int\), not two booleans"),
        ((True,), r"it returned \(bool\), not two booleans"),
        ((True, False, True), "not two booleans"),
        ((True, None), r"\(bool, NoneType\)"),
        ({"semantic_mismatch": "yes", "degradation": False}, "its dict is not a verdict .semantic_mismatch: Input should be a valid boolean"),
        ({"a": object()}, "its dict is not JSON"),
        ({"a": float("nan")}, "its dict is not JSON"),
        (NotAsked(reason="lazy"), "it returned NotAsked"),
        (b"{}", "it returned bytes"),
    ],
)  # fmt: skip
def test_anything_else_is_a_judge_error_that_says_what_was_wanted(result, said) -> None:
    reply = ask_one(FunctionJudge(lambda case: result))
    assert reason(reply) == "judge_error"
    assert re.search(said, reply.answer.detail)  # type: ignore[union-attr]
    assert "return a Verdict" in reply.answer.detail  # type: ignore[union-attr]


_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@given(_values)
def test_no_value_but_two_booleans_becomes_a_verdict(value) -> None:
    reply = read_result(value)
    two = isinstance(value, tuple | list) and len(value) == 2 and all(isinstance(v, bool) for v in value)
    assert isinstance(reply.answer, Verdict) == two
    if isinstance(value, str):
        assert reply.text == value
    assert (reply.text is None) != (reply.answer is None)


def test_an_exception_is_a_missing_verdict_with_its_words_and_without_secrets(monkeypatch) -> None:
    monkeypatch.setenv("SOME_API_KEY", "very-secret-value")

    def fails(case: JudgeCase) -> bool:
        raise ValueError("the service said very-secret-value\nand more")

    reply = ask_one(FunctionJudge(fails))
    assert reason(reply) == "judge_error"
    assert reply.answer.detail == "ValueError: the service said [key removed] and more"  # type: ignore[union-attr]


@pytest.mark.parametrize("error", [TransientError("later", retry_after=3.0), JudgeStoppedError("no key")])
def test_a_function_that_asks_a_service_may_speak_the_engines_errors(error) -> None:
    def fails(case: JudgeCase) -> bool:
        raise error

    with pytest.raises(type(error)):
        ask_one(FunctionJudge(fails))


async def _async_judge(case: JudgeCase) -> tuple[bool, bool]:
    await asyncio.sleep(0)
    return case.prompt == "x", False


class _AsyncObject:
    async def __call__(self, case: JudgeCase) -> tuple[bool, bool]:
        return await _async_judge(case)


def _plain_that_returns_a_coroutine(case: JudgeCase) -> Any:
    return _async_judge(case)


@pytest.mark.parametrize(
    "function", [_async_judge, partial(_async_judge), _AsyncObject(), _plain_that_returns_a_coroutine]
)
def test_async_functions_in_every_form(function) -> None:
    assert ask_one(FunctionJudge(function), question("x")).answer == Verdict(semantic_mismatch=True, degradation=False)


def test_a_plain_function_runs_off_the_loop_one_at_a_time() -> None:
    threads, inside, most = set(), 0, 0

    def slow(case: JudgeCase) -> tuple[bool, bool]:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        threads.add(threading.current_thread().name)
        time.sleep(0.02)
        inside -= 1
        return True, True

    judge = FunctionJudge(slow)
    assert judge.limits.concurrency == 1
    ask(judge, *(question(str(i)) for i in range(4)))
    assert most == 1
    assert all(name.startswith("isr-judge") for name in threads)


def test_concurrency_can_be_raised() -> None:
    barrier = threading.Barrier(3, timeout=5)

    def wait(case: JudgeCase) -> tuple[bool, bool]:
        barrier.wait()
        return True, True

    replies = ask(FunctionJudge(wait, concurrency=3), *(question(str(i)) for i in range(3)))
    assert [reply.answer for reply in replies] == [Verdict(semantic_mismatch=True, degradation=True)] * 3


def test_names_and_identity() -> None:
    judge = FunctionJudge(_async_judge)
    assert isinstance(judge, Judge)
    assert judge.name == "function:_async_judge"
    assert FunctionJudge(lambda case: (True, True)).name.endswith("lambda")
    assert FunctionJudge(_AsyncObject(), name="mine").name == "mine"
    assert not judge.cacheable
    assert FunctionJudge(_async_judge, version="2").cacheable
    assert json.loads(json.dumps(judge.identity())) == judge.identity()


def _threshold(limit: float, other: float = 1.0) -> Any:
    return lambda case: (limit < 0.5, other < 0.5)


class _Scorer:
    def __init__(self, limit: float) -> None:
        self.limit = limit

    def __call__(self, case: JudgeCase) -> tuple[bool, bool]:
        return self.limit > 0, False

    def judge(self, case: JudgeCase) -> tuple[bool, bool]:
        return self.limit > 0, False


def test_the_fingerprint_follows_code_and_captured_values() -> None:
    assert fingerprint(_threshold(0.1)) == fingerprint(_threshold(0.1))
    different = [
        _threshold(0.1),
        _threshold(0.2),
        _Scorer(1),
        _Scorer(2),
        _Scorer(1).judge,
        partial(_threshold(0.1), 3),
        lambda case: (True, False),
        lambda case: (False, True),
        lambda case, limit=1: (True, False),
        lambda case, limit=2: (True, False),
    ]
    assert len({fingerprint(function) for function in different}) == len(different)


def test_self_reference_does_not_hang_the_fingerprint() -> None:
    scorer = _Scorer(1)
    scorer.me = scorer  # type: ignore[attr-defined]
    assert fingerprint(scorer) == fingerprint(scorer)


@pytest.mark.parametrize("thing", [3, "name", _Scorer])
def test_what_cannot_be_called_with_a_case_is_refused(thing) -> None:
    with pytest.raises(UsageError, match="function: expected something to call"):
        FunctionJudge(thing)
