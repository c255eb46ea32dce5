"""Gemini's `generateContent` as an imitation: checks of a request, and every way of answering."""

from __future__ import annotations

import json
import re
from typing import Any

from servers.checks import Rejected, Seen, as_json, decode_picture, only
from servers.http_server import Request, Response

_PATH = re.compile(r"\A/(?P<version>v1|v1beta)/models/(?P<model>[^/]+):generateContent\Z")
_LIMIT = 20 * 1024 * 1024
_TOP = ["contents", "systemInstruction", "system_instruction", "generationConfig", "generation_config", "safetySettings", "tools", "toolConfig", "cachedContent", "labels", "serviceTier", "store"]  # fmt: skip
_CONFIG = [
    "temperature",
    "topP",
    "topK",
    "candidateCount",
    "maxOutputTokens",
    "stopSequences",
    "responseMimeType",
    "responseSchema",
    "responseJsonSchema",
    "presencePenalty",
    "frequencyPenalty",
    "seed",
    "responseLogprobs",
    "logprobs",
    "responseModalities",
    "mediaResolution",
    "thinkingConfig",
]
_SCHEMA = [
    "$id",
    "$defs",
    "$ref",
    "$anchor",
    "type",
    "format",
    "title",
    "description",
    "enum",
    "items",
    "prefixItems",
    "minItems",
    "maxItems",
    "minimum",
    "maximum",
    "anyOf",
    "oneOf",
    "properties",
    "additionalProperties",
    "required",
    "propertyOrdering",
]
_TYPES = ("string", "number", "integer", "boolean", "object", "array", "null")


def read(request: Request, key: str | None) -> Seen:
    """Check a request as strictly as the service (and more strictly where it ignores what it does not know)."""
    match = _PATH.match(request.path)
    if request.method != "POST" or match is None:
        raise Rejected(404, "Requested entity was not found.", "NOT_FOUND")
    if request.query.get("key"):
        raise Rejected(400, "a key in the URL ends up in logs")
    given = request.headers.get("x-goog-api-key")
    if key is not None:
        if not given:
            raise Rejected(403, "Method doesn't allow unregistered callers.", "PERMISSION_DENIED")
        if given != key:
            raise Rejected(400, "API key not valid. Please pass a valid API key.", "API_KEY_INVALID")
    if not request.headers.get("content-type", "").startswith("application/json"):
        raise Rejected(400, "Invalid content type")
    if len(request.body) > _LIMIT:
        raise Rejected(400, f"Request payload size exceeds the limit: {_LIMIT} bytes.")
    body = only("", as_json(request.body), _TOP, gemini=True)
    model = match["model"]
    text, pictures = _contents(body.get("contents"))
    config = only("generation_config", body.get("generationConfig", {}), _CONFIG, gemini=True)
    schema = _config(config, model)
    system = only("system_instruction", body.get("systemInstruction", {"parts": []}), ("parts", "role"), gemini=True)
    told = "".join(only("part", p, ("text",), gemini=True)["text"] for p in system.get("parts", []))
    settings = {name: value for name, value in config.items() if name != "responseJsonSchema"}
    headers = {name: value for name, value in request.headers.items() if name != "x-goog-api-key"}
    return Seen(
        model, request.path, told, text, pictures, schema, settings, "x-goog-api-key" if given else "", headers,
        len(request.body), request.body,
    )  # fmt: skip


def _contents(contents: Any) -> tuple[list[str], list[bytes]]:
    if not isinstance(contents, list) or not contents:
        raise Rejected(400, "* GenerateContentRequest.contents: contents is not specified")
    text, pictures = [], []
    for content in contents:
        only("contents[0]", content, ("role", "parts"), gemini=True)
        if content.get("role") not in ("user", "model"):
            raise Rejected(400, "Please use a valid role: user, model.")
        if not isinstance(content.get("parts"), list) or not content["parts"]:
            raise Rejected(400, "* contents.parts must not be empty.")
        for part in content["parts"]:
            only("contents[0].parts[0]", part, ("text", "inlineData", "inline_data"), gemini=True)
            if len(part) != 1:
                raise Rejected(400, "required oneof field 'data' must have one initialized field")
            if "text" in part:
                if not isinstance(part["text"], str):
                    raise Rejected(400, "Invalid value at 'text' (TYPE_STRING)")
                text.append(part["text"])
            else:
                blob = only("inline_data", next(iter(part.values())), ("data", "mimeType", "mime_type"), gemini=True)
                pictures.append(
                    decode_picture(blob.get("data"), blob.get("mimeType", blob.get("mime_type")), url_safe=True)
                )
    return text, pictures


def _config(config: dict[str, Any], model: str) -> dict[str, Any]:
    temperature = config.get("temperature")
    if temperature is not None and not 0 <= temperature <= 2:
        raise Rejected(400, "temperature must be in the range [0.0, 2.0]")
    if config.get("responseMimeType") not in (None, "text/plain", "application/json", "text/x.enum"):
        raise Rejected(400, "response_mime_type: allowed mimetypes are text/plain, application/json, …")
    if "seed" in config and not isinstance(config["seed"], int):
        raise Rejected(400, "Invalid value at 'generation_config.seed' (TYPE_INT32)")
    thinking = only(
        "thinking_config", config.get("thinkingConfig", {}),
        ("thinkingBudget", "thinkingLevel", "includeThoughts", "thinking_budget", "thinking_level"), gemini=True,
    )  # fmt: skip
    level = thinking.get("thinkingLevel", thinking.get("thinking_level"))
    budget = thinking.get("thinkingBudget", thinking.get("thinking_budget"))
    if level is not None and budget is not None:
        raise Rejected(400, "thinking_budget and thinking_level are not supported together.")
    if level is not None and model.startswith("gemini-2"):
        raise Rejected(400, "Thinking level is not supported for this model.")
    if level is not None and level not in ("MINIMAL", "LOW", "MEDIUM", "HIGH"):
        raise Rejected(400, "Invalid value at 'thinking_level'")
    if "responseSchema" in config and "responseJsonSchema" in config:
        raise Rejected(400, "only one of response_schema and response_json_schema may be set")
    schema = config.get("responseJsonSchema")
    if schema is None:
        return {}
    if config.get("responseMimeType") != "application/json":
        raise Rejected(400, "response_json_schema needs response_mime_type application/json")
    _schema(schema, "generation_config.response_json_schema")
    checked: dict[str, Any] = schema
    return checked


def _schema(schema: Any, where: str) -> None:
    if isinstance(schema, bool):
        return
    only(where, schema, _SCHEMA, gemini=True)
    if "$ref" in schema and any(not key.startswith("$") for key in schema):
        raise Rejected(400, f"{where}: no other properties may be set beside $ref")
    kinds = schema.get("type", [])
    for kind in [kinds] if isinstance(kinds, str) else kinds:
        if kind not in _TYPES:
            raise Rejected(400, f"Invalid value at '{where}.type': {kind}")
    properties = schema.get("properties", {})
    for name in schema.get("required", []):
        if name not in properties:
            raise Rejected(400, f"{where}.required: property is not defined: {name}")
    if set(schema.get("propertyOrdering", properties)) != set(properties):
        raise Rejected(400, f"{where}.property_ordering does not match properties")
    for table in ("properties", "$defs"):
        for name, value in schema.get(table, {}).items():
            _schema(value, f"{where}.{table}[{name}]")
    for name in ("anyOf", "oneOf", "prefixItems"):
        for value in schema.get(name, []):
            _schema(value, f"{where}.{name}")
    for name in ("items", "additionalProperties"):
        if name in schema:
            _schema(schema[name], f"{where}.{name}")


_STATUS = {400: "INVALID_ARGUMENT", 401: "UNAUTHENTICATED", 403: "PERMISSION_DENIED", 404: "NOT_FOUND", 429: "RESOURCE_EXHAUSTED", 500: "INTERNAL", 503: "UNAVAILABLE", 504: "DEADLINE_EXCEEDED"}  # fmt: skip


def error(status: int, message: str, code: str = "", details: list[dict[str, Any]] | None = None) -> Response:
    """The service's error body."""
    found = list(details or [])
    if code == "API_KEY_INVALID":
        found.append({"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": code, "domain": "googleapis.com"})
    body: dict[str, Any] = {"code": status, "message": message, "status": _STATUS.get(status, "UNKNOWN")}
    if found:
        body["details"] = found
    return Response(status, json.dumps({"error": body}).encode())


def good(seen: Seen, text: str, number: int, **changes: Any) -> dict[str, Any]:
    """A complete answer; `changes` replace parts of the candidate, of the envelope (`envelope=`), or the usage."""
    candidate: dict[str, Any] = {
        "content": {"role": "model", "parts": [{"text": text}]},
        "finishReason": "STOP",
        "index": 0,
    }
    envelope = {
        "candidates": [candidate],
        "usageMetadata": {
            "promptTokenCount": 258 * len(seen.pictures) + 300,
            "candidatesTokenCount": 40,
            "thoughtsTokenCount": 17,
            "totalTokenCount": 258 * len(seen.pictures) + 357,
            "promptTokensDetails": [
                {"modality": "TEXT", "tokenCount": 300},
                {"modality": "IMAGE", "tokenCount": 258 * len(seen.pictures)},
            ],
        },
        "modelVersion": seen.model,
        "responseId": f"gemini-{number}",
    }
    envelope.update(changes.pop("envelope", {}))
    candidate.update(changes)
    return envelope


def behave(kind: str, argument: str, seen: Seen, text: str, number: int) -> dict[str, Any] | Response | None:
    """The behaviours that only this service has; None where `kind` is not one of them."""
    if kind == "block":
        return good(
            seen, "", number, envelope={"candidates": None, "promptFeedback": {"blockReason": argument or "SAFETY"}}
        )
    if kind == "finish":
        return good(seen, "", number, finishReason=argument or "SAFETY", content=None)
    if kind == "finish_text":
        content = {"role": "model", "parts": [{"text": text[: len(text) // 2]}]}
        return good(seen, text, number, finishReason=argument or "MAX_TOKENS", content=content)
    if kind == "thoughts":
        parts = [{"text": "I think it failed.", "thought": True}, {"text": text[:10]}, {"text": text[10:]}]
        return good(seen, text, number, content={"role": "model", "parts": parts})
    if kind == "no_candidate":
        return good(seen, "", number, envelope={"candidates": []})
    if kind == "no_text":
        return good(seen, "", number, content={"role": "model"})
    if kind == "other_model":
        return good(seen, text, number, envelope={"modelVersion": argument})
    if kind == "retry_info":
        details = [{"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": f"{argument or '1.5'}s"}]
        return error(429, "You exceeded your current quota.", details=details)
    if kind == "daily_quota":
        violation = {"quotaId": "GenerateRequestsPerDayPerProjectPerModel", "quotaValue": "100"}
        details = [{"@type": "type.googleapis.com/google.rpc.QuotaFailure", "violations": [violation]}]
        return error(429, "You exceeded your current quota.", details=details)
    if kind == "no_quota":
        details = [{"@type": "type.googleapis.com/google.rpc.QuotaFailure", "violations": [{"quotaId": "PerMinute", "quotaValue": "0"}]}]  # fmt: skip
        return error(429, "You exceeded your current quota.", details=details)
    if kind == "bad_picture":
        return error(400, "Unable to process input image. Please retry or report in https://example.invalid")
    return None
