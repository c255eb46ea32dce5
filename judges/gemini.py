"""Gemini through google-genai's `generate_content`, one request per question.

The raw HTTP body is asked for and read here: the service's own words for how a reply ended survive (new ones too), an
empty body can be told from an empty reply, and nothing that the client library infers enters the record.
"""

from __future__ import annotations

import json
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from isr.errors import JudgeStoppedError, TransientError, UsageError
from isr.protocols import Ask, BatchClient, Question, Reply
from isr.schema import NoVerdict, NoVerdictReason, Usage

from .failures import google_details, http_failure, retry_after
from .schemas import for_gemini
from .service import NO_KEY, ServiceJudge

if TYPE_CHECKING:
    import httpx2

__all__ = ["GeminiJudge", "read_body"]

_LEVELS = ("minimal", "low", "medium", "high", "xhigh")

#: How a candidate ended → why there is no verdict. "STOP" is the one that ends well.
_FINISH: dict[str, NoVerdictReason] = {
    "MAX_TOKENS": "truncated",
    "CONTINUATION": "truncated",
    "SAFETY": "blocked",
    "BLOCKLIST": "blocked",
    "PROHIBITED_CONTENT": "blocked",
    "SPII": "blocked",
    "LANGUAGE": "blocked",
    "OTHER": "blocked",
    "IMAGE_SAFETY": "blocked",
    "IMAGE_PROHIBITED_CONTENT": "blocked",
    "MODEL_ARMOR": "blocked",
    "RECITATION": "recitation",
    "IMAGE_RECITATION": "recitation",
    "ESCALATION": "refused",
    "PUP_LIMITED_DISABLED": "refused",
    "MALFORMED_FUNCTION_CALL": "unparseable",
    "MALFORMED_RESPONSE": "unparseable",
    "MISSING_THOUGHT_SIGNATURE": "unparseable",
    "UNEXPECTED_TOOL_CALL": "unparseable",
    "TOO_MANY_TOOL_CALLS": "unparseable",
    "NO_IMAGE": "empty",
    "IMAGE_OTHER": "empty",
}
_WELL = ("STOP", "FINISH_REASON_UNSPECIFIED", None)
#: Words of the 400 that is about one picture, not about the request.
_BAD_PICTURE = ("unable to process input image", "provided image is not valid")


class GeminiJudge(ServiceJudge):
    """A Gemini model of Google's Gemini API (or of a gateway that speaks it).

    Args:
        model: for example "gemini-3.8-flash". The other arguments of `ServiceJudge` hold too.
        thinking_level: "minimal", "low", "medium", "high" (Gemini 3). thinking_budget: tokens (Gemini 2.5).
        api_version: part of the path; pinned, because the client's default changes between versions.
        batch_form: how batches travel, as a "file" (every reply carries its key) or "inline" (up to 20 MB; the service
            was seen to lose keys there, and such replies are not used). Not part of the measurement.
    """

    provider: ClassVar[str] = "gemini"
    default_url: ClassVar[str] = "https://generativelanguage.googleapis.com"
    key_variables: ClassVar[tuple[str, ...]] = ("GEMINI_API_KEY", "GOOGLE_API_KEY")
    #: The documented limit for a request with inline pictures (20 MB).
    inline_limit: ClassVar[int] = 20_000_000

    def __init__(
        self,
        model: str,
        *,
        thinking_level: str | None = None,
        thinking_budget: int | None = None,
        api_version: str = "v1",
        batch_form: Literal["file", "inline"] = "file",
        **options: Any,
    ) -> None:
        super().__init__(model, **options)
        if batch_form not in ("file", "inline"):
            raise UsageError(f"batch_form: expected 'file' or 'inline', got {batch_form!r}")
        self.batch_form = batch_form
        if thinking_level is not None and thinking_level not in _LEVELS:
            raise UsageError(f"thinking_level: expected one of {', '.join(_LEVELS)}, got {thinking_level!r}")
        if thinking_level is not None and thinking_budget is not None:
            raise UsageError("thinking_level and thinking_budget: the service takes one of them, not both")
        self.api_version = api_version
        self._set("thinking_level", thinking_level)
        self._set("thinking_budget", thinking_budget)

    def identity(self) -> Mapping[str, Any]:
        return {**super().identity(), "api_version": self.api_version}

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[Ask]:
        async with self.open() as (client, _):

            async def ask(question: Question) -> Reply:
                return await self._ask(client, question)

            yield ask

    def connect_batch(self) -> AbstractAsyncContextManager[BatchClient]:
        """The same model through the Batch API."""
        from .gemini_batch import connect_batch

        return connect_batch(self)

    @asynccontextmanager
    async def open(self) -> AsyncIterator[tuple[Any, httpx2.AsyncClient]]:
        """The client library, and the HTTP client under it, for the transports of this room."""
        import httpx2
        from google import genai
        from google.genai import types

        key = self._find_key()
        # The library also wants a synchronous client and a TLS context for web sockets, which are never used; its own
        # would load every certificate twice more (0.1 s each).
        with httpx2.Client(verify=self._verify()) as unused:
            async with self._http_client() as http:
                client = genai.Client(
                    vertexai=False,
                    api_key=key.reveal() if key else NO_KEY,
                    http_options=types.HttpOptions(
                        base_url=self.endpoint.url,
                        api_version=self.api_version,
                        timeout=int(self.timeout * 1000),
                        retry_options=types.HttpRetryOptions(attempts=1),
                        httpx_client=unused,
                        async_client_args={"ssl": ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)},
                        httpx_async_client=http,
                    ),
                )
                yield client, http

    def config(self, question: Question) -> dict[str, Any]:
        sent = self.settings
        config: dict[str, Any] = {
            "system_instruction": question.instructions,
            "response_mime_type": "application/json",
            "response_json_schema": for_gemini(question.schema),
            "automatic_function_calling": {"disable": True},
            "automatic_continuation": False,
            "should_return_http_response": True,
        }
        for setting in ("temperature", "top_p", "max_output_tokens"):
            if setting in sent:
                config[setting] = sent[setting]
        seed = self._wire_seed(question.vote)
        if seed is not None:
            config["seed"] = seed
        if "thinking_level" in sent:
            config["thinking_config"] = {"thinking_level": sent["thinking_level"].upper()}
        elif "thinking_budget" in sent:
            config["thinking_config"] = {"thinking_budget": sent["thinking_budget"]}
        return config

    async def _ask(self, client: Any, question: Question) -> Reply:
        import httpx2
        from google.genai import errors, types

        parts = [types.Part.from_text(text=question.data)]
        parts += [types.Part.from_bytes(data=p.png, mime_type="image/png") for p in question.pictures]
        failure: Exception | Reply
        try:
            response = await client.aio.models.generate_content(
                model=self.model,
                contents=[types.Content(role="user", parts=parts)],
                config=types.GenerateContentConfig(**self.config(question)),
            )
        # Raised below, outside the handler: the client's own message may hold what ours must not.
        except errors.APIError as error:
            failure = self.refused(error)
        except httpx2.RequestError as error:
            failure = TransientError(self.scrub(f"{self.name}: {type(error).__name__}: {error}"))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            failure = TransientError(self.scrub(f"{self.name}: the answer is not JSON: {error}"))
        else:
            return self.read(response.sdk_http_response.body or "")
        if isinstance(failure, Reply):
            return failure
        raise failure

    def read(self, body: str) -> Reply:
        reply = read_body(self.clean(body), self.name, self.scrub)
        substituted = self._check_served(reply.served_model)
        if substituted is None:
            return reply
        return Reply(
            text=reply.text,
            answer=substituted,
            finish=reply.finish,
            served_model=reply.served_model,
            response_id=reply.response_id,
            usage=reply.usage,
        )

    def refused(self, error: Any) -> TransientError | JudgeStoppedError | Reply:
        """The meaning of an HTTP status other than 200."""
        status = int(error.code or 0)
        body = error.details
        message = self.scrub(f"{error.status or ''} {error.message or ''}")
        if status == 400 and any(words in message.lower() for words in _BAD_PICTURE):
            return Reply(answer=NoVerdict(reason="bad_image", detail=message), finish="HTTP 400")
        advice = ""
        if any(entry.get("reason") == "API_KEY_INVALID" for entry in google_details(body)):
            advice = f"The key was refused; check {' or '.join(self._key_names())}"
        elif status in (401, 403):
            advice = f"The key may not use this model; check {' or '.join(self._key_names())} and its project"
        headers = error.response.headers if error.response is not None else {}
        return http_failure(
            self.name,
            status,
            message,
            wait=retry_after(headers, body),
            hopeless=_spent(body) if status == 429 else "",
            advice=advice,
        )

    def _key_names(self) -> tuple[str, ...]:
        if self._given_key is not None:
            return ("the api_key argument",)
        return (self.endpoint.key_env,) if self.endpoint.key_env else self.key_variables


def _spent(body: Any) -> str:
    """Why waiting does not help against this 429, or "": a daily quota is spent, or there never was one."""
    for entry in google_details(body):
        for violation in entry.get("violations") or ():
            if not isinstance(violation, dict):
                continue
            if "PerDay" in str(violation.get("quotaId", "")):
                return "The quota of the day is spent; resume the run tomorrow, or raise the quota"
            if str(violation.get("quotaValue", "")) == "0":
                return "The account has no quota for this model (retired models answer like this too)"
    return ""


def read_body(body: str, judge: str = "gemini", scrubbed: Any = str) -> Reply:
    """The reply in the body of a 200 answer of `generateContent`.

    Args:
        body: as received. judge: name for messages. scrubbed: takes secrets out of the service's words.

    Raises:
        TransientError: the body is empty, cut off, or no `generateContent` answer at all.
    """
    if not body.strip():
        raise TransientError(f"{judge}: HTTP 200 with an empty body", status=200)
    try:
        envelope = json.loads(body)
    except (json.JSONDecodeError, RecursionError):
        envelope = None
    if not isinstance(envelope, dict):
        raise TransientError(
            f"{judge}: HTTP 200, but the body is not a JSON object (cut off, or not the API)", status=200
        )
    feedback, candidates, usage = (
        _typed(envelope.get(key), kind)
        for key, kind in (("promptFeedback", dict), ("candidates", list), ("usageMetadata", dict))
    )
    known: dict[str, Any] = {
        "served_model": _text(envelope.get("modelVersion")),
        "response_id": _text(envelope.get("responseId")),
        "usage": _usage(usage),
    }
    block = _text(feedback.get("blockReason"))
    if block is not None:
        said = _text(feedback.get("blockReasonMessage")) or ""
        detail = scrubbed(f"the service blocked the request ({block}) {said}")
        return Reply(answer=NoVerdict(reason="blocked", detail=detail.strip()), finish=block, **known)
    if not candidates and not (feedback or usage or known["served_model"] or known["response_id"]):
        raise TransientError(f"{judge}: HTTP 200, but the body is not an answer of the API", status=200)
    first = _typed(candidates[0], dict) if candidates else {}
    finish = _text(first.get("finishReason"))
    parts = _typed(_typed(first.get("content"), dict).get("parts"), list)
    text = "".join(p["text"] for p in parts if isinstance(p, dict) and not p.get("thought") and _text(p.get("text")))
    kept = text or None
    if finish not in _WELL:
        reason = _FINISH.get(finish, "blocked")
        new = "" if finish in _FINISH else ", a word this version does not know"
        said = _text(first.get("finishMessage")) or ""
        detail = scrubbed(f"the reply ended with {finish}{new} {said}").strip()
        return Reply(text=kept, answer=NoVerdict(reason=reason, detail=detail), finish=finish, **known)
    if not text.strip():
        detail = "a candidate without text" if candidates else "no candidate and no reason"
        return Reply(answer=NoVerdict(reason="empty", detail=detail), finish=finish, **known)
    return Reply(text=text, finish=finish, **known)


def _typed(value: Any, kind: type) -> Any:
    """`value` where it is of this kind, else an empty one."""
    return value if isinstance(value, kind) else kind()


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _usage(raw: dict[str, Any]) -> Usage:
    def count(value: Any) -> int | None:
        return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None

    details = [d for d in _typed(raw.get("promptTokensDetails"), list) if isinstance(d, dict)]
    images = [n for d in details if d.get("modality") == "IMAGE" and (n := count(d.get("tokenCount"))) is not None]
    return Usage(
        input_tokens=count(raw.get("promptTokenCount")),
        output_tokens=count(raw.get("candidatesTokenCount")),
        thinking_tokens=count(raw.get("thoughtsTokenCount")),
        cached_tokens=count(raw.get("cachedContentTokenCount")),
        image_tokens=sum(images) if images else None,
    )
