"""The headline as text."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from ..stats.intervals import Interval

if TYPE_CHECKING:
    from ..report import Report

__all__ = ["percent", "percent_range", "points", "summary"]


def percent(value: float | None, digits: int = 1) -> str:
    """A fraction as per cent, or "n/a"."""
    return "n/a" if value is None else f"{100 * value:.{digits}f} %"


def points(value: float, digits: int = 1) -> str:
    """A difference of fractions in percentage points, signed."""
    return f"{100 * value:+.{digits}f}"


def percent_range(low: float | None, high: float | None, digits: int = 1) -> str:
    """ "[a, b] %" with "n/a" for a missing end."""
    ends = ["n/a" if v is None else f"{100 * v:.{digits}f}" for v in (low, high)]
    return f"[{ends[0]}, {ends[1]}] %"


def summary(report: Report) -> str:
    """Title, ISR with interval, bounds and band, counts, control arm and warnings."""
    if not report.n:
        arms = Counter(c.arm for c in report.case_records)
        return "no immunized rows, so no ISR: " + ", ".join(f"{n} {arm}" for arm, n in arms.most_common())
    rate = report.rate
    interval: Interval = report.interval
    lines = [
        f"{report.title}: {percent(rate.value)}  ({rate.n_success} of {rate.n} edits defeated)",
        f"  interval {percent_range(interval.low, interval.high)}  ({interval.describe()})",
        f"  bounds   {percent_range(*report.bounds)}  ({rate.n_undetermined} undetermined cases, {report.n_no_verdict} judgements without a verdict)",
    ]
    if report.lazy:
        lines.append(f"  band     from {percent(report.band[0])}; the upper end is absent: lazy")
    elif len(report.judges) > 1:
        lines.append(f"  band     {percent_range(*report.band)}  (strict to any)")
    lines += _control_lines(report)
    if report.no_verdicts:
        lines.append("  no verdict (all arms): " + ", ".join(f"{n} × {r}" for r, n in report.no_verdicts.most_common()))
    lines += [f"  ! {w}" for w in report.warnings]
    return "\n".join(lines)


def _control_lines(report: Report) -> list[str]:
    """Everything about the control arm stands together, never one figure without the others."""
    arm = report.control_arm
    if arm is None:
        return []
    cells = arm.cells
    lines = [
        f"  control  {percent(arm.paired_control)} of {arm.n_pairs} pairs are defeated without protection; with it {percent(arm.paired_isr)}",
        f"           ok→ok {cells.ok_ok}, broken {cells.broken}, mended {cells.mended}, defeated→defeated {cells.defeated_defeated}"
        + (f"; {arm.n_pairs_undetermined} pairs undetermined" if arm.n_pairs_undetermined else ""),
    ]
    if arm.excess is None:
        lines.append(f"  excess   absent: {arm.reason}")
    else:
        interval = arm.excess.interval
        lines.append(
            f"  excess   {points(arm.excess.difference)} points [{points(interval.low)}, {points(interval.high)}]  ({interval.method}), "
            f"bounds [{points(arm.bounds[0])}, {points(arm.bounds[1])}]"
        )
    broken, noise = arm.broken_share, arm.noise_broken_share
    told = (
        f"{percent(broken.value)} of the controls that were ok"
        if broken.value is not None
        else f"absent: {broken.reason}"
    )
    absent = noise.reason if noise.reason == "no noise arm" else f"noise arm absent: {noise.reason}"
    beside = f"noise arm {percent(noise.value)}" if noise.value is not None else absent
    lines.append(f"  broken   {told}  ({beside})")
    lines.append(
        "  Abbott   " + (percent(arm.abbott.value) if arm.abbott.value is not None else f"absent: {arm.abbott.reason}")
    )
    return lines
