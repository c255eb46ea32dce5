"""From a plan to a finished run: batches to an engine, results to the store, then the judges."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import IntegrityError, UsageError
from ..images import as_image
from ..lock import package_versions
from .dataset import Item
from .engine import Engine, Failed, StepError
from .experiment import Experiment, canonical_json
from .files import ExperimentFiles, StepRow
from .plan import Job, Plan, planned_counts
from .work import Batch, Done

__all__ = ["LAYOUT", "Making", "begin", "folder_of", "make_pictures", "same_editors"]

LAYOUT = 1


@dataclass
class Making:
    """What the making of pictures did.

    Attributes:
        done, skipped: steps done now, and found done. failed: messages. differing: steps done again with other pixels.
    """

    done: int = 0
    skipped: int = 0
    failed: list[str] | None = None
    differing: int = 0


def begin(files: ExperimentFiles, plan: Plan, *, items: Sequence[Item] | None = None, shard: str | None = None) -> None:
    """Write experiment.json, or check that the folder belongs to this experiment. The experiment may have grown (more
    pictures, attacks, editors): what was done stays done.

    Args:
        items: all pictures of the experiment, where the plan holds a share of them. shard: which share ("1/4").

    Raises:
        UsageError: the folder holds another experiment, or something else.
    """
    experiment = plan.experiment
    recorded = {
        "plan": planned_counts(experiment, plan.items),
        "items": [item.record() for item in (plan.items if items is None else items)],
        "shard": shard,
    }
    if not files.exists():
        others = [p.name for p in files.folder.iterdir() if p.name != ".lock"] if files.folder.exists() else []
        if others:
            raise UsageError(f"run: {str(files.folder)!r} is not empty and holds no experiment; give a new folder")
        stored: dict[str, Any] = {"layout": LAYOUT, "versions": package_versions(), "history": []}
    else:
        stored = files.read_record("experiment.json")
        if stored.get("layout") != LAYOUT:
            raise IntegrityError(
                f"{files.folder}: experiment layout {stored.get('layout')!r}, this version reads {LAYOUT}"
            )
        if stored.get("experiment", {}).get("name") != experiment.name:
            raise UsageError(
                f"run: {str(files.folder)!r} holds the experiment {stored.get('experiment', {}).get('name')!r}, not {experiment.name!r}; "
                "give another folder"
            )
        now = package_versions()
        changed = [k for k in stored.get("versions", {}) if now.get(k) != stored["versions"][k]]
        if changed:
            told = ", ".join(f"{k} {stored['versions'][k]} → {now.get(k)}" for k in changed)
            warnings.warn(f"run: versions differ from those of the first start: {told}", stacklevel=2)
        if stored.get("hash") == experiment.hash and all(stored.get(k) == v for k, v in recorded.items()):
            return
        if stored.get("hash") != experiment.hash:
            stored["history"] = [*stored.get("history", []), stored.get("hash")]
    files.write_record(
        "experiment.json",
        {**stored, **recorded, "hash": experiment.hash, "experiment": experiment.record()},
    )


class _Scheduler:
    """Which job is next: in the plan's order, once its inputs are there, best on a worker that holds its editor."""

    def __init__(self, plan: Plan, done: Mapping[str, StepRow]) -> None:
        self.plan = plan
        self.known = set(done)
        self.left = [i for i, job in enumerate(plan.jobs) if any(s.key not in self.known for s in job.steps)]
        self.broken: set[str] = set()

    def next(self, resource: str) -> int | None:
        first: int | None = None
        for number in self.left:
            job = self.plan.jobs[number]
            if not job.needs <= self.known:
                continue
            if job.resource == resource:
                first = number
                break
            first = number if first is None else first
        if first is not None:
            self.left.remove(first)
        return first

    def finished(self, job: Job) -> None:
        self.known.update(s.key for s in job.steps)

    def fail(self, job: Job) -> int:
        """Give up a job and everything that rests on it; how many further jobs that is."""
        self.broken.update(s.key for s in job.steps)
        lost = 0
        while True:
            more = [n for n in self.left if self.plan.jobs[n].needs & self.broken]
            if not more:
                return lost
            for number in more:
                self.left.remove(number)
                self.broken.update(s.key for s in self.plan.jobs[number].steps)
                lost += 1


class _Editors:
    """One setting of weights per editor's spec, or the run is no longer one experiment."""

    def __init__(self) -> None:
        self._recorded: dict[bytes, bytes] = {}

    def add(self, rows: Iterable[StepRow]) -> None:
        for row in rows:
            held = row.result.get("editor")
            if held is None:
                continue
            part = row.spec.get("editor") or row.spec.get("source")
            key = canonical_json([part, row.spec.get("settings")])
            told = canonical_json(held)
            if self._recorded.setdefault(key, told) != told:
                raise IntegrityError(
                    f"the editor {part!r} is not what it was when this run started (its recorded settings or weights differ); "
                    "results of two editors never share a run: start a new folder"
                )


def same_editors(rows: Iterable[StepRow]) -> None:
    """Raises IntegrityError where one editor stands with two settings or weights among these steps."""
    _Editors().add(rows)


class _Keeper:
    """Writes results; pictures first, then rows."""

    def __init__(self, files: ExperimentFiles) -> None:
        self.files = files
        self.rows = files.steps()
        self.waiting: list[StepRow] = []
        self.editors = _Editors()
        self.editors.add(self.rows.values())

    def keep(self, done: Done, report: Making) -> None:
        for digest, png in done.pictures.items():
            self.files.run.put_image(digest, png)
        for row in done.rows:
            self.editors.add([row])
            held = self.rows.get(row.key)
            if held is None:
                self.rows[row.key] = row
                self.waiting.append(row)
                report.done += 1
            elif held.digest != row.digest:
                report.differing += 1
        self.flush()

    def flush(self) -> None:
        if self.waiting:
            self.files.append_steps(self.waiting)
            self.waiting.clear()


def make_pictures(
    plan: Plan,
    files: ExperimentFiles,
    engine: Engine,
    *,
    keep_going: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Making:
    """Do every step of a plan that is not done. The caller holds the lock (`files.writing()`).

    Args:
        keep_going: after a failed batch, do everything that does not rest on it. progress: (steps done, steps in all).

    Raises:
        StepError: batches failed; all others are kept. IntegrityError: an editor changed under the run.
    """
    keeper = _Keeper(files)
    pictures = {item.original.digest: item.original for item in plan.items}
    for digest, original in pictures.items():
        files.run.put_image(digest, original.png())
    report = Making(skipped=sum(key in keeper.rows for key in plan.steps), failed=[])
    failed: list[str] = []
    scheduler = _Scheduler(plan, keeper.rows)
    if not scheduler.left:
        return report

    def png(name: str) -> bytes:
        kind, _, key = name.partition(":")
        if kind == "text":
            return key.encode("utf-8")
        digest = key if kind == "picture" else str(keeper.rows[key].digest)
        if digest in pictures:
            return pictures[digest].png()
        stored = files.run.image_bytes(digest)
        if stored is None:
            raise IntegrityError(
                f"{files.folder}: the picture {digest[:12]}… of a finished step is missing; unpack the run again"
            )
        if as_image(stored, name=digest).digest != digest:
            raise IntegrityError(f"{files.run.image_path(digest)}: its pixels are not those of its name")
        return stored

    under_way = 0
    stopping = False
    with engine:
        while True:
            for resource in [] if stopping else engine.room():
                number = scheduler.next(resource)
                if number is None:
                    break
                job = plan.jobs[number]
                given = tuple(tuple(png(name) for name in step.inputs) for step in job.steps)
                engine.submit(Batch(number, job.steps, given), job.resource)
                under_way += 1
            if under_way == 0:
                break
            for result in engine.wait():
                under_way -= 1
                job = plan.jobs[result.number]
                if isinstance(result, Failed):
                    lost = scheduler.fail(job)
                    failed.append(result.message + (f"\n  {lost} further batches rest on it" if lost else ""))
                    stopping = not keep_going
                    continue
                keeper.keep(result, report)
                scheduler.finished(job)
                if progress is not None:
                    progress(report.done + report.skipped, len(plan.steps))
    report.failed = failed
    if failed:
        raise StepError(
            f"{len(failed)} batch{'es' if len(failed) > 1 else ''} failed; {report.done} steps were done and are kept, and the same "
            "command goes on:\n- " + "\n- ".join(failed[:5])
        )
    return report


def folder_of(experiment: Experiment, out: str | Path | None) -> Path:
    """Where a run goes where no folder is given."""
    return Path(out) if out is not None else Path("runs") / experiment.name
