"""Streams: cases that never fit in memory, judged and handed on as they come."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .cases import EditCase, iter_prepared
from .consensus import decide
from .engine.case import JudgeableCase
from .engine.loop import run_anywhere
from .engine.progress import Progress
from .engine.run import judge_cases
from .errors import UsageError
from .evaluation import Plan, connect, lock_of, plan_judging
from .images import FileMemo
from .report import Report
from .schema import CaseRecord, Judgement, OutcomeValue
from .store import RunFiles

__all__ = ["CaseResult", "astream", "collect", "stream"]

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
    cases: Cases, *, out: str | Path | None = None, images: bool = False, **arguments: Any
) -> Iterator[CaseResult]:
    """Judge a stream of cases; results come as they are finished (roughly in order), and memory does not grow with them.

    Bad pictures are always skipped (`NoVerdict("bad_image")`, counted). Control rows made from `control=` come as results of
    their own. Leaving the loop early stops the judging; what was received is in the cache.

    Args:
        cases: an iterable of `EditCase`s or mappings, or the path of a manifest.
        out: a run directory to append to. Cases it already holds are neither asked nor yielded again; when the stream ends,
            `Report.load(out)` has everything. images: keep the pictures there too.
        arguments: judges, consensus, rubric, votes, ask_overall, lazy, cache, retry_no_verdicts, max_side, retry, max_cost,
            prices: as for `evaluate`.
    """
    made = _plan(arguments)
    results: queue.Queue[CaseResult | BaseException | None] = queue.Queue(maxsize=256)
    stop = threading.Event()

    def put(item: CaseResult | BaseException | None) -> None:
        while not stop.is_set():
            try:
                results.put(item, timeout=0.2)
            except queue.Full:
                continue
            return

    async def work() -> None:
        async with aclosing(_run(made, cases, out, images)) as source:
            async for result in source:
                await asyncio.to_thread(put, result)
                if stop.is_set():
                    return

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
        thread.join()


async def astream(
    cases: Cases, *, out: str | Path | None = None, images: bool = False, **arguments: Any
) -> AsyncIterator[CaseResult]:
    """`stream` for async code."""
    made = await asyncio.to_thread(_plan, arguments)
    async with aclosing(_run(made, cases, out, images)) as source:
        async for result in source:
            yield result


def _plan(arguments: Mapping[str, Any]) -> Plan:
    return plan_judging(**arguments)


def collect(cases: Cases, *, progress: bool | None = None, **arguments: Any) -> Report:
    """A `Report` of a lazy iterable: judged as a stream (bad pictures are skipped), records kept, pictures not."""
    made = _plan({**arguments, "on_bad_image": "skip"})
    locks: list[dict[str, Any]] = []
    results: list[CaseResult] = []

    async def work() -> None:
        with Progress(None, show=progress) as bar:
            async with aclosing(_run(made, cases, None, False, locks.append)) as source:
                async for result in source:
                    results.append(result)
                    for judgement in result.judgements:
                        bar.tell(judgement)

    run_anywhere(work())
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
) -> AsyncIterator[CaseResult]:
    memo = made.cache.memo()
    prepared = iter_prepared(cases, memo=FileMemo(memo) if memo is not None else None, max_side=made.max_side)
    files = None if out is None else RunFiles.at(out)
    known = _known(files) if files is not None else {}
    seen_originals: set[bool] = set()

    def source() -> Iterator[JudgeableCase]:
        for one in prepared:
            seen_originals.add(one.original is not None)
            held = known.get(one.record.case_id)
            if held is None:
                yield JudgeableCase(one)
            elif held != one.record:
                raise UsageError(
                    f"out: {str(out)!r} holds the case {one.record.case_id} with other columns; give another folder"
                )

    waiting: list[CaseResult] = []
    async with AsyncExitStack() as stack:
        runners = await connect(made, stack)

        def lock() -> dict[str, Any]:
            return lock_of(made, runners, with_originals=seen_originals != {False})

        def write() -> None:
            if files is not None and waiting:
                if not files.exists():
                    files.write_lock(lock())
                # Judgements first: a case row is what marks a case as done.
                files.append("judgements.jsonl", [j for r in waiting for j in r.judgements])
                files.append("cases.jsonl", [r.case for r in waiting])
                waiting.clear()

        if files is not None and files.exists():
            from .lock import lock_differences

            first = lock_differences(
                files.read_lock(), lock_of(made, runners, with_originals=bool(files.read_lock().get("with_originals")))
            )
            if first:
                raise UsageError(f"out: {str(out)!r} was judged differently:\n  - " + "\n  - ".join(first))
        try:
            async with aclosing(judge_cases(source(), runners, lazy=made.lazy, lazy_source=True)) as judged:
                async for case, judgements in judged:
                    result = CaseResult(case.record, decide(made.consensus, [j.answer for j in judgements]), judgements)
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
        if files is not None:
            files.write_lock(lock())
        if on_lock is not None:
            on_lock(lock())


def _known(files: RunFiles) -> dict[str, CaseRecord]:
    return {c.case_id: c for c in files.cases()} if files.exists() else {}
