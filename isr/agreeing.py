"""Table I from whatever holds ratings: reports, run directories, tables, CSV files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from .errors import UsageError
from .report import Report
from .schema import Verdict
from .stats.agreement_table import AgreementTable
from .stats.agreement_table import agreement as _agreement

__all__ = ["agreement", "ratings_of"]

HUMAN = "human:"
#: Fingerprint of answers that `isr review` took about cases picked because judges differ.
DISPUTED = "review:disputed"
_COLUMNS = ["rater", "case_id", "image_id", "semantic_mismatch", "degradation", "overall", "arm"]


def agreement(
    human: Any = None, mllm: Any = None, *, level: float = 0.95, n_boot: int = 10_000, seed: int = 0
) -> AgreementTable:
    """The paper's Table I and what belongs beside it: percent agreement, Cohen, Fleiss, Krippendorff's α, Gwet's AC1,
    prevalence and bias indices, with bootstrap intervals over images (docs/definitions.md, section 7).

    Args:
        human, mllm: each a `Report`, a run directory, a data frame or CSV with the columns rater, case_id, [image_id],
            semantic_mismatch, degradation, [overall], or a list of these. Raters called "human:…" in a report count as
            people wherever they stand; those who reviewed only a run's disputed cases are left out (a note says so).
            With people, items are the cases that they rated. Models alone are compared on the immunized arm, as ISR is: on
            controls most edits are plainly fine, and agreement would rise with their number (a note counts them).
        level, n_boot, seed: of the intervals.
    """
    left_out: set[str] = set()
    tables = {"human": _tables("human", human, left_out), "mllm": _tables("mllm", mllm, left_out)}
    people: list[pd.DataFrame] = []
    models: list[pd.DataFrame] = []
    for side, found in tables.items():
        for table, of_report in found:
            named = table["rater"].astype(str).str.startswith(HUMAN)
            if of_report:
                people.append(table[named])
                models.append(table[~named])
            else:
                (people if side == "human" else models).append(table)
    people, models = [t for t in people if len(t)], [t for t in models if len(t)]
    notes: list[str] = []
    if not people:
        models, notes = _immunized(models)
    made = _agreement(people, models, level=level, n_boot=n_boot, seed=seed)
    if left_out:
        who = ", ".join(sorted(left_out))
        notes.append(f"{who}: reviewed disputed cases only, which says nothing of agreement over all; left out")
    return replace(made, notes=(*made.notes, *notes)) if notes else made


def _immunized(tables: list[pd.DataFrame]) -> tuple[list[pd.DataFrame], list[str]]:
    """Tables without the rows of other arms, and a note that counts their cases; as they are where that leaves nothing."""
    others = [t["arm"].notna() & (t["arm"] != "immunized") if "arm" in t else pd.Series(False, t.index) for t in tables]
    kept = [t[~other] for t, other in zip(tables, others, strict=True)]
    if not any(o.any() for o in others) or not any(len(t) for t in kept):
        return tables, []
    gone = pd.concat([t.loc[o, ["case_id", "arm"]] for t, o in zip(tables, others, strict=True) if o.any()])
    arms = ", ".join(sorted(set(gone["arm"])))
    return [t for t in kept if len(t)], [f"{gone['case_id'].nunique()} cases of other arms ({arms}) were left out"]


def _disputed_only(report: Report) -> set[str]:
    """Reviewers whose cases were picked because judges differ, and who did not go on to answer every case."""
    picked = {j.judge for j in report.judgement_records if j.fingerprint == DISPUTED}
    every = {c.case_id for c in report.case_records if c.arm == "immunized"}
    return {name for name in picked if every - {j.case_id for j in report.judgement_records if j.judge == name}}


def ratings_of(report: Report) -> pd.DataFrame:
    """One row per case and judge (of every arm): rater, case_id, image_id, the answers (missing where there is none), arm."""
    cases = {c.case_id: c for c in report.case_records}
    rows = []
    for judgement in report.judgement_records:
        verdict = judgement.answer if isinstance(judgement.answer, Verdict) else None
        rows.append(
            {
                "rater": judgement.judge,
                "case_id": judgement.case_id,
                "image_id": cases[judgement.case_id].image_id,
                "semantic_mismatch": None if verdict is None else verdict.semantic_mismatch,
                "degradation": None if verdict is None else verdict.degradation,
                "overall": None if verdict is None else verdict.overall,
                "arm": cases[judgement.case_id].arm,
            }
        )
    return pd.DataFrame(rows, columns=_COLUMNS)


def _tables(name: str, given: Any, left_out: set[str]) -> list[tuple[pd.DataFrame, bool]]:
    """(table, whether it came from a report) of everything given."""
    if given is None:
        return []
    if isinstance(given, Report):
        if given.lazy:
            raise UsageError(
                f"{name}: this run was judged with lazy=True, so later judges answered only part of the cases, and not a "
                "random part; agreement needs a run without lazy"
            )
        ratings, biased = ratings_of(given), _disputed_only(given)
        left_out |= biased
        return [(ratings[~ratings["rater"].isin(biased)], True)]
    if isinstance(given, pd.DataFrame):
        return [(given, False)]
    if isinstance(given, str | Path):
        path = Path(given)
        if path.is_dir():
            return _tables(name, Report.load(path), left_out)
        if path.suffix.lower() == ".csv":
            return [(read_ratings(path), False)]
        raise UsageError(f"{name}: expected a run directory or a .csv of ratings, got {str(given)!r}")
    if isinstance(given, Sequence):
        return [table for item in given for table in _tables(name, item, left_out)]
    raise UsageError(
        f"{name}: expected a Report, a run directory, a table or a list of these, got {type(given).__name__}"
    )


def read_ratings(path: str | Path) -> pd.DataFrame:
    """A CSV of ratings; true/false, yes/no and 1/0 are read, empty cells are missing, anything else is an error."""
    try:
        table = pd.read_csv(path, dtype=str, encoding="utf-8-sig", keep_default_na=False)
    except (OSError, UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise UsageError(f"ratings: cannot read {str(path)!r}: {error}") from error
    words: dict[str, Any] = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False, "": None}
    for column in ("semantic_mismatch", "degradation", "overall"):
        if column in table.columns:
            unknown = [v for v in table[column] if v.strip().lower() not in words]
            if unknown:
                raise UsageError(
                    f"ratings {str(path)!r}: column {column!r} holds {unknown[0]!r}; expected true, false or empty"
                )
            table[column] = [words[v.strip().lower()] for v in table[column]]
    if "image_id" in table.columns:
        table["image_id"] = [v or None for v in table["image_id"]]
    return table
