"""Retry of one call: our own layer (tenacity), because the SDKs retry in different ways and hide their attempts.

Only `TransientError` is retried. The service's own wish (Retry-After, RetryInfo) is honoured; otherwise the wait grows
exponentially with jitter. Every attempt is recorded.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

import tenacity

from ..errors import TransientError, UsageError
from ..schema import Attempt
from ..secret import environment_secrets, scrub

__all__ = ["Exhausted", "RetryPolicy", "with_retry"]

T = TypeVar("T")


@dataclass(frozen=True)
class RetryPolicy:
    """When to try again.

    Attributes:
        attempts: tries in all. base, cap: seconds of the first and of the longest wait of our own.
        longest_wait: the longest Retry-After that is waited for; a longer one ends the call as exhausted.
    """

    attempts: int = 6
    base: float = 1.0
    cap: float = 60.0
    longest_wait: float = 300.0

    def __post_init__(self) -> None:
        if isinstance(self.attempts, bool) or not isinstance(self.attempts, int) or self.attempts < 1:
            raise UsageError(f"attempts: expected a whole number of at least 1, got {self.attempts!r}")


class Exhausted(Exception):  # noqa: N818 - a control-flow signal inside the engine, not an error for users
    """All tries failed. Becomes NoVerdict("exhausted"); never stored in the cache."""

    def __init__(self, last: TransientError, attempts: tuple[Attempt, ...]) -> None:
        super().__init__(str(last))
        self.attempts = attempts


async def with_retry(
    call: Callable[[], Awaitable[T]],
    policy: RetryPolicy,
    *,
    on_wait: Callable[[float], None] = lambda _: None,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    clock: Callable[[], float] = time.monotonic,
    jitter: Callable[[], float] = random.random,
) -> tuple[T, tuple[Attempt, ...]]:
    """Run `call` until it succeeds or the policy ends.

    Args:
        call: one attempt. on_wait: told the seconds a service asked for (so that other calls to it can wait too).
        sleep, clock, jitter: for tests.

    Returns:
        The result and every attempt.

    Raises:
        Exhausted: after the last try. Whatever else `call` raises passes through.
    """
    attempts: list[Attempt] = []

    def wanted(error: BaseException | None) -> float | None:
        return error.retry_after if isinstance(error, TransientError) else None

    def wait(state: tenacity.RetryCallState) -> float:
        asked = wanted(state.outcome.exception() if state.outcome else None)
        if asked is not None:
            return asked
        ceiling: float = min(policy.cap, policy.base * 2.0 ** (state.attempt_number - 1))
        return ceiling * (0.5 + 0.5 * jitter())

    def stop(state: tenacity.RetryCallState) -> bool:
        asked = wanted(state.outcome.exception() if state.outcome else None)
        return state.attempt_number >= policy.attempts or (asked is not None and asked > policy.longest_wait)

    def note_wait(state: tenacity.RetryCallState) -> None:
        # Only a wait that will happen holds the other calls too: a longer one than is waited for ends this call alone.
        asked = wanted(state.outcome.exception() if state.outcome else None)
        if asked is not None:
            on_wait(asked)
        attempts[-1] = attempts[-1].model_copy(update={"waited": state.upcoming_sleep})

    async def attempt() -> T:
        started = clock()
        try:
            result = await call()
        except TransientError as error:
            ended = scrub(error, environment_secrets(), limit=300)
            attempts.append(Attempt(seconds=clock() - started, ended=ended, status=error.status))
            raise
        attempts.append(Attempt(seconds=clock() - started, ended="ok"))
        return result

    retrying = tenacity.AsyncRetrying(
        retry=tenacity.retry_if_exception_type(TransientError),
        wait=wait,
        stop=stop,
        sleep=sleep,
        before_sleep=note_wait,
        reraise=True,
    )
    first: TransientError | None = None
    try:
        return await attempt(), tuple(attempts)  # the usual case: nothing to try again
    except TransientError as error:
        first = error

    async def go_on() -> T:
        nonlocal first
        if first is None:
            return await attempt()
        failed, first = first, None
        raise failed

    try:
        result: T = await retrying(go_on)
    except TransientError as error:
        raise Exhausted(error, tuple(attempts)) from error
    return result, tuple(attempts)
