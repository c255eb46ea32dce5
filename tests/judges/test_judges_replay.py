"""Stored answers as a judge: the same answers again, and never an answer that was not given."""

from __future__ import annotations

import json
from typing import Any

import pytest
from isr.judges.replay import ReplayJudge, ReplayKey, question_key
from judges_help import EDITED, ORIGINAL, RUBRIC, ask_one, question

import isr
from isr.errors import IntegrityError, JudgeStoppedError, UsageError
from isr.protocols import Judge
from isr.schema import Call, CaseRecord, Judgement, NoVerdict, Usage, Verdict

TEXT = json.dumps(
    {
        "observations": "o",
        "reason_semantic_mismatch": "r",
        "reason_degradation": "s",
        "semantic_mismatch": True,
        "degradation": False,
    }
)
VERDICT = RUBRIC.parse(TEXT)


def call(**fields: Any) -> Call:
    return Call(**{"text": TEXT, "answer": VERDICT, "finish": "STOP", "served_model": "m-001", **fields})


def key(vote: int = 0, ask: int = 0, prompt: str = "make it blue") -> ReplayKey:
    return ReplayKey(prompt, EDITED.digest, ORIGINAL.digest, vote, ask)


def test_the_key_of_a_question_is_its_content() -> None:
    assert question_key(question(vote=2, ask=1)) == key(2, 1)
    assert question_key(question(original=False)) == ReplayKey("make it blue", EDITED.digest, None, 0, 0)


def test_a_stored_text_comes_back_for_the_rubric_to_read() -> None:
    judge = ReplayJudge("gemini:m", {key(): call(usage=Usage(input_tokens=5), response_id="x")})
    assert isinstance(judge, Judge)
    reply = ask_one(judge)
    assert (reply.text, reply.answer, reply.finish, reply.served_model) == (TEXT, None, "STOP", "m-001")
    assert (reply.usage.input_tokens, reply.response_id) == (5, "x")


def test_a_stored_missing_verdict_stays_one_with_and_without_text() -> None:
    blocked = NoVerdict(reason="blocked", detail="SAFETY")
    truncated = NoVerdict(reason="truncated")
    judge = ReplayJudge(
        "gemini:m",
        {
            key(0): call(text=None, answer=blocked, failure=blocked),
            key(1): call(text=TEXT, answer=truncated, failure=truncated),
            key(2): call(text=None, answer=Verdict(semantic_mismatch=False, degradation=True)),
        },
    )
    assert ask_one(judge, question(vote=0)).answer == blocked
    assert ask_one(judge, question(vote=1)).answer == truncated
    assert ask_one(judge, question(vote=2)).answer == Verdict(semantic_mismatch=False, degradation=True)


@pytest.mark.parametrize(
    "other", [question("another prompt"), question(vote=1), question(ask=1), question(original=False)]
)
def test_what_was_never_answered_stops_the_judge(other) -> None:
    judge = ReplayJudge("gemini:m", {key(): call()}, source="run-7")
    with pytest.raises(JudgeStoppedError, match=r"replay of gemini:m: run-7 holds no reply to vote .*same cases"):
        ask_one(judge, other)


def test_identity_follows_the_stored_replies() -> None:
    one, same = ReplayJudge("j", {key(): call()}), ReplayJudge("j", {key(): call()})
    other = ReplayJudge("j", {key(): call(text="{}")})
    assert one.identity() == same.identity() != other.identity()
    assert not one.cacheable


def record(case_id: str = "c1", prompt: str = "make it blue") -> CaseRecord:
    return CaseRecord(case_id=case_id, prompt=prompt, edited=EDITED.digest, original=ORIGINAL.digest)


def test_records_make_one_judge_per_judge() -> None:
    rows = [Judgement(case_id="c1", judge=name, answer=VERDICT, calls=(call(),)) for name in ("b", "a")]
    judges = ReplayJudge.from_records(rows, [record()])
    assert [judge.name for judge in judges] == ["b", "a"]
    assert ask_one(judges[1]).text == TEXT


def test_duplicates_that_differ_are_said() -> None:
    rows = [
        Judgement(case_id="c1", judge="a", answer=VERDICT, calls=(call(),)),
        Judgement(case_id="c1-1", judge="a", answer=VERDICT, calls=(call(text="{}"),)),
    ]
    with pytest.warns(UserWarning, match="1 replies to exact duplicates differ"):
        (judge,) = ReplayJudge.from_records(rows, [record(), record("c1-1")])
    assert ask_one(judge).text == TEXT


def test_judgements_of_unknown_cases_and_empty_runs_are_refused() -> None:
    row = Judgement(case_id="c9", judge="a", answer=VERDICT, calls=(call(),))
    with pytest.raises(IntegrityError, match="'c9', which is not there"):
        ReplayJudge.from_records([row], [record()])
    with pytest.raises(UsageError, match="no stored reply"):
        ReplayJudge.from_records([], [record()])
    with pytest.raises(UsageError, match="holds no reply of this judge"):
        ReplayJudge("a", {})


def _looks_blue(case: Any) -> tuple[bool, bool]:
    return case.edited.getpixel((0, 0))[2] < 100, False


def _run(tmp_path: Any, **options: Any) -> Any:
    import numpy as np

    blue, red = np.zeros((16, 16, 3), np.uint8), np.zeros((16, 16, 3), np.uint8)
    blue[..., 2], red[..., 0] = 200, 200
    inputs = ([blue, red], ["make it blue", "make it blue"])
    report = isr.evaluate(*inputs, originals=[red, blue], judges=[_looks_blue], cache=False, **options)
    report.save(tmp_path / "run")
    return inputs, {"originals": [red, blue]}, report


def test_a_saved_run_judges_again_with_the_same_numbers(tmp_path) -> None:
    inputs, options, first = _run(tmp_path)
    again = isr.evaluate(*inputs, **options, judges=f"replay:{tmp_path / 'run'}", cache=False)
    assert again.isr == first.isr == 0.5
    assert [j.name for j in ReplayJudge.from_run(tmp_path / "run")] == ["function:_looks_blue"]


def test_runs_that_cannot_be_matched_are_refused(tmp_path) -> None:
    with pytest.raises(UsageError, match=r"no run\.json"):
        ReplayJudge.from_run(tmp_path)
    _run(tmp_path, max_side=8)
    with pytest.raises(UsageError, match="max_side=8"):
        ReplayJudge.from_run(tmp_path / "run")
