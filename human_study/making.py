"""`new_study`: from a stored run to a study folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path

import numpy as np
import pandas as pd

from isr.errors import UsageError
from isr.report import Report
from isr.rubric import Rubric
from isr.schema import CaseRecord
from isr.tables import case_table

from .examples import from_csv, made_from
from .sampling import Allocation, Sample, advice, stratified_sample
from .study import Settings, Study, StudyItem

__all__ = ["Draft", "draft_study", "new_study"]

#: Base pictures from which training examples and attention checks are made.
BASES = 8


@dataclass(frozen=True)
class Draft:
    """A sample before anything is written: the preview that `isr study new` prints.

    Attributes:
        frame: the cases that can be shown (of the arm, with pictures). left_out: how many of the arm cannot.
    """

    sample: Sample
    frame: pd.DataFrame
    left_out: int
    advice: tuple[str, ...]


def draft_study(
    report: Report,
    n: int,
    by: Sequence[str] = (),
    *,
    allocation: Allocation = "proportional",
    raters: int = 3,
    per_item: int | None = None,
    seed: int = 0,
    arm: str = "immunized",
    allow_empty: bool = False,
) -> Draft:
    """Draw the sample and say what it is good for; writes nothing. Arguments as of `new_study`."""
    if seed < 0:
        raise UsageError(f"seed: expected 0 or more, got {seed}")
    if raters < 1:
        raise UsageError(f"raters: expected at least 1, got {raters}")
    if per_item is not None and not 1 <= per_item <= raters:
        raise UsageError(f"per_item: expected 1 to {raters} (the raters), got {per_item}")
    records = [c for c in report.case_records if c.arm == arm]
    if not records:
        raise UsageError(f"arm: this run has no case of the arm {arm!r}")
    shown = [c for c in records if _can_be_shown(c, with_original=bool(report.lock.get("with_originals")))]
    if not shown:
        raise UsageError("from: none of the run's cases has a readable picture, so there is nothing to show to people")
    frame = case_table(shown)
    sample = stratified_sample(frame, n, by, allocation=allocation, seed=seed, allow_empty=allow_empty)
    drawn = sample.drawn.merge(frame[["case_id", "method"]], on="case_id", how="left")
    hints = advice(drawn, raters=per_item or raters)
    if report.lazy:
        hints.append(
            "This run was judged with lazy=True: later judges saw only part of the cases, so `isr agree` and `isr calibrate` will "
            "refuse it. Judge it again without lazy (stored answers are reused) and draw from that run."
        )
    if len(shown) < len(records):
        hints.append(
            f"{len(records) - len(shown)} of {len(records)} cases have no readable picture and cannot be drawn; the corrected "
            "ISR then speaks of the others."
        )
    return Draft(sample, frame, len(records) - len(shown), tuple(hints))


def new_study(
    folder: str | Path,
    run: Report | str | Path,
    n: int,
    by: Sequence[str] = (),
    *,
    allocation: Allocation = "proportional",
    raters: int = 3,
    per_item: int | None = None,
    seed: int = 0,
    arm: str = "immunized",
    title: str = "Picture study",
    rubric: Rubric | str | Path | None = None,
    training: int | str | Path = 4,
    attention: int | str | Path | None = None,
    repeats: int | None = None,
    picked: Sequence[str] = (),
    allow_empty: bool = False,
) -> Study:
    """Draw a sample of a run and write a study folder.

    Args:
        folder: new or empty. run: a `Report` or a run directory that keeps its pictures.
        n, by, allocation, seed, allow_empty: see `stratified_sample`.
        raters: how many people. per_item: how many of them see each item; None: all of them.
        rubric: what is asked; None: the words the models of this run were asked with.
        training, attention: a number of examples with known answers, or a CSV of the lab's own (see `examples.from_csv`).
            attention defaults to one check in about 30 items, repeats (items that come a second time) to one in 20.
        picked: case_ids to be rated as well, for a look at disagreements. They have no inclusion probability and never
            enter a correction.
    """
    out = Path(folder)
    if out.exists() and any(out.iterdir()):
        raise UsageError(f"study: {str(folder)!r} is not empty; give a new folder")
    report = run if isinstance(run, Report) else Report.load(run)
    draft = draft_study(
        report, n, by, allocation=allocation, raters=raters, per_item=per_item, seed=seed, arm=arm, allow_empty=allow_empty
    )  # fmt: skip
    with_originals = bool(report.lock.get("with_originals"))
    records = {c.case_id: c for c in report.case_records}
    items = [
        _rating_item(
            index,
            records[str(row["case_id"])],
            str(row["stratum"]),
            float(row["inclusion_probability"]),
            with_originals,
        )
        for index, row in enumerate(draft.sample.drawn.to_dict("records"))
    ]
    items += _picked(picked, records, {i.case_id for i in items}, with_originals)
    pictures = {d: _picture(report, d) for i in items for d in (i.edited, i.original) if d is not None}
    attention = max(2, round(n / 30)) if attention is None else attention
    repeats = max(2, round(n / 20)) if repeats is None else repeats
    if repeats < 0:
        raise UsageError(f"repeats: expected 0 or more, got {repeats}")
    bases = _bases(report, items, seed)
    taught, more = _known("training", training, bases, with_originals, seed, skip=0)
    pictures |= more
    checks, more = _known("attention", attention, bases, with_originals, seed, skip=len(taught) + 1)
    pictures |= more
    settings = Settings(
        title=title, seed=seed, raters=raters, per_item=per_item, repeats=repeats, columns=tuple(by), allocation=allocation, n=n,
        population=len(draft.frame), created=datetime.now(UTC).isoformat(timespec="seconds"),
    )  # fmt: skip
    out.mkdir(parents=True, exist_ok=True)
    for name in ("consent.md", "instructions.md"):
        (out / name).write_text((files("isr.human_study") / "texts" / name).read_text("utf-8"), "utf-8")
    draft.sample.strata.to_csv(out / "sample.csv", index=False)
    words = (
        rubric if isinstance(rubric, Rubric) else Rubric.load(rubric) if rubric is not None
        else Rubric.model_validate(report.lock["rubric"])
    )  # fmt: skip
    return Study.write(out, settings, words, [*taught, *items, *checks], pictures)


def _can_be_shown(case: CaseRecord, *, with_original: bool) -> bool:
    return case.edited is not None and (case.original is not None or not with_original)


def _rating_item(
    index: int, case: CaseRecord, stratum: str, probability: float | None, with_originals: bool
) -> StudyItem:
    assert case.edited is not None  # noqa: S101 - the frame holds only cases that can be shown
    return StudyItem(
        id=f"item-{index}", kind="rating", prompt=case.prompt, edited=case.edited,
        original=case.original if with_originals else None, case_id=case.case_id, image_id=case.image_id, stratum=stratum,
        inclusion_probability=probability,
    )  # fmt: skip


def _picked(
    picked: Sequence[str], records: dict[str, CaseRecord], drawn: set[str | None], with_originals: bool
) -> list[StudyItem]:
    found = []
    for index, case_id in enumerate(dict.fromkeys(picked)):
        case = records.get(case_id)
        if case is None or not _can_be_shown(case, with_original=with_originals):
            raise UsageError(f"picked: {case_id!r} is no case of this run that can be shown")
        if case_id not in drawn:
            item = _rating_item(index, case, "picked", None, with_originals)
            found.append(item.model_copy(update={"id": f"picked-{index}"}))
    return found


def _picture(report: Report, digest: str) -> bytes:
    png = report.picture(digest)
    if png is None:
        raise UsageError(
            "from: the run was saved without its pictures (images=False), so there is nothing to show to people; save it with "
            "images=True"
        )
    return png


def _bases(report: Report, items: Sequence[StudyItem], seed: int) -> list[bytes]:
    """Pictures for examples, from images outside the sample where there are such, in random order."""
    used = {d for i in items for d in (i.edited, i.original)}
    every = dict.fromkeys(c.original or c.edited for c in report.case_records if c.edited is not None)
    fresh = [d for d in every if d is not None and d not in used] or [d for d in every if d is not None]
    order = np.random.default_rng([seed, 4]).permutation(len(fresh))
    return [_picture(report, fresh[i]) for i in order[:BASES]]


def _known(
    kind: str, given: int | str | Path, bases: list[bytes], with_originals: bool, seed: int, skip: int
) -> tuple[list[StudyItem], dict[str, bytes]]:
    which = "training" if kind == "training" else "attention"
    if isinstance(given, int):
        if given < 0:
            raise UsageError(f"{kind}: expected 0 or more, or a CSV, got {given}")
        return made_from(bases, given, which, with_originals=with_originals, seed=seed, skip=skip)  # type: ignore[arg-type]
    return from_csv(given, which)  # type: ignore[arg-type]
