"""How far to trust the judges: a run held against people's ratings (docs/definitions.md, section 9)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from .agreeing import read_ratings
from .errors import UsageError
from .report import Report
from .schema import CRITERIA, CaseRecord, Verdict
from .stats.calibration import Confusion, confusion, error_correlation, rogan_gladen
from .stats.dawid_skene import dawid_skene
from .stats.intervals import proportion_interval
from .stats.prediction_powered import MIN_LABELS, corrected_isr

__all__ = ["Calibration", "calibrate", "majority_labels"]

HUMAN = "human:"
MAJORITY = "human:majority"
CONSENSUS = "consensus"
FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Calibration:
    """What people's ratings say of a run's judges.

    Attributes:
        confusion: one row per judge and criterion (semantic_mismatch, degradation, defeated), and for the consensus outcome on
            defeated: true_positive, false_positive, false_negative, true_negative, left_out, sensitivity and specificity with
            low and high, reason. Weighted by 1 / inclusion probability.
        corrected: prediction-powered ISR per method and pooled (`stats.prediction_powered.corrected_isr`), None where refused.
        refused: why there is no corrected ISR, or "".
        rogan_gladen: method (missing: pooled), value, low, high, reason. It assumes one sensitivity and specificity for all
            methods, which the corrected ISR does not; it stands beside that, not instead.
        errors: correlation of the judges' errors, pair by pair, weighted likewise.
        raters: per rater sensitivity and specificity by Dawid–Skene, without any truth; empty under three raters.
        next_items: unlabelled cases worth a look (judges disagree, or the outcome is open), most urgent first. Not a random
            sample: their labels never enter a correction.
        notes: what was left out. clustered: by image; False where a case has no image_id, and cases count as independent.
    """

    confusion: pd.DataFrame
    corrected: pd.DataFrame | None
    refused: str
    rogan_gladen: pd.DataFrame
    errors: pd.DataFrame
    raters: pd.DataFrame
    next_items: pd.DataFrame
    n_labelled: int
    level: float
    notes: tuple[str, ...]
    clustered: bool = True

    def __str__(self) -> str:
        def show(table: pd.DataFrame) -> str:
            return table.to_string(index=False, float_format=lambda v: f"{v:.3f}", na_rep="–")

        parts = [
            f"{self.n_labelled} cases with a majority of people; {100 * self.level:g} % intervals, "
            + ("clustered by image" if self.clustered else "cases taken as independent"),
            "Judges against people\n" + show(self.confusion.drop(columns="reason")),
        ]
        if self.corrected is None:
            parts.append(f"Corrected ISR: refused. {self.refused}")
        else:
            table = self.corrected.assign(method=[m if isinstance(m, str) else "all" for m in self.corrected["method"]])
            parts.append("ISR corrected by prediction-powered inference\n" + show(table))
        parts.append("Rogan–Gladen beside it (one sensitivity and specificity for all methods)\n" + show(
            self.rogan_gladen.assign(method=[m if isinstance(m, str) else "all" for m in self.rogan_gladen["method"]])
        ))  # fmt: skip
        if len(self.errors):
            parts.append("Do the judges err together?\n" + show(self.errors))
        if len(self.raters):
            parts.append("Raters by Dawid–Skene\n" + show(self.raters))
        if len(self.next_items):
            parts.append(
                f"{len(self.next_items)} unlabelled cases worth a look (not a random sample; never in a correction), the first:\n"
                + show(self.next_items.head(10))
            )
        return "\n\n".join([*parts, *(f"! {note}" for note in self.notes)])


def majority_labels(ratings: pd.DataFrame) -> pd.DataFrame:
    """One row per case: case_id, semantic_mismatch, degradation and defeated of the raters' majority (1, 0, NaN), n_raters,
    inclusion_probability (NaN where the case was not drawn at random).

    A majority is more than half of all raters of the case: "cannot judge" and ties leave it missing. A rater's `defeated` is
    mismatch or degradation; one yes decides it, otherwise a missing answer leaves it missing.
    """
    people = ratings[[str(r) != MAJORITY for r in ratings["rater"]]]
    twice = people.duplicated(["rater", "case_id"])
    if bool(twice.any()):
        row = people[twice].iloc[0]
        raise UsageError(f"ratings: {row['rater']} rates case {row['case_id']} more than once")
    said = {key: _numbers(people[key]) for key in CRITERIA}
    mismatch, degradation = (said[key] for key in CRITERIA)
    open_ = np.isnan(mismatch) | np.isnan(degradation)
    said["defeated"] = np.where((mismatch == 1) | (degradation == 1), 1.0, np.where(open_, np.nan, 0.0))
    table = pd.DataFrame({"case_id": people["case_id"].astype(str).to_numpy(), **said})
    if "inclusion_probability" in people.columns:
        table["inclusion_probability"] = pd.to_numeric(people["inclusion_probability"], errors="coerce").to_numpy()
    else:
        table["inclusion_probability"] = np.nan
    rows: list[dict[str, Any]] = []
    for case_id, group in table.groupby("case_id", sort=False):
        probability = group["inclusion_probability"].unique()
        if len(probability) > 1:
            raise UsageError(
                f"ratings: case {case_id} stands with different inclusion probabilities: {probability.tolist()}. Ratings of two "
                "samples of one run cannot be put together like this; give those of one sample, and leave the column empty in others"
            )
        found: dict[str, Any] = {"case_id": case_id}
        for key in (*CRITERIA, "defeated"):
            yes, no = int((group[key] == 1).sum()), int((group[key] == 0).sum())
            found[key] = 1.0 if 2 * yes > len(group) else 0.0 if 2 * no > len(group) else np.nan
        rows.append(found | {"n_raters": len(group), "inclusion_probability": probability[0]})
    return pd.DataFrame(rows, columns=["case_id", *CRITERIA, "defeated", "n_raters", "inclusion_probability"])


def _numbers(series: pd.Series[Any]) -> FloatArray:
    return np.array([np.nan if v is None or pd.isna(v) else float(bool(v)) for v in series.astype(object)])


def calibrate(
    ratings: pd.DataFrame | str | Path | Sequence[Any], run: Report | str | Path, *, level: float = 0.95
) -> Calibration:
    """Hold a run against people's ratings.

    Args:
        ratings: the export of a study (rater, case_id, semantic_mismatch, degradation, inclusion_probability), a CSV of it, or
            a list of these. Without inclusion probabilities everything is unweighted and there is no corrected ISR.
        run: the judged run that the study was drawn from, with every judge asked about every case (not `lazy`).
        level: of all intervals.

    Raises:
        UsageError: no rated case belongs to the run's immunized arm, or the run was lazy.
    """
    report = run if isinstance(run, Report) else Report.load(run)
    if report.lazy:
        raise UsageError(
            "run: it was judged with lazy=True, so later judges answered a part that is not random; judge it without"
        )
    table = pd.concat(
        [t if isinstance(t, pd.DataFrame) else read_ratings(t) for t in _listed(ratings)], ignore_index=True
    )
    for column in ("rater", "case_id", *CRITERIA):
        if column not in table.columns:
            raise UsageError(
                f"ratings: the column {column!r} is missing; they have {', '.join(map(str, table.columns))}"
            )
    cases = [c for c in report.case_records if c.arm == "immunized"]
    index = {c.case_id: i for i, c in enumerate(cases)}
    notes: list[str] = []
    labels = majority_labels(table)
    foreign = int((~labels["case_id"].isin(set(index))).sum())
    labels = labels[labels["case_id"].isin(set(index))].reset_index(drop=True)
    if foreign:
        notes.append(f"{foreign} rated cases are not in this run's immunized arm and were left out")
    if labels.empty:
        raise UsageError(
            "ratings: none of the rated cases is in this run's immunized arm; is it the run the study was drawn from?"
        )
    drawn = labels["inclusion_probability"].notna()
    if not drawn.any():
        notes.append("no inclusion probabilities: shares are those of the rated items, unweighted")
        sampled, weights = labels, None
    else:
        if not drawn.all():
            notes.append(f"{int((~drawn).sum())} rated cases were not drawn at random; they enter nothing here")
        sampled = labels[drawn].reset_index(drop=True)
        weights = (1 / sampled["inclusion_probability"]).to_numpy(dtype=np.float64)
    outcome = {o.case_id: o.value for o in report.outcomes}
    answers = {(j.case_id, j.judge): j.answer for j in report.judgement_records}
    ids = None if any(c.image_id is None for c in cases) else [c.image_id for c in cases]
    if ids is None:
        notes.append(
            "cases without image_id: all cases count as independent, so the intervals are too narrow where images repeat"
        )
    rows = [index[c] for c in sampled["case_id"]]
    clusters = None if ids is None else [ids[i] for i in rows]
    by_judge = {
        key: pd.DataFrame(
            {name: [_said(answers.get((c, name)), key) for c in sampled["case_id"]] for name in report.judges}
        )
        for key in (*CRITERIA, "defeated")
    }
    found = [
        (name, key, confusion(by_judge[key][name], sampled[key], clusters, weights=weights, level=level))
        for name in report.judges
        for key in by_judge
    ]
    success = [1.0 if outcome[c] == "success" else 0.0 for c in sampled["case_id"]]
    together = confusion(success, sampled["defeated"], clusters, weights=weights, level=level)
    found.append((CONSENSUS, "defeated", together))
    frame = pd.DataFrame(
        {"case_id": [c.case_id for c in cases], "outcome": [outcome[c.case_id] for c in cases], "method": [c.method for c in cases],
         "image_id": [c.image_id for c in cases]}
    )  # fmt: skip
    corrected, refused = None, ""
    usable = int((labels["defeated"].notna() & drawn).sum())
    if usable < MIN_LABELS:
        refused = f"It needs at least {MIN_LABELS} randomly drawn items with known inclusion probability and a majority; there are {usable}."
    else:
        corrected = corrected_isr(
            frame if frame["method"].notna().any() else frame.drop(columns="method"),
            labels[["case_id", "defeated", "inclusion_probability"]],
            image=None if ids is None else "image_id", level=level,
        )  # fmt: skip
        notes += list(corrected.attrs.get("notes", ()))
    return Calibration(
        confusion=pd.DataFrame([_confusion_row(*f) for f in found]),
        corrected=corrected,
        refused=refused,
        rogan_gladen=_rogan_gladen(frame, ids, together, level),
        errors=error_correlation(by_judge["defeated"], sampled["defeated"], weights=weights),
        raters=_rater_table(table[table["case_id"].isin(set(index)) & (table["rater"] != MAJORITY)]),
        next_items=_next_items(report, cases, set(labels["case_id"]), outcome),
        n_labelled=int(sampled["defeated"].notna().sum()),
        level=level,
        notes=tuple(notes),
        clustered=ids is not None,
    )


def _listed(ratings: Any) -> list[Any]:
    return list(ratings) if isinstance(ratings, Sequence) and not isinstance(ratings, str) else [ratings]


def _said(answer: Any, key: str) -> float:
    return float(getattr(answer, key)) if isinstance(answer, Verdict) else float("nan")


def _confusion_row(judge: str, criterion: str, found: Confusion) -> dict[str, Any]:
    row: dict[str, Any] = {
        "judge": judge, "criterion": criterion, "tp": found.true_positive, "fp": found.false_positive,
        "fn": found.false_negative, "tn": found.true_negative, "left_out": found.n_left_out,
    }  # fmt: skip
    for name in ("sensitivity", "specificity"):
        share = getattr(found, name)
        row[name] = np.nan if share.value is None else share.value
        row[f"{name}_low"] = np.nan if share.interval is None else share.interval.low
        row[f"{name}_high"] = np.nan if share.interval is None else share.interval.high
    row["reason"] = found.sensitivity.reason or found.specificity.reason
    return row


def _rogan_gladen(frame: pd.DataFrame, ids: list[Any] | None, judged: Confusion, level: float) -> pd.DataFrame:
    groups: list[tuple[Any, npt.NDArray[np.bool_]]] = [(None, np.ones(len(frame), dtype=bool))]
    groups += [(m, (frame["method"] == m).to_numpy()) for m in frame["method"].dropna().unique()]
    rows = []
    for method, chosen in groups:
        hits = (frame["outcome"][chosen] == "success").to_numpy(dtype=np.float64)
        clusters = None if ids is None else [i for i, keep in zip(ids, chosen, strict=True) if keep]
        found = rogan_gladen(float(hits.mean()), proportion_interval(hits, clusters, level=level), judged)
        value, low, high = (np.nan if v is None else v for v in (found.value, found.low, found.high))
        rows.append(
            {
                "method": method,
                "isr": float(hits.mean()),
                "value": value,
                "low": low,
                "high": high,
                "reason": found.reason,
            }
        )
    return pd.DataFrame(rows)


def _rater_table(ratings: pd.DataFrame) -> pd.DataFrame:
    """Dawid–Skene on `defeated`: raters' error rates without a truth."""
    table = ratings.assign(_case=ratings["case_id"].astype(str))
    mismatch, degradation = _numbers(table["semantic_mismatch"]), _numbers(table["degradation"])
    open_ = np.isnan(mismatch) | np.isnan(degradation)
    table["_defeated"] = np.where((mismatch == 1) | (degradation == 1), 1.0, np.where(open_, np.nan, 0.0))
    wide = table.pivot(index="_case", columns="rater", values="_defeated").dropna(how="all")
    if wide.shape[1] < 3 or wide.empty:
        return pd.DataFrame(columns=["rater", "rated", "sensitivity", "specificity"])
    found = dawid_skene(wide.to_numpy(dtype=np.float64))
    return pd.DataFrame(
        {"rater": wide.columns.to_list(), "rated": wide.notna().sum().to_numpy(), "sensitivity": found.sensitivity,
         "specificity": found.specificity}
    )  # fmt: skip


def _next_items(
    report: Report, cases: Sequence[CaseRecord], labelled: set[str], outcome: dict[str, Any]
) -> pd.DataFrame:
    """Unlabelled cases where judges differ on `defeated` (first), on a criterion, or leave the outcome open."""
    answers = {(j.case_id, j.judge): j.answer for j in report.judgement_records}
    rows = []
    for case in cases:
        if case.case_id in labelled:
            continue
        verdicts = [a for n in report.judges if isinstance(a := answers.get((case.case_id, n)), Verdict)]
        if len({v.defeated for v in verdicts}) > 1:
            rank, why = 0, "judges disagree on the outcome"
        elif outcome[case.case_id] == "undetermined":
            rank, why = 1, "undetermined"
        elif len({(v.semantic_mismatch, v.degradation) for v in verdicts}) > 1:
            rank, why = 2, "judges disagree on a criterion"
        else:
            continue
        rows.append({"case_id": case.case_id, "method": case.method, "id": case.id, "why": why, "_rank": rank})
    table = pd.DataFrame(rows, columns=["case_id", "method", "id", "why", "_rank"])
    return table.sort_values("_rank", kind="stable").drop(columns="_rank").reset_index(drop=True)
