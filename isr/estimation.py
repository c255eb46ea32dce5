"""What a run would ask, before it asks: calls, tokens, and what the cache already holds. Nothing is sent."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import Any

import pandas as pd

from .engine.runner import cache_keys
from .evaluation import Plan, plan, price_of
from .schema import NoVerdict, Usage

__all__ = ["Estimate", "JudgeEstimate", "estimate"]

#: Characters of English text per token, from dense to loose tokenizers.
_CHARS_PER_TOKEN = (5.0, 3.0)
#: Tokens of one picture: from one tile of a small picture to one tile per 512 × 512 pixels at the dearest published rate.
_PICTURE_BASE = 85
_PICTURE_TILE = 770
#: Reply length: the observed shortest and a long one with reasoning ("thinking") tokens.
_OUTPUT = (80, 1500)


@dataclass(frozen=True)
class JudgeEstimate:
    """One judge's share.

    Attributes:
        judge: name. cached: calls answered from the cache. calls: (fewest, most) new calls.
        input_tokens, output_tokens: (low, high) of the new calls; orders of magnitude, since every model counts its own way.
        cost: (low, high) in US dollars, or None where no price is known or nothing is paid per token.
        batch_cost: the same through the batch API (`isr batch`), or None where no batch price is known.
    """

    judge: str
    cached: int
    calls: tuple[int, int]
    input_tokens: tuple[int, int]
    output_tokens: tuple[int, int]
    cost: tuple[float, float] | None = None
    batch_cost: tuple[float, float] | None = None


@dataclass(frozen=True)
class Estimate:
    """What a run would ask."""

    cases: int
    bad_images: int
    judges: tuple[JudgeEstimate, ...]

    @property
    def calls(self) -> tuple[int, int]:
        """(fewest, most) new calls in all."""
        return sum(j.calls[0] for j in self.judges), sum(j.calls[1] for j in self.judges)

    @property
    def cost(self) -> tuple[float, float] | None:
        """(low, high) in US dollars over the judges with a known price; None where none has one."""
        known = [j.cost for j in self.judges if j.cost is not None]
        return (sum(c[0] for c in known), sum(c[1] for c in known)) if known else None

    def table(self) -> pd.DataFrame:
        return pd.DataFrame(
            [
                {
                    "judge": j.judge, "cached": j.cached, "calls": _range(j.calls),
                    "input tokens": _range(j.input_tokens), "output tokens": _range(j.output_tokens),
                    "US dollars": _dollars(j.cost), "as a batch": _dollars(j.batch_cost),
                }
                for j in self.judges
            ]
        )  # fmt: skip


def estimate(edits: Any, prompts: Any = None, **arguments: Any) -> Estimate:
    """Calls and tokens that `evaluate` with the same arguments would need. Checks everything; sends nothing."""
    return estimate_plan(plan(edits, prompts, **arguments))


def estimate_plan(made: Plan) -> Estimate:
    """The same for a finished plan."""
    good = [case for case in made.cases if case.problem() is None]
    schema = made.rubric.reply_schema(ask_overall=made.settings.ask_overall)
    instructions = made.rubric.instructions(
        with_original=bool(made.prepared and made.prepared.has_originals), ask_overall=made.settings.ask_overall
    )
    fixed = len(instructions) + len(str(schema))
    found = []
    for position, judge in enumerate(made.judges):
        keys = cache_keys(judge, made.rubric, made.settings)
        cached = new = 0
        low = high = 0.0
        for case in good:
            text = fixed + len(case.record.prompt) + 32
            pictures = [
                (_PICTURE_BASE, _PICTURE_BASE + _PICTURE_TILE * ceil(w / 512) * ceil(h / 512)) for w, h in case.sizes()
            ]
            for vote in range(made.settings.votes):
                key = keys.key(prompt=case.record.prompt, pictures=case.digests(), vote=vote, ask=0)
                stored = made.cache.get(key) if getattr(judge, "cacheable", True) else None
                if stored is not None and not (
                    made.settings.retry_no_verdicts and isinstance(stored.answer, NoVerdict)
                ):
                    cached += 1
                    continue
                new += 1
                low += text / _CHARS_PER_TOKEN[0] + sum(p[0] for p in pictures)
                high += text / _CHARS_PER_TOKEN[1] + sum(p[1] for p in pictures)
        # After the first judge, lazy may skip every call; an unreadable reply is asked for once more.
        fewest = 0 if made.lazy and position > 0 else new
        share = fewest / new if new else 0.0
        tokens_in = (round(low * share), round(2 * high))
        tokens_out = (_OUTPUT[0] * fewest, _OUTPUT[1] * 2 * new)
        price = price_of(judge, made.prices)
        cost = None
        if price is not None:
            ends = [
                price.of(Usage(input_tokens=i, output_tokens=o)) or 0.0
                for i, o in zip(tokens_in, tokens_out, strict=True)
            ]
            cost = (ends[0], ends[1])
        # A batch asks every judge, so it has no lazy form.
        batch = None
        if price is not None and price.batch is not None and not made.lazy and cost is not None:
            batch = (cost[0] * price.batch, cost[1] * price.batch)
        found.append(JudgeEstimate(judge.name, cached, (fewest, 2 * new), tokens_in, tokens_out, cost, batch))
    return Estimate(len(made.cases), len(made.cases) - len(good), tuple(found))


def _dollars(ends: tuple[float, float] | None) -> str:
    return "unknown" if ends is None else f"{ends[0]:.2f} – {ends[1]:.2f}"


def _range(pair: tuple[int, int]) -> str:
    return f"{pair[0]:,}" if pair[0] == pair[1] else f"{pair[0]:,} – {pair[1]:,}"
