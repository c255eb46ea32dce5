"""Pictures and scripted judges for tests of `evaluate`."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import PIL.Image

from isr.protocols import AskJudge, JudgeLimits, Question, Reply
from isr.schema import NoVerdict, Verdict


def picture(index: int, side: int = 12) -> PIL.Image.Image:
    rng = np.random.default_rng(index)
    return PIL.Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8))


def pictures(n: int, start: int = 0) -> list[PIL.Image.Image]:
    return [picture(start + i) for i in range(n)]


def verdict(mismatch: bool = False, degradation: bool = False) -> Verdict:
    return Verdict(semantic_mismatch=mismatch, degradation=degradation)


def text(mismatch: bool = False, degradation: bool = False) -> str:
    return json.dumps(
        {
            "observations": "o", "reason_semantic_mismatch": "r", "reason_degradation": "r",
            "semantic_mismatch": mismatch, "degradation": degradation,
        }
    )  # fmt: skip


class Scripted(AskJudge):
    """Answers by a function of the question, or one list item per call, and remembers the questions."""

    version = "1"

    def __init__(
        self, script: Callable[[Question], Any] | Sequence[Any], name: str = "scripted", concurrency: int = 4
    ) -> None:
        self.name = name
        self.limits = JudgeLimits(concurrency=concurrency)
        self.script = script
        self.asked: list[Question] = []

    async def ask(self, question: Question) -> Reply:
        self.asked.append(question)
        item = self.script(question) if callable(self.script) else self.script[len(self.asked) - 1]
        if isinstance(item, BaseException):
            raise item
        if isinstance(item, Reply):
            return item
        if isinstance(item, str):
            return Reply(text=item, served_model="scripted-1")
        if isinstance(item, Verdict | NoVerdict):
            return Reply(answer=item)
        return item  # type: ignore[no-any-return]
