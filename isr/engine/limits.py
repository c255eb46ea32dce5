"""How hard one judge is driven: calls at once, requests and tokens per minute, and a common pause after a 429."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from ..errors import UsageError
from ..protocols import JudgeLimits

__all__ = ["Limiter"]

WINDOW = 60.0


class Limiter:
    """Admits calls of one judge within its `JudgeLimits`, over a sliding window of 60 s.

    Args:
        limits: see `JudgeLimits`. clock, sleep: for tests.
    """

    def __init__(
        self,
        limits: JudgeLimits,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        if limits.concurrency < 1:
            raise UsageError(f"limits.concurrency: expected at least 1, got {limits.concurrency}")
        for name in ("rpm", "tpm"):
            value = getattr(limits, name)
            if value is not None and value <= 0:
                raise UsageError(f"limits.{name}: expected a positive number or None, got {value}")
        self.limits = limits
        self._clock = clock
        self._sleep = sleep
        self._slots = asyncio.Semaphore(limits.concurrency)
        self._requests: deque[float] = deque()
        self._tokens: deque[tuple[float, int]] = deque()
        self._paused_until = 0.0
        self._gate = asyncio.Lock()

    def pause(self, seconds: float) -> None:
        """Let no new call start for so long (the service asked for it)."""
        self._paused_until = max(self._paused_until, self._clock() + seconds)

    def spent(self, tokens: int) -> None:
        """Tokens of a finished call, counted against `tpm`."""
        if self.limits.tpm is not None and tokens:
            self._tokens.append((self._clock(), tokens))

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """Wait for a place and for the rate; holds the place for the body."""
        async with self._slots:
            if self.limits.rpm is not None or self.limits.tpm is not None or self._paused_until:
                async with self._gate:  # one waiter at a time, so that admissions keep their order
                    while (wait := self._must_wait()) > 0:
                        await self._sleep(wait)
                    if self.limits.rpm is not None:
                        self._requests.append(self._clock())
            yield

    def _must_wait(self) -> float:
        now = self._clock()
        wait = self._paused_until - now
        while self._tokens and self._tokens[0][0] <= now - WINDOW:
            self._tokens.popleft()
        if self.limits.rpm is not None:
            # A rate below one request per window: space requests by 60/rpm instead of counting within one window.
            allowed = max(1, int(self.limits.rpm))
            span = WINDOW * max(1.0, 1.0 / self.limits.rpm)
            while self._requests and self._requests[0] <= now - span:
                self._requests.popleft()
            if len(self._requests) >= allowed:
                wait = max(wait, self._requests[-allowed] + span - now)
        if self.limits.tpm is not None and sum(n for _, n in self._tokens) >= self.limits.tpm:
            over = sum(n for _, n in self._tokens) - self.limits.tpm
            for when, n in self._tokens:
                over -= n
                wait = max(wait, when + WINDOW - now)
                if over < 0:
                    break
        return wait
