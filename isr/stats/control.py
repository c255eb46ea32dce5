"""The control arm: what of an ISR is the immunizer's doing (docs/definitions.md section 4).

The control of a case is the edit of the unprotected original with the same editor, prompt, seed, settings and purifier. A
control that is "defeated" means that the editor fails without any protection. Abbott (1925), J. Econ. Entomol. 18, p. 265–267.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from ..errors import UsageError
from ._inputs import FloatArray, Ids, cluster_codes, cluster_sums, need_level, outcome_codes
from .bootstrap import bca, bootstrap_sums, canonical, jackknife_sums
from .intervals import Interval, proportion_interval
from .outcomes import Rate, isr
from .paired import PairedDifference, paired_difference

__all__ = ["Cells", "ControlArm", "Share", "control_arm"]

#: Below this many controls that are ok, and above this control rate, ratios to "control ok" say nothing.
MIN_OK = 30
MAX_RATE = 0.5


@dataclass(frozen=True)
class Cells:
    """The four paired cells, control → immunized; their sum is the number of complete pairs."""

    ok_ok: int
    broken: int
    mended: int
    defeated_defeated: int


@dataclass(frozen=True)
class Share:
    """A figure that may be absent: `reason` says why `value`, or only its interval, is None; it is empty where both exist."""

    value: float | None
    interval: Interval | None
    n: int
    reason: str = ""


@dataclass(frozen=True)
class ControlArm:
    """Everything that is printed together about controls (fractions).

    Attributes:
        isr_all: over all cases. control_all: over all cases that have a control (None: none has).
        n_pairs: complete pairs, both outcomes determined; all paired figures are of these.
        n_pairs_undetermined: pairs with both arms of which one is undetermined; n_control_missing: cases without a control.
        paired_isr, paired_control, excess: None without a complete pair (`reason`).
        bounds: [ISR low − control high, ISR high − control low] over all cases; a missing control counts as undetermined.
        broken_share: broken / control ok. noise_broken_share: the same figure of the random-noise arm.
        abbott: (ISR − c) / (1 − c) on the pairs, never clipped.
        paired_noise: False where the editor takes no seed: the two arms then differ by the editor's noise as well.
    """

    isr_all: Rate
    control_all: Rate | None
    n_pairs: int
    n_pairs_undetermined: int
    n_control_missing: int
    cells: Cells
    paired_isr: float | None
    paired_control: float | None
    excess: PairedDifference | None
    bounds: tuple[float, float]
    broken_share: Share
    noise_broken_share: Share
    abbott: Share
    paired_noise: bool = True
    reason: str = ""


def _with_missing(name: str, outcomes: Any) -> tuple[FloatArray, Any]:
    """Codes (0 where absent) and a mask of present ones; None and NaN mean that there is no control."""
    values = pd.Series(np.asarray(outcomes, dtype=object), dtype=object)
    present = values.notna().to_numpy()
    codes = np.zeros(len(values))
    codes[present] = outcome_codes(name, values[present].to_numpy(dtype=object))
    return codes, present


def _why_absent(n_ok: int, rate: float) -> str:
    if n_ok < MIN_OK:
        return f"only {n_ok} controls are ok, fewer than {MIN_OK}"
    if rate > MAX_RATE:
        return f"the control rate {rate:.1%} is above {MAX_RATE:.0%}: the editor mostly fails without protection"
    return ""


def _broken_share(immunized: FloatArray, control: FloatArray, ids: Any, level: float) -> Share:
    """Broken / control ok on complete pairs."""
    ok = control == 0
    reason = _why_absent(int(ok.sum()), float(control.mean()) if len(control) else 0.0)
    if reason:
        return Share(None, None, int(ok.sum()), reason)
    broken = immunized[ok]
    interval = proportion_interval(broken, None if ids is None else ids[ok], level=level)
    return Share(float(broken.mean()), interval, int(ok.sum()))


def _abbott(a: FloatArray, c: FloatArray, ids: Any, *, level: float, n_boot: int, seed: int) -> Share:
    reason = _why_absent(int((c == 0).sum()), float(c.mean()) if len(c) else 0.0)
    if reason:
        return Share(None, None, len(c), reason)
    codes, count = cluster_codes("image_ids", ids, len(a))
    sums = canonical(np.column_stack([cluster_sums(codes, count, a - c), cluster_sums(codes, count, 1.0 - c)]))

    def ratio(s: FloatArray) -> FloatArray:
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray(s[:, 0] / s[:, 1])

    value = float(ratio(sums.sum(axis=0, keepdims=True))[0])
    boots, jackknife = ratio(bootstrap_sums(sums, n_boot, seed)), ratio(jackknife_sums(sums))
    usable = np.isfinite(boots).all() and np.isfinite(jackknife).all() and float(np.ptp(boots)) > 1e-12
    if not usable:
        return Share(value, None, len(a), "no interval: resampling these pairs gives one value, or none")
    low, high = bca(value, boots, jackknife, level)
    return Share(value, Interval(low, high, "BCa bootstrap over images", level, len(a), None, count), len(a))


def _aligned(name: str, values: Any, n: int) -> None:
    if len(values) != n:
        raise UsageError(f"{name}: expected one entry per case ({n}), got {len(values)}")


def control_arm(
    immunized: Any,
    control: Any,
    image_ids: Ids | None = None,
    *,
    noise: Any = None,
    noise_control: Any = None,
    noise_image_ids: Ids | None = None,
    paired_noise: bool = True,
    level: float = 0.95,
    n_boot: int = 10_000,
    seed: int = 0,
) -> ControlArm:
    """Compare immunized edits with their controls, for one method, editor, prompt kind and purifier.

    Args:
        immunized: (N,) outcomes. control: (N,) outcomes of each case's control; None or NaN where a case has none.
        image_ids: (N,) clusters, or None.
        noise, noise_control, noise_image_ids: the same three of the random-noise arm (its own M cases), where there is one.
        paired_noise: pass False where the editor takes no seed.
    """
    need_level(level)
    n = len(immunized)
    _aligned("control", control, n)
    first = outcome_codes("immunized", immunized).astype(np.float64)
    second, present = _with_missing("control", control)
    ids = None if image_ids is None else np.asarray(image_ids, dtype=object)
    if ids is not None:
        _aligned("image_ids", ids, n)
    isr_all = isr(immunized, ids, level=level)
    names = np.asarray(control, dtype=object)[present]
    control_all = isr(names, None if ids is None else ids[present], level=level) if present.any() else None
    both = present & (first >= 0) & (second >= 0)
    a, c = first[both], second[both]
    pair_ids = None if ids is None else ids[both]
    cells = Cells(
        ok_ok=int(((c == 0) & (a == 0)).sum()),
        broken=int(((c == 0) & (a == 1)).sum()),
        mended=int(((c == 1) & (a == 0)).sum()),
        defeated_defeated=int(((c == 1) & (a == 1)).sum()),
    )
    n_pairs = int(both.sum())
    successes = int((present & (second == 1)).sum())
    possible = successes + int((present & (second == -1)).sum()) + int((~present).sum())
    excess = None
    if n_pairs:
        excess = paired_difference(a, c, pair_ids, level=level, n_boot=n_boot, seed=seed)
    return ControlArm(
        isr_all=isr_all,
        control_all=control_all,
        n_pairs=n_pairs,
        n_pairs_undetermined=int(present.sum()) - n_pairs,
        n_control_missing=int((~present).sum()),
        cells=cells,
        paired_isr=float(a.mean()) if n_pairs else None,
        paired_control=float(c.mean()) if n_pairs else None,
        excess=excess,
        bounds=(isr_all.bounds[0] - possible / n, isr_all.bounds[1] - successes / n),
        broken_share=_broken_share(a, c, pair_ids, level),
        noise_broken_share=_noise_share(noise, noise_control, noise_image_ids, level),
        abbott=_abbott(a, c, pair_ids, level=level, n_boot=n_boot, seed=seed),
        paired_noise=paired_noise,
        reason="" if n_pairs else "no case has a determined outcome in both arms",
    )


def _noise_share(noise: Any, noise_control: Any, noise_image_ids: Ids | None, level: float) -> Share:
    if noise is None or len(noise) == 0:
        return Share(None, None, 0, "no noise arm")
    if noise_control is None:
        raise UsageError("noise_control: expected the controls of the noise arm's cases, got None")
    _aligned("noise_control", noise_control, len(noise))
    first = outcome_codes("noise", noise).astype(np.float64)
    second, present = _with_missing("noise_control", noise_control)
    both = present & (first >= 0) & (second >= 0)
    ids = None if noise_image_ids is None else np.asarray(noise_image_ids, dtype=object)
    if ids is not None:
        _aligned("noise_image_ids", ids, len(first))
    return _broken_share(first[both], second[both], None if ids is None else ids[both], level)
