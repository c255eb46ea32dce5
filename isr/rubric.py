"""The rubric: what is asked, the JSON schema of the reply, and its parser, in one object, so that they cannot drift.

The wording lives in versioned TOML files (`isr/rubrics/`); the default asks the paper's two questions (section IV-B).
People are asked the same questions from the same file.
"""

from __future__ import annotations

import hashlib
import json
import re
import tomllib
from collections.abc import Mapping
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from .errors import UsageError
from .protocols import Picture, Question
from .schema import CRITERIA, NoVerdict, Verdict

__all__ = ["Criterion", "Rubric"]

#: Longest reply that is read; a longer one is unparseable, not a reason to run out of memory.
MAX_REPLY_CHARS = 200_000
_FENCE = re.compile(r"\A\s*```(?:json)?\s*\n(?P<body>.*?)\n?\s*```\s*\Z", re.DOTALL)
_KEY = re.compile(r"\A[a-z][a-z0-9_]{0,40}\Z")
_RESERVED = frozenset({"observations", "overall"})


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", str_strip_whitespace=True)


class Criterion(_Part):
    """One yes/no question.

    Attributes:
        key: identifier in replies and tables. title: heading in tables and pages.
        question: the question itself. guidance: what counts as true and what as false.
    """

    key: str
    title: str = ""
    question: str = Field(min_length=1)
    guidance: str = ""


class _Overall(_Part):
    title: str = "Overall success"
    question: str = Field(min_length=1)
    guidance: str = ""


class _Task(_Part):
    with_original: str = Field(min_length=1)
    without_original: str = Field(min_length=1)
    data: str = Field(min_length=1)
    independence: str = ""


class _ReplyText(_Part):
    instruction: str = Field(min_length=1)
    observations: str = Field(min_length=1)
    reason: str = Field(min_length=1)


class _Interface(_Part):
    yes: str = "Yes"
    no: str = "No"
    cannot_judge: str = "I cannot judge this"
    original: str = "Original"
    edited: str = "Edited"
    prompt: str = "The request"


class Rubric(_Part):
    """Wording, schema and parser of one way of asking.

    A user's own rubric must ask `semantic_mismatch` and `degradation` (they decide ISR) and may ask more; further
    criteria are reported beside them and never enter `defeated`.
    """

    name: str = Field(min_length=1)
    version: str = Field(min_length=1)
    language: str = "en"
    task: _Task
    criteria: tuple[Criterion, ...]
    overall: _Overall | None = None
    reply: _ReplyText
    interface: _Interface = _Interface()

    @field_validator("criteria")
    @classmethod
    def _check_criteria(cls, criteria: tuple[Criterion, ...]) -> tuple[Criterion, ...]:
        keys = [c.key for c in criteria]
        missing = [k for k in CRITERIA if k not in keys]
        if missing:
            raise ValueError(f"a rubric must ask {' and '.join(CRITERIA)}; missing: {', '.join(missing)}")
        for key in keys:
            if not _KEY.match(key) or key in _RESERVED or key.startswith("reason_"):
                raise ValueError(
                    f"criterion key {key!r} must be lower-case letters, digits and _, and not a reserved word"
                )
        if len(set(keys)) != len(keys):
            raise ValueError(f"criterion keys must differ; got {keys}")
        return criteria

    # ------------------------------------------------------------------------------------------------- reading

    @classmethod
    def default(cls) -> Rubric:
        """The rubric of this package version (`isr/rubrics/default.toml`)."""
        return cls.loads((files("isr.rubrics") / "default.toml").read_text("utf-8"), source="isr/rubrics/default.toml")

    @classmethod
    def load(cls, path: str | Path) -> Rubric:
        """A rubric from a TOML file of the form of `isr/rubrics/default.toml`."""
        try:
            text = Path(path).read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"rubric: cannot read {str(path)!r}: {error}") from error
        return cls.loads(text, source=str(path))

    @classmethod
    def loads(cls, text: str, *, source: str = "<text>") -> Rubric:
        """A rubric from TOML text; errors name the key."""
        try:
            return cls.model_validate(tomllib.loads(text))
        except tomllib.TOMLDecodeError as error:
            raise UsageError(f"rubric {source}: not valid TOML: {error}") from error
        except ValidationError as error:
            found = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'file'}: {e['msg']}" for e in error.errors())
            raise UsageError(f"rubric {source}: {found}. Compare it with isr/rubrics/default.toml.") from error

    @cached_property
    def hash(self) -> str:
        """sha256 (64 hex) over every word and option; part of the cache key and of the judge lock."""
        blob = json.dumps(self.model_dump(mode="json"), sort_keys=True, ensure_ascii=True, separators=(",", ":"))
        return hashlib.sha256(blob.encode("ascii")).hexdigest()

    # ------------------------------------------------------------------------------------------------- asking

    def instructions(self, *, with_original: bool, ask_overall: bool = False) -> str:
        """The system instructions. They hold no word of any case."""
        parts = [self.task.with_original if with_original else self.task.without_original, self.task.data]
        for number, criterion in enumerate(self._asked(ask_overall), 1):
            parts.append(f'Question {number} ("{criterion.key}"): {criterion.question}\n{criterion.guidance}'.strip())
        if self.task.independence:
            parts.append(self.task.independence)
        parts.append(self.reply.instruction)
        return "\n\n".join(parts)

    def reply_schema(self, *, ask_overall: bool = False) -> dict[str, Any]:
        """JSON schema of the reply: observations, then reasons, then the booleans (a verdict that is written first is
        rationalised afterwards). Closed, everything required: what strict structured output wants."""
        asked = self._asked(ask_overall)
        properties: dict[str, Any] = {"observations": {"type": "string", "description": self.reply.observations}}
        for criterion in asked:
            properties[f"reason_{criterion.key}"] = {"type": "string", "description": self.reply.reason}
        for criterion in asked:
            properties[criterion.key] = {"type": "boolean", "description": criterion.question}
        return {
            "type": "object",
            "properties": properties,
            "required": list(properties),
            "additionalProperties": False,
        }

    def question(
        self,
        prompt: str,
        pictures: tuple[Picture, ...],
        *,
        vote: int = 0,
        ask: int = 0,
        ask_overall: bool = False,
        columns: Mapping[str, Any] | None = None,
    ) -> Question:
        """One call, ready to send. The edit prompt travels as one JSON string, never spliced into instructions."""
        return Question(
            instructions=self.instructions(
                with_original=any(p.role == "original" for p in pictures), ask_overall=ask_overall
            ),
            data=json.dumps({"edit_prompt": prompt}, ensure_ascii=False),
            pictures=pictures,
            schema=self.reply_schema(ask_overall=ask_overall),
            schema_name="edit_judgement",
            prompt=prompt,
            vote=vote,
            ask=ask,
            columns=dict(columns or {}),
        )

    def _asked(self, ask_overall: bool) -> tuple[Criterion, ...]:
        if not ask_overall:
            return self.criteria
        if self.overall is None:
            raise UsageError(
                f"ask_overall: the rubric {self.name!r} has no [overall] question; add one or leave ask_overall off"
            )
        return (*self.criteria, Criterion(key="overall", **self.overall.model_dump()))

    # ------------------------------------------------------------------------------------------------- reading back

    def parse(self, text: str, *, ask_overall: bool = False) -> Verdict | NoVerdict:
        """Read a reply strictly: exactly one JSON object that satisfies the schema (a whole-reply code fence is
        tolerated, because its content is unambiguous). Anything else is `NoVerdict("unparseable")`, never a guess."""
        if not text.strip():
            return NoVerdict(reason="empty", detail="the reply holds no text")
        if len(text) > MAX_REPLY_CHARS:
            return NoVerdict(reason="unparseable", detail=f"the reply is longer than {MAX_REPLY_CHARS} characters")
        fenced = _FENCE.match(text)
        try:
            reply = json.loads(
                fenced["body"] if fenced else text, object_pairs_hook=_no_twice, parse_constant=_no_constant
            )
        except (ValueError, RecursionError) as error:
            return NoVerdict(reason="unparseable", detail=f"not one JSON object: {str(error)[:200]}")
        return self._read(reply, ask_overall)

    def _read(self, reply: Any, ask_overall: bool) -> Verdict | NoVerdict:
        if not isinstance(reply, dict):
            return NoVerdict(reason="unparseable", detail=f"expected a JSON object, got {type(reply).__name__}")
        properties = self.reply_schema(ask_overall=ask_overall)["properties"]
        for key, spec in properties.items():
            wanted = bool if spec["type"] == "boolean" else str
            if key not in reply:
                return NoVerdict(reason="unparseable", detail=f"the key {key!r} is missing")
            if type(reply[key]) is not wanted:
                return NoVerdict(
                    reason="unparseable", detail=f"{key!r} must be {spec['type']}, got {type(reply[key]).__name__}"
                )
        extra = sorted(set(reply) - set(properties))
        if extra:
            return NoVerdict(reason="unparseable", detail=f"unknown keys: {', '.join(map(repr, extra[:5]))}")
        keys = [c.key for c in self.criteria]
        return Verdict(
            semantic_mismatch=reply["semantic_mismatch"],
            degradation=reply["degradation"],
            observations=reply["observations"],
            reasons={c.key: reply[f"reason_{c.key}"] for c in self._asked(ask_overall)},
            overall=reply["overall"] if ask_overall else None,
            other={key: reply[key] for key in keys if key not in CRITERIA},
        )


def _no_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    if len(set(keys)) != len(keys):
        raise ValueError("a key stands twice")
    return dict(pairs)


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")
