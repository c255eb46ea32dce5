"""Rate limits in memory: token buckets, bounded in number, one per key (a session or an address)."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["ANSWERS", "FAILED_ENTRIES", "REQUESTS", "STRANGERS", "Limit", "RateLimiter"]

MAX_KEYS = 20_000


@dataclass(frozen=True)
class Limit:
    """At most `burst` at once, refilled at `rate` per second."""

    name: str
    rate: float
    burst: int


#: Per session: nobody answers faster than this by hand. Per session: all requests. Per address: requests without a session,
#: and links that were refused.
ANSWERS = Limit("answers", 3.0, 20)
REQUESTS = Limit("requests", 30.0, 240)
STRANGERS = Limit("strangers", 10.0, 300)
FAILED_ENTRIES = Limit("failed entries", 10 / 60, 10)


class RateLimiter:
    """Thread-safe. Under memory pressure the longest unused buckets go first (they are full again by then)."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._buckets: OrderedDict[tuple[str, str], tuple[float, float]] = OrderedDict()

    def wait(self, limit: Limit, key: str, *, take: bool = True) -> float:
        """0.0 where the request may pass (and takes a token), else the seconds until it may."""
        now = self._clock()
        with self._lock:
            tokens, at = self._buckets.pop((limit.name, key), (float(limit.burst), now))
            tokens = min(float(limit.burst), tokens + (now - at) * limit.rate)
            passes = tokens >= 1.0
            self._buckets[limit.name, key] = (tokens - 1.0 if passes and take else tokens, now)
            while len(self._buckets) > MAX_KEYS:
                self._buckets.popitem(last=False)
        return 0.0 if passes else (1.0 - tokens) / limit.rate
