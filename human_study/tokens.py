"""Secrets of links, sessions and forms: 256 random bits each; the database holds hashes only."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets as _secrets

__all__ = ["form_token", "good_secret", "hashed", "new_secret", "same"]

_SECRET = re.compile(r"\A[A-Za-z0-9_-]{43}\Z")


def new_secret() -> str:
    """256 bits, 43 URL-safe characters."""
    return _secrets.token_urlsafe(32)


def good_secret(text: str | None) -> bool:
    """Whether a text has the form of a secret; anything else is not even looked up."""
    return text is not None and bool(_SECRET.match(text))


def hashed(secret: str) -> str:
    """sha256 (64 hex). A secret of 256 random bits needs no salt and no slow hash."""
    return hashlib.sha256(secret.encode("ascii")).hexdigest()


def form_token(server_key: str, session_hash: str) -> str:
    """The token that every form of a session carries (CSRF): a stranger's page cannot know it."""
    return hmac.new(server_key.encode(), f"form:{session_hash}".encode(), hashlib.sha256).hexdigest()


def same(a: str, b: str) -> bool:
    """Comparison in constant time."""
    return hmac.compare_digest(a.encode("utf-8"), b.encode("utf-8"))
