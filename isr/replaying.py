"""Recompute every number of a run from its stored replies, offline."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from .engine.votes import combine_votes
from .errors import IntegrityError
from .protocols import Consensus
from .report import Report
from .rubric import Rubric
from .schema import Call, Judgement, NotAsked, NoVerdict, Verdict

__all__ = ["Replay", "replay"]


@dataclass(frozen=True)
class Replay:
    """A run computed again.

    Attributes:
        report: from the recomputed answers. differences: one line per judgement whose stored answer is not what its stored
            replies say (a changed parser, or a tampered run); empty when everything agrees.
        recomputed: judgements that rest on a stored reply. kept: those that rest on none (not asked, bad image,
            exhausted), taken as stored.
    """

    report: Report
    differences: tuple[str, ...]
    recomputed: int
    kept: int


def replay(run: Report | str | Path, *, consensus: Consensus | None = None) -> Replay:
    """Parse every stored reply again with the run's own rubric, combine votes again, decide the consensus again.

    Args:
        run: a report or run directory. consensus: the policy function of a run whose policy was a function.

    Raises:
        IntegrityError: the stored rubric is not the one whose hash is in the lock, or the run is not what it claims to be.
    """
    report = run if isinstance(run, Report) else Report.load(run, consensus=consensus)
    try:
        rubric = Rubric.model_validate(report.lock["rubric"])
    except ValidationError as error:
        raise IntegrityError(f"run.json: the stored rubric cannot be read: {error}") from error
    if rubric.hash != report.lock["rubric_hash"]:
        raise IntegrityError(
            f"run.json: the stored rubric hashes to {rubric.hash[:12]}, the lock says {str(report.lock['rubric_hash'])[:12]}"
        )
    ask_overall = bool(report.lock["settings"].get("ask_overall", False))
    votes = report.lock["settings"].get("votes", 1)
    again: list[Judgement] = []
    differences: list[str] = []
    recomputed = kept = 0
    for stored in report.judgement_records:
        if not stored.calls or isinstance(stored.answer, NotAsked):
            if isinstance(stored.answer, Verdict) and stored.judge in report.judges:
                differences.append(f"case {stored.case_id}, judge {stored.judge}: a verdict without a stored reply")
            again.append(stored)
            kept += 1
            continue
        calls = tuple(_read_again(call, rubric, ask_overall) for call in stored.calls)
        last = {call.vote: call.answer for call in calls}  # the last ask of a vote stands
        if len(last) != votes and stored.judge in report.judges:
            differences.append(
                f"case {stored.case_id}, judge {stored.judge}: replies of {len(last)} votes, the lock says {votes}"
            )
        answer = combine_votes([last[vote] for vote in sorted(last)])
        recomputed += 1
        if answer != stored.answer:
            differences.append(
                f"case {stored.case_id}, judge {stored.judge}: stored {_word(stored.answer)}, replies say {_word(answer)}"
            )
        again.append(stored.model_copy(update={"answer": answer, "calls": calls}))
    new = Report(report.lock, report.case_records, again, consensus=report.policy, picture=report.picture)
    return Replay(new, tuple(differences), recomputed, kept)


def _read_again(call: Call, rubric: Rubric, ask_overall: bool) -> Call:
    if call.failure is not None:
        return call.model_copy(update={"answer": call.failure})
    if call.text is None:
        return call  # a judge that speaks in verdicts: its answer is the reply
    return call.model_copy(update={"answer": rubric.parse(call.text, ask_overall=ask_overall)})


def _word(answer: Verdict | NoVerdict | NotAsked) -> str:
    if isinstance(answer, Verdict):
        return f"mismatch={answer.semantic_mismatch} degradation={answer.degradation}"
    return f"{answer.kind}({answer.reason})"
