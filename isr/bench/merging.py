"""Joining the runs of one experiment that several machines made (`isr run --shard i/n`)."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

from ..errors import IntegrityError, UsageError
from ..images import as_image
from ..merging import merge as merge_judged
from .dataset import stored_items
from .driver import LAYOUT, same_editors
from .experiment import Experiment, canonical_json
from .files import ExperimentFiles, StepRow, filled
from .plan import planned_counts

__all__ = ["merge_experiments"]


def merge_experiments(runs: Sequence[str | Path], out: str | Path, *, images: bool = True) -> Path:
    """One experiment run from several of the same experiment file: steps, pictures, and what was judged. Pictures are hashed
    again. What is still missing (shares that were not given, cases that were not judged) is done by `isr run … --out OUT`.

    Args:
        runs: at least two folders. out: a new folder. images: False leaves the pictures out.

    Raises:
        UsageError: fewer than two runs, other experiments or data, an `out` that is not empty, or the same step done with
            another result. IntegrityError: a picture is missing or is not what its name says, or editors differ.
    """
    if len(runs) < 2:
        raise UsageError(f"merge: expected at least two run directories, got {len(runs)}")
    target = ExperimentFiles.at(out)
    if target.folder.exists() and any(target.folder.iterdir()):
        raise UsageError(f"merge: {str(out)!r} is not empty; give a new folder")
    parts = [ExperimentFiles.at(run) for run in runs]
    infos = [part.info() for part in parts]
    for run, info in zip(runs, infos, strict=True):
        if info.get("layout") != LAYOUT:
            raise IntegrityError(f"{run}: experiment layout {info.get('layout')!r}, this version reads {LAYOUT}")
        for key, what in (("experiment", "experiments"), ("items", "data (other pictures or prompts)")):
            if info.get(key) != infos[0].get(key):
                raise UsageError(
                    f"merge: {runs[0]} and {run} are not of the same {what}; give every machine the same file and its share of it "
                    "(isr run FILE --shard i/n)"
                )
    experiment = Experiment.of(infos[0].get("experiment", {}), source=repr(str(runs[0])), stored=True)
    versions = {canonical_json(info.get("versions", {})) for info in infos}
    if len(versions) > 1:
        warnings.warn(
            "merge: the runs were made with different versions of packages; see each run's card", stacklevel=2
        )
    rows: dict[str, StepRow] = {}
    for run, part in zip(runs, parts, strict=True):
        for key, row in part.steps().items():
            held = rows.setdefault(key, row)
            if row.kind == "measure":
                # Of the same pictures (or prompts): machines differ in last bits, and in which weights they have.
                rows[key] = filled(held, row)
            elif (held.digest, held.purified) != (row.digest, row.purified):
                raise UsageError(
                    f"merge: the step {row.kind} {key[:12]} has another result in {run} than in an earlier run (another machine may "
                    "round differently); keep one of the two runs"
                )
    same_editors(rows.values())
    judged = [run for run, part in zip(runs, parts, strict=True) if part.run.exists()]
    if len(judged) > 1:
        merge_judged(judged, target.folder, images=False)
    elif judged:
        from ..report import Report

        Report.load(judged[0]).save(target.folder, images=False)
    if images:
        for part in parts:
            _copy_pictures(part, target)
    target.append_steps(list(rows.values()))
    counts = planned_counts(experiment, stored_items(infos[0], str(runs[0])))
    history = list(dict.fromkeys(h for info in infos for h in info.get("history", ())))
    makings = [m for info in infos for m in info.get("makings", ())]
    # Last, because it is what makes the folder an experiment's run.
    target.write_record(
        "experiment.json", {**infos[0], "plan": counts, "history": history, "makings": makings, "shard": None}
    )
    return target.folder


def _copy_pictures(part: ExperimentFiles, target: ExperimentFiles) -> None:
    for row in part.steps().values():
        originals = [i.removeprefix("picture:") for i in row.inputs if i.startswith("picture:")]
        for digest in dict.fromkeys(d for d in (row.digest, row.purified, *originals) if d is not None):
            if target.run.image_path(digest).exists():
                continue
            png = part.run.image_bytes(digest)
            if png is None:
                raise IntegrityError(f"{part.folder}: the picture {digest[:12]}… of a finished step is missing")
            if as_image(png, name=digest).digest != digest:
                raise IntegrityError(f"{part.run.image_path(digest)}: its pixels are not those of its name")
            target.run.put_image(digest, png)
