"""A judge that gives the stored answers of an earlier run, offline."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

from isr.errors import IntegrityError, JudgeStoppedError, UsageError
from isr.protocols import Ask, JudgeLimits, Question, Reply
from isr.schema import Call, CaseRecord, Judgement, NoVerdict
from isr.store import RunFiles

__all__ = ["ReplayJudge", "ReplayKey", "question_key"]


class ReplayKey(NamedTuple):
    """What a stored reply answers, free of everything that only the engine knows.

    Attributes:
        prompt: the edit prompt. edited, original: digests of the pictures, None without an original.
        vote, ask: indices of the call.
    """

    prompt: str
    edited: str | None
    original: str | None
    vote: int
    ask: int


def question_key(question: Question) -> ReplayKey:
    """The key of a question."""
    edited, original = question.picture("edited"), question.picture("original")
    return ReplayKey(
        question.prompt,
        edited.digest if edited else None,
        original.digest if original else None,
        question.vote,
        question.ask,
    )


class ReplayJudge:
    """Answers from stored calls and never from anywhere else.

    A question without a stored reply stops the judge: another pretended answer (or a missing verdict that was never
    given) would enter the numbers as if the judge had said it.

    Args:
        name: the stored judge's name, so that tables stay comparable.
        calls: stored replies by what they answer.
        source: where they come from, for messages.
    """

    #: Its answers are stored already.
    cacheable = False

    def __init__(self, name: str, calls: Mapping[ReplayKey, Call], *, source: str = "the stored run") -> None:
        if not calls:
            raise UsageError(f"replay of {name!r}: {source} holds no reply of this judge")
        self._name = name
        self._calls = dict(calls)
        self._source = source

    @classmethod
    def from_records(
        cls, judgements: Iterable[Judgement], cases: Iterable[CaseRecord], *, source: str = "the stored run"
    ) -> list[ReplayJudge]:
        """One judge per judge of a run, in the order in which they appear.

        The answer that stands (the last ask of a vote) is given again, also where an earlier ask was no verdict and was
        asked once more later on. Where exact duplicates of a case got different replies, the first one stands for all and a
        warning says so.
        """
        by_id = {case.case_id: case for case in cases}
        found: dict[str, dict[ReplayKey, Call]] = {}
        differing = 0
        for judgement in judgements:
            case = by_id.get(judgement.case_id)
            if case is None:
                raise IntegrityError(f"{source}: a judgement names the case {judgement.case_id!r}, which is not there")
            held = found.setdefault(judgement.judge, {})
            for ask, call in _standing(judgement.calls):
                key = ReplayKey(case.prompt, case.edited, case.original, call.vote, ask)
                first = held.setdefault(key, call)
                differing += (first.text, first.answer) != (call.text, call.answer)
        if differing:
            warnings.warn(
                f"{source}: {differing} replies to exact duplicates differ; the first of each is replayed",
                UserWarning,
                stacklevel=2,
            )
        judges = [cls(name, calls, source=source) for name, calls in found.items() if calls]
        if not judges:
            raise UsageError(f"replay: {source} holds no stored reply")
        return judges

    @classmethod
    def from_run(cls, run: str | Path) -> list[ReplayJudge]:
        """One judge per judge of a run directory, in the order of its first judgements.

        Raises:
            UsageError: not a run directory, no reply in it, or a run whose pictures were shrunk before they were sent
                (its replies belong to pictures that the run does not name).
        """
        files = RunFiles.at(run)
        lock = files.read_lock()
        max_side = (lock.get("settings") or {}).get("max_side")
        if max_side is not None:
            raise UsageError(
                f"replay: {str(run)!r} was judged with max_side={max_side}, so its replies cannot be matched with new questions. "
                f"To compute its numbers again, use  isr replay {run}"
            )
        return cls.from_records(files.judgements(), files.cases(), source=str(run))

    @property
    def name(self) -> str:
        return self._name

    @property
    def limits(self) -> JudgeLimits:
        return JudgeLimits(concurrency=64)

    def identity(self) -> Mapping[str, Any]:
        """The stored judge's name and a digest of its stored replies."""
        digest = hashlib.sha256()
        for key in sorted(self._calls, key=repr):
            call = self._calls[key]
            digest.update(repr((key, call.text, call.answer.model_dump())).encode("utf-8", "backslashreplace"))
        return {"provider": "replay", "judge": self._name, "replies": digest.hexdigest()}

    def __repr__(self) -> str:
        return f"ReplayJudge({self._name!r}, {len(self._calls)} replies)"

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[Ask]:
        yield self._ask

    async def _ask(self, question: Question) -> Reply:
        call = self._calls.get(question_key(question))
        if call is None:
            edited = question.picture("edited")
            raise JudgeStoppedError(
                f"replay of {self._name}: {self._source} holds no reply to vote {question.vote}, ask {question.ask} for the "
                f"prompt {question.prompt[:80]!r} and the edited picture {edited.digest[:12] if edited else None}…. Evaluate "
                "the same cases with the same originals, votes and max_side as the stored run, or name a judge that can be asked.",
                judge=self._name,
            )
        # A reply with text and without a failure of the transport is read by the rubric again, as it was then.
        answer = call.failure if call.failure is not None or call.text is not None else call.answer
        return Reply(
            text=call.text,
            answer=answer,
            finish=call.finish,
            served_model=call.served_model,
            response_id=call.response_id,
            usage=call.usage,
        )


def _standing(calls: Iterable[Call]) -> list[tuple[int, Call]]:
    """(ask, call) as the engine will ask for them: per vote the last call, after the unreadable reply that is asked for
    again by itself where there was one. Answers that were asked again on request (`retry_no_verdicts`) are left out."""
    chains: dict[int, list[Call]] = {}
    for call in sorted(calls, key=lambda c: (c.vote, c.ask)):
        chains.setdefault(call.vote, []).append(call)
    found: list[tuple[int, Call]] = []
    for chain in chains.values():
        unreadable = [c for c in chain[:-1] if isinstance(c.answer, NoVerdict) and c.answer.reason == "unparseable"]
        found += enumerate([*unreadable[-1:], chain[-1]])
    return found
