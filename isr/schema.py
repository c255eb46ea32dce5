"""The nouns: what flows between the rooms. Frozen, typed, serialisable; meanings are those of docs/definitions.md."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, StrictBool

__all__ = [
    "ARMS",
    "CRITERIA",
    "NO_VERDICT_REASONS",
    "PROMPT_KINDS",
    "Answer",
    "Arm",
    "Attempt",
    "Call",
    "CaseRecord",
    "Judgement",
    "NoVerdict",
    "NoVerdictReason",
    "NotAsked",
    "NotAskedReason",
    "Outcome",
    "OutcomeValue",
    "PromptKind",
    "TagValue",
    "Usage",
    "Verdict",
    "case_hash",
]

#: The two criteria of the paper (section IV-B); `defeated` is their disjunction.
CRITERIA = ("semantic_mismatch", "degradation")

Arm = Literal["immunized", "control", "noise"]
PromptKind = Literal["original", "unseen"]
NoVerdictReason = Literal[
    "blocked", "refused", "recitation", "truncated", "empty", "unparseable", "split_vote", "exhausted", "judge_error",
    "abstained", "expired", "bad_image", "over_budget", "model_substituted", "out_of_domain",
]  # fmt: skip
NotAskedReason = Literal["lazy", "not_assigned"]
OutcomeValue = Literal["success", "failure", "undetermined"]
TagValue = str | int | float | bool | None

ARMS: tuple[str, ...] = get_args(Arm)
PROMPT_KINDS: tuple[str, ...] = get_args(PromptKind)
NO_VERDICT_REASONS: tuple[str, ...] = get_args(NoVerdictReason)


class Record(BaseModel):
    """Base of everything that is stored: frozen, and strict about unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Verdict(Record):
    """A judge's answer on both criteria.

    Attributes:
        semantic_mismatch: the edit fails the prompt's intent (paper IV-B, condition 1).
        degradation: substantial degradations beyond what the prompt asks for (condition 2).
        observations: what the judge saw, written before reasons and verdict.
        reasons: per criterion, why.
        overall: the third question, "did the immunization succeed", where it was asked (people; `ask_overall`).
        other: further criteria of a user's own rubric; they never enter `defeated`.
    """

    kind: Literal["verdict"] = "verdict"
    semantic_mismatch: StrictBool
    degradation: StrictBool
    observations: str = ""
    reasons: dict[str, str] = Field(default_factory=dict)
    overall: StrictBool | None = None
    other: dict[str, StrictBool] = Field(default_factory=dict)

    @property
    def defeated(self) -> bool:
        """The attacker did not get what they asked for: mismatch or degradation (Eq. 8's success of one sample)."""
        return self.semantic_mismatch or self.degradation


class _NoNumber(Record):
    """A missing answer refuses every way of becoming a number."""

    def _refuse(self) -> Any:
        raise TypeError(
            f"{type(self).__name__} is not a verdict and has no truth value or number; test with isinstance()"
        )

    def __bool__(self) -> bool:
        return bool(self._refuse())

    def __int__(self) -> int:
        return int(self._refuse())

    def __float__(self) -> float:
        return float(self._refuse())


class NoVerdict(_NoNumber):
    """The judge was asked and gave no usable answer. Never a score.

    Attributes:
        reason: why (docs/definitions.md, section 2).
        detail: one line for a reader, free of secrets.
    """

    kind: Literal["no_verdict"] = "no_verdict"
    reason: NoVerdictReason
    detail: str = ""


class NotAsked(_NoNumber):
    """The judge was not asked about this case: `lazy` (not needed) or `not_assigned` (covers a subset)."""

    kind: Literal["not_asked"] = "not_asked"
    reason: NotAskedReason


Answer = Annotated[Verdict | NoVerdict | NotAsked, Field(discriminator="kind")]


class Usage(Record):
    """Tokens of one call as the service reported them; None where it said nothing."""

    input_tokens: int | None = None
    output_tokens: int | None = None
    thinking_tokens: int | None = None
    cached_tokens: int | None = None
    image_tokens: int | None = None

    def __add__(self, other: Usage) -> Usage:
        def total(a: int | None, b: int | None) -> int | None:
            return None if a is None and b is None else (a or 0) + (b or 0)

        return Usage(**{name: total(getattr(self, name), getattr(other, name)) for name in type(self).model_fields})


class Attempt(Record):
    """One try of one call: what it cost in time and how it ended ("ok", or the failure in a line)."""

    seconds: float
    ended: str
    status: int | None = None
    waited: float = 0.0


class Call(Record):
    """One received (or failed) reply: one vote, one ask.

    Attributes:
        vote: vote index, 0-based. ask: 0 for the first ask, 1 for the re-ask of an unparseable reply, and so on.
        text: the model's text exactly as received, or None.
        finish: the service's own word on how the reply ended (finish or block reason).
        failure: the transport's classification where the reply holds no text to read, or None.
        answer: what the rubric's parser (or the classification) made of it.
        served_model: the model name that the service reported. response_id: its id of the reply.
        latency_s: seconds of the successful attempt. cost: US dollars, or None where no price is known.
        attempts: every try. cached: answered from the cache in this run. key: the cache key (64 hex), or "".
        received_at: ISO 8601 UTC.
    """

    vote: int = 0
    ask: int = 0
    text: str | None = None
    finish: str | None = None
    failure: NoVerdict | None = None
    answer: Annotated[Verdict | NoVerdict, Field(discriminator="kind")]
    served_model: str | None = None
    response_id: str | None = None
    usage: Usage = Usage()
    cost: float | None = None
    latency_s: float | None = None
    attempts: tuple[Attempt, ...] = ()
    cached: bool = False
    key: str = ""
    received_at: str = ""


class Judgement(Record):
    """What one judge says of one image (the edit of a case, or its control), with everything it rests on.

    Attributes:
        case_id: joins to cases.jsonl.
        judge: the judge's name as in the judge lock. fingerprint: hash of its settings.
        answer: the verdict, the missing verdict, or not asked.
        calls: every reply, in order of vote and ask.
    """

    case_id: str
    judge: str
    fingerprint: str = ""
    answer: Answer
    calls: tuple[Call, ...] = ()


class Outcome(Record):
    """The consensus on one case (docs/definitions.md, section 3)."""

    case_id: str
    value: OutcomeValue


class CaseRecord(Record):
    """One row of cases.jsonl: an `EditCase` with its pictures replaced by digests of their canonical pixels.

    Attributes:
        case_id: see `case_hash`. control: the case_id of this edit's control (same editor, prompt, seed and purifier on the
            unprotected original), or None. Several methods share one control row.
        edited, original: digests (64 hex), None for a picture that could not be read (`bad_image`).
        edited_name, original_name: how the user called them (file name), for reading only.
        image_id: the cluster of every interval.
    """

    case_id: str
    prompt: str
    edited: str | None
    original: str | None = None
    edited_name: str = ""
    original_name: str = ""
    control: str | None = None
    id: str | None = None
    image_id: str | None = None
    method: str | None = None
    editor: str | None = None
    prompt_kind: PromptKind | None = None
    category: str | None = None
    seed: int | None = None
    purifier: str | None = None
    arm: Arm = "immunized"
    tags: dict[str, TagValue] = Field(default_factory=dict)


def case_hash(
    *,
    edited: str | None,
    original: str | None,
    prompt: str,
    method: str | None = None,
    editor: str | None = None,
    seed: int | None = None,
    purifier: str | None = None,
    prompt_kind: str | None = None,
    arm: str = "immunized",
    source: str | None = None,
    ordinal: int = 0,
) -> str:
    """The id that everything joins on: sha256 over the columns of docs/definitions.md section 1, first 32 hex digits.

    source: of a transfer row, the editor that the perturbation was made on (the tag `source`, where it is not `editor`).
    Exact duplicates get an ordinal (1 for the second one, and so on), so no case is ever merged away.
    """
    parts: Mapping[str, Any] = {
        "edited": edited, "original": original, "prompt": prompt, "method": method, "editor": editor,
        "seed": seed, "purifier": purifier, "prompt_kind": prompt_kind, "arm": arm, **({"source": source} if source else {}),
    }  # fmt: skip
    blob = json.dumps(parts, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    digest = hashlib.sha256(blob.encode("ascii")).hexdigest()[:32]
    return f"{digest}-{ordinal}" if ordinal else digest
