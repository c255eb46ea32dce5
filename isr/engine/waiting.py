"""The ordinary engine over stored replies only: what is missing is noted as due instead of asked.

So a batch run's judgements are made by the code that makes a live run's, and what is due is found by the rules that
decide what a live run would ask (votes, the re-ask of an unreadable reply, `retry_no_verdicts`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..cases import PreparedCase
from ..errors import IntegrityError
from ..images import BadImage, FileMemo, ImageRef, as_image, find_problems
from ..money import Price
from ..protocols import Judge, Picture, Question, Reply
from ..rubric import Rubric
from ..schema import Call, CaseRecord, NoVerdict
from ..store import RunFiles
from .cache import ReplyCache
from .case import JudgeableCase
from .runner import AskSettings, JudgeRunner

__all__ = ["WAITING", "Due", "StoredCase", "WaitingRunner", "batch_price", "stored_cases"]

WAITING = NoVerdict(reason="expired", detail="not answered by the batch")


@dataclass(frozen=True)
class Due:
    """One call that no stored reply answers."""

    case: JudgeableCase
    vote: int
    ask: int
    key: str


def batch_price(price: Price | None) -> Price | None:
    """What a batch call costs: every rate times the batch factor; None where no factor is known."""
    if price is None or price.batch is None:
        return None
    rates = {
        name: None if (rate := getattr(price, name)) is None else rate * price.batch
        for name in ("input", "output", "cached")
    }
    return price.model_copy(update=rates)


class WaitingRunner(JudgeRunner):
    """A `JudgeRunner` that never asks: a call that the cache lacks becomes `NoVerdict("expired")` (never stored) and due.

    Args:
        price: live price of the judge; replies that arrive are charged at its batch factor.
        failures: per key, why an earlier job brought no reply.
    """

    def __init__(
        self,
        judge: Judge,
        rubric: Rubric,
        settings: AskSettings,
        *,
        cache: ReplyCache,
        price: Price | None = None,
        failures: Mapping[str, NoVerdict] | None = None,
    ) -> None:
        super().__init__(judge, _never, rubric, settings, cache=cache, price=batch_price(price))
        self.price = batch_price(price)
        #: What a spend cap reserves for a call: the live price where no batch factor is known (a batch costs no more).
        self.dearest = self.price or price
        self.due: dict[str, Due] = {}
        self._failures = failures or {}

    async def _once(self, case: JudgeableCase, vote: int, ask: int, key: str) -> Call:
        self.due.setdefault(key, Due(case, vote, ask, key))
        answer = self._failures.get(key, WAITING)
        return Call(vote=vote, ask=ask, answer=answer, failure=answer)

    def question(self, due: Due) -> Question:
        """The question of a due call, its pictures encoded.

        Raises:
            IntegrityError: a picture changed or is gone.
        """
        return self._rubric.question(
            due.case.record.prompt,
            due.case.pictures(),
            vote=due.vote,
            ask=due.ask,
            ask_overall=self._settings.ask_overall,
            columns=due.case.columns(),
        )

    def fixed_characters(self, due: Due) -> int:
        """Characters of text in the question of a due call (for the worst case of its cost)."""
        wording = self._rubric.instructions(
            with_original=len(due.case.digests()) > 1, ask_overall=self._settings.ask_overall
        )  # fmt: skip
        schema = self._rubric.reply_schema(ask_overall=self._settings.ask_overall)
        return len(wording) + len(str(schema)) + 2 * len(due.case.record.prompt) + 64

    def receive(self, key: str, vote: int, ask: int, reply: Reply) -> Call:
        """Read a reply that came back and store it under its key. Its `attempts` are empty: a batch shows none."""
        return self._receive(reply, (), vote, ask, key)


async def _never(question: Question) -> Reply:  # noqa: ARG001 - the signature of an Ask
    raise RuntimeError("a waiting runner asks nobody")


class StoredCase(JudgeableCase):
    """A case of a run directory. Its pictures are read when they are sent, and must have the digests of the record."""

    __slots__ = ("_expected",)

    def __init__(self, prepared: PreparedCase, *, shrunk: bool) -> None:
        super().__init__(prepared)
        record = prepared.record
        pairs = (("original", record.original), ("edited", record.edited))
        self._expected = None if shrunk else tuple((role, digest) for role, digest in pairs if digest is not None)

    def digests(self) -> tuple[tuple[str, str], ...]:
        # Without shrinking, what is sent is what the record names: nothing needs to be read.
        return super().digests() if self._expected is None else self._expected

    def pictures(self) -> tuple[Picture, ...]:
        found = super().pictures()
        if self._expected is not None and tuple((p.role, p.digest) for p in found) != self._expected:
            raise IntegrityError(
                f"case {self.record.case_id}: a picture of the run directory is not the one of its name"
            )
        return found


def stored_cases(
    files: RunFiles, *, with_originals: bool, max_side: int | None, memo: FileMemo | None
) -> list[StoredCase]:
    """The cases of a run directory, ready to be judged.

    Raises:
        IntegrityError: pictures are missing, links, or not what their names say.
    """
    made: dict[str, ImageRef] = {}

    def picture(digest: str | None, name: str) -> ImageRef | BadImage:
        if digest is None:
            return BadImage(name, "it could not be read when the run was made")
        if digest not in made:
            path: Path = files.image_path(digest)
            if path.is_symlink() or files.images.is_symlink() or not path.is_file():
                raise IntegrityError(f"{path}: missing (or a link); the run was saved without this picture")
            made[digest] = as_image(path)
        return made[digest]

    rows: list[tuple[CaseRecord, ImageRef | BadImage, ImageRef | BadImage | None]] = []
    for record in files.cases():
        edited = picture(record.edited, record.edited_name or "edited")
        original = picture(record.original, record.original_name or "original") if with_originals else None
        rows.append((record, edited, original))
    if max_side is not None:
        find_problems(list(made.values()), memo=memo)
        wrong = next(
            (str(files.image_path(d)) for d, image in made.items() if image.problem or image.digest != d), None
        )
        if wrong is not None:
            raise IntegrityError(f"{wrong}: the picture is not the one of its name")
        find_problems([image.shrunk(max_side) for image in made.values()], memo=memo)

    def sent(image: ImageRef | BadImage | None) -> ImageRef | BadImage | None:
        return image.shrunk(max_side) if isinstance(image, ImageRef) and max_side is not None else image

    return [
        StoredCase(
            PreparedCase(record, edited, original, sent(edited) or edited, sent(original)), shrunk=max_side is not None
        )
        for record, edited, original in rows
    ]
