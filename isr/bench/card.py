"""The result card: one JSON file that says what a run is, so that its numbers can be quoted and checked."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime
from typing import Any

from ..lock import package_versions
from .plugins import import_user_plugins
from .results import Results

__all__ = ["CARD_VERSION", "make_card", "write_card"]

CARD_VERSION = 1


def make_card(results: Results) -> dict[str, Any]:
    """The card of a run, from its stored rows. Its numbers are `measured`; published ones never enter it. `makings` says when,
    on what and by which engine the steps were made (of those that were killed, nothing)."""
    report = results.report
    steps = results.steps.values()
    protection = results.protection.to_dict("records") if not results.protection.empty else []
    found: list[str] = list(report.warnings) if report is not None else ["Nothing is judged yet."]
    if any(r.result.get("seedable") is False for r in steps):
        found.append("An editor takes no seed: its arms differ by its own noise as well.")
    missing = {reason for name in results.experiment.metrics for reason in _reasons(results, name)}
    return {
        "card": CARD_VERSION,
        "origin": "measured",
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "experiment": results.info["experiment"],
        "experiment_hash": results.info["hash"],
        "earlier_hashes": results.info.get("history", []),
        "versions": {"first": results.info["versions"], "now": package_versions()},
        "plugins": list(import_user_plugins()),
        "seeds": results.experiment.seeds.model_dump(),
        "steps": dict(Counter(r.kind for r in steps)),
        "workers": sorted({r.worker for r in steps}),
        "seconds": {
            k: round(sum(r.seconds or 0.0 for r in steps if r.kind == k), 1) for k in ("immunize", "edit", "measure")
        },
        "makings": results.info.get("makings", []),
        "verified_budget": [
            {k: r[k] for k in ("method", "source", "images", "budget", "levels_max", "l2_max")} for r in protection
        ],
        "editors": _editors(results),
        "judge_lock": None
        if report is None
        else {k: report.lock.get(k) for k in ("judges", "rubric_hash", "consensus", "with_originals", "settings")},
        "results": [] if results.long.empty else _rows(results),
        "warnings": [*found, *(f"n/a: {m}" for m in sorted(missing))],
    }


def _reasons(results: Results, name: str) -> set[str]:
    column = f"{name}_reason"
    if results.long.empty or column not in results.long:
        return set()
    return {f"{name}: {r}" for r in results.long[column] if isinstance(r, str) and r}


def _editors(results: Results) -> list[dict[str, Any]]:
    """Every editor as it described itself (with the fingerprint of its weights)."""
    seen: dict[str, dict[str, Any]] = {}
    for row in results.steps.values():
        told = row.result.get("editor")
        if told is not None:
            seen.setdefault(repr(sorted(told.items(), key=str)), told)
    return list(seen.values())


def _rows(results: Results) -> list[dict[str, Any]]:
    """The long table with missing values as null."""
    table = results.long.astype(object).where(results.long.notna(), None)
    return [{str(k): _plain(v) for k, v in row.items()} for row in table.to_dict("records")]


def _plain(value: Any) -> Any:
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and value in (float("inf"), float("-inf")):
        return str(value)
    return value


def write_card(results: Results) -> dict[str, Any]:
    """Make the card and put it into the run."""
    card = make_card(results)
    results.files.write_record("card.json", card)
    return card
