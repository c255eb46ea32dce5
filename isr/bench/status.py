"""How far an experiment is, from its folder alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container
from pathlib import Path
from typing import Any

from ..schema import NoVerdict
from .dataset import share, stored_items
from .experiment import Experiment
from .files import ExperimentFiles
from .plan import KINDS, planned_steps

__all__ = ["status_text"]


def status_text(folder: str | Path) -> str:
    """Steps done of those planned at the last start, judged cases, and missing verdicts."""
    files = ExperimentFiles.at(folder)
    info = files.info()
    planned = info.get("plan", {})
    rows = files.steps()
    wanted = _wanted(info, str(folder))
    done = Counter(row.kind for key, row in rows.items() if wanted is None or key in wanted)
    part = f", share {info['shard']} of the pictures" if info.get("shard") else ""
    lines = [f"{info.get('experiment', {}).get('name', '?')}  ({folder}){part}"]
    for kind in KINDS:
        if planned.get(kind) or done[kind]:
            lines.append(f"  {kind:10} {done[kind]:,} of {planned.get(kind, 0):,}")
    if len(rows) > done.total():
        lines.append(f"  {'further':10} {len(rows) - done.total():,} steps of earlier states of the experiment")
    if info.get("experiment", {}).get("judging", {}).get("judges"):
        cases = len(files.run.cases()) if files.run.exists() else 0
        every = planned.get("cases", 0) + planned.get("controls", 0)
        lines.append(f"  {'judged':10} {cases:,} of {every:,} cases, controls among them")
    if files.run.exists():
        missing = Counter(j.answer.reason for j in files.run.judgements() if isinstance(j.answer, NoVerdict))
        if missing:
            lines.append(f"  {'no verdict':10} " + ", ".join(f"{n} × {r}" for r, n in missing.most_common()))
    return "\n".join(lines)


def _wanted(info: dict[str, Any], folder: str) -> Container[str] | None:
    """Names of the steps that the run is to have; None where it does not record its pictures."""
    items = stored_items(info, f"{folder}/experiment.json")
    if not items:
        return None
    experiment = Experiment.of(info["experiment"], source=repr(folder), stored=True)
    return planned_steps(experiment, share(items, str(info["shard"])) if info.get("shard") else items)
