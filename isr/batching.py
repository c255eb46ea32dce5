"""Judging through the batch APIs of Gemini and OpenAI (`isr.batch`): cheaper, slower, the same measurement.

A batch fills the cache. `submit` sends every call that the cache lacks, `collect` stores what came back under the keys of
live calls, and the report is made by the ordinary engine from the cache; a live run with the same settings finds every
reply there. Every step may be interrupted and repeated; the journal beside the run says how far it got.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from .engine.batches import Sender, collect_chunk, heal, poll_chunk
from .engine.cache import ReplyCache
from .engine.journal import Chunk, Journal, exclusive
from .engine.loop import run_anywhere
from .engine.retry import RetryPolicy
from .engine.waiting import StoredCase, WaitingRunner, stored_cases
from .errors import JudgeStoppedError, UsageError
from .evaluation import Plan, lock_of, plan, plan_judging, price_of, refill
from .images import FileMemo
from .lock import lock_differences
from .protocols import BatchClient, BatchJudge, BatchState, Consensus, Judge
from .report import Report
from .rubric import Rubric
from .schema import Call, Judgement
from .store import RunFiles

__all__ = ["BatchStatus", "Job", "batch", "collect", "forget", "status", "submit"]

#: Seconds between two looks at the service where `collect` waits.
POLL_EVERY = 60.0


@dataclass(frozen=True)
class Job:
    """One job at a service.

    Attributes:
        judge, label, job: whose, our label, the service's id ("" where it is not known that the service has it).
        state: the service's word as last heard. requests: calls in it. answered: as the service counts, or None.
        open: its replies are still to be collected.
    """

    judge: str
    label: str
    job: str
    state: str
    requests: int
    answered: int | None
    open: bool


@dataclass(frozen=True)
class BatchStatus:
    """How far a batch run is.

    Attributes:
        folder: the run directory. jobs: all of them, oldest first.
        sent, received: calls of this step. waiting: calls that an open job holds. missing: calls that no reply answers
            and no job holds (`submit` again sends them). over_cap: of these, calls that did not fit under `max_cost`.
        notes: what went wrong, for a reader. report: from what is there; what is missing is NoVerdict("expired").
    """

    folder: Path
    jobs: tuple[Job, ...]
    sent: int
    received: int
    waiting: int
    missing: int
    over_cap: int
    notes: tuple[str, ...]
    report: Report = field(repr=False)

    @property
    def complete(self) -> bool:
        """Every call is answered."""
        return self.waiting == 0 and self.missing == 0

    def __str__(self) -> str:
        lines = [
            f"{job.judge}  {job.job or job.label}  {job.state or 'submitted'}  "
            + (f"{job.answered} of " if job.answered is not None and job.open else "")
            + f"{job.requests} requests"
            for job in self.jobs
        ]
        lines += [f"note: {note}" for note in self.notes]
        told = [f"{self.sent} calls sent"] if self.sent else []
        told += [f"{self.received} replies received"] if self.received else []
        told += [f"{self.waiting} calls wait for an answer"] if self.waiting else []
        told += (
            [f"{self.missing} calls are not answered and not under way; submit again to send them"]
            if self.missing
            else []
        )
        told += [f"{self.over_cap} of them do not fit under max_cost"] if self.over_cap else []
        return "\n".join([*lines, "; ".join(told) or "every call is answered"])


def submit(
    edits: Any,
    prompts: Any = None,
    *,
    out: str | Path | None = None,
    judges: Any = None,
    cache: bool | str | Path | ReplyCache = True,
    consensus: str | Consensus | None = None,
    retry_no_verdicts: bool = False,
    max_cost: float | None = None,
    prices: str | Path | None = None,
    retry: RetryPolicy | None = None,
    **arguments: Any,
) -> BatchStatus:
    """Send every call that the cache lacks and no open job holds; nothing that is under way is sent twice.

    Args:
        edits, prompts: as for `isr.evaluate`; or a run directory made by an earlier `submit`, to send what is missing.
        out: the run directory; made with cases and pictures and without judgements.
        judges: as for `isr.evaluate`; every one needs a batch API. For a run directory: default those of its lock.
        cache: where replies are kept; it must outlive this process, so False is refused.
        max_cost: cap for what *this* step sends, in US dollars at batch prices; the rest stays unsent and counted.
        retry: how failures of the service are retried. arguments: further arguments of `isr.evaluate`, but not `lazy`.

    Raises:
        UsageError: an argument is wrong; nothing was sent. JudgeStoppedError: a service refuses us; run it again to go on.
    """
    if arguments.pop("lazy", False):
        raise UsageError("lazy: a batch asks all judges at once; leave lazy out, or use isr.evaluate")
    if cache is False:
        raise UsageError(
            "cache: the replies of a batch are kept in it until all are there; give a folder, or leave it out"
        )
    if prompts is None and isinstance(edits, str | Path) and RunFiles.at(edits).exists():
        if arguments or (out is not None and Path(out) != Path(edits)):
            named = ", ".join([*arguments, *(["out"] if out is not None else [])])
            raise UsageError(
                f"{named}: fixed when the run {str(edits)!r} was made; leave it out, or submit the manifest again"
            )
        folder = Path(edits)
    else:
        if out is None:
            raise UsageError("out: a batch needs a run directory to come back to; give out=FOLDER")
        folder = Path(out)
        with exclusive(RunFiles.at(folder)):
            judges = _make(folder, edits, prompts, judges, cache, consensus, prices, arguments)
    files = RunFiles.at(folder)
    with exclusive(files):
        work = _Work(files, judges, cache, consensus, prices, retry, max_cost=max_cost, again=retry_no_verdicts)
        return run_anywhere(work.submit())


def status(
    run: str | Path,
    *,
    judges: Any = None,
    cache: bool | str | Path | ReplyCache = True,
    consensus: str | Consensus | None = None,
    retry: RetryPolicy | None = None,
) -> BatchStatus:
    """Ask the services how far the open jobs are; collects nothing. Arguments as of `submit`."""
    work = _Work(RunFiles.at(run), judges, cache, consensus, None, retry)
    return run_anywhere(work.status())


def collect(
    run: str | Path,
    *,
    judges: Any = None,
    cache: bool | str | Path | ReplyCache = True,
    consensus: str | Consensus | None = None,
    prices: str | Path | None = None,
    retry: RetryPolicy | None = None,
    wait: bool = False,
    every: float = POLL_EVERY,
) -> BatchStatus:
    """Store the replies of every ended job and add the judgements to the run.

    Args:
        wait: stay until no job is open, asking `every` so many seconds.

    Raises:
        JudgeStoppedError: a service refuses us, or refused every request of a job; what was received is kept.
    """
    files = RunFiles.at(run)
    with exclusive(files):
        while True:
            found = run_anywhere(_Work(files, judges, cache, consensus, prices, retry).collect())
            if not wait or found.waiting == 0:
                return found
            time.sleep(every)


def forget(run: str | Path, job: str) -> None:
    """Give up a job (its id or label), for example one that its service no longer knows; its calls become due again.

    Raises:
        UsageError: no open job has that name.
    """
    files = RunFiles.at(run)
    with exclusive(files):
        journal = Journal(files)
        chunk = next((c for c in journal.chunks.values() if c.open and job in (c.job, c.label)), None)
        if chunk is None:
            raise UsageError(f"job: no open job of {str(run)!r} is called {job!r}")
        journal.dropped(chunk.label, "given up")


def _make(
    folder: Path,
    edits: Any,
    prompts: Any,
    judges: Any,
    cache: Any,
    consensus: Any,
    prices: Any,
    arguments: dict[str, Any],
) -> tuple[Judge, ...]:
    """Write the run directory (or add cases to it) and give its judges. Nothing is sent."""
    made = plan(
        edits, prompts, judges=judges, cache=cache, consensus=consensus or "strict", prices=prices, **arguments
    )  # fmt: skip
    _check_judges(made.judges)
    runners = [WaitingRunner(j, made.rubric, made.settings, cache=made.cache) for j in made.judges]
    lock = lock_of(made, runners)
    files = RunFiles.at(folder)
    if files.exists():
        old = files.read_lock()
        served = {j["name"]: j.get("served", {}) for j in old.get("judges", ())}
        lock["judges"] = [{**j, "served": served.get(j["name"], {})} for j in lock["judges"]]
        lock["created"] = old.get("created", lock["created"])
    by_digest = {d: image for case in made.cases for d, image in case.images_by_digest().items()}
    picture = {d: image.png for d, image in by_digest.items()}
    records = [case.record for case in made.cases]
    Report(lock, records, [], consensus=made.consensus, picture=lambda d: picture[d]() if d in picture else None).save(
        folder
    )
    return made.judges


def _check_judges(judges: Sequence[Judge]) -> None:
    without = [j.name for j in judges if not isinstance(j, BatchJudge)]
    unkept = [j.name for j in judges if isinstance(j, BatchJudge) and not getattr(j, "cacheable", True)]
    if unkept:
        raise UsageError(
            f"judges: {', '.join(unkept)}: its answers may not be kept, but a batch lives in the cache; give the judge a version"
        )
    if without:
        raise UsageError(
            f"judges: {', '.join(without)} cannot be asked in batches. Batch the others, then run isr.evaluate with all of "
            "them: it finds the batch's replies in the cache."
        )


class _Work:
    """One step on one run directory."""

    def __init__(
        self,
        files: RunFiles,
        judges: Any,
        cache: Any,
        consensus: str | Consensus | None,
        prices: str | Path | None,
        retry: RetryPolicy | None,
        *,
        max_cost: float | None = None,
        again: bool = False,
    ) -> None:
        self.files = files
        self.lock = files.read_lock()
        self.journal = Journal(files)
        self.plan = _plan_of(self.lock, files.folder, judges, cache, consensus, prices, retry, max_cost, again)
        self.notes: list[str] = []
        self.states: dict[str, BatchState] = {}
        self.received = self.sent = self.over_cap = 0
        refill(self.plan.cache, files.folder, self.plan.rubric, ask_overall=self.plan.settings.ask_overall)
        memo = self.plan.cache.memo()
        self.cases: list[StoredCase] = stored_cases(
            files,
            with_originals=bool(self.lock["with_originals"]),
            max_side=self.plan.max_side,
            memo=None if memo is None else FileMemo(memo),
        )

    # ------------------------------------------------------------------------------------------------ the three steps

    async def submit(self) -> BatchStatus:
        runners, _ = await self.walk()
        async with AsyncExitStack() as stack:
            clients = await self.connect(stack, {c.judge for c in self.journal.chunks.values() if c.event == "planned"})
            await heal(self.journal, clients, self.plan.settings.retry)
            for runner in runners:
                held = self.journal.held()
                due = [d for d in runner.due.values() if d.key not in held]
                if not due:
                    continue
                if runner.name not in clients:
                    clients |= await self.connect(stack, {runner.name})
                sender = Sender(
                    self.journal, runner, clients[runner.name], self.plan.settings.retry, self.plan.max_cost
                )
                with tempfile.TemporaryDirectory(prefix="isr-batch-") as folder:
                    await sender.send(due, Path(folder), spent=self._spent)
                self._spent = sender.spent
                self.sent += sender.sent
                self.over_cap += sender.over_cap
        return await self.finish(write=False)

    _spent = 0.0

    async def status(self) -> BatchStatus:
        async with AsyncExitStack() as stack:
            running = [c for c in self.journal.chunks.values() if c.event == "submitted"]
            clients = await self.connect(stack, {c.judge for c in running})
            for chunk in running:
                self.states[chunk.label] = await poll_chunk(chunk, clients[chunk.judge], self.plan.settings.retry)
        return await self.finish(write=False)

    async def collect(self) -> BatchStatus:
        stopped: JudgeStoppedError | None = None
        runners = {r.name: r for r in self.runners()}
        async with AsyncExitStack() as stack:
            clients = await self.connect(stack, {c.judge for c in self.journal.chunks.values() if c.open})
            await heal(self.journal, clients, self.plan.settings.retry)
            for chunk in [c for c in self.journal.chunks.values() if c.event == "submitted"]:
                client = clients[chunk.judge]
                state = self.states[chunk.label] = await poll_chunk(chunk, client, self.plan.settings.retry)
                if not state.ended:
                    continue
                got = await collect_chunk(
                    self.journal, chunk, state, client, runners[chunk.judge], self.plan.cache, self.plan.settings.retry
                )
                self.received += got.received
                self.notes += got.notes
                stopped = stopped or got.stopped
        found = await self.finish(write=True)
        if stopped is not None:
            raise stopped
        return found

    # ---------------------------------------------------------------------------------------------------------- parts

    async def connect(self, stack: AsyncExitStack, names: set[str]) -> dict[str, BatchClient]:
        by_name = {j.name: j for j in self.plan.judges}
        found: dict[str, BatchClient] = {}
        for name in sorted(names):
            judge = by_name.get(name)
            if not isinstance(judge, BatchJudge):
                raise UsageError(f"judges: a job of {name!r} is open, but this judge is not among {sorted(by_name)}")
            found[name] = await stack.enter_async_context(judge.connect_batch())
        return found

    def runners(self) -> list[WaitingRunner]:
        made = self.plan
        failures = self.journal.failures()
        return [
            WaitingRunner(
                j, made.rubric, made.settings, cache=made.cache, price=price_of(j, made.prices), failures=failures
            )
            for j in made.judges
        ]  # fmt: skip

    async def walk(self) -> tuple[list[WaitingRunner], list[Judgement]]:
        """Every case through every runner: the judgements as they stand, and in `runner.due` what is missing."""
        runners = self.runners()
        judgements = []
        for case in self.cases:
            judgements += [await runner.judge_case(case) for runner in runners]
            await asyncio.sleep(0)
        return runners, judgements

    async def finish(self, *, write: bool) -> BatchStatus:
        """The status after this step; with `write`, the judgements that stand are appended to the run."""
        # Not asked again here: only `submit` may want more than what the stored replies leave open.
        self.plan = replace(self.plan, settings=replace(self.plan.settings, retry_no_verdicts=False))
        runners, judgements = await self.walk()
        held = self.journal.held()
        due = {key for r in runners for key in r.due}
        lock = {
            **self.lock,
            "judges": lock_of(self.plan, runners, with_originals=bool(self.lock["with_originals"]))["judges"],
        }
        if write:
            self._append(judgements, final=not any(c.open for c in self.journal.chunks.values()))
            self.files.write_lock(lock)
        report = Report(
            lock, [c.record for c in self.cases], judgements, consensus=self.plan.consensus,
            picture=Report.load(self.files.folder, consensus=self.plan.consensus).picture,
        )  # fmt: skip
        return BatchStatus(
            self.files.folder,
            tuple(self._job(c) for c in self.journal.chunks.values()),
            self.sent,
            self.received,
            len(held),
            len(due - held),
            self.over_cap,
            tuple(self.notes),
            report,
        )

    def _append(self, judgements: Sequence[Judgement], *, final: bool) -> None:
        """Judgements that say something new. What still waits is written (as expired) only once no job is open."""
        stored = {(j.case_id, j.judge): _said(j) for j in self.files.judgements()}
        fresh = [j for j in judgements if stored.get((j.case_id, j.judge)) != _said(j)]
        self.files.append("judgements.jsonl", [j for j in fresh if final or not any(map(_waits, j.calls))])

    def _job(self, chunk: Chunk) -> Job:
        state = self.states.get(chunk.label)
        word = chunk.state or (state.word if state else "")
        return Job(
            chunk.judge, chunk.label, chunk.job, word or chunk.event, len(chunk.items),
            state.answered if state else None, chunk.open,
        )  # fmt: skip


def _waits(call: Call) -> bool:
    """Stands for a reply that has not come."""
    return call.failure is not None and not call.key


def _said(judgement: Judgement) -> tuple[Any, ...]:
    """What a stored row says, whether or not it came from the cache this time."""
    return (
        judgement.answer,
        judgement.fingerprint,
        tuple(c.model_copy(update={"cached": False}) for c in judgement.calls),
    )


def _plan_of(
    lock: dict[str, Any],
    folder: Path,
    judges: Any,
    cache: Any,
    consensus: str | Consensus | None,
    prices: str | Path | None,
    retry: RetryPolicy | None,
    max_cost: float | None,
    again: bool,
) -> Plan:
    """The plan behind a stored lock, with the judges it names (or those that are given, if they are the same)."""
    names = [str(j["name"]) for j in lock["judges"]]
    if judges is None:
        if any("@" in name for name in names):
            raise UsageError(
                f"judges: the run {str(folder)!r} names a server of its own ({', '.join(names)}); a run of someone else could "
                "send pictures and keys anywhere, so name the judges again: judges=[…], --judge …"
            )
        judges = names
    settings = lock["settings"]
    made = plan_judging(
        judges=judges,
        consensus=consensus if consensus is not None else str(lock["consensus"]),
        rubric=Rubric.model_validate(lock["rubric"]),
        votes=settings.get("votes", 1),
        ask_overall=settings.get("ask_overall", False),
        cache=cache,
        retry_no_verdicts=again,
        on_bad_image=settings.get("on_bad_image", "raise"),
        max_side=settings.get("max_side"),
        retry=retry,
        max_cost=max_cost,
        prices=prices,
    )
    _check_judges(made.judges)
    runners = [WaitingRunner(j, made.rubric, made.settings, cache=made.cache) for j in made.judges]
    now = lock_of(made, runners, with_originals=bool(lock["with_originals"]))
    if differences := lock_differences(lock, now):
        raise UsageError(
            f"judges: the run {str(folder)!r} was begun with others:\n  - " + "\n  - ".join(differences)
            + "\nGive the judges with which it was begun, with the same settings."
        )  # fmt: skip
    return made


#: What `isr.batch` is: these functions under one name.
batch = sys.modules[__name__]
