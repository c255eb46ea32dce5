"""Rates and concurrency with a clock that moves only when someone sleeps."""

from __future__ import annotations

import asyncio

import pytest

from isr.engine.limits import Limiter
from isr.errors import UsageError
from isr.protocols import JudgeLimits


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += max(seconds, 0.001)
        await asyncio.sleep(0)


def starts(limits: JudgeLimits, calls: int, tokens: int = 0) -> list[float]:
    async def main() -> list[float]:
        clock = Clock()
        limiter = Limiter(limits, clock=clock, sleep=clock.sleep)
        when = []
        for _ in range(calls):
            async with limiter.slot():
                when.append(clock.now - 1000.0)
            limiter.spent(tokens)
        return when

    return asyncio.run(main())


def test_without_limits_nothing_waits() -> None:
    assert starts(JudgeLimits(concurrency=1), 50) == [0.0] * 50


def test_requests_per_minute_in_every_window() -> None:
    when = starts(JudgeLimits(rpm=10), 35)
    for t in when:
        assert sum(t <= other < t + 60 for other in when) <= 10
    assert when[9] == 0.0
    assert when[10] == pytest.approx(60.0)


def test_less_than_one_request_per_minute() -> None:
    when = starts(JudgeLimits(rpm=0.5), 3)
    assert when == pytest.approx([0.0, 120.0, 240.0])


def test_tokens_per_minute() -> None:
    when = starts(JudgeLimits(tpm=1000), 5, tokens=500)
    # two calls of 500 fill the window; the third waits until the first one leaves it
    assert when == pytest.approx([0.0, 0.0, 60.0, 60.0, 120.0])


def test_a_pause_holds_new_calls() -> None:
    async def main() -> float:
        clock = Clock()
        limiter = Limiter(JudgeLimits(), clock=clock, sleep=clock.sleep)
        limiter.pause(30)
        limiter.pause(5)  # a shorter wish never shortens the pause
        async with limiter.slot():
            return clock.now - 1000.0

    assert asyncio.run(main()) == pytest.approx(30.0)


def test_concurrency_is_never_exceeded() -> None:
    async def main() -> int:
        limiter = Limiter(JudgeLimits(concurrency=3))
        inside = most = 0

        async def one() -> None:
            nonlocal inside, most
            async with limiter.slot():
                inside += 1
                most = max(most, inside)
                await asyncio.sleep(0.001)
                inside -= 1

        await asyncio.gather(*(one() for _ in range(20)))
        return most

    assert asyncio.run(main()) == 3


@pytest.mark.parametrize("limits", [JudgeLimits(concurrency=0), JudgeLimits(rpm=0), JudgeLimits(tpm=-1)])
def test_impossible_limits_are_refused(limits: JudgeLimits) -> None:
    with pytest.raises(UsageError, match="limits"):
        Limiter(limits)
