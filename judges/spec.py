"""From what users write for `judges=` to judges: strings, presets, functions, plugins, objects."""

from __future__ import annotations

import datetime
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from isr.errors import UsageError
from isr.protocols import Judge, JudgeLimits
from isr.registry import JUDGES, Plugin
from isr.secret import find_key

from .endpoint import parse_endpoint, split_model
from .function import FunctionJudge
from .models import Preset, presets

__all__ = ["JudgeInfo", "describe_judges", "make_judge", "make_judges"]

#: Where the built-in services look for a key.
KEY_VARIABLES: dict[str, tuple[str, ...]] = {
    "gemini": ("GEMINI_API_KEY", "GOOGLE_API_KEY"),
    "openai": ("OPENAI_API_KEY",),
}
_WAYS = """Ways to go on:
  - set GEMINI_API_KEY (or GOOGLE_API_KEY) or OPENAI_API_KEY, and run again;
  - use a server of your own that speaks OpenAI's protocol (vLLM, Ollama, LM Studio): judges=["openai:MODEL@http://127.0.0.1:8000/v1"];
  - give the answers of a stored run again: judges="replay:RUN";
  - judge with a Python function: judges=[my_function] (docs/judges.md).
One judge alone is a measurement of its own ("single judge"); the paper's ISR wants two."""


def make_judges(
    spec: Any = None,
    *,
    from_file: bool = False,
    allow_hosts: Iterable[str] = (),
    environ: Mapping[str, str] | None = None,
    today: datetime.date | None = None,
) -> list[Judge]:
    """The judges behind `judges=`.

    Args:
        spec: None (the `current` pair of the service whose key is set, Gemini first), "paper", "current",
            "current:gemini", "current:openai", one judge, or a sequence of them; see `make_judge` for what one may be.
        from_file: the strings were read from a file, so that servers given by @url need `allow_hosts`.
        allow_hosts: hosts (with or without port) that strings from a file may name.
        environ: where keys are looked for; default the process environment. today: for tests of the retirement day.

    Raises:
        UsageError: no judge can be made; the message lists the ways to go on.
    """
    env = os.environ if environ is None else environ
    day = today or datetime.date.today()
    if spec is None:
        spec = "current"
    items: Sequence[Any] = list(spec) if isinstance(spec, Sequence) and not isinstance(spec, str) else [spec]
    if not items:
        raise UsageError("judges: the list is empty; leave judges out for the default pair, or name at least one")
    made: list[Judge] = []
    for item in items:
        for one in _expand(item, env, day):
            if isinstance(one, str) and one.partition(":")[0] == "replay":
                made += _replayed(one)
            else:
                made.append(make_judge(one, from_file=from_file, allow_hosts=allow_hosts))
    names = [judge.name for judge in made]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UsageError(
            f"judges: {', '.join(map(repr, twice))} named more than once; use votes=k to ask a judge several times, or give "
            "the judges different names (name=)"
        )
    return made


def _expand(item: Any, env: Mapping[str, str], day: datetime.date) -> list[Any]:
    """A preset's judges, or the item itself."""
    if item is None:
        raise UsageError("judges: the list holds None; remove it, or leave judges out for the default pair")
    if not isinstance(item, str):
        return [item]
    if item == "current":
        for service, variables in KEY_VARIABLES.items():
            if find_key(variables, env) is not None:
                return list(presets()[f"current:{service}"].judges)
        raise UsageError(f"judges: none named, and no key for the default pair is set.\n{_WAYS}")
    preset = presets().get(item)
    if preset is None:
        return [item]
    _check_served(preset, day)
    return list(preset.judges)


def _check_served(preset: Preset, day: datetime.date) -> None:
    if preset.retired is None or day < preset.retired:
        return
    models = " and ".join(judge.partition(":")[2] for judge in preset.judges)
    raise UsageError(
        f"judges={preset.name!r}: {preset.retired_at} retired {models} on {preset.retired.isoformat()} and answers these "
        "names with other models, so the paper's judges can no longer be asked there.\nWays to go on:\n"
        '  - judges="current": the successors; a measurement of its own, not comparable with the paper\'s numbers;\n'
        '  - judges="replay:RUN": the stored answers of a run that was made before that day;\n'
        '  - a service that still serves these models: judges=["openai:MODEL@https://HOST/v1?key_env=NAME", …];\n'
        "  - any other judges, named one by one."
    )


def make_judge(spec: Any, *, from_file: bool = False, allow_hosts: Iterable[str] = (), **options: Any) -> Judge:
    """One judge.

    Args:
        spec: "gemini:MODEL", "openai:MODEL", either with "@URL" (and "?key_env=NAME"), each with settings behind it where
            wanted (";rpm=300;concurrency=32;temperature=0.2"); the name of an installed plugin
            ("name" or "name:argument", for example "referee:a"); a callable, which becomes a `FunctionJudge`; or an
            object that is a judge already.
        options: settings for the judge's constructor (temperature, key_env, name, concurrency, …).
        from_file, allow_hosts: see `make_judges`.

    Raises:
        UsageError: it cannot become a judge. RegistryError: no plugin has that name.
    """
    if isinstance(spec, str):
        return _from_string(spec, from_file, frozenset(h.lower() for h in allow_hosts), options)
    if isinstance(spec, type):
        raise UsageError(f"judges: {spec.__name__} is a class; pass an instance, {spec.__name__}(…)")
    if hasattr(spec, "connect") and hasattr(spec, "identity"):
        if options:
            raise UsageError(f"judges: {spec!r} is made already; options {sorted(options)} cannot be applied to it")
        return _checked(spec, repr(spec))
    if callable(spec):
        return _checked(FunctionJudge(spec, **options), repr(spec))
    raise UsageError(
        f"judges: expected a string such as 'gemini:MODEL', a function or a judge, got {type(spec).__name__}: {spec!r}"
    )


def _from_string(text: str, from_file: bool, allowed: frozenset[str], options: dict[str, Any]) -> Judge:
    kind, colon, argument = text.strip().partition(":")
    if text.strip() in presets() or text.strip() == "current":
        raise UsageError(f"judges: {text!r} names several judges; pass it as judges={text!r}, not as one of them")
    if kind in KEY_VARIABLES:
        argument, written = _written_options(argument, text)
        twice = sorted(set(written) & set(options))
        if twice:
            raise UsageError(f"judges: {text!r}: {twice[0]} is given in the string and as an option; give it once")
        options = {**written, **options}
        if not argument:
            raise UsageError(f"judges: {text!r} names no model; write {kind}:MODEL")
        model, url = split_model(argument)
        if url is not None:
            endpoint = parse_endpoint(url, key_env=options.pop("key_env", None))
            if from_file:
                _check_host(text, endpoint.url, endpoint.host, allowed)
            options = {**options, "base_url": endpoint.url, "key_env": endpoint.key_env}
        return _checked(JUDGES.create(kind, model, **options), text)
    if kind == "function":
        raise UsageError("judges: a function cannot be named in a string; pass it itself, judges=[my_function]")
    if kind == "replay":
        judges = _replayed(text)
        if len(judges) > 1:
            names = ", ".join(judge.name for judge in judges)
            raise UsageError(f"judges: {text!r} holds several judges ({names}); pass it as judges={text!r}")
        return judges[0]
    if "/" in kind or "\\" in kind:
        raise UsageError(f"judges: {text!r} looks like a path; a stored run is named as replay:{text}")
    if kind.startswith(("gpt-", "gemini-")):
        raise UsageError(
            f"judges: {text!r} names a model only; write {'openai' if kind.startswith('gpt-') else 'gemini'}:{text}"
        )
    return _checked(JUDGES.create(kind, *([argument] if colon else []), **options), text)


#: Settings that may be written behind a judge string (";rpm=300;concurrency=32"), and how their values are read.
_WRITTEN: dict[str, Callable[[str], Any]] = {
    "concurrency": int, "rpm": float, "tpm": float, "timeout": float, "temperature": float, "top_p": float, "seed": int,
    "max_output_tokens": int, "thinking_budget": int, "thinking_level": str, "reasoning_effort": str, "detail": str, "name": str,
}  # fmt: skip


def _written_options(argument: str, text: str) -> tuple[str, dict[str, Any]]:
    """The judge string without its ";key=value" parts, and these."""
    head, *parts = argument.split(";")
    found: dict[str, Any] = {}
    for part in parts:
        key, equals, value = part.strip().partition("=")
        if not equals or key not in _WRITTEN or key in found:
            raise UsageError(
                f"judges: {text!r}: {part!r} is not understood; write ;KEY=VALUE once per key, with KEY one of {', '.join(_WRITTEN)}"
            )
        try:
            found[key] = _WRITTEN[key](value)
        except ValueError as error:
            raise UsageError(f"judges: {text!r}: {key} wants a number, got {value!r}") from error
    return head, found


def _check_host(text: str, url: str, host: str, allowed: frozenset[str]) -> None:
    if host.lower() in allowed or (urlsplit(url).hostname or "") in allowed:
        return
    raise UsageError(
        f"judges: {text!r} comes from a file and names the server {host}; a file of someone else could send pictures and a "
        f"key anywhere. If you trust this host, allow it: --allow-host {host} (allow_hosts=[{host!r}])"
    )


def _replayed(text: str) -> list[Judge]:
    from .replay import ReplayJudge

    _, _, run = text.partition(":")
    if not run:
        raise UsageError("judges: 'replay' names no run; write replay:RUN, where RUN is a run directory")
    return list(ReplayJudge.from_run(run))


def _checked(judge: Any, spec: str) -> Judge:
    """Verify what a plugin returned before anything is sent."""
    problem = ""
    name = getattr(judge, "name", None)
    if not isinstance(judge, Judge):
        missing = [part for part in ("name", "limits", "identity", "connect") if not hasattr(judge, part)]
        problem = f"it has no {', '.join(missing)}" if missing else "it is not a Judge (isr/protocols.py)"
    elif not isinstance(name, str) or not name.strip():
        problem = f"its name is {name!r}, not a text"
    elif not isinstance(judge.limits, JudgeLimits):
        problem = f"its limits are {type(judge.limits).__name__}, not JudgeLimits"
    else:
        try:
            json.dumps(dict(judge.identity()), allow_nan=False)
        except (TypeError, ValueError) as error:
            problem = f"its identity() cannot be written as JSON: {error}"
    if problem:
        raise UsageError(f"judges: {spec} gave {type(judge).__name__}, which cannot be a judge: {problem}")
    return judge  # type: ignore[no-any-return]


@dataclass(frozen=True)
class JudgeInfo:
    """One line of `isr judges`.

    Attributes:
        name: plugin name. target: where its code is. distribution: the package that brought it, "" for our own checkout.
        keys: variables that may hold its key; empty where it needs none. key_set: one of them is set (never which value).
        usage: how to write it. missing: what is missing before it can be asked, or "".
    """

    name: str
    target: str
    distribution: str
    keys: tuple[str, ...]
    key_set: bool
    usage: str
    missing: str


_USAGE = {
    "gemini": "gemini:MODEL",
    "openai": "openai:MODEL, or openai:MODEL@http://127.0.0.1:8000/v1",
    "function": "judges=[my_function] in Python",
    "replay": "replay:RUN",
}


def describe_judges(environ: Mapping[str, str] | None = None) -> list[JudgeInfo]:
    """Every installed judge, whether a key is set, and what is missing. Imports no plugin and shows no key."""

    def info(plugin: Plugin) -> JudgeInfo:
        keys = KEY_VARIABLES.get(plugin.name, ())
        is_set = find_key(keys, environ) is not None
        missing = "" if is_set or not keys else f"set {' or '.join(keys)}"
        if missing and plugin.name == "openai":
            missing += " (servers given by @url need none)"
        usage = _USAGE.get(plugin.name, plugin.name)
        return JudgeInfo(plugin.name, plugin.target, plugin.distribution, keys, is_set, usage, missing)

    return [info(plugin) for plugin in JUDGES.list()]
