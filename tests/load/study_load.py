"""Many raters at once against a real server process: a small HTTP/1.1 client, raters who think, a server that can be killed."""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlencode

from isr.human_study.store import Store

_CSRF = re.compile(rb'name="csrf" value="([0-9a-f]{64})"')
_PICTURE = re.compile(rb'src="(/image/[0-9a-f]{64})"')
LOST = (OSError, asyncio.IncompleteReadError, TimeoutError)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Connection:
    """One kept-alive connection with one cookie; raises `LOST` errors when the server goes away."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.cookie = ""
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(
        self, method: str, path: str, form: dict[str, str] | None = None, *, as_json: bool = False
    ) -> tuple[int, dict[str, str], bytes]:
        try:
            return await asyncio.wait_for(self._ask(method, path, form, as_json), 30)
        except LOST:
            self.drop()
            raise

    async def _ask(
        self, method: str, path: str, form: dict[str, str] | None, as_json: bool
    ) -> tuple[int, dict[str, str], bytes]:
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self.port)
        reader, writer = self._streams
        body = b"" if form is None else urlencode(form).encode()
        head = [f"{method} {path} HTTP/1.1", f"Host: 127.0.0.1:{self.port}", f"Content-Length: {len(body)}"]
        if form is not None:
            head.append("Content-Type: application/x-www-form-urlencoded")
        if self.cookie:
            head.append(f"Cookie: {self.cookie}")
        if as_json:
            head.append("Accept: application/json")
        writer.write("\r\n".join([*head, "", ""]).encode() + body)
        await writer.drain()
        lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in lines[1:] if line)}
        content = await reader.readexactly(int(headers.get("content-length", "0")))
        if "set-cookie" in headers:
            self.cookie = headers["set-cookie"].partition(";")[0]
        if headers.get("connection") == "close":
            self.drop()
        return int(lines[0].split()[1]), headers, content

    def drop(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


@dataclass
class Server:
    """`isr study serve` as a process of its own."""

    folder: Path
    port: int
    process: subprocess.Popen[bytes] | None = None
    log: list[Path] = field(default_factory=list)

    def start(self) -> None:
        log = self.folder.parent / f"server-{len(self.log)}.log"
        self.log.append(log)
        with open(log, "wb") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "isr", "study", "serve", str(self.folder), "--port", str(self.port)], stdout=out,
                stderr=subprocess.STDOUT,
            )  # fmt: skip

    async def ready(self) -> None:
        limit = time.monotonic() + 120
        while time.monotonic() < limit:
            try:
                await Connection(self.port).ask("GET", "/static/icon.svg")
                return
            except LOST:
                assert self.process is not None
                if self.process.poll() is not None:
                    raise RuntimeError(self.log[-1].read_text()) from None
                await asyncio.sleep(0.1)
        raise RuntimeError("the server did not come up within 120 s")

    def kill(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def cpu_seconds(self) -> float:
        """User and system time of the server so far."""
        assert self.process is not None
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def memory_mb(self) -> dict[str, float]:
        """Resident and peak resident memory of the server, MB."""
        assert self.process is not None
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        return {k: int(re.search(rf"{k}:\s+(\d+) kB", text)[1]) / 1000 for k in ("VmRSS", "VmHWM")}  # type: ignore[index]


@dataclass
class LoadRater:
    """One rater: enters, then answers one item after another with pauses for thought.

    Attributes:
        sent: key → (position, answers) of everything that was ever sent. acknowledged: the keys that were.
        page_seconds: from pressing save to having the next page. page_at: when (monotonic clock).
    """

    number: int
    link: str
    port: int
    pace: tuple[float, float]
    pictures: bool = False
    sent: dict[str, tuple[int, dict[str, str]]] = field(default_factory=dict)
    acknowledged: set[str] = field(default_factory=set)
    page_seconds: list[float] = field(default_factory=list)
    page_at: list[float] = field(default_factory=list)
    retries: int = 0
    entered: asyncio.Event = field(default_factory=asyncio.Event)

    async def live(self, until: Callable[[], bool]) -> None:
        rng = random.Random(self.number)
        self.connection = Connection(self.port)
        await asyncio.sleep(rng.uniform(0, self.pace[1]))
        page = await self._enter()
        self.entered.set()
        while page is not None and not until():
            position, html = page
            if self.pictures:
                for path in _PICTURE.findall(html):
                    await self._persist("GET", path.decode())
            await asyncio.sleep(rng.uniform(*self.pace))
            said = {
                f"q.{k}": rng.choice(["yes", "no", "cannot"]) for k in ("semantic_mismatch", "degradation", "overall")
            }
            key = f"{rng.getrandbits(128):032x}"
            self.sent[key] = (position, said)
            fields = {"csrf": _find(html), "key": key, "seconds": "2.0", "comment": "", **said}
            begun, before = time.perf_counter(), self.retries
            status, _, body = await self._persist("POST", f"/item/{position}", fields, as_json=True)
            if status != 200:
                raise RuntimeError(f"rater {self.number}: status {status}: {body[:200]!r}")
            self.acknowledged.add(key)
            page = await self._item(json.loads(body)["next"])
            if self.retries == before:  # pages during a kill measure the kill
                self.page_seconds.append(time.perf_counter() - begun)
                self.page_at.append(time.monotonic())
        self.connection.drop()

    async def _enter(self) -> tuple[int, bytes] | None:
        # The link works once. If the server dies before its cookie arrives, the organiser would make another; not measured here.
        await self.connection.ask("POST", f"/enter/{self.link}", {"x": ""})
        for path, more in (("/consent", {"agree": "yes"}), ("/instructions", {})):
            _, _, html = await self._persist("GET", path)
            await self._persist("POST", path, {"csrf": _find(html), **more})
        return await self._item("/")

    async def _item(self, path: str) -> tuple[int, bytes] | None:
        """Follow redirects and feedback pages to the next item; None at the end."""
        for _ in range(6):
            status, headers, body = await self._persist("GET", path)
            if status == 303:
                path = headers["location"]
            elif path.startswith("/feedback/"):
                path = "/"
            else:
                break
        return (int(path.rsplit("/", 1)[1]), body) if path.startswith("/item/") else None

    async def _persist(
        self, method: str, path: str, form: dict[str, str] | None = None, *, as_json: bool = False
    ) -> tuple[int, dict[str, str], bytes]:
        """As the page's script does: the same request again until there is an answer."""
        wait = 0.1
        while True:
            try:
                found = await self.connection.ask(method, path, form, as_json=as_json)
                if found[0] not in (429, 503):
                    return found
            except LOST:
                pass
            self.retries += 1
            await asyncio.sleep(wait)
            wait = min(1.0, wait * 2)


def _find(html: bytes) -> str:
    return _CSRF.search(html)[1].decode()  # type: ignore[index]


def make_raters(
    store: Store, count: int, port: int, pace: tuple[float, float], *, pictures: bool = False
) -> list[LoadRater]:
    for _ in range(count - len(store.raters())):
        store.add_rater()
    return [LoadRater(i, store.new_link(r), port, pace, pictures) for i, r in enumerate(store.raters()[:count])]


def seconds_from_environment(default: float) -> float:
    """ISR_LOAD_SECONDS: how long a load test runs."""
    return float(os.environ.get("ISR_LOAD_SECONDS", default))
