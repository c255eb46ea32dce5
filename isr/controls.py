"""The control arm of a report: pairs every edit with its control and hands both to the statistics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .schema import CaseRecord, OutcomeValue
from .stats.control import ControlArm, Share, control_arm
from .stats.intervals import Interval

if TYPE_CHECKING:
    from .stats.paired import PairedDifference

__all__ = ["arm_cells", "pair_up"]


def pair_up(
    cases: Sequence[CaseRecord], outcome: Mapping[str, OutcomeValue], noise: Sequence[CaseRecord] = ()
) -> ControlArm | None:
    """The control arm of some cases of the immunized arm, beside the noise arm's where there is one.

    Args:
        cases, noise: records of the two arms. outcome: case_id → consensus, of all arms.

    Returns:
        None where no case has a control.
    """
    if not cases or all(c.control is None for c in cases):
        return None

    def columns(rows: Sequence[CaseRecord]) -> tuple[list[Any], list[Any], list[str] | None]:
        ids = None if any(c.image_id is None for c in rows) else [str(c.image_id) for c in rows]
        return [outcome[c.case_id] for c in rows], [outcome.get(c.control) if c.control else None for c in rows], ids

    immunized, control, ids = columns(cases)
    extra: dict[str, Any] = {}
    if noise:
        noise_outcomes, noise_control, noise_ids = columns(noise)
        extra = {"noise": noise_outcomes, "noise_control": noise_control, "noise_image_ids": noise_ids}
    seedless = all(c.seed is None for c in cases)
    return control_arm(immunized, control, ids, paired_noise=not seedless, **extra)


def arm_cells(arm: ControlArm) -> dict[str, Any]:
    """Flat columns for a table; fractions, and reasons where a figure is absent."""
    excess: PairedDifference | None = arm.excess
    interval: Interval | None = excess.interval if excess is not None else None
    return {
        "n": arm.isr_all.n,
        "isr": arm.isr_all.value,
        "n_pairs": arm.n_pairs,
        "paired_isr": arm.paired_isr,
        "paired_control": arm.paired_control,
        "excess": None if excess is None else excess.difference,
        "excess_low": None if interval is None else interval.low,
        "excess_high": None if interval is None else interval.high,
        "bound_low": arm.bounds[0],
        "bound_high": arm.bounds[1],
        "ok_ok": arm.cells.ok_ok,
        "broken": arm.cells.broken,
        "mended": arm.cells.mended,
        "defeated_defeated": arm.cells.defeated_defeated,
        **_share("broken_share", arm.broken_share),
        **_share("noise_broken_share", arm.noise_broken_share),
        **_share("abbott", arm.abbott),
        "pairs_undetermined": arm.n_pairs_undetermined,
        "control_missing": arm.n_control_missing,
        "interval": "" if interval is None else interval.method,
        "unpaired_noise": not arm.paired_noise,
        "reason": arm.reason,
    }


def _share(name: str, share: Share) -> dict[str, Any]:
    return {
        name: share.value,
        f"{name}_low": None if share.interval is None else share.interval.low,
        f"{name}_high": None if share.interval is None else share.interval.high,
        f"{name}_absent": share.reason,
    }
