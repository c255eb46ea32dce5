"""Pictures of a report (needs matplotlib): ISR by method, agreement matrix, paired differences, disagreement by category.

Every function takes a tidy table, returns a `matplotlib.figure.Figure` and touches no global state (no pyplot, no backend,
no window); save it with `figure.savefig("isr.pdf")`. Names come from users and are drawn as plain text, never as mathematics.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ..errors import UsageError, missing_extra
from ..stats.intervals import proportion_interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from ..stats.agreement_table import AgreementTable

__all__ = ["disagreement_table", "plot_agreement", "plot_differences", "plot_disagreement", "plot_isr"]

# Okabe–Ito: told apart with every common colour blindness, and in print.
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#8A8A8A"
CRITERION_COLOURS = {"semantic_mismatch": BLUE, "degradation": ORANGE, "defeated": GREEN}
CRITERION_NAMES = {
    "semantic_mismatch": "semantic mismatch",
    "degradation": "quality degradation",
    "defeated": "defeated (either)",
}


@contextmanager
def _figure(width: float, height: float) -> Iterator[tuple[Figure, Axes]]:
    """A figure with one axes, under settings that a user's matplotlibrc cannot turn into LaTeX runs or clipped labels."""
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise missing_extra("Drawing a picture", "plots", "matplotlib") from error
    settings: Any = {
        "text.usetex": False, "axes.spines.top": False, "axes.spines.right": False, "font.size": 9,
        "axes.titlesize": 10, "axes.grid": False, "svg.fonttype": "none", "pdf.fonttype": 42,
    }  # fmt: skip
    with mpl.rc_context(settings):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure, figure.add_subplot()


def _need(name: str, table: pd.DataFrame, columns: Sequence[str]) -> None:
    missing = [c for c in columns if c not in table.columns]
    if missing:
        raise UsageError(f"{name}: column(s) {missing} missing; it has {list(table.columns)}")
    if len(table) == 0:
        raise UsageError(f"{name}: expected at least one row, got none; there is nothing to draw")


def _labels(table: pd.DataFrame, by: Sequence[str]) -> list[str]:
    return [" · ".join("–" if pd.isna(v) else str(v) for v in row) for row in table[list(by)].itertuples(index=False)]


def _rows(axes: Axes, labels: Sequence[str]) -> Any:
    """Horizontal rows from top to bottom, labelled; returns their positions."""
    at = np.arange(len(labels))[::-1]
    axes.set_yticks(at)
    axes.set_yticklabels(labels, parse_math=False)
    axes.set_ylim(-0.7, len(labels) - 0.3)
    axes.tick_params(axis="y", length=0)
    return at


def plot_isr(rates: pd.DataFrame, by: str | Sequence[str] = "method", *, title: str = "") -> Figure:
    """ISR per group: point, interval (line) and, where the columns are there, band (thick light bar).

    Args:
        rates: one row per group with isr, low, high (fractions) and, if known, band_low, band_high, as `Report.by` gives
            them; drawn in the order given. A missing band_high (lazy runs) leaves the band out.
        by: the group column or columns.
    """
    columns = [by] if isinstance(by, str) else list(by)
    _need("rates", rates, [*columns, "isr", "low", "high"])
    with _figure(6.4, 0.9 + 0.34 * len(rates)) as (figure, axes):
        at = _rows(axes, _labels(rates, columns))
        values = {c: 100 * rates[c].to_numpy(dtype=np.float64) for c in ("isr", "low", "high")}
        if {"band_low", "band_high"} <= set(rates.columns):
            low, high = (100 * pd.to_numeric(rates[c]).to_numpy(dtype=np.float64) for c in ("band_low", "band_high"))
            known = ~np.isnan(low) & ~np.isnan(high)
            if known.any():
                axes.barh(at[known], (high - low)[known], left=low[known], height=0.56, color=BLUE, alpha=0.18,
                          label="band: strict to any")  # fmt: skip
        axes.hlines(at, values["low"], values["high"], color=BLUE, linewidth=1.8, label="interval")
        axes.plot(values["isr"], at, "o", color=BLUE, markersize=5.5, label="ISR")
        axes.set_xlim(0, 100)
        axes.set_xlabel("ISR (%)")
        axes.grid(axis="x", color="#DDDDDD", linewidth=0.6)
        axes.set_axisbelow(True)
        if title:
            axes.set_title(title, loc="left", parse_math=False)
        figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    return figure


def plot_differences(pairs: pd.DataFrame, *, alpha: float = 0.05, title: str = "") -> Figure:
    """Paired differences a − b in points with their intervals; filled where the Holm-adjusted p is at most alpha.

    Args:
        pairs: from `compare_methods`: a, b, difference, low, high, p_holm, and family columns where there are several families.
    """
    _need("pairs", pairs, ["a", "b", "difference", "low", "high", "p_holm"])
    family = [
        c for c in ("editor", "prompt_kind", "purifier") if c in pairs.columns and pairs[c].nunique(dropna=False) > 1
    ]
    names = [f"{a} − {b}" for a, b in zip(pairs["a"], pairs["b"], strict=True)]
    if family:
        names = [f"{name}   ({rest})" for name, rest in zip(names, _labels(pairs, family), strict=True)]
    with _figure(6.8, 1.0 + 0.3 * len(pairs)) as (figure, axes):
        at = _rows(axes, names)
        value, low, high = (100 * pairs[c].to_numpy(dtype=np.float64) for c in ("difference", "low", "high"))
        clear = pairs["p_holm"].to_numpy(dtype=np.float64) <= alpha
        axes.axvline(0, color="black", linewidth=0.8)
        for chosen, colour, face, label in (
            (clear, BLUE, BLUE, f"Holm-adjusted p ≤ {alpha:g}"),
            (~clear, GREY, "white", f"Holm-adjusted p > {alpha:g}"),
        ):
            if chosen.any():
                axes.hlines(at[chosen], low[chosen], high[chosen], color=colour, linewidth=1.6)
                axes.plot(
                    value[chosen], at[chosen], "o", color=colour, markerfacecolor=face, markersize=5.5, label=label
                )
        axes.set_xlabel("difference in ISR (points)")
        axes.grid(axis="x", color="#DDDDDD", linewidth=0.6)
        axes.set_axisbelow(True)
        if title:
            axes.set_title(title, loc="left", parse_math=False)
        figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    return figure


def plot_agreement(
    table: AgreementTable, column: str = "overall", *, statistic: str = "percent", title: str = ""
) -> Figure:
    """Matrix of agreement between all raters on one column of Table I; undefined pairs are hatched, not coloured.

    Args:
        table: from `isr.agreement`. column: "semantic_mismatch", "degradation", "overall" or "overall_derived".
        statistic: "percent" (in %) or "cohen".
    """
    if statistic not in ("percent", "cohen"):
        raise UsageError(f"statistic: expected 'percent' or 'cohen', got {statistic!r}")
    known = set(table.pairs["column"]) if len(table.pairs) else set()
    if column not in known:
        raise UsageError(f"column: expected one of {sorted(known)}, got {column!r}")
    pairs = table.pairs[(table.pairs["column"] == column) & (table.pairs["group"] != "majority_mllm")]
    names = list(table.raters["rater"])
    place = {name: i for i, name in enumerate(names)}
    matrix = np.full((len(names), len(names)), np.nan)
    for a, b, value in zip(pairs["rater_a"], pairs["rater_b"], pairs[statistic], strict=True):
        matrix[place[a], place[b]] = matrix[place[b], place[a]] = value
    percent = statistic == "percent"
    side = 1.6 + 0.62 * len(names)
    with _figure(side + 1.2, side) as (figure, axes):
        matrix *= 100 if percent else 1
        shown = axes.imshow(
            np.ma.masked_invalid(matrix), cmap="cividis", vmin=40 if percent else 0, vmax=100 if percent else 1
        )
        for i in range(len(names)):
            for j in range(len(names)):
                if i == j:
                    continue
                if np.isnan(matrix[i, j]):
                    axes.fill([j - 0.5, j + 0.5, j + 0.5, j - 0.5], [i - 0.5, i - 0.5, i + 0.5, i + 0.5],
                              facecolor="none", edgecolor="#BBBBBB", hatch="///", linewidth=0)  # fmt: skip
                    continue
                text = f"{matrix[i, j]:.0f}" if percent else f"{matrix[i, j]:.2f}"
                ink = "white" if matrix[i, j] < (72 if percent else 0.5) else "black"
                axes.text(j, i, text, ha="center", va="center", color=ink, fontsize=8)
        axes.set_xticks(range(len(names)))
        axes.set_xticklabels(names, rotation=35, ha="right", rotation_mode="anchor", parse_math=False)
        axes.set_yticks(range(len(names)))
        axes.set_yticklabels(names, parse_math=False)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        people = int((table.raters["kind"] == "human").sum())
        if 0 < people < len(names):
            axes.axhline(people - 0.5, color="white", linewidth=3)
            axes.axvline(people - 0.5, color="white", linewidth=3)
        figure.colorbar(shown, ax=axes, shrink=0.8, label="agreement (%)" if percent else "Cohen's κ")
        axes.set_title(title or f"{column.replace('_', ' ')}, {table.n_items} items", loc="left", parse_math=False)
    return figure


def disagreement_table(
    judgements: pd.DataFrame, by: str = "category", *, image: str | None = "image_id", level: float = 0.95
) -> pd.DataFrame:
    """Share of cases on which the judges differ, by group and question; only cases with at least two verdicts count.

    Args:
        judgements: long table, one row per case × judge: case_id, judge, semantic_mismatch, degradation, defeated (missing
            where there is no verdict), `by`, and the image column unless None or wholly missing.

    Returns:
        by, criterion, share, low, high, n (cases with two verdicts or more), n_images.
    """
    criteria = list(CRITERION_NAMES)
    _need("judgements", judgements, ["case_id", "judge", by, *criteria, *([image] if image else [])])
    clusters = image if image and bool(judgements[image].notna().all()) else None
    answers = judgements[["case_id", by, *([clusters] if clusters else [])]].copy()
    for criterion in criteria:
        answers[criterion] = pd.to_numeric(judgements[criterion].astype("boolean").astype("Float64")).to_numpy(
            dtype=np.float64, na_value=np.nan
        )
    cases = answers.groupby("case_id", sort=False)
    first = cases[[by, *([clusters] if clusters else [])]].first()
    spread = {c: cases[c].max() - cases[c].min() for c in criteria}
    count = cases["defeated"].count()
    rows = []
    for group in pd.unique(first[by].dropna()):
        chosen = (first[by] == group) & (count >= 2)
        n = int(chosen.sum())
        for criterion in criteria:
            row: dict[str, Any] = {by: group, "criterion": criterion, "share": np.nan, "low": np.nan, "high": np.nan,
                                   "n": n, "n_images": np.nan}  # fmt: skip
            if n:
                differs = spread[criterion][chosen].to_numpy(dtype=np.float64) > 0
                ids = first.loc[chosen, clusters].to_numpy(dtype=object) if clusters else None
                interval = proportion_interval(differs, ids, level=level)
                row |= {"share": float(differs.mean()), "low": interval.low, "high": interval.high,
                        "n_images": interval.n_clusters}  # fmt: skip
            rows.append(row)
    return pd.DataFrame(rows, columns=[by, "criterion", "share", "low", "high", "n", "n_images"])


def plot_disagreement(
    judgements: pd.DataFrame,
    by: str = "category",
    *,
    image: str | None = "image_id",
    level: float = 0.95,
    title: str = "",
) -> Figure:
    """Share of cases on which the judges differ, by group, for mismatch, degradation and the verdict, with intervals.

    Args: as for `disagreement_table`.
    """
    table = disagreement_table(judgements, by, image=image, level=level)
    groups = list(pd.unique(table[by]))
    if not groups or not bool((table["n"] > 0).any()):
        raise UsageError(f"judgements: no case with a value in {by!r} has two verdicts, so nothing can differ")
    counts = [int(table.loc[table[by] == g, "n"].iloc[0]) for g in groups]
    with _figure(6.4, 1.1 + 0.55 * len(groups)) as (figure, axes):
        at = _rows(axes, [f"{g}  (n = {n})" for g, n in zip(groups, counts, strict=True)])
        for offset, (criterion, name) in zip((0.24, 0.0, -0.24), CRITERION_NAMES.items(), strict=True):
            rows = table[table["criterion"] == criterion].set_index(by).loc[groups]
            share, low, high = (100 * rows[c].to_numpy(dtype=np.float64) for c in ("share", "low", "high"))
            colour = CRITERION_COLOURS[criterion]
            axes.hlines(at + offset, low, high, color=colour, linewidth=1.6)
            axes.plot(share, at + offset, "o", color=colour, markersize=5, label=name)
        axes.set_xlim(left=0)
        axes.set_xlabel("cases on which the judges differ (%)")
        axes.grid(axis="x", color="#DDDDDD", linewidth=0.6)
        axes.set_axisbelow(True)
        if title:
            axes.set_title(title, loc="left", parse_math=False)
        figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    return figure
