"""What an engine is: something that takes batches and gives them back done, in any order. And the simplest one."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from ..errors import IsrError, UsageError
from .work import Batch, Done, Worker

__all__ = ["MAX_DEATHS", "Engine", "Failed", "InlineEngine", "Slot", "StepError", "best_slot", "room_of", "told"]

#: Times a worker may die on one batch before the batch counts as failed.
MAX_DEATHS = 3


@dataclass(kw_only=True)
class Slot:
    """The driver's side of one worker: what it has to do, and which model it holds."""

    name: str
    resource: str = ""
    batches: deque[Batch] = field(default_factory=deque)

    @property
    def free(self) -> bool:
        """Idle, or about to be: behind a batch that is known to be quick, one more may wait."""
        return not self.batches or (len(self.batches) == 1 and self.batches[0].quick)

    def take(self, batch: Batch) -> None:
        self.batches.append(batch)
        if batch.resource:  # a batch that needs no model leaves the loaded one where it is
            self.resource = batch.resource


S = TypeVar("S", bound=Slot)


def room_of(slots: Sequence[Slot]) -> list[str]:
    """What `Engine.room` says of these workers: the emptiest first."""
    return [s.resource for s in sorted(slots, key=lambda s: len(s.batches)) if s.free]


def best_slot(slots: Sequence[S], batch: Batch) -> S:
    """Who gets a batch: the emptiest; among equals the one that holds its model.

    Raises:
        UsageError: nobody has room.
    """
    free = [s for s in slots if s.free]
    if not free:
        raise UsageError("submit: no worker has room; ask room() first")
    return min(free, key=lambda s: (len(s.batches), s.resource != batch.resource))


class StepError(IsrError):
    """Batches that could not be done; everything else of the run is kept, and the same command goes on."""


@dataclass(frozen=True)
class Failed:
    """A batch that raised, or that killed its worker too often. message: the error, as the worker saw it."""

    number: int
    message: str


class Engine(Protocol):
    """Workers behind one interface. Used as a context manager, from one thread.

    An engine retries a batch whose worker was lost; a batch that raises is `Failed` at once.
    """

    name: str

    def __enter__(self) -> Engine: ...

    def __exit__(self, *exc: object) -> None: ...

    def room(self) -> list[str]:
        """One entry per batch that may be submitted now (back-pressure): the resource that its worker holds, "" if none."""
        ...

    def submit(self, batch: Batch) -> None:
        """Hand over a batch; only while there is room."""
        ...

    def wait(self) -> list[Done | Failed]:
        """At least one result; blocks until there is one."""
        ...

    def describe(self) -> dict[str, object]:
        """For the result card: kind, workers, devices."""
        ...


def told(error: BaseException) -> str:
    """An error with its notes, as one text."""
    kind = "" if isinstance(error, IsrError) else f"{type(error).__name__}: "
    return "\n  ".join([f"{kind}{error}", *getattr(error, "__notes__", [])])


class InlineEngine:
    """Everything in this process, one batch after the other (`--workers 0`)."""

    name = "inline"

    def __init__(self) -> None:
        self._worker = Worker("inline")
        self._slot = Slot(name="inline")

    def __enter__(self) -> InlineEngine:
        return self

    def __exit__(self, *exc: object) -> None:
        self._slot.batches.clear()

    def room(self) -> list[str]:
        return [] if self._slot.batches else [self._slot.resource]

    def submit(self, batch: Batch) -> None:
        self._slot.take(batch)

    def wait(self) -> list[Done | Failed]:
        batch = self._slot.batches.popleft()
        try:
            return [self._worker.do(batch)]
        except Exception as error:  # noqa: BLE001 - carried to the driver, which reports it with the batch
            return [Failed(batch.number, told(error))]

    def describe(self) -> dict[str, object]:
        return {"engine": self.name, "workers": 1}
