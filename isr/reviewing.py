"""`isr review`: one person answers the run's own questions about disputed cases, as the judge `human:<name>`.

Answers are appended to judgements.jsonl, one row per saved case (an answer that is changed is a further row, and the last one
stands). The judge lock stays as it is: a review covers a subset, so it never enters the consensus.
"""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from .agreeing import DISPUTED
from .errors import IntegrityError, UsageError
from .report import Report
from .rubric import Rubric
from .schema import ARMS, CRITERIA, Call, CaseRecord, Judgement, NoVerdict, Verdict
from .store import RunFiles

__all__ = ["HUMAN", "MAX_NOTE", "Item", "Question", "Review"]

HUMAN = "human:"
#: Fingerprint of answers about every case of an arm. Those about disputed cases carry `agreeing.DISPUTED`: cases that were
#: picked because judges differ are no sample of anything, and agreement statistics leave them out.
EVERY = "review:all"
OVERALL = "overall"
MAX_NOTE = 2_000
_NAME = re.compile(r"\A[\w.-]{1,64}\Z")


@dataclass(frozen=True)
class Question:
    """One yes/no question as the page shows it."""

    key: str
    title: str
    question: str
    guidance: str


@dataclass(frozen=True)
class Item:
    """One case to answer. original: digest, or None where the run was judged without originals."""

    case_id: str
    prompt: str
    edited: str
    original: str | None


class Review:
    """What one person is asked about one run, and what they said so far. Safe to use from several threads.

    Attributes:
        judge: "human:<name>". items: in an order of their own for every name, which says nothing of methods or arms.
        questions: those of the rubric that is stored in the run, and its third one (overall) where it has one.
        without_pictures: cases that would belong to it but whose pictures the run does not hold.

    Raises:
        UsageError: a bad name or arm, nothing to review, or no pictures. IntegrityError: the run is not what it claims to be.
    """

    def __init__(
        self, run: str | Path, who: str, *, everything: bool = False, arms: tuple[str, ...] = ("immunized",)
    ) -> None:
        """
        Args:
            run: run directory. who: name or initials; it becomes part of the judge's name and of every saved row.
            everything: all cases of these arms, not only those on which judges differ or a verdict is missing.
            arms: "immunized", "control", "noise".
        """
        name = who.removeprefix(HUMAN)
        if not _NAME.match(name):
            raise UsageError(f"who: expected 1 to 64 letters, digits, '.', '_' or '-', got {who!r}")
        unknown = [a for a in arms if a not in ARMS]
        if unknown or not arms:
            raise UsageError(f"arm: expected some of {', '.join(ARMS)}, got {', '.join(map(repr, unknown)) or 'none'}")
        self.judge = HUMAN + name
        self.report = Report.load(run)
        self._files = RunFiles.at(run)
        self._lock = threading.Lock()
        self._fingerprint = EVERY if everything else DISPUTED
        if self.judge in self.report.judges:
            raise UsageError(f"who: {self.judge} is one of the judges of this run; choose another name")
        self.rubric = _rubric(self.report)
        self.questions = _questions(self.rubric)
        wanted = [c for c in self.report.case_records if c.arm in arms]
        if not everything:
            disputed = _disputed(self.report)
            wanted = [c for c in wanted if c.case_id in disputed]
        if not wanted:
            raise UsageError(
                f"review: this run has no {'case' if everything else 'disputed case'} of the arm {', '.join(arms)}; "
                + ("there is nothing to review" if everything else "review all of them with --all")
            )
        self.items = tuple(sorted((i for c in wanted if (i := self._item(c)) is not None), key=self._place))
        self.without_pictures = len(wanted) - len(self.items)
        if not self.items:
            raise UsageError("review: this run was saved without pictures; save it again with them (images=True)")
        here = {i.case_id for i in self.items}
        self._said = {
            j.case_id: j for j in self.report.judgement_records if j.judge == self.judge and j.case_id in here
        }

    def _item(self, case: CaseRecord) -> Item | None:
        original = case.original if self.report.lock["with_originals"] else None
        needed = [case.edited, original] if self.report.lock["with_originals"] else [case.edited]
        if any(d is None or not self._files.image_path(d).is_file() for d in needed):
            return None
        return Item(case.case_id, case.prompt, str(case.edited), original)

    def _place(self, item: Item) -> str:
        return hashlib.sha256(f"{self.judge}\n{item.case_id}".encode()).hexdigest()

    @property
    def answered(self) -> int:
        """Items this person has saved, "cannot judge" included."""
        with self._lock:
            return len(self._said)

    def said(self) -> dict[int, dict[str, Any]]:
        """Item number → the saved answers ({key: True, False, None = cannot judge}) and note."""
        with self._lock:
            return {n: self._back(self._said[i.case_id]) for n, i in enumerate(self.items) if i.case_id in self._said}

    def picture(self, number: int, role: str) -> bytes | None:
        """PNG of an item's "edited" or "original", hashed again; None where there is none."""
        if not 0 <= number < len(self.items) or role not in {"edited", "original"}:
            return None
        digest = self.items[number].edited if role == "edited" else self.items[number].original
        return None if digest is None else self.report.picture(digest)

    def save(self, number: int, said: Mapping[str, bool | None], note: str = "") -> Judgement:
        """Append one answer to the run.

        Args:
            number: of the item. said: every question's key → True, False or None ("cannot judge").
            note: free words, kept as observations.

        Raises:
            UsageError: no such item, or not exactly one answer per question.
        """
        if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < len(self.items):
            raise UsageError(f"item: expected a number from 0 to {len(self.items) - 1}, got {number!r}")
        keys = {q.key for q in self.questions}
        if not isinstance(said, Mapping) or set(said) != keys:
            got = sorted(map(str, said)) if isinstance(said, Mapping) else type(said).__name__
            raise UsageError(f"said: expected one answer for each of {', '.join(sorted(keys))}, got {got}")
        wrong = [key for key, value in said.items() if value is not None and not isinstance(value, bool)]
        if wrong:
            raise UsageError(f"said: {wrong[0]!r} must be true, false or null (cannot judge), got {said[wrong[0]]!r}")
        if not isinstance(note, str) or len(note) > MAX_NOTE:
            raise UsageError(f"note: expected text of at most {MAX_NOTE} characters")
        answer = _answer(said, note.strip())
        now = datetime.now(UTC).isoformat(timespec="seconds")
        judgement = Judgement(
            case_id=self.items[number].case_id, judge=self.judge, fingerprint=self._fingerprint, answer=answer,
            calls=(Call(answer=answer, received_at=now),),
        )  # fmt: skip
        with self._lock:
            before = self._said.get(judgement.case_id)
            if before is None or before.answer != answer:
                self._files.append("judgements.jsonl", [judgement])
                self._said[judgement.case_id] = judgement
        return judgement

    def _back(self, judgement: Judgement) -> dict[str, Any]:
        """A saved row as the page fills it in again; an abstention keeps no yes or no beside it."""
        answer = judgement.answer
        if isinstance(answer, Verdict):
            given = {**{key: getattr(answer, key) for key in CRITERIA}, OVERALL: answer.overall, **answer.other}
            return {"said": {q.key: given.get(q.key) for q in self.questions}, "note": answer.observations}
        return {"said": {q.key: None for q in self.questions}, "note": ""}


def _disputed(report: Report) -> set[str]:
    """Cases, of any arm, on which the judges of the lock differ or one gave no verdict."""
    said: dict[str, set[tuple[bool, bool]]] = {}
    found = set()
    for judgement in report.judgement_records:
        if judgement.judge not in report.judges:
            continue
        answer = judgement.answer
        if isinstance(answer, NoVerdict):
            found.add(judgement.case_id)
        elif isinstance(answer, Verdict):
            verdicts = said.setdefault(judgement.case_id, set())
            verdicts.add((answer.semantic_mismatch, answer.degradation))
            if len(verdicts) > 1:
                found.add(judgement.case_id)
    return found


def _rubric(report: Report) -> Rubric:
    try:
        rubric = Rubric.model_validate(report.lock["rubric"])
    except ValidationError as error:
        raise IntegrityError(f"run.json: the stored rubric cannot be read: {error}") from error
    if rubric.hash != report.lock["rubric_hash"]:
        raise IntegrityError(
            f"run.json: the stored rubric hashes to {rubric.hash[:12]}, the lock says {str(report.lock['rubric_hash'])[:12]}"
        )
    return rubric


def _questions(rubric: Rubric) -> tuple[Question, ...]:
    words = rubric.interface

    def guidance(text: str) -> str:
        """The rubric says "true:" and "false:"; a person reads the words on the buttons."""
        return re.sub(r"(?m)^false:", f"{words.no}:", re.sub(r"(?m)^true:", f"{words.yes}:", text))

    found = [Question(c.key, c.title or c.key, c.question, guidance(c.guidance)) for c in rubric.criteria]
    if rubric.overall is not None:
        overall = rubric.overall
        found.append(Question(OVERALL, overall.title, overall.question, guidance(overall.guidance)))
    return tuple(found)


def _answer(said: Mapping[str, bool | None], note: str) -> Verdict | NoVerdict:
    mismatch, degradation = said["semantic_mismatch"], said["degradation"]
    if mismatch is None or degradation is None:
        missing = ", ".join(key for key in CRITERIA if said[key] is None)
        told = [f"{key}: {'yes' if value else 'no'}" for key, value in said.items() if value is not None]
        return NoVerdict(
            reason="abstained", detail="; ".join([f"cannot judge: {missing}", *told, *([note] if note else [])])
        )
    return Verdict(
        semantic_mismatch=mismatch,
        degradation=degradation,
        observations=note,
        overall=said.get(OVERALL),
        other={k: v for k, v in said.items() if k not in (*CRITERIA, OVERALL) and v is not None},
    )
