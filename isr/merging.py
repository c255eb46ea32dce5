"""Joining runs that several machines judged (`--shard i/n`)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .errors import UsageError
from .lock import lock_differences
from .report import Report
from .schema import CaseRecord, Judgement

__all__ = ["merge"]


def merge(runs: Sequence[str | Path], out: str | Path, *, images: bool = True) -> Report:
    """One run directory from several that were judged alike. Locks are compared and pictures hashed again; a model that was
    served in two snapshots is kept as such (the report warns), everything else that differs is refused.

    Raises:
        UsageError: unlike locks, one case with other columns, or one judge with two different answers on a case.
    """
    if len(runs) < 2:
        raise UsageError(f"merge: expected at least two run directories, got {len(runs)}")
    reports = [Report.load(run) for run in runs]
    for run, report in zip(runs[1:], reports[1:], strict=True):
        differences = [d for d in lock_differences(reports[0].lock, report.lock) if not d.startswith("model served")]
        if differences:
            raise UsageError(f"merge: {runs[0]} and {run} were judged differently:\n  - " + "\n  - ".join(differences))
    cases: dict[str, CaseRecord] = {}
    judgements: dict[tuple[str, str], Judgement] = {}
    for run, report in zip(runs, reports, strict=True):
        for case in report.case_records:
            if cases.setdefault(case.case_id, case) != case:
                raise UsageError(f"merge: the case {case.case_id} has other columns in {run} than in an earlier run")
        for judgement in report.judgement_records:
            key = (judgement.case_id, judgement.judge)
            if judgements.setdefault(key, judgement).answer != judgement.answer:
                raise UsageError(
                    f"merge: on the case {judgement.case_id} the answers differ of {judgement.judge} in {run} and in an earlier run "
                    "(two calls may); keep one of the two runs"
                )

    def picture(digest: str) -> bytes | None:
        return next((png for report in reports if (png := report.picture(digest)) is not None), None)

    merged = Report(_lock(reports), list(cases.values()), list(judgements.values()), picture=picture)
    merged.save(out, images=images)
    return merged


def _lock(reports: Sequence[Report]) -> dict[str, Any]:
    """The first lock, with what every part was served and noted."""
    lock = dict(reports[0].lock)
    served = [{j["name"]: j.get("served", {}) for j in report.lock["judges"]} for report in reports]
    lock["judges"] = [
        {**judge, "served": dict(sum((Counter(part.get(judge["name"], {})) for part in served), Counter()))}
        for judge in lock["judges"]
    ]
    lock["notes"] = list(dict.fromkeys(note for report in reports for note in report.lock.get("notes", ())))
    return lock
