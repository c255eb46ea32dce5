"""OpenAI's `chat/completions` as an imitation: checks of a request, and every way of answering.

`kind="openai"` is the service itself; `kind="compatible"` a local server that wants no key and takes any model.
"""

from __future__ import annotations

import json
import re
from typing import Any

from servers.checks import Rejected, Seen, as_json, decode_picture, only
from servers.http_server import Request, Response

_TOP = [
    "model",
    "messages",
    "response_format",
    "temperature",
    "top_p",
    "n",
    "stream",
    "stop",
    "max_tokens",
    "max_completion_tokens",
    "presence_penalty",
    "frequency_penalty",
    "logit_bias",
    "logprobs",
    "top_logprobs",
    "user",
    "seed",
    "tools",
    "tool_choice",
    "parallel_tool_calls",
    "reasoning_effort",
    "service_tier",
    "store",
    "metadata",
    "modalities",
    "prediction",
    "safety_identifier",
    "prompt_cache_key",
    "verbosity",
]
_SCHEMA = [
    "$defs",
    "$ref",
    "type",
    "format",
    "title",
    "description",
    "enum",
    "const",
    "pattern",
    "items",
    "minItems",
    "maxItems",
    "minimum",
    "maximum",
    "exclusiveMinimum",
    "exclusiveMaximum",
    "multipleOf",
    "anyOf",
    "properties",
    "additionalProperties",
    "required",
]
_REASONING = re.compile(r"\A(o\d|gpt-5|gpt-6)")
_DATA_URL = re.compile(r"\Adata:(?P<mime>[\w/+.-]+);base64,(?P<data>.*)\Z", re.DOTALL)
_NAME = re.compile(r"\A[a-zA-Z0-9_-]{1,64}\Z")


def read(request: Request, key: str | None) -> Seen:
    """Check a request as strictly as the service."""
    if request.method != "POST" or request.path != "/v1/chat/completions":
        raise Rejected(404, f"Invalid URL ({request.method} {request.path})", "invalid_url")
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    if key is not None:
        if scheme != "Bearer" or not given:
            raise Rejected(401, "You didn't provide an API key.", "missing_api_key")
        if given != key:
            raise Rejected(401, f"Incorrect API key provided: {given}.", "invalid_api_key")
    if not request.headers.get("content-type", "").startswith("application/json"):
        raise Rejected(400, "Invalid content type")
    body = only("", as_json(request.body), _TOP)
    model = body.get("model")
    if not isinstance(model, str) or not model:
        raise Rejected(400, "you must provide a model parameter", "missing_required_parameter")
    system, text, pictures = _messages(body.get("messages"))
    schema = _format(body.get("response_format"))
    if key is not None:
        _settings(body, model)
    settings = {k: v for k, v in body.items() if k not in ("model", "messages", "response_format")}
    headers = {name: value for name, value in request.headers.items() if name != "authorization"}
    return Seen(
        model, request.path, system, text, pictures, schema, settings, "authorization" if given else "", headers,
        len(request.body), request.body,
    )  # fmt: skip


def _messages(messages: Any) -> tuple[str, list[str], list[bytes]]:
    if not isinstance(messages, list) or not messages:
        raise Rejected(400, "'messages' must not be empty")
    system, text, pictures = [], [], []
    for message in messages:
        only("messages[0]", message, ("role", "content", "name"))
        role, content = message.get("role"), message.get("content")
        if role not in ("system", "developer", "user", "assistant"):
            raise Rejected(400, f"Invalid value: '{role}' for 'messages[0].role'.")
        if isinstance(content, str):
            (system if role in ("system", "developer") else text).append(content)
            continue
        if not isinstance(content, list) or not content:
            raise Rejected(400, "Invalid type for 'messages[0].content'")
        for part in content:
            if part.get("type") == "text":
                only("content[0]", part, ("type", "text"))
                text.append(part["text"])
            elif part.get("type") == "image_url":
                only("content[0]", part, ("type", "image_url"))
                image = only("image_url", part.get("image_url"), ("url", "detail"))
                if image.get("detail", "auto") not in ("auto", "low", "high"):
                    raise Rejected(400, "Invalid value for 'detail'")
                match = _DATA_URL.match(str(image.get("url", "")))
                if match is None:
                    raise Rejected(400, "Invalid image URL: expected a base64 data URL", "invalid_image_url")
                pictures.append(decode_picture(match["data"], match["mime"]))
            else:
                raise Rejected(400, f"Invalid value: '{part.get('type')}'. Supported values are: 'text', 'image_url'.")
    return "".join(system), text, pictures


def _format(wanted: Any) -> dict[str, Any]:
    if wanted is None:
        return {}
    only("response_format", wanted, ("type", "json_schema"))
    if wanted.get("type") != "json_schema":
        raise Rejected(400, "Invalid value for 'response_format.type'")
    table = only("response_format.json_schema", wanted.get("json_schema"), ("name", "schema", "strict", "description"))
    if not _NAME.match(str(table.get("name", ""))):
        raise Rejected(400, "Invalid 'response_format.json_schema.name': string does not match pattern.")
    schema = table.get("schema")
    if table.get("strict") is True:
        if not isinstance(schema, dict) or schema.get("type") != "object":
            raise Rejected(400, "schema must be a JSON Schema of 'type: \"object\"'")
        _strict(schema, (), 0)
    checked: dict[str, Any] = schema
    return checked


def _strict(schema: Any, where: tuple[str, ...], depth: int) -> None:
    context = f"In context={where!r}, "
    if depth > 10:
        raise Rejected(400, context + "more than 10 levels of nesting")
    if not isinstance(schema, dict):
        raise Rejected(400, context + "schema must be an object", "invalid_json_schema")
    for keyword in schema:
        if keyword not in _SCHEMA:
            raise Rejected(400, f"{context}'{keyword}' is not permitted.", "invalid_json_schema")
    if schema.get("type") == "object":
        properties = schema.get("properties", {})
        if schema.get("additionalProperties") is not False:
            raise Rejected(400, context + "'additionalProperties' is required to be supplied and to be false.")
        if sorted(schema.get("required", [])) != sorted(properties):
            raise Rejected(400, context + "'required' is required to be supplied and to be an array including every key in properties.")  # fmt: skip
        for name, value in properties.items():
            _strict(value, (*where, "properties", name), depth + 1)
    if "items" in schema:
        _strict(schema["items"], (*where, "items"), depth + 1)
    for name, value in schema.get("$defs", {}).items():
        _strict(value, (*where, "$defs", name), depth)
    for value in schema.get("anyOf", []):
        _strict(value, (*where, "anyOf"), depth + 1)


def _settings(body: dict[str, Any], model: str) -> None:
    if _REASONING.match(model):
        for name in ("temperature", "top_p"):
            if body.get(name, 1) != 1:
                raise Rejected(400, f"Unsupported value: '{name}' does not support {body[name]} with this model.", "unsupported_value")  # fmt: skip
        if "max_tokens" in body:
            raise Rejected(400, "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.", "unsupported_parameter")  # fmt: skip
    elif "reasoning_effort" in body:
        raise Rejected(400, "Unrecognized request argument supplied: reasoning_effort", "unknown_parameter")
    if "max_tokens" in body and "max_completion_tokens" in body:
        raise Rejected(400, "Setting 'max_tokens' and 'max_completion_tokens' at the same time is not supported.")
    if not 0 <= body.get("temperature", 1) <= 2:
        raise Rejected(400, "Invalid 'temperature': decimal above maximum value.")


def error(status: int, message: str, code: str = "", details: list[dict[str, Any]] | None = None) -> Response:
    """The service's error body."""
    kind = "invalid_request_error" if status < 429 else "server_error" if status >= 500 else "requests"
    body = {"error": {"message": message, "type": kind, "param": None, "code": code or None}}
    return Response(status, json.dumps(body).encode(), {"x-request-id": "req_loopback"})


def good(seen: Seen, text: str | None, number: int, **changes: Any) -> dict[str, Any]:
    """A complete answer; `changes` replace parts of the message (`message=`), the choice, or the envelope (`envelope=`)."""
    message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None, "annotations": []}
    message.update(changes.pop("message", {}))
    choice: dict[str, Any] = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
    envelope = {
        "id": f"chatcmpl-{number}",
        "object": "chat.completion",
        "created": 1_790_000_000,
        "model": seen.model,
        "choices": [choice],
        "usage": {
            "prompt_tokens": 300 + 765 * len(seen.pictures),
            "completion_tokens": 57,
            "total_tokens": 357 + 765 * len(seen.pictures),
            "prompt_tokens_details": {"cached_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": 17},
        },
    }
    envelope.update(changes.pop("envelope", {}))
    choice.update(changes)
    return envelope


def behave(kind: str, argument: str, seen: Seen, text: str, number: int) -> dict[str, Any] | Response | None:
    """The behaviours that only this service has; None where `kind` is not one of them."""
    if kind == "refusal":
        return good(seen, None, number, message={"refusal": argument or "I'm sorry, I can't help with that."})
    if kind == "refusal_part":
        return good(seen, None, number, message={"content": [{"type": "refusal", "refusal": "No."}]})
    if kind == "finish":
        return good(seen, None, number, finish_reason=argument or "content_filter")
    if kind == "finish_text":
        return good(seen, text[: len(text) // 2], number, finish_reason=argument or "length")
    if kind == "parts":
        return good(seen, None, number, message={"content": [{"type": "text", "text": text}]})
    if kind == "no_candidate":
        return good(seen, "", number, envelope={"choices": []})
    if kind == "no_text":
        return good(seen, "", number)
    if kind == "other_model":
        return good(seen, text, number, envelope={"model": argument})
    if kind == "error_in_200":
        status = int(argument or 502)
        return {"error": {"code": status, "message": "Provider returned error"}, "user_id": "u"}
    if kind == "code":
        return error(400, f"refused with {argument}", argument)
    if kind == "no_quota":
        return error(429, "You exceeded your current quota.", "insufficient_quota")
    if kind == "bad_picture":
        return error(400, "You uploaded an unsupported image.", "invalid_image_format")
    return None
