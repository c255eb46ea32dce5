"""Where an image metric misleads about an edit (the paper's Figs. 2 and 3): its ranking against the judges' outcome.

Chosen by rule, never by hand: over all judged edits of the immunized arm by one editor (no purifier), the metric ranks the
edits by how far they are from the control edit (CLIP score: from their prompt). A defeated edit should stand high, an edit
that does what was asked low; the disagreement of a case is its distance from that end, from 0 (agrees) to 1.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from ..errors import UsageError
from .experiment import SET_METRICS
from .plan import NONE
from .results import Results

__all__ = ["auc", "metric_table", "misleading", "ranked"]


def ranked(results: Results, metric: str, target: str) -> pd.DataFrame:
    """Judged white-box edits of the main table by `target` with a value of the metric, in the plan's order.

    Returns:
        The rows of `Results.frame` with `value`, `far` (rank from 0, closest, to 1, farthest; ties share their mean) and
        `disagreement` (1 − far for successes, far for failures). Undetermined cases are left out.
    """
    frame = results.frame
    keep = (frame["arm"] == "immunized") & (frame["purifier"] == NONE) & (frame["table"] == "main")
    keep &= (frame["target"] == target) & (frame["source"] == target) & frame["outcome"].isin(["success", "failure"])
    found = frame[keep].copy()
    values = [results.measured.get(step, {}).get(metric, {}).get("value") for step in found["step"]]
    found["value"] = [np.nan if v is None else float(v) for v in values]
    found = found[found["value"].notna()]
    closer = results.conventions[metric][1] if metric in results.conventions else True
    order = rankdata(-found["value"] if closer else found["value"])
    found["far"] = (order - 1) / max(len(found) - 1, 1)
    found["disagreement"] = np.where(found["outcome"] == "success", 1 - found["far"], found["far"])
    return found


def misleading(results: Results, metric: str, *, n: int = 4, target: str | None = None) -> pd.DataFrame:
    """The cases with the largest disagreement, at most one per image (its worst); ties in the plan's order.

    Raises:
        UsageError: nothing is judged, the metric was not measured (with the reason), or no such editor.
    """
    if results.report is None:
        raise UsageError("misleads: this run is not judged, so there is no outcome that a metric could miss")
    if metric not in results.experiment.metrics or metric in SET_METRICS:
        pairwise = [m for m in results.experiment.metrics if m not in SET_METRICS]
        raise UsageError(
            f"misleads: {metric!r} has no value per edit in this run; it has {', '.join(pairwise) or 'none'}"
        )
    editors = [p.target for p in results.experiment.matrix if p.source == p.target]
    wanted = target or (editors[0] if editors else "")
    if wanted not in editors:
        raise UsageError(f"target: no white-box edits by {wanted!r}; there are {', '.join(editors) or 'none'}")
    cases = ranked(results, metric, wanted)
    if cases.empty:
        told = [results.measured.get(s, {}).get(metric, {}).get("reason", "") for s in results.frame["step"]]
        reasons = "; ".join(dict.fromkeys(r for r in told if r)) or "no decided edit has a value"
        raise UsageError(f"misleads: {metric} is n/a in this run: {reasons}")
    worst = cases.sort_values("disagreement", ascending=False, kind="stable")
    return worst.drop_duplicates("image_id").head(n)


def auc(far: Any, defeated: Any) -> float | None:
    """Probability that a defeated edit ranks farther than one that is not, ties half (Mann–Whitney U over all pairs); None
    where one of the two kinds is missing."""
    far, defeated = np.asarray(far, dtype=float), np.asarray(defeated, dtype=bool)
    yes, no = int(defeated.sum()), int((~defeated).sum())
    if not yes or not no:
        return None
    u = float(rankdata(far)[defeated].sum()) - yes * (yes + 1) / 2
    return u / (yes * no)


def metric_table(results: Results) -> pd.DataFrame:
    """Per editor and metric: how well the metric's ranking tells defeated edits from the others (`auc`), over all methods and
    prompts of the main table. Descriptive: edits of one image are not independent."""
    if results.report is None or results.frame.empty:
        return pd.DataFrame()
    rows = []
    for target in dict.fromkeys(p.target for p in results.experiment.matrix if p.source == p.target):
        for metric in (m for m in results.experiment.metrics if m not in SET_METRICS):
            cases = ranked(results, metric, target)
            defeated = (cases["outcome"] == "success").to_numpy()
            rows.append(
                {
                    "target": target, "metric": metric, "n_defeated": int(defeated.sum()), "n_not": int((~defeated).sum()),
                    "auc": auc(cases["far"], defeated),
                }
            )  # fmt: skip
    return pd.DataFrame(rows)
