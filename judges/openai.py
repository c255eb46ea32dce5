"""OpenAI and every server that speaks its chat completions (vLLM, Ollama, LM Studio, OpenRouter), one request per question.

The raw HTTP body is asked for and read here: HTML with status 200, an error inside a 200 and new finish reasons are
then ordinary cases, and the tokens of an unreadable reply are not lost.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, ClassVar

from isr.errors import JudgeStoppedError, TransientError, UsageError
from isr.protocols import Ask, BatchClient, Question, Reply
from isr.schema import NoVerdict, NoVerdictReason, Usage

from .failures import http_failure, retry_after
from .schemas import for_openai
from .service import NO_KEY, ServiceJudge

__all__ = ["OpenAIJudge", "read_body"]

_EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")
#: How a choice ended → why there is no verdict. "stop" is the one that ends well.
_FINISH: dict[str, NoVerdictReason] = {
    "length": "truncated",
    "content_filter": "blocked",
    "tool_calls": "unparseable",
    "function_call": "unparseable",
}
_WELL = ("stop", None)
#: Error codes (of 400 and 403 answers) that are about this one question, not about the request.
_ABOUT_THE_CASE: dict[str, NoVerdictReason] = {
    "content_policy_violation": "blocked",
    "content_filter": "blocked",
    "moderation_blocked": "blocked",
    "invalid_image": "bad_image",
    "invalid_image_format": "bad_image",
    "image_parse_error": "bad_image",
    "image_content_policy_violation": "blocked",
}
_SPENT = {"insufficient_quota", "billing_hard_limit_reached", "billing_not_active"}


class OpenAIJudge(ServiceJudge):
    """A model behind `chat.completions`.

    Args:
        model: as the server names it. The other arguments of `ServiceJudge` hold too; `base_url` is the part before
            "/chat/completions".
        reasoning_effort: "none" … "max", for models that think.
        detail: resolution of the pictures, "high", "low" or "auto".
    """

    provider: ClassVar[str] = "openai"
    default_url: ClassVar[str] = "https://api.openai.com/v1"
    key_variables: ClassVar[tuple[str, ...]] = ("OPENAI_API_KEY",)
    #: The documented limit for the payload of one request was 50 MB and has been raised since; the lower one is kept.
    inline_limit: ClassVar[int] = 50_000_000

    def __init__(
        self, model: str, *, reasoning_effort: str | None = None, detail: str = "high", **options: Any
    ) -> None:
        super().__init__(model, **options)
        if reasoning_effort is not None and reasoning_effort not in _EFFORTS:
            raise UsageError(f"reasoning_effort: expected one of {', '.join(_EFFORTS)}, got {reasoning_effort!r}")
        if detail not in ("high", "low", "auto"):
            raise UsageError(f"detail: expected 'high', 'low' or 'auto', got {detail!r}")
        self.detail = detail
        self._set("reasoning_effort", reasoning_effort)

    def identity(self) -> Mapping[str, Any]:
        return {**super().identity(), "detail": self.detail}

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[Ask]:
        async with self.open() as client:

            async def ask(question: Question) -> Reply:
                return await self._ask(client, question)

            yield ask

    def connect_batch(self) -> AbstractAsyncContextManager[BatchClient]:
        """The same model through the Batch API."""
        from .openai_batch import connect_batch

        return connect_batch(self)

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Any]:
        """The client library, for the transports of this room."""
        import openai

        key = self._find_key()
        async with self._http_client() as http:
            yield openai.AsyncOpenAI(
                api_key=key.reveal() if key else NO_KEY,
                base_url=self.endpoint.url,
                max_retries=0,
                timeout=self.timeout,
                http_client=http,
            )

    def request(self, question: Question) -> dict[str, Any]:
        """The body of the request, but for what the client adds."""
        content: list[dict[str, Any]] = [{"type": "text", "text": question.data}]
        for picture in question.pictures:
            url = "data:image/png;base64," + base64.b64encode(picture.png).decode("ascii")
            content.append({"type": "image_url", "image_url": {"url": url, "detail": self.detail}})
        sent = self.settings
        request: dict[str, Any] = {
            "model": self.model,
            "messages": [
                {"role": "system", "content": question.instructions},
                {"role": "user", "content": content},
            ],
            "response_format": {
                "type": "json_schema",
                "json_schema": {
                    "name": re.sub(r"[^A-Za-z0-9_-]", "_", question.schema_name)[:64] or "reply",
                    "schema": for_openai(question.schema),
                    "strict": True,
                },
            },
        }
        for setting in ("temperature", "top_p", "reasoning_effort"):
            if setting in sent:
                request[setting] = sent[setting]
        if "max_output_tokens" in sent:
            # Servers given by URL know the older word; the service itself and its reasoning models want the newer one.
            older = self.by_url and "temperature" in self.accepts
            request["max_tokens" if older else "max_completion_tokens"] = sent["max_output_tokens"]
        seed = self._wire_seed(question.vote)
        if seed is not None:
            request["seed"] = seed
        return request

    async def _ask(self, client: Any, question: Question) -> Reply:
        import httpx2
        import openai

        failure: Exception | Reply
        try:
            raw = await client.chat.completions.with_raw_response.create(**self.request(question))
            body = raw.text
        # Raised below, outside the handler: the client's own message may hold what ours must not.
        except (openai.APIError, httpx2.RequestError, json.JSONDecodeError, UnicodeDecodeError) as error:
            failure = self.failure(error)
        else:
            return self.read(body, raw.headers)
        if isinstance(failure, Reply):
            return failure
        raise failure

    def failure(self, error: Exception) -> TransientError | JudgeStoppedError | Reply:
        """The meaning of an exception of the client library."""
        import openai

        if isinstance(error, openai.APIStatusError):
            return self.refused(error.status_code, error.body, error.response.headers)
        if isinstance(error, openai.APITimeoutError):
            return TransientError(f"{self.name}: no answer within {self.timeout:g} s")
        if isinstance(error, json.JSONDecodeError | UnicodeDecodeError):
            return TransientError(self.scrub(f"{self.name}: the answer is not JSON: {error}"))
        cause = error.__cause__ or error
        return TransientError(self.scrub(f"{self.name}: {type(cause).__name__}: {cause} (is {self.endpoint.host} up?)"))

    def read(self, body: str, headers: Mapping[str, str]) -> Reply:
        envelope = _envelope(self.clean(body), self.name)
        if isinstance(envelope.get("error"), dict) and not envelope.get("choices"):
            # Routers answer 200 and put the status of the model's own server into the body.
            code = envelope["error"].get("code")
            status = code if isinstance(code, int) and 400 <= code < 600 else 502
            failure = self.refused(status, envelope["error"], {})
            if isinstance(failure, Reply):
                return failure
            raise failure
        reply = read_envelope(
            envelope, self.name, self.scrub, request_id=self.clean(headers.get("x-request-id") or "") or None
        )
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

    def refused(self, status: int, body: Any, headers: Mapping[str, str]) -> TransientError | JudgeStoppedError | Reply:
        """The meaning of an HTTP status other than 200. `body` is what stood under "error", or the whole body."""
        error = body.get("error", body) if isinstance(body, dict) else {}
        error = error if isinstance(error, dict) else {"message": error}
        code = str(error.get("code") or error.get("type") or "")
        message = self.scrub(error.get("message") or (body if isinstance(body, str) else "") or code)
        if status in (400, 403) and code in _ABOUT_THE_CASE:
            return Reply(answer=NoVerdict(reason=_ABOUT_THE_CASE[code], detail=message), finish=code)
        metadata = error.get("metadata")
        if status == 403 and isinstance(metadata, dict) and "flagged_input" in metadata:  # OpenRouter's moderation
            return Reply(answer=NoVerdict(reason="blocked", detail=message), finish="moderation")
        advice = ""
        if status in (401, 403):
            where = "the api_key argument" if self._given_key else self.endpoint.key_env or self.key_variables[0]
            advice = (
                f"The server wants a key; name the variable that holds it: openai:{self.model}@{self.endpoint.url}?key_env=NAME"
                if self._key is None
                else f"The key was refused; check {where}"
            )
        return http_failure(
            self.name,
            status,
            message,
            wait=retry_after(headers),
            hopeless="The account has no credit or quota left; resume the run when it has" if code in _SPENT else "",
            advice=advice,
        )


def _envelope(body: str, judge: str) -> dict[str, Any]:
    if not body.strip():
        raise TransientError(f"{judge}: HTTP 200 with an empty body", status=200)
    try:
        envelope = json.loads(body)
    except (json.JSONDecodeError, RecursionError):
        envelope = None
    if not isinstance(envelope, dict):
        raise TransientError(
            f"{judge}: HTTP 200, but the body is not a JSON object (cut off, or a web page: does the URL end in /v1?)",
            status=200,
        )
    return envelope


def read_body(body: str, judge: str = "openai", scrubbed: Any = str) -> Reply:
    """The reply in the body of a 200 answer of `chat/completions`.

    Raises:
        TransientError: the body is empty, cut off, or no such answer at all.
    """
    return read_envelope(_envelope(body, judge), judge, scrubbed)


def read_envelope(
    envelope: Mapping[str, Any], judge: str, scrubbed: Any = str, *, request_id: str | None = None
) -> Reply:
    """As `read_body`, from the decoded object."""
    choices = envelope.get("choices")
    if not isinstance(choices, list):
        raise TransientError(f"{judge}: HTTP 200, but the body is not an answer of chat/completions", status=200)
    known: dict[str, Any] = {
        "served_model": _text(envelope.get("model")),
        "response_id": _text(envelope.get("id")) or request_id,
        "usage": _usage(envelope.get("usage")),
    }
    first = choices[0] if choices and isinstance(choices[0], dict) else {}
    raw_message = first.get("message")
    message = raw_message if isinstance(raw_message, dict) else {}
    finish = _text(first.get("finish_reason"))
    text = _content(message.get("content"))
    refusal = _text(message.get("refusal")) or _refusal_part(message.get("content"))
    if finish == "error" or (isinstance(first.get("error"), dict) and not text):
        raise TransientError(scrubbed(f"{judge}: the model's server failed while it was answering"), status=200)
    if finish not in _WELL:
        reason = _FINISH.get(finish, "blocked")
        new = "" if finish in _FINISH else ", a word this version does not know"
        detail = scrubbed(f"the reply ended with {finish}{new}")
        return Reply(text=text or refusal, answer=NoVerdict(reason=reason, detail=detail), finish=finish, **known)
    if refusal:
        detail = scrubbed(f"the model refused: {refusal}")
        return Reply(text=refusal, answer=NoVerdict(reason="refused", detail=detail), finish=finish, **known)
    if text is None or not text.strip():
        detail = "a message without text" if choices else "no choice and no reason"
        return Reply(answer=NoVerdict(reason="empty", detail=detail), finish=finish, **known)
    return Reply(text=text, finish=finish, **known)


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _content(content: Any) -> str | None:
    """The text of a message: a string, or (some servers) a list of parts."""
    if isinstance(content, list):
        return "".join(p["text"] for p in content if isinstance(p, dict) and _text(p.get("text"))) or None
    return _text(content)


def _refusal_part(content: Any) -> str | None:
    parts = content if isinstance(content, list) else []
    return next((r for p in parts if isinstance(p, dict) and (r := _text(p.get("refusal")))), None)


def _usage(raw: Any) -> Usage:
    raw = raw if isinstance(raw, dict) else {}

    def count(section: str | None, key: str) -> int | None:
        table = raw if section is None else raw.get(section)
        value = table.get(key) if isinstance(table, dict) else None
        return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None

    written, thought = count(None, "completion_tokens"), count("completion_tokens_details", "reasoning_tokens")
    return Usage(
        input_tokens=count(None, "prompt_tokens"),
        # The service counts thinking inside the completion; the two are kept apart, as for Gemini.
        output_tokens=written - thought
        if written is not None and thought is not None and thought <= written
        else written,
        thinking_tokens=thought,
        cached_tokens=count("prompt_tokens_details", "cached_tokens"),
        image_tokens=count("prompt_tokens_details", "image_tokens"),
    )
