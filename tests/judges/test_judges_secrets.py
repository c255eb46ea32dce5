"""A key is on the wire and nowhere else: not in repr, identity, error, traceback, log, warning, cache or report."""

from __future__ import annotations

import copy
import json
import logging
import pickle
import traceback
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from isr.judges.gemini import GeminiJudge
from isr.judges.openai import OpenAIJudge
from isr.judges.spec import make_judge
from judges_help import ask_one
from servers.loopback import serve

import isr
import isr.errors
from isr.secret import Secret, environment_secrets, find_key, scrub

KEY = "sk-planted-KEY-0a1b2c3d4e5f"
BEHAVIOURS = ["good", "echo_key=400", "echo_key=401", "echo_key=429", "echo_key=500", "drop", "html", "cut_json", "empty_body", "other_model=x", f"other_model={KEY}", f"finish_text={KEY}", f"text={KEY}", "redirect=http://127.0.0.1:9/"]  # fmt: skip


def judges(kind: str, url: str) -> list[Any]:
    made = GeminiJudge if kind == "gemini" else OpenAIJudge
    return [
        made("m-1", base_url=url, api_key=KEY),
        made("m-1", base_url=url, key_env="PLANTED_KEY"),
        type(made.__name__, (made,), {"default_url": url})("m-1", api_key=KEY),
    ]


@pytest.mark.parametrize("kind", ["gemini", "openai"])
@pytest.mark.parametrize("behaviour", BEHAVIOURS)
def test_no_error_traceback_log_or_warning_holds_the_key(kind, behaviour, caplog, monkeypatch) -> None:
    monkeypatch.setenv("PLANTED_KEY", KEY)
    caplog.set_level(logging.DEBUG)
    said: list[str] = []
    with serve(kind, behaviour, key=KEY) as server, warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        for judge in judges(kind, server.url):
            said += [repr(judge), str(judge), f"{judge}", json.dumps(judge.identity()), judge.name, repr(judge.limits)]
            try:
                reply = ask_one(judge)
            except isr.errors.IsrError as error:
                chain: list[BaseException | None] = [error, error.__cause__, error.__context__]
                said += [repr(part) for part in chain]
                said.append("".join(traceback.format_exception(error, chain=True)))
            else:
                said.append(repr(reply))
    assert server.count == 3
    said += [str(warning.message) for warning in found] + [caplog.text]
    assert KEY not in "\n".join(said)


def test_a_secret_shows_itself_only_on_request() -> None:
    secret = Secret(KEY)
    assert KEY not in f"{secret} {secret!r} {secret!s} {[secret]} {secret:>40}"
    assert secret.reveal() == KEY
    assert copy.deepcopy(secret) is copy.copy(secret) is secret
    with pytest.raises(TypeError, match="never pickled"):
        pickle.dumps(secret)
    with pytest.raises(AttributeError):
        secret.other = 1  # type: ignore[attr-defined]


def test_a_judge_with_a_key_is_not_pickled() -> None:
    with pytest.raises(TypeError, match="make the judge in the other process from its string"):
        pickle.dumps(OpenAIJudge("m", api_key=KEY))
    assert pickle.loads(pickle.dumps(make_judge("openai:m"))).name == "openai:m"


def test_scrub_cuts_keys_out_and_long_lines_short() -> None:
    assert scrub(f"a {KEY}\n b", [KEY]) == "a [key removed] b"
    assert scrub("x" * 600) == "x" * 499 + "…"
    assert scrub("a", [None, ""]) == "a"


def test_secrets_of_the_environment_are_found_by_name() -> None:
    environ = {"A_API_KEY": "longer-secret", "HF_TOKEN": "tokentoken", "PATH": "/usr/bin:/bin", "X_KEY": "short", "KEYBOARD": "qwertyuiop"}  # fmt: skip
    assert environment_secrets(environ) == ("longer-secret", "tokentoken")
    assert find_key(("NOPE", "A_API_KEY"), environ).reveal() == "longer-secret"  # type: ignore[union-attr]
    assert find_key(("NOPE",), environ) is None


@pytest.mark.filterwarnings("ignore:.*answered by:UserWarning")
@pytest.mark.parametrize("kind", ["gemini", "openai"])
def test_nothing_that_a_whole_run_writes_holds_the_key(kind, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("PLANTED_KEY", KEY)
    rng = np.random.default_rng(0)
    edits = [rng.integers(0, 255, (16, 16, 3), np.uint8) for _ in range(4)]
    with serve(kind, ["good", f"text={KEY}", f"other_model={KEY}", f"finish_text={KEY}", "good"], key=KEY) as server:
        judge = f"{kind}:m-1@{server.url}?key_env=PLANTED_KEY"
        report = isr.evaluate(edits, ["p"] * 4, judges=[judge], cache=tmp_path / "cache")
        report.save(tmp_path / "run")
    assert server.count >= 5  # four edits and the re-ask of the unreadable text
    with serve(kind, "echo_key=401", key=KEY) as server:
        judge = f"{kind}:m-2@{server.url}?key_env=PLANTED_KEY"
        with pytest.raises(isr.errors.IsrError) as caught:
            isr.evaluate(edits, ["p"] * 4, judges=[judge], cache=tmp_path / "cache")
    assert server.count >= 1
    assert KEY not in "".join(traceback.format_exception(caught.value))
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"cases.jsonl", "judgements.jsonl", "run.json"} <= {path.name for path in files}
    assert [path for path in files if KEY.encode() in path.read_bytes()] == []
