"""The OpenAI judge with the real client against imitations of the service and of a local server."""

from __future__ import annotations

import json
import logging
import time
import warnings
from typing import Any

import pytest
from isr.judges.openai import _FINISH, OpenAIJudge, read_body
from judges_help import EDITED, HOSTILE, ORIGINAL, RUBRIC, ask, ask_one, question
from servers.loopback import Loopback, serve

from isr.errors import JudgeStoppedError, TransientError, UsageError
from isr.schema import NoVerdict, Usage, Verdict

MODEL = "gpt-4o"


def judge_for(server: Loopback, model: str = MODEL, **options: Any) -> OpenAIJudge:
    """A judge that takes the imitation for the service itself, not for a server given by URL."""
    kind = type("OpenAIJudge", (OpenAIJudge,), {"default_url": server.url})
    judge: OpenAIJudge = kind(model, api_key=server.key, **options)
    return judge


def no_verdict(answer: object) -> NoVerdict:
    assert isinstance(answer, NoVerdict)
    return answer


def test_a_good_reply_is_read_whole_and_parsed_by_the_rubric() -> None:
    with serve("openai") as server:
        reply = ask_one(judge_for(server))
    assert reply.answer is None
    assert reply.text is not None
    assert isinstance(RUBRIC.parse(reply.text), Verdict)
    assert (reply.finish, reply.served_model, reply.response_id) == ("stop", MODEL, "chatcmpl-1")
    # 300 + 2 pictures × 765 = 1830; 57 written, of which 17 were thoughts: 40 + 17
    assert reply.usage == Usage(input_tokens=1830, output_tokens=40, thinking_tokens=17, cached_tokens=0)


def test_the_request_carries_instructions_data_and_pictures_apart() -> None:
    with serve("openai") as server:
        ask_one(judge_for(server), question("add a hat"))
    assert server.rejected == []
    (seen,) = server.seen
    assert seen.system == RUBRIC.instructions(with_original=True)
    assert seen.text == ['{"edit_prompt": "add a hat"}']
    assert seen.pictures == [ORIGINAL.png, EDITED.png]
    assert b'"detail": "high"' in seen.raw or b'"detail":"high"' in seen.raw
    assert seen.schema == question().schema
    assert list(seen.schema["properties"])[-1] == "degradation"
    assert json.loads(seen.raw)["response_format"]["json_schema"]["strict"] is True


def test_a_hostile_prompt_arrives_as_one_json_string() -> None:
    with serve("openai") as server:
        ask_one(judge_for(server), question(HOSTILE))
    (seen,) = server.seen
    assert [json.loads(text) for text in seen.text] == [{"edit_prompt": HOSTILE}]
    assert seen.system == RUBRIC.instructions(with_original=True)
    assert [m["role"] for m in json.loads(seen.raw)["messages"]] == ["system", "user"]


@pytest.mark.parametrize(
    ("model", "options", "expected"),
    [
        ("gpt-4o", {}, {"temperature": 0.0, "max_completion_tokens": 16384}),
        ("gpt-4o", {"seed": 3, "temperature": 1.0}, {"temperature": 1.0, "max_completion_tokens": 16384, "seed": 3}),
        ("gpt-5.6-sol", {}, {"max_completion_tokens": 16384}),
        ("gpt-5.6-sol", {"reasoning_effort": "low"}, {"max_completion_tokens": 16384, "reasoning_effort": "low"}),
        ("o3", {"max_output_tokens": 99}, {"max_completion_tokens": 99}),
        ("a-model-nobody-knows", {}, {"max_completion_tokens": 16384}),
    ],
)
def test_settings_are_sent_where_the_model_accepts_them(model, options, expected) -> None:
    with serve("openai") as server:
        ask_one(judge_for(server, model, **options))
    assert server.seen[0].settings == expected


@pytest.mark.parametrize(
    ("model", "options", "expected"),
    [
        ("qwen2.5vl:7b", {}, {"temperature": 0.0}),
        ("qwen2.5vl:7b", {"max_output_tokens": 700, "seed": 1}, {"temperature": 0.0, "max_tokens": 700, "seed": 1}),
        ("openai/gpt-5.6-sol", {"max_output_tokens": 700}, {"max_completion_tokens": 700}),
    ],
)
def test_servers_given_by_url_get_the_words_they_know(model, options, expected) -> None:
    with serve("compatible") as server:
        reply = ask_one(OpenAIJudge(model, base_url=server.url, **options))
    assert server.seen[0].settings == expected
    assert reply.text


def test_a_local_server_needs_no_key_and_gets_none_from_the_environment(monkeypatch) -> None:
    for name, value in {
        "OPENAI_API_KEY": "sk-env-secret-1",
        "OPENAI_ADMIN_KEY": "sk-env-secret-2",
        "OPENAI_ORG_ID": "org-env-secret",
        "OPENAI_PROJECT_ID": "proj-env-secret",
        "OPENAI_CUSTOM_HEADERS": "X-Team: env-secret\nAuthorization: Bearer env-secret",
        "OPENAI_BASE_URL": "http://127.0.0.1:9/v1",
    }.items():
        monkeypatch.setenv(name, value)
    with serve("compatible") as server:
        ask_one(OpenAIJudge("llava", base_url=server.url))
    (seen,) = server.seen
    assert "env" not in json.dumps(seen.headers) + seen.raw.decode()
    assert not {"openai-organization", "openai-project", "x-team"} & set(seen.headers)


def test_a_named_variable_holds_the_key_of_a_server(monkeypatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-the-wrong-one")
    with serve("openai") as server:
        monkeypatch.setenv("HOUSE_KEY", server.key)
        ask_one(OpenAIJudge("gpt-4o", base_url=f"{server.url}?key_env=HOUSE_KEY"))
        assert server.seen[0].key == "authorization"
        with pytest.raises(JudgeStoppedError, match=r"name the variable that holds it: .*key_env=NAME"):
            ask_one(OpenAIJudge("gpt-4o", base_url=server.url))
    assert len(server.seen) == 1


def test_a_named_variable_that_is_not_set_stops_before_anything_is_sent() -> None:
    with serve("openai") as server, pytest.raises(JudgeStoppedError, match="set the environment variable NOT_SET_KEY"):
        ask_one(OpenAIJudge("gpt-4o", base_url=server.url, key_env="NOT_SET_KEY"))
    assert server.count == 0


@pytest.mark.parametrize("how", ["refusal", "refusal=I can't do that.", "refusal_part"])
def test_a_refusal_is_no_verdict_with_its_words(how) -> None:
    with serve("openai", how) as server:
        reply = ask_one(judge_for(server))
    assert no_verdict(reply.answer).reason == "refused"
    assert reply.text
    assert reply.text in no_verdict(reply.answer).detail


@pytest.mark.parametrize(("word", "reason"), sorted(_FINISH.items()))
@pytest.mark.parametrize("how", ["finish", "finish_text"])
def test_every_finish_reason_is_no_verdict_with_and_without_text(word, reason, how) -> None:
    with serve("openai", f"{how}={word}") as server:
        reply = ask_one(judge_for(server))
    assert no_verdict(reply.answer).reason == reason
    assert reply.finish == word
    assert (reply.text is not None) == (how == "finish_text")
    assert reply.usage.output_tokens == 40


def test_a_finish_reason_of_the_future_is_no_verdict() -> None:
    with serve("openai", "finish_text=quantum_doubt") as server:
        assert no_verdict(ask_one(judge_for(server)).answer).reason == "blocked"


@pytest.mark.parametrize("how", ["no_candidate", "no_text"])
def test_nothing_in_a_whole_answer_is_empty(how) -> None:
    with serve("openai", how) as server:
        reply = ask_one(judge_for(server))
    assert no_verdict(reply.answer).reason == "empty"
    assert reply.usage.input_tokens == 1830


def test_text_in_parts_is_joined() -> None:
    with serve("compatible", "parts") as server:
        reply = ask_one(OpenAIJudge("m", base_url=server.url))
    assert reply.text is not None
    assert isinstance(RUBRIC.parse(reply.text), Verdict)


@pytest.mark.parametrize("how", ["invalid", "prose", "text=not json"])
def test_unreadable_text_is_handed_on_as_it_came(how) -> None:
    with serve("openai", how) as server:
        reply = ask_one(judge_for(server))
    assert reply.answer is None
    assert no_verdict(RUBRIC.parse(reply.text or "")).reason == "unparseable"


def test_another_models_answer_is_no_verdict_and_keeps_the_text() -> None:
    with serve("openai", "other_model=gpt-4o-mini") as server:
        reply = ask_one(judge_for(server))
    assert no_verdict(reply.answer).reason == "model_substituted"
    assert reply.text
    assert reply.served_model == "gpt-4o-mini"


def test_a_snapshot_of_the_model_is_the_model() -> None:
    with serve("openai", "other_model=gpt-4o-2024-08-06") as server:
        assert ask_one(judge_for(server)).answer is None


def test_a_local_server_may_call_its_model_otherwise_and_is_warned_about_once() -> None:
    with serve("compatible", "other_model=/models/llava.gguf") as server:
        judge = OpenAIJudge("llava", base_url=server.url)
        with pytest.warns(UserWarning, match=r"asked for 'llava', answered by '/models/llava\.gguf'") as found:
            replies = ask(judge, question("a"), question("b"))
    assert len(found) == 1
    assert [reply.answer for reply in replies] == [None, None]


@pytest.mark.parametrize(
    ("how", "wait"),
    [("rate_limit", None), ("rate_limit=2", 2.0), ("status=500", None), ("status=503", None), ("status=409", None), ("error_in_200=502", None), ("error_in_200=429", None), ("finish=error", None)],
)  # fmt: skip
def test_statuses_that_may_pass_are_transient_with_the_asked_wait(how, wait) -> None:
    with serve("openai", how) as server, pytest.raises(TransientError) as caught:
        ask_one(judge_for(server))
    assert caught.value.retry_after == wait
    assert server.count == 1, "the client must not retry by itself"


@pytest.mark.parametrize("how", ["drop", "drop_mid", "cut_json", "html", "empty_body", "not_object", "not_the_api"])
def test_broken_answers_are_transient_and_asked_once(how) -> None:
    with serve("openai", how) as server, pytest.raises(TransientError, match=MODEL) as caught:
        ask_one(judge_for(server))
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None
    assert server.count == 1


def test_a_slow_answer_is_transient_after_the_timeout() -> None:
    began = time.monotonic()
    with serve("openai", "slow=5") as server, pytest.raises(TransientError, match=r"no answer within 0\.3 s"):
        ask_one(judge_for(server, timeout=0.3))
    assert time.monotonic() - began < 3


def test_nobody_listening_is_transient_and_asks_whether_the_server_is_up() -> None:
    with pytest.raises(TransientError, match=r"is 127\.0\.0\.1:9 up\?"):
        ask_one(OpenAIJudge("m", base_url="http://127.0.0.1:9/v1"))


@pytest.mark.parametrize(
    ("how", "status", "what"),
    [
        ("status=400", 400, "malformed"),
        ("status=401", 401, "check the api_key argument"),
        ("status=402", 402, "no credit left"),
        ("status=403", 403, "check the api_key argument"),
        ("status=404", 404, "unknown to the service, or was retired"),
        ("status=422", 422, "malformed"),
        ("no_quota", 429, "no credit or quota left"),
        ("error_in_200=401", 401, "check the api_key argument"),
        ("redirect=http://127.0.0.1:9/", 302, "refused"),
    ],
)
def test_what_no_retry_mends_stops_the_judge_and_says_what_to_do(how, status, what) -> None:
    with serve("openai", how) as server, pytest.raises(JudgeStoppedError, match=what) as caught:
        ask_one(judge_for(server))
    assert (caught.value.status, caught.value.judge) == (status, f"openai:{MODEL}")
    assert "can be resumed" in str(caught.value)


@pytest.mark.parametrize(
    ("how", "reason"),
    [("code=content_policy_violation", "blocked"), ("code=content_filter", "blocked"), ("bad_picture", "bad_image")],
)
def test_a_400_about_this_case_is_no_verdict_of_this_case(how, reason) -> None:
    with serve("openai", how) as server:
        assert no_verdict(ask_one(judge_for(server)).answer).reason == reason


def test_a_redirect_never_takes_the_key_along() -> None:
    with serve("openai") as thief, serve("openai", f"redirect={thief.url}/chat/completions") as server:
        with pytest.raises(JudgeStoppedError, match="302"):
            ask_one(judge_for(server))
        assert (thief.count, thief.rejected) == (0, [])


def test_a_judge_can_be_used_in_one_loop_after_another() -> None:
    with serve("openai") as server:
        judge = judge_for(server)
        for _ in range(3):
            assert ask_one(judge).text


def test_one_connection_serves_many_questions_and_holds_the_limit() -> None:
    with serve("openai", latency=0.02) as server:
        replies = ask(judge_for(server, concurrency=4), *(question(f"prompt {i}") for i in range(12)))
    assert len({reply.response_id for reply in replies}) == 12
    assert server.most_at_once <= 4


def test_arguments_are_checked() -> None:
    with pytest.raises(UsageError, match="reasoning_effort: expected one of"):
        OpenAIJudge("gpt-5.6-sol", reasoning_effort="lots")
    with pytest.raises(UsageError, match="detail: expected"):
        OpenAIJudge("gpt-4o", detail="huge")
    with pytest.raises(UsageError, match="model: expected"):
        OpenAIJudge(" ")
    with pytest.raises(UsageError, match="not both"):
        OpenAIJudge("gpt-4o", api_key="k", key_env="K")
    with pytest.raises(UsageError, match="api_key: it is empty"):
        OpenAIJudge("gpt-4o", api_key=" ")
    with pytest.raises(UsageError, match="timeout"):
        OpenAIJudge("gpt-4o", timeout=0)
    with pytest.raises(UsageError, match="concurrency"):
        OpenAIJudge("gpt-4o", concurrency=0)


@pytest.mark.parametrize("body", ["", " \n", "null", "3", '"x"', "[]", "{}", '{"choices": null}', "[" * 100_000])
def test_bodies_that_are_no_answer_are_transient(body) -> None:
    with pytest.raises(TransientError):
        read_body(body)


@pytest.mark.parametrize(
    "choice", [{}, {"message": None}, {"message": []}, {"message": {"content": 3}}, {"message": {"content": [None, {"text": 1}]}}, "x", None]
)  # fmt: skip
def test_choices_of_the_wrong_shape_are_empty_and_never_raise(choice) -> None:
    reply = read_body(json.dumps({"choices": [choice], "usage": {"prompt_tokens": "x", "completion_tokens": True}}))
    assert no_verdict(reply.answer).reason == "empty"
    assert reply.usage == Usage()


def test_the_key_is_cut_out_of_the_services_words(caplog) -> None:
    caplog.set_level(logging.DEBUG)
    with serve("openai", "echo_key=401") as server, warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(JudgeStoppedError) as caught:
            ask_one(judge_for(server))
    assert server.key not in str(caught.value)
    assert "[key removed]" in str(caught.value)
    assert server.key not in caplog.text
