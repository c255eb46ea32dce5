"""The nouns of the input: `EditCase`, and what `prepare` makes of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ..errors import Problem
from ..images import BadImage, ImageRef
from ..schema import CaseRecord

__all__ = ["EditCase", "Loaded", "OnBadImage", "Prepared", "PreparedCase"]

OnBadImage = Literal["raise", "skip"]
Loaded = ImageRef | BadImage


@dataclass(frozen=True, eq=False)
class EditCase:
    """One edit to be judged. Pictures may be paths, bytes, PIL images, numpy arrays or torch tensors.

    Attributes:
        edited: the edit of the immunized image. prompt: the edit prompt.
        original: the image before immunization and edit, or None.
        control: the edit of the *unprotected* original with the same editor, prompt, seed and purifier, or None.
        id: the user's own name of the case (unique). image_id: the cluster in every interval; default: the original's digest.
        method, editor, category, purifier: names. prompt_kind: "original" or "unseen". seed: the editor's seed.
        arm: "immunized", "control" or "noise". tags: free columns of text, numbers and booleans.
    """

    edited: Any
    prompt: str
    original: Any = None
    control: Any = None
    id: str | None = None
    image_id: str | None = None
    method: str | None = None
    editor: str | None = None
    prompt_kind: str | None = None
    category: str | None = None
    seed: int | None = None
    purifier: str | None = None
    arm: str = "immunized"
    tags: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class PreparedCase:
    """One row of the run with its pictures.

    Attributes:
        record: the stored row. edited, original: canonical pictures (`original` is None in a run without originals).
        edited_sent, original_sent: as judges get them (shrunk to `max_side` where one is set, otherwise the same objects).
    """

    record: CaseRecord
    edited: Loaded
    original: Loaded | None
    edited_sent: Loaded
    original_sent: Loaded | None

    @property
    def bad(self) -> str | None:
        """Why this case cannot be judged (→ `NoVerdict("bad_image")`), or None."""
        for image in (self.edited, self.original):
            if isinstance(image, BadImage):
                return f"{image.name}: {image.problem}"
        return None


@dataclass(frozen=True, eq=False)
class Prepared:
    """Everything `evaluate` needs to know about its input.

    Attributes:
        cases: in the user's order, followed by the control rows made from `controls=`.
        has_originals: whether the judges see originals (all cases or none). max_side: see `prepare`.
        notes: what a reader of the report should know. bad: the pictures skipped (`on_bad_image="skip"`).
    """

    cases: tuple[PreparedCase, ...]
    has_originals: bool
    max_side: int | None = None
    notes: tuple[str, ...] = ()
    bad: tuple[Problem, ...] = ()

    @property
    def records(self) -> tuple[CaseRecord, ...]:
        return tuple(case.record for case in self.cases)
