"""Numbers of a run in long form: one row per table, method, source → target, purifier and prompt kind.

Everything is computed from the stored rows (cases, judgements, steps), offline. Fractions; nothing is rounded here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from ..controls import arm_cells, pair_up
from ..errors import UsageError
from ..report import Report
from ..schema import CaseRecord, OutcomeValue
from ..stats.compare import compare_methods, mark_best
from ..stats.isr_at_k import isr_at_k
from ..stats.outcomes import isr_table
from ..tables import Matrix
from .dataset import stored_items
from .experiment import Experiment
from .files import ExperimentFiles, StepRow
from .order import ordered_steps, whole
from .plan import NONE
from .records import load_report, unjudged_records

__all__ = ["GROUP", "Results", "mean_of"]

#: Columns of a row of the long table.
GROUP = ("table", "source", "target", "purifier", "method", "prompt_kind")


@dataclass(frozen=True)
class _Case:
    """A judged case with its place in the matrix."""

    record: CaseRecord
    table: str
    source: str
    target: str
    purifier: str
    step: str
    redraw: int

    @classmethod
    def of(cls, record: CaseRecord) -> _Case:
        tags = record.tags
        return cls(
            record, str(tags.get("table") or "main"), str(tags.get("source") or ""), record.editor or "",
            record.purifier or NONE, str(tags.get("step") or ""), whole(tags.get("redraw")),
        )  # fmt: skip

    @property
    def group(self) -> tuple[str, ...]:
        return (
            self.table, self.source, self.target, self.purifier, self.record.method or "", self.record.prompt_kind or "",
        )  # fmt: skip


class Results:
    """The results of a run directory.

    Args:
        folder: of a run made by `isr run` (with judgements or, so far, without).
        n_boot: resamples of the comparisons.
    """

    def __init__(self, folder: str | Path, *, n_boot: int = 10_000) -> None:
        self.files = ExperimentFiles.at(folder)
        self.info = self.files.info()
        self.experiment = Experiment.of(self.info["experiment"], source=repr(str(folder)), stored=True)
        self.steps = ordered_steps(self.files.steps())
        self.n_boot = n_boot

    @cached_property
    def report(self) -> Report | None:
        """The judged cases in the plan's order, or None where nothing is judged yet."""
        return load_report(self.files.folder) if self.files.run.exists() else None

    @cached_property
    def cases(self) -> list[_Case]:
        """Cases of the immunized and the noise arm; of a run that is not judged, those whose edits are there. The noise arm
        stands beside every source of its target."""
        records = self._unjudged if self.report is None else self.report.case_records
        found = [_Case.of(c) for c in records if c.arm != "control"]
        places = dict.fromkeys((c.table, c.source, c.target) for c in found if c.record.arm == "immunized")
        further = {a.title: a.also_in for a in self.experiment.attacks if a.also_in}
        out = []
        for case in found:
            if case.record.arm == "immunized":
                out.append(case)
                shown = further.get(case.record.method or "", ())
                out += [replace(case, table=t) for t in shown if (t, case.source, case.target) in places]
                continue
            beside = [(t, s) for t, s, target in places if target == case.target and t == "main"]
            out += [
                _Case(case.record, t, s, case.target, case.purifier, case.step, case.redraw)
                for t, s in beside or [("main", case.target)]
            ]
        return out

    @cached_property
    def _unjudged(self) -> list[CaseRecord]:
        items = stored_items(self.info, f"{self.files.folder}/experiment.json")
        return unjudged_records(self.experiment, items, self.steps)

    @cached_property
    def records(self) -> dict[str, CaseRecord]:
        """case_id → record, controls among them."""
        return {c.case_id: c for c in (self._unjudged if self.report is None else self.report.case_records)}

    def picture(self, digest: str) -> bytes | None:
        """PNG of a stored picture, hashed again; None where the run holds no pictures.

        Raises:
            IntegrityError: its pixels are not those of its name.
        """
        return self.files.picture(digest)

    @cached_property
    def outcome(self) -> dict[str, OutcomeValue]:
        return {} if self.report is None else {o.case_id: o.value for o in self.report.outcomes}

    @cached_property
    def _ends(self) -> dict[str, tuple[OutcomeValue, OutcomeValue | None]]:
        """case_id → its outcome under the two policies that a band spans, strict and any (None after `lazy`)."""
        if self.report is None:
            return {}
        judged = self.report.matrix
        ends = zip(judged.strict_outcomes, judged.any_outcomes, strict=True)
        return {case.case_id: pair for case, pair in zip(judged.cases, ends, strict=True)}

    @cached_property
    def frame(self) -> pd.DataFrame:
        """One row per case: group columns, image_id, prompt, seed, redraw, arm, outcome (None in a run that is not judged),
        the same under strict and any consensus, control (its outcome or None)."""
        nothing = (None, None)
        return pd.DataFrame(
            [
                {
                    **dict(zip(GROUP, case.group, strict=True)), "image_id": case.record.image_id, "prompt": case.record.prompt,
                    "seed": case.record.seed if case.record.seed is not None else case.redraw, "redraw": case.redraw,
                    "arm": case.record.arm, "outcome": self.outcome.get(case.record.case_id),
                    **dict(zip(("strict", "any"), self._ends.get(case.record.case_id, nothing), strict=True)),
                    "control": self.outcome.get(case.record.control or ""), "case_id": case.record.case_id, "step": case.step,
                }
                for case in self.cases
            ],
            columns=[
                *GROUP, "image_id", "prompt", "seed", "redraw", "arm", "outcome", "strict", "any", "control", "case_id", "step",
            ],
        )  # fmt: skip

    # ------------------------------------------------------------------------------------------------- the long table

    @cached_property
    def long(self) -> pd.DataFrame:
        """ISR with interval, bounds and band, the control arm with excess, ISR@k, the bold rule, and mean metrics."""
        groups: dict[tuple[str, ...], list[_Case]] = {}
        for case in self.cases:
            groups.setdefault(case.group, []).append(case)
        bold = self._bold()
        rows = []
        for key, members in groups.items():
            records = [c.record for c in members]
            row: dict[str, Any] = {"origin": "measured", **dict(zip(GROUP, key, strict=True)), "arm": records[0].arm}
            if self.report is None:
                row["n"] = len(records)
            else:
                row |= self._isr(self.report, records)
                row |= self._control(self.report, records)
                row |= self._at_k(key)
                row |= bold.get(key, {"bold": False, "p_below_best": None})
            row |= self._metrics([c.step for c in members])
            rows.append(row)
        return pd.DataFrame(rows)

    def _isr(self, report: Report, records: Sequence[CaseRecord]) -> dict[str, Any]:
        ids = {r.case_id for r in records}
        judgements = [j for j in self._judgements if j.case_id in ids]
        matrix = Matrix(records, judgements, report.judges, report.policy, lazy=report.lazy)
        return matrix.group(range(len(records))).cells()

    @cached_property
    def _judgements(self) -> list[Any]:
        report = self.report
        return [] if report is None else [j for j in report.judgement_records if j.judge in set(report.judges)]

    def _control(self, report: Report, records: Sequence[CaseRecord]) -> dict[str, Any]:
        wanted = {(c.editor, c.prompt_kind, c.purifier) for c in records}
        noise: list[CaseRecord] = []
        if records[0].arm == "immunized":
            every = [c for c in report.case_records if c.arm == "noise"]
            noise = [c for c in every if (c.editor, c.prompt_kind, c.purifier) in wanted]
        arm = pair_up(records, self.outcome, noise)
        if arm is None:
            return {"excess_reason": "no controls"}
        cells = arm_cells(arm)
        renamed = {"bound_low": "excess_bound_low", "bound_high": "excess_bound_high", "interval": "excess_interval"}
        renamed["reason"] = "excess_reason"
        return {renamed.get(k, k): v for k, v in cells.items() if k not in ("n", "isr")}

    def _at_k(self, key: tuple[str, ...]) -> dict[str, Any]:
        k = self.experiment.seeds.redraws
        if k < 2:
            return {}
        chosen = self._rows(dict(zip(GROUP, key, strict=True)))
        try:
            rate = isr_at_k(chosen, k, seed="redraw")
        except UsageError as error:
            return {"isr_at_k": None, "isr_at_k_reason": str(error)}
        # The same redraws without protection: an editor that fails k times by itself is no immunizer's merit.
        control = isr_at_k(chosen, k, seed="redraw", outcome="control") if chosen["control"].notna().all() else None
        return {
            "control_at_k": None if control is None else control.value,
            "control_at_k_bound_low": None if control is None else control.bounds[0],
            "control_at_k_bound_high": None if control is None else control.bounds[1],
            "isr_at_k": rate.value, "isr_at_k_low": rate.interval.low, "isr_at_k_high": rate.interval.high,
            "isr_at_k_bound_low": rate.bounds[0], "isr_at_k_bound_high": rate.bounds[1], "isr_at_k_n": rate.n, "k": k,
        }  # fmt: skip

    def _rows(self, where: Mapping[str, str]) -> pd.DataFrame:
        keep = pd.Series(True, index=self.frame.index)
        for column, value in where.items():
            keep &= self.frame[column] == value
        return self.frame[keep]

    def _bold(self) -> dict[tuple[str, ...], dict[str, Any]]:
        """The bold rule within each family: the methods of one table, source → target, prompt kind and purifier. Random noise
        is what methods are held against, not one of them: it is in no family and never bold."""
        found: dict[tuple[str, ...], dict[str, Any]] = {}
        family = ["table", "source", "target", "purifier", "prompt_kind"]
        if self.report is None or self.frame.empty or self.frame["image_id"].isna().any():
            return found
        methods = self.frame[self.frame["arm"] == "immunized"]
        for key, cases in methods.groupby(family, sort=False):
            if cases["method"].nunique() < 2:
                continue
            rates = isr_table(cases, ("method",))
            pairs = compare_methods(cases, by=(), key=("image_id", "prompt", "redraw"), n_boot=self.n_boot)
            for _, row in mark_best(rates, pairs, by=()).iterrows():
                table, source, target, purifier, kind = key
                p = float(row["p_below_best"])
                place = (*(str(part) for part in (table, source, target, purifier)), str(row["method"]), str(kind))
                found[place] = {"bold": bool(row["bold"]), "p_below_best": None if math.isnan(p) else p}
        return found

    # ------------------------------------------------------------------------------------------------------- metrics

    @cached_property
    def measured(self) -> dict[str, dict[str, Any]]:
        """Edit step → its metrics against the control edit."""
        found: dict[str, dict[str, Any]] = {}
        for row in self._measurements("control"):
            if not row.spec.get("set"):
                found.setdefault(row.inputs[0].removeprefix("step:"), {}).update(row.result["metrics"])
        return found

    @cached_property
    def _sets(self) -> dict[frozenset[str], dict[str, Any]]:
        return {
            frozenset(i.removeprefix("step:") for i in row.inputs[: len(row.inputs) // 2]): row.result["metrics"]
            for row in self._measurements("control")
            if row.spec.get("set")
        }

    def _measurements(self, against: str) -> Iterable[StepRow]:
        return (r for r in self.steps.values() if r.kind == "measure" and r.spec.get("against") == against)

    def _metrics(self, steps: Sequence[str]) -> dict[str, Any]:
        out: dict[str, Any] = {}
        for name in self.experiment.metrics:
            whole = self._sets.get(frozenset(steps), {}).get(name)
            if whole is not None:
                out[name], out[f"{name}_n"], out[f"{name}_reason"] = (
                    whole["value"],
                    len(set(steps)),
                    whole.get("reason", ""),
                )
                continue
            value, n, reason = mean_of([self.measured.get(s, {}).get(name) for s in steps])
            out[name], out[f"{name}_n"], out[f"{name}_reason"] = value, n, reason
        return out

    @cached_property
    def prompt_measures(self) -> dict[tuple[str, str], dict[str, Any]]:
        """(optimised prompt, unseen prompt) → measure → value, reason, convention."""
        return {
            (row.inputs[0].removeprefix("text:"), row.prompt or ""): row.result["metrics"]
            for row in self._measurements("prompt")
        }

    def similarity_reason(self, measure: str) -> str:
        """Why a measure of prompts has no values; empty where it has."""
        found = [m[measure] for m in self.prompt_measures.values() if measure in m]
        if measure == "words" or any(m["value"] is not None for m in found):
            return ""
        return "; ".join(dict.fromkeys(str(m.get("reason", "")) for m in found)) or "not measured yet"

    def known_prompt(self, step: str) -> str | None:
        """The prompt that the immunizer knew, of an edit step."""
        row = self.steps.get(step)
        made = [] if row is None else [i for i in row.inputs if i.startswith("step:")]
        immunized = self.steps.get(made[0].removeprefix("step:")) if made else None
        return None if immunized is None else immunized.prompt

    @cached_property
    def protection(self) -> pd.DataFrame:
        """What the immunized pictures look like: verified perturbation (largest over all) and metrics against the originals,
        one row per method and source."""
        against = {r.inputs[0].removeprefix("step:"): r.result["metrics"] for r in self._measurements("original")}
        used: dict[tuple[str, str], set[str]] = {}
        for case in self.cases:
            edit = self.steps.get(case.step)
            if edit is not None and edit.inputs[0].startswith("step:"):
                source = "" if case.record.arm == "noise" else case.source  # noise is made on no editor
                used.setdefault((case.record.method or "", source), set()).add(edit.inputs[0].removeprefix("step:"))
        rows = []
        for (method, source), keys in used.items():
            made = [self.steps[k] for k in sorted(keys) if k in self.steps]
            if not made:
                continue
            sizes = [m.result["measured"] for m in made]
            row: dict[str, Any] = {
                "method": method, "source": source, "images": len(made), "budget": _budgets(made),
                "levels_max": max(s["levels"] for s in sizes), "l2_max": max(float(s["l2"]) for s in sizes),
                "seconds_mean": sum(m.seconds or 0.0 for m in made) / len(made),
            }  # fmt: skip
            for name in self.experiment.protection:
                row[name], row[f"{name}_n"], row[f"{name}_reason"] = mean_of(
                    [against.get(m.key, {}).get(name) for m in made]
                )
            rows.append(row)
        return pd.DataFrame(rows)

    @cached_property
    def conventions(self) -> dict[str, tuple[str, bool]]:
        """Metric → (how it was computed, higher means closer pictures)."""
        found: dict[str, tuple[str, bool]] = {}
        for row in self.steps.values():
            for name, told in row.result.get("metrics", {}).items():
                if "convention" in told:
                    found.setdefault(name, (told["convention"], bool(told["higher_is_closer"])))
        wanted = dict.fromkeys((*self.experiment.metrics, *self.experiment.protection))
        return {name: found[name] for name in (*wanted, *sorted(set(found) - set(wanted))) if name in found}


def _budgets(rows: Sequence[StepRow]) -> str:
    told = {"none" if (b := r.result.get("budget")) is None else f"{b['norm']} {b['eps']:g}" for r in rows}
    return ", ".join(sorted(told))


def mean_of(values: Sequence[Mapping[str, Any] | None]) -> tuple[float | None, int, str]:
    """Mean of stored metric values, how many there were, and why others are missing. An infinite value makes the mean
    infinite (PSNR of identical pictures), and it is never left out."""
    numbers = [float(v["value"]) for v in values if v is not None and v["value"] is not None]
    reasons = dict.fromkeys(str(v.get("reason", "")) for v in values if v is not None and v["value"] is None)
    if any(v is None for v in values):
        reasons["not measured yet"] = None
    return (sum(numbers) / len(numbers) if numbers else None), len(numbers), "; ".join(r for r in reasons if r)
