"""isr run against a bare loop over the same editor, prompts and seeds; and one local worker against two."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "tests" / "bench"))

import bench_toys  # noqa: E402 - the editor without a model that the tests use
from bench_help import plan_of, run, toy  # noqa: E402

from isr.bench.engine import InlineEngine  # noqa: E402
from isr.bench.local_engine import LocalEngine  # noqa: E402
from isr.bench.plan import Plan  # noqa: E402

#: Seconds per edit, waited and not computed: overhead and waiting show, the processor's load does not.
SECONDS = 0.2
PICTURES = 12
BATCH = 4
ROUNDS = 2


def bare(plan: Plan) -> float:
    """What a careful user would write by hand: immunize and edit everything, keep the PNGs."""
    attack, editor = bench_toys.ToyAttack(), bench_toys.ToyEditor(sleep=SECONDS)
    pictures = {item.original.digest: item.original.pil() for item in plan.items}
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        made = {}
        for job in plan.jobs:
            images = [
                made.get(s.inputs[0].partition(":")[2]) or pictures[s.inputs[0].partition(":")[2]] for s in job.steps
            ]
            seeds = [int(s.seed or 0) for s in job.steps]
            if job.kind == "immunize":
                out = attack.immunize(images, [s.prompt for s in job.steps], seeds=seeds)
            else:
                out = editor.edit(images, [str(s.prompt) for s in job.steps], seeds=seeds)
            for step, image in zip(job.steps, out, strict=True):
                image.save(Path(folder) / f"{step.key}.png")
                made[step.key] = image
    return time.perf_counter() - started


def main() -> None:
    import os

    os.environ["ISR_PLUGINS"] = "bench_toys"
    experiment = toy(
        data={"source": "miniworld", "n": PICTURES}, noise=None, batch={"edit": BATCH, "immunize": BATCH},
        editors=[{"name": "toy", "options": {"sleep": SECONDS}}],
    )  # fmt: skip
    plan = plan_of(experiment)
    loops, inline, one, two = [], [], [], []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(ROUNDS):
            loops.append(bare(plan))
            for times, engine, name in (
                (inline, InlineEngine(), "inline"), (one, LocalEngine(1, ()), "one"), (two, LocalEngine(2, ()), "two"),
            ):  # fmt: skip
                started = time.perf_counter()
                run(experiment, Path(folder) / f"{name}{number}", engine, judge=False)
                times.append(time.perf_counter() - started)
    print(
        json.dumps(
            {
                "edits": plan.count("edit"), "seconds_per_edit": SECONDS, "batch": BATCH, "rounds": ROUNDS,
                "bare_loop_seconds": min(loops), "run_in_process_seconds": min(inline),
                "overhead_ratio": min(inline) / min(loops), "one_worker_seconds": min(one), "two_workers_seconds": min(two),
                "speedup_two_workers_ratio": min(one) / min(two),
                "note": "times of local workers include starting the processes; the editor waits instead of computing",
            }
        )
    )  # fmt: skip


if __name__ == "__main__":
    main()
