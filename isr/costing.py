"""What a run cost, from its stored calls."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pandas as pd

from .money import Prices, judge_model
from .schema import Verdict

if TYPE_CHECKING:
    from .report import Report

__all__ = ["cost_table"]


def cost_table(report: Report) -> pd.DataFrame:
    """One row per judge, in US dollars.

    Columns: judge; calls (received in all), cached (of them, answered from the cache by this run); cost (what all received
    replies cost when they were made); per_decided (cost / cases of any arm whose consensus is decided); lazy_saving (spent on
    cases on which an earlier judge had said "not defeated"; 0 for the first); batch_saving (cost of the live calls × (1 − batch factor)).
    """
    prices = Prices.load()
    decided = sum(o.value != "undetermined" for o in report.outcomes)
    identities: Mapping[str, Any] = {j["name"]: j.get("identity", {}) for j in report.lock["judges"]}
    answers = {(j.case_id, j.judge): j for j in report.judgement_records}
    rows = []
    for position, name in enumerate(report.judges):
        mine = [j for j in report.judgement_records if j.judge == name]
        calls = [c for j in mine for c in j.calls]
        costs = [c.cost for c in calls]
        known = [c for c in costs if c is not None]
        total = sum(known) if known else None
        skippable = 0.0
        for judgement in mine:
            earlier = [answers.get((judgement.case_id, other)) for other in report.judges[:position]]
            if any(e is not None and isinstance(e.answer, Verdict) and not e.answer.defeated for e in earlier):
                skippable += sum(c.cost or 0.0 for c in judgement.calls)
        price = prices.find(judge_model(identities.get(name, {})) or name)
        # A call without attempts came through a batch and was charged as such.
        live = sum(c.cost for c in calls if c.cost is not None and c.attempts)
        batch = None if price is None or price.batch is None or total is None else live * (1 - price.batch)
        rows.append(
            {
                "judge": name,
                "calls": len(calls),
                "cached": sum(c.cached for c in calls),
                "cost": total,
                "calls_without_price": sum(c is None for c in costs),
                "per_decided": None if total is None or not decided else total / decided,
                "lazy_saving": None if total is None else skippable,
                "batch_saving": batch,
            }
        )
    return pd.DataFrame(rows)
