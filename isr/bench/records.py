"""The case records of an experiment's folder in the plan's order, judged or not yet."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..report import Report
from ..schema import CaseRecord
from .dataset import StoredItem, stored_items
from .experiment import Experiment
from .files import ExperimentFiles, StepRow
from .order import in_plan_order, ordered_judgements
from .plan import NONE, CaseSpec, planned_cases

__all__ = ["Place", "load_report", "names_of", "place_of", "unjudged_records"]

#: What a case is called and where it belongs, apart from its pictures.
Place = tuple[object, ...]


def place_of(row: CaseRecord) -> Place:
    """Of a stored row, as `names_of` has it of a planned one."""
    tags = row.tags
    return (
        row.method, row.editor, row.prompt_kind, row.purifier, row.image_id, row.arm, row.category,
        *(tags.get(t) for t in ("source", "table", "unseen", "redraw")),
    )  # fmt: skip


def names_of(cases: Iterable[CaseSpec]) -> dict[str, set[Place]]:
    """Edit step → every place in which the plan shows it."""
    found: dict[str, set[Place]] = {}
    for c in cases:
        purifier = None if c.purifier == NONE else c.purifier
        found.setdefault(c.edit, set()).add(
            (
                c.method,
                c.target,
                c.prompt_kind,
                purifier,
                c.image_id,
                c.arm,
                c.category,
                c.source,
                c.table,
                c.unseen,
                c.redraw,
            )
        )
    return found


def load_report(folder: str | Path) -> Report:
    """`Report.load` of an experiment's folder, its rows in the plan's order instead of the order in which they were judged."""
    report = Report.load(folder)
    info = ExperimentFiles.at(folder).info()
    experiment = Experiment.of(info["experiment"], source=repr(str(folder)), stored=True)
    items = stored_items(info, f"{folder}/experiment.json")
    cases = in_plan_order(report.case_records, experiment, [i.image_id for i in items])
    judgements = ordered_judgements(report.judgement_records, cases, report.judges)
    return Report(report.lock, cases, judgements, picture=report.picture)


def unjudged_records(
    experiment: Experiment, items: Sequence[StoredItem], steps: Mapping[str, StepRow]
) -> list[CaseRecord]:
    """Cases and controls as the plan has them, where both edits are there; named by their steps."""
    found: dict[str, CaseRecord] = {}
    for case in planned_cases(experiment, items):
        edit, control = steps.get(case.edit), steps.get(case.control)
        if edit is None or control is None:
            continue
        shared: dict[str, Any] = {
            "prompt": case.prompt, "original": case.original, "image_id": case.image_id, "editor": case.target,
            "prompt_kind": case.prompt_kind, "category": case.category, "seed": case.seed,
            "purifier": None if case.purifier == NONE else case.purifier,
        }  # fmt: skip
        tags = {
            "source": case.source, "table": case.table, "redraw": case.redraw, "unseen": case.unseen, "step": case.edit,
        }  # fmt: skip
        beside = f"{case.control}/{case.target}"  # two labels of one editor share the step, and are two targets
        found.setdefault(beside, CaseRecord(case_id=beside, edited=control.digest, arm="control", **shared))
        name = f"{case.edit}/{case.method}/{case.source}/{case.target}/{case.unseen}"
        found[name] = CaseRecord(
            case_id=name,
            edited=edit.digest,
            control=beside,
            method=case.method,
            arm=case.arm,
            tags=tags,
            **shared,
        )
    return list(found.values())
