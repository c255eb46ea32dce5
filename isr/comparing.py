"""Comparing runs: methods on the same cases, and one run under old and new judges. Unlike judge locks are refused."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from .agreeing import agreement
from .cases import EditCase
from .errors import UsageError
from .lock import lock_differences, with_shards
from .report import Report
from .schema import CaseRecord
from .stats.compare import FAMILY, KEY, BeatsEvery, beats_every, compare_methods, mark_best
from .stats.outcomes import band, isr_table
from .stats.paired import PairedDifference, paired_difference

if TYPE_CHECKING:
    from .stats.agreement_table import AgreementTable

__all__ = ["Bridge", "Comparison", "bridge", "compare", "edit_cases"]

Run = Report | str | Path


@dataclass(frozen=True)
class Comparison:
    """Methods compared on the cases they share.

    Attributes:
        rates: ISR per family and method with interval, bounds and band (its upper end missing after `lazy`), and `bold` (not
            significantly below the best).
        pairs: every pair: difference, interval, bounds, p, Holm-adjusted p within its family.
        lock: judge lock that the runs share. level: of the intervals. alpha: of `bold`.
    """

    rates: pd.DataFrame
    pairs: pd.DataFrame
    lock: Mapping[str, Any] = field(default_factory=dict, repr=False)
    level: float = 0.95
    alpha: float = 0.05

    def to_latex(self) -> str:
        """A table in the paper's shape (booktabs): one row per method, original and unseen prompts side by side, one block of
        rows per editor and purifier; bold what is not significantly below the best of its column."""
        from .reporting.latex import comparison_table

        return comparison_table(self)

    def beats_every(self, method: str, *, alpha: float = 0.05) -> BeatsEvery:
        """Whether a method beats every other (every single comparison must hold). For one family only."""
        families = [c for c in FAMILY if c in self.pairs.columns]
        if families and len(self.pairs[families].drop_duplicates()) > 1:
            raise UsageError(
                f"beats_every: this comparison holds several families ({', '.join(families)}); filter the runs first"
            )
        return beats_every(self.pairs, method, alpha=alpha)

    def __str__(self) -> str:
        return "\n\n".join(
            t.to_string(index=False, float_format=lambda v: f"{v:.3f}") for t in (self.rates, self.pairs)
        )


def compare(*runs: Run, level: float = 0.95, n_boot: int = 10_000, seed: int = 0) -> Comparison:
    """Compare the methods of one or more runs on the same (image, prompt, editor, seed), immunized and noise arms.

    Two runs that hold the same method (under the same editor, prompt kind and purifier) are told apart by as much of the end of their paths as differs (or "run 1", "run 2").

    Raises:
        UsageError: the runs were judged differently (everything that differs is listed), hold fewer than two methods, or one
            is given twice.
    """
    if not runs:
        raise UsageError("compare: give at least one run")
    reports = [_report(run) for run in runs]
    names = _names(runs)
    for name, report in zip(names[1:], reports[1:], strict=True):
        differences = lock_differences(reports[0].lock, report.lock)
        if differences:
            raise UsageError(
                f"compare: {names[0]} and {name} are different measurements:\n  - "
                + "\n  - ".join(differences)
                + "\nJudge both with the same judges and settings (isr bridge carries a run over to other judges)."
            )
    tables = [_cases(r) for r in reports]
    held = [_methods(t) for t in tables]
    for i, (name, table) in enumerate(zip(names, tables, strict=True)):
        twice = {m for j, other in enumerate(held) if j != i for *_, m in held[i] & other}
        table["method"] = table["method"].astype(object).where(table["method"].notna(), name)
        table["method"] = [f"{m} ({name})" if m in twice else m for m in table["method"]]
        if {"source", "step"} <= set(table):  # an experiment's run: what was made on another editor is another row
            made_on = zip(table["method"], table["source"], table["editor"], strict=True)
            table["method"] = [f"{m} (made on {s})" if s and not pd.isna(s) and s != e else m for m, s, e in made_on]
    cases = pd.concat(tables, ignore_index=True)
    if cases["method"].nunique() < 2:
        raise UsageError(f"compare: expected at least two methods, got {', '.join(map(str, cases['method'].unique()))}")
    clustered = bool(cases["image_id"].notna().all())
    by = [c for c in FAMILY if cases[c].notna().any()]
    image = "image_id" if clustered else None
    if image is None:
        raise UsageError("compare: cases need image_id (or originals), to know which edits are of the same image")
    pairs = compare_methods(cases, by=by, key=KEY, image=image, level=level, n_boot=n_boot, seed=seed)
    rates = _with_bands(isr_table(cases, (*by, "method"), image=image, level=level), cases, (*by, "method"))
    return Comparison(mark_best(rates, pairs, by=by), pairs, reports[0].lock, level)


def _cases(report: Report) -> pd.DataFrame:
    """The immunized and noise arms of a run, with the outcomes that the ends of the band count (None: lazy hides them)."""
    judged = report.matrix
    table = report.cases.assign(
        strict_outcome=pd.Series(judged.strict_outcomes, dtype=object),
        any_outcome=pd.Series(judged.any_outcomes, dtype=object),
    )
    return table[table["arm"] != "control"].copy()


def _with_bands(rates: pd.DataFrame, cases: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """`rates` with band_low and band_high after the bounds; its rows are the groups of `cases` in the same order."""
    groups = cases.groupby(list(by), sort=False, dropna=False)
    ends = [band(group["strict_outcome"], group["any_outcome"]) for _, group in groups]
    out = rates.copy()
    after = list(out.columns).index("bound_high")
    out.insert(after + 1, "band_low", [low for low, _ in ends])
    out.insert(after + 2, "band_high", pd.Series([high for _, high in ends], index=out.index, dtype=float))
    return out


def _methods(cases: pd.DataFrame) -> set[tuple[Any, ...]]:
    """Methods by family: one method under two editors is no clash."""
    named = cases[cases["method"].notna()]
    columns = [[None if pd.isna(v) else v for v in named[c]] for c in (*FAMILY, "method")]
    return set(zip(*columns, strict=True))


def _names(runs: Sequence[Run]) -> list[str]:
    """What each run is called: the fewest last parts of the paths that tell them apart."""
    # Not resolved: names are those that the user wrote, as far as they suffice.
    paths = {i: Path(os.path.abspath(run)).parts for i, run in enumerate(runs) if not isinstance(run, Report)}
    twice = next((runs[i] for i in paths if list(paths.values()).count(paths[i]) > 1), None)
    if twice is not None:
        raise UsageError(f"compare: {str(twice)!r} is given twice")
    n = 1
    while len({parts[-n:] for parts in paths.values()}) < len(paths):
        n += 1
    return ["/".join(paths[i][-n:]) if i in paths else f"run {i + 1}" for i in range(len(runs))]


@dataclass(frozen=True)
class Bridge:
    """One run under old and new judges.

    Attributes:
        old, new: the two reports; the cases are the same. difference: new − old ISR, paired by case; a case without enough
            verdicts is no success, and `bounds` says where the difference lies whatever the missing answers were.
        agreement: between all judges, old and new; None where it is `absent`. flipped: cases whose outcome changed.
        absent: why there is no agreement ("lazy": later judges answered only part of the cases, and not a random one), or "".
    """

    old: Report
    new: Report
    difference: PairedDifference
    agreement: AgreementTable | None
    flipped: pd.DataFrame
    absent: str = ""

    @property
    def bounds(self) -> tuple[float, float]:
        """Smallest and largest difference (a fraction) that missing answers leave possible."""
        (old_low, old_high), (new_low, new_high) = self.old.bounds, self.new.bounds
        return new_low - old_high, new_high - old_low

    def __str__(self) -> str:
        d, (low, high) = self.difference, self.bounds
        return (
            f"{_line('old', self.old)}\n{_line('new', self.new)}\n"
            f"difference {100 * d.difference:+.1f} points [{100 * d.interval.low:+.1f}, {100 * d.interval.high:+.1f}] "
            f"({d.interval.method}, {d.n} cases, {d.n_clusters} images; {d.test} p = {d.p_value:.3g}), "
            f"bounds [{100 * low:+.1f}, {100 * high:+.1f}]\n"
            f"{len(self.flipped)} outcomes changed: {d.only_a} became successes, {d.only_b} stopped being one"
            + (f"\nagreement of the judges: absent: {self.absent}" if self.agreement is None else "")
        )


def _line(label: str, report: Report) -> str:
    low, high = report.bounds
    return (
        f"{label} {', '.join(report.judges)}: {100 * report.isr:.1f} %, bounds [{100 * low:.1f}, {100 * high:.1f}] %, "
        f"{report.n_undetermined} undetermined"
    )


def bridge(run: Run, judges: Any, **arguments: Any) -> Bridge:
    """Judge the same edits again with other judges (judges retire), and say what that changes.

    Args:
        run: a report or run directory that holds its pictures. judges: the new ones, as for `evaluate`.
        arguments: further arguments of `evaluate` (cache, progress, …). Rubric, consensus, votes and max_side are the old
            run's unless given.

    Raises:
        UsageError: the run holds no pictures, or no case of the immunized arm.
    """
    from .evaluation import evaluate
    from .rubric import Rubric

    old = _report(run)
    if not old.n:
        raise UsageError("bridge: this run holds no case of the immunized arm, so there is no ISR to carry over")
    settings = old.lock["settings"]
    kept = {
        "consensus": old.policy,
        "rubric": Rubric.model_validate(old.lock["rubric"]),
        "votes": settings.get("votes", 1),
        "ask_overall": settings.get("ask_overall", False),
        "max_side": settings.get("max_side"),
        "on_bad_image": settings.get("on_bad_image", "raise"),
    }
    new = evaluate(edit_cases(old), judges=judges, **{**kept, **arguments})
    new.lock = with_shards(new.lock, [old.lock])
    before = {o.case_id: o.value for o in old.outcomes}
    after = {o.case_id: o.value for o in new.outcomes}
    if set(before) != set(after):
        raise UsageError("bridge: the two runs do not hold the same cases; was the run's cases.jsonl changed by hand?")
    rows = [c for c in old.case_records if c.arm == "immunized"]
    ids = None if any(c.image_id is None for c in rows) else [str(c.image_id) for c in rows]
    difference = paired_difference(
        [after[c.case_id] == "success" for c in rows], [before[c.case_id] == "success" for c in rows], ids
    )
    flipped = pd.DataFrame(
        [
            {
                "case_id": c.case_id,
                "id": c.id,
                "method": c.method,
                "prompt": c.prompt,
                "old": before[c.case_id],
                "new": after[c.case_id],
            }
            for c in rows
            if before[c.case_id] != after[c.case_id]
        ],
        columns=["case_id", "id", "method", "prompt", "old", "new"],
    )
    if old.lazy or new.lazy:
        return Bridge(old, new, difference, None, flipped, absent="lazy")
    both = [_renamed(old, "old"), _renamed(new, "new")] if set(old.judges) & set(new.judges) else [old, new]
    return Bridge(old, new, difference, agreement(mllm=both), flipped)


def edit_cases(report: Report) -> list[EditCase]:
    """The cases of a report as `evaluate` takes them, with pictures and the same case ids. Controls that were made from
    `controls=` come with their edits again, others as rows of their own.

    Raises:
        UsageError: the run was saved without pictures.
    """
    made_of = _made_controls(report.case_records)
    folded = {control.case_id for control in made_of.values()}
    kept: dict[str, bytes] = {}

    def picture(digest: str | None, case_id: str) -> bytes | None:
        if digest is not None and digest not in kept:
            kept[digest] = _kept(report, digest, case_id)
        return None if digest is None else kept[digest]

    made = []
    for record in report.case_records:
        if record.case_id in folded:
            continue
        columns: dict[str, Any] = record.model_dump(
            include={"id", "image_id", "method", "editor", "prompt_kind", "category", "seed", "purifier", "arm"}
        )
        control = made_of.get(record.case_id)
        made.append(
            EditCase(
                # A picture that could not be read then (`bad_image`) stays unreadable.
                picture(record.edited, record.case_id) or b"",
                record.prompt,
                original=picture(record.original, record.case_id),
                control=None if control is None else picture(control.edited, control.case_id),
                tags=record.tags,
                **columns,
            )
        )
    return made


def _made_controls(records: Sequence[CaseRecord]) -> dict[str, CaseRecord]:
    """Edit → its control, for the control rows that come out the same (ids and all) from `control=` of their edits."""
    controls = {r.case_id: r for r in records if r.arm == "control"}
    edits: dict[str, list[CaseRecord]] = {}
    for record in records:
        if record.control in controls:
            edits.setdefault(record.control, []).append(record)
    pictures = Counter((r.edited, r.original, r.prompt, r.editor, r.seed, r.purifier, r.prompt_kind) for r in controls.values())  # fmt: skip
    found: dict[str, CaseRecord] = {}
    for case_id, its in edits.items():
        control = controls[case_id]
        same = ("original", "prompt", "image_id", "editor", "seed", "purifier", "prompt_kind")
        plain = control.id is None and control.method is None and not control.tags and control.edited is not None
        key = (control.edited, control.original, control.prompt, control.editor, control.seed, control.purifier, control.prompt_kind)  # fmt: skip
        if (
            plain
            and pictures[key] == 1
            # Other columns of a made control are those of the first edit that asked for it.
            and control.category == its[0].category
            and all(getattr(e, name) == getattr(control, name) for e in its for name in same)
        ):
            found |= {edit.case_id: control for edit in its}
    return found


def _kept(report: Report, digest: str, case_id: str) -> bytes:
    png = report.picture(digest)
    if png is None:
        raise UsageError(f"this run holds no pictures (case {case_id}); save it with images=True to judge it again")
    return png


def _renamed(report: Report, label: str) -> pd.DataFrame:
    from .agreeing import ratings_of

    table = ratings_of(report)
    table["rater"] = [f"{r} ({label})" for r in table["rater"]]
    return table


def _report(run: Run) -> Report:
    return run if isinstance(run, Report) else Report.load(run)
