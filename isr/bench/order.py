"""The order of a run's rows: a function of the plan alone, never of which worker or which judge was done first.

Rows are appended as they are finished. Whoever reads them back puts them in the order in which the plan lists them (target,
arm, source, attack, purifier, picture, prompt, redraw), so that tables, reports, cards and figures are the same bytes
whatever finished first.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..schema import CaseRecord, Judgement
from .experiment import Experiment
from .files import StepRow
from .plan import KINDS, NONE

__all__ = ["in_plan_order", "ordered_judgements", "ordered_steps", "whole"]

#: (place in the list, name): names that the list lacks come last, by name.
_Place = tuple[int, str]


class _Places:
    """Name → place in a list."""

    def __init__(self, names: Iterable[str]) -> None:
        self._place = {name: i for i, name in enumerate(dict.fromkeys(names))}

    def __call__(self, name: str) -> _Place:
        return self._place.get(name, len(self._place)), name


def whole(value: object) -> int:
    """A tag that counts; 0 where a stranger's run holds something else."""
    return value if isinstance(value, int) else 0


def in_plan_order(
    cases: Iterable[CaseRecord], experiment: Experiment, images: Sequence[str] = ()
) -> tuple[CaseRecord, ...]:
    """Cases as the plan lists them; a control row stands before the first edit that it belongs to.

    Args:
        images: ids of the pictures in the plan's order (experiment.json); without them pictures go by id.
    """
    target = _Places(p.target for p in experiment.matrix)
    source = _Places(p.source for p in experiment.matrix)
    attack = _Places(a.title for a in experiment.attacks)
    purifier = _Places([NONE, *(p.title for p in experiment.purifiers)])
    image = _Places(images)

    def place(case: CaseRecord) -> tuple[Any, ...]:
        tags = case.tags
        return (
            target(case.editor or ""), case.arm != "noise", source(str(tags.get("source") or "")), attack(case.method or ""),
            purifier(case.purifier or NONE), image(case.image_id or ""), whole(tags.get("unseen")), case.prompt,
            whole(tags.get("redraw")), case.case_id,
        )  # fmt: skip

    rows = list(cases)
    edits = sorted((c for c in rows if c.arm != "control"), key=place)
    controls = {c.case_id: c for c in rows if c.arm == "control"}
    found: list[CaseRecord] = []
    for edit in edits:
        control = controls.pop(edit.control or "", None)
        if control is not None:
            found.append(control)
        found.append(edit)
    return (*found, *sorted(controls.values(), key=place))


def ordered_judgements(
    judgements: Iterable[Judgement], cases: Iterable[CaseRecord], judges: Sequence[str]
) -> tuple[Judgement, ...]:
    """Judgements in the order of their cases, and of the judges within each."""
    case = {c.case_id: i for i, c in enumerate(cases)}
    judge = _Places(judges)
    return tuple(sorted(judgements, key=lambda j: (case.get(j.case_id, len(case)), judge(j.judge))))


def ordered_steps(rows: Mapping[str, StepRow]) -> dict[str, StepRow]:
    """Steps by kind and name. A step's name is a hash of the plan, so this order depends on nothing else."""
    return {r.key: r for r in sorted(rows.values(), key=lambda r: (KINDS.index(r.kind), r.key))}
