"""The Ray engine: actors that hold a loaded editor, on one machine or a cluster, with the same experiment file.

Needs the extra `ray`. Pictures travel with the batches and come back with the results, so the machines share no folder and
only the driver writes. Each actor has one compute thread, and batches are the plan's: results are those of the local engine.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
import os
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import UsageError, missing_extra
from .engine import MAX_DEATHS, Failed, Slot, best_slot, room_of, told
from .local_engine import default_workers
from .plugins import VARIABLE
from .work import THREADS, Batch, Done, Worker

__all__ = ["RayEngine"]


def _ray() -> Any:
    """Ray, untyped on purpose: type checks then say the same with and without the extra."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray would report its use to its makers
    return importlib.import_module("ray")


def _start(ray: Any, arguments: Mapping[str, Any]) -> None:
    """`ray.init`, tried again where Ray's own node is not up within its fixed 30 s (a machine that is busy otherwise)."""
    for last in (False, False, True):
        try:
            ray.init(**arguments)
        except Exception as error:  # Ray has no class of its own for this one; every other error goes on at once
            ray.shutdown()
            if last or "timed out during startup" not in str(error):
                raise
            continue
        return


@dataclass(kw_only=True)
class _Actor(Slot):
    """The driver's side of one actor. replies: one per batch, in the same order."""

    handle: Any
    replies: deque[Any] = field(default_factory=deque)


class RayEngine:
    """Actors of a Ray cluster.

    Args:
        workers: how many; None: as many as the cluster's GPUs (or cores) hold.
        gpus: per worker, fractions allowed (0.5: two workers share a GPU); None: one each where the cluster has GPUs.
        address: of a running cluster ("auto": the one on this machine); None: start one here, for this run.
        options: further arguments of `ray.init` (tests: num_cpus).

    Raises:
        MissingExtraError: Ray is not installed.
    """

    name = "ray"

    def __init__(
        self, workers: int | None = None, *, gpus: float | None = None, address: str | None = None, **options: Any
    ) -> None:
        if importlib.util.find_spec("ray") is None:
            raise missing_extra("The Ray engine", "ray", "ray")
        if workers is not None and workers < 1:
            raise UsageError(f"workers: expected at least 1, got {workers}")
        if gpus is not None and gpus < 0:
            raise UsageError(f"gpus: expected a share of a GPU per worker ≥ 0, got {gpus}")
        self.workers = workers or 0
        self.gpus = gpus
        self.address = address
        self.options = options
        self._started = False
        self._actors: list[_Actor] = []
        self._deaths: dict[int, int] = {}
        self._failed: list[Failed] = []

    def __enter__(self) -> RayEngine:
        ray = _ray()
        if not ray.is_initialized():
            here: dict[str, Any] = {} if self.address else {"include_dashboard": False}
            _start(ray, {"address": self.address, "log_to_driver": False, **here, **self.options})
            self._started = True
        total = ray.cluster_resources()
        if self.gpus is None:
            self.gpus = 1.0 if total.get("GPU", 0) else 0.0
        if not self.workers:
            fits = (
                math.floor(total.get("GPU", 0) / self.gpus) if self.gpus else int(total.get("CPU", default_workers(())))
            )
            self.workers = max(1, fits)
        self._actors = [self._start(i) for i in range(self.workers)]
        return self

    def __exit__(self, *exc: object) -> None:
        ray = _ray()
        for actor in self._actors:
            ray.kill(actor.handle)
        self._actors = []
        if self._started:
            ray.shutdown()
            self._started = False

    def describe(self) -> dict[str, object]:
        return {
            "engine": self.name,
            "workers": self.workers,
            "gpus_per_worker": self.gpus,
            "cluster": bool(self.address),
        }

    def room(self) -> list[str]:
        return room_of(self._actors)

    def submit(self, batch: Batch) -> None:
        self._send(best_slot(self._actors, batch), batch)

    def wait(self) -> list[Done | Failed]:
        ray = _ray()
        results: list[Done | Failed] = []
        while not results:
            results += self._failed
            self._failed = []
            if results:
                break
            # An actor works on its batches in order, so only the first of each can be ready.
            heads = [a.replies[0] for a in self._actors if a.replies]
            ready, _ = ray.wait(heads, num_returns=1)
            actor = next(a for a in self._actors if a.replies and a.replies[0] == ready[0])
            try:
                result: Done | Failed = ray.get(ready[0])
            except ray.exceptions.RayActorError as error:
                self._replace(actor, str(error))
                continue
            actor.batches.popleft()
            actor.replies.popleft()
            results.append(result)
        return results

    def _send(self, actor: _Actor, batch: Batch) -> None:
        actor.take(batch)
        actor.replies.append(actor.handle.do.remote(batch))

    def _start(self, index: int) -> _Actor:
        ray = _ray()
        name = f"ray-{index}"
        variables = dict.fromkeys(THREADS, "1")
        if os.environ.get(VARIABLE):
            variables[VARIABLE] = os.environ[VARIABLE]
        if os.environ.get("PYTHONPATH"):
            variables["PYTHONPATH"] = os.environ["PYTHONPATH"]
        kind = ray.remote(num_cpus=1, num_gpus=self.gpus or 0, max_restarts=0, runtime_env={"env_vars": variables})(
            _Hand
        )
        return _Actor(name=name, handle=kind.remote(name))

    def _replace(self, actor: _Actor, why: str) -> None:
        """An actor is lost (its machine, its memory): a new one gets its batches."""
        index = self._actors.index(actor)
        lost = list(actor.batches)
        fresh = self._actors[index] = self._start(index)
        for place, batch in enumerate(lost):
            if place == 0:
                self._deaths[batch.number] = self._deaths.get(batch.number, 0) + 1
                if self._deaths[batch.number] >= MAX_DEATHS:
                    self._failed.append(
                        Failed(batch.number, f"its actor was lost {MAX_DEATHS} times: {why.splitlines()[0]}")
                    )
                    continue
            self._send(fresh, batch)


class _Hand:
    """The actor's side; one worker."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._worker: Worker | None = None

    def do(self, batch: Batch) -> Done | Failed:
        try:
            self._worker = self._worker or Worker(self._name)
            return self._worker.do(batch)
        except Exception as error:  # noqa: BLE001 - carried to the driver
            return Failed(batch.number, told(error))

    def pid(self) -> int:
        """Process id, for whoever watches it."""
        return os.getpid()
