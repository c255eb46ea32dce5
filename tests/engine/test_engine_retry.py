"""Retry with a scripted call and a clock that never really waits."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from isr.engine.retry import Exhausted, RetryPolicy, with_retry
from isr.errors import JudgeStoppedError, TransientError


class Clock:
    def __init__(self) -> None:
        self.now = 0.0
        self.slept: list[float] = []

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


def run(
    script: list[object], policy: RetryPolicy | None = None, on_wait: Callable[[float], None] = lambda _: None
) -> tuple[object, Clock, int]:
    clock = Clock()
    calls = 0

    async def call() -> object:
        nonlocal calls
        item = script[calls]
        calls += 1
        clock.now += 0.5
        if isinstance(item, BaseException):
            raise item
        return item

    result = asyncio.run(
        with_retry(call, policy or RetryPolicy(), on_wait=on_wait, sleep=clock.sleep, clock=clock, jitter=lambda: 1.0)
    )
    return result, clock, calls


def test_first_try() -> None:
    (value, attempts), clock, calls = run(["ok"])  # type: ignore[misc]
    assert (value, calls, clock.slept) == ("ok", 1, [])
    assert [(a.ended, a.seconds, a.waited) for a in attempts] == [("ok", 0.5, 0.0)]


def test_waits_grow_and_are_capped_and_recorded() -> None:
    script: list[object] = [TransientError("busy", status=503)] * 5 + ["ok"]
    (value, attempts), clock, _ = run(script, RetryPolicy(attempts=6, base=1, cap=5))  # type: ignore[misc]
    # full jitter 1.0: 1·2^k capped at 5
    assert value == "ok"
    assert clock.slept == [1, 2, 4, 5, 5]
    assert [a.waited for a in attempts] == [1, 2, 4, 5, 5, 0]
    assert [a.status for a in attempts] == [503] * 5 + [None]


def test_retry_after_is_honoured_and_announced() -> None:
    told: list[float] = []
    script: list[object] = [TransientError("slow down", retry_after=17.0, status=429), "ok"]
    (_, attempts), clock, _ = run(script, on_wait=told.append)  # type: ignore[misc]
    assert clock.slept == [17.0]
    assert told == [17.0]
    assert attempts[0].waited == 17.0


def test_a_retry_after_that_is_too_long_ends_the_call() -> None:
    with pytest.raises(Exhausted) as caught:
        run([TransientError("come back tomorrow", retry_after=86_400.0)], RetryPolicy(longest_wait=300))
    assert len(caught.value.attempts) == 1


def test_exhausted_carries_every_attempt() -> None:
    with pytest.raises(Exhausted, match="third") as caught:
        run([TransientError("first"), TransientError("second"), TransientError("third")], RetryPolicy(attempts=3))
    assert [a.ended for a in caught.value.attempts] == ["first", "second", "third"]


@pytest.mark.parametrize("error", [JudgeStoppedError("bad key", status=401), ValueError("bug")])
def test_other_errors_pass_at_once(error: Exception) -> None:
    with pytest.raises(type(error)):
        run([error, "never"])


def test_jitter_halves_at_most() -> None:
    clock = Clock()
    script = iter([TransientError("x"), "ok"])

    async def call() -> object:
        item = next(script)
        if isinstance(item, BaseException):
            raise item
        return item

    asyncio.run(with_retry(call, RetryPolicy(base=8), sleep=clock.sleep, clock=clock, jitter=lambda: 0.0))
    assert clock.slept == [4.0]
