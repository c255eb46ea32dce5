"""A small HTTP/1.1 server on asyncio: enough to imitate an API on 127.0.0.1, with control over every byte and delay."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from urllib.parse import parse_qs, unquote, urlsplit

MAX_BODY = 200_000_000


@dataclass
class Request:
    """One request. Header names are lower case."""

    method: str
    path: str
    query: dict[str, list[str]]
    headers: dict[str, str]
    body: bytes


@dataclass
class Response:
    """What is sent back.

    Attributes:
        wait: seconds before the first byte. cut: send only this many bytes of the body, then close the connection.
        drop: close the connection without a byte.
    """

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    wait: float = 0.0
    cut: int | None = None
    drop: bool = False


Handler = Callable[[Request], Awaitable[Response]]

_REASONS = {200: "OK", 302: "Found", 400: "Bad Request", 401: "Unauthorized", 403: "Forbidden", 404: "Not Found", 429: "Too Many Requests", 500: "Internal Server Error", 503: "Service Unavailable"}  # fmt: skip


async def _read(reader: asyncio.StreamReader) -> Request | None:
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except (asyncio.IncompleteReadError, ConnectionError):
        return None
    first, *lines = head.decode("latin-1").split("\r\n")
    method, target, _ = first.split(" ", 2)
    headers = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if colon:
            headers[name.strip().lower()] = value.strip()
    length = int(headers.get("content-length", "0"))
    if length > MAX_BODY:
        return None
    body = await reader.readexactly(length)
    parts = urlsplit(target)
    return Request(method, unquote(parts.path), parse_qs(parts.query), headers, body)


async def _write(writer: asyncio.StreamWriter, response: Response) -> bool:
    """Send a response; False where the connection is to be closed."""
    if response.wait:
        await asyncio.sleep(response.wait)
    if response.drop:
        return False
    headers = {"content-type": "application/json; charset=utf-8", **response.headers}
    headers["content-length"] = str(len(response.body))
    lines = [f"HTTP/1.1 {response.status} {_REASONS.get(response.status, 'Status')}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    body = response.body if response.cut is None else response.body[: response.cut]
    writer.write("\r\n".join([*lines, "", ""]).encode("latin-1") + body)
    await writer.drain()
    return response.cut is None


async def start(handler: Handler, port: int = 0) -> asyncio.Server:
    """Listen on 127.0.0.1; port 0 takes a free one."""

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while (request := await _read(reader)) is not None:
                if not await _write(writer, await handler(request)):
                    break
        writer.close()
        with contextlib.suppress(ConnectionError, asyncio.CancelledError):
            await writer.wait_closed()

    return await asyncio.start_server(connected, "127.0.0.1", port, limit=2**20, backlog=512)


def port_of(server: asyncio.Server) -> int:
    port: int = server.sockets[0].getsockname()[1]
    return port


@contextmanager
def in_thread(handler: Handler) -> Iterator[int]:
    """Run a server in a thread of its own; gives the port, and stops it at the end."""
    ready: threading.Event = threading.Event()
    held: dict[str, object] = {}

    async def run() -> None:
        server = await start(handler)
        stop = asyncio.Event()
        held.update(port=port_of(server), stop=stop, loop=asyncio.get_running_loop())
        ready.set()
        await stop.wait()
        server.close()

    thread = threading.Thread(target=lambda: asyncio.run(run()), name="loopback", daemon=True)
    thread.start()
    if not ready.wait(10):
        raise RuntimeError("the loopback server did not start")
    loop, stop, port = held["loop"], held["stop"], held["port"]
    assert isinstance(loop, asyncio.AbstractEventLoop)
    assert isinstance(stop, asyncio.Event)
    assert isinstance(port, int)
    try:
        yield port
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)
