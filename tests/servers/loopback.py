"""Imitations of the Gemini and OpenAI services on 127.0.0.1, for tests (in a thread) and benchmarks (in a process).

In a test:

    with serve("gemini", script=["rate_limit=1", "good"]) as server:
        judge = GeminiJudge("gemini-3.8-flash", base_url=server.url, api_key=server.key)
        ...
    server.seen      # every request that the service would have accepted, as it understood it
    server.rejected  # why it refused the others

As a process: `python tests/servers/loopback.py --kind openai --latency 0.2` prints one line of JSON with the URL.

What it does with a request is a behaviour, a word with an argument ("finish=SAFETY"):
`good`, `text=…`, `fenced`, `prose`, `invalid`, `status=503`, `rate_limit=SECONDS` (Retry-After), `retry_info=SECONDS`,
`daily_quota`, `no_quota`, `slow=SECONDS`, `drop`, `drop_mid`, `cut_json`, `html`, `empty_body`, `not_object`,
`not_the_api`, `other_model=NAME`, `redirect=URL`, `echo_key=STATUS`, `bad_picture`, `no_candidate`, `no_text`,
`finish=REASON` (without text), `finish_text=REASON` (with text); Gemini: `block=REASON`, `thoughts`; OpenAI: `refusal`,
`refusal_part`, `parts`, `error_in_200=CODE`, `code=ERROR_CODE`.

The script is one behaviour, a list (one per request, the last one for the rest), a dict from model name to either, or a
function from the request to a behaviour. Without a script, a model called "NAME--BEHAVIOUR" gets that behaviour.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from servers import gemini_wire, openai_wire
from servers.batch_wire import Batches
from servers.checks import Answer, Rejected, Seen, constant_answer, hashed_answer
from servers.http_server import Request, Response, in_thread, port_of, start

Behaviours = str | Sequence[str] | Callable[[Seen], str]
Script = Behaviours | dict[str, Behaviours] | None

KINDS = ("gemini", "openai", "compatible")
KEY = "loopback-key-0123456789"
_MODEL = re.compile(rb'"model":\s*"([^"]+)"')


class Loopback:
    """One imitated service.

    Args:
        kind: "gemini", "openai", or "compatible" (OpenAI's protocol without a key).
        script: see the module. answer: text of a good reply; default fits the schema, with booleans hashed from the question.
        latency: seconds before every answer. key: the one key that is accepted.
        keep: keep requests in `seen` (switch off for long benchmarks).
        light: a fixed text that every reply holds; requests are then not read at all, so that a benchmark measures the
            client and not this server.
    """

    def __init__(
        self,
        kind: str,
        script: Script = None,
        *,
        answer: Answer = hashed_answer,
        latency: float = 0.0,
        key: str = KEY,
        keep: bool = True,
        light: str | None = None,
    ) -> None:
        if kind not in KINDS:
            raise ValueError(f"kind: expected one of {KINDS}, got {kind!r}")
        self.kind = kind
        self.key = key
        self.port = 0
        self.seen: list[Seen] = []
        self.rejected: list[str] = []
        #: Number of requests that were accepted, kept or not; how many were under way at once at most.
        self.count = 0
        self.most_at_once = 0
        self._under_way = 0
        self._wire = gemini_wire if kind == "gemini" else openai_wire
        self._script = script
        self._answer = answer
        self._latency = latency
        self._keep = keep
        self._light = light
        self._turns: dict[str, int] = {}
        self._lock = threading.Lock()
        #: The batch API of this service; see servers/batch_wire.py for how to make it misbehave.
        self.batches = Batches(kind, key, self._respond)

    @property
    def url(self) -> str:
        """What a judge is given as base URL."""
        return f"http://127.0.0.1:{self.port}" + ("" if self.kind == "gemini" else "/v1")

    async def handle(self, request: Request) -> Response:
        self._under_way += 1
        self.most_at_once = max(self.most_at_once, self._under_way)
        try:
            response = self.batches.respond(request) or self._respond(request)
            if self._latency:
                await asyncio.sleep(self._latency)
            return response
        finally:
            self._under_way -= 1

    def _respond(self, request: Request) -> Response:
        if self._light is not None:
            self.count += 1
            return self._light_response(request, self._light)
        try:
            seen = self._wire.read(request, None if self.kind == "compatible" else self.key)
        except Rejected as refusal:
            self.rejected.append(refusal.message)
            return self._wire.error(refusal.status, refusal.message, refusal.code)
        with self._lock:
            self.count += 1
            number = self.count
            if self._keep:
                self.seen.append(seen)
            behaviour = self._behaviour(seen)
        return self._perform(behaviour, seen, number)

    def _light_response(self, request: Request, text: str) -> Response:
        if self.kind == "gemini":
            model = request.path.rpartition("/")[2].partition(":")[0]
        else:
            found = _MODEL.search(request.body[-4000:]) or _MODEL.search(request.body[:4000])
            model = found[1].decode() if found else "unknown"
        seen = Seen(model, request.path, "", [], [], {}, {}, "", {}, len(request.body))
        return _ok(self._wire.good(seen, text, self.count))

    def _behaviour(self, seen: Seen) -> str:
        script: Any = self._script
        if isinstance(script, dict):
            script = script.get(seen.model)
        if script is None:
            return seen.model.partition("--")[2] or "good"
        if callable(script):
            return str(script(seen))
        if isinstance(script, str):
            return script
        slot = seen.model if isinstance(self._script, dict) else ""
        turn = self._turns.get(slot, 0)
        self._turns[slot] = turn + 1
        return str(script[min(turn, len(script) - 1)])

    def _perform(self, behaviour: str, seen: Seen, number: int) -> Response:
        kind, _, argument = behaviour.partition("=")
        text = self._answer(seen)
        special = self._wire.behave(kind, argument, seen, text, number)
        if isinstance(special, Response):
            return special
        if special is not None:
            return _ok(special)
        envelope = self._wire.good(seen, self._text(kind, argument, text), number)
        return self._transport(kind, argument, envelope)

    def _text(self, kind: str, argument: str, text: str) -> str:
        if kind == "text":
            return argument
        if kind == "fenced":
            return f"```json\n{text}\n```"
        if kind == "prose":
            return f"Here is what I think.\n{text}\nI hope this helps!"
        if kind == "invalid":
            return '{"verdict": "bad"}'
        return text

    def _transport(self, kind: str, argument: str, envelope: dict[str, Any]) -> Response:
        ok = _ok(envelope)
        error = self._wire.error
        match kind:
            case "good" | "text" | "fenced" | "prose" | "invalid":
                return ok
            case "slow":
                return Response(200, ok.body, wait=float(argument or 1))
            case "drop":
                return Response(drop=True)
            case "drop_mid":
                return Response(200, ok.body, cut=len(ok.body) // 2)
            case "cut_json":
                return Response(200, ok.body[: len(ok.body) // 2])
            case "html":
                page = b"<!doctype html><html><body><h1>502 Bad Gateway</h1></body></html>"
                return Response(200, page, {"content-type": "text/html"})
            case "empty_body":
                return Response(200, b"")
            case "not_object":
                return Response(200, b"[1, 2]")
            case "not_the_api":
                return Response(200, b'{"ok": true}')
            case "redirect":
                return Response(302, b"", {"location": argument})
            case "rate_limit":
                refused = error(429, "Rate limit reached.", "rate_limit_exceeded")
                if argument:
                    refused.headers["retry-after"] = argument
                return refused
            case "status":
                return error(int(argument or 500), f"The service answers {argument or 500}.")
            case "echo_key":
                return error(int(argument or 500), f"Incorrect API key provided: {self.key}. Bearer {self.key}")
        raise ValueError(f"no behaviour is called {kind!r} for {self.kind}")


def _ok(envelope: dict[str, Any]) -> Response:
    return Response(200, json.dumps(envelope, ensure_ascii=False).encode())


@contextmanager
def serve(kind: str, script: Script = None, **options: Any) -> Iterator[Loopback]:
    """An imitated service in a thread of this process; see `Loopback` for the options."""
    server = Loopback(kind, script, **options)
    with in_thread(server.handle) as port:
        server.port = port
        yield server


@contextmanager
def spawn(kind: str, *, latency: float = 0.0, answer: str = "hash", light: str | None = None) -> Iterator[str]:
    """An imitated service in another process; gives the base URL. The key is `KEY`; options as for `Loopback`."""
    command = [
        sys.executable,
        str(Path(__file__).resolve()),
        "--kind",
        kind,
        "--latency",
        str(latency),
        "--answer",
        answer,
    ]
    if light is not None:
        command += ["--light", light]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise RuntimeError(f"the loopback server did not start (exit {process.wait(10)})")
        yield json.loads(line)["url"]
    finally:
        process.terminate()
        process.wait(10)
        for stream in (process.stdout, process.stdin):
            if stream is not None:
                stream.close()


def main(argv: Sequence[str] | None = None) -> None:
    """Serve until the parent goes away (end of standard input) or the process is ended."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", choices=KINDS, required=True)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--latency", type=float, default=0.0, help="seconds before every answer")
    parser.add_argument("--answer", choices=("hash", "true", "false"), default="hash")
    parser.add_argument("--script", default=None, help="one behaviour, or several separated by commas")
    parser.add_argument("--light", default=None, help="text of every reply; requests are not read (for benchmarks)")
    parser.add_argument("--forever", action="store_true", help="do not stop at the end of standard input")
    options = parser.parse_args(argv)
    answer = hashed_answer if options.answer == "hash" else constant_answer(options.answer == "true")
    script = options.script.split(",") if options.script else None
    service = Loopback(options.kind, script, answer=answer, latency=options.latency, keep=False, light=options.light)

    async def run() -> None:
        server = await start(service.handle, options.port)
        service.port = port_of(server)
        print(json.dumps({"url": service.url, "key": KEY, "kind": options.kind}), flush=True)
        if options.forever:
            await server.serve_forever()
        else:
            await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)

    asyncio.run(run())


if __name__ == "__main__":
    main()
