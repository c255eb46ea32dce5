"""The study folder: what is asked, about which pictures, of how many people. Written once by `new_study`.

    study.json       settings and the rubric, word for word
    items.jsonl      one `StudyItem` per line
    images/          canonical pixels by digest; nothing else about a picture is kept here
    consent.md, instructions.md   the lab edits these freely before the study opens
    sample.csv       the strata with their inclusion probabilities
    study.sqlite     raters and answers (unless another database is named)

Only the server reads this folder; a rater's page holds a prompt, pictures by digest, and the rubric's words.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from isr.errors import IntegrityError, UsageError
from isr.rubric import Criterion, Rubric
from isr.schema import Record
from isr.store import RunFiles, write_atomic

__all__ = ["LAYOUT", "OVERALL", "Question", "Settings", "Study", "StudyItem"]

LAYOUT = 1
#: Key of the third question (the rubric's [overall]), asked of people as in the paper's study.
OVERALL = "overall"
MAX_TEXT = 200_000


class StudyItem(Record):
    """One thing to look at.

    Attributes:
        id: opaque; never shown. kind: rating (of a case of the run), training or attention (with known answers).
        case_id, image_id, stratum, inclusion_probability: of rating items; the probability is missing for items that were
            picked and not drawn at random.
        edited, original: digests. expected: known answers, for the criteria that have one. feedback: shown after training.
    """

    id: str
    kind: Literal["rating", "training", "attention"]
    prompt: str
    edited: str
    original: str | None = None
    case_id: str | None = None
    image_id: str | None = None
    stratum: str = ""
    inclusion_probability: float | None = None
    expected: dict[str, bool] = Field(default_factory=dict)
    feedback: str = ""


class Settings(Record):
    """What `isr study new` decided."""

    title: str
    seed: int
    raters: int
    per_item: int | None = None
    repeats: int = 0
    columns: tuple[str, ...] = ()
    allocation: str = "proportional"
    n: int
    population: int
    created: str


@dataclass(frozen=True)
class Question:
    """One question as a page shows it."""

    key: str
    title: str
    question: str
    guidance: str


class Study:
    """A study folder that exists.

    Raises:
        UsageError: no study there. IntegrityError: its files are not what a study holds.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        path = self.folder / "study.json"
        if not path.is_file():
            raise UsageError(
                f"study: {str(folder)!r} holds no study.json; make one with:  isr study new {folder} --from RUN --n N"
            )
        try:
            raw = json.loads(path.read_text("utf-8"))
            if raw["layout"] != LAYOUT:
                raise IntegrityError(f"{path}: study layout {raw['layout']!r}, this version reads {LAYOUT}")
            self.settings = Settings.model_validate(raw["settings"])
            self.rubric = Rubric.model_validate(raw["rubric"])
            self.pictures: dict[str, str] = dict(raw["pictures"])
            recorded = raw["rubric_hash"]
        except (ValueError, KeyError, TypeError, ValidationError) as error:
            raise IntegrityError(f"{path}: not a study ({error})") from error
        if self.rubric.hash != recorded:
            raise IntegrityError(
                f"{path}: the rubric was changed after the study was made (hash {self.rubric.hash[:12]}, recorded "
                f"{str(recorded)[:12]}); other words are another study, so make a new one"
            )
        self.items = tuple(self._read_items())

    def _read_items(self) -> list[StudyItem]:
        path = self.folder / "items.jsonl"
        try:
            lines = path.read_text("utf-8").splitlines()
            return [StudyItem.model_validate_json(line) for line in lines]
        except (OSError, ValidationError) as error:
            raise IntegrityError(f"{path}: {error}") from error

    @staticmethod
    def write(
        folder: Path, settings: Settings, rubric: Rubric, items: Sequence[StudyItem], pictures: dict[str, bytes]
    ) -> Study:
        """Write a new folder; `pictures` are PNG bytes by digest. study.json comes last, so half a study is none."""
        files = RunFiles.at(folder)
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)
        for digest, png in pictures.items():
            files.put_image(digest, png)
        body = "".join(item.model_dump_json() + "\n" for item in items)
        write_atomic(folder / "items.jsonl", body.encode("utf-8"))
        content = {
            "layout": LAYOUT,
            "settings": settings.model_dump(mode="json"),
            "rubric": rubric.model_dump(mode="json"),
            "rubric_hash": rubric.hash,
            "pictures": {digest: hashlib.sha256(png).hexdigest() for digest, png in sorted(pictures.items())},
        }
        write_atomic(folder / "study.json", json.dumps(content, indent=2, ensure_ascii=False).encode("utf-8") + b"\n")
        return Study(folder)

    # ------------------------------------------------------------------------------------------------- asking

    @cached_property
    def by_id(self) -> dict[str, StudyItem]:
        return {item.id: item for item in self.items}

    @cached_property
    def items_hash(self) -> str:
        """sha256 of all items: what ties a database to this study."""
        return hashlib.sha256("\n".join(item.model_dump_json() for item in self.items).encode("utf-8")).hexdigest()

    def of_kind(self, kind: str) -> list[str]:
        """Item ids of a kind, in file order."""
        return [item.id for item in self.items if item.kind == kind]

    @cached_property
    def questions(self) -> tuple[Question, ...]:
        """The rubric's criteria in its order, then the overall question."""
        asked = [*self.rubric.criteria]
        if self.rubric.overall is not None:
            asked.append(Criterion(key=OVERALL, **self.rubric.overall.model_dump()))
        return tuple(Question(c.key, c.title or c.key, c.question, c.guidance) for c in asked)

    def text(self, name: str) -> str:
        """consent.md or instructions.md as they stand now."""
        path = self.folder / name
        try:
            text = path.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise IntegrityError(f"{path}: cannot be read: {error}") from error
        if len(text) > MAX_TEXT:
            raise IntegrityError(f"{path}: longer than {MAX_TEXT} characters")
        return text

    def png(self, digest: str) -> bytes:
        """The picture behind a digest, which must be the bytes that were put there."""
        wanted = self.pictures.get(digest)
        data = None if wanted is None else RunFiles.at(self.folder).image_bytes(digest)
        if data is None or hashlib.sha256(data).hexdigest() != wanted:
            raise IntegrityError(f"study: the picture {digest[:12]}… is missing or was changed")
        return data

    @property
    def database(self) -> str:
        """The default database, beside the items."""
        return f"sqlite:///{(self.folder / 'study.sqlite').resolve()}"

    def plan(self) -> dict[str, Any]:
        """Counts for people: items to rate, training, checks."""
        return {kind: len(self.of_kind(kind)) for kind in ("rating", "training", "attention")}
