"""Figures in which the attacker chooses: the best purifier per image, and prompts near to or far from the optimised one."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from ..controls import arm_cells
from ..stats.control import control_arm
from ..stats.outcomes import isr
from .plan import NONE
from .results import Results

__all__ = ["prompt_similarity", "similarity_table", "worst_case_table"]

_WHERE = ("table", "source", "target", "method", "prompt_kind")


def _all(outcomes: pd.Series[Any]) -> str | None:
    """The attacker tries everything and keeps the best: a success only if all are; None where one is missing."""
    values = list(outcomes)
    if any(pd.isna(v) for v in values):
        return None
    if "failure" in values:
        return "failure"
    return "undetermined" if "undetermined" in values else "success"


def worst_case_table(results: Results) -> pd.DataFrame:
    """Per method: ISR where the attacker takes the best of all purifiers (none among them) for every single edit, beside
    the same choice made on the unprotected original, and the excess. Empty where the experiment has no purifiers.

    Only edits that exist under every purifier enter; `n_incomplete` counts the others.
    """
    frame = results.frame
    purifiers = [NONE, *(p.title for p in results.experiment.purifiers)]
    if len(purifiers) < 2 or frame.empty:
        return pd.DataFrame()
    rows = []
    for key, cases in frame.groupby(list(_WHERE), sort=False):
        groups = cases.groupby(["image_id", "prompt", "redraw"], sort=False)
        whole = groups["purifier"].nunique() == len(purifiers)
        worst = groups["outcome"].agg(_all)[whole]
        control = groups["control"].agg(_all)[whole]
        row: dict[str, Any] = dict(zip(_WHERE, key, strict=True))
        row |= {"purifiers": len(purifiers), "n_incomplete": int((~whole).sum())}
        if len(worst):
            ids = worst.index.get_level_values("image_id").to_numpy(dtype=object)
            rate = isr(worst.to_numpy(dtype=object), ids)
            row |= {
                "n": rate.n, "isr": rate.value, "low": rate.interval.low, "high": rate.interval.high,
                "bound_low": rate.bounds[0], "bound_high": rate.bounds[1],
            }  # fmt: skip
            controls = [None if pd.isna(c) else c for c in control]
            if any(c is not None for c in controls):
                cells = arm_cells(control_arm(list(worst), controls, list(ids)))
                renamed = {
                    "bound_low": "excess_bound_low",
                    "bound_high": "excess_bound_high",
                    "reason": "excess_reason",
                }
                wanted = ("n_pairs", "paired_isr", "paired_control", "excess", "excess_low", "excess_high", *renamed)
                row |= {renamed.get(k, k): cells[k] for k in wanted}
        rows.append(row)
    return pd.DataFrame(rows)


_WORD = re.compile(r"[\w']+")


def prompt_similarity(a: str, b: str) -> float:
    """Words in common over words in either (Jaccard index of the lower-cased word sets), in [0, 1]. A measure of wording,
    not of meaning."""
    one, other = (set(_WORD.findall(text.lower())) for text in (a, b))
    return len(one & other) / len(one | other) if one | other else 1.0


def similarity_table(results: Results, *, bins: int = 3) -> pd.DataFrame:
    """ISR on unseen prompts by how similar their wording is to the prompt that the immunizer knew, in equal shares of the
    edits (ties stay together). No purifier, one row per method and share."""
    frame = results.frame
    if frame.empty:
        return pd.DataFrame()
    chosen = frame[(frame["prompt_kind"] == "unseen") & (frame["purifier"] == NONE)].copy()
    if chosen.empty:
        return pd.DataFrame()
    known = {key: row.prompt for key, row in results.steps.items() if row.kind == "immunize"}
    optimised = [_optimised(results, step, known) for step in chosen["step"]]
    chosen["similarity"] = [
        np.nan if o is None else prompt_similarity(o, p) for o, p in zip(optimised, chosen["prompt"], strict=True)
    ]
    chosen = chosen[chosen["similarity"].notna()]
    edges = np.unique(np.quantile(chosen["similarity"], np.linspace(0, 1, bins + 1)))
    chosen["bin"] = np.clip(np.searchsorted(edges, chosen["similarity"], side="right") - 1, 0, max(len(edges) - 2, 0))
    rows = []
    for key, cases in chosen.groupby(["table", "source", "target", "method", "bin"], sort=True):
        rate = isr(cases["outcome"].to_numpy(dtype=object), cases["image_id"].to_numpy(dtype=object))
        rows.append(
            {
                **dict(zip(("table", "source", "target", "method"), key[:4], strict=True)),
                "similarity_low": float(cases["similarity"].min()), "similarity_high": float(cases["similarity"].max()),
                "n": rate.n, "isr": rate.value, "low": rate.interval.low, "high": rate.interval.high,
                "bound_high": rate.bounds[1],
            }
        )  # fmt: skip
    return pd.DataFrame(rows)


def _optimised(results: Results, step: str, known: dict[str, str | None]) -> str | None:
    row = results.steps.get(step)
    made: Sequence[str] = () if row is None else [i for i in row.inputs if i.startswith("step:")]
    return known.get(made[0].removeprefix("step:")) if made else None
