"""Figures in which the attacker chooses: the best purifier for every edit."""

from __future__ import annotations

from typing import Any

import pandas as pd

from ..controls import arm_cells
from ..stats.control import control_arm
from ..stats.outcomes import band, isr
from .plan import NONE
from .results import Results

__all__ = ["worst_case_table"]

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
    the same choice made on the unprotected original, and the excess; interval, bounds and band (its upper end None after
    `lazy`). Empty where the experiment has no purifiers.

    Only edits that exist under every purifier enter; `n_incomplete` counts the others.
    """
    frame = results.frame
    purifiers = [NONE, *(p.title for p in results.experiment.purifiers)]
    if len(purifiers) < 2 or frame["outcome"].isna().all():
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
            # The attacker makes the same choice under each policy of the judges.
            low, high = band(*(groups[name].agg(_all)[whole] for name in ("strict", "any")))
            row |= {
                "n": rate.n, "isr": rate.value, "low": rate.interval.low, "high": rate.interval.high,
                "bound_low": rate.bounds[0], "bound_high": rate.bounds[1], "band_low": low, "band_high": high,
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
