"""One judge in one run: cache, single flight, limits, retry, reading, re-ask and votes around its bare `ask`."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import math
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from datetime import UTC, datetime

from ..errors import IntegrityError, JudgeStoppedError, TransientError, UsageError
from ..money import Budget, Price, WorstCase, output_limit
from ..protocols import Ask, Judge, Picture, Question, Reply
from ..rubric import MAX_REPLY_CHARS, Rubric
from ..schema import Attempt, Call, Judgement, NoVerdict, Verdict
from ..secret import environment_secrets, scrub
from .cache import CacheKeys, ReplyCache
from .case import JudgeableCase
from .limits import Limiter
from .retry import Exhausted, RetryPolicy, with_retry
from .votes import check_votes, combine_votes

__all__ = ["NEVER_STORED", "AskSettings", "JudgeRunner", "cache_keys", "fingerprint"]

logger = logging.getLogger("isr")

#: A reply that cannot be read is asked for once more, and no more than that, by itself.
REASKS = 1
#: Answers that never came from a received reply, and so are never stored (docs/definitions.md, section 6).
NEVER_STORED = frozenset({"exhausted", "judge_error", "over_budget", "bad_image", "expired"})


#: A look into the cache holds for so many seconds: another process that has the reply to a question since then asked it
#: while this one was about to, which no look prevents.
LOOK_HOLDS = 5.0

#: Questions on their way in this process, by cache and key.
_FLYING: dict[tuple[str, str], Future[Call]] = {}
_FLYING_LOCK = threading.Lock()


@dataclass(frozen=True)
class AskSettings:
    """How every judge of a run is asked.

    Attributes:
        votes: odd number of independent calls per case. ask_overall: ask the third question too.
        retry_no_verdicts: ask again (next ask index) where the stored answer is no verdict.
        codec: how pictures are encoded, as recorded ("png", with max_side where set).
        retry: the retry policy of one call.
    """

    votes: int = 1
    ask_overall: bool = False
    retry_no_verdicts: bool = False
    codec: str = "png"
    retry: RetryPolicy = field(default_factory=RetryPolicy)

    def __post_init__(self) -> None:
        check_votes(self.votes)


def fingerprint(judge: Judge, rubric: Rubric, settings: AskSettings) -> str:
    """16 hex digits over everything about a judge that can change its answers; the same in two runs means comparable."""
    blob = json.dumps(
        {
            "identity": dict(judge.identity()),
            "rubric": rubric.hash,
            "votes": settings.votes,
            "ask_overall": settings.ask_overall,
            "codec": settings.codec,
        },
        sort_keys=True,
    )
    return hashlib.sha256(blob.encode()).hexdigest()[:16]


def cache_keys(judge: Judge, rubric: Rubric, settings: AskSettings) -> CacheKeys:
    """The keys under which this judge's replies are stored."""
    asked = tuple(rubric.reply_schema(ask_overall=settings.ask_overall)["properties"])
    return CacheKeys(dict(judge.identity()), rubric.hash, asked=asked, codec=settings.codec)


class JudgeRunner:
    """Asks one judge about cases. Made inside the run's event loop, after the judge connected.

    Args:
        judge, ask: the judge and its open connection. rubric, settings: what is asked and how.
        cache: where replies are kept; None for judges whose answers must not be reused (`cacheable = False`).
        price: US dollars per token of this judge, or None where unknown. budget: the run's spend cap, or None.
        limiter: for tests.
    """

    def __init__(
        self,
        judge: Judge,
        ask: Ask,
        rubric: Rubric,
        settings: AskSettings,
        *,
        cache: ReplyCache | None,
        price: Price | None = None,
        budget: Budget | None = None,
        limiter: Limiter | None = None,
    ) -> None:
        self.judge = judge
        self.name = judge.name
        self.fingerprint = fingerprint(judge, rubric, settings)
        self._ask = ask
        self._rubric = rubric
        self._settings = settings
        self._cache = cache if getattr(judge, "cacheable", True) else None
        self._price = price
        self._budget = budget
        self._worst = None if price is None else WorstCase(price, output_limit(judge.identity()))
        self._limiter = limiter or Limiter(judge.limits)
        self._keys = cache_keys(judge, rubric, settings)
        self._space = getattr(cache, "space", None) or f"{id(cache)}"
        #: Questions (key of the first ask) that this run asked anew after a stored no-verdict: once each.
        self._again: set[str] = set()
        #: When the cache had no reply to the questions that are on their way.
        self._looked: dict[str, float] = {}
        self.served: Counter[str] = Counter()

    def stored(self, cases: Sequence[JudgeableCase]) -> list[Judgement | None]:
        """Per case the judgement that stored verdicts make, or None where anything else is to be done; `judge_case` gives the
        same, and these are read together. Tell `used` which of them enter the run."""
        if self._cache is None:
            return [None] * len(cases)
        votes = range(self._settings.votes)
        keys = [[] if c.problem() is not None else [self._key(c, vote, 0) for vote in votes] for c in cases]
        wanted = [key for row in keys for key in row]
        many = getattr(self._cache, "get_many", None)
        if many is None:
            return [None] * len(cases)
        found: Mapping[str, Call] = many(wanted)
        made: list[Judgement | None] = []
        for case, row in zip(cases, keys, strict=True):
            calls = [found[key] for key in row if key in found]
            if not row or len(calls) < len(row) or not all(isinstance(c.answer, Verdict) for c in calls):
                made.append(None)
                continue
            answer = combine_votes([c.answer for c in calls])
            made.append(self._judgement(case, answer, tuple(c.model_copy(update={"cached": True}) for c in calls)))
        return made

    def used(self, judgement: Judgement) -> None:
        """A judgement of `stored` enters the run."""
        for call in judgement.calls:
            self._saw(call)

    async def judge_case(self, case: JudgeableCase) -> Judgement:
        """Every vote of this judge on one case. Content problems become `NoVerdict`s.

        Raises:
            JudgeStoppedError: the service refuses us (key, model, request); nothing of it is stored.
        """
        problem = case.problem()
        if problem is not None:
            return self._judgement(case, NoVerdict(reason="bad_image", detail=problem), ())
        calls: list[Call] = []
        answers: list[Verdict | NoVerdict] = []
        for vote in range(self._settings.votes):
            asked = await self._vote(case, vote)
            calls += asked
            answers.append(asked[-1].answer)
        return self._judgement(case, combine_votes(answers), tuple(calls))

    def _judgement(self, case: JudgeableCase, answer: Verdict | NoVerdict, calls: tuple[Call, ...]) -> Judgement:
        return Judgement(
            case_id=case.record.case_id, judge=self.name, fingerprint=self.fingerprint, answer=answer, calls=calls
        )

    async def _vote(self, case: JudgeableCase, vote: int) -> list[Call]:
        """One vote: the stored asks in order, then new ones while they are due."""
        calls: list[Call] = []
        while True:
            ask = len(calls)
            key = self._key(case, vote, ask)
            stored = self._cache.get(key) if self._cache is not None else None
            if stored is not None:
                calls.append(stored.model_copy(update={"cached": True}))
                self._saw(stored)
            elif (shared := await self._shared(key)) is not None:
                calls.append(shared)
            elif self._due(calls, self._key(case, vote, 0)):
                self._looked[key] = time.monotonic()
                try:
                    calls.append(await self._once(case, vote, ask, key))
                finally:
                    self._looked.pop(key, None)
            if len(calls) == ask or isinstance(calls[-1].answer, Verdict):
                return calls

    def _due(self, calls: list[Call], question: str) -> bool:
        """Whether a further ask is wanted after these: the first one, the re-ask of an unreadable reply, or (on
        request) one more after the stored answer was no verdict."""
        if not calls:
            return True
        last = calls[-1].answer
        if isinstance(last, Verdict):
            return False
        if last.reason == "unparseable" and sum(_unparseable(c) for c in calls) <= REASKS:
            return True
        if self._settings.retry_no_verdicts and all(c.cached for c in calls) and question not in self._again:
            self._again.add(question)
            return True
        return False

    def _key(self, case: JudgeableCase, vote: int, ask: int) -> str:
        return self._keys.key(prompt=case.record.prompt, pictures=case.digests(), vote=vote, ask=ask)

    async def _shared(self, key: str) -> Call | None:
        """The reply to a question that another case, or another run of this process on the same cache, is asking now."""
        with _FLYING_LOCK:
            flying = _FLYING.get((self._space, key)) if self._cache is not None else None
        if flying is None:
            return None
        try:
            call = await asyncio.shield(asyncio.wrap_future(flying))
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            return None  # the other run was stopped; this one asks for itself
        return call.model_copy(update={"cached": True})

    async def _once(self, case: JudgeableCase, vote: int, ask: int, key: str) -> Call:
        """One paid call, announced so that whoever has the same question shares it."""
        mine: Future[Call] = Future()
        with _FLYING_LOCK:
            _FLYING.setdefault((self._space, key), mine)
        try:
            call = await self._call(case, vote, ask, key)
        except Exception as error:
            mine.set_exception(error)
            raise
        except asyncio.CancelledError:
            mine.cancel()
            raise
        else:
            mine.set_result(call)
            return call
        finally:
            with _FLYING_LOCK:
                if _FLYING.get((self._space, key)) is mine:
                    del _FLYING[self._space, key]

    async def _call(self, case: JudgeableCase, vote: int, ask: int, key: str) -> Call:
        try:
            pictures: tuple[Picture, ...] = await case.load()
        except (IntegrityError, OSError) as error:
            answer = NoVerdict(reason="bad_image", detail=str(error)[:300])
            return Call(vote=vote, ask=ask, answer=answer, failure=answer)
        question = self._rubric.question(
            case.record.prompt,
            pictures,
            vote=vote,
            ask=ask,
            ask_overall=self._settings.ask_overall,
            columns=case.columns(),
        )
        try:
            reply, attempts = await with_retry(
                lambda: self._attempt(question, key), self._settings.retry, on_wait=self._limiter.pause
            )
        except _Stored as found:
            return found.call.model_copy(update={"cached": True})
        except _OverBudget as error:
            answer = NoVerdict(reason="over_budget", detail=str(error))
            return Call(vote=vote, ask=ask, answer=answer, failure=answer)
        except Exhausted as error:
            said = scrub(error, environment_secrets(), limit=260)
            answer = NoVerdict(reason="exhausted", detail=f"after {len(error.attempts)} attempts: {said}")
            return Call(vote=vote, ask=ask, answer=answer, failure=answer, attempts=error.attempts)
        except JudgeStoppedError as error:
            raise JudgeStoppedError(
                scrub(error, environment_secrets(), limit=2000), judge=error.judge or self.name, status=error.status
            ) from None
        except (Exception, asyncio.CancelledError) as error:
            task = asyncio.current_task()
            if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
                raise
            logger.warning("judge %s raised %s on case %s", self.name, type(error).__name__, case.record.case_id)
            detail = scrub(f"{type(error).__name__}: {error}", environment_secrets(), limit=300)
            answer = NoVerdict(reason="judge_error", detail=detail)
            return Call(vote=vote, ask=ask, answer=answer, failure=answer)
        # Reading and storing in a thread: the disk never holds up the other calls.
        call = await asyncio.to_thread(self._receive, reply, attempts, vote, ask, key)
        self._saw(call)
        return call

    async def _attempt(self, question: Question, key: str) -> Reply:
        async with self._limiter.slot():
            # Another process may have received this reply while we waited for a place.
            now = time.monotonic()
            if self._cache is not None and now - self._looked.get(key, -math.inf) > LOOK_HOLDS:
                stored = self._cache.get(key)
                if stored is not None:
                    raise _Stored(stored)
                self._looked[key] = now
            reply = await self._paid(question)
        _check_reply(reply, self.name)
        self._limiter.spent((reply.usage.input_tokens or 0) + (reply.usage.output_tokens or 0))
        return reply

    async def _paid(self, question: Question) -> Reply:
        """One attempt under the spend cap."""
        if self._budget is None or self._worst is None:
            return await self._ask(question)
        text = len(question.instructions) + len(question.data) + len(str(question.schema))
        worst = self._worst.dollars(text, tuple(p.size for p in question.pictures))
        if not await self._budget.reserve(worst):
            raise _OverBudget(
                f"the next call could cost {worst:.4f} $; {self._budget.spent:.4f} $ of {self._budget.cap:.4f} $ are spent"
            )
        actual = worst
        try:
            reply = await self._ask(question)
            known = self._worst.price.of(reply.usage)
            actual = worst if known is None else known
            return reply
        except TransientError as error:
            # An HTTP error is not billed; a timeout, a dropped connection or a broken answer of status 200 may be.
            actual = 0.0 if error.status is not None and error.status >= 400 else worst
            raise
        except JudgeStoppedError:
            actual = 0.0
            raise
        finally:
            self._budget.settle(worst, actual)

    def _receive(self, reply: Reply, attempts: tuple[Attempt, ...], vote: int, ask: int, key: str) -> Call:
        """Read a received reply and store it, readable or not: it was paid for."""
        failure = reply.answer if isinstance(reply.answer, NoVerdict) else None
        answer: Verdict | NoVerdict
        if reply.answer is not None:
            answer = reply.answer
        else:
            answer = self._rubric.parse(reply.text or "", ask_overall=self._settings.ask_overall)
        call = Call(
            vote=vote,
            ask=ask,
            # One character more than is ever read: an endless reply stays unparseable when it is read again.
            text=None if reply.text is None else reply.text[: MAX_REPLY_CHARS + 1],
            finish=reply.finish,
            failure=failure,
            answer=answer,
            served_model=reply.served_model,
            response_id=reply.response_id,
            usage=reply.usage,
            cost=None if self._price is None else self._price.of(reply.usage),
            latency_s=attempts[-1].seconds if attempts else None,
            attempts=attempts,
            key=key,
            received_at=datetime.now(UTC).isoformat(timespec="milliseconds"),
        )
        if self._cache is not None and not (failure is not None and failure.reason in NEVER_STORED):
            try:
                self._cache.put(key, call)
            except OSError as error:
                raise UsageError(
                    f"cache: a received reply could not be stored ({error}); make room or give another folder with cache=, "
                    "then run again: what was stored is not asked twice"
                ) from error
        return call

    def _saw(self, call: Call) -> None:
        if call.served_model:
            self.served[call.served_model] += 1


class _Stored(Exception):  # noqa: N818 - a control-flow signal inside the engine
    """The reply came into the cache meanwhile."""

    def __init__(self, call: Call) -> None:
        super().__init__()
        self.call = call


def _check_reply(reply: object, judge: str) -> None:
    """What a judge returned, verified: it is foreign code."""
    if not isinstance(reply, Reply):
        raise TypeError(f"judge {judge!r} must return a Reply, got {type(reply).__name__}")
    if reply.text is not None and not isinstance(reply.text, str):
        raise TypeError(f"Reply.text must be text, got {type(reply.text).__name__}")
    if reply.answer is not None and not isinstance(reply.answer, Verdict | NoVerdict):
        raise TypeError(f"Reply.answer must be a Verdict or a NoVerdict, got {type(reply.answer).__name__}")
    if reply.text is not None and isinstance(reply.answer, Verdict):
        raise TypeError("Reply holds both text and a Verdict; give one of them, so that replay can tell what was said")
    if reply.text is None and reply.answer is None:
        raise TransientError("an empty reply without a word on why")


class _OverBudget(Exception):  # noqa: N818 - a control-flow signal inside the engine
    """The spend cap does not admit another call."""


def _unparseable(call: Call) -> bool:
    return isinstance(call.answer, NoVerdict) and call.answer.reason == "unparseable"
