"""Labels of other tools in, and people's answers as judges `human:<rater>` of a report."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from isr.agreeing import read_ratings
from isr.errors import UsageError
from isr.report import Report
from isr.schema import CRITERIA, Judgement, NoVerdict, Verdict

__all__ = ["import_labels", "join_ratings"]

HUMAN = "human:"
_YES = {"true", "yes", "1", "y"}
_NO = {"false", "no", "0", "n"}
_CANNOT = {"", "cannot judge", "cannot_judge", "na", "n/a", "nan", "skip", "unsure"}
_OPTIONAL = ("overall",)
_STANDARD = ("rater", "case_id", "criterion", "answer", *CRITERIA, *_OPTIONAL)


def import_labels(
    path: str | Path, report: Report, *, rename: Mapping[str, str] | None = None, id_column: str | None = None
) -> pd.DataFrame:
    """A CSV of another labelling tool in our form: rater, case_id, image_id, semantic_mismatch, degradation, overall.

    Two shapes are read: one row per rater and item with a column per criterion, and the long one with `criterion` and
    `answer` columns. Answers: yes/no, true/false, 1/0; empty or "cannot judge" is no answer; anything else is an error.

    Args:
        rename: our column name → theirs, e.g. {"rater": "annotator"}. id_column: their column that holds the manifest's
            `id` instead of a case_id; the run translates it.
    """
    try:
        table = pd.read_csv(path, dtype=str, encoding="utf-8-sig", keep_default_na=False)
    except (OSError, UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise UsageError(f"labels: cannot read {str(path)!r}: {error}") from error
    for ours, theirs in (rename or {}).items():
        if ours not in _STANDARD:
            raise UsageError(f"columns: {ours!r} is none of ours; expected one of {', '.join(_STANDARD)}")
        if theirs not in table.columns:
            raise UsageError(f"columns: {str(path)!r} has no column {theirs!r}; it has {', '.join(table.columns)}")
        table = table.rename(columns={theirs: ours})
    if id_column is not None:
        table["case_id"] = _by_id(table, id_column, report, path)
    for needed in ("rater", "case_id"):
        if needed not in table.columns:
            raise UsageError(
                f"labels {str(path)!r}: the column {needed!r} is missing; it has {', '.join(table.columns)}. Say which one it "
                f"is, for example --column {needed}=NAME"
            )
    if {"criterion", "answer"} <= set(table.columns):
        table = _wide(table, path)
    image = {c.case_id: c.image_id for c in report.case_records}
    unknown = [c for c in table["case_id"] if c not in image]
    if unknown:
        raise UsageError(
            f"labels {str(path)!r}: {len(unknown)} rows name no case of this run, the first is {unknown[0]!r}; pass the run "
            "they belong to, or --id-column if they carry the manifest's ids"
        )
    for name in table["rater"]:
        if not name.strip() or name.strip().removeprefix(HUMAN) in ("", "majority"):
            raise UsageError(
                f"labels {str(path)!r}: {name!r} is no name for a rater; it is empty, or that of the people's majority, which is "
                "derived and never read"
            )
    out = pd.DataFrame({"rater": [r if r.startswith(HUMAN) else HUMAN + r for r in table["rater"].str.strip()]})
    out["case_id"] = table["case_id"].to_numpy()
    out["image_id"] = [image[c] for c in out["case_id"]]
    for key in (*CRITERIA, *_OPTIONAL):
        if key not in table.columns and key in CRITERIA:
            raise UsageError(f"labels {str(path)!r}: no answers for {key!r}")
        given = table[key] if key in table.columns else [""] * len(table)
        out[key] = pd.array([_read(v, key, path) for v in given], dtype="boolean")
    twice = out.duplicated(["rater", "case_id"])
    if bool(twice.any()):
        row = out[twice].iloc[0]
        raise UsageError(f"labels {str(path)!r}: {row['rater']} answers case {row['case_id']} more than once")
    if "inclusion_probability" in table.columns:
        out["inclusion_probability"] = [_probability(v, path) for v in table["inclusion_probability"]]
    return out


def _by_id(table: pd.DataFrame, column: str, report: Report, path: str | Path) -> list[str]:
    if column not in table.columns:
        raise UsageError(f"id-column: {str(path)!r} has no column {column!r}; it has {', '.join(table.columns)}")
    known: dict[str, list[str]] = {}
    for case in report.case_records:
        if case.id is not None:
            known.setdefault(case.id, []).append(case.case_id)
    found = []
    for value in table[column]:
        cases = known.get(value, [])
        if len(cases) != 1:
            raise UsageError(
                f"labels {str(path)!r}: id {value!r} names {len(cases)} cases of this run, expected exactly 1"
            )
        found.append(cases[0])
    return found


def _wide(table: pd.DataFrame, path: str | Path) -> pd.DataFrame:
    if "kind" in table.columns:  # our own tidy export: checks and training are no ratings
        table = table[table["kind"] == "rating"]
    wanted = (*CRITERIA, *_OPTIONAL)
    unknown = sorted(set(table["criterion"]) - set(wanted))
    if not set(CRITERIA) <= set(table["criterion"]):
        raise UsageError(
            f"labels {str(path)!r}: expected the criteria {', '.join(CRITERIA)} in column 'criterion'"
            + (f", got {', '.join(unknown[:5])}" if unknown else "")
        )
    twice = table.duplicated(["rater", "case_id", "criterion"])
    if bool(twice.any()):
        row = table[twice].iloc[0]
        raise UsageError(
            f"labels {str(path)!r}: {row['rater']} answers {row['criterion']} of case {row['case_id']} more than once"
        )
    wide = table.pivot(index=["rater", "case_id"], columns="criterion", values="answer").reset_index()
    wide = wide.fillna("")
    if "inclusion_probability" in table.columns:
        known = table[["case_id", "inclusion_probability"]].drop_duplicates()
        if bool((twice := known["case_id"].duplicated()).any()):
            raise UsageError(
                f"labels {str(path)!r}: case {known['case_id'][twice].iloc[0]} stands with different inclusion probabilities"
            )
        wide = wide.merge(known, on="case_id", how="left")
    return wide


def _probability(value: Any, path: str | Path) -> float:
    """NaN for an empty cell: not drawn at random."""
    if not str(value).strip():
        return float("nan")
    try:
        number = float(value)
    except ValueError:
        number = float("nan")
    if not 0 < number <= 1:
        raise UsageError(
            f"labels {str(path)!r}: inclusion_probability holds {value!r}; expected a number in (0, 1] with a decimal point, or empty "
            "for items that were not drawn at random"
        )
    return number


def _read(value: Any, key: str, path: str | Path) -> bool | None:
    word = str(value).strip().lower()
    if word in _YES:
        return True
    if word in _NO:
        return False
    if word in _CANNOT:
        return None
    raise UsageError(f"labels {str(path)!r}: column {key!r} holds {value!r}; expected yes, no, or empty (cannot judge)")


def join_ratings(report: Report, ratings: pd.DataFrame | str | Path) -> Report:
    """The report with people as further judges `human:<rater>`; they never enter its consensus.

    "Cannot judge" on a criterion becomes NoVerdict("abstained"). Cases that nobody was asked about get no row.

    Args:
        ratings: the exported table (or its CSV): rater, case_id, semantic_mismatch, degradation, [overall].

    Raises:
        UsageError: a case that is not in the run, or a rater who is in it already with another answer.
    """
    table = ratings if isinstance(ratings, pd.DataFrame) else read_ratings(ratings)
    known = {c.case_id for c in report.case_records}
    stored = {(j.case_id, j.judge): j.answer for j in report.judgement_records}
    added: list[Judgement] = []
    for row in table.to_dict("records"):
        name = str(row["rater"])
        judge = name if name.startswith(HUMAN) else HUMAN + name
        case_id = str(row["case_id"])
        if case_id not in known:
            raise UsageError(f"ratings: case {case_id!r} is not in this run")
        answer = _answer(row)
        before = stored.get((case_id, judge))
        if before is not None:
            if before != answer:
                raise UsageError(f"ratings: the run already holds another answer of {judge} on case {case_id}")
            continue
        added.append(Judgement(case_id=case_id, judge=judge, fingerprint="human", answer=answer))
    return Report(
        report.lock, report.case_records, [*report.judgement_records, *added], consensus=report.policy, picture=report.picture
    )  # fmt: skip


def _answer(row: Mapping[Any, Any]) -> Verdict | NoVerdict:
    said = {
        key: None if row.get(key) is None or pd.isna(row[key]) else bool(row[key]) for key in (*CRITERIA, *_OPTIONAL)
    }
    mismatch, degradation = said["semantic_mismatch"], said["degradation"]
    if mismatch is None or degradation is None:
        missing = [key for key in CRITERIA if said[key] is None]
        return NoVerdict(reason="abstained", detail=f"cannot judge: {', '.join(missing)}")
    return Verdict(semantic_mismatch=mismatch, degradation=degradation, overall=said["overall"])
