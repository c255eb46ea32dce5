"""The imitated services refuse what the real ones refuse; otherwise the tests of the judges would prove nothing."""

from __future__ import annotations

import base64
import copy
import io
import json
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any

import PIL.Image
import pytest
from servers.loopback import KEY, serve, spawn

_buffer = io.BytesIO()
PIL.Image.new("RGB", (8, 8), (1, 2, 3)).save(_buffer, "PNG")
PNG = base64.b64encode(_buffer.getvalue()).decode()
SCHEMA = {
    "type": "object",
    "properties": {"why": {"type": "string"}, "bad": {"type": "boolean"}},
    "required": ["why", "bad"],
    "additionalProperties": False,
}
GEMINI = {
    "systemInstruction": {"parts": [{"text": "judge"}], "role": "user"},
    "contents": [{"role": "user", "parts": [{"text": "{}"}, {"inlineData": {"data": PNG, "mimeType": "image/png"}}]}],
    "generationConfig": {"responseMimeType": "application/json", "responseJsonSchema": SCHEMA, "maxOutputTokens": 100},
}
OPENAI = {
    "model": "gpt-4o",
    "messages": [
        {"role": "system", "content": "judge"},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "{}"},
                {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}", "detail": "high"}},
            ],
        },
    ],
    "response_format": {"type": "json_schema", "json_schema": {"name": "reply", "schema": SCHEMA, "strict": True}},
}
Change = Callable[[dict[str, Any]], Any]


def send(url: str, body: Any, headers: dict[str, str]) -> tuple[int, dict[str, Any]]:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"content-type": "application/json", **headers})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=5) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def gemini(body: Any, model: str = "gemini-3.8-flash", key: str | None = KEY, path: str = "v1") -> tuple[int, Any]:
    with serve("gemini") as server:
        headers = {"x-goog-api-key": key} if key else {}
        return send(f"{server.url}/{path}/models/{model}:generateContent", body, headers)


def openai(body: Any, key: str | None = KEY, kind: str = "openai", path: str = "chat/completions") -> tuple[int, Any]:
    with serve(kind) as server:
        return send(f"{server.url}/{path}", body, {"authorization": f"Bearer {key}"} if key else {})


def changed(base: dict[str, Any], change: Change) -> dict[str, Any]:
    body = copy.deepcopy(base)
    change(body)
    return body


def test_whole_requests_are_answered_with_text_that_fits_the_schema() -> None:
    status, body = gemini(GEMINI)
    assert status == 200
    reply = json.loads(body["candidates"][0]["content"]["parts"][0]["text"])
    assert isinstance(reply["bad"], bool)
    status, body = openai(OPENAI)
    assert status == 200
    assert set(json.loads(body["choices"][0]["message"]["content"])) == {"why", "bad"}


GEMINI_REFUSED: dict[str, Change] = {
    "unknown top-level field": lambda b: b.update(prompt="x"),
    "wrong casing": lambda b: b.update(SystemInstruction=b.pop("systemInstruction")),
    "unknown config": lambda b: b["generationConfig"].update(max_tokens=5),
    "no contents": lambda b: b.pop("contents"),
    "empty parts": lambda b: b["contents"][0].update(parts=[]),
    "wrong role": lambda b: b["contents"][0].update(role="system"),
    "two kinds in a part": lambda b: b["contents"][0]["parts"][0].update(inlineData={}),
    "bad base64": lambda b: b["contents"][0]["parts"][1]["inlineData"].update(data="@@@"),
    "wrong mime": lambda b: b["contents"][0]["parts"][1]["inlineData"].update(mimeType="image/bmp"),
    "not that picture": lambda b: b["contents"][0]["parts"][1]["inlineData"].update(mimeType="image/jpeg"),
    "temperature out of range": lambda b: b["generationConfig"].update(temperature=3),
    "schema without mime": lambda b: b["generationConfig"].pop("responseMimeType"),
    "two schemas": lambda b: b["generationConfig"].update(responseSchema={}),
    "schema keyword": lambda b: b["generationConfig"]["responseJsonSchema"]["properties"]["why"].update(minLength=3),
    "upper-case type": lambda b: b["generationConfig"]["responseJsonSchema"].update(type="OBJECT"),
    "required key unknown": lambda b: b["generationConfig"]["responseJsonSchema"].update(required=["x"]),
    "two ways to think": lambda b: b["generationConfig"].update(thinkingConfig={"thinkingBudget": 1, "thinkingLevel": "LOW"}),
    "level in lower case": lambda b: b["generationConfig"].update(thinkingConfig={"thinkingLevel": "low"}),
}  # fmt: skip


@pytest.mark.parametrize("change", GEMINI_REFUSED.values(), ids=GEMINI_REFUSED.keys())
def test_gemini_refuses(change) -> None:
    assert gemini(changed(GEMINI, change))[0] == 400


def test_gemini_refuses_keys_paths_and_bodies() -> None:
    assert gemini(GEMINI, key=None)[0] == 403
    status, body = gemini(GEMINI, key="other")
    assert (status, body["error"]["details"][0]["reason"]) == (400, "API_KEY_INVALID")
    assert gemini(GEMINI, path="v2")[0] == 404
    assert gemini(b"{")[0] == 400
    assert gemini(b"[]")[0] == 400
    level = changed(GEMINI, lambda b: b["generationConfig"].update(thinkingConfig={"thinkingLevel": "LOW"}))
    assert gemini(level)[0] == 200
    assert gemini(level, model="gemini-2.5-pro")[0] == 400
    large = changed(GEMINI, lambda b: b["contents"][0]["parts"][0].update(text="x" * (21 * 1024 * 1024)))
    assert gemini(large)[0] == 400


def _schema(body: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = body["response_format"]["json_schema"]["schema"]
    return found


def _image(body: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = body["messages"][1]["content"][1]["image_url"]
    return found


OPENAI_REFUSED: dict[str, Change] = {
    "unknown top-level field": lambda b: b.update(maxTokens=5),
    "no model": lambda b: b.pop("model"),
    "no messages": lambda b: b.update(messages=[]),
    "wrong role": lambda b: b["messages"][0].update(role="root"),
    "wrong part": lambda b: b["messages"][1]["content"][0].update(type="input_text"),
    "link instead of data": lambda b: _image(b).update(url="https://example.com/a.png"),
    "bad base64": lambda b: _image(b).update(url="data:image/png;base64,@@@"),
    "not that picture": lambda b: _image(b).update(url=_image(b)["url"].replace("png", "jpeg")),
    "wrong detail": lambda b: _image(b).update(detail="ultra"),
    "open object": lambda b: _schema(b).pop("additionalProperties"),
    "optional key": lambda b: _schema(b).update(required=["why"]),
    "schema keyword": lambda b: _schema(b)["properties"]["why"].update(minLength=3),
    "name with a space": lambda b: b["response_format"]["json_schema"].update(name="my reply"),
    "array at the top": lambda b: b["response_format"]["json_schema"].update(schema={"type": "array", "items": SCHEMA}),
    "both limits": lambda b: b.update(max_tokens=1, max_completion_tokens=1),
    "temperature of a thinker": lambda b: b.update(model="gpt-5.6-sol", temperature=0),
    "old limit of a thinker": lambda b: b.update(model="gpt-5.6-sol", max_tokens=5),
    "effort of no thinker": lambda b: b.update(reasoning_effort="low"),
}


@pytest.mark.parametrize("change", OPENAI_REFUSED.values(), ids=OPENAI_REFUSED.keys())
def test_openai_refuses(change) -> None:
    assert openai(changed(OPENAI, change))[0] == 400


def test_openai_refuses_keys_and_paths() -> None:
    assert openai(OPENAI, key=None)[0] == 401
    status, body = openai(OPENAI, key="other-key-1234")
    assert (status, body["error"]["code"]) == (401, "invalid_api_key")
    assert openai(OPENAI, path="completions")[0] == 404
    assert openai(OPENAI, key=None, kind="compatible")[0] == 200


def test_a_script_is_a_queue_a_table_a_function_or_the_models_name() -> None:
    def statuses(script: Any, *models: str) -> list[int]:
        with serve("compatible", script) as server:
            return [send(f"{server.url}/chat/completions", {**OPENAI, "model": m}, {})[0] for m in models]

    assert statuses(["status=503", "good"], "a", "a", "a") == [503, 200, 200]
    assert statuses({"a": ["status=500", "good"], "b": "status=404"}, "b", "a", "a", "c") == [404, 500, 200, 200]
    assert statuses(lambda seen: "status=400" if seen.text == ["{}"] else "good", "a") == [400]
    assert statuses(None, "a", "a--status=502") == [200, 502]


@pytest.mark.parametrize("light", [None, '{"why": "", "bad": true}'])
@pytest.mark.parametrize("kind", ["gemini", "openai"])
def test_another_process_serves_too(kind, light) -> None:
    with spawn(kind, light=light) as url:
        if kind == "gemini":
            status, body = send(f"{url}/v1/models/m-1:generateContent", GEMINI, {"x-goog-api-key": KEY})
            model = body["modelVersion"]
        else:
            status, body = send(f"{url}/chat/completions", OPENAI, {"authorization": f"Bearer {KEY}"})
            model = body["model"]
    assert (status, model) == (200, "m-1" if kind == "gemini" else "gpt-4o")
    if light:
        assert json.dumps(light) in json.dumps(body)
