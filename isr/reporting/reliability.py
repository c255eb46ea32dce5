"""What makes a number unreliable, in a few words each: the badges beside the headline.

The full sentences stand in `Report.warnings`; what is known only here (a probe that is missing or failed) comes with its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..report import MANY_UNDETERMINED
from ..stats.control import MAX_RATE
from .text import percent

if TYPE_CHECKING:
    from ..report import Report

__all__ = ["Doubt", "doubts", "probe_state"]


@dataclass(frozen=True)
class Doubt:
    """One reason not to quote the headline as it stands. sentence: "" where `Report.warnings` says it already."""

    short: str
    sentence: str = ""


def doubts(report: Report) -> list[Doubt]:
    """Single judge, control arm too high, a probe missing or failed, two snapshots, many undetermined cases."""
    found = []
    if len(report.judges) == 1:
        found.append(Doubt("single judge"))
    arm = report.control_arm
    if arm is not None and arm.paired_control is not None and arm.paired_control > MAX_RATE:
        found.append(Doubt(f"control rate {percent(arm.paired_control, 0)}"))
    if report.n_undetermined > MANY_UNDETERMINED * report.n:
        found.append(Doubt(f"{percent(report.n_undetermined / report.n, 0)} undetermined"))
    if any(len(judge.get("served", {})) > 1 for judge in report.lock["judges"]):
        found.append(Doubt("several model snapshots"))
    return found + _probes(report)


def _probes(report: Report) -> list[Doubt]:
    states: dict[str, list[str]] = {"missing": [], "failed": []}
    for judge in report.lock["judges"]:
        if judge.get("identity", {}).get("provider") == "function":
            continue  # its own warning says that it is no model
        state = probe_state(judge)
        if state in states:
            states[state].append(str(judge["name"]))
    found = []
    told = " ".join(report.warnings).lower()
    for state, names in states.items():
        if names:
            sentence = (
                f"No probe of {', '.join(names)}: nothing shows that the judge tells known answers apart. Run: isr probe JUDGE"
                if state == "missing"
                else f"The probe of {', '.join(names)} failed: the judge is wrong on edits with known answers."
            )
            found.append(Doubt(f"probe {state}", "" if "probe" in told else sentence))
    return found


def probe_state(judge: Mapping[str, Any]) -> str:
    """ "missing", "failed" or "passed", from a judge's entry in the lock."""
    card = judge.get("probe")
    if not isinstance(card, Mapping):
        return "missing"
    passed = card.get("passed", card.get("ok"))
    return "passed" if passed is True else "failed" if passed is False else "unknown"
