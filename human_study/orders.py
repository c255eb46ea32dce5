"""Who rates what, in which order: random per rater and fixed, with hidden repeats and attention checks in between."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["Slot", "rater_order", "share_items"]

#: A hidden repeat comes at least this many places after the first time (fewer only where the list is short).
REPEAT_DISTANCE = 10


@dataclass(frozen=True)
class Slot:
    """One place in a rater's list. kind: training, rating, repeat (of an item rated before) or attention."""

    item: str
    kind: str


def share_items(items: Sequence[str], rater: int, raters: int, per_item: int | None, seed: int) -> list[str]:
    """The items of one rater where each item goes to `per_item` of the first `raters` raters, as evenly as possible.

    Args:
        rater: 0-based. per_item: None: everyone rates everything. seed: the study's.
    """
    if per_item is None or per_item >= raters:
        return list(items)
    shuffled = [items[i] for i in np.random.default_rng([seed, 1]).permutation(len(items))]
    # Consecutive blocks on a circle: every item gets `per_item` different raters, loads differ by at most one.
    return [item for i, item in enumerate(shuffled) if (rater - i * per_item) % raters < per_item]


def rater_order(
    items: Sequence[str],
    *,
    seed: int,
    rater: int,
    training: Sequence[str] = (),
    attention: Sequence[str] = (),
    repeats: int = 0,
) -> list[Slot]:
    """The list of one rater: training first (same order for all), then the shuffled items with checks spread among them.

    Args:
        items: to be rated. rater: 0-based number, so that lists differ; the same seed and rater give the same list.
        repeats: how many items come a second time, later, without a word about it.
    """
    rng = np.random.default_rng([seed, 2, rater])
    main = [Slot(items[i], "rating") for i in rng.permutation(len(items))]
    length = len(main)
    distance = min(REPEAT_DISTANCE, length // 2)
    # Repeats come from the part of the list that leaves room for the distance.
    early = max(length - distance, 0)
    again = sorted(rng.choice(early, size=min(repeats, early), replace=False).tolist()) if early else []
    inserts: list[tuple[int, Slot]] = []
    for place in again:
        where = int(rng.integers(place + distance, length + 1)) if distance else length
        inserts.append((where, Slot(main[place].item, "repeat")))
    for index, position in enumerate(rng.permutation(len(attention))):
        # One check in each of len(attention) equal stretches, somewhere inside it.
        low, high = index * length // len(attention), (index + 1) * length // len(attention)
        inserts.append((int(rng.integers(low, max(high, low + 1))), Slot(attention[int(position)], "attention")))
    out = list(main)
    for where, slot in sorted(inserts, key=lambda pair: pair[0], reverse=True):
        out.insert(where, slot)
    return [*(Slot(item, "training") for item in training), *out]
