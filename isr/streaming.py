"""Streams: cases that never fit in memory, judged and handed on as they come."""

from __future__ import annotations

import asyncio
import hashlib
import queue
import re
import threading
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Generator, Iterable, Iterator, Mapping
from contextlib import AsyncExitStack, aclosing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from .cases import EditCase, PreparedCase, iter_prepared
from .consensus import decide
from .engine.case import JudgeableCase
from .engine.loop import run_anywhere
from .engine.progress import Progress
from .engine.run import judge_cases
from .errors import IntegrityError, UsageError
from .evaluation import Plan, connect, lock_of, plan_judging
from .images import FileMemo
from .lock import lock_differences
from .report import Report
from .schema import CaseRecord, Judgement, OutcomeValue
from .store import RunFiles

__all__ = ["CaseResult", "acollect", "astream", "collect", "stream"]

Cases = Iterable[EditCase] | Iterable[Mapping[str, Any]] | str | Path
#: Results written to the run directory in one append.
_BATCH = 64


@dataclass(frozen=True)
class CaseResult:
    """One judged case.

    Attributes:
        case: the record. outcome: the consensus. judgements: one per judge, in the order of the judges.
    """

    case: CaseRecord
    outcome: OutcomeValue
    judgements: tuple[Judgement, ...]


def stream(
    cases: Cases,
    *,
    out: str | Path | None = None,
    images: bool = False,
    progress: bool | None = False,
    **arguments: Any,
) -> Iterator[CaseResult]:
    """Judge a stream of cases; results come as they are finished (roughly in order), and memory does not grow with them.

    Bad pictures are always skipped (`NoVerdict("bad_image")`, counted). Control rows made from `control=` come as results of
    their own; a row with arm="control" is paired with edits that come after it only. Leaving the loop early (or Ctrl-C)
    stops the judging at once: calls under way are given up, and what was received is in the cache.

    Args:
        cases: an iterable of `EditCase`s or mappings, or the path of a manifest.
        out: a run directory to append to. Cases it already holds are neither asked nor yielded again; when the stream ends,
            `Report.load(out)` has everything. images: keep the pictures there too.
        progress: True, False (default), or None (only where a person watches).
        arguments: judges, consensus, rubric, votes, ask_overall, lazy, cache, retry_no_verdicts, max_side, retry, max_cost,
            prices, reuse: as for `evaluate`.
    """
    made = _plan(arguments)
    results: queue.Queue[CaseResult | BaseException | None] = queue.Queue(maxsize=256)
    stop = threading.Event()
    working: list[tuple[asyncio.AbstractEventLoop, asyncio.Task[Any]]] = []

    def put(item: CaseResult | BaseException | None) -> None:
        while not stop.is_set():
            try:
                results.put(item, timeout=0.2)
            except queue.Full:
                continue
            return

    async def work() -> None:
        task = asyncio.current_task()
        if task is not None:
            working.append((asyncio.get_running_loop(), task))
        if stop.is_set():
            return
        async with aclosing(_run(made, cases, out, images, progress=progress)) as source:
            async for result in source:
                await asyncio.to_thread(put, result)

    def body() -> None:
        try:
            asyncio.run(work())
        except BaseException as error:  # noqa: BLE001 - carried to the consuming thread and raised there
            put(error)
        put(None)

    thread = threading.Thread(target=body, name="isr-stream", daemon=True)
    thread.start()
    try:
        while (item := results.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stop.set()
        for loop, task in working:
            with suppress(RuntimeError):  # the loop is closed: the work is over
                loop.call_soon_threadsafe(task.cancel)
        thread.join()


async def astream(
    cases: Cases,
    *,
    out: str | Path | None = None,
    images: bool = False,
    progress: bool | None = False,
    **arguments: Any,
) -> AsyncGenerator[CaseResult, None]:
    """`stream` for async code."""
    made = await asyncio.to_thread(_plan, arguments)
    async with aclosing(_run(made, cases, out, images, progress=progress)) as source:
        async for result in source:
            yield result


def _plan(arguments: Mapping[str, Any]) -> Plan:
    """How to judge; bad pictures are skipped whatever was asked, and the lock says so."""
    return plan_judging(**{**arguments, "on_bad_image": "skip"})


def collect(cases: Cases, *, progress: bool | None = None, **arguments: Any) -> Report:
    """A `Report` of a lazy iterable: judged as a stream (bad pictures are skipped), records kept, pictures not."""
    return run_anywhere(acollect(cases, progress=progress, **arguments))


async def acollect(cases: Cases, *, progress: bool | None = None, **arguments: Any) -> Report:
    """`collect` for async code."""
    made = await asyncio.to_thread(_plan, arguments)
    locks: list[dict[str, Any]] = []
    results: list[CaseResult] = []
    async with aclosing(_run(made, cases, None, False, locks.append, progress=progress)) as source:
        async for result in source:
            results.append(result)
    if not results:
        raise UsageError("edits is empty; there is nothing to judge")
    return Report(
        locks[0], [r.case for r in results], [j for r in results for j in r.judgements], consensus=made.consensus
    )


async def _run(
    made: Plan,
    cases: Cases,
    out: str | Path | None,
    images: bool,
    on_lock: Callable[[dict[str, Any]], None] | None = None,
    *,
    progress: bool | None = False,
) -> AsyncGenerator[CaseResult, None]:
    memo = made.cache.memo()
    files = None if out is None else RunFiles.at(out)
    before = files.read_lock() if files is not None and files.exists() else None
    with_originals = None if before is None else bool(before.get("with_originals"))
    known = _Tally()
    held: dict[str, bytes] = {}
    for record in files.case_rows() if files is not None and before is not None else ():
        if record.case_id in held:
            if held[record.case_id] != _print(record):
                raise IntegrityError(f"{out}/cases.jsonl: case {record.case_id} stands twice and differs")
            continue
        held[record.case_id] = _print(record)
        known.add(record, bad=record.edited is None or (bool(with_originals) and record.original is None))
    source = _Source(
        iter_prepared(cases, memo=FileMemo(memo) if memo is not None else None, max_side=made.max_side),
        held,
        str(out),
        with_originals,
    )

    waiting: list[CaseResult] = []
    async with AsyncExitStack() as stack:
        # Where next() is still under way in a thread, this waits for it.
        stack.push_async_callback(asyncio.to_thread, source.close)
        bar = stack.enter_context(Progress(None, show=progress))
        runners = await connect(made, stack)

        def lock() -> dict[str, Any]:
            new = lock_of(made, runners, with_originals=source.with_originals)
            new["notes"] = [*known.notes(source.with_originals, made.max_side), *source.notes()]
            return new if before is None else _continued(before, new)

        def write() -> None:
            if files is not None and waiting:
                if not files.exists():
                    files.write_lock(lock())
                # Judgements first: a case row is what marks a case as done.
                files.append("judgements.jsonl", [j for r in waiting for j in r.judgements])
                files.append("cases.jsonl", [r.case for r in waiting])
                waiting.clear()

        if before is not None:
            differences = lock_differences(before, lock_of(made, runners, with_originals=source.stored_originals))
            if differences:
                raise UsageError(f"out: {str(out)!r} was judged differently:\n  - " + "\n  - ".join(differences))
        try:
            async with aclosing(judge_cases(source, runners, lazy=made.lazy, lazy_source=True)) as judged:
                async for case, judgements in judged:
                    result = CaseResult(case.record, decide(made.consensus, [j.answer for j in judgements]), judgements)
                    known.add(case.record, bad=case.problem() is not None)
                    for judgement in judgements:
                        bar.tell(judgement)
                    if files is not None:
                        if images:
                            for digest, image in case.images_by_digest().items():
                                await asyncio.to_thread(files.put_image, digest, image.png())
                        waiting.append(result)
                        if len(waiting) >= _BATCH:
                            write()
                    yield result
        finally:
            write()
            if files is not None and files.exists():
                files.write_lock(lock())
        if files is not None and not files.exists():
            files.write_lock(lock())
        if on_lock is not None:
            on_lock(lock())


def _print(record: CaseRecord) -> bytes:
    """What a record says, in 16 bytes: a long run that goes on does not hold its cases in memory."""
    ordered = record.model_copy(update={"tags": dict(sorted(record.tags.items()))})
    return hashlib.blake2b(ordered.model_dump_json().encode(), digest_size=16).digest()


class _Source:
    """Cases on their way to the engine, which fetches them in threads: held ones are left out, and what a reader should know
    of the order is noted.

    Attributes:
        known: prints of the cases that the run directory holds. with_originals: as far as seen.
    """

    def __init__(
        self,
        prepared: Iterator[PreparedCase],
        known: Mapping[str, bytes],
        out: str,
        stored_originals: bool | None,
    ) -> None:
        self.known = known
        self.stored_originals = stored_originals
        self.with_originals = stored_originals is not False
        self._out = out
        self._prepared = cast("Generator[PreparedCase, None, None]", prepared)
        self._lock = threading.Lock()
        #: Keys of edits without a control, 64 bits each.
        self._unpaired: set[int] = set()
        #: The control row just before, where edits that it fits have passed already.
        self._control: str | None = None
        self._late = False

    def __iter__(self) -> Iterator[JudgeableCase]:
        return self

    def __next__(self) -> JudgeableCase:
        with self._lock:
            for one in self._prepared:
                self._see(one)
                held = self.known.get(one.record.case_id)
                if held is None:
                    return JudgeableCase(one)
                if held != _print(one.record):
                    raise UsageError(
                        f"out: {self._out!r} holds the case {one.record.case_id} with other columns; give another folder"
                    )
            raise StopIteration

    def close(self) -> None:
        """Stop the threads that read pictures ahead."""
        with self._lock:
            self._prepared.close()

    def notes(self) -> list[str]:
        return (
            ["A control row that comes after its edit in a stream is not paired with it; put control rows first."]
            if self._late or self._control is not None
            else []
        )

    def _see(self, one: PreparedCase) -> None:
        record = one.record
        shown = one.original is not None
        if self.stored_originals not in (None, shown):
            raise UsageError(
                f"out: {self._out!r} was judged {'with' if self.stored_originals else 'without'} originals, and this case "
                f"comes {'with' if shown else 'without'} one; the two are different measurements: give another folder"
            )
        self.with_originals = shown
        # A control row that the next edit refers to (one made from control=, say) is not late.
        self._late |= self._control is not None and self._control != record.control
        self._control = None
        key = hash((record.image_id, record.prompt, record.editor, record.seed, record.purifier, record.prompt_kind))
        if record.arm == "control":
            if record.image_id is not None and key in self._unpaired:
                self._control = record.case_id
        elif record.control is None:
            self._unpaired.add(key)


@dataclass
class _Tally:
    """Counts over the cases of a run, for the notes of its lock."""

    seen: Counter[str] = field(default_factory=Counter)

    def add(self, record: CaseRecord, *, bad: bool) -> None:
        edit = record.arm != "control"
        self.seen.update(
            edits=edit,
            controls=not edit,
            paired=edit and record.control is not None,
            duplicates="-" in record.case_id,
            bad=bad,
            alone=record.image_id is None,
        )

    def notes(self, with_originals: bool, max_side: int | None) -> Iterator[str]:
        n = self.seen
        if not with_originals:
            yield "Judged without originals: another measurement than with them."
        if n["alone"]:
            yield "Neither image_id nor originals were given: cases count as independent."
            if n["controls"] and n["paired"] < n["edits"]:
                yield "Control rows cannot be paired without image_id or originals."
        if n["controls"] and n["paired"] < n["edits"]:
            yield f"{n['edits'] - n['paired']} of {n['edits']} edits have no control; paired figures use the others only."
        if n["duplicates"]:
            yield f"{n['duplicates']} exact duplicates of other cases are judged as cases of their own."
        if max_side is not None:
            yield f"Judges see pictures of at most {max_side} pixels a side (Lanczos)."
        if n["bad"]:
            yield f"{n['bad']} cases hold a picture that could not be read; they count as no verdict (bad_image)."


def _continued(before: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """The lock of a run that goes on: what was served adds up, and notes stay (the same words with other counts: the new)."""
    served = {j["name"]: Counter(j.get("served") or {}) for j in before.get("judges", ())}
    judges = [
        {**j, "served": dict(sorted((served.get(j["name"], Counter()) + Counter(j["served"])).items()))}
        for j in new["judges"]
    ]
    notes = {re.sub(r"\d+", "#", str(n)): str(n) for n in (*before.get("notes", ()), *new["notes"])}
    return {**new, "created": before.get("created", new["created"]), "judges": judges, "notes": list(notes.values())}
