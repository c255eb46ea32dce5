"""Joining runs that several machines judged (`--shard i/n`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .errors import UsageError
from .lock import lock_differences, with_served, with_shards
from .protocols import Consensus
from .report import Report, received
from .schema import CaseRecord, Judgement, NotAsked

__all__ = ["merge"]


def merge(
    runs: Sequence[str | Path], out: str | Path, *, images: bool = True, consensus: Consensus | None = None
) -> Report:
    """One run directory from several that were judged alike. Locks are compared and pictures hashed again; a model that was
    served in two snapshots is kept as such (the report warns), everything else that differs is refused. A received answer
    stands before one that never came (over budget, exhausted, expired, …). Shards that are missing become a note.

    Raises:
        UsageError: unlike locks, one case with other columns, or one judge with two different answers on a case.
    """
    if len(runs) < 2:
        raise UsageError(f"merge: expected at least two run directories, got {len(runs)}")
    reports = [Report.load(run, consensus=consensus) for run in runs]
    for run, report in zip(runs[1:], reports[1:], strict=True):
        differences = lock_differences(reports[0].lock, report.lock, served=False)
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
            held = judgements.get(key)
            if held is None or (not received(held) and (received(judgement) or isinstance(held.answer, NotAsked))):
                judgements[key] = judgement
            elif received(judgement) and held.answer != judgement.answer:
                raise UsageError(
                    f"merge: on the case {judgement.case_id} the answers differ of {judgement.judge} in {run} and in an earlier run "
                    "(two calls may); keep one of the two runs"
                )

    def picture(digest: str) -> bytes | None:
        return next((png for report in reports if (png := report.picture(digest)) is not None), None)

    notes = list(dict.fromkeys(note for report in reports for note in report.lock.get("notes", ())))
    judges = [_with_card(entry, reports) for entry in reports[0].lock["judges"]]
    lock = with_shards({**reports[0].lock, "judges": judges, "notes": notes}, [r.lock for r in reports])
    lock = with_served(lock, judgements.values())
    merged = Report(lock, list(cases.values()), list(judgements.values()), picture=picture, consensus=consensus)
    merged.save(out, images=images)
    return merged


def _with_card(entry: Mapping[str, Any], reports: Sequence[Report]) -> dict[str, Any]:
    """A judge's entry of the lock with the probe card of any of the runs; one that was not passed stands before one that was."""
    cards = [j["probe"] for r in reports for j in r.lock["judges"] if j["name"] == entry["name"] and j.get("probe")]
    cards.sort(key=lambda card: isinstance(card, Mapping) and card.get("passed") is True)
    return {**entry, "probe": cards[0] if cards else entry.get("probe")}
