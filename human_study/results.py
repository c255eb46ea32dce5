"""What the raters said, as tables: one row per rating (what `isr agree` and `isr calibrate` read), and tidy with all checks.

De-identified: raters appear as their codes, without names, links, times of day or comments (comments only on request).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

from isr.errors import UsageError

from .store import Answer, Assignment, Rater, Store

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["FAST_SECONDS", "Progress", "passed", "progress", "ratings_table", "tidy_table"]

#: An answer given in less time than this is counted as fast on the organiser's page.
FAST_SECONDS = 1.5
HUMAN = "human:"


@dataclass(frozen=True)
class Progress:
    """Where one rater is. position: the next unanswered place, or None at the end. checks and repeats: (good, answered)."""

    rater: Rater
    total: int
    done: int
    position: int | None
    seconds: float | None
    fast: int
    cannot: int
    comments: int
    checks: tuple[int, int]
    repeats: tuple[int, int]
    last: str | None


def passed(said: dict[str, bool | None], expected: dict[str, bool]) -> bool:
    """Whether an answer agrees with every known answer. "Cannot judge" does not."""
    return all(said.get(key) is value for key, value in expected.items())


def _standing(store: Store) -> dict[int, Answer]:
    return {answer.assignment_id: answer for answer in store.history()}


def progress(store: Store) -> list[Progress]:
    """One row per rater, in order of joining."""
    standing = _standing(store)
    rows = []
    for rater in store.raters():
        places = store.assignments(rater.id)
        given = {p.id: standing[p.id] for p in places if p.id in standing}
        answers = list(given.values())
        times = [a.seconds for a in answers if a.seconds is not None]
        checks = [
            passed(given[p.id].said, store.study.by_id[p.item].expected)
            for p in places
            if p.kind == "attention" and p.id in given
        ]
        repeats = [same for same in _repeat_results(places, given).values() if same is not None]
        rows.append(
            Progress(
                rater=rater,
                total=len(places),
                done=len(given),
                position=next((p.position for p in places if p.id not in given), None),
                seconds=median(times) if times else None,
                fast=sum(t < FAST_SECONDS for t in times),
                cannot=sum(v is None for a in answers for v in a.said.values()),
                comments=sum(bool(a.comment) for a in answers),
                checks=(sum(checks), len(checks)),
                repeats=(sum(repeats), len(repeats)),
                last=max((a.received for a in answers), default=None),
            )
        )
    return rows


def _repeat_results(places: tuple[Assignment, ...], given: dict[int, Answer]) -> dict[int, bool | None]:
    """Per repeat's assignment id: whether both times say the same on every criterion; None where one is unanswered."""
    first = {p.item: p.id for p in places if p.kind == "rating"}
    found: dict[int, bool | None] = {}
    for place in places:
        if place.kind == "repeat":
            a, b = given.get(first[place.item]), given.get(place.id)
            found[place.id] = None if a is None or b is None else a.said == b.said
    return found


def _counted(store: Store, without: Collection[str]) -> list[Rater]:
    everybody = store.raters()
    for name in without:
        if name not in {r.label for r in everybody}:
            raise UsageError(f"without: nobody is called {name!r}; there are {', '.join(r.label for r in everybody)}")
    return [r for r in everybody if not r.withdrawn and r.label not in without]


def ratings_table(store: Store, *, comments: bool = False, without: Collection[str] = ()) -> pd.DataFrame:
    """One row per rater and rated case: rater (`human:R1`), case_id, image_id, one column per criterion (True, False, missing),
    overall, cannot_judge (criteria, joined by a space), order, seconds, revisions, stratum, inclusion_probability.

    Training, repeats and attention checks are no ratings and are not here; withdrawn raters are nowhere, revoked ones are
    there unless their codes are named in `without`.
    """
    import pandas as pd

    standing = _standing(store)
    keys = [q.key for q in store.study.questions]
    rows: list[dict[str, Any]] = []
    for rater in _counted(store, without):
        for place in store.assignments(rater.id):
            answer = standing.get(place.id)
            item = store.study.by_id[place.item]
            if place.kind != "rating" or answer is None or item.case_id is None:
                continue
            row: dict[str, Any] = {"rater": HUMAN + rater.label, "case_id": item.case_id, "image_id": item.image_id}
            row |= {key: answer.said.get(key) for key in keys}
            row |= {
                "cannot_judge": " ".join(k for k in keys if answer.said.get(k) is None),
                "order": place.position, "seconds": answer.seconds, "revisions": answer.revision, "stratum": item.stratum,
                "inclusion_probability": item.inclusion_probability,
            }  # fmt: skip
            rows.append(row | ({"comment": answer.comment} if comments else {}))
    columns = [
        "rater", "case_id", "image_id", *keys, "cannot_judge", "order", "seconds", "revisions", "stratum",
        "inclusion_probability", *(["comment"] if comments else []),
    ]  # fmt: skip
    table = pd.DataFrame(rows, columns=columns)
    for key in (*keys,):
        table[key] = table[key].astype("boolean")
    return table


def tidy_table(store: Store, *, comments: bool = False, without: Collection[str] = ()) -> pd.DataFrame:
    """Everything asked, one row per rater × place × criterion.

    Columns: rater, item (opaque), kind (rating, training, repeat, attention), case_id (of ratings and repeats), criterion,
    answer ("yes", "no", "cannot judge"), seconds (of the whole item), order, revision, check ("passed"/"failed" for known
    answers, "same"/"different" for repeats, else empty).
    """
    import pandas as pd

    standing = _standing(store)
    rows: list[dict[str, Any]] = []
    for rater in _counted(store, without):
        places = store.assignments(rater.id)
        first = {p.item: p.id for p in places if p.kind == "rating"}
        for place in places:
            answer = standing.get(place.id)
            if answer is None:
                continue
            item = store.study.by_id[place.item]
            earlier = standing.get(first[place.item]) if place.kind == "repeat" else None
            for question in store.study.questions:
                value = answer.said.get(question.key)
                check = ""
                if question.key in item.expected:
                    check = "passed" if value is item.expected[question.key] else "failed"
                elif earlier is not None:
                    check = "same" if earlier.said.get(question.key) is value else "different"
                row: dict[str, Any] = {
                    "rater": HUMAN + rater.label, "item": item.id, "kind": place.kind, "case_id": item.case_id or "",
                    "criterion": question.key, "answer": {True: "yes", False: "no", None: "cannot judge"}[value],
                    "seconds": answer.seconds, "order": place.position, "revision": answer.revision, "check": check,
                }  # fmt: skip
                rows.append(row | ({"comment": answer.comment} if comments else {}))
    columns = ["rater", "item", "kind", "case_id", "criterion", "answer", "seconds", "order", "revision", "check"]
    return pd.DataFrame(rows, columns=[*columns, *(["comment"] if comments else [])])
