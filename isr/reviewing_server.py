"""The page of `isr review`, served to this machine only.

Bound to 127.0.0.1; the address holds a random token, and the Host header is checked (a name that a stranger's DNS points
here is refused). An answer is taken only as JSON from our own origin, so that no other page can send one. No part of a
request becomes a path: pictures are asked for by item number.
"""

from __future__ import annotations

import json
import secrets
import threading
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from .errors import IntegrityError, UsageError
from .reporting.page import environment, inlined, json_island
from .reviewing import MAX_NOTE, Review

__all__ = ["ReviewServer"]

MAX_BODY = 65_536


class ReviewServer(ThreadingHTTPServer):
    """Serves one review until somebody ends it.

    Args:
        review: what is asked. port: 0 for any free one.
    """

    daemon_threads = True

    def __init__(self, review: Review, port: int = 0) -> None:
        self.review = review
        self.token = secrets.token_urlsafe(32)
        try:
            super().__init__(("127.0.0.1", port), _Handler)
        except (OSError, OverflowError) as error:
            raise UsageError(
                f"port: cannot listen on 127.0.0.1:{port}: {error}; leave it out for any free one"
            ) from error

    @property
    def url(self) -> str:
        """Address of the page, with its secret; for this machine's browser."""
        return f"http://127.0.0.1:{self.server_port}/{self.token}/"

    def end(self) -> None:
        """Stop serving; may be called from a request."""
        threading.Thread(target=self.shutdown, daemon=True).start()

    def page(self) -> tuple[bytes, str]:
        """(page, its content security policy)."""
        review = self.review
        parts = inlined(
            styles=("report.css", "review.css"), scripts=("review.js",), images="'self' data:", connect="'self'"
        )
        data = {
            "items": [{"prompt": i.prompt, "original": i.original is not None} for i in review.items],
            "said": {str(number): said for number, said in review.said().items()},
            "questions": [asdict(q) for q in review.questions],
            "words": review.rubric.interface.model_dump(mode="json"),
        }
        template = environment().get_template("review.html")
        text = template.render(page=parts, data=json_island(data), review=review, max_note=MAX_NOTE)
        return text.encode("utf-8"), parts.policy


class _Handler(BaseHTTPRequestHandler):
    server: ReviewServer
    server_version = "isr"
    sys_version = ""
    timeout = 30

    def do_GET(self) -> None:
        rest = self._inside()
        if rest is None:
            return
        if rest == [""]:
            page, policy = self.server.page()
            self._send(200, page, "text/html; charset=utf-8", policy)
            return
        png = self._picture(rest)
        if png is None:
            self._tell(404, "There is nothing here.")
        else:
            self._send(200, png, "image/png")

    def _picture(self, rest: list[str]) -> bytes | None:
        if len(rest) != 3 or rest[0] != "picture" or not (rest[1].isascii() and rest[1].isdigit() and len(rest[1]) < 9):
            return None
        try:
            return self.server.review.picture(int(rest[1]), rest[2])
        except IntegrityError:
            return None  # a picture that is not what its name says is not shown

    def do_POST(self) -> None:
        rest = self._inside()
        if rest is None:
            return
        if self.headers.get("Origin") != f"http://{self.headers.get('Host')}":
            self._tell(403, "Answers are taken from the review's own page only.")
            return
        if (self.headers.get("Content-Type") or "").partition(";")[0].strip() != "application/json":
            self._tell(415, "Expected application/json.")
            return
        body = self._body()
        if body is None:
            return
        if rest == ["answer"]:
            self._answer(body)
        elif rest == ["finish"]:
            self._json(200, {"answered": self.server.review.answered})
            self.server.end()
        else:
            self._tell(404, "There is nothing here.")

    def _answer(self, body: dict[str, Any]) -> None:
        try:
            self.server.review.save(body.get("item"), body.get("said"), body.get("note", ""))  # type: ignore[arg-type]
        except UsageError as error:
            self._json(400, {"error": str(error)})
        except OSError as error:
            self._json(500, {"error": f"the answer could not be written: {error.strerror or error}"})
        else:
            self._json(200, {"answered": self.server.review.answered})

    def _inside(self) -> list[str] | None:
        """The parts of the path after the token, or None once a refusal is sent."""
        port = self.server.server_port
        if self.headers.get("Host") not in {f"127.0.0.1:{port}", f"localhost:{port}"}:
            self._tell(421, "This server answers 127.0.0.1 only.")
            return None
        parts = self.path.partition("?")[0].split("/")
        token = parts[1] if len(parts) > 2 else ""
        if not secrets.compare_digest(token.encode("utf-8", "replace"), self.server.token.encode("ascii")):
            self._tell(404, "There is nothing here. Use the whole address that isr review printed.")
            return None
        return parts[2:]

    def _body(self) -> dict[str, Any] | None:
        length = self.headers.get("Content-Length") or ""
        if not (length.isascii() and length.isdigit()) or len(length) > 9 or int(length) > MAX_BODY:
            self._tell(413, f"Expected a body of at most {MAX_BODY} bytes.")
            return None
        try:
            body = json.loads(self.rfile.read(int(length)))
        except (ValueError, RecursionError):
            body = None
        if not isinstance(body, dict):
            self._tell(400, "Expected a JSON object.")
            return None
        return body

    def _json(self, status: int, value: dict[str, Any]) -> None:
        self._send(status, json.dumps(value).encode("utf-8"), "application/json")

    def _tell(self, status: int, text: str) -> None:
        self._send(status, text.encode("utf-8") + b"\n", "text/plain; charset=utf-8")

    def _send(self, status: int, body: bytes, kind: str, policy: str = "default-src 'none'") -> None:
        self.send_response(status)
        for name, value in (
            ("Content-Type", kind),
            ("Content-Length", str(len(body))),
            ("Content-Security-Policy", policy + "; frame-ancestors 'none'"),
            ("X-Content-Type-Options", "nosniff"),
            ("X-Frame-Options", "DENY"),
            ("Referrer-Policy", "no-referrer"),
            ("Cross-Origin-Resource-Policy", "same-origin"),
            ("Cross-Origin-Opener-Policy", "same-origin"),
            ("Cache-Control", "no-store"),
        ):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Silent: a log line would hold the token."""
