"""What a plan will cost before it runs: counts, disk, GPU hours and money. What is not known is said, never guessed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..cases import EditCase
from ..errors import IsrError
from ..estimation import estimate
from ..protocols import Judge
from .files import StepRow
from .judging import judging_arguments
from .plan import Plan

__all__ = ["DryRun", "dry_run"]

#: Pictures that stand in for all in the estimate of judging.
_SAMPLE = 20


@dataclass(frozen=True)
class DryRun:
    """What a run will do.

    Attributes:
        immunizations, edits, measurements, cases: in all. done: steps that are there already.
        judgements: calls in all, controls included. judged: cases that are judged already, controls among them.
        pictures: files in all.
        disk: upper end in bytes (raw pixels; PNG is smaller). hours: of one worker, by kind, from steps of this run that are
            done, for what is left; None where nothing has been measured. money: (low, high) US dollars for what is left, or None. notes: why something is unknown.
    """

    immunizations: int
    edits: int
    measurements: int
    cases: int
    controls: int
    done: int
    judgements: int
    judged: int
    pictures: int
    disk: int
    hours: Mapping[str, float | None]
    money: tuple[float, float] | None
    notes: tuple[str, ...]

    def text(self) -> str:
        lines = [
            f"immunizations  {self.immunizations:,}",
            f"edits          {self.edits:,}  ({self.controls:,} of them controls)",
            f"measurements   {self.measurements:,}",
            f"steps done     {self.done:,} of {self.immunizations + self.edits + self.measurements:,}",
            f"judgements     {self.judgements:,}  ({self.cases:,} cases of the immunized and noise arms, and their controls"
            + (f"; {self.judged:,} of {self.cases + self.controls:,} are judged)" if self.judged else ")"),
            f"disk           at most {_bytes(self.disk)} for {self.pictures:,} pictures",
        ]
        for kind, hours in self.hours.items():
            told = (
                "unknown (nothing of this kind has been timed in this run yet)"
                if hours is None
                else f"{hours:.2f} h of one worker"
            )
            lines.append(f"time, {kind:<9}{told}")
        told = "unknown" if self.money is None else f"{self.money[0]:.2f} – {self.money[1]:.2f} US dollars"
        lines.append(f"money          {told}")
        return "\n".join([*lines, *(f"  ! {n}" for n in self.notes)])


def dry_run(plan: Plan, done: Mapping[str, StepRow], judges: Sequence[Judge] | IsrError, *, judged: int = 0) -> DryRun:
    """The figures of a plan.

    Args:
        done: finished steps of the run (from which times are taken). judges: or why there are none.
        judged: cases that are judged already.
    """
    left = [s for s in plan.steps.values() if s.key not in done]
    notes: list[str] = []
    hours: dict[str, float | None] = {}
    for kind in ("immunize", "edit", "measure"):
        times = [r.seconds for r in done.values() if r.kind == kind and r.seconds is not None]
        todo = sum(s.kind == kind for s in left)
        hours[kind] = 0.0 if not todo else sum(times) / len(times) * todo / 3600 if times else None
    controls = {c.control for c in plan.cases}
    made = [s for s in plan.steps.values() if s.kind in ("immunize", "edit")]
    purified = sum(s.kind == "edit" and s.spec["purifier"] is not None for s in made)
    sizes = [w * h * 3 + 1024 for w, h in (item.original.size for item in plan.items)]
    pictures = len(made) + purified + len(plan.items)
    money: tuple[float, float] | None = None
    judgements = 0
    if isinstance(judges, IsrError):
        notes.append(f"judges: {str(judges).splitlines()[0]}")
    elif not judges:
        notes.append("judging.judges is empty: pictures and metrics only")
    else:
        count = len(plan.cases) + len(controls)
        judgements = count * len(judges) * plan.experiment.judging.votes
        money = _money(plan, judges, max(count - judged, 0), notes)
    return DryRun(
        immunizations=plan.count("immunize"), edits=plan.count("edit"), measurements=plan.count("measure"), cases=len(plan.cases),
        controls=len(controls), done=len(plan.steps) - len(left), judgements=judgements, judged=judged, pictures=pictures,
        disk=round(pictures * sum(sizes) / len(sizes)), hours=hours, money=money, notes=tuple(notes),
    )  # fmt: skip


def _money(plan: Plan, judges: Sequence[Judge], count: int, notes: list[str]) -> tuple[float, float] | None:
    """From a sample of the pictures, each standing in for its own edit (an edit has the size of its picture)."""
    items = plan.items[:_SAMPLE]
    cases = [EditCase(i.original.pil(), i.prompt, original=i.original.pil(), image_id=i.image_id) for i in items]
    arguments = {k: v for k, v in judging_arguments(plan.experiment).items() if k != "max_cost"}
    found = estimate(cases, judges=list(judges), cache=False, **arguments)
    unknown = [j.judge for j in found.judges if j.cost is None]
    if unknown:
        notes.append(f"no price per token is known for {', '.join(unknown)} (local judges cost nothing per token)")
    if found.cost is None:
        return None
    scale = count / len(items)
    return found.cost[0] * scale, found.cost[1] * scale


def _bytes(n: int) -> str:
    size = float(n)
    for unit in ("bytes", "KB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
