"""Tidy tables from stored records: every number of a report is computed here, from cases and judgements alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from .consensus import any_judge, decide, strict
from .errors import UsageError
from .protocols import Consensus
from .schema import CRITERIA, Answer, CaseRecord, Judgement, NotAsked, NoVerdict, OutcomeValue, Usage, Verdict
from .stats import outcomes as rates
from .stats.intervals import Interval, proportion_interval

__all__ = ["CASE_COLUMNS", "GroupRow", "Matrix", "case_table", "judgement_table"]

#: Columns of the case table, before the free tags.
CASE_COLUMNS = (
    "case_id", "id", "image_id", "method", "editor", "prompt_kind", "category", "seed", "purifier", "arm", "prompt", "control",
    "edited", "original", "edited_name", "original_name",
)  # fmt: skip
_USAGE = tuple(Usage.model_fields)
#: Names that figures of a report use; a tag of the same name would be overwritten by them.
_RESERVED = frozenset(CASE_COLUMNS) | {
    "n", "images", "isr", "low", "high", "bound_low", "bound_high", "band_low", "band_high", "mismatch_rate", "mismatch_n",
    "degradation_rate", "degradation_n", "no_verdicts", "undetermined", "interval", "outcome", "strict_outcome", "any_outcome",
    "judge",
}  # fmt: skip


def case_table(cases: Sequence[CaseRecord]) -> pd.DataFrame:
    """One row per case; tags become columns (a tag with the name of a column or figure of ours is prefixed with "tag_")."""
    rows = []
    for case in cases:
        row = {name: getattr(case, name) for name in CASE_COLUMNS}
        for key, value in case.tags.items():
            row[f"tag_{key}" if key in _RESERVED else key] = value
        rows.append(row)
    table = pd.DataFrame(rows, columns=None if rows else list(CASE_COLUMNS))
    # As objects: beside a missing one, pandas would make floats of whole numbers, and two large seeds would become one.
    table["seed"] = pd.Series([case.seed for case in cases], dtype=object, index=table.index)
    return table


def judgement_table(cases: Sequence[CaseRecord], judgements: Sequence[Judgement]) -> pd.DataFrame:
    """Long form: one row per edit × judge with answer, words, usage, cost and the case's columns.

    `semantic_mismatch`, `degradation`, `defeated` and `overall` are nullable booleans; a missing answer is missing there
    and named in `no_verdict` or `not_asked`.
    """
    rows: list[dict[str, Any]] = []
    for judgement in judgements:
        answer = judgement.answer
        verdict = answer if isinstance(answer, Verdict) else None
        usage = Usage()
        for call in judgement.calls:
            usage = usage + call.usage
        costs = [c.cost for c in judgement.calls if c.cost is not None]
        latencies = [c.latency_s for c in judgement.calls if c.latency_s is not None]
        rows.append(
            {
                "case_id": judgement.case_id,
                "judge": judgement.judge,
                **{key: None if verdict is None else getattr(verdict, key) for key in CRITERIA},
                "defeated": None if verdict is None else verdict.defeated,
                "overall": None if verdict is None else verdict.overall,
                "no_verdict": answer.reason if isinstance(answer, NoVerdict) else None,
                "not_asked": answer.reason if isinstance(answer, NotAsked) else None,
                "detail": answer.detail if isinstance(answer, NoVerdict) else None,
                "observations": None if verdict is None else verdict.observations,
                **{f"reason_{key}": None if verdict is None else verdict.reasons.get(key) for key in CRITERIA},
                **({f"other_{key}": value for key, value in verdict.other.items()} if verdict is not None else {}),
                "calls": len(judgement.calls),
                "attempts": sum(len(c.attempts) for c in judgement.calls),
                "cached": bool(judgement.calls) and all(c.cached for c in judgement.calls),
                "served_model": next((c.served_model for c in reversed(judgement.calls) if c.served_model), None),
                "latency_s": max(latencies) if latencies else None,
                "cost": sum(costs) if costs else None,
                **{name: getattr(usage, name) for name in _USAGE},
                "fingerprint": judgement.fingerprint,
            }
        )
    table = pd.DataFrame(rows)
    if table.empty:
        return pd.DataFrame(columns=["case_id", "judge", *CRITERIA, "defeated", "no_verdict", "not_asked"])
    for key in (*CRITERIA, "defeated", "overall", "cached"):
        table[key] = table[key].astype("boolean")
    known = case_table(cases).drop(columns=["edited", "original", "control"])
    clash = [c for c in known.columns if c in table.columns and c != "case_id"]
    return table.merge(known.rename(columns={c: f"tag_{c}" for c in clash}), on="case_id", how="left", validate="m:1")


@dataclass(frozen=True)
class GroupRow:
    """One group of cases: ISR with everything that must stand beside it."""

    rate: rates.Rate
    band: tuple[float, float | None]
    mismatch: rates.CriterionRate
    degradation: rates.CriterionRate
    n_no_verdict: int
    n_images: int | None

    def cells(self) -> dict[str, Any]:
        """Flat columns for a table; fractions in [0, 1]."""
        interval: Interval = self.rate.interval
        return {
            "n": self.rate.n,
            "images": self.n_images,
            "isr": self.rate.value,
            "low": interval.low,
            "high": interval.high,
            "bound_low": self.rate.bounds[0],
            "bound_high": self.rate.bounds[1],
            "band_low": self.band[0],
            "band_high": self.band[1],
            "mismatch_rate": self.mismatch.value,
            "mismatch_n": self.mismatch.n_judged,
            "degradation_rate": self.degradation.value,
            "degradation_n": self.degradation.n_judged,
            "no_verdicts": self.n_no_verdict,
            "undetermined": self.rate.n_undetermined,
            "interval": interval.method,
        }


class Matrix:
    """Cases × judges, as the statistics want them.

    Args:
        cases: rows, in order. judgements: any order; one per (case, judge).
        judges: names in the order of the consensus. policy: the consensus.
        lazy: later judges were skipped where they could not change a strict consensus.

    Raises:
        UsageError: a case without a judgement of a judge (nothing is assumed for it).
    """

    def __init__(
        self,
        cases: Sequence[CaseRecord],
        judgements: Sequence[Judgement],
        judges: Sequence[str],
        policy: Consensus,
        *,
        lazy: bool = False,
    ) -> None:
        self.cases = tuple(cases)
        self.judges = tuple(judges)
        self.policy = policy
        self.lazy = lazy
        given = {(j.case_id, j.judge): j.answer for j in judgements}
        self.answers: list[tuple[Answer, ...]] = []
        for case in self.cases:
            missing = [name for name in self.judges if (case.case_id, name) not in given]
            if missing:
                raise UsageError(
                    f"case {case.case_id} has no judgement of {', '.join(missing)}; the run is incomplete. Run it again "
                    "with the same arguments (a batch: isr batch collect): stored answers are not asked twice."
                )
            self.answers.append(tuple(given[case.case_id, name] for name in self.judges))

    @cached_property
    def outcomes(self) -> list[OutcomeValue]:
        return self._decide(self.policy)

    @cached_property
    def strict_outcomes(self) -> list[OutcomeValue]:
        return self._decide(strict)

    @cached_property
    def any_outcomes(self) -> list[OutcomeValue] | list[None]:
        """All None after `lazy`: what the judges that it skipped would have said is not known."""
        return [None] * len(self.cases) if self.lazy else self._decide(any_judge)

    def _decide(self, policy: Consensus) -> list[OutcomeValue]:
        return [decide(policy, answers) for answers in self.answers]

    @cached_property
    def image_ids(self) -> list[str] | None:
        """Clusters, or None where any case lacks one (then cases count as independent, and the report says so)."""
        ids = [case.image_id for case in self.cases]
        return None if any(i is None for i in ids) else [str(i) for i in ids]

    def criterion(self, key: str) -> np.ndarray[Any, np.dtype[np.float64]]:
        """(cases, judges) of 1, 0 and NaN."""
        return np.array(
            [[float(getattr(a, key)) if isinstance(a, Verdict) else np.nan for a in row] for row in self.answers],
            dtype=np.float64,
        ).reshape(len(self.answers), len(self.judges))

    def group(self, rows: Sequence[int], *, level: float = 0.95) -> GroupRow:
        """The numbers of a subset of the cases (row indices)."""
        index = list(rows)
        ids = None if self.image_ids is None else [self.image_ids[i] for i in index]
        criteria = {key: self._criteria[key][index] for key in CRITERIA}
        return GroupRow(
            rate=rates.isr([self.outcomes[i] for i in index], ids, level=level),
            band=rates.band([self.strict_outcomes[i] for i in index], [self.any_outcomes[i] for i in index]),
            mismatch=rates.criterion_rate(criteria["semantic_mismatch"], ids, level=level),
            degradation=rates.criterion_rate(criteria["degradation"], ids, level=level),
            n_no_verdict=sum(isinstance(a, NoVerdict) for i in index for a in self.answers[i]),
            n_images=None if ids is None else len(set(ids)),
        )

    @cached_property
    def _criteria(self) -> Mapping[str, np.ndarray[Any, np.dtype[np.float64]]]:
        return {key: self.criterion(key) for key in CRITERIA}

    def groups(self, keys: Sequence[Sequence[Any]], *, level: float = 0.95) -> list[tuple[tuple[Any, ...], GroupRow]]:
        """Numbers of every group, in order of first appearance."""
        return [(key, self.group(rows, level=level)) for key, rows in self.members(keys)]

    def members(self, keys: Sequence[Sequence[Any]]) -> list[tuple[tuple[Any, ...], list[int]]]:
        """Row indices by group. keys: per column, one value per case; no column: everything is one group."""
        found: dict[tuple[Any, ...], list[int]] = {}
        rows = zip(*keys, strict=True) if keys else iter([()] * len(self.cases))
        for row, key in enumerate(rows):
            found.setdefault(tuple(_plain(k) for k in key), []).append(row)
        return list(found.items())

    def by_judge(self, *, level: float = 0.95) -> pd.DataFrame:
        """Each judge alone: its defeat, mismatch and degradation rates over its own verdicts, and what is missing."""
        rows: list[dict[str, Any]] = []
        for column, name in enumerate(self.judges):
            answers = [row[column] for row in self.answers]
            told = [i for i, a in enumerate(answers) if isinstance(a, Verdict)]
            verdicts = [a for a in answers if isinstance(a, Verdict)]
            ids = None if self.image_ids is None else [self.image_ids[i] for i in told]
            row: dict[str, Any] = {"judge": name, "cases": len(answers), "verdicts": len(verdicts)}
            reasons = Counter(a.reason for a in answers if isinstance(a, NoVerdict))
            row["no_verdicts"] = sum(reasons.values())
            row["not_asked"] = sum(isinstance(a, NotAsked) for a in answers)
            for what in ("defeated", *CRITERIA):
                values = [getattr(v, what) for v in verdicts]
                absent = not values or self.lazy
                interval = None if absent else proportion_interval(np.array(values, dtype=float), ids, level=level)
                row[f"{what}_rate"] = None if absent else float(np.mean(values))
                row[f"{what}_low"] = None if interval is None else interval.low
                row[f"{what}_high"] = None if interval is None else interval.high
            row["absent"] = "lazy" if self.lazy else ("no verdicts" if not verdicts else "")
            row["why_no_verdict"] = ", ".join(f"{n} × {reason}" for reason, n in reasons.most_common())
            rows.append(row)
        return pd.DataFrame(rows)

    def disagreements(self) -> list[int]:
        """Rows on which two judges that gave a verdict differ on `defeated` or on a criterion."""
        found = []
        for index, row in enumerate(self.answers):
            said = {(v.semantic_mismatch, v.degradation) for v in row if isinstance(v, Verdict)}
            if len(said) > 1:
                found.append(index)
        return found


def _plain(value: Any) -> Any:
    return None if value is None or (isinstance(value, float) and np.isnan(value)) else value
