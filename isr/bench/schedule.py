"""Which batch is next: in the plan's order, once its inputs are there, best on a worker that holds its model.

The plan's order puts the heads of long chains first (immunizations, then edits, then measurements). Simulated with recorded
times, no order by the longest way still to go, learned or known beforehand, was better by more than 1 % on average; what cost
up to half of a run was a batch that waited behind a long one while another worker was idle, so only behind quick ones does
a batch wait (`quick`). Order changes when a run ends, never what it holds: the plan fixes batches
(docs/definitions.md, section 12).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from .experiment import canonical_json
from .files import StepRow
from .plan import Plan

__all__ = ["QUICK", "Scheduler"]

#: A batch expected to take less than this (seconds) may have another one waiting behind it in its worker, which hides the
#: driver's work in between; behind a longer one it would wait while another worker is idle.
QUICK = 0.5


@dataclass
class _Times:
    """Seconds per step of finished steps."""

    seconds: float = 0.0
    steps: int = 0

    def add(self, seconds: float) -> None:
        self.seconds, self.steps = self.seconds + seconds, self.steps + 1

    @property
    def mean(self) -> float | None:
        return self.seconds / self.steps if self.steps else None


@dataclass
class _Group:
    """Batches of one kind and spec that wait for something, or for nothing; they differ by their pictures only.

    Attributes:
        resource: the model they need. ready: numbers of batches whose inputs are there, in the plan's order.
        times: seconds per step of steps that are finished, by any group of this kind and spec.
    """

    resource: str
    times: _Times
    ready: deque[int] = field(default_factory=deque)


class Scheduler:
    """The batches of a plan that are not done.

    Args:
        done: finished steps of the run, and how long they took.
    """

    def __init__(self, plan: Plan, done: Mapping[str, StepRow]) -> None:
        self._jobs = plan.jobs
        self._groups: list[_Group] = []
        #: The group of every batch.
        self._group: list[_Group] = []
        #: Batch → names of the steps that it waits for, and the other way round.
        self._waits: dict[int, set[str]] = {}
        self._waiting: dict[str, list[int]] = {}
        self._open: set[int] = set()
        groups: dict[tuple[str, bytes, bool], _Group] = {}
        times: dict[tuple[str, bytes], _Times] = {}
        for number, job in enumerate(self._jobs):
            first = job.steps[0]
            spec = canonical_json(first.spec)
            measured = times.setdefault((first.kind, spec), _Times())
            group = groups.setdefault((first.kind, spec, bool(first.needs)), _Group(job.resource, measured))
            self._group.append(group)
            rows = [done[s.key] for s in job.steps if s.key in done]
            for row in rows:
                if row.seconds is not None:
                    measured.add(row.seconds)
            if len(rows) == len(job.steps):
                continue
            self._open.add(number)
            missing = {n for n in job.needs if n not in done}
            if missing:
                self._waits[number] = missing
                for name in missing:
                    self._waiting.setdefault(name, []).append(number)
            else:
                group.ready.append(number)
        self._groups = list(groups.values())

    @property
    def left(self) -> int:
        """Batches that are not finished and not given up."""
        return len(self._open)

    def next(self, resource: str) -> int | None:
        """The number of a batch whose inputs are there, best one for a worker that holds `resource`; None: none is ready."""
        ready = [group for group in self._groups if group.ready]
        if not ready:
            return None
        held = [group for group in ready if group.resource == resource]
        return min(held or ready, key=lambda group: group.ready[0]).ready.popleft()

    def quick(self, number: int) -> bool:
        """Whether a batch is known to take less than `QUICK`, from finished steps of its kind and spec."""
        each = self._group[number].times.mean
        return each is not None and each * len(self._jobs[number].steps) < QUICK

    def finished(self, number: int, rows: Iterable[StepRow]) -> None:
        """A batch is done; what waited for it alone becomes ready."""
        self._open.discard(number)
        for row in rows:
            if row.seconds is not None:
                self._group[number].times.add(row.seconds)
        for step in self._jobs[number].steps:
            for other in self._waiting.pop(step.key, ()):
                missing = self._waits.get(other)
                if missing is None:
                    continue  # given up meanwhile
                missing.discard(step.key)
                if not missing:
                    del self._waits[other]
                    _insert(self._group[other].ready, other)

    def fail(self, number: int) -> int:
        """Give up a batch and everything that rests on it; how many further batches that is."""
        lost = -1
        given_up = [number]
        while given_up:
            one = given_up.pop()
            if one not in self._open:
                continue
            self._open.discard(one)
            self._waits.pop(one, None)
            lost += 1
            for step in self._jobs[one].steps:
                given_up += self._waiting.pop(step.key, ())
        return lost


def _insert(ready: deque[int], number: int) -> None:
    """Into ascending numbers; nearly always at the end."""
    place = len(ready)
    while place and ready[place - 1] > number:
        place -= 1
    ready.insert(place, number)
