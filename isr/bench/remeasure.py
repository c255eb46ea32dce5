"""`isr run --retry-missing`: values that a measurement lacked because this machine had no weights, and nothing else.

The new row of a step holds its old values and the new ones; rows are never rewritten (isr/bench/files.py, `steps`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from .driver import picture_reader
from .engine import Engine, Failed, StepError
from .files import ExperimentFiles, StepRow, filled
from .plan import Plan, Step
from .work import Batch

__all__ = ["Retried", "lacking", "lacking_text", "retry_missing"]


@dataclass
class Retried:
    """measured: values that are there now. still: metric → why it still has none, and for how many steps."""

    measured: int = 0
    still: dict[str, tuple[str, int]] = field(default_factory=dict)

    def text(self) -> str:
        lines = [f"{self.measured} missing values measured"]
        lines += [f"  {name}: still n/a on {n}: {reason}" for name, (reason, n) in self.still.items()]
        return "\n".join(lines)


def lacking(row: StepRow) -> tuple[str, ...]:
    """Metrics of a measurement that had no weights (or no package) when it was made. Pictures that are too small, or of
    unlike sizes, lack nothing: their values do not exist."""
    if row.kind != "measure":
        return ()
    told = row.result.get("metrics", {})
    return tuple(name for name, m in told.items() if m.get("value") is None and m.get("lacking") is True)


def lacking_text(plan: Plan, rows: Mapping[str, StepRow]) -> str:
    """What of a plan's measurements lacks weights, and how to have it measured; empty where nothing does."""
    found: dict[str, tuple[str, int]] = {}
    of: dict[str, int] = {}
    for step in plan.steps.values():
        row = rows.get(step.key) if step.kind == "measure" else None
        if row is None:
            continue
        missing = lacking(row)
        for name, told in row.result.get("metrics", {}).items():
            of[name] = of.get(name, 0) + 1
            if name in missing:
                found[name] = (str(told.get("reason", "")), found.get(name, ("", 0))[1] + 1)
    lines = [f"  {name} is n/a on {n} of {of[name]}: {reason}" for name, (reason, n) in found.items()]
    return "\n".join([*lines, "  once that is there: the same command with --retry-missing"]) if lines else ""


def retry_missing(plan: Plan, files: ExperimentFiles, engine: Engine) -> Retried:
    """Measure what is lacking, in the plan's batches. After a first batch of a kind that still lacks its weights, the others
    of that kind are left alone. The caller holds the lock.

    Raises:
        StepError: a batch failed (a damaged file of weights, say); what was measured is kept.
    """
    rows = files.steps()
    waiting = _batches(plan, rows)
    report = Retried()
    given_up: dict[tuple[str, ...], str] = {}
    failed: list[str] = []
    png = picture_reader(files, rows, {item.original.digest: item.original for item in plan.items})
    under_way: dict[int, tuple[tuple[str, ...], tuple[Step, ...]]] = {}
    number = 0
    if not waiting:
        return report
    with engine:
        while waiting or under_way:
            for _ in engine.room():
                while waiting and waiting[0][0] in given_up:
                    _count(report, *waiting.popleft(), given_up)
                if not waiting or failed:
                    break
                names, steps = waiting.popleft()
                asked = tuple(replace(s, spec={**s.spec, "metrics": list(names)}) for s in steps)
                engine.submit(Batch(number, asked, tuple(tuple(png(i) for i in s.inputs) for s in steps)))
                under_way[number] = (names, steps)
                number += 1
            if not under_way:
                break
            for result in engine.wait():
                names, steps = under_way.pop(result.number)
                if isinstance(result, Failed):
                    failed.append(result.message)
                    continue
                new = [_merged(rows[row.key], row) for row in result.rows]
                kept = [row for row in new if row is not None]
                files.append_steps(kept)
                report.measured += sum(_numbers(r) - _numbers(rows[r.key]) for r in kept)
                rows.update((row.key, row) for row in kept)
                if not kept:
                    told = result.rows[0].result["metrics"]
                    given_up[names] = "; ".join(dict.fromkeys(str(told[n].get("reason", "")) for n in names))
                    _count(report, names, steps, given_up)
    if failed:
        raise StepError(
            "measuring what was missing failed; what was measured is kept:\n- " + "\n- ".join(dict.fromkeys(failed))
        )
    return report


def _batches(plan: Plan, rows: Mapping[str, StepRow]) -> deque[tuple[tuple[str, ...], tuple[Step, ...]]]:
    """(metrics, steps) of the plan's measurements that lack the same."""
    found: deque[tuple[tuple[str, ...], tuple[Step, ...]]] = deque()
    for job in plan.jobs:
        groups: dict[tuple[str, ...], list[Step]] = {}
        for step in job.steps if job.kind == "measure" else ():
            row = rows.get(step.key)
            names = () if row is None else lacking(row)
            if names:
                groups.setdefault(names, []).append(step)
        found.extend((names, tuple(steps)) for names, steps in groups.items())
    return found


def _merged(held: StepRow, row: StepRow) -> StepRow | None:
    """The row to append, or None where nothing is new."""
    new = filled(held, row)
    if new is held:
        return None
    return new.model_copy(update={"worker": row.worker, "at": row.at})


def _numbers(row: StepRow) -> int:
    return sum(m["value"] is not None for m in row.result["metrics"].values())


def _count(
    report: Retried, names: tuple[str, ...], steps: tuple[Step, ...], given_up: Mapping[tuple[str, ...], str]
) -> None:
    for name in names:
        before = report.still.get(name, ("", 0))[1]
        report.still[name] = (given_up[names], before + len(steps))
