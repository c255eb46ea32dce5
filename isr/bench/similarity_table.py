"""ISR on unseen prompts by how similar they are to the prompt that the immunizer knew."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from ..stats.outcomes import isr
from .plan import NONE
from .results import Results
from .similarity import prompt_similarity

__all__ = ["similarity_table"]

_WHERE = ("table", "source", "target", "method")


def similarity_table(results: Results, *, bins: int = 3) -> pd.DataFrame:
    """One row per measure, method and share: ISR on unseen prompts, in equal shares of the edits by similarity (ties stay
    together). No purifier. A measure without values has no rows (`Results.similarity_reason` says why)."""
    frame = results.frame
    if frame.empty or results.report is None:
        return pd.DataFrame()
    chosen = frame[(frame["prompt_kind"] == "unseen") & (frame["purifier"] == NONE)]
    chosen = chosen.drop_duplicates(["case_id", "source", "target"])  # once, however many tables show it (`also_in`)
    known = [results.known_prompt(step) for step in chosen["step"]]
    rows: list[dict[str, Any]] = []
    for measure in results.experiment.similarity:
        values = [
            np.nan if k is None else float(v) if (v := _value(results, measure, k, p)) is not None else np.nan
            for k, p in zip(known, chosen["prompt"], strict=True)
        ]
        rows += _rows(chosen.assign(similarity=values), measure, bins)
    return pd.DataFrame(rows)


def _value(results: Results, measure: str, known: str, prompt: str) -> float | None:
    if measure == "words":
        return prompt_similarity(known, prompt)
    found = results.prompt_measures.get((known, prompt), {}).get(measure)
    return None if found is None else found["value"]


def _rows(cases: pd.DataFrame, measure: str, bins: int) -> list[dict[str, Any]]:
    cases = cases[cases["similarity"].notna()]
    if cases.empty:
        return []
    edges = np.unique(np.quantile(cases["similarity"], np.linspace(0, 1, bins + 1)))
    last = max(len(edges) - 2, 0)
    cases = cases.assign(bin=np.clip(np.searchsorted(edges, cases["similarity"], side="right") - 1, 0, last))
    rows = []
    for key, group in cases.groupby(list(_WHERE), sort=False):
        for _, share in group.groupby("bin", sort=True):
            rate = isr(share["outcome"].to_numpy(dtype=object), share["image_id"].to_numpy(dtype=object))
            rows.append(
                {
                    "measure": measure, **dict(zip(_WHERE, key, strict=True)), "similarity_low": float(share["similarity"].min()),
                    "similarity_high": float(share["similarity"].max()), "n": rate.n, "isr": rate.value,
                    "low": rate.interval.low, "high": rate.interval.high, "bound_high": rate.bounds[1],
                }
            )  # fmt: skip
    return rows
