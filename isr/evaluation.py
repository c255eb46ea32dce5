"""`evaluate`: from edits and prompts to a `Report`."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from .cases import Prepared, prepare
from .cases.forms import is_stream
from .consensus import resolve_consensus
from .engine.cache import DiskCache, MemoryCache, ReplyCache
from .engine.case import JudgeableCase
from .engine.limits import Limiter
from .engine.loop import run_anywhere
from .engine.progress import Progress
from .engine.retry import RetryPolicy
from .engine.run import judge_cases
from .engine.runner import NEVER_STORED, AskSettings, JudgeRunner
from .errors import IsrError, Problem, ProblemsError, UsageError
from .images import CODEC, FileMemo
from .lock import judge_lock, shard_note
from .money import Budget, Price, Prices, costs_nothing, judge_model
from .probing import find_card
from .protocols import Ask, Consensus, Judge, Question, Reply
from .registry import RESOLVERS
from .report import Report
from .rubric import Rubric
from .schema import CaseRecord, Judgement
from .store import RunFiles, is_digest

if TYPE_CHECKING:
    from .images import ImageRef

__all__ = ["Plan", "aevaluate", "evaluate", "plan"]

Cache = bool | str | Path | ReplyCache


@dataclass(frozen=True)
class Plan:
    """Everything that is decided before the first call. Made by `plan`; `evaluate` runs it."""

    judges: tuple[Judge, ...]
    rubric: Rubric
    settings: AskSettings
    consensus_name: str
    consensus: Consensus
    cache: ReplyCache
    lazy: bool
    max_side: int | None
    on_bad_image: str
    prices: Prices
    cards: Mapping[str, Any]
    max_cost: float | None = None
    prepared: Prepared | None = None
    cases: tuple[JudgeableCase, ...] = ()
    shard: str | None = None


def plan(
    edits: Any,
    prompts: Any = None,
    *,
    originals: Any = None,
    controls: Any = None,
    columns: Any = None,
    judges: Any = None,
    consensus: str | Consensus = "strict",
    rubric: Rubric | str | Path | None = None,
    votes: int = 1,
    ask_overall: bool = False,
    lazy: bool = False,
    cache: Cache = True,
    retry_no_verdicts: bool = False,
    on_bad_image: Literal["raise", "skip"] = "raise",
    max_side: int | None = None,
    retry: RetryPolicy | None = None,
    max_cost: float | None = None,
    prices: str | Path | None = None,
    shard: tuple[int, int] | str | None = None,
    reuse: Sequence[str | Path] = (),
) -> Plan:
    """Check every argument, picture and request size; nothing is sent. Arguments as of `evaluate`."""
    made = plan_judging(
        judges=judges, consensus=consensus, rubric=rubric, votes=votes, ask_overall=ask_overall, lazy=lazy, cache=cache,
        retry_no_verdicts=retry_no_verdicts, on_bad_image=on_bad_image, max_side=max_side, retry=retry, max_cost=max_cost,
        prices=prices, reuse=reuse,
    )  # fmt: skip
    memo = made.cache.memo()
    prepared = prepare(
        edits,
        prompts,
        originals=originals,
        controls=controls,
        columns=columns,
        on_bad_image=on_bad_image,
        memo=FileMemo(memo) if memo is not None else None,
        max_side=max_side,
    )
    cases = tuple(JudgeableCase(case) for case in prepared.cases)
    told = None
    if shard is not None:
        cases = tuple(c for c in cases if in_shard(c.record, shard))
        i, n = (int(part) for part in (shard.split("/") if isinstance(shard, str) else shard))
        told = None if n == 1 else f"{i}/{n}"
    _check_request_sizes(cases, made.judges)
    return replace(made, prepared=prepared, cases=cases, shard=told)


def plan_judging(
    *,
    judges: Any = None,
    consensus: str | Consensus = "strict",
    rubric: Rubric | str | Path | None = None,
    votes: int = 1,
    ask_overall: bool = False,
    lazy: bool = False,
    cache: Cache = True,
    retry_no_verdicts: bool = False,
    on_bad_image: Literal["raise", "skip"] = "raise",
    max_side: int | None = None,
    retry: RetryPolicy | None = None,
    max_cost: float | None = None,
    prices: str | Path | None = None,
    reuse: Sequence[str | Path] = (),
) -> Plan:
    """The part of a plan that does not depend on the cases: who is asked what, and how."""
    name, policy = resolve_consensus(consensus)
    if lazy and name != "strict":
        raise UsageError(f"lazy: works only with consensus='strict' (other policies need every judge), got {name!r}")
    asked = rubric if isinstance(rubric, Rubric) else Rubric.default() if rubric is None else Rubric.load(rubric)
    asked.reply_schema(ask_overall=ask_overall)
    found = _judges(judges)
    settings = AskSettings(
        votes=votes,
        ask_overall=ask_overall,
        retry_no_verdicts=retry_no_verdicts,
        codec=CODEC if max_side is None else f"{CODEC};max_side={max_side}",
        retry=retry or RetryPolicy(),
    )
    if retry is not None and not isinstance(retry, RetryPolicy):
        raise UsageError(f"retry: expected a RetryPolicy (isr.engine.retry) or None, got {retry!r}")
    for judge in found:
        Limiter(judge.limits)  # impossible limits are told now
    known = Prices.load(prices)
    if max_cost is not None:
        Budget(max_cost)
        _check_prices(found, known)
    store = _cache(cache)
    for folder in reuse:
        refill(store, folder, asked, ask_overall=ask_overall)
    cards = {j.name: find_card(j.identity(), asked.hash) for j in found}
    return Plan(found, asked, settings, name, policy, store, lazy, max_side, on_bad_image, known, cards, max_cost)


def refill(store: ReplyCache, folder: str | Path, rubric: Rubric, *, ask_overall: bool) -> None:
    """Put the replies of a stored run into the cache, so that none of them is asked (and paid) again. Texts are read anew:
    what a stranger's run says of its replies is not trusted."""
    files = RunFiles.at(folder)
    if files.read_lock().get("rubric_hash") != rubric.hash:
        return  # asked otherwise: not one of its keys can fit
    for judgement in files.judgements():
        for call in judgement.calls:
            if not is_digest(call.key) or (call.failure is not None and call.failure.reason in NEVER_STORED):
                continue
            if store.get(call.key) is None:
                answer = call.answer
                if call.text is not None and call.failure is None:
                    answer = rubric.parse(call.text, ask_overall=ask_overall)
                store.put(call.key, call.model_copy(update={"cached": False, "answer": answer}))


def evaluate(
    edits: Any,
    prompts: Any = None,
    *,
    originals: Any = None,
    controls: Any = None,
    columns: Any = None,
    judges: Any = None,
    consensus: str | Consensus = "strict",
    rubric: Rubric | str | Path | None = None,
    votes: int = 1,
    ask_overall: bool = False,
    lazy: bool = False,
    cache: Cache = True,
    retry_no_verdicts: bool = False,
    on_bad_image: Literal["raise", "skip"] = "raise",
    max_side: int | None = None,
    retry: RetryPolicy | None = None,
    max_cost: float | None = None,
    prices: str | Path | None = None,
    shard: tuple[int, int] | str | None = None,
    reuse: Sequence[str | Path] = (),
    progress: bool | None = None,
) -> Report:
    """Immunization Success Rate of edits (paper section VI, Eq. 8).

    Works in scripts, threads, pytest and notebooks; `aevaluate` is the form for async code. Interrupted runs (Ctrl-C,
    a kill, a judge that stopped) are resumed by the same call: received answers are in the cache and are not asked twice.

    Args:
        edits: N edits of the immunized images (paths, bytes, PIL, numpy, torch), or `EditCase`s, a DataFrame, or the path
            of a CSV, JSONL or Parquet manifest, or a data set of Hugging Face's `datasets`. An iterator of `EditCase`s and a
            streamed data set are judged as a stream: bad pictures are skipped, and the report holds no pictures (`isr.stream` hands results on as they come).
        prompts: the N edit prompts (one string for one edit).
        originals: the N unprotected, unedited images. Judging with and without them are different measurements.
        controls: per edit, the edit of the *unprotected* original with the same editor, prompt and seed; None where missing.
        columns: table or dict of case columns: id, image_id, method, editor, prompt_kind, category, seed, purifier, arm;
            anything else is a free tag.
        judges: judge strings, `Judge`s, functions, or a list of them; a preset ("paper", "current"); None: found from the
            API keys that are set.
        consensus: "strict" (the paper), "any", "majority", "per_criterion", a plugin's name, or a function of the answers.
        rubric: a `Rubric` or the path of a rubric TOML; None: the package's own.
        votes: odd number of independent calls per judge and case.
        ask_overall: ask the third question (overall success) too.
        lazy: with strict consensus, skip later judges once one says "not defeated" (put the cheap judge first).
        cache: True (the user's cache folder), a folder, False (within this call only), or a `ReplyCache`.
        retry_no_verdicts: ask again where a stored answer is no verdict.
        on_bad_image: "raise" lists all bad images before any call; "skip" counts them as NoVerdict("bad_image").
        max_side: shrink original and edit alike to this longer side before sending; recorded.
        retry: the retry policy of one call. progress: True, False, or None (only where a person watches).
        max_cost: spend cap in US dollars. The worst case of a call is reserved before it is sent; what no longer fits is
            NoVerdict("over_budget"), never stored, and the same call with a higher cap goes on.
        prices: a price file of one's own (form: isr/prices.toml); its entries win.
        shard: (i, n) or "i/n", i from 1: judge only this share of the images, for several machines (`isr merge` joins them).
        reuse: run directories whose stored replies are taken instead of asking again (also from other machines).

    Raises:
        UsageError: a wrong argument (`ProblemsError` lists all bad items). JudgeStoppedError: a judge cannot be used.
    """
    judging: dict[str, Any] = {
        "judges": judges, "consensus": consensus, "rubric": rubric, "votes": votes, "ask_overall": ask_overall, "lazy": lazy,
        "cache": cache, "retry_no_verdicts": retry_no_verdicts, "on_bad_image": on_bad_image, "max_side": max_side,
        "retry": retry, "max_cost": max_cost, "prices": prices, "reuse": reuse,
    }  # fmt: skip
    if is_stream(edits) and prompts is None:
        from .streaming import collect

        _check_streamed(originals, controls, columns, shard)
        return collect(edits, progress=progress, **judging)
    made = plan(edits, prompts, originals=originals, controls=controls, columns=columns, shard=shard, **judging)
    return run_anywhere(_run(made, progress))


async def aevaluate(edits: Any, prompts: Any = None, *, progress: bool | None = None, **arguments: Any) -> Report:
    """`evaluate` for async code; the same arguments. The check of the pictures runs in a thread."""
    if is_stream(edits) and prompts is None:
        from .streaming import acollect

        _check_streamed(*(arguments.pop(name, None) for name in ("originals", "controls", "columns", "shard")))
        return await acollect(edits, progress=progress, **arguments)
    made = await asyncio.to_thread(lambda: plan(edits, prompts, **arguments))
    return await _run(made, progress)


def _check_streamed(*given: Any) -> None:
    if any(a is not None for a in given):
        raise UsageError(
            "edits: with an iterator of cases, put originals, controls and columns into the cases, and use no shard"
        )


async def _run(made: Plan, progress: bool | None) -> Report:
    cases = made.cases
    judgements: dict[tuple[str, str], Judgement] = {}
    async with AsyncExitStack() as stack:
        runners = await connect(made, stack)
        with Progress(len(cases) * len(runners), show=progress) as bar:
            async for _, answers in judge_cases(cases, runners, lazy=made.lazy):
                for judgement in answers:
                    judgements[judgement.case_id, judgement.judge] = judgement
                    bar.tell(judgement)
    lost = [case.record.case_id for case in cases for r in runners if (case.record.case_id, r.name) not in judgements]
    if lost:
        raise IsrError(
            f"{len(lost)} judgements are missing (first: case {lost[0]}); this is a defect of isr, please report it"
        )
    ordered = [judgements[case.record.case_id, r.name] for case in cases for r in runners]
    by_digest: dict[str, ImageRef] = {}
    for case in cases:
        by_digest.update(case.images_by_digest())
    return Report(
        lock_of(made, runners),
        [case.record for case in cases],
        ordered,
        consensus=made.consensus,
        picture=lambda digest: by_digest[digest].png() if digest in by_digest else None,
    )


async def connect(made: Plan, stack: AsyncExitStack) -> list[JudgeRunner]:
    """One runner per judge; one spend cap for all of them. A judge is connected to (its key looked up) when it is first
    asked, for as long as `stack`: a run that the cache answers needs neither network nor key."""
    budget = None if made.max_cost is None else Budget(made.max_cost)
    return [
        JudgeRunner(
            judge,
            _Connection(judge, stack),
            made.rubric,
            made.settings,
            cache=made.cache,
            price=price_of(judge, made.prices),
            budget=budget,
        )
        for judge in made.judges
    ]


class _Connection:
    """A judge's `ask`, connected to on first use."""

    def __init__(self, judge: Judge, stack: AsyncExitStack) -> None:
        self._judge = judge
        self._stack = stack
        self._opening = asyncio.Lock()
        self._ask: Ask | None = None

    async def __call__(self, question: Question) -> Reply:
        async with self._opening:
            if self._ask is None:
                opened: Ask = await self._stack.enter_async_context(self._judge.connect())
                self._ask = opened
            ask: Ask = self._ask
        return await ask(question)


def price_of(judge: Judge, prices: Prices) -> Price | None:
    """Today's price of a judge, or None where it is unknown or where nothing is paid per token."""
    model = judge_model(judge.identity())
    return prices.find(model if model is not None else judge.name)


def _check_prices(judges: Sequence[Judge], prices: Prices) -> None:
    """A cap on spending means nothing for a judge whose price is unknown."""
    for judge in judges:
        if price_of(judge, prices) is None and not costs_nothing(judge.identity()):
            name = judge_model(judge.identity()) or judge.name
            raise UsageError(
                f"max_cost: no price is known for {name} today; give one with prices= (a file of the form of isr/prices.toml; "
                f'an entry with model = "{name}" and input = output = 0 says that it is free)'
            )


def in_shard(record: CaseRecord, shard: tuple[int, int] | str) -> bool:
    """Whether a case belongs to shard i of n. All edits and controls of one image fall into the same shard."""
    try:
        i, n = (int(part) for part in (shard.split("/") if isinstance(shard, str) else shard))
    except ValueError as error:
        raise UsageError(f"shard: expected (i, n) or 'i/n', got {shard!r}") from error
    if not 1 <= i <= n:
        raise UsageError(f"shard: expected 1 ≤ i ≤ n, got {i}/{n}")
    digest = hashlib.sha256((record.image_id or record.control or record.case_id).encode()).digest()
    return int.from_bytes(digest[:8], "big") % n == i - 1


def lock_of(made: Plan, runners: Sequence[JudgeRunner], *, with_originals: bool | None = None) -> dict[str, Any]:
    """The judge lock of a finished run."""
    return judge_lock(
        judges=[
            {
                "name": r.name,
                "fingerprint": r.fingerprint,
                "identity": dict(r.judge.identity()),
                "served": dict(sorted(r.served.items())),
                "probe": made.cards.get(r.name),
            }
            for r in runners
        ],
        rubric=made.rubric,
        consensus=made.consensus_name,
        with_originals=bool(made.prepared and made.prepared.has_originals)
        if with_originals is None
        else with_originals,
        settings={
            "votes": made.settings.votes,
            "ask_overall": made.settings.ask_overall,
            "lazy": made.lazy,
            "codec": made.settings.codec,
            "max_side": made.max_side,
            "on_bad_image": made.on_bad_image,
            **({} if made.shard is None else {"shard": made.shard}),
        },
        notes=[
            *(made.prepared.notes if made.prepared else ()),
            *([] if made.shard is None else [shard_note(made.shard)]),
        ],
    )


def _judges(judges: Any) -> tuple[Judge, ...]:
    """Judge objects of whatever was given; the judges room (a plugin) understands the words and checks strangers' objects."""
    return tuple(RESOLVERS.load("judges")(judges))


def _cache(cache: Cache) -> ReplyCache:
    if cache is True:
        return DiskCache()
    if cache is False:
        return MemoryCache()
    if isinstance(cache, str | Path):
        return DiskCache(cache)
    if hasattr(cache, "get") and hasattr(cache, "put"):
        return cache
    raise UsageError(f"cache: expected True, False, a folder or a ReplyCache, got {type(cache).__name__}")


#: Instructions, schema and envelope around the pictures; generous.
_ENVELOPE_BYTES = 64 * 1024


def _check_request_sizes(cases: Sequence[JudgeableCase], judges: Sequence[Judge]) -> None:
    """Requests over a provider's inline limit are found here, before the first paid call (DEFINITIONS 5)."""
    limits = {j.name: j.limits.max_request_bytes for j in judges if j.limits.max_request_bytes is not None}
    if not limits:
        return
    tightest = min(limits.values())
    problems: list[Problem] = []
    for case in cases:
        if case.problem() is not None:
            continue
        # An 8-bit RGB PNG is at most a little larger than its pixels: only near the limit is it encoded to know.
        if sum(4 * (3 * w * h + h + 1024) // 3 for w, h in case.sizes()) + _ENVELOPE_BYTES <= tightest:
            continue
        size = sum(4 * len(p.png) // 3 + 4 for p in case.pictures()) + _ENVELOPE_BYTES
        for name, limit in limits.items():
            if size > limit:
                what = f"the request would be {size / 2**20:.1f} MiB; {name} takes at most {limit / 2**20:.1f} MiB. Use max_side=."
                problems.append(Problem(case.record.edited_name or case.record.case_id, what))
    if problems:
        raise ProblemsError(problems)
