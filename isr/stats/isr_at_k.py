"""ISR@k: the attacker redraws k seeds and wins with the best one (docs/definitions.md section 3)."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from ..errors import UsageError
from ._inputs import need_columns, outcome_codes
from .outcomes import Rate, isr

__all__ = ["isr_at_k"]


def isr_at_k(
    cases: pd.DataFrame,
    k: int,
    *,
    pair: Sequence[str] = ("image_id", "prompt"),
    seed: str = "seed",
    outcome: str = "outcome",
    image: str | None = "image_id",
    level: float = 0.95,
) -> Rate:
    """Share of (image, prompt) pairs of which all k edits are successes.

    A pair fails as soon as one of its k edits fails, whatever the others are; it is undetermined when none fails and at
    least one is undetermined. Every pair must hold exactly k edits with k different seeds: with fewer, "all" would be
    easier to reach and the figure would flatter. Call it once per method, editor and purifier.

    Args:
        cases: one row per edit. k: at least 1.
    """
    if k < 1 or int(k) != k:
        raise UsageError(f"k: expected a whole number of at least 1, got {k!r}")
    need_columns("cases", cases, [*pair, seed, outcome, *([image] if image else [])])
    if len(cases) == 0:
        raise UsageError("cases: expected at least one row, got none")
    table = cases[list(dict.fromkeys([*pair, seed, *([image] if image else [])]))].copy()
    table["_code"] = outcome_codes(outcome, cases[outcome].to_numpy(dtype=object))
    groups = table.groupby(list(pair), sort=False, dropna=False)
    sizes = pd.DataFrame({"rows": groups.size(), "seeds": groups[seed].nunique()})
    wrong = sizes[(sizes["rows"] != k) | (sizes["seeds"] != k)]
    if len(wrong):
        first = wrong.iloc[0]
        raise UsageError(
            f"cases: ISR@{k} needs exactly {k} edits with {k} different seeds for every {tuple(pair)}; {len(wrong)} of "
            f"{len(sizes)} differ, the first, {wrong.index[0]}, has {first['rows']} edits and {first['seeds']} seeds. "
            "Filter to one method, editor and purifier, complete the missing edits, or ask for a smaller k"
        )
    worst = groups["_code"].agg(lambda c: 0 if (c == 0).any() else (-1 if (c == -1).any() else 1))
    names = worst.map({1: "success", 0: "failure", -1: "undetermined"})
    ids = groups[image].first().to_numpy(dtype=object) if image else None
    return isr(names.to_numpy(dtype=object), ids, level=level)
