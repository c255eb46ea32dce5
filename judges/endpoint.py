"""Where a request goes, and the rules that keep a key from going elsewhere (docs/definitions.md, section 13)."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from urllib.parse import parse_qsl, urlsplit

from isr.errors import UsageError

__all__ = ["Endpoint", "is_loopback", "parse_endpoint", "split_model"]

_VARIABLE = re.compile(r"\A[A-Za-z_][A-Za-z0-9_]{0,127}\Z")
_LOOKS_LIKE_HOST = re.compile(
    r"\A(localhost|\[[0-9a-fA-F:]+\]|[\w.-]+\.[A-Za-z]{2,}|\d+\.\d+\.\d+\.\d+)(:\d+)?(/.*)?\Z"
)


@dataclass(frozen=True)
class Endpoint:
    """A checked base URL.

    Attributes:
        url: scheme, host, port and path, without a closing slash, a query or credentials.
        host: host name or address, lower case, with the port where one was given. path: the path of `url`.
        key_env: the environment variable that the user named for this host, or None (then no key is sent).
    """

    url: str
    host: str
    path: str
    key_env: str | None = None

    @property
    def loopback(self) -> bool:
        """The host is this machine."""
        return is_loopback(urlsplit(self.url).hostname or "")


def is_loopback(host: str) -> bool:
    """`host` can only be this machine: `localhost`, 127.0.0.0/8 or ::1."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def parse_endpoint(url: str, *, key_env: str | None = None) -> Endpoint:
    """Check a base URL.

    Args:
        url: `https://host[:port][/path][?key_env=NAME]`; plain http only to this machine.
        key_env: the same as in the query, for callers with options.

    Raises:
        UsageError: another scheme, plain http elsewhere, credentials in the URL, or an unknown query key.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise UsageError(f"judge URL: {error}; expected https://host[:port]/path") from None
    if parts.username is not None or parts.password is not None:
        raise UsageError(
            "judge URL: it holds a user name or password, which would be printed in tables; name an environment variable "
            "with ?key_env=NAME instead"
        )
    if parts.scheme not in ("http", "https") or not host:
        raise UsageError(f"judge URL: expected https://host[:port]/path or http://127.0.0.1:port/path, got {url!r}")
    if not host.isascii():
        raise UsageError(f"judge URL: the host {host!r} has letters outside ASCII; write its xn-- form")
    if parts.scheme == "http" and not is_loopback(host):
        raise UsageError(
            f"judge URL: plain http to {host!r} would send pictures and keys unprotected; use https, or a tunnel to 127.0.0.1"
        )
    if parts.fragment:
        raise UsageError(f"judge URL: {url!r} has a fragment (#…); remove it")
    named = key_env
    for key, value in parse_qsl(parts.query, keep_blank_values=True):
        if key != "key_env":
            raise UsageError(f"judge URL: unknown query key {key!r}; only ?key_env=NAME is understood")
        if named is not None and named != value:
            raise UsageError(f"judge URL: key_env is given twice ({named!r} and {value!r})")
        named = value
    if named is not None and not _VARIABLE.match(named):
        raise UsageError("judge URL: key_env must be the name of an environment variable, not the key itself")
    path = parts.path.rstrip("/")
    shown = f"[{host}]" if ":" in host else host
    netloc = f"{shown}:{port}" if port is not None else shown
    return Endpoint(url=f"{parts.scheme}://{netloc}{path}", host=netloc, path=path, key_env=named)


def split_model(text: str) -> tuple[str, str | None]:
    """`MODEL` or `MODEL@URL` → (model, URL or None). Model names may hold `:`, `/` and `@`."""
    marks = [match.start() for match in re.finditer(r"@(?=[A-Za-z][A-Za-z0-9+.-]*://)", text)]
    if marks:
        model, url = text[: marks[0]], text[marks[0] + 1 :]
    else:
        model, url = text, None
        _, at, rest = text.rpartition("@")
        if at and _LOOKS_LIKE_HOST.match(rest) and ("/" in rest or ":" in rest or rest.startswith("localhost")):
            raise UsageError(f"judge {text!r}: write the server with its scheme, for example @http://{rest}")
    if not model.strip() or model != model.strip() or any(c.isspace() for c in model):
        raise UsageError(f"judge {text!r}: the model name is missing or holds white space")
    return model, url
