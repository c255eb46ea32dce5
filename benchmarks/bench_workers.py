"""One local worker against two on an editor that computes (mini-ip2p, the shipped quick experiment without its judges)."""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

from isr.bench.dataset import load_items
from isr.bench.driver import begin, make_pictures
from isr.bench.experiment import Experiment, load_experiment
from isr.bench.files import ExperimentFiles
from isr.bench.local_engine import LocalEngine
from isr.bench.plan import Plan, make_plan

#: Minutes on an idle machine; a busy one measures its other work.
LONG = True


def timed(plan: Plan, workers: int) -> tuple[float, float]:
    """Seconds until every picture is there, and until the first batch was (start of the processes, imports, loading)."""
    with tempfile.TemporaryDirectory() as folder:
        files = ExperimentFiles.at(Path(folder) / "run")
        with files.writing():
            begin(files, plan)
            first: list[float] = []
            started = time.perf_counter()
            make_pictures(
                plan, files, LocalEngine(workers, ()), progress=lambda *_: first.append(time.perf_counter() - started)
            )
            return time.perf_counter() - started, first[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    table = load_experiment("quick").record()
    table["data"]["n"] = options.pictures
    experiment = Experiment.of({**table, "judging": {}}, source="quick")
    plan = make_plan(experiment, load_items(experiment))
    times: dict[int, list[tuple[float, float]]] = {1: [], 2: []}
    for _ in range(options.rounds):
        for workers, found in times.items():
            found.append(timed(plan, workers))
    best = {workers: min(found) for workers, found in times.items()}
    print(
        json.dumps(
            {
                "steps": len(plan.steps), "batches": len(plan.jobs), "rounds": options.rounds,
                "one_worker_seconds": best[1][0], "two_workers_seconds": best[2][0],
                "one_worker_first_batch_seconds": best[1][1], "two_workers_first_batch_seconds": best[2][1],
                "speedup_two_workers_ratio": best[1][0] / best[2][0],
                "note": "whole times, with the start of the processes, imports and loading; one compute thread per worker",
            }
        )
    )  # fmt: skip


if __name__ == "__main__":
    main()
