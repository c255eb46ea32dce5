"""Which model answered: the one that was asked for, or another (docs/definitions.md, section 2)."""

from __future__ import annotations

import re

__all__ = ["same_model"]

_SNAPSHOT = re.compile(
    r"""\A[-@](?:
        latest
      | (?:19|20)\d{2}-?(?:0[1-9]|1[0-2])-?(?:0[1-9]|[12]\d|3[01])   # 2026-03-05, 20260305
      | (?:0[1-9]|1[0-2])-?(?:0[1-9]|[12]\d|3[01])                   # 0613, 05-20
      | (?:0[1-9]|1[0-2])-20\d{2}                                    # 09-2025
      | 0\d{2}                                                       # 001
    )\Z""",
    re.VERBOSE,
)


def _bare(name: str) -> str:
    """Lower case, without router or resource prefix (`openai/…`, `models/…`) and routing suffix (`…:free`)."""
    last = name.strip().lower().rstrip("/").rpartition("/")[2]
    head, _, variant = last.partition(":")
    return head if variant in {"free", "nitro", "floor", "online", "exacto", "extended"} else last


def same_model(requested: str, served: str | None) -> bool:
    """The service answered with the model that was asked for.

    True for the same name, for that name with a snapshot suffix (a date, `-001`, `-latest`), with or without a router
    prefix, and where the service does not say. The other way round (a snapshot was asked for, the bare name answered)
    is another model: nobody can tell which snapshot that is.
    """
    if served is None or not served.strip():
        return True
    asked, got = _bare(requested), _bare(served)
    return got == asked or (got.startswith(asked) and _SNAPSHOT.match(got[len(asked) :]) is not None)
