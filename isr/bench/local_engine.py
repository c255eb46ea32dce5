"""The local engine: one spawned process per GPU (or per core), one compute thread each.

A worker has one batch, and behind a quick one a second that waits, which hides the writing of results and is the
back-pressure. A worker that dies is replaced and its batches are done again.
"""

from __future__ import annotations

import importlib.util
import multiprocessing as mp
import os
import queue
import runpy
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from ..errors import UsageError
from .engine import MAX_DEATHS, Failed, Slot, best_slot, room_of, told
from .work import THREADS, Batch, Done, Worker, one_thread

__all__ = ["LocalEngine", "default_workers", "gpus"]


def gpus() -> tuple[str, ...]:
    """Names of the GPUs this process may use, as CUDA_VISIBLE_DEVICES spells them; empty without torch or CUDA."""
    found = importlib.util.find_spec("torch")
    if found is None or found.origin is None:
        return ()
    build = runpy.run_path(str(Path(found.origin).with_name("version.py")))
    if build.get("cuda", "?") is None and build.get("hip", "?") is None:
        return ()  # a build for processors only; importing torch to hear that takes seconds
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    visible = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return tuple(visible[:count]) if visible else tuple(str(i) for i in range(count))


def default_workers(devices: tuple[str, ...]) -> int:
    """One per GPU, or one per core that this process may use."""
    if devices:
        return len(devices)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(kw_only=True)
class _Hand(Slot):
    """The parent's side of one worker."""

    device: str | None
    process: BaseProcess
    pipe: Connection


class LocalEngine:
    """Spawned worker processes on this machine.

    Args:
        workers: how many; None: `default_workers`. devices: GPUs, shared round-robin; None: those there are.
    """

    name = "local"

    def __init__(self, workers: int | None = None, devices: tuple[str, ...] | None = None) -> None:
        self.devices = gpus() if devices is None else devices
        self.workers = default_workers(self.devices) if workers is None else workers
        if self.workers < 1:
            raise UsageError(f"workers: expected at least 1, got {self.workers}")
        self._context = mp.get_context("spawn")
        self._hands: list[_Hand] = []
        self._deaths: dict[int, int] = {}
        self._failed: list[Failed] = []

    def __enter__(self) -> LocalEngine:
        self._hands = [self._start(i) for i in range(self.workers)]
        return self

    def __exit__(self, *exc: object) -> None:
        for hand in self._hands:
            hand.process.kill()  # a worker holds nothing that is not done again, and its interpreter would leave slowly
        for hand in self._hands:
            hand.process.join()
            hand.pipe.close()
        self._hands = []

    def describe(self) -> dict[str, object]:
        return {"engine": self.name, "workers": self.workers, "devices": list(self.devices)}

    @property
    def pids(self) -> list[int]:
        """Process ids of the workers, for whoever watches them."""
        return [int(hand.process.pid or 0) for hand in self._hands]

    def room(self) -> list[str]:
        return room_of(self._hands)

    def submit(self, batch: Batch) -> None:
        hand = best_slot(self._hands, batch)
        hand.take(batch)
        self._send(hand, batch)

    def wait(self) -> list[Done | Failed]:
        results: list[Done | Failed] = []
        while not results:
            results += self._failed
            self._failed = []
            if results:
                break
            for ready in wait([h.pipe for h in self._hands if h.batches]):
                hand = next(h for h in self._hands if h.pipe is ready)
                try:
                    result = hand.pipe.recv()
                except (EOFError, OSError):
                    self._replace(hand)
                    continue
                hand.batches.popleft()
                results.append(result)
        return results

    def _send(self, hand: _Hand, batch: Batch) -> None:
        # A broken pipe is noticed by `wait`, which replaces the worker and sends its batches again.
        try:
            hand.pipe.send(batch)
        except OSError:
            return

    def _start(self, index: int) -> _Hand:
        name = f"local-{index}"
        device = self.devices[index % len(self.devices)] if self.devices else None
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=_serve, args=(name, theirs), name=name, daemon=True)
        with _environment(
            {**dict.fromkeys(THREADS, "1"), **({} if device is None else {"CUDA_VISIBLE_DEVICES": device})}
        ):
            process.start()  # numerical libraries read these once, when the child loads them
        theirs.close()
        return _Hand(name=name, device=device, process=process, pipe=ours)

    def _replace(self, hand: _Hand) -> None:
        """A worker is gone: start another one and give it the batches again."""
        hand.process.join()
        hand.pipe.close()
        index = self._hands.index(hand)
        lost = list(hand.batches)
        fresh = self._hands[index] = self._start(index)
        for place, batch in enumerate(lost):
            if place == 0:
                self._deaths[batch.number] = self._deaths.get(batch.number, 0) + 1
                if self._deaths[batch.number] >= MAX_DEATHS:
                    code = hand.process.exitcode
                    self._failed.append(
                        Failed(
                            batch.number,
                            f"its worker died {MAX_DEATHS} times (exit status {code}); out of memory is the usual cause",
                        )
                    )
                    continue
            fresh.take(batch)
            self._send(fresh, batch)


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def own_locks() -> None:
    """Progress bars of this process share no semaphore with others: a worker is ended by a kill, which would leave it behind."""
    from tqdm import tqdm

    tqdm.set_lock(threading.RLock())


def _serve(name: str, pipe: Connection) -> None:
    """A worker's life: batches in, results out. A thread reads, so that the parent never waits for a busy worker."""
    batches: queue.Queue[Batch | None] = queue.Queue()

    def read() -> None:
        while True:
            try:
                batches.put(pipe.recv())
            except (EOFError, OSError):
                os._exit(0)  # the parent is gone: nothing left to do, and nobody to tell

    own_locks()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    threading.Thread(target=read, daemon=True).start()
    worker: Any = None
    one_thread()
    while (batch := batches.get()) is not None:
        result: Done | Failed
        try:
            worker = worker or Worker(name)
            result = worker.do(batch)
        except Exception as error:  # noqa: BLE001 - carried to the parent
            result = Failed(batch.number, told(error))
        pipe.send(result)
