"""One batch job: sending due calls in chunks, finding what a crash left open, and storing what came back."""

from __future__ import annotations

import asyncio
import secrets
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import IsrError, JudgeStoppedError, UsageError
from ..money import WorstCase, output_limit
from ..protocols import BatchClient, BatchItem, BatchState, Reply
from ..schema import NoVerdict
from .cache import ReplyCache
from .journal import Chunk, Item, Journal
from .retry import Exhausted, RetryPolicy, with_retry
from .runner import NEVER_STORED
from .waiting import WAITING, Due, WaitingRunner

__all__ = ["Collected", "Sender", "collect_chunk", "heal", "poll_chunk"]


def _gone(error: Exhausted, judge: str) -> JudgeStoppedError:
    return JudgeStoppedError(
        f"{judge}: the batch service does not answer ({error}). Nothing is lost; run the same command again later.",
        judge=judge,
    )


def _lost(error: JudgeStoppedError, chunk: Chunk) -> JudgeStoppedError:
    """The same error, with the way out where the service no longer has the job or its results."""
    if error.status != 404:
        return error
    return JudgeStoppedError(
        f"{chunk.judge}: the service does not know the job {chunk.job} or its results (any more). If they are gone for good, "
        f"give it up with `isr batch forget RUN {chunk.job}` and submit again. ({error})",
        judge=chunk.judge,
        status=404,
    )


async def heal(journal: Journal, clients: Mapping[str, BatchClient], retry: RetryPolicy) -> None:
    """Settle chunks that were planned but not noted as submitted: found at the service, or never there (then their calls
    are due again)."""
    for chunk in [c for c in journal.chunks.values() if c.event == "planned"]:
        client, label = clients[chunk.judge], chunk.label
        try:
            job, _ = await with_retry(lambda client=client, label=label: client.find(label), retry)  # type: ignore[misc]
        except Exhausted as error:
            raise _gone(error, chunk.judge) from None
        if job is None:
            journal.dropped(label, "never reached the service")
        else:
            journal.submitted(label, job)


class Sender:
    """Sends the due calls of one judge in chunks that the service takes, each journalled before and after.

    Attributes:
        sent: calls in jobs that the service took. spent: dollars reserved for them. over_cap: calls that did not fit.
    """

    def __init__(
        self,
        journal: Journal,
        runner: WaitingRunner,
        client: BatchClient,
        retry: RetryPolicy,
        max_cost: float | None = None,
    ) -> None:
        self._journal, self._runner, self._client, self._retry = journal, runner, client, retry
        self._cap = max_cost
        self._worst = (
            None if runner.dearest is None else WorstCase(runner.dearest, output_limit(runner.judge.identity()))
        )
        self.sent = self.over_cap = 0
        self.spent = 0.0

    async def send(self, due: Sequence[Due], folder: Path, *, spent: float = 0.0) -> None:
        """Encode, pack and submit.

        Args:
            folder: for the encoded requests of one chunk at a time. spent: reserved by other judges under the same cap.

        Raises:
            JudgeStoppedError: the service refuses us; chunks sent before stay sent.
        """
        self.spent = spent
        limits = self._client.limits
        path = folder / "requests.jsonl"
        items: list[Item] = []
        size = 0
        file = open(path, "wb")  # noqa: SIM115 - closed and opened again for every chunk
        try:
            for one in due:
                if not self._fits(one):
                    self.over_cap += 1
                    continue
                line = await asyncio.to_thread(self._encode, one)
                if len(line) > limits.max_bytes:
                    raise UsageError(
                        f"{self._runner.name}: the request of case {one.case.record.case_id} takes {len(line):,} bytes, a batch "
                        f"at most {limits.max_bytes:,}; use max_side="
                    )
                if items and (size + len(line) > limits.max_bytes or len(items) >= limits.max_requests):
                    file.close()
                    await self._flush(path, items)
                    items, size = [], 0
                    file = open(path, "wb")  # noqa: SIM115
                file.write(line)
                items.append(Item(one.key, one.vote, one.ask))
                size += len(line)
        finally:
            file.close()
        if items:
            await self._flush(path, items)

    def _encode(self, due: Due) -> bytes:
        line = self._client.encode(BatchItem(due.key, self._runner.question(due)))
        if b"\n" in line:
            raise ValueError("an encoded request holds a line end")
        return line + b"\n"

    def _fits(self, due: Due) -> bool:
        if self._cap is None or self._worst is None:
            return True
        worst = self._worst.dollars(self._runner.fixed_characters(due), due.case.sizes())
        if self.spent + worst > self._cap:
            return False
        self.spent += worst
        return True

    async def _flush(self, path: Path, items: list[Item]) -> None:
        label = f"isr-{secrets.token_hex(12)}"
        self._journal.planned(label, self._runner.name, tuple(items))
        first = True

        async def attempt() -> str:
            nonlocal first
            if not first:  # the attempt that failed may have been accepted all the same
                found = await self._client.find(label)
                if found is not None:
                    return found
            first = False
            return await self._client.submit(label, path, len(items))

        try:
            job, _ = await with_retry(attempt, self._retry)
        except Exhausted as error:
            raise _gone(error, self._runner.name) from None
        self._journal.submitted(label, job)
        self.sent += len(items)


async def poll_chunk(chunk: Chunk, client: BatchClient, retry: RetryPolicy) -> BatchState:
    """Where a submitted job stands."""
    try:
        state, _ = await with_retry(lambda: client.poll(chunk.job), retry)
    except Exhausted as error:
        raise _gone(error, chunk.judge) from None
    except JudgeStoppedError as error:
        raise _lost(error, chunk) from None
    return state


@dataclass
class Collected:
    """What one job brought.

    Attributes:
        received: replies stored. notes: for a reader. stopped: the service refused every single request, and why.
    """

    received: int = 0
    notes: list[str] = field(default_factory=list)
    stopped: JudgeStoppedError | None = None


async def collect_chunk(
    journal: Journal,
    chunk: Chunk,
    state: BatchState,
    client: BatchClient,
    runner: WaitingRunner,
    cache: ReplyCache,
    retry: RetryPolicy,
) -> Collected:
    """Store every reply of an ended job. Repeated after a crash it stores only what is not there yet."""
    wanted = {item.key: item for item in chunk.items}
    seen: set[str] = set()
    failed: dict[str, NoVerdict] = {}
    counts: Counter[str] = Counter()
    errors: list[IsrError] = []
    done = Collected()

    async def run() -> None:
        async for key, result in client.collect(chunk.job):
            item = wanted.get(key)
            if item is None:
                counts["unknown"] += 1
                continue
            if key in seen:
                counts["twice"] += 1
                continue
            if isinstance(result, Reply) and not _unkept(result):
                seen.add(key)
                failed.pop(key, None)
                # A reply that is there already (from a collection that was cut off) was received, not received again.
                if cache.get(key) is None:
                    runner.receive(key, item.vote, item.ask, result)
                done.received += 1
            elif isinstance(result, Reply):
                failed[key] = result.answer if isinstance(result.answer, NoVerdict) else WAITING
            else:
                errors.append(result)
                failed[key] = NoVerdict(reason="expired", detail=f"the batch answered with an error: {result}"[:300])

    async def attempt() -> None:
        for kept in (counts, seen, failed, errors):
            kept.clear()
        done.received = 0
        await run()

    try:
        await with_retry(attempt, retry)
    except Exhausted as error:
        raise _gone(error, chunk.judge) from None
    except JudgeStoppedError as error:
        raise _lost(error, chunk) from None
    word = state.word if not state.detail else f"{state.word}: {state.detail}"
    for key in wanted.keys() - seen - failed.keys():
        failed[key] = NoVerdict(reason="expired", detail=f"not answered by the batch ({word})"[:300])
    for what, many in (("unknown", "results for calls that were not in it"), ("twice", "second results for one call")):
        if counts[what]:
            done.notes.append(f"{chunk.judge}: job {chunk.job} brought {counts[what]} {many}; ignored")
            warnings.warn(done.notes[-1], UserWarning, stacklevel=2)
    if failed:
        example = next(iter(failed.values()))
        done.notes.append(
            f"{chunk.judge}: job {chunk.job} left {len(failed)} of {len(wanted)} calls open, e.g. {example.detail}"
        )
    refused = [e for e in errors if isinstance(e, JudgeStoppedError)]
    if refused and not seen and len(refused) == len(wanted):
        done.stopped = refused[0]
    journal.collected(chunk.label, word[:500], done.received, failed)
    return done


def _unkept(reply: Reply) -> bool:
    """A classification that is never stored (a picture that the service could not read may be readable tomorrow)."""
    return isinstance(reply.answer, NoVerdict) and reply.answer.reason in NEVER_STORED
