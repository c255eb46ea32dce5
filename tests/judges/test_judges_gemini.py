"""The Gemini judge with the real client against an imitated service that refuses what the real one would refuse."""

from __future__ import annotations

import json
import logging
import time
import warnings
from typing import Any

import pytest
from isr.judges.gemini import _FINISH, GeminiJudge, read_body
from judges_help import EDITED, HOSTILE, ORIGINAL, RUBRIC, ask, ask_one, question
from servers.loopback import Loopback, serve

from isr.errors import JudgeStoppedError, TransientError, UsageError
from isr.schema import NoVerdict, Usage, Verdict

MODEL = "gemini-3.8-flash"


def judge_for(server: Loopback, model: str = MODEL, **options: Any) -> GeminiJudge:
    """A judge that takes the imitation for the service itself, not for a server given by URL."""
    kind = type("GeminiJudge", (GeminiJudge,), {"default_url": server.url})
    judge: GeminiJudge = kind(model, api_key=server.key, **options)
    return judge


def no_verdict(answer: object) -> NoVerdict:
    assert isinstance(answer, NoVerdict)
    return answer


def test_a_good_reply_is_read_whole_and_parsed_by_the_rubric() -> None:
    with serve("gemini") as server:
        reply = ask_one(judge_for(server))
    assert reply.answer is None
    assert reply.text is not None
    assert isinstance(RUBRIC.parse(reply.text), Verdict)
    assert (reply.finish, reply.served_model, reply.response_id) == ("STOP", MODEL, "gemini-1")
    # 2 pictures × 258 + 300 = 816
    assert reply.usage == Usage(input_tokens=816, output_tokens=40, thinking_tokens=17, image_tokens=516)


def test_the_request_carries_instructions_data_and_pictures_apart() -> None:
    with serve("gemini") as server:
        ask_one(judge_for(server), question("add a hat"))
    assert server.rejected == []
    (seen,) = server.seen
    assert seen.path == f"/v1/models/{MODEL}:generateContent"
    assert seen.system == RUBRIC.instructions(with_original=True)
    assert seen.text == ['{"edit_prompt": "add a hat"}']
    assert seen.pictures == [ORIGINAL.png, EDITED.png]
    assert list(seen.schema["properties"]) == list(question().schema["properties"])
    assert seen.schema["propertyOrdering"][-1] == "degradation"


def test_without_an_original_one_picture_is_sent() -> None:
    with serve("gemini") as server:
        ask_one(judge_for(server), question(original=False))
    assert server.seen[0].pictures == [EDITED.png]


def test_a_hostile_prompt_arrives_as_one_json_string() -> None:
    with serve("gemini") as server:
        ask_one(judge_for(server), question(HOSTILE))
    (seen,) = server.seen
    assert [json.loads(text) for text in seen.text] == [{"edit_prompt": HOSTILE}]
    assert seen.system == RUBRIC.instructions(with_original=True)


@pytest.mark.parametrize(
    ("model", "options", "expected"),
    [
        (MODEL, {}, {"maxOutputTokens": 16384}),
        (MODEL, {"thinking_level": "low"}, {"maxOutputTokens": 16384, "thinkingConfig": {"thinking_level": "LOW"}}),
        ("gemini-2.5-pro", {}, {"maxOutputTokens": 16384, "temperature": 0.0}),
        ("gemini-2.5-pro", {"temperature": "unset", "max_output_tokens": 900}, {"maxOutputTokens": 900}),
        (
            "gemini-2.5-flash",
            {"thinking_budget": 512, "temperature": 0.5, "top_p": 0.9},
            {"maxOutputTokens": 16384, "temperature": 0.5, "topP": 0.9, "thinkingConfig": {"thinking_budget": 512}},
        ),
    ],
)
def test_settings_are_sent_where_the_model_accepts_them_and_recorded(model, options, expected) -> None:
    with serve("gemini") as server:
        judge = judge_for(server, model, **options)
        ask_one(judge)
    sent = dict(server.seen[0].settings)
    assert sent.pop("responseMimeType") == "application/json"
    assert sent == expected
    recorded = judge.identity()["settings"]
    assert set(recorded) == set(judge.settings)
    assert recorded["max_output_tokens"] == expected["maxOutputTokens"]


def test_a_setting_that_the_model_does_not_accept_is_not_sent_and_said() -> None:
    with pytest.warns(UserWarning, match=r"temperature=0\.7 is not sent"):
        judge = GeminiJudge(MODEL, temperature=0.7, api_key="k" * 20)
    assert judge.not_sent == {"temperature": 0.7}
    assert "temperature" not in judge.identity()["settings"]


def test_votes_draw_with_different_seeds() -> None:
    with serve("gemini") as server:
        ask(judge_for(server, seed=7), question(vote=0), question(vote=2))
    assert sorted(seen.settings["seed"] for seen in server.seen) == [7, 9]


@pytest.mark.parametrize("word", ["SAFETY", "OTHER", "BLOCKLIST", "PROHIBITED_CONTENT", "IMAGE_SAFETY", "MODEL_ARMOR", "JAILBREAK", "A_NEW_ONE"])  # fmt: skip
def test_every_prompt_block_is_no_verdict(word) -> None:
    with serve("gemini", f"block={word}") as server:
        reply = ask_one(judge_for(server))
    assert no_verdict(reply.answer).reason == "blocked"
    assert (reply.finish, reply.text) == (word, None)
    assert reply.usage.input_tokens == 816


@pytest.mark.parametrize(("word", "reason"), sorted(_FINISH.items()))
@pytest.mark.parametrize("how", ["finish", "finish_text"])
def test_every_finish_reason_is_no_verdict_with_and_without_text(word, reason, how) -> None:
    with serve("gemini", f"{how}={word}") as server:
        reply = ask_one(judge_for(server))
    assert no_verdict(reply.answer).reason == reason
    assert word in no_verdict(reply.answer).detail
    assert reply.finish == word
    assert (reply.text is not None) == (how == "finish_text")


def test_the_finish_reasons_of_the_installed_client_are_all_known() -> None:
    from google.genai import types

    words = {reason.value for reason in types.FinishReason} - {"STOP", "FINISH_REASON_UNSPECIFIED"}
    assert words == set(_FINISH)


def test_a_finish_reason_of_the_future_is_no_verdict_and_no_warning() -> None:
    with serve("gemini", "finish_text=QUANTUM_DOUBT") as server, warnings.catch_warnings():
        warnings.simplefilter("error")
        reply = ask_one(judge_for(server))
    assert no_verdict(reply.answer).reason == "blocked"
    assert "QUANTUM_DOUBT, a word this version does not know" in no_verdict(reply.answer).detail


@pytest.mark.parametrize("how", ["no_candidate", "no_text"])
def test_nothing_in_a_whole_answer_is_empty(how) -> None:
    with serve("gemini", how) as server:
        reply = ask_one(judge_for(server))
    assert no_verdict(reply.answer).reason == "empty"
    assert reply.usage.input_tokens == 816


def test_thoughts_are_not_part_of_the_text() -> None:
    with serve("gemini", "thoughts") as server:
        reply = ask_one(judge_for(server))
    assert reply.text is not None
    assert isinstance(RUBRIC.parse(reply.text), Verdict)


@pytest.mark.parametrize("how", ["invalid", "prose", "text=not json"])
def test_unreadable_text_is_handed_on_as_it_came(how) -> None:
    with serve("gemini", how) as server:
        reply = ask_one(judge_for(server))
    assert reply.answer is None
    assert reply.text is not None
    assert no_verdict(RUBRIC.parse(reply.text)).reason == "unparseable"


def test_another_models_answer_is_no_verdict_and_keeps_the_text() -> None:
    with serve("gemini", "other_model=gemini-3.5-flash-lite") as server:
        reply = ask_one(judge_for(server))
    assert no_verdict(reply.answer).reason == "model_substituted"
    assert "gemini-3.5-flash-lite" in no_verdict(reply.answer).detail
    assert reply.text is not None
    assert reply.served_model == "gemini-3.5-flash-lite"


@pytest.mark.parametrize(
    ("how", "wait"),
    [("rate_limit", None), ("rate_limit=2", 2.0), ("retry_info=3.5", 3.5), ("status=500", None), ("status=503", None), ("status=408", None)],
)  # fmt: skip
def test_statuses_that_may_pass_are_transient_with_the_asked_wait(how, wait) -> None:
    with serve("gemini", how) as server, pytest.raises(TransientError) as caught:
        ask_one(judge_for(server))
    assert caught.value.retry_after == wait
    assert caught.value.status in (408, 429, 500, 503)
    assert server.count == 1, "the client must not retry by itself"


@pytest.mark.parametrize("how", ["drop", "drop_mid", "cut_json", "html", "empty_body", "not_object", "not_the_api"])
def test_broken_answers_are_transient_and_asked_once(how) -> None:
    with serve("gemini", how) as server, pytest.raises(TransientError, match=MODEL) as caught:
        ask_one(judge_for(server))
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None
    assert server.count == 1


def test_a_slow_answer_is_transient_after_the_timeout() -> None:
    began = time.monotonic()
    with serve("gemini", "slow=5") as server, pytest.raises(TransientError, match="ReadTimeout"):
        ask_one(judge_for(server, timeout=0.3))
    assert time.monotonic() - began < 3


def test_nobody_listening_is_transient() -> None:
    judge = GeminiJudge(MODEL, base_url="http://127.0.0.1:9", api_key="k" * 20)
    with pytest.raises(TransientError, match="ConnectError"):
        ask_one(judge)


@pytest.mark.parametrize(
    ("how", "status", "what"),
    [
        ("status=400", 400, "malformed"),
        ("status=401", 401, "check the api_key argument"),
        ("status=403", 403, "may not use this model"),
        ("status=404", 404, "unknown to the service, or was retired"),
        ("status=413", 413, "max_side="),
        ("daily_quota", 429, "quota of the day is spent"),
        ("no_quota", 429, "no quota for this model"),
        ("redirect=http://127.0.0.1:9/", 302, "refused"),
    ],
)
def test_what_no_retry_mends_stops_the_judge_and_says_what_to_do(how, status, what) -> None:
    with serve("gemini", how) as server, pytest.raises(JudgeStoppedError, match=what) as caught:
        ask_one(judge_for(server))
    assert (caught.value.status, caught.value.judge) == (status, f"gemini:{MODEL}")
    assert "can be resumed" in str(caught.value)


def test_a_wrong_key_stops_the_judge_and_names_the_variable(monkeypatch) -> None:
    monkeypatch.setenv("MY_KEY", "wrong-key-987654321")
    with serve("gemini") as server, pytest.raises(JudgeStoppedError, match="check MY_KEY") as caught:
        ask_one(GeminiJudge(MODEL, base_url=server.url, key_env="MY_KEY"))
    assert caught.value.status == 400


def test_a_picture_that_the_service_cannot_read_is_about_that_case_only() -> None:
    with serve("gemini", "bad_picture") as server:
        assert no_verdict(ask_one(judge_for(server)).answer).reason == "bad_image"


def test_the_environment_does_not_redirect_the_client(monkeypatch) -> None:
    with serve("gemini") as server, serve("gemini") as other:
        monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", other.url)
        monkeypatch.setenv("GOOGLE_GENAI_USE_VERTEXAI", "true")
        monkeypatch.setenv("GOOGLE_GENAI_API_VERSION", "v9")
        ask_one(judge_for(server))
    assert (server.count, other.count) == (1, 0)


def test_one_connection_serves_many_questions_and_holds_the_limit() -> None:
    with serve("gemini", latency=0.02) as server:
        replies = ask(judge_for(server, concurrency=4), *(question(f"prompt {i}") for i in range(12)))
    assert len({reply.response_id for reply in replies}) == 12
    assert server.most_at_once <= 4


def test_a_judge_can_be_used_in_one_loop_after_another(recwarn) -> None:
    with serve("gemini") as server:
        judge = judge_for(server)
        for _ in range(3):
            assert ask_one(judge).text
    assert not [w for w in recwarn if issubclass(w.category, ResourceWarning)]


def test_thinking_arguments_are_checked() -> None:
    with pytest.raises(UsageError, match="thinking_level: expected one of"):
        GeminiJudge(MODEL, thinking_level="lots")
    with pytest.raises(UsageError, match="one of them, not both"):
        GeminiJudge(MODEL, thinking_level="low", thinking_budget=5)


@pytest.mark.parametrize("body", ["", " \n", "null", "3", '"x"', "[]", "{}", '{"candidates": []}', "[" * 100_000])
def test_bodies_that_are_no_answer_are_transient(body) -> None:
    with pytest.raises(TransientError):
        read_body(body)


@pytest.mark.parametrize(
    "candidate",
    [{}, {"content": None}, {"content": []}, {"content": {"parts": {}}}, {"content": {"parts": [None, 3, {"text": 4}]}}, "x", None],
)  # fmt: skip
def test_candidates_of_the_wrong_shape_are_empty_and_never_raise(candidate) -> None:
    reply = read_body(
        json.dumps({"candidates": [candidate], "modelVersion": "m", "usageMetadata": {"promptTokenCount": "x"}})
    )
    assert no_verdict(reply.answer).reason == "empty"
    assert reply.usage == Usage()


def test_the_key_goes_nowhere_but_the_header(caplog) -> None:
    caplog.set_level(logging.DEBUG)
    with serve("gemini", ["echo_key=400"]) as server, pytest.raises(JudgeStoppedError) as caught:
        ask_one(judge_for(server))
    assert server.key not in str(caught.value)
    assert "[key removed]" in str(caught.value)
    assert server.key not in caplog.text
