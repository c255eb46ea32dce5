"""From an HTTP answer that is no reply to the engine's two errors: try again, or stop this judge."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from isr.errors import JudgeStoppedError, TransientError

__all__ = ["RETRIED", "http_failure", "retry_after"]

#: Statuses that may pass (besides every 5xx).
RETRIED = frozenset({408, 409, 425, 429})
_DURATION = re.compile(r"\A(\d+(?:\.\d+)?)s\Z")

_ADVICE = {
    400: "The request is malformed for this model; if settings were passed (temperature, thinking, …), leave them out",
    401: "Check the key: it is missing, mistyped or revoked",
    402: "The account has no credit left; top it up and resume the run",
    403: "The key may not use this model or service; check its permissions, its restrictions and the billing account",
    404: "The model name is unknown to the service, or was retired; check the spelling and the service's list of models",
    413: "The request is too large; shrink the pictures with max_side=",
    422: "The request is malformed for this server; if settings were passed (temperature, seed, …), leave them out",
}


def retry_after(headers: Mapping[str, str], details: Any = None, *, now: datetime | None = None) -> float | None:
    """Seconds that the service asked to wait: the longest of `retry-after-ms`, `Retry-After` (seconds or a date) and
    Google's `RetryInfo` in an error body; None where it asked for nothing that can be read."""
    lower = {key.lower(): value for key, value in headers.items()}
    waits = [
        _number(lower.get("retry-after-ms"), 1e-3),
        _after(lower.get("retry-after"), now),
        *(_retry_info(details)),
    ]
    known = [wait for wait in waits if wait is not None]
    return max(known) if known else None


def _number(text: str | None, unit: float) -> float | None:
    try:
        value = float(text) * unit if text else math.nan
    except ValueError:
        return None
    return value if math.isfinite(value) and value >= 0 else None


def _after(text: str | None, now: datetime | None) -> float | None:
    seconds = _number(text, 1.0)
    if seconds is not None or not text:
        return seconds
    try:
        moment = parsedate_to_datetime(text)
    except ValueError:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max(0.0, (moment - (now or datetime.now(UTC))).total_seconds())


def _retry_info(details: Any) -> list[float]:
    """Every `retryDelay` of the `RetryInfo` entries in a Google error body."""
    found = []
    for entry in google_details(details):
        if str(entry.get("@type", "")).endswith("google.rpc.RetryInfo"):
            match = _DURATION.match(str(entry.get("retryDelay", "")))
            if match:
                found.append(float(match[1]))
    return found


def google_details(body: Any) -> list[dict[str, Any]]:
    """The `error.details` entries of a Google error body; empty for any other shape."""
    error = body.get("error") if isinstance(body, dict) else None
    details = error.get("details") if isinstance(error, dict) else None
    return [entry for entry in details if isinstance(entry, dict)] if isinstance(details, list) else []


def http_failure(
    judge: str,
    status: int,
    message: str,
    *,
    wait: float | None = None,
    hopeless: str = "",
    advice: str = "",
) -> TransientError | JudgeStoppedError:
    """The error for a status that is not a reply.

    Args:
        judge: its name. status: HTTP status. message: the service's own words, already free of secrets.
        wait: seconds the service asked to wait. hopeless: why waiting does not help although the status says so.
        advice: what to do, where the general words for the status are not enough.
    """
    said = f": {message}" if message else ""
    if (status in RETRIED or status >= 500) and not hopeless:
        return TransientError(f"{judge}: HTTP {status}{said}", retry_after=wait, status=status)
    what = advice or hopeless or _ADVICE.get(status, "The service refused the request")
    return JudgeStoppedError(
        f"{judge} stopped: HTTP {status}{said}. {what}. Answers received so far are kept, and the run can be resumed.",
        judge=judge,
        status=status,
    )
