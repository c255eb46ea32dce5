"""OpenAI's Batch API: an uploaded file of requests, one file of replies and one of errors.

Spoken by the service itself and by servers that imitate it; the requests are those of `chat.completions`.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isr.errors import IsrError, JudgeStoppedError, TransientError
from isr.protocols import BatchItem, BatchLimits, BatchState, Reply

from .batch_lines import JOB_ID, json_lines

if TYPE_CHECKING:
    from .openai import OpenAIJudge

__all__ = ["OpenAIBatch", "connect_batch"]

ENDPOINT = "/v1/chat/completions"
#: Under which name the label travels in a job's metadata.
LABEL = "isr_label"
_ENDED = ("completed", "failed", "expired", "cancelled")


@asynccontextmanager
async def connect_batch(judge: OpenAIJudge) -> AsyncIterator[OpenAIBatch]:
    """An open connection to the Batch API."""
    async with judge.open() as client:
        yield OpenAIBatch(judge, client)


class OpenAIBatch:
    """A `BatchClient` (isr/protocols.py)."""

    def __init__(self, judge: OpenAIJudge, client: Any) -> None:
        self._judge = judge
        self._client = client

    @property
    def limits(self) -> BatchLimits:
        # Documented: 200 MB and 50,000 requests per input file; whether MB are 10^6 or 2^20 bytes is not said.
        return BatchLimits(max_bytes=199_000_000, max_requests=50_000)

    def encode(self, item: BatchItem) -> bytes:
        row = {"custom_id": item.key, "method": "POST", "url": ENDPOINT, "body": self._judge.request(item.question)}
        return json.dumps(row, ensure_ascii=True, separators=(",", ":")).encode("ascii")

    async def submit(self, label: str, requests: Path, count: int) -> str:  # noqa: ARG002 - the protocol's signature
        with open(requests, "rb") as file:
            uploaded = await self._call(
                lambda: self._client.files.with_raw_response.create(file=(f"{label}.jsonl", file), purpose="batch")
            )
        source = _id(uploaded)
        if source is None:
            raise TransientError(f"{self._judge.name}: the service took a file and did not say which")
        made = await self._call(
            lambda: self._client.batches.with_raw_response.create(
                input_file_id=source, endpoint=ENDPOINT, completion_window="24h", metadata={LABEL: label}
            )
        )
        job = _id(made)
        if job is None:
            raise TransientError(f"{self._judge.name}: the service started a job and did not say which")
        return job

    async def find(self, label: str) -> str | None:
        after: str | None = None
        while True:
            more = {} if after is None else {"after": after}
            page = await self._call(partial(self._client.batches.with_raw_response.list, limit=100, **more))
            rows = [row for row in page.get("data") or [] if isinstance(row, dict)]
            for row in rows:
                metadata = row.get("metadata")
                if isinstance(metadata, dict) and metadata.get(LABEL) == label:
                    return _id(row)
            last = _id(rows[-1]) if rows else None
            if not page.get("has_more") or last is None or last == after:
                return None
            after = last

    async def poll(self, job: str) -> BatchState:
        return self._state(await self._get(job))

    async def collect(self, job: str) -> AsyncIterator[tuple[str, Reply | IsrError]]:
        body = await self._get(job)
        with tempfile.TemporaryDirectory(prefix="isr-batch-") as folder:
            # An absent file is named by null or by an empty text.
            for number, file in enumerate((body.get("output_file_id"), body.get("error_file_id"))):
                if not isinstance(file, str) or not JOB_ID.match(file):
                    continue
                path = Path(folder) / f"{number}.jsonl"
                await self._download(file, path)
                for row in json_lines(path, self._judge.name):
                    key = row.get("custom_id")
                    if isinstance(key, str):
                        yield key, self._result(row)

    # ------------------------------------------------------------------------------------------------------- reading

    def _result(self, row: dict[str, Any]) -> Reply | IsrError:
        response = row.get("response")
        if isinstance(response, dict):
            status, body = response.get("status_code"), response.get("body")
            if status == 200:
                try:
                    request = response.get("request_id")
                    headers = {"x-request-id": request} if isinstance(request, str) else {}
                    return self._judge.read(json.dumps(body, ensure_ascii=False), headers)
                except (TransientError, JudgeStoppedError) as error:
                    return error
            if isinstance(status, int) and status >= 400:
                return self._judge.refused(status, body, {})
        reported = row.get("error")
        said = reported if isinstance(reported, dict) else {}
        # batch_expired, batch_cancelled, …: the request was not made.
        return TransientError(
            self._judge.scrub(f"{said.get('code') or 'no response'} {said.get('message') or ''}").strip()
        )

    def _state(self, body: dict[str, Any]) -> BatchState:
        counts = body.get("request_counts")
        counts = counts if isinstance(counts, dict) else {}
        errors = body.get("errors")
        listed = errors.get("data") if isinstance(errors, dict) else None
        said = [str(e.get("message") or e.get("code") or "") for e in listed or [] if isinstance(e, dict)]
        word = str(body.get("status") or "unknown")

        def count(name: str) -> int | None:
            value = counts.get(name)
            return value if isinstance(value, int) and not isinstance(value, bool) else None

        return BatchState(
            word in _ENDED, word, self._judge.scrub("; ".join(said[:3])), count("total"), count("completed"), count("failed")
        )  # fmt: skip

    async def _get(self, job: str) -> dict[str, Any]:
        if not JOB_ID.match(job):
            raise JudgeStoppedError(f"{self._judge.name}: {job[:80]!r} is no job id", judge=self._judge.name)
        return await self._call(lambda: self._client.batches.with_raw_response.retrieve(job))

    async def _download(self, file: str, path: Path) -> None:
        """Stream a result file to disk."""

        async def stream() -> None:
            async with self._client.files.with_streaming_response.content(file) as response:
                with open(path, "wb") as out:
                    async for part in response.iter_bytes(1 << 20):
                        out.write(part)

        await self._guard(stream)

    async def _call(self, call: Callable[[], Any]) -> dict[str, Any]:
        """One use of the client library: its raw body as an object, its failures in our two errors."""
        text = (await self._guard(call)).text
        try:
            body = json.loads(self._judge.clean(text))
        except (ValueError, RecursionError):
            body = None
        if not isinstance(body, dict):
            raise TransientError(f"{self._judge.name}: HTTP 200, but the body is not a JSON object", status=200)
        return body

    async def _guard(self, call: Callable[[], Any]) -> Any:
        import httpx2
        import openai

        try:
            return await call()
        # Raised below, outside the handler: the client's own message may hold what ours must not.
        except (openai.APIError, httpx2.RequestError, json.JSONDecodeError, UnicodeDecodeError) as error:
            failure = self._judge.failure(error)
        raise failure if isinstance(failure, Exception) else TransientError(f"{self._judge.name}: {failure.finish}")


def _id(body: dict[str, Any]) -> str | None:
    value = body.get("id")
    return value if isinstance(value, str) and JOB_ID.match(value) else None
