"""Around every request: known host names only, small bodies, security headers, no server banner."""

from __future__ import annotations

from collections.abc import Iterable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["CSP", "MAX_BODY", "Guard"]

#: An answer with a comment is a few kilobytes.
MAX_BODY = 32 * 1024
CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "content-security-policy": CSP,
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=(), payment=()",
    "x-robots-tag": "noindex, nofollow",
}
_HSTS = "max-age=31536000"


class _TooLargeError(Exception):
    pass


class Guard:
    """ASGI middleware. hosts: names by which this server may be called (a foreign name means DNS rebinding); secure: TLS."""

    def __init__(self, app: ASGIApp, *, hosts: Iterable[str], secure: bool) -> None:
        self.app = app
        self.hosts = frozenset(hosts)
        extra = {"strict-transport-security": _HSTS} if secure else {}
        self.headers = [(k.encode(), v.encode()) for k, v in (_HEADERS | extra).items()]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = False

        async def answer(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                own = {name for name, _ in message.get("headers", ())}
                added = [pair for pair in self.headers if pair[0] not in own]
                if b"cache-control" not in own:
                    added.append((b"cache-control", b"no-store"))
                message = {**message, "headers": [*message.get("headers", ()), *added]}
            await send(message)

        async def refuse(status: int, text: str) -> None:
            body = text.encode()
            headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", str(len(body)).encode())]
            await answer(
                {"type": "http.response.start", "status": status, "headers": [*headers, (b"connection", b"close")]}
            )
            await send({"type": "http.response.body", "body": body})

        sent = dict(scope["headers"])
        if _name(sent.get(b"host", b"").decode("latin-1")) not in self.hosts:
            await refuse(400, "This server does not answer to that host name.")
            return
        length = sent.get(b"content-length", b"0")
        if not length.isdigit() or int(length) > MAX_BODY:
            await refuse(413, "Too large.")
            return
        received = 0

        async def bounded() -> Message:
            nonlocal received
            message = await receive()
            if message["type"] == "http.request":
                received += len(message.get("body", b""))
                if received > MAX_BODY:
                    raise _TooLargeError
            return message

        try:
            await self.app(scope, bounded, answer)
        except _TooLargeError:
            if not started:
                await refuse(413, "Too large.")


def _name(host: str) -> str:
    """Host header without its port, lower case; IPv6 keeps its brackets."""
    host = host.strip().lower()
    if host.startswith("["):
        return host.partition("]")[0] + "]"
    return host.partition(":")[0]
