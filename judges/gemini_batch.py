"""Gemini's Batch API through google-genai: requests as an uploaded file, or inline.

The file form is the default: each of its results carries the key of its request. Inline results were seen to come back
out of order and without their metadata (googleapis/python-genai issues 1909 and 2008), so nothing is ever matched by
position: an inline result without a key is left out.

As for single calls, the raw HTTP bodies are read here, so that nothing the client library infers enters the record.
"""

from __future__ import annotations

import base64
import json
import tempfile
import warnings
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from isr.errors import IsrError, JudgeStoppedError, TransientError
from isr.protocols import BatchItem, BatchLimits, BatchState, Question, Reply

from .batch_lines import JOB_ID, json_lines
from .schemas import for_gemini

if TYPE_CHECKING:
    import httpx2

    from .gemini import GeminiJudge

__all__ = ["GeminiBatch", "connect_batch", "wire_request"]

#: Documented: 2 GB per file, 20 MB inline. Smaller files lose less when a job fails, and 100 jobs may be open at once.
_FILE_LIMIT = 500_000_000
_INLINE_LIMIT = 19_000_000
_ENDED = ("SUCCEEDED", "FAILED", "CANCELLED", "EXPIRED", "PARTIALLY_SUCCEEDED")
#: google.rpc.Code → HTTP status, as in Google's own table.
_HTTP = {1: 499, 2: 500, 3: 400, 4: 504, 5: 404, 6: 409, 7: 403, 8: 429, 9: 400, 10: 409, 11: 400, 12: 501, 13: 500, 14: 503, 15: 500, 16: 401}  # fmt: skip


def wire_request(judge: GeminiJudge, question: Question) -> dict[str, Any]:
    """The `GenerateContentRequest` of a question as it travels, the same as the body of a live call."""
    config = judge.config(question)
    generation = {
        name: config[source]
        for name, source in (
            ("temperature", "temperature"), ("topP", "top_p"), ("maxOutputTokens", "max_output_tokens"), ("seed", "seed"),
            ("responseMimeType", "response_mime_type"),
        )
        if source in config
    }  # fmt: skip
    generation["responseJsonSchema"] = for_gemini(question.schema)
    thinking = config.get("thinking_config", {})
    names = {"thinking_level": "thinkingLevel", "thinking_budget": "thinkingBudget"}
    if thinking:
        generation["thinkingConfig"] = {names[name]: value for name, value in thinking.items()}
    parts: list[dict[str, Any]] = [{"text": question.data}]
    for picture in question.pictures:
        data = base64.b64encode(picture.png).decode("ascii")
        parts.append({"inlineData": {"mimeType": "image/png", "data": data}})
    return {
        "contents": [{"role": "user", "parts": parts}],
        "systemInstruction": {"parts": [{"text": question.instructions}], "role": "user"},
        "generationConfig": generation,
    }


@asynccontextmanager
async def connect_batch(judge: GeminiJudge) -> AsyncIterator[GeminiBatch]:
    """An open connection to the Batch API."""
    async with judge.open() as (client, http):
        yield GeminiBatch(judge, client, http)


class GeminiBatch:
    """A `BatchClient` (isr/protocols.py)."""

    def __init__(self, judge: GeminiJudge, client: Any, http: httpx2.AsyncClient) -> None:
        self._judge = judge
        self._client = client
        self._inline = judge.batch_form == "inline"
        self._body = ""
        hooks = http.event_hooks
        http.event_hooks = {**hooks, "response": [*hooks.get("response", []), self._keep]}

    async def _keep(self, response: httpx2.Response) -> None:
        """Remember the body of a small answer (never of a result file, which goes to disk)."""
        if "alt=media" not in str(response.request.url):
            self._body = (await response.aread()).decode("utf-8", "replace")

    @property
    def limits(self) -> BatchLimits:
        return BatchLimits(_INLINE_LIMIT if self._inline else _FILE_LIMIT, 50_000)

    def encode(self, item: BatchItem) -> bytes:
        row = {"key": item.key, "request": wire_request(self._judge, item.question)}
        return json.dumps(row, ensure_ascii=True, separators=(",", ":")).encode("ascii")

    async def submit(self, label: str, requests: Path, count: int) -> str:  # noqa: ARG002 - the protocol's signature
        from google.genai import types

        if self._inline:
            source: Any = [self._inlined(row) for row in json_lines(requests, self._judge.name)]
        else:
            uploaded = await self._call(
                lambda: self._client.aio.files.upload(
                    file=str(requests), config=types.UploadFileConfig(mime_type="application/jsonl", display_name=label)
                )
            )
            source = uploaded.name
        await self._call(
            lambda: self._client.aio.batches.create(
                model=self._judge.model, src=source, config=types.CreateBatchJobConfig(display_name=label)
            )
        )
        return self._job_id(self._object())

    def _inlined(self, row: dict[str, Any]) -> Any:
        """One line of the file form as the client's own type."""
        from google.genai import types

        request = row["request"]
        config = {**request["generationConfig"], "systemInstruction": request["systemInstruction"]}
        return types.InlinedRequest(
            contents=[types.Content.model_validate_json(json.dumps(c)) for c in request["contents"]],
            config=types.GenerateContentConfig.model_validate(config),
            metadata={"key": row["key"]},
        )

    async def find(self, label: str) -> str | None:
        token: str | None = None
        while True:
            config = {"page_size": 100, **({"page_token": token} if token else {})}
            await self._call(partial(self._client.aio.batches.list, config=config))
            page = self._object()
            for job in page.get("operations") or []:
                if isinstance(job, dict) and _typed(job.get("metadata"), dict).get("displayName") == label:
                    return self._job_id(job)
            token = page.get("nextPageToken")
            if not isinstance(token, str) or not token:
                return None

    async def poll(self, job: str) -> BatchState:
        return self._state(await self._get(job))

    async def collect(self, job: str) -> AsyncIterator[tuple[str, Reply | IsrError]]:
        body = await self._get(job)
        output = _output(body)
        name = output.get("responsesFile")
        rows: list[Any] = _typed(_typed(output.get("inlinedResponses"), dict).get("inlinedResponses"), list)
        keyless = 0
        with tempfile.TemporaryDirectory(prefix="isr-batch-") as folder:
            found: Any = [r for r in rows if isinstance(r, dict)]
            if isinstance(name, str) and name:
                path = Path(folder) / "results.jsonl"
                await self._call(lambda: self._client.aio.files.download(file=name, destination=str(path)))
                found = json_lines(path, self._judge.name)
            for row in found:
                key = row.get("key") or _typed(row.get("metadata"), dict).get("key")
                if not isinstance(key, str):
                    keyless += 1
                    continue
                yield key, self._result(row)
        if keyless:
            warnings.warn(
                f"{self._judge.name}: {keyless} results of {job} came without the key of their request; they are not used, "
                "because which case they belong to is unknown",
                UserWarning,
                stacklevel=2,
            )

    # ------------------------------------------------------------------------------------------------------- reading

    def _result(self, row: dict[str, Any]) -> Reply | IsrError:
        try:
            if isinstance(row.get("response"), dict):
                return self._judge.read(json.dumps(row["response"], ensure_ascii=False))
        except (TransientError, JudgeStoppedError) as error:
            return error
        reported = _typed(row.get("error") or row.get("status"), dict)
        code = reported.get("code")
        status = _HTTP.get(code, code if 400 <= code < 600 else 500) if isinstance(code, int) else 500
        shaped = SimpleNamespace(
            code=status,
            status=reported.get("status"),
            message=reported.get("message"),
            details={"error": reported},
            response=None,
        )
        return self._judge.refused(shaped)

    async def _get(self, job: str) -> dict[str, Any]:
        if not job.startswith("batches/") or not JOB_ID.match(job.removeprefix("batches/")):
            raise JudgeStoppedError(
                f"{self._judge.name}: {job[:80]!r} is no job of the Gemini API", judge=self._judge.name
            )
        await self._call(lambda: self._client.aio.batches.get(name=job))
        return self._object()

    def _state(self, body: dict[str, Any]) -> BatchState:
        metadata = _typed(body.get("metadata"), dict)
        word = str(metadata.get("state") or "").removeprefix("BATCH_STATE_").removeprefix("JOB_STATE_")
        stats = _typed(metadata.get("batchStats"), dict)
        error = _typed(body.get("error"), dict) or _typed(metadata.get("error"), dict)
        ended = word in _ENDED
        # A job is called done a little before its results can be read.
        if word in ("SUCCEEDED", "PARTIALLY_SUCCEEDED") and not _output(body):
            ended, word = False, "SUCCEEDED, results not there yet"
        return BatchState(
            ended,
            word.lower() or "unknown",
            self._judge.scrub(error.get("message") or ""),
            _count(stats.get("requestCount")),
            _count(stats.get("successfulRequestCount")),
            _count(stats.get("failedRequestCount")),
        )

    def _job_id(self, body: dict[str, Any]) -> str:
        name = body.get("name")
        if not isinstance(name, str) or not JOB_ID.match(name.removeprefix("batches/")):
            raise TransientError(f"{self._judge.name}: the service started a job and did not say which")
        return name

    def _object(self) -> dict[str, Any]:
        """The body of the last answer."""
        try:
            body = json.loads(self._judge.clean(self._body))
        except (ValueError, RecursionError):
            body = None
        if not isinstance(body, dict):
            raise TransientError(f"{self._judge.name}: HTTP 200, but the body is not a JSON object", status=200)
        return body

    async def _call(self, call: Callable[[], Any]) -> Any:
        """One use of the client library, its failures in our two errors."""
        import httpx2
        from google.genai import errors

        self._body = ""
        failure: Exception
        try:
            return await call()
        # Raised below, outside the handler: the client's own message may hold what ours must not.
        except errors.APIError as error:
            refused = self._judge.refused(error)
            failure = (
                refused if isinstance(refused, Exception) else TransientError(f"{self._judge.name}: {refused.finish}")
            )
        except httpx2.RequestError as error:
            failure = TransientError(self._judge.scrub(f"{self._judge.name}: {type(error).__name__}: {error}"))
        except (ValueError, KeyError) as error:
            # Bodies that are not what the library expects, and uploads that were cut off (KeyError 'file').
            failure = TransientError(self._judge.scrub(f"{self._judge.name}: the answer cannot be read: {error}"))
        raise failure


def _output(body: dict[str, Any]) -> dict[str, Any]:
    """Where the results are: `metadata.output`, or `response` of the finished operation."""
    for place in (_typed(body.get("metadata"), dict).get("output"), body.get("response")):
        if isinstance(place, dict) and (place.get("responsesFile") or place.get("inlinedResponses")):
            return place
    return {}


def _typed(value: Any, kind: type) -> Any:
    return value if isinstance(value, kind) else kind()


def _count(value: Any) -> int | None:
    """A count; 64-bit numbers travel as text in Google's JSON."""
    text = str(value)
    return int(text) if text.isascii() and text.isdigit() and len(text) < 19 else None
