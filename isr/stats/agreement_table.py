"""The paper's Table I and what belongs beside it (docs/definitions.md section 7): `isr.agreement(human=…, mllm=…)`.

Raters × items, with columns semantic mismatch, degradation and overall success. In `overall`, people count by their answer to
the third question and models by what follows from their two answers; `overall_derived` uses what follows for both.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from ..errors import UsageError
from ._inputs import FloatArray, cluster_codes, cluster_sums, need_columns, need_level
from .agreement import NO_PAIR, ONE_CATEGORY, ZERO, GroupSums, PairSums
from .bootstrap import canonical, percentile, resample_counts

__all__ = ["COLUMNS", "AgreementTable", "agreement", "reported_table1"]

#: Columns of the table, in the paper's order; the last one has no counterpart there.
COLUMNS = ("semantic_mismatch", "degradation", "overall", "overall_derived")
#: Groups of rater pairs, in the paper's order.
GROUPS = {
    "human_human": "Human to Human",
    "mllm_mllm": "MLLM to MLLM",
    "human_mllm": "Human to MLLM",
}
HEADINGS = {
    "semantic_mismatch": "Semantic Mismatch",
    "degradation": "Quality Degradation",
    "overall": "Final Success (ISR)",
    "overall_derived": "Final Success, derived",
}
MAJORITY = "human:majority"
#: Statistics of pairs with an interval, and without one: absolute values of small differences are biased upwards in resamples.
BOOTSTRAPPED = ("percent", "cohen")
DESCRIPTIVE = ("prevalence_index", "bias_index")
GROUP_STATISTICS = ("fleiss", "alpha", "ac1")
#: Share of resamples that may be undefined before an interval is withheld.
MAX_UNDEFINED = 0.05
#: Resamples per block.
ROWS = 1000


@dataclass(frozen=True)
class AgreementTable:
    """Agreement between and within people and models.

    Attributes:
        table: one row per group, column and statistic: group (human_human, mllm_mllm, human_mllm, majority_mllm, all), column,
            statistic (percent, cohen, fleiss, alpha, ac1, prevalence_index, bias_index; fractions), value, low, high, n_items,
            n_pairs, n_pairs_undefined, reason (why value or interval is absent), interval (method).
        pairs: one row per rater pair and column, without intervals; `human:majority` appears here and nowhere in a mean.
        raters: one row per rater: kind, items rated, share of yes per column, and contradictions (the asked overall answer
            against what follows from the two criteria).
        notes: what was left out or derived.
    """

    table: pd.DataFrame
    pairs: pd.DataFrame
    raters: pd.DataFrame
    n_items: int
    n_images: int
    level: float
    n_boot: int
    seed: int
    notes: tuple[str, ...] = field(default=())

    def value(self, group: str, column: str, statistic: str = "percent") -> float | None:
        """One figure; None where undefined."""
        row = self.row(group, column, statistic)
        return None if pd.isna(row["value"]) else float(row["value"])

    def row(self, group: str, column: str, statistic: str = "percent") -> pd.Series[Any]:
        """One row of `table`."""
        t = self.table
        found = t[(t["group"] == group) & (t["column"] == column) & (t["statistic"] == statistic)]
        if len(found) != 1:
            raise UsageError(
                f"group, column, statistic: no row {(group, column, statistic)}; groups are {sorted(set(t['group']))}, "
                f"columns {list(COLUMNS)}, statistics {sorted(set(t['statistic']))}"
            )
        return found.iloc[0]

    def paper_shape(self, statistic: str = "percent") -> pd.DataFrame:
        """3 × 4 table: the paper's rows and columns, and the derived overall column."""
        rows = {GROUPS[g]: [self.value(g, c, statistic) for c in COLUMNS] for g in GROUPS}
        return pd.DataFrame.from_dict(rows, orient="index", columns=[HEADINGS[c] for c in COLUMNS])

    def to_latex(self, *, intervals: bool = True, reported: bool = True, derived: bool = True) -> str:
        """Table I in the paper's shape (percent agreement), the paper's own figures beside it marked as reported.

        Needs the booktabs package. Undefined figures print as a dash, with the reason below the table.
        """
        columns = COLUMNS if derived else COLUMNS[:3]
        lines = [
            r"\begin{tabular}{l" + "c" * len(columns) + "}",
            r"\toprule",
            " & ".join(["Consistency Metric", *(HEADINGS[c] for c in columns)]) + r" \\",
            r"\midrule",
        ]
        reasons: dict[str, int] = {}
        for group, name in GROUPS.items():
            cells = [name]
            for column in columns:
                row = self.row(group, column)
                if pd.isna(row["value"]):
                    mark = reasons.setdefault(str(row["reason"]), len(reasons) + 1)
                    cells.append(f"--$^{{{mark}}}$")
                    continue
                cell = rf"{100 * row['value']:.0f}\%"
                if intervals and not pd.isna(row["low"]):
                    cell += f" [{100 * row['low']:.0f}, {100 * row['high']:.0f}]"
                cells.append(cell)
            lines.append(" & ".join(cells) + r" \\")
        if reported:
            values = reported_table1()["values"]
            lines.append(r"\midrule")
            for group, name in GROUPS.items():
                cells = [rf"{100 * v:.0f}\%" for v in values[group]] + ["--"] * (len(columns) - 3)
                lines.append(" & ".join([f"{name} (reported)", *cells]) + r" \\")
        lines += [r"\bottomrule", r"\end{tabular}"]
        unit = "images" if self.n_images != self.n_items else "items"
        lines.append(
            f"% {self.n_items} items of {self.n_images} images; brackets: {100 * self.level:g}\\% percentile bootstrap over "
            f"{unit}, {self.n_boot} resamples"
        )
        lines += [rf"\par\footnotesize $^{{{mark}}}$ {reason}" for reason, mark in reasons.items()]
        return "\n".join(lines) + "\n"


def reported_table1() -> dict[str, Any]:
    """The paper's own Table I, marked `reported` (fractions; columns in the order of `COLUMNS` without the last)."""
    loaded: dict[str, Any] = json.loads((files("isr.stats") / "table1_reported.json").read_text("utf-8"))
    return loaded


# --------------------------------------------------------------------------------------------------------- reading


def _answers(name: str, series: pd.Series[Any]) -> FloatArray:
    """1, 0 and NaN from booleans, 0/1 and missing values."""
    values = series.astype(object).to_numpy()
    out = np.full(len(values), np.nan)
    for i, v in enumerate(values):
        if v is None or v is pd.NA or (isinstance(v, float) and np.isnan(v)):
            continue
        if not isinstance(v, (bool, np.bool_, int, np.integer, float)) or v not in (0, 1):
            raise UsageError(f"{name}: expected True, False or missing, got {v!r} in row {i}")
        out[i] = float(v)
    return out


def _read(name: str, ratings: pd.DataFrame | Sequence[pd.DataFrame] | None) -> pd.DataFrame:
    """One long table with rater, case_id, image_id and float columns of answers."""
    if ratings is None:
        ratings = []
    parts = [ratings] if isinstance(ratings, pd.DataFrame) else list(ratings)
    wanted = ["rater", "case_id", "image_id", *COLUMNS[:3]]
    if not parts:
        return pd.DataFrame({c: pd.Series(dtype=object if i < 3 else np.float64) for i, c in enumerate(wanted)})
    read = []
    for part in parts:
        need_columns(name, part, ["rater", "case_id", "semantic_mismatch", "degradation"])
        if bool(part["rater"].isna().any()) or bool(part["case_id"].isna().any()):
            raise UsageError(
                f"{name}: every row needs a rater and a case_id; {int(part['rater'].isna().sum())} lack the first"
            )
        frame = part[["rater", "case_id"]].astype(object).copy()
        frame["image_id"] = part["image_id"].astype(object) if "image_id" in part.columns else None
        for column in COLUMNS[:3]:
            frame[column] = _answers(f"{name}: column {column!r}", part[column]) if column in part.columns else np.nan
        read.append(frame)
    table = pd.concat(read, ignore_index=True)
    twice = table.duplicated(["rater", "case_id"])
    if bool(twice.any()):
        row = table[twice].iloc[0]
        raise UsageError(
            f"{name}: rater {row['rater']!r} answers case {row['case_id']!r} more than once ({int(twice.sum())} such rows); "
            "keep one answer per rater and case (hidden repeats are a check, not a rating)"
        )
    return table


def _image_ids(table: pd.DataFrame, items: list[Any], notes: list[str]) -> npt.NDArray[Any] | None:
    known = table.dropna(subset=["image_id"])[["case_id", "image_id"]].drop_duplicates()
    clash = known["case_id"].duplicated()
    if bool(clash.any()):
        raise UsageError(
            f"image_id: case {known.loc[clash, 'case_id'].iloc[0]!r} has different image_ids in different rows"
        )
    ids = known.set_index("case_id")["image_id"].reindex(items)
    if bool(ids.isna().all()):
        notes.append("no image_id given: items count as independent")
        return None
    if bool(ids.isna().any()):
        raise UsageError(
            f"image_id: {int(ids.isna().sum())} of {len(items)} items have none; give it for all items or for none"
        )
    return ids.to_numpy(dtype=object)


def _derived(mismatch: FloatArray, degradation: FloatArray) -> FloatArray:
    """mismatch or degradation; one yes decides, otherwise a missing answer leaves it missing."""
    either = (mismatch == 1.0) | (degradation == 1.0)
    missing = np.isnan(mismatch) | np.isnan(degradation)
    return np.where(either, 1.0, np.where(missing, np.nan, 0.0))


def _majority(human: FloatArray) -> FloatArray:
    """More than half of the given answers; ties and items without an answer are missing, (items,)."""
    given = ~np.isnan(human)
    yes, n = np.nansum(human, axis=1), given.sum(axis=1)
    return np.where(2 * yes > n, 1.0, np.where((2 * yes < n) & (n > 0), 0.0, np.nan))


# -------------------------------------------------------------------------------------------------------- computing


@dataclass
class _Row:
    """One row of the table before its figures: which of the column's sums it uses, and how."""

    group: str
    statistic: str
    n_pairs: int
    n_items: int
    reason: str = ""


class _Column:
    """One column (a criterion): everything as sums over items, for the data and for resamples alike.

    Raters: people first, then models, then the derived majority of the people (in no group but its own).
    """

    def __init__(self, ratings: FloatArray, humans: int, models: int) -> None:
        everyone = list(range(humans + models))
        people, machines = everyone[:humans], everyone[humans:]
        sets = {
            "human_human": list(combinations(people, 2)),
            "mllm_mllm": list(combinations(machines, 2)),
            "human_mllm": [(h, m) for h in people for m in machines],
        }
        if people and machines:
            ratings = np.column_stack([ratings, _majority(ratings[:, :humans])])
            sets["majority_mllm"] = [(humans + models, m) for m in machines]
        self.listed = [(name, a, b) for name, pairs in sets.items() for a, b in pairs]
        self.pairs = PairSums(ratings, [(a, b) for _, a, b in self.listed], 2)
        self.slices: dict[str, slice] = {}
        self.rows: list[_Row] = []
        start = 0
        for name, pairs in sets.items():
            self.slices[name] = slice(start, start + len(pairs))
            start += len(pairs)
            reason = "" if pairs else _too_few(name, humans, models)
            shared = int(_shared(ratings, pairs).sum())
            for statistic in (*BOOTSTRAPPED, *DESCRIPTIVE):
                self.rows.append(_Row(name, statistic, len(pairs), shared, reason))
        self.groups: dict[str, tuple[GroupSums, slice]] = {}
        features = [self.pairs.items]
        width = self.pairs.items.shape[1]
        for name, members in (("human_human", people), ("mllm_mllm", machines), ("all", everyone)):
            group = GroupSums(ratings[:, members], 2)
            self.groups[name] = (group, slice(width, width + group.items.shape[1]))
            width += group.items.shape[1]
            features.append(group.items)
            reason = "" if len(members) > 1 else _too_few(name, humans, models)
            n_items = int(group.n_items(group.items.sum(axis=0)))
            for statistic in GROUP_STATISTICS:
                self.rows.append(_Row(name, statistic, len(members) * (len(members) - 1) // 2, n_items, reason))
        order = [*GROUPS, "majority_mllm", "all"]
        self.rows.sort(key=lambda row: order.index(row.group))
        self.items: FloatArray = np.concatenate(features, axis=1)

    def per_pair(self, sums: FloatArray) -> dict[str, FloatArray]:
        """All pair statistics, each (pairs, …)."""
        own = sums[: self.pairs.items.shape[1]]
        return {s: getattr(self.pairs, s.removesuffix("_index"))(own) for s in (*BOOTSTRAPPED, *DESCRIPTIVE)}

    def figures(self, sums: FloatArray, *, descriptive: bool) -> dict[tuple[str, str], FloatArray]:
        """(group, statistic) → (…) from sums (m, …)."""
        own = sums[: self.pairs.items.shape[1]]
        out: dict[tuple[str, str], FloatArray] = {}
        for statistic in (*BOOTSTRAPPED, *DESCRIPTIVE) if descriptive else BOOTSTRAPPED:
            values = getattr(self.pairs, statistic.removesuffix("_index"))(own)
            for name, chosen in self.slices.items():
                out[name, statistic] = _mean_over_pairs(values[chosen])
        for name, (group, chosen) in self.groups.items():
            for statistic in GROUP_STATISTICS:
                out[name, statistic] = getattr(group, statistic)(sums[chosen])
        return out


def _mean_over_pairs(values: FloatArray) -> FloatArray:
    """Mean of the defined ones along the first axis; NaN where none is defined."""
    defined = ~np.isnan(values)
    count = defined.sum(axis=0)
    return np.asarray(np.where(defined, values, 0.0).sum(axis=0) / np.where(count > 0, count, np.nan))


def _shared(matrix: FloatArray, pairs: list[tuple[int, int]]) -> npt.NDArray[np.bool_]:
    """Items that at least one of the pairs has in common."""
    given = ~np.isnan(matrix)
    shared = np.zeros(len(matrix), dtype=bool)
    for a, b in pairs:
        shared |= given[:, a] & given[:, b]
    return shared


def _too_few(group: str, humans: int, models: int) -> str:
    return {
        "human_human": f"needs two people, has {humans}",
        "mllm_mllm": f"needs two models, has {models}",
        "human_mllm": f"needs people and models, has {humans} and {models}",
        "all": f"needs two raters, has {humans + models}",
    }[group]


def _bootstrap(
    columns: dict[str, _Column], codes: npt.NDArray[np.int64], n_images: int, n_boot: int, seed: int
) -> dict[str, dict[tuple[str, str], FloatArray]]:
    """Figures of every column on every resample of images; the resamples are drawn once."""
    sums = {
        name: canonical(np.column_stack([cluster_sums(codes, n_images, f) for f in column.items.T])).T
        for name, column in columns.items()
    }
    blocks: dict[str, list[dict[tuple[str, str], FloatArray]]] = {name: [] for name in columns}
    for counts in resample_counts(n_images, n_boot, seed):
        for start in range(0, len(counts), ROWS):
            drawn = counts[start : start + ROWS].T
            for name, column in columns.items():
                blocks[name].append(column.figures(sums[name] @ drawn, descriptive=False))
    return {name: {key: np.concatenate([b[key] for b in found]) for key in found[0]} for name, found in blocks.items()}


def _table_rows(
    name: str, column: _Column, boots: dict[tuple[str, str], FloatArray], level: float
) -> list[dict[str, Any]]:
    total = column.items.sum(axis=0)
    figures, per_pair = column.figures(total, descriptive=True), column.per_pair(total)
    rows = []
    for row in column.rows:
        key = (row.group, row.statistic)
        value = float(figures[key])
        undefined = (
            int(np.isnan(per_pair[row.statistic][column.slices[row.group]]).sum()) if row.statistic in per_pair else 0
        )
        low = high = np.nan
        reason, method = row.reason, ""
        if np.isnan(value):
            reason = reason or (NO_PAIR if row.n_items == 0 else ONE_CATEGORY)
        elif key not in boots:
            reason = "a description of the sample, without interval"
        else:
            finite = boots[key][~np.isnan(boots[key])]
            missing = 1 - len(finite) / len(boots[key])
            if missing > MAX_UNDEFINED:
                reason = f"no interval: undefined in {missing:.0%} of the resamples"
            elif float(np.ptp(finite)) <= ZERO:
                reason = "no interval: every resample gives the same value"
            else:
                (low, high), method = percentile(finite, level), "percentile bootstrap over images"
        rows.append(
            {"group": row.group, "column": name, "statistic": row.statistic, "value": value, "low": low, "high": high,
             "n_items": row.n_items, "n_pairs": row.n_pairs, "n_pairs_undefined": undefined, "reason": reason,
             "interval": method}
        )  # fmt: skip
    return rows


def agreement(
    human: pd.DataFrame | Sequence[pd.DataFrame] | None = None,
    mllm: pd.DataFrame | Sequence[pd.DataFrame] | None = None,
    *,
    level: float = 0.95,
    n_boot: int = 10_000,
    seed: int = 0,
) -> AgreementTable:
    """Agreement of people and models, as in the paper's Table I and with the coefficients that it lacks.

    Args:
        human, mllm: long tables (or several) with columns rater, case_id, semantic_mismatch, degradation and, where there are
            such, image_id and overall; True, False or missing each. People are named `human:<rater>` (the prefix is added).
        level, n_boot, seed: of the percentile bootstrap over images.

    Items are the cases that people rated (all cases where no people are given): the models' other cases would make the rows of
    the table describe different things. A derived `human:majority` in the input is ignored and computed afresh.
    """
    need_level(level)
    people, models = _read("human", human), _read("mllm", mllm)
    notes: list[str] = []
    people["rater"] = [r if str(r).startswith("human:") else f"human:{r}" for r in people["rater"]]
    if bool((people["rater"] == MAJORITY).any()):
        people = people[people["rater"] != MAJORITY]
        notes.append(f"{MAJORITY} in the input was left out: it is derived, and computed here from the raters")
    wrong = [r for r in models["rater"].unique() if str(r).startswith("human:")]
    if wrong:
        raise UsageError(f"mllm: rater {wrong[0]!r} is a person; pass people in human=")
    if len(people) + len(models) == 0:
        raise UsageError("human, mllm: expected ratings of at least two raters, got no rows")
    both = (
        pd.concat([people, models], ignore_index=True)
        if len(people) and len(models)
        else (people if len(people) else models)
    )
    items = list(pd.unique((people if len(people) else models)["case_id"]))
    left_out = both["case_id"].nunique() - len(items)
    if left_out:
        notes.append(f"{left_out} cases that only models judged were left out")
    both = both[both["case_id"].isin(set(items))]
    ids = _image_ids(both, items, notes)
    codes, n_images = cluster_codes("image_id", ids, len(items))
    human_names, model_names = list(pd.unique(people["rater"])), list(pd.unique(models["rater"]))
    names = human_names + model_names
    position = {item: i for i, item in enumerate(items)}
    where = (
        both["case_id"].map(position).to_numpy(),
        both["rater"].map({r: i for i, r in enumerate(names)}).to_numpy(),
    )
    matrices = {}
    for column in COLUMNS[:3]:
        matrices[column] = np.full((len(items), len(names)), np.nan)
        matrices[column][where] = both[column].to_numpy()
    asked = matrices["overall"]
    derived = _derived(matrices["semantic_mismatch"], matrices["degradation"])
    matrices["overall_derived"] = derived
    matrices["overall"] = np.where(np.arange(len(names)) < len(human_names), asked, derived)
    if human_names and np.isnan(asked[:, : len(human_names)]).all():
        notes.append(
            "no person answered the overall question: that column is undefined for people; see overall_derived"
        )
    columns = {c: _Column(matrices[c], len(human_names), len(model_names)) for c in COLUMNS}
    boots = _bootstrap(columns, codes, n_images, n_boot, seed)
    rows = [row for c, column in columns.items() for row in _table_rows(c, column, boots[c], level)]
    pair_rows = [row for c, column in columns.items() for row in _pair_rows(c, column, [*names, MAJORITY])]
    return AgreementTable(
        table=pd.DataFrame(rows),
        pairs=pd.DataFrame(pair_rows),
        raters=_rater_rows(names, len(human_names), matrices, asked, derived),
        n_items=len(items),
        n_images=n_images,
        level=level,
        n_boot=n_boot,
        seed=seed,
        notes=tuple(notes),
    )


def _pair_rows(name: str, column: _Column, names: list[str]) -> list[dict[str, Any]]:
    total = column.items.sum(axis=0)
    figures = column.per_pair(total)
    shared = column.pairs.tables(total[: column.pairs.items.shape[1]]).sum(axis=(1, 2))
    rows = []
    for i, (group, a, b) in enumerate(column.listed):
        n = int(shared[i])
        values = {s: float(v[i]) for s, v in figures.items()}
        reason = NO_PAIR if n == 0 else (f"cohen: {ONE_CATEGORY}" if np.isnan(values["cohen"]) else "")
        rows.append(
            {"group": group, "column": name, "rater_a": names[a], "rater_b": names[b], "n_items": n}
            | values
            | {"reason": reason}
        )
    return rows


def _rater_rows(
    names: list[str], humans: int, matrices: dict[str, FloatArray], asked: FloatArray, derived: FloatArray
) -> pd.DataFrame:
    rows = []
    for i, name in enumerate(names):
        both = ~np.isnan(asked[:, i]) & ~np.isnan(derived[:, i])
        row: dict[str, Any] = {"rater": name, "kind": "human" if i < humans else "mllm"}
        for column in COLUMNS:
            given = matrices[column][:, i][~np.isnan(matrices[column][:, i])]
            row[f"n_{column}"] = len(given)
            row[f"share_{column}"] = float(given.mean()) if len(given) else np.nan
        row["n_asked_and_derived"] = int(both.sum())
        row["contradictions"] = int((asked[both, i] != derived[both, i]).sum())
        rows.append(row)
    return pd.DataFrame(rows)
