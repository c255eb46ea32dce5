"""Which model answered, as a table; what services ask to wait; what goes into a schema; where a URL may point."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st
from isr.judges.endpoint import is_loopback, parse_endpoint, split_model
from isr.judges.failures import http_failure, retry_after
from isr.judges.gemini import read_body as gemini_body
from isr.judges.models import accepted, presets, written
from isr.judges.openai import read_body as openai_body
from isr.judges.schemas import for_gemini, for_openai
from isr.judges.served import same_model
from judges_help import question

from isr.errors import JudgeStoppedError, TransientError, UsageError
from isr.schema import NoVerdict, Verdict

#: Keys that both services read, so that made-up bodies reach deep.
KEYS = ["candidates", "content", "parts", "text", "thought", "finishReason", "promptFeedback", "blockReason", "usageMetadata", "modelVersion", "choices", "message", "refusal", "finish_reason", "usage", "prompt_tokens", "completion_tokens_details", "error", "model", "id"]  # fmt: skip
SAME = [
    ("gpt-4o", "gpt-4o"),
    ("gpt-4o", "GPT-4o"),
    ("gpt-4o", None),
    ("gpt-4o", ""),
    ("gpt-4o", "gpt-4o-2024-08-06"),
    ("gpt-4", "gpt-4-0613"),
    ("gpt-4", "gpt-4-1106"),
    ("claude-x", "claude-x@20240620"),
    ("claude-x", "claude-x-20240620"),
    ("gemini-2.5-pro", "models/gemini-2.5-pro"),
    ("models/gemini-2.5-pro", "gemini-2.5-pro"),
    ("gemini-2.0-flash", "gemini-2.0-flash-001"),
    ("gemini-2.5-flash-preview", "gemini-2.5-flash-preview-05-20"),
    ("gemini-2.5-flash-preview", "gemini-2.5-flash-preview-09-2025"),
    ("google/gemini-3.8-flash", "gemini-3.8-flash"),
    ("gemini-3.8-flash", "google/gemini-3.8-flash"),
    ("qwen/qwen3-vl:free", "qwen/qwen3-vl"),
    ("qwen2.5vl:7b", "qwen2.5vl:7b"),
    ("mistral", "mistral-latest"),
]
OTHER = [
    ("gpt-4o", "gpt-4o-mini"),
    ("gpt-4o", "gpt-4o-mini-2024-07-18"),
    ("gpt-4o-mini", "gpt-4o"),
    ("gpt-5.6", "gpt-5.6-sol"),
    ("gpt-4", "gpt-4-turbo"),
    ("gpt-4", "gpt-4-9999"),
    ("gpt-4o-2024-08-06", "gpt-4o-2024-11-20"),
    ("gpt-4o-2024-08-06", "gpt-4o"),
    ("gemini-2.5-pro", "gemini-3.8-flash"),
    ("gemini-2.5-pro", "gemini-2.5-pro-preview-06-05"),
    ("gemini-2.5-flash", "gemini-2.5-flash-lite"),
    ("gemini-2.5", "gemini-2.5-5"),
    ("qwen2.5vl:7b", "qwen2.5vl:72b"),
    ("llama-3", "llama-3-70b"),
    ("a", "b"),
]


@pytest.mark.parametrize(("requested", "served"), SAME)
def test_the_same_model(requested, served) -> None:
    assert same_model(requested, served)


@pytest.mark.parametrize(("requested", "served"), OTHER)
def test_another_model(requested, served) -> None:
    assert not same_model(requested, served)


@given(st.text(min_size=1).filter(lambda t: t.strip(" /")))
def test_every_name_is_itself(name) -> None:
    assert same_model(name, name)


# --------------------------------------------------------------------------------------------------------- failures

NOW = datetime(2026, 11, 20, 12, 0, 0, tzinfo=UTC)


def info(*delays: str) -> dict[str, Any]:
    kind = "type.googleapis.com/google.rpc.RetryInfo"
    return {"error": {"details": [{"@type": kind, "retryDelay": delay} for delay in delays]}}


@pytest.mark.parametrize(
    ("headers", "details", "wait"),
    [
        ({}, None, None),
        ({"Retry-After": "7"}, None, 7.0),
        ({"retry-after": "0"}, None, 0.0),
        ({"retry-after": "1.5"}, None, 1.5),
        ({"retry-after": "-3"}, None, None),
        ({"retry-after": "nan"}, None, None),
        ({"retry-after": "soon"}, None, None),
        ({"retry-after": "Fri, 20 Nov 2026 12:00:30 GMT"}, None, 30.0),
        ({"retry-after": "Fri, 20 Nov 2026 11:00:00 GMT"}, None, 0.0),
        ({"retry-after-ms": "250"}, None, 0.25),
        ({"retry-after-ms": "250", "retry-after": "2"}, None, 2.0),
        ({}, info("3.5s"), 3.5),
        ({"retry-after": "1"}, info("8s", "2s"), 8.0),
        ({}, info("eight"), None),
        ({}, {"error": {"details": "x"}}, None),
        ({}, [1], None),
    ],
)
def test_the_wait_that_a_service_asks_for(headers, details, wait) -> None:
    assert retry_after(headers, details, now=NOW) == wait


@pytest.mark.parametrize("status", [408, 409, 425, 429, 500, 502, 503, 504, 529])
def test_statuses_that_may_pass(status) -> None:
    failure = http_failure("j", status, "m", wait=2.0)
    assert isinstance(failure, TransientError)
    assert (failure.status, failure.retry_after) == (status, 2.0)


@pytest.mark.parametrize("status", [301, 400, 401, 402, 403, 404, 405, 410, 413, 422, 451])
def test_statuses_that_stop(status) -> None:
    failure = http_failure("j", status, "m")
    assert isinstance(failure, JudgeStoppedError)
    assert failure.status == status


# ---------------------------------------------------------------------------------------------------------- schemas


def test_the_rubrics_own_schema_passes_unchanged_but_for_the_key_order() -> None:
    schema = question().schema
    assert for_openai(schema) == schema
    gemini = for_gemini(schema)
    assert gemini.pop("propertyOrdering") == list(schema["properties"])
    assert gemini == schema


def test_a_loose_schema_becomes_strict() -> None:
    loose = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "properties": {
            "a": {"type": "string", "minLength": 3, "default": "x"},
            "b": {"type": "boolean"},
            "c": {"enum": ["u", "v"]},
            "d": {"oneOf": [{"type": "string"}, {"type": "null"}]},
            "e": {"type": "array", "items": {"$ref": "#/$defs/e", "description": "one"}, "minItems": 1},
        },
        "required": ["a", "e"],
        "$defs": {"e": {"type": "object", "properties": {"n": {"type": "integer", "const": 3}}, "required": ["n"]}},
    }
    strict = for_openai(loose)
    assert strict == {
        "type": "object",
        "properties": {
            "a": {"type": "string"},
            "b": {"type": ["boolean", "null"]},
            "c": {"anyOf": [{"enum": ["u", "v"]}, {"type": "null"}]},
            "d": {"anyOf": [{"anyOf": [{"type": "string"}, {"type": "null"}]}, {"type": "null"}]},
            "e": {"type": "array", "items": {"$ref": "#/$defs/e"}, "minItems": 1},
        },
        "required": ["a", "b", "c", "d", "e"],
        "additionalProperties": False,
        "$defs": {
            "e": {
                "type": "object",
                "properties": {"n": {"type": "integer", "const": 3}},
                "required": ["n"],
                "additionalProperties": False,
            }
        },
    }
    jsonschema.Draft202012Validator.check_schema(strict)
    assert "minLength" not in str(for_gemini(loose))
    assert for_gemini(loose)["$defs"]["e"]["properties"]["n"] == {"type": "integer", "enum": [3]}


_leaf = st.sampled_from([{"type": "string", "minLength": 2}, {"type": "boolean"}, {"type": "integer", "minimum": 0}])
_schemas = st.recursive(
    _leaf,
    lambda inner: (
        st.dictionaries(st.sampled_from("abcd"), inner, min_size=1, max_size=3).map(
            lambda p: {"type": "object", "properties": p, "required": list(p)[:1]}
        )
        | inner.map(lambda i: {"type": "array", "items": i})
    ),
    max_leaves=6,
).map(lambda s: {"type": "object", "properties": {"root": s}, "required": ["root"]})


@given(_schemas)
def test_conversions_satisfy_the_imitated_services(schema) -> None:
    from servers.gemini_wire import _schema as gemini_takes
    from servers.openai_wire import _strict as openai_takes

    openai_takes(for_openai(schema), (), 0)
    gemini_takes(for_gemini(schema), "$")
    assert for_openai(for_openai(schema)) == for_openai(schema)


@pytest.mark.parametrize(
    ("schema", "what"),
    [
        ({"type": "object", "properties": {"a": {"not": {}}}}, r"\$\.a: .* does not take 'not'"),
        ({"type": "object", "properties": {"a": {"allOf": [{}, {}]}}}, "'allOf'"),
        ({"type": "object"}, "every key of an object named"),
        ({"type": "object", "properties": {"a": {}}, "additionalProperties": True}, "every key of an object named"),
        ({"type": "string"}, "an object at the top"),
        ({"type": "object", "properties": {"a": 3}}, r"\$\.a: expected an object"),
    ],
)
def test_what_strict_output_cannot_say_is_refused_with_its_place(schema, what) -> None:
    with pytest.raises(UsageError, match=what):
        for_openai(schema)


# -------------------------------------------------------------------------------------------------------- endpoints


@pytest.mark.parametrize(
    ("url", "shown", "host", "key_env"),
    [
        ("http://127.0.0.1:8000/v1", "http://127.0.0.1:8000/v1", "127.0.0.1:8000", None),
        ("http://localhost:11434/v1/", "http://localhost:11434/v1", "localhost:11434", None),
        ("http://[::1]:8000/v1", "http://[::1]:8000/v1", "[::1]:8000", None),
        ("https://Openrouter.AI/api/v1?key_env=OR_KEY", "https://openrouter.ai/api/v1", "openrouter.ai", "OR_KEY"),
    ],
)
def test_urls_that_are_allowed(url, shown, host, key_env) -> None:
    endpoint = parse_endpoint(url)
    assert (endpoint.url, endpoint.host, endpoint.key_env) == (shown, host, key_env)


@pytest.mark.parametrize(
    ("url", "what"),
    [
        ("http://example.com/v1", "plain http"),
        ("http://0.0.0.0:8000/v1", "plain http"),
        ("http://10.0.0.3:8000/v1", "plain http"),
        ("http://127.0.0.1.example.com/v1", "plain http"),
        ("http://127.0.0.1@example.com/v1", "user name or password"),
        ("https://user:pass@example.com/v1", "user name or password"),
        ("ftp://example.com/v1", "expected https"),
        ("https:///v1", "expected https"),
        ("https://example.com:port/v1", "judge URL"),
        ("https://example.com/v1#x", "fragment"),
        ("https://example.com/v1?key=abc", "unknown query key 'key'"),
        ("https://example.com/v1?key_env=sk-abc-def", "not the key itself"),
        ("https://example.com/v1?key_env=A&key_env=B", "twice"),
        ("https://exämple.com/v1", "xn--"),
    ],
)
def test_urls_that_are_refused(url, what) -> None:
    with pytest.raises(UsageError, match=what):
        parse_endpoint(url)


@pytest.mark.parametrize("host", ["localhost", "a.localhost", "127.0.0.1", "127.9.8.7", "::1"])
def test_this_machine(host) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize(
    "host", ["example.com", "0.0.0" + ".0", "127.0.0.1.nip.io", "localhost.example.com", "2130706433", "::"]
)
def test_not_this_machine(host) -> None:
    assert not is_loopback(host)


@pytest.mark.parametrize(
    ("text", "model", "url"),
    [
        ("gpt-4o", "gpt-4o", None),
        ("qwen2.5vl:7b@http://127.0.0.1:11434/v1", "qwen2.5vl:7b", "http://127.0.0.1:11434/v1"),
        ("org/m@20240620@https://h/v1", "org/m@20240620", "https://h/v1"),
        ("gpt@5.6-sol", "gpt@5.6-sol", None),
    ],
)
def test_model_and_url_are_told_apart(text, model, url) -> None:
    assert split_model(text) == (model, url)


@pytest.mark.parametrize("text", ["m@localhost:8000/v1", "m@127.0.0.1:8000", "m@example.com/v1"])
def test_a_server_without_a_scheme_is_asked_about(text) -> None:
    with pytest.raises(UsageError, match="write the server with its scheme"):
        split_model(text)


@pytest.mark.parametrize("text", ["", " ", "@http://127.0.0.1/v1", "a b"])
def test_a_missing_model_is_named(text) -> None:
    with pytest.raises(UsageError, match="model name"):
        split_model(text)


# ------------------------------------------------------------------------------------------------------- data file


def test_the_data_file_is_dated_and_every_preset_is_two_judges() -> None:
    assert written().isoformat() == "2026-11-20"
    assert set(presets()) == {"paper", "current:gemini", "current:openai"}
    assert all(len(set(preset.judges)) == 2 for preset in presets().values())
    assert presets()["paper"].judges == ("gemini:gemini-2.5-pro", "gemini:gemini-2.5-flash")
    assert presets()["paper"].retired is not None
    assert presets()["paper"].retired.isoformat() == "2026-12-01"


@pytest.mark.parametrize(
    ("provider", "model", "by_url", "takes_temperature"),
    [
        ("gemini", "gemini-2.5-pro", False, True),
        ("gemini", "models/gemini-2.5-pro", False, True),
        ("gemini", "gemini-3.8-flash", False, False),
        ("openai", "gpt-4o", False, True),
        ("openai", "gpt-5.6-sol", False, False),
        ("openai", "openai/gpt-5.6-sol", True, False),
        ("openai", "unknown", False, False),
        ("openai", "unknown", True, True),
        ("nobody", "unknown", True, False),
    ],
)
def test_which_models_take_a_temperature(provider, model, by_url, takes_temperature) -> None:
    assert ("temperature" in accepted(provider, model, by_url=by_url)) == takes_temperature


# ------------------------------------------------------------------------------------------- bodies nobody foresaw

_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4),
    max_leaves=12,
)


@given(_json | st.dictionaries(st.sampled_from(KEYS), _json, min_size=1))
@pytest.mark.parametrize("read", [gemini_body, openai_body])
def test_no_body_makes_a_transport_raise_or_give_a_verdict(read, value) -> None:
    try:
        reply = read(json.dumps(value))
    except TransientError:
        return
    assert not isinstance(reply.answer, Verdict)
    assert reply.text is not None or isinstance(reply.answer, NoVerdict)
