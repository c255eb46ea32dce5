"""Both batch APIs as an imitation: files, jobs, listing, results. Every request of a job is answered as a live one would be.

A test makes it misbehave through the attributes of `server.batches`:

    refuse = ["status=503", …]  answers of the next calls that start a job (an accepted job is not made)
    swallow = 1                 accept so many jobs and drop the connection before answering
    polls = 2                   answer so many polls with "running" first
    final = "expired"           how jobs end: succeeded, expired, cancelled, failed
    answered = 3                answer only the first so many requests of a job
    lines = [b"{", …]           further lines of every result file (inline: further results)
    edit = function             from the list of results to another one (order, duplicates, lost keys)
    item = function             from a request of a job to a behaviour ("status=500"), or None for the server's script
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from email.parser import BytesParser
from email.policy import HTTP
from typing import Any

from servers.checks import Rejected, as_json, only
from servers.http_server import Request, Response

_STATES = {"succeeded": "completed", "expired": "expired", "cancelled": "cancelled", "failed": "failed"}
_GRPC = {400: 3, 401: 16, 403: 7, 404: 5, 429: 8, 500: 13, 503: 14, 504: 4}
INLINE_LIMIT = 20_000_000


@dataclass
class Job:
    """One accepted job."""

    id: str
    label: str
    requests: list[tuple[str, dict[str, Any]]]
    model: str
    inline: bool = False
    polls: int = 0
    rows: list[Any] | None = None
    files: dict[str, str] = field(default_factory=dict)


class Batches:
    """The batch endpoints of one imitated service."""

    def __init__(self, kind: str, key: str, answer: Callable[[Request], Response]) -> None:
        self.kind = "gemini" if kind == "gemini" else "openai"
        self.key = None if kind == "compatible" else key
        self._answer = answer
        self.files: dict[str, bytes] = {}
        self.jobs: dict[str, Job] = {}
        self.listed = 0
        self.page = 2
        self.refuse: list[str] = []
        self.swallow = 0
        self.polls = 0
        self.final = "succeeded"
        self.answered: int | None = None
        self.lines: list[bytes] = []
        self.edit: Callable[[list[Any]], list[Any]] = list
        self.item: Callable[[dict[str, Any]], str | None] = lambda _: None
        self._uploads: dict[str, bytearray] = {}

    # ------------------------------------------------------------------------------------------------------- routing

    def respond(self, request: Request) -> Response | None:
        """The answer to a request of the batch API, None for any other."""
        routes = _GEMINI if self.kind == "gemini" else _OPENAI
        for method, pattern, name in routes:
            match = re.fullmatch(pattern, request.path)
            if match and request.method == method:
                try:
                    self._check_key(request)
                    response: Response = getattr(self, name)(request, *match.groups())
                except Rejected as refusal:
                    return self._error(refusal.status, refusal.message, refusal.code)
                return response
        return None

    def _check_key(self, request: Request) -> None:
        if self.key is None:
            return
        if self.kind == "gemini":
            # The address of an upload session is a secret of its own; the client sends no key there.
            given = request.headers.get("x-goog-api-key")
            if "upload_id" not in request.query and given != self.key:
                raise Rejected(400, "API key not valid. Please pass a valid API key.", "API_KEY_INVALID")
        elif request.headers.get("authorization") != f"Bearer {self.key}":
            given = request.headers.get("authorization", "").partition(" ")[2]
            raise Rejected(401, f"Incorrect API key provided: {given}.", "invalid_api_key")

    def _error(self, status: int, message: str, code: str = "") -> Response:
        from servers import gemini_wire, openai_wire

        return (gemini_wire if self.kind == "gemini" else openai_wire).error(status, message, code)

    def _start(self, job: Job) -> Response | None:
        """Accept a job, or what this service does instead."""
        if self.refuse:
            kind, _, argument = self.refuse.pop(0).partition("=")
            if kind == "rate_limit":
                refused = self._error(429, "Rate limit reached.", "rate_limit_exceeded")
                refused.headers["retry-after"] = argument or "0"
                return refused
            if kind == "drop":
                return Response(drop=True)
            return self._error(int(argument or 500), "The service says no.")
        self.jobs[job.id] = job
        if self.swallow:
            self.swallow -= 1
            return Response(drop=True)
        return None

    def _run(self, job: Job) -> list[tuple[str, int, Any]]:
        """(key, HTTP status, decoded body) of every request that this job answers."""
        done = []
        for key, body in job.requests[: self.answered]:
            behaviour = self.item(body)
            if behaviour is not None and behaviour.startswith("status="):
                response = self._error(int(behaviour.partition("=")[2]), "This request failed.")
            else:
                response = self._answer(self._live(job, body))
            done.append((key, response.status, json.loads(response.body)))
        return done

    def _live(self, job: Job, body: dict[str, Any]) -> Request:
        data = json.dumps(body).encode()
        headers = {"content-type": "application/json"}
        if self.kind == "gemini":
            headers["x-goog-api-key"] = self.key or ""
            return Request("POST", f"/v1/models/{job.model}:generateContent", {}, headers, data)
        if self.key is not None:
            headers["authorization"] = f"Bearer {self.key}"
        return Request("POST", "/v1/chat/completions", {}, headers, data)

    def _state(self, job: Job) -> str:
        job.polls += 1
        return "running" if job.polls <= self.polls else self.final

    def _lines(self, rows: list[Any]) -> bytes:
        made = [json.dumps(row, ensure_ascii=False).encode() for row in self.edit(rows)] + self.lines
        return b"".join(line + b"\n" for line in made)

    # -------------------------------------------------------------------------------------------------------- Gemini

    def gemini_upload(self, request: Request) -> Response:
        if request.headers.get("x-goog-upload-protocol") != "resumable":
            raise Rejected(400, "Upload protocol must be resumable")
        if request.headers.get("x-goog-upload-command") != "start":
            raise Rejected(400, "Invalid upload command")
        if request.headers.get("x-goog-upload-header-content-type") not in ("application/jsonl", "application/json"):
            raise Rejected(400, "Unsupported MIME type")
        upload = f"up{len(self._uploads)}"
        self._uploads[upload] = bytearray()
        url = f"http://{request.headers['host']}{request.path}?upload_id={upload}"
        return Response(200, b"{}", {"x-goog-upload-url": url, "x-goog-upload-status": "active"})

    def gemini_files(self, request: Request) -> Response:
        return self.gemini_bytes(request) if "upload_id" in request.query else self.gemini_upload(request)

    def gemini_bytes(self, request: Request) -> Response:
        upload = request.query["upload_id"][0]
        if upload not in self._uploads:
            raise Rejected(404, "No such upload")
        data = self._uploads[upload]
        if request.headers.get("x-goog-upload-offset") != str(len(data)):
            raise Rejected(400, "Wrong upload offset")
        data += request.body
        if "finalize" not in request.headers.get("x-goog-upload-command", ""):
            return Response(200, b"", {"x-goog-upload-status": "active"})
        name = f"files/in-{len(self.files)}"
        self.files[name] = bytes(data)
        body = {"file": {"name": name, "mimeType": "application/jsonl", "state": "ACTIVE", "sizeBytes": str(len(data))}}
        return Response(200, json.dumps(body).encode(), {"x-goog-upload-status": "final"})

    def gemini_start(self, request: Request, model: str) -> Response:
        body = only("", as_json(request.body), ["batch"], gemini=True)
        made = only("batch", body.get("batch"), ["displayName", "inputConfig", "model", "priority"], gemini=True)
        source = only("batch.input_config", made.get("inputConfig"), ["fileName", "requests"], gemini=True)
        if not made.get("displayName") or len(source) != 1:
            raise Rejected(400, "batch.display_name and exactly one source are required")
        requests: list[tuple[str, dict[str, Any]]] = []
        if "fileName" in source:
            if source["fileName"] not in self.files:
                raise Rejected(404, "File not found")
            for line in self.files[source["fileName"]].split(b"\n"):
                if line:
                    row = only("line", as_json(line), ["key", "request"], gemini=True)
                    requests.append((str(row["key"]), row["request"]))
        else:
            if len(request.body) > INLINE_LIMIT:
                raise Rejected(400, "Request payload size exceeds the limit: 20000000 bytes.")
            for row in source["requests"]["requests"]:
                only("request", row, ["request", "metadata"], gemini=True)
                requests.append((str(row["metadata"]["key"]), row["request"]))
        if not requests or len({key for key, _ in requests}) != len(requests):
            raise Rejected(400, "no requests, or keys that are not unique")
        job = Job(f"batches/b{len(self.jobs)}", made["displayName"], requests, model, inline="requests" in source)
        refused = self._start(job)
        return refused or _json(self._gemini_job(job, "pending"))

    def _gemini_job(self, job: Job, state: str) -> dict[str, Any]:
        metadata: dict[str, Any] = {
            "@type": "type.googleapis.com/google.ai.generativelanguage.v1main.GenerateContentBatch",
            "model": f"models/{job.model}",
            "displayName": job.label,
            "state": f"BATCH_STATE_{state.upper()}",
            "batchStats": {"requestCount": str(len(job.requests)), "pendingRequestCount": str(len(job.requests))},
            "name": job.id,
        }
        body: dict[str, Any] = {"name": job.id, "metadata": metadata}
        if state in ("succeeded", "expired", "cancelled") and self.answered != 0:
            rows = []
            for key, status, answer in self._rows(job):
                if status == 200:
                    rows.append({"key": key, "response": answer})
                else:
                    error = answer["error"]
                    rows.append({"key": key, "error": {"code": _GRPC.get(status, 13), "message": error["message"]}})
            if job.inline:
                inline = [{**{k: v for k, v in r.items() if k != "key"}, "metadata": {"key": r["key"]}} for r in rows]
                metadata["output"] = {"inlinedResponses": {"inlinedResponses": self.edit(inline)}}
            else:
                name = f"files/batch-out-{job.id.rpartition('/')[2]}"
                self.files[name] = self._lines(rows)
                metadata["output"] = {"responsesFile": name}
            body |= {"done": True, "response": metadata["output"]}
        if state == "failed":
            body |= {"done": True, "error": {"code": 3, "message": "The input file cannot be read."}}
        return body

    def _rows(self, job: Job) -> list[Any]:
        """The results of a job, computed once: a real job asks every question once, however often it is looked at."""
        if job.rows is None:
            job.rows = self._run(job)
        return job.rows

    def gemini_get(self, request: Request, name: str) -> Response:
        job = self.jobs.get(f"batches/{name}")
        if job is None:
            raise Rejected(404, "Requested entity was not found.", "NOT_FOUND")
        return _json(self._gemini_job(job, self._state(job)))

    def gemini_list(self, request: Request) -> Response:
        self.listed += 1
        jobs = list(self.jobs.values())[::-1]
        start = int(request.query.get("pageToken", ["0"])[0])
        page = jobs[start : start + self.page]
        more = {"nextPageToken": str(start + self.page)} if start + self.page < len(jobs) else {}
        return _json({"operations": [self._gemini_job(j, "running") for j in page], **more})

    def gemini_download(self, request: Request, name: str) -> Response:
        if request.query.get("alt") != ["media"] or f"files/{name}" not in self.files:
            raise Rejected(404, "File not found")
        return Response(200, self.files[f"files/{name}"], {"content-type": "application/octet-stream"})

    # -------------------------------------------------------------------------------------------------------- OpenAI

    def openai_upload(self, request: Request) -> Response:
        kind = request.headers.get("content-type", "")
        if not kind.startswith("multipart/form-data"):
            raise Rejected(400, "Invalid content type")
        form = BytesParser(policy=HTTP).parsebytes(b"content-type: " + kind.encode() + b"\r\n\r\n" + request.body)
        parts: dict[str, Any] = {
            part.get_param("name", header="content-disposition"): part for part in form.iter_parts()
        }  # type: ignore[attr-defined]
        if sorted(parts) != ["file", "purpose"] or parts["purpose"].get_payload(decode=True).strip() != b"batch":
            raise Rejected(400, "file and purpose=batch are required")
        if not str(parts["file"].get_filename()).endswith(".jsonl"):
            raise Rejected(400, "Invalid extension. Supported formats: jsonl")
        name = f"file-in{len(self.files)}"
        self.files[name] = parts["file"].get_payload(decode=True)
        return _json(
            {"id": name, "object": "file", "bytes": len(self.files[name]), "created_at": 1, "filename": "b.jsonl", "purpose": "batch", "status": "processed"}
        )  # fmt: skip

    def openai_start(self, request: Request) -> Response:
        body = only("", as_json(request.body), ["input_file_id", "endpoint", "completion_window", "metadata"])
        if body.get("endpoint") != "/v1/chat/completions" or body.get("completion_window") != "24h":
            raise Rejected(400, "Invalid endpoint or completion_window")
        metadata = body.get("metadata", {})
        if len(metadata) > 16 or not all(isinstance(v, str) and len(v) <= 512 for v in metadata.values()):
            raise Rejected(400, "Invalid metadata")
        data = self.files.get(body["input_file_id"])
        if data is None:
            raise Rejected(404, "No such File object")
        requests: list[tuple[str, dict[str, Any]]] = []
        for line in data.rstrip(b"\n").split(b"\n"):
            row = only("line", as_json(line), ["custom_id", "method", "url", "body"])
            if row["method"] != "POST" or row["url"] != body["endpoint"]:
                raise Rejected(400, "The URL of a request is not the endpoint of the batch")
            requests.append((row["custom_id"], row["body"]))
        if len({key for key, _ in requests}) != len(requests) or len({b["model"] for _, b in requests}) != 1:
            raise Rejected(400, "duplicate custom_id, or several models")
        job = Job(f"batch_{len(self.jobs)}", metadata.get("isr_label", ""), requests, requests[0][1]["model"])
        refused = self._start(job)
        return refused or _json(self._openai_job(job, "validating"))

    def _openai_job(self, job: Job, state: str) -> dict[str, Any]:
        word = {"running": "in_progress", **_STATES}.get(state, state)
        body: dict[str, Any] = {
            "id": job.id, "object": "batch", "endpoint": "/v1/chat/completions", "errors": None, "input_file_id": "file-x",
            "completion_window": "24h", "status": word, "output_file_id": None, "error_file_id": "", "created_at": 1,
            "request_counts": {"total": len(job.requests), "completed": 0, "failed": 0},
            "metadata": {"isr_label": job.label},
        }  # fmt: skip
        if word in ("completed", "expired", "cancelled"):
            good: list[Any] = []
            bad: list[Any] = []
            for number, (key, status, answer) in enumerate(self._rows(job)):
                response = {"status_code": status, "request_id": f"req_{number}", "body": answer}
                row = {"id": f"batch_req_{number}", "custom_id": key, "response": response, "error": None}
                (good if status == 200 else bad).append(row)
            for key, _ in job.requests[len(self._rows(job)) :]:
                error = {"code": f"batch_{word}", "message": "This request could not be executed."}
                bad.append({"id": "batch_req_x", "custom_id": key, "response": None, "error": error})
            if good or self.lines:
                body["output_file_id"] = f"file-out{job.id}"
                self.files[body["output_file_id"]] = self._lines(good)
            if bad:
                body["error_file_id"] = f"file-err{job.id}"
                self.files[body["error_file_id"]] = b"".join(json.dumps(row).encode() + b"\n" for row in bad)
            body["request_counts"] |= {"completed": len(good), "failed": len(bad)}
        if word == "failed":
            listed = [
                {"code": "invalid_json_line", "message": "The input file cannot be read.", "line": 1, "param": None}
            ]
            body["errors"] = {"object": "list", "data": listed}
        return body

    def openai_get(self, request: Request, name: str) -> Response:
        job = self.jobs.get(name)
        if job is None:
            raise Rejected(404, "No batch found")
        return _json(self._openai_job(job, self._state(job)))

    def openai_list(self, request: Request) -> Response:
        self.listed += 1
        jobs = list(self.jobs.values())[::-1]
        after = request.query.get("after", [""])[0]
        start = 1 + next((i for i, j in enumerate(jobs) if j.id == after), -1)
        page = jobs[start : start + self.page]
        data = [self._openai_job(j, "running") for j in page]
        return _json({"object": "list", "data": data, "has_more": start + self.page < len(jobs)})

    def openai_download(self, request: Request, name: str) -> Response:
        if name not in self.files:
            raise Rejected(404, "No such File object")
        return Response(200, self.files[name], {"content-type": "application/octet-stream"})


_GEMINI = (
    ("POST", r"/upload/v1(?:beta)?/files", "gemini_files"),
    ("POST", r"/v1(?:beta)?/models/([^/]+):batchGenerateContent", "gemini_start"),
    ("GET", r"/v1(?:beta)?/batches/([^/]+)", "gemini_get"),
    ("GET", r"/v1(?:beta)?/batches", "gemini_list"),
    ("GET", r"/v1(?:beta)?/files/([^/]+):download", "gemini_download"),
)
_OPENAI = (
    ("POST", r"/v1/files", "openai_upload"),
    ("POST", r"/v1/batches", "openai_start"),
    ("GET", r"/v1/batches", "openai_list"),
    ("GET", r"/v1/batches/([^/]+)", "openai_get"),
    ("GET", r"/v1/files/([^/]+)/content", "openai_download"),
)


def _json(body: dict[str, Any]) -> Response:
    return Response(200, json.dumps(body, ensure_ascii=False).encode())
