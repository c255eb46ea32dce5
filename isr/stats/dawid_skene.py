"""Raters' sensitivity and specificity without a truth: Dawid & Skene (1979), Appl. Statist. 28, p. 20–28, two classes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import UsageError
from ._inputs import FloatArray

__all__ = ["DawidSkene", "dawid_skene"]


@dataclass(frozen=True)
class DawidSkene:
    """Estimates of the model in which raters err independently given the truth.

    Attributes:
        posterior: (items,) P(truth = 1 | ratings). sensitivity, specificity: (raters,); NaN for a rater without ratings.
        prevalence: P(truth = 1). log_likelihoods: one per iteration, never falling. converged: within the iterations allowed.
    """

    posterior: FloatArray
    sensitivity: FloatArray
    specificity: FloatArray
    prevalence: float
    log_likelihoods: tuple[float, ...]
    converged: bool


def _log(values: FloatArray) -> FloatArray:
    # log 0 is −∞ on purpose; a large finite stand-in keeps 0 · log 0 at 0.
    return np.log(np.maximum(values, 1e-300))


def dawid_skene(ratings: Any, *, max_iterations: int = 500, tolerance: float = 1e-8) -> DawidSkene:
    """EM from the majority shares.

    Args:
        ratings: (items, raters) of 1, 0 and NaN. At least three raters: with two, sensitivity, specificity and prevalence are
            not identified. Which class is "1" is settled by the start (most raters are better than chance).
        tolerance: largest change of a posterior at which EM stops.
    """
    x = np.asarray(ratings, dtype=np.float64)
    if x.ndim != 2 or x.shape[1] < 3 or len(x) == 0:
        raise UsageError(f"ratings: expected shape (items ≥ 1, raters ≥ 3), got {x.shape}")
    given = ~np.isnan(x)
    if not np.isin(x[given], (0.0, 1.0)).all():
        raise UsageError("ratings: expected 1, 0 or NaN only")
    if not given.any(axis=1).all():
        raise UsageError(f"ratings: {int((~given.any(axis=1)).sum())} items have no rating; leave them out first")
    yes, no = np.where(given, x, 0.0), np.where(given, 1.0 - np.where(given, x, 0.0), 0.0)
    posterior = yes.sum(axis=1) / given.sum(axis=1)
    history: list[float] = []
    converged = False
    for _ in range(max_iterations):
        prevalence = float(posterior.mean())
        with np.errstate(invalid="ignore"):
            sensitivity = (posterior @ yes) / (posterior @ given)
            specificity = ((1 - posterior) @ no) / ((1 - posterior) @ given)
        # A class or a rater without weight has no estimate; 1 changes nothing where the weight is 0.
        se, sp = np.nan_to_num(sensitivity, nan=1.0), np.nan_to_num(specificity, nan=1.0)
        first = _log(np.array([prevalence]))[0] + yes @ _log(se) + no @ _log(1 - se)
        second = _log(np.array([1 - prevalence]))[0] + no @ _log(sp) + yes @ _log(1 - sp)
        total = np.logaddexp(first, second)
        history.append(float(total.sum()))
        updated = np.exp(first - total)
        change = float(np.abs(updated - posterior).max())
        posterior = updated
        if change <= tolerance:
            converged = True
            break
    return DawidSkene(posterior, sensitivity, specificity, prevalence, tuple(history), converged)
