"""From a plan to a finished run: batches to an engine, results to the store, then the judges."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ..errors import IntegrityError, UsageError
from ..images import ImageRef, as_image
from ..lock import package_versions
from .dataset import Item
from .engine import Engine, Failed, StepError
from .experiment import Experiment, canonical_json
from .files import ExperimentFiles, StepRow
from .machine import hardware
from .plan import Plan, planned_cases, planned_counts
from .records import names_of, place_of
from .schedule import Scheduler
from .work import Batch, Done

__all__ = ["LAYOUT", "Making", "WorkerTime", "begin", "folder_of", "make_pictures", "picture_reader", "same_editors"]

LAYOUT = 1


@dataclass
class WorkerTime:
    """How one worker spent the making of pictures; seconds.

    Attributes:
        working: on batches. loading: importing and loading models. before: until its first batch began (the start of its
            process, and waiting). after: from its last batch to the end. between: idle (or on its way) in between.
    """

    batches: int = 0
    working: float = 0.0
    loading: float = 0.0
    before: float = 0.0
    between: float = 0.0
    after: float = 0.0


@dataclass
class Making:
    """What the making of pictures did.

    Attributes:
        done, skipped: steps done now, and found done. failed: messages. differing: steps done again with other pixels.
        seconds: from the start of the workers to the last result. workers: by name.
    """

    done: int = 0
    skipped: int = 0
    failed: list[str] | None = None
    differing: int = 0
    seconds: float = 0.0
    workers: dict[str, WorkerTime] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        """JSON-able, for the result card and benchmarks."""
        told = {n: {k: round(v, 3) for k, v in asdict(w).items()} for n, w in sorted(self.workers.items())}
        return {"steps": self.done, "seconds": round(self.seconds, 3), "workers": told}


class _Clock:
    """Where the workers' time goes, from what they say and from when their results arrive."""

    def __init__(self) -> None:
        self._started = time.perf_counter()
        self._last: dict[str, float] = {}
        self.workers: dict[str, WorkerTime] = {}

    def add(self, done: Done) -> None:
        now, name = time.perf_counter() - self._started, done.rows[0].worker
        idle = max(now - self._last.get(name, 0.0) - done.seconds, 0.0)
        one = self.workers.setdefault(name, WorkerTime())
        if one.batches == 0:
            one.before = idle
        else:
            one.between += idle
        one.batches += 1
        one.working += done.seconds - done.loading
        one.loading += done.loading
        self._last[name] = now

    def stop(self) -> float:
        """Seconds in all; what is left is each worker's waiting for the others."""
        seconds = time.perf_counter() - self._started
        for name, one in self.workers.items():
            one.after = max(seconds - self._last[name], 0.0)
        return seconds


def begin(files: ExperimentFiles, plan: Plan, *, items: Sequence[Item] | None = None, shard: str | None = None) -> None:
    """Write experiment.json, or check that the folder belongs to this experiment. The experiment may have grown (more
    pictures, attacks, editors): what was done stays done.

    Args:
        items: all pictures of the experiment, where the plan holds a share of them. shard: which share ("1/4").

    Raises:
        UsageError: the folder holds another experiment, something else, or judged edits that this experiment has no more.
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
        stored = files.info()
        if stored.get("layout") != LAYOUT:
            raise IntegrityError(
                f"{files.folder}: experiment layout {stored.get('layout')!r}, this version reads {LAYOUT}"
            )
        if stored.get("experiment", {}).get("name") != experiment.name:
            raise UsageError(
                f"run: {str(files.folder)!r} holds the experiment {stored.get('experiment', {}).get('name')!r}, not {experiment.name!r}; "
                "give another folder"
            )
        _still_planned(files, experiment, plan.items if items is None else items)
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


def _still_planned(files: ExperimentFiles, experiment: Experiment, items: Sequence[Item]) -> None:
    """What is judged counts in every table, so an experiment that has no place for it any more is another one."""
    if not files.run.exists():
        return
    names = names_of(planned_cases(experiment, items))
    gone = [
        row
        for row in files.run.case_rows()
        if row.arm != "control" and "step" in row.tags and place_of(row) not in names.get(str(row.tags["step"]), ())
    ]
    if gone:
        one = gone[0]
        raise UsageError(
            f"run: {len(gone)} judged edits are not in this experiment any more (first: method {one.method!r} of image {one.image_id!r}, "
            f"{one.prompt_kind} prompt, by {one.editor!r}): an attack, editor, purifier, picture, prompt, seed, label or table was changed "
            f"or taken out of the file. An experiment may grow, but {str(files.folder)!r} would mix two: give another folder, or put back "
            "what was there"
        )


class _Editors:
    """One setting of weights per editor's spec, or the run is no longer one experiment. Where the weights stand is another
    thing on every machine: their fingerprint says which they are."""

    def __init__(self) -> None:
        self._recorded: dict[bytes, dict[str, Any]] = {}

    def add(self, rows: Iterable[StepRow]) -> None:
        for row in rows:
            held = row.result.get("editor")
            if held is None:
                continue
            part = row.spec.get("editor") or row.spec.get("source")
            key = canonical_json([part, row.spec.get("settings")])
            told = {k: v for k, v in held.items() if k != "source" or not held.get("weights")}
            before = self._recorded.setdefault(key, told)
            if differ := sorted(k for k in before.keys() | told.keys() if before.get(k) != told.get(k)):
                one = differ[0]
                raise IntegrityError(
                    f"the editor {part!r} is not what it was when this run started (differing: {', '.join(differ)}; {one}: "
                    f"{before.get(one)!r:.200} then, {told.get(one)!r:.200} now); results of two editors never share a run: "
                    "start a new folder, or go back to what was there"
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


def picture_reader(
    files: ExperimentFiles, rows: Mapping[str, StepRow], originals: Mapping[str, ImageRef]
) -> Callable[[str], bytes]:
    """What reads a step's input by its name: PNG of an original or of an earlier step's picture, hashed again; a text's UTF-8.

    Raises (when called):
        IntegrityError: a stored picture is missing or is not what its name says.
    """

    def png(name: str) -> bytes:
        kind, _, key = name.partition(":")
        if kind == "text":
            return key.encode("utf-8")
        digest = key if kind == "picture" else str(rows[key].digest)
        if digest in originals:
            return originals[digest].png()
        stored = files.run.image_bytes(digest)
        if stored is None:
            raise IntegrityError(
                f"{files.folder}: the picture {digest[:12]}… of a finished step is missing; unpack the run again"
            )
        if as_image(stored, name=digest).digest != digest:
            raise IntegrityError(f"{files.run.image_path(digest)}: its pixels are not those of its name")
        return stored

    return png


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
    scheduler = Scheduler(plan, keeper.rows)
    if not scheduler.left:
        return report
    clock = _Clock()

    png = picture_reader(files, keeper.rows, pictures)
    under_way = 0
    stopping = False
    try:
        with engine:
            while True:
                for resource in [] if stopping else engine.room():
                    number = scheduler.next(resource)
                    if number is None:
                        break
                    job = plan.jobs[number]
                    given = tuple(tuple(png(name) for name in step.inputs) for step in job.steps)
                    engine.submit(Batch(number, job.steps, given, job.resource, scheduler.quick(number)))
                    under_way += 1
                if under_way == 0:
                    break
                for result in engine.wait():
                    under_way -= 1
                    if isinstance(result, Failed):
                        lost = scheduler.fail(result.number)
                        failed.append(result.message + (f"\n  {lost} further batches rest on it" if lost else ""))
                        stopping = not keep_going
                        continue
                    clock.add(result)
                    keeper.keep(result, report)
                    scheduler.finished(result.number, result.rows)
                    if progress is not None:
                        progress(report.done + report.skipped, len(plan.steps))
    finally:  # however it ended: what was done by then was done here
        report.seconds, report.workers = clock.stop(), clock.workers
        if report.done:
            _remember(files, report, engine)
    report.failed = failed
    if failed:
        raise StepError(
            f"{len(failed)} batch{'es' if len(failed) > 1 else ''} failed; {report.done} steps were done and are kept, and the same "
            "command goes on:\n- " + "\n- ".join(failed[:5])
        )
    return report


def _remember(files: ExperimentFiles, report: Making, engine: Engine) -> None:
    """Who made what, for the result card: a run is often made on one machine and judged on another."""
    info = files.info()
    at = datetime.now(UTC).isoformat(timespec="seconds")
    making = {"at": at, **report.record(), "engine": engine.describe(), "hardware": hardware()}
    files.write_record("experiment.json", {**info, "makings": [*info.get("makings", []), making]})


def folder_of(experiment: Experiment, out: str | Path | None) -> Path:
    """Where a run goes where no folder is given."""
    return Path(out) if out is not None else Path("runs") / experiment.name
