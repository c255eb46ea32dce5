"""What was sent in batches: an append-only journal beside the run (batches.jsonl), from which every step can go on.

    planned    label, judge, items    written before anything is sent
    submitted  label, job             the service took it
    collected  label, unanswered      every result is in the cache; what has none may be sent again
    dropped    label                  the service never got it, or was given up

A planned chunk without a job may have reached the service before a crash: it is looked for by its label before anything
is sent again. No API key and no picture is ever written here.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Literal, NamedTuple

from pydantic import ValidationError

from ..errors import IntegrityError, UsageError
from ..schema import NoVerdict, Record
from ..store import MAX_LINE, RunFiles, is_digest

__all__ = ["Chunk", "Item", "Journal", "exclusive"]

JOURNAL = "batches.jsonl"
#: Different messages of one job that are kept; further ones keep their reason only.
MAX_DETAILS = 500


class Item(NamedTuple):
    """One call of a chunk: its cache key (64 hex), vote and ask index."""

    key: str
    vote: int
    ask: int


class Unanswered(Record):
    """Calls of a chunk that came back without a reply, and why."""

    why: NoVerdict
    keys: tuple[str, ...]


class _Row(Record):
    event: Literal["planned", "submitted", "collected", "dropped"]
    label: str
    at: str = ""
    judge: str = ""
    items: tuple[Item, ...] = ()
    job: str = ""
    state: str = ""
    received: int = 0
    unanswered: tuple[Unanswered, ...] = ()


@dataclass
class Chunk:
    """One job, as far as the journal knows it."""

    label: str
    judge: str
    items: tuple[Item, ...]
    event: Literal["planned", "submitted", "collected", "dropped"] = "planned"
    job: str = ""
    state: str = ""
    received: int = 0
    at: str = ""
    unanswered: tuple[Unanswered, ...] = field(default=())

    @property
    def open(self) -> bool:
        """Its calls may still be answered, so nobody else may send them."""
        return self.event in ("planned", "submitted")


class Journal:
    """The chunks of one run, in order.

    Raises:
        IntegrityError: batches.jsonl is not what this package writes.
    """

    def __init__(self, files: RunFiles) -> None:
        self._files = files
        self.chunks: dict[str, Chunk] = {}
        for row in self._read():
            self._apply(row)

    def planned(self, label: str, judge: str, items: tuple[Item, ...]) -> None:
        self._write(_Row(event="planned", label=label, judge=judge, items=items))

    def submitted(self, label: str, job: str) -> None:
        self._write(_Row(event="submitted", label=label, job=job))

    def collected(self, label: str, state: str, received: int, failures: dict[str, NoVerdict]) -> None:
        """`failures`: per key without a reply, why."""
        by_reason: dict[tuple[str, str], list[str]] = {}
        for key, why in failures.items():
            name = (why.reason, why.detail)
            # Messages that all differ (a request id in each) would make a row that is too long to be read back.
            if name not in by_reason and len(by_reason) >= MAX_DETAILS:
                name = (why.reason, "")
            by_reason.setdefault(name, []).append(key)
        kept = tuple(
            Unanswered(why=failures[keys[0]].model_copy(update={"detail": detail}), keys=tuple(keys))
            for (_, detail), keys in by_reason.items()
        )
        self._write(_Row(event="collected", label=label, state=state, received=received, unanswered=kept))

    def dropped(self, label: str, state: str) -> None:
        self._write(_Row(event="dropped", label=label, state=state))

    def held(self) -> set[str]:
        """Keys of calls that a job may still answer."""
        return {item.key for chunk in self.chunks.values() if chunk.open for item in chunk.items}

    def failures(self) -> dict[str, NoVerdict]:
        """Per key, why its last job brought no reply."""
        found: dict[str, NoVerdict] = {}
        for chunk in self.chunks.values():
            for part in chunk.unanswered:
                found.update(dict.fromkeys(part.keys, part.why))
        return found

    def _write(self, row: _Row) -> None:
        row = row.model_copy(update={"at": datetime.now(UTC).isoformat(timespec="seconds")})
        self._files.append(JOURNAL, [row])
        self._apply(row)

    def _apply(self, row: _Row) -> None:
        if row.event == "planned":
            if row.label in self.chunks:
                raise IntegrityError(f"{self._files.folder}/{JOURNAL}: the label {row.label!r} stands twice")
            self.chunks[row.label] = Chunk(row.label, row.judge, row.items, at=row.at)
            return
        chunk = self.chunks.get(row.label)
        if chunk is None:
            raise IntegrityError(f"{self._files.folder}/{JOURNAL}: {row.event} {row.label!r}, which was never planned")
        chunk.event, chunk.state, chunk.at = row.event, row.state, row.at
        chunk.job = row.job or chunk.job
        chunk.received, chunk.unanswered = row.received, row.unanswered

    def _read(self) -> Iterator[_Row]:
        path = self._files.folder / JOURNAL
        if path.is_symlink():
            raise IntegrityError(f"{path}: a link, which a run never holds")
        if not path.is_file():
            return
        with open(path, "rb") as file:
            number = 0
            while line := file.readline(MAX_LINE + 1):
                number += 1
                if len(line) > MAX_LINE:
                    raise IntegrityError(f"{path}:{number}: a row longer than {MAX_LINE} bytes")
                if not line.endswith(b"\n"):
                    return  # torn by a crash while it was written, so what it tells did not happen
                try:
                    row = _Row.model_validate_json(line)
                except ValidationError as error:
                    raise IntegrityError(f"{path}:{number}: {error.errors()[0]['msg']}") from error
                if not all(is_digest(item.key) for item in row.items):
                    raise IntegrityError(f"{path}:{number}: a key that is not 64 hex digits")
                yield row


@contextmanager
def exclusive(files: RunFiles) -> Iterator[None]:
    """One process at a time may send or collect the batches of a run (where the system can lock files).

    Raises:
        UsageError: another one is at it.
    """
    try:
        import fcntl
    except ImportError:  # Windows: nothing is locked
        yield
        return
    if not files.exists():  # nothing there yet that two could be working on
        yield
        return
    with open(files.folder / ".batches.lock", "wb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UsageError(
                f"batch: another process is working on {str(files.folder)!r}; wait until it ends"
            ) from error
        yield
