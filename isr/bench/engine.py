"""What an engine is: something that takes batches and gives them back done, in any order. And the simplest one."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Protocol

from ..errors import IsrError
from .work import Batch, Done, Worker

__all__ = ["MAX_DEATHS", "QUICK", "Engine", "Failed", "InlineEngine", "StepError", "depth", "told"]

#: Times a worker may die on one batch before the batch counts as failed.
MAX_DEATHS = 3


#: A batch that takes longer than this (seconds) is handed out only to an idle worker: fetching the next one costs
#: milliseconds, while a batch that waits behind a long one leaves another worker idle at the end.
QUICK = 0.5


def depth(seconds: float | None) -> int:
    """Batches that a worker may have at once (one under way, one waiting), from how long its last one took."""
    return 2 if seconds is not None and seconds < QUICK else 1


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

    def submit(self, batch: Batch, resource: str) -> None:
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
        self._queue: deque[Batch] = deque()
        self._resource = ""

    def __enter__(self) -> InlineEngine:
        return self

    def __exit__(self, *exc: object) -> None:
        self._queue.clear()

    def room(self) -> list[str]:
        return [] if self._queue else [self._resource]

    def submit(self, batch: Batch, resource: str) -> None:
        self._queue.append(batch)
        self._resource = resource

    def wait(self) -> list[Done | Failed]:
        batch = self._queue.popleft()
        try:
            return [self._worker.do(batch)]
        except Exception as error:  # noqa: BLE001 - carried to the driver, which reports it with the batch
            return [Failed(batch.number, told(error))]

    def describe(self) -> dict[str, object]:
        return {"engine": self.name, "workers": 1}
