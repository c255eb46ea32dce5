"""Any sequence of crashes and failures, at any step, against a service in memory: every call is answered once and paid once."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from evaluate_help import pictures, text
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import isr
from isr.engine.cache import MemoryCache
from isr.engine.retry import RetryPolicy
from isr.errors import IsrError, JudgeStoppedError, TransientError, UsageError
from isr.protocols import AskJudge, BatchClient, BatchItem, BatchJudge, BatchLimits, BatchState, Reply


class Killed(BaseException):
    """In the place of a SIGKILL."""


class Service:
    """A batch service. `faults` says for each use of it what happens: nothing, a kill or a failure, before or after it took
    effect; `shares` how many of a job's requests are answered, in order of the jobs (then all)."""

    def __init__(self, faults: list[str], shares: list[int]) -> None:
        self.faults, self.shares = iter(faults), iter(shares)
        self.jobs: dict[str, list[str]] = {}
        self.share: dict[str, int] = {}
        self.executed: Counter[str] = Counter()
        self.quiet = False

    def fault(self) -> str:
        return "none" if self.quiet else next(self.faults, "none")

    def use(self, fault: str, moment: str) -> None:
        if fault == f"kill {moment}":
            raise Killed
        if fault == f"fail {moment}":
            raise TransientError("a failure")


class Client:
    limits = BatchLimits(max_bytes=10**7, max_requests=2)

    def __init__(self, service: Service) -> None:
        self.service = service

    def encode(self, item: BatchItem) -> bytes:
        return json.dumps(item.key).encode()

    async def submit(self, label: str, requests: Path, count: int) -> str:
        fault = self.service.fault()
        self.service.use(fault, "before")
        keys = [json.loads(line) for line in requests.read_bytes().splitlines()]
        assert len(keys) == count <= 2
        assert label not in self.service.jobs
        self.service.jobs[label] = keys
        share = self.service.share[label] = (
            len(keys) if self.service.quiet else min(len(keys), next(self.service.shares, 2))
        )
        self.service.executed.update(keys[:share])
        self.service.use(fault, "after")
        return label

    async def find(self, label: str) -> str | None:
        fault = self.service.fault()
        self.service.use(fault, "before")
        self.service.use(fault, "after")
        return label if label in self.service.jobs else None

    async def poll(self, job: str) -> BatchState:
        fault = self.service.fault()
        self.service.use(fault, "before")
        self.service.use(fault, "after")
        return BatchState(ended=True, word="ended")

    async def collect(self, job: str) -> AsyncIterator[tuple[str, Reply | IsrError]]:
        fault = self.service.fault()
        self.service.use(fault, "before")
        keys = self.service.jobs[job]
        for number, key in enumerate(keys):
            if number >= self.service.share[job]:
                yield key, TransientError("not executed")
            else:
                yield key, Reply(text=text(mismatch=int(key[:8], 16) % 2 == 0))
            self.service.use(fault, "after")


class Slow(AskJudge):
    name = "slow"
    version = "1"

    def __init__(self, service: Service) -> None:
        self.service = service

    @asynccontextmanager
    async def connect_batch(self) -> AsyncIterator[BatchClient]:
        yield Client(self.service)


FAULTS = st.sampled_from(["none", "none", "kill before", "kill after", "fail before", "fail after"])


def steps(service: Service, folder: Path, cache: MemoryCache) -> Iterator[Any]:
    """submit and collect in turn, each with fresh objects; a step that was cut off is simply followed by the next one."""
    edits = pictures(5)
    given_: dict[str, Any] = {"cache": cache, "retry": RetryPolicy(attempts=2, base=0.0, cap=0.0)}
    while True:
        for step in ("submit", "collect"):
            judges = [Slow(service)]
            try:
                if step == "submit":
                    yield isr.batch.submit(edits, ["p"] * 5, out=folder / "run", judges=judges, **given_)
                else:
                    yield isr.batch.collect(folder / "run", judges=judges, **given_)
            except (Killed, JudgeStoppedError):
                yield None


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
@given(st.lists(FAULTS, max_size=20), st.lists(st.integers(0, 2), max_size=6))
def test_every_call_is_answered_and_paid_once(faults: list[str], shares: list[int]) -> None:
    service = Service(faults, shares)
    with tempfile.TemporaryDirectory() as name:
        source = steps(service, Path(name), MemoryCache())
        for _ in range(6):
            next(source)
        service.quiet = True
        last = [next(source) for _ in range(4)][-1]
        assert last.complete
        assert sorted(service.executed.values()) == [1] * 5
        stored = isr.Report.load(Path(name) / "run")
    expected = {c.key: int(c.key[:8], 16) % 2 == 0 for j in stored.judgement_records for c in j.calls}
    assert set(expected) == set(service.executed)
    assert [j.answer.semantic_mismatch for j in stored.judgement_records] == [  # type: ignore[union-attr]
        expected[j.calls[0].key] for j in stored.judgement_records
    ]


def test_a_judge_whose_answers_may_not_be_kept_cannot_be_batched(tmp_path: Path) -> None:
    judge = Slow(Service([], []))
    judge.__class__ = type("Forgetful", (Slow,), {"cacheable": False})
    with pytest.raises(UsageError, match="slow: its answers may not be kept"):
        isr.batch.submit(pictures(1), ["p"], judges=[judge], out=tmp_path / "run", cache=MemoryCache())


def test_the_judge_of_this_file_is_one_of_the_protocol() -> None:
    judge: BatchJudge = Slow(Service([], []))
    assert isinstance(judge, BatchJudge)
