"""Reports made straight from records: many cases in little time, with small pictures and hostile words."""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import PIL.Image

import isr
from isr.images import as_image
from isr.lock import judge_lock
from isr.rubric import Rubric
from isr.schema import CaseRecord, Judgement, NoVerdict, Verdict, case_hash

#: Tries to leave its place in HTML, in a script, in an attribute, and in JSON inside a script.
EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"' <!-- {{ 7*6543 }} \u2028 & ]]>"
METHODS = ("sifm", "mist")


@cache
def picture(index: int, side: int = 12) -> tuple[str, bytes]:
    """(digest, PNG) of a small random picture."""
    pixels = np.random.default_rng(index).integers(0, 256, (side, side, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    PIL.Image.fromarray(pixels).save(buffer, "PNG")
    image = as_image(buffer.getvalue(), name="p")
    return image.digest, image.png()


def verdict(mismatch: bool, degradation: bool, words: str = "seen") -> Verdict:
    reasons = {"semantic_mismatch": f"{words} a", "degradation": f"{words} b"}
    return Verdict(semantic_mismatch=mismatch, degradation=degradation, observations=words, reasons=reasons)


def report(
    n: int = 12,
    *,
    judges: tuple[str, ...] = ("a", "b"),
    controls: bool = True,
    words: str = "seen",
    say: Callable[[int, int], Any] | None = None,
    control_fails: Callable[[int], bool] = lambda i: False,
    judge_entry: dict[str, Any] | None = None,
    methods: tuple[str, ...] = METHODS,
    prompt: Callable[[int], str] = lambda i: f"make it {i % 5}",
    pool: int = 24,
    side: int = 12,
    kept: bool = True,
    originals: bool = True,
    lazy: bool = False,
) -> isr.Report:
    """n edits of the immunized arm in rows of `methods` per image.

    Args:
        say: (case, judge) → answer. By default judge 0 says mismatch on every second case; judge 1 the same except that it
            disagrees on every sixth and gives no verdict on every sixth plus one.
        control_fails: case → whether its control is defeated.
    """

    def usual(i: int, j: int) -> Any:
        if j == 1 and i % 6 == 1:
            return NoVerdict(reason="blocked", detail=words)
        return verdict((i % 2 == 0) ^ (j == 1 and i % 6 == 0), False, words)

    cases: list[CaseRecord] = []
    judgements: list[Judgement] = []
    pngs: dict[str, bytes] = {}

    def add(record: dict[str, Any], answers: list[Any]) -> str:
        identity: dict[str, Any] = {
            k: record.get(k) for k in ("edited", "original", "prompt", "method", "editor", "seed", "arm")
        }
        key = case_hash(**identity, ordinal=len(cases))
        cases.append(CaseRecord(case_id=key, **record))
        judgements.extend(Judgement(case_id=key, judge=name, answer=a) for name, a in zip(judges, answers, strict=True))
        return key

    for i in range(n):
        image = i // len(methods)
        original, edited, control = (
            picture(k * pool + image % pool if k != 1 else pool + i % pool, side) for k in range(3)
        )
        pngs |= dict((original, edited, control))
        shared = {
            "prompt": prompt(i), "original": original[0] if originals else None, "image_id": f"i{image}", "seed": image,
            "category": ("portrait", "artwork", "animal")[image % 3], "prompt_kind": ("original", "unseen")[image % 2],
        }  # fmt: skip
        control_id = None
        if controls:
            fails = control_fails(i)
            control_id = add(
                {**shared, "edited": control[0], "arm": "control"}, [verdict(fails, False, words)] * len(judges)
            )
        answers = [(say or usual)(i, j) for j in range(len(judges))]
        columns = {"method": methods[i % len(methods)], "id": f"case-{i}", "tags": {"note": words}}
        add({**shared, **columns, "edited": edited[0], "control": control_id}, answers)
    entry = {"fingerprint": "f", "identity": {"provider": "function"}, "served": {}, **(judge_entry or {})}
    lock = judge_lock(
        judges=[{"name": name, **entry} for name in judges], rubric=Rubric.default(), consensus="strict",
        with_originals=originals, settings={"votes": 1, "lazy": lazy, "codec": "png", "ask_overall": False, "max_side": None},
    )  # fmt: skip
    return isr.Report(lock, cases, judgements, picture=pngs.get if kept else None)
