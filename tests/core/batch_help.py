"""A small study of five edits with controls, and judges at an imitated service, for the tests of batches."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from evaluate_help import pictures
from isr.judges.gemini import GeminiJudge
from isr.judges.openai import OpenAIJudge
from servers.loopback import Loopback, serve

from isr.engine.retry import RetryPolicy

N = 5
#: Waits of tests are short; the number of attempts is what is tested.
RETRY = RetryPolicy(attempts=3, base=0.001, cap=0.002)
SERVICES = ("gemini", "gemini-inline", "openai")


def study(n: int = N, **more: Any) -> dict[str, Any]:
    """Arguments of `evaluate` for n edits of their own originals, each with a control: 2 n calls per judge."""
    return {
        "edits": pictures(n), "prompts": [f"prompt {i}" for i in range(n)], "originals": pictures(n, 100),
        "controls": pictures(n, 200), "columns": {"seed": list(range(n)), "editor": "e", "method": "m"}, **more,
    }  # fmt: skip


def judge_at(service: str, server: Loopback, model: str = "m-1", **options: Any) -> Any:
    options = {"base_url": server.url, "api_key": server.key, "name": f"{service}:{model}", **options}
    if service in ("openai", "compatible"):
        return OpenAIJudge(model, **options)
    return GeminiJudge(model, batch_form="inline" if service == "gemini-inline" else "file", **options)


@contextmanager
def at(service: str, script: Any = None, **options: Any) -> Iterator[Loopback]:
    with serve(service.partition("-")[0], script, **options) as server:
        yield server


class Batch:
    """One run directory and its cache, every step with fresh objects, as after a restart of the process."""

    def __init__(self, folder: Path, service: str, server: Loopback, **study_options: Any) -> None:
        self.run, self.cache = folder / "run", folder / "cache"
        self.service, self.server, self.options = service, server, study_options

    def judges(self) -> list[Any]:
        return [judge_at(self.service, self.server)]

    def step(self, name: str, *args: Any, **more: Any) -> Any:
        from isr import batching

        given = {"judges": self.judges(), "cache": self.cache, "retry": RETRY, **more}
        return getattr(batching, name)(*args, **given)

    def begin(self, **more: Any) -> Any:
        made = study(**self.options)
        return self.step("submit", made.pop("edits"), made.pop("prompts"), out=self.run, **made, **more)

    def submit(self, **more: Any) -> Any:
        return self.step("submit", self.run, **more)

    def status(self, **more: Any) -> Any:
        return self.step("status", self.run, **more)

    def collect(self, **more: Any) -> Any:
        return self.step("collect", self.run, **more)


@contextmanager
def warned() -> Iterator[list[str]]:
    """Messages of the warnings inside."""
    said: list[str] = []
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        yield said
    said += [str(w.message) for w in found]
