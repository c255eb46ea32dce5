"""What makes a number unreliable, in a few words each: the badges beside the headline. `Report.warnings` says the same, and
more, in sentences."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..report import MANY_UNDETERMINED, NO_MODELS
from ..stats.control import MAX_RATE
from .text import percent

if TYPE_CHECKING:
    from ..report import Report

__all__ = ["doubts", "probe_state"]


def doubts(report: Report) -> list[str]:
    """Reasons not to quote the headline as it stands: a single judge, a control arm that is too high, a probe that is missing
    or failed, several model snapshots, many undetermined cases."""
    found = []
    judges = report.lock["judges"]
    if len(report.judges) == 1:
        found.append("single judge")
    arm = report.control_arm
    if arm is not None and arm.paired_control is not None and arm.paired_control > MAX_RATE:
        found.append(f"control rate {percent(arm.paired_control, 0)}")
    if report.n_undetermined > MANY_UNDETERMINED * report.n:
        found.append(f"{percent(report.n_undetermined / report.n, 0)} undetermined")
    if any(len(judge.get("served", {})) > 1 for judge in judges):
        found.append("several model snapshots")
    states = {probe_state(judge) for judge in judges}
    return found + [f"probe {state}" for state in ("missing", "failed") if state in states]


def probe_state(judge: Mapping[str, Any]) -> str:
    """ "passed", "failed" (also where the card does not say), "missing", or "" for a Python function or a referee of MiniWorld,
    which are no models."""
    card = judge.get("probe")
    if card is None:
        return "" if judge.get("identity", {}).get("provider") in NO_MODELS else "missing"
    return "passed" if isinstance(card, Mapping) and card.get("passed") is True else "failed"
