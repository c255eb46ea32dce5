"""What users write for `judges=`, as judges; and who may be sent a key."""

from __future__ import annotations

import datetime
import subprocess
import sys
from contextlib import asynccontextmanager
from typing import Any

import pytest
from isr.judges.spec import KEY_VARIABLES, describe_judges, make_judge, make_judges
from judges_help import ask_one
from servers.loopback import serve

from isr.errors import JudgeStoppedError, RegistryError, UsageError
from isr.protocols import JudgeLimits
from isr.registry import JUDGES, RESOLVERS

BEFORE, AFTER = datetime.date(2026, 11, 30), datetime.date(2026, 12, 1)
NO_KEYS: dict[str, str] = {}
GEMINI, OPENAI = {"GEMINI_API_KEY": "g-key"}, {"OPENAI_API_KEY": "o-key"}


def names(spec: Any = None, **options: Any) -> list[str]:
    return [judge.name for judge in make_judges(spec, **{"environ": NO_KEYS, "today": BEFORE, **options})]


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("gemini:gemini-3.8-flash", ["gemini:gemini-3.8-flash"]),
        (["gemini:a", "openai:b"], ["gemini:a", "openai:b"]),
        (("openai:q:7b@http://127.0.0.1:8000/v1/",), ["openai:q:7b@http://127.0.0.1:8000/v1"]),
        ("openai:m@https://h.example/v1?key_env=K", ["openai:m@https://h.example/v1"]),
        ("paper", ["gemini:gemini-2.5-pro", "gemini:gemini-2.5-flash"]),
        ("current:openai", ["openai:gpt-6.1-sol", "openai:gpt-6.1-terra"]),
        (["paper", "openai:x"], ["gemini:gemini-2.5-pro", "gemini:gemini-2.5-flash", "openai:x"]),
    ],
)
def test_strings_and_presets(spec, expected) -> None:
    assert names(spec) == expected


@pytest.mark.parametrize("spec", [None, "current"])
@pytest.mark.parametrize(
    ("environ", "service"),
    [(GEMINI, "gemini"), ({"GOOGLE_API_KEY": "g"}, "gemini"), (OPENAI, "openai"), ({**OPENAI, **GEMINI}, "gemini"), ({**OPENAI, "GEMINI_API_KEY": " "}, "openai")],
)  # fmt: skip
def test_the_default_pair_follows_the_key_that_is_set(spec, environ, service) -> None:
    found = names(spec, environ=environ)
    assert len(found) == 2
    assert all(name.startswith(f"{service}:") for name in found)


def test_without_a_key_the_ways_to_go_on_are_listed() -> None:
    with pytest.raises(UsageError) as caught:
        make_judges(None, environ=NO_KEYS)
    for way in ("GEMINI_API_KEY", "OPENAI_API_KEY", "http://127.0.0.1:8000/v1", "replay:", "my_function"):
        assert way in str(caught.value)


def test_the_papers_judges_end_on_their_retirement_day() -> None:
    assert len(names("paper", today=BEFORE)) == 2
    for spec in ("paper", ["paper"]):
        with pytest.raises(UsageError, match=r"retired gemini-2\.5-pro and gemini-2\.5-flash on 2026-12-01") as caught:
            make_judges(spec, environ=GEMINI, today=AFTER)
        for way in ("current", "replay:RUN", "@https://HOST"):
            assert way in str(caught.value)


def test_functions_and_objects() -> None:
    def looks_fine(case: Any) -> tuple[bool, bool]:
        return False, False

    ready = make_judge("openai:m")
    assert names([looks_fine, ready])[1] == "openai:m"
    assert make_judge(ready) is ready
    with pytest.raises(UsageError, match="is made already"):
        make_judge(ready, temperature=0)
    assert make_judge(looks_fine, name="mine").name == "mine"
    assert make_judge("openai:m", name="other", temperature="unset").name == "other"


@pytest.mark.parametrize(
    ("spec", "what"),
    [
        ([], "the list is empty"),
        ([None], "holds None"),
        (3, "expected a string such as"),
        ({"a": 1}, "expected a string such as"),
        (dict, "is a class"),
        ("gemini:", "names no model"),
        ("gemini", "names no model"),
        ("function:f", "a function cannot be named"),
        ("replay", "names no run"),
        ("gpt-4o", "write openai:gpt-4o"),
        ("gemini-3.8-flash", "write gemini:gemini-3.8-flash"),
        ("runs/one", "replay:runs/one"),
        (["openai:m", "openai:m"], "named more than once; use votes=k"),
        ("openai:m@http://example.com/v1", "plain http"),
    ],
)
def test_what_cannot_be_a_judge_says_what_to_write(spec, what) -> None:
    with pytest.raises(UsageError, match=what):
        make_judges(spec, environ=NO_KEYS)


def test_an_unknown_name_lists_what_is_installed() -> None:
    with pytest.raises(RegistryError, match=r"no judge is called 'gemni'\. Did you mean 'gemini'"):
        make_judge("gemni:x")


class _Plugin:
    limits = JudgeLimits()

    def __init__(self, argument: str = "none", *, name: str = "plugin") -> None:
        self.name = f"{name}:{argument}"

    def identity(self) -> dict[str, Any]:
        return {"provider": "plugin", "name": self.name}

    @asynccontextmanager
    async def connect(self) -> Any:
        yield None


@pytest.fixture
def plugin() -> Any:
    JUDGES.register("a-plugin", _Plugin)
    yield
    JUDGES.unregister("a-plugin")


@pytest.mark.usefixtures("plugin")
def test_plugins_by_name_and_argument() -> None:
    assert make_judge("a-plugin").name == "plugin:none"
    assert make_judge("a-plugin:x:y", name="p").name == "p:x:y"
    assert "a-plugin" in [info.name for info in describe_judges(NO_KEYS)]


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"name": ""}, "its name is ''"),
        ({"name": None}, "its name is None"),
        ({"limits": 3}, "its limits are int"),
        ({"identity": lambda: {"key": object()}}, r"identity\(\) cannot be written as JSON"),
        ({"identity": lambda: {"x": float("nan")}}, r"identity\(\) cannot be written as JSON"),
    ],
)
def test_what_a_plugin_returns_is_checked_before_anything_is_sent(change, what) -> None:
    judge = _Plugin()
    for name, value in change.items():
        setattr(judge, name, value)
    with pytest.raises(UsageError, match=what):
        make_judge(judge)


class _Half:
    def connect(self) -> None: ...
    def identity(self) -> None: ...


def test_a_half_judge_is_told_what_it_lacks() -> None:
    with pytest.raises(UsageError, match="it has no name, limits"):
        make_judge(_Half())


# ------------------------------------------------------------------------------------------------------ key rules


@pytest.mark.parametrize("text", ["openai:m@https://evil.example/v1?key_env=OPENAI_API_KEY", "gemini:m@https://evil.example", "openai:m@http://127.0.0.1:8000/v1"])  # fmt: skip
def test_hosts_that_come_from_a_file_need_to_be_allowed(text) -> None:
    with pytest.raises(UsageError, match=r"comes from a file and names the server .*--allow-host"):
        make_judges([text], from_file=True)


@pytest.mark.parametrize("allowed", ["h.example", "H.example", "h.example:8443"])
def test_an_allowed_host_passes_and_no_other(allowed) -> None:
    assert names("openai:m@https://h.example:8443/v1", from_file=True, allow_hosts=[allowed])
    with pytest.raises(UsageError, match="comes from a file"):
        names("openai:m@https://h.example.evil/v1", from_file=True, allow_hosts=[allowed])


def test_names_without_a_server_need_no_permission() -> None:
    assert names(["gemini:a", "openai:b"], from_file=True) == ["gemini:a", "openai:b"]


def test_a_string_with_a_url_never_uses_the_environments_key(monkeypatch) -> None:
    for variables in KEY_VARIABLES.values():
        for variable in variables:
            monkeypatch.setenv(variable, "env-secret-key-value")
    with serve("compatible") as server:
        assert ask_one(make_judge(f"openai:m@{server.url}")).text
    assert server.seen[0].key == "authorization"  # the client always sends one; it is the placeholder
    assert "env-secret" not in str(server.seen[0])
    with serve("gemini") as server, pytest.raises(JudgeStoppedError):
        ask_one(make_judge(f"gemini:m@{server.url}"))
    assert server.rejected == ["API key not valid. Please pass a valid API key."]


def test_a_service_without_a_key_stops_before_anything_is_sent_and_lists_the_ways() -> None:
    with pytest.raises(
        JudgeStoppedError, match="needs a key: set the environment variable GEMINI_API_KEY or GOOGLE_API_KEY"
    ):
        ask_one(make_judge("gemini:m"))


def test_describe_shows_what_is_set_and_never_a_key() -> None:
    found = {info.name: info for info in describe_judges(GEMINI)}
    assert {"gemini", "openai", "function", "replay"} <= set(found)
    assert (found["gemini"].key_set, found["gemini"].missing) == (True, "")
    assert (found["openai"].key_set, found["openai"].missing[:18]) == (False, "set OPENAI_API_KEY")
    assert found["function"].missing == ""
    assert "g-key" not in repr(found)


def test_the_core_reaches_this_by_name() -> None:
    assert RESOLVERS.load("judges") is make_judges
    assert RESOLVERS.load("describe-judges") is describe_judges


def test_the_key_variables_are_those_of_the_judges() -> None:
    for name, variables in KEY_VARIABLES.items():
        assert JUDGES.load(name).key_variables == variables


def test_making_judges_imports_no_client() -> None:
    code = (
        "import sys; from isr.judges.spec import make_judges, describe_judges; describe_judges();"
        "make_judges(['gemini:a', 'openai:b', lambda c: (True, True)]);"
        "print([m for m in ('openai', 'google.genai', 'httpx2', 'torch') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_settings_can_be_written_behind_the_string() -> None:
    judge = make_judge("gemini:gemini-2.5-flash;rpm=300;concurrency=32;temperature=0.2;max_output_tokens=500")
    assert (judge.limits.rpm, judge.limits.concurrency) == (300.0, 32)
    assert judge.identity()["settings"] == {"max_output_tokens": 500, "temperature": 0.2}
    assert judge.name == "gemini:gemini-2.5-flash"
    local = make_judge("openai:m@http://127.0.0.1:8000/v1;concurrency=2")
    assert local.limits.concurrency == 2
    # limits are no part of what a judge is: they cannot change an answer
    assert make_judge("gemini:gemini-2.5-flash;rpm=3").identity() == make_judge("gemini:gemini-2.5-flash").identity()


@pytest.mark.parametrize(
    "spec",
    [
        "gemini:m;rpm",
        "gemini:m;speed=3",
        "gemini:m;rpm=fast",
        "gemini:m;rpm=1;rpm=2",
        "gemini:;rpm=1",
        "gemini:m;api_key=x",
    ],
)
def test_settings_that_are_not_understood_are_named(spec: str) -> None:
    with pytest.raises(UsageError, match="judges"):
        make_judge(spec)
