"""Cases × judges: who is asked when, how much is in flight, and what happens when a judge stops."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Iterable, Sequence
from itertools import islice
from typing import TypeVar

from ..schema import Judgement, NotAsked, Verdict
from .case import JudgeableCase
from .runner import JudgeRunner

__all__ = ["judge_cases"]

C = TypeVar("C", bound=JudgeableCase)

#: What is stored of a case, per judge (see `JudgeRunner.stored`).
Stored = tuple[Judgement | None, ...]
#: Cases whose stored judgements are read together.
_LOOK_UP = 64


async def judge_cases(
    cases: Iterable[C],
    runners: Sequence[JudgeRunner],
    *,
    lazy: bool = False,
    lazy_source: bool = False,
) -> AsyncGenerator[tuple[C, tuple[Judgement, ...]], None]:
    """Yield every case with one judgement per judge, as they finish.

    Args:
        cases: in order. runners: the judges, cheapest first when lazy.
        lazy: ask a later judge only after the earlier ones said "defeated" or gave no verdict (strict consensus needs no
            more; the ISR is identical).
        lazy_source: fetching the next case may block (a stream that reads files), so it happens in a thread.

    Raises:
        JudgeStoppedError: a judge stopped. Nothing new is started then; calls already under way finish first and are
            stored, so that a resumed run asks only what is missing.
    """
    source = iter(cases)
    # Twice the widest judge keeps every judge busy while case order stays roughly that of the input.
    width = 2 * max((r.judge.limits.concurrency for r in runners), default=1)
    done: asyncio.Queue[tuple[C, tuple[Judgement, ...]] | BaseException | None] = asyncio.Queue(maxsize=2 * width)
    lock = asyncio.Lock()
    stopped = asyncio.Event()

    ahead: deque[tuple[C, Stored]] = deque()

    async def take() -> tuple[C, Stored] | None:
        if stopped.is_set():
            return None
        if lazy_source:
            async with lock:
                case = await asyncio.to_thread(next, source, None)
            return None if case is None else (case, tuple(r.stored([case])[0] for r in runners))
        if not ahead:
            some = list(islice(source, _LOOK_UP))
            ahead.extend(zip(some, zip(*(r.stored(some) for r in runners), strict=True), strict=True))
        return ahead.popleft() if ahead else None

    async def worker() -> None:
        try:
            while (taken := await take()) is not None:
                case, stored = taken
                try:
                    judgements = await (_lazily if lazy else _all)(case, runners, stored)
                finally:
                    case.release()
                await done.put((case, judgements))
        except asyncio.CancelledError:
            if _being_cancelled():
                raise
            stopped.set()
            await done.put(RuntimeError("a judge or the source of the cases raised CancelledError by itself"))
        except BaseException as error:  # noqa: BLE001 - carried to the consumer, which raises it after the others finished
            stopped.set()
            await done.put(error)
        finally:
            if not _being_cancelled():
                await done.put(None)

    workers = [asyncio.create_task(worker()) for _ in range(width)]
    failure: BaseException | None = None
    running = len(workers)
    try:
        while running:
            item = await done.get()
            if item is None:
                running -= 1
            elif isinstance(item, BaseException):
                failure = failure or item
            else:
                yield item
        if failure is not None:
            raise failure
    finally:
        for task in workers:
            task.cancel()
        await asyncio.gather(*workers, return_exceptions=True)


def _being_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


async def _all(case: JudgeableCase, runners: Sequence[JudgeRunner], stored: Stored) -> tuple[Judgement, ...]:
    """All judges at once. Every one finishes (and stores its reply) even where another stops."""
    asked = [r for r, known in zip(runners, stored, strict=True) if known is None]
    results = await asyncio.gather(*(r.judge_case(case) for r in asked), return_exceptions=True) if asked else []
    answered = iter(results)
    judgements: list[Judgement] = []
    for runner, known in zip(runners, stored, strict=True):
        if known is not None:
            runner.used(known)
        result = next(answered) if known is None else known
        if isinstance(result, BaseException):
            raise result
        judgements.append(result)
    return tuple(judgements)


async def _lazily(case: JudgeableCase, runners: Sequence[JudgeRunner], stored: Stored) -> tuple[Judgement, ...]:
    judgements: list[Judgement] = []
    settled = False
    for runner, known in zip(runners, stored, strict=True):
        if settled:
            answer = NotAsked(reason="lazy")
            judgements.append(
                Judgement(case_id=case.record.case_id, judge=runner.name, fingerprint=runner.fingerprint, answer=answer)
            )
            continue
        if known is not None:
            runner.used(known)
        judgement = await runner.judge_case(case) if known is None else known
        judgements.append(judgement)
        settled = isinstance(judgement.answer, Verdict) and not judgement.answer.defeated
    return tuple(judgements)
