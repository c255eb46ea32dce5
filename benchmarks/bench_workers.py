"""One local worker against two on an editor that computes, beside what two bare processes reach on the same machine."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from isr.bench.dataset import Item, load_items
from isr.bench.driver import Making, begin, make_pictures
from isr.bench.experiment import Experiment, load_experiment
from isr.bench.files import ExperimentFiles
from isr.bench.local_engine import LocalEngine
from isr.bench.plan import Plan, make_plan
from isr.bench.work import THREADS

#: Six to seven minutes on two idle cores; a busy machine measures its other work.
LONG = True
#: Every process, ours and the bare ones, starts, imports and loads for some 7 s; with few pictures that is much of the whole,
#: in a real experiment (hours) nothing. Both are printed: whole times, and times after loading.
PICTURES = 36


def matrix(pictures: int) -> tuple[Experiment, list[Item]]:
    """The shipped quick experiment (control, noise, two immunizers, two prompts, mini-ip2p) without its judges."""
    table = load_experiment("quick").record()
    table["data"]["n"] = pictures
    experiment = Experiment.of({**table, "judging": {}}, source="quick")
    return experiment, load_items(experiment)


def engine(plan: Plan, workers: int) -> Making:
    """`isr run` with local workers into a new folder."""
    with tempfile.TemporaryDirectory() as folder:
        files = ExperimentFiles.at(Path(folder) / "run")
        with files.writing():
            begin(files, plan)
            started = time.perf_counter()
            made = make_pictures(plan, files, LocalEngine(workers, ()))
            made.seconds = time.perf_counter() - started
            return made


# ------------------------------------------------------------------------------------------------- the bare processes


def bare(pictures: int, part: int, parts: int) -> dict[str, float]:
    """The same batches in a loop as one would write it by hand: no engine, no store, no checks beyond the library's own.
    Seconds of loading and of work."""
    experiment, items = matrix(pictures)
    plan = make_plan(experiment, items[part::parts])
    started = time.perf_counter()
    import torch

    from isr.immunization import immunize
    from isr.metrics import compute
    from isr.registry import RESOLVERS

    torch.set_num_threads(1)
    entry = experiment.editors[0]
    editor = RESOLVERS.load("editors")(entry.name, **entry.options)
    loaded = time.perf_counter()
    made: dict[str, Any] = {f"picture:{i.original.digest}": i.original.pil() for i in plan.items}
    with tempfile.TemporaryDirectory() as folder:
        for job in plan.jobs:
            spec = job.steps[0].spec
            images = [[made[name] for name in step.inputs] for step in job.steps]
            prompts, seeds = [str(s.prompt) for s in job.steps], [int(s.seed or 0) for s in job.steps]
            if job.kind == "measure":
                compute(list(spec["metrics"]), [i[0] for i in images], [i[1] for i in images], prompts=prompts)
                continue
            if job.kind == "immunize":
                on = None if spec["source"] is None else editor
                first = [i[0] for i in images]
                out = list(
                    immunize(first, prompts, attack=spec["attack"], editor=on, seeds=seeds, **spec["options"]).images
                )
            else:
                out = editor.edit([i[0] for i in images], prompts, seeds=seeds, **spec["settings"])
            for step, image in zip(job.steps, out, strict=True):
                image.save(Path(folder) / f"{step.key}.png")
                made[f"step:{step.key}"] = image
    return {"loading": loaded - started, "working": time.perf_counter() - loaded}


def bare_processes(pictures: int, parts: int) -> tuple[float, list[dict[str, float]]]:
    """Seconds until so many independent processes, each with its share of the pictures, have ended; and what each says."""
    variables = {**os.environ, **dict.fromkeys(THREADS, "1")}
    started = time.perf_counter()
    running = [
        subprocess.Popen(
            [sys.executable, __file__, "--pictures", str(pictures), "--bare", f"{part}/{parts}"],
            env=variables, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )
        for part in range(parts)
    ]  # fmt: skip
    said = [process.communicate()[0] for process in running]
    seconds = time.perf_counter() - started
    if any(process.returncode for process in running):
        raise SystemExit("a bare process failed; run it alone to see why: --bare 0/1")
    return seconds, [json.loads(text.splitlines()[-1]) for text in said]


# --------------------------------------------------------------------------------------------------------- the figures


def mean(made: Making, *names: str) -> float:
    """Of the workers."""
    return fmean(sum(getattr(worker, name) for name in names) for worker in made.workers.values())


def figures(
    one: Making, two: Making, alone: float, both: float, said: dict[int, list[dict[str, float]]]
) -> dict[str, Any]:
    after = {n: m.seconds - mean(m, "before", "loading") for n, m in ((1, one), (2, two))}
    bare_work = {n: max(s["working"] for s in told) for n, told in said.items()}
    speedup, ceiling = one.seconds / two.seconds, alone / both
    work = {n: sum(w.working for w in m.workers.values()) for n, m in ((1, one), (2, two))}
    return {
        "one_worker_seconds": one.seconds, "two_workers_seconds": two.seconds, "speedup_two_workers_ratio": speedup,
        "bare_one_process_seconds": alone, "bare_two_processes_seconds": both, "machine_ceiling_ratio": ceiling,
        "share_of_ceiling": speedup / ceiling,
        "speedup_after_loading_ratio": after[1] / after[2], "ceiling_after_loading_ratio": bare_work[1] / bare_work[2],
        "engine_overhead_one_worker_ratio": one.seconds / alone,
        "cores_slow_each_other_ratio": work[2] / work[1],
        "where_two_workers_time_goes": {
            "half_of_the_work": work[1] / 2, "cores_slow_each_other": (work[2] - work[1]) / 2, "loading": mean(two, "loading"),
            "starting": mean(two, "before"), "idle_between": mean(two, "between"), "idle_at_the_end": mean(two, "after"),
        },
        "workers": [
            {"run": f"{n} of local workers", "worker": name, **told}
            for n, made in ((1, one), (2, two)) for name, told in made.record()["workers"].items()
        ],
    }  # fmt: skip


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--pictures", type=int, default=PICTURES, help="a multiple of 6 keeps the shares' batches whole"
    )
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--bare", metavar="I/N", help=argparse.SUPPRESS)
    options = parser.parse_args(words)
    if options.bare:
        part, _, parts = options.bare.partition("/")
        print(json.dumps(bare(options.pictures, int(part), int(parts))))
        return
    plan = make_plan(*matrix(options.pictures))
    rounds = []
    for _ in range(options.rounds):
        one, (alone, first) = engine(plan, 1), bare_processes(options.pictures, 1)
        two, (both, second) = engine(plan, 2), bare_processes(options.pictures, 2)
        rounds.append(figures(one, two, alone, both, {1: first, 2: second}))
    # The round in which both sides together were quickest: other work of the machine only ever adds.
    seconds = ("one_worker_seconds", "two_workers_seconds", "bare_one_process_seconds", "bare_two_processes_seconds")
    best = min(rounds, key=lambda r: sum(r[name] for name in seconds))
    print(
        json.dumps(
            {
                "pictures": options.pictures, "steps": len(plan.steps), "batches": len(plan.jobs), "rounds": options.rounds, **best,
                "note": "whole times, with the start of the processes, imports and loading (of bare processes also that of Python and "
                "the pictures), unless said otherwise; one compute thread per process",
            }
        )
    )  # fmt: skip


if __name__ == "__main__":
    main()
