"""Which batch is next: schedules simulated with the real rules and recorded durations, no clock involved."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Any

import pytest
from bench_help import plan_of, toy
from hypothesis import given
from hypothesis import strategies as st

from isr.bench.engine import Slot, best_slot, room_of
from isr.bench.files import StepRow
from isr.bench.plan import Job, Plan
from isr.bench.schedule import QUICK, Scheduler
from isr.bench.work import Batch

Seconds = Callable[[Job], float]


def simulate(plan: Plan, workers: int, seconds: Seconds) -> float:
    """When the last batch ends, if batches take so long; every batch once, none before its inputs."""
    scheduler, slots = Scheduler(plan, {}), [Slot(name=str(i)) for i in range(workers)]
    now, running, there, handed = 0.0, [], set[str](), []

    def begin(place: int) -> None:
        job = plan.jobs[slots[place].batches[0].number]
        assert job.needs <= there
        heapq.heappush(running, (now + seconds(job), place))

    while True:
        for resource in room_of(slots):
            number = scheduler.next(resource)
            if number is None:
                break
            job = plan.jobs[number]
            handed.append(number)
            batch = Batch(number, job.steps, (), job.resource, scheduler.quick(number))
            slot = best_slot(slots, batch)
            slot.take(batch)
            if len(slot.batches) == 1:
                begin(slots.index(slot))
        if not running:
            break
        now, place = heapq.heappop(running)
        job = plan.jobs[slots[place].batches.popleft().number]
        there.update(s.key for s in job.steps)
        each = seconds(job) / len(job.steps)
        rows = [
            StepRow.model_construct(key=s.key, kind=s.kind, spec=dict(s.spec), inputs=s.inputs, seconds=each)
            for s in job.steps
        ]
        scheduler.finished(plan.jobs.index(job), rows)
        if slots[place].batches:
            begin(place)
    assert sorted(handed) == list(range(len(plan.jobs)))
    assert scheduler.left == 0
    return float(now)


def longest_way(plan: Plan, seconds: Seconds) -> float:
    of_step = {s.key: j for j in plan.jobs for s in j.steps}

    def end(job: Job) -> float:
        return seconds(job) + max((end(of_step[n]) for n in job.needs), default=0.0)

    return max(map(end, plan.jobs))


def floor(plan: Plan, workers: int, seconds: Seconds) -> float:
    """No schedule is shorter: all the work spread evenly, and the longest chain of batches."""
    return max(sum(map(seconds, plan.jobs)) / workers, longest_way(plan, seconds))


#: Processor seconds per picture, as recorded for `isr run quick` with 12 pictures (mini-ip2p, one thread, without loading).
RECORDED = {"noise": 0.0023, "photoguard-encoder": 0.229, "sifm": 0.604, "edit": 0.427, "measure": 0.0022}


def recorded(job: Job) -> float:
    name = str(job.steps[0].spec["attack"]) if job.kind == "immunize" else job.kind
    return RECORDED[name] * len(job.steps)


def quick(pictures: int) -> Plan:
    from isr.bench.experiment import Experiment, load_experiment

    table = load_experiment("quick").record()
    table["data"]["n"] = pictures
    return plan_of(Experiment.of(table, source="quick"))


@pytest.mark.parametrize("pictures", [6, 12, 18, 36])
def test_two_workers_of_the_shipped_experiment_share_its_work_evenly(pictures: int) -> None:
    plan = quick(pictures)
    assert simulate(plan, 2, recorded) <= 1.02 * floor(plan, 2, recorded)


def uneven(*levels: int, pictures: int, immunize: int, unseen: int) -> Plan:
    """Attacks whose time is given by an option, in this order."""
    attacks = [{"name": "toy-shift", "label": f"a{n}", "options": {"levels": n}} for n in levels]
    return plan_of(
        toy(
            attacks=attacks, data={"source": "miniworld", "n": pictures}, prompts={"unseen": unseen}, metrics=["psnr"],
            batch={"immunize": immunize, "edit": 10},
        )
    )  # fmt: skip


def by_option(job: Job) -> float:
    spec = job.steps[0].spec
    if job.kind != "immunize":
        return recorded(job)
    return 0.06 * int(spec["options"].get("levels", 0)) * len(job.steps)


def test_no_long_batch_waits_behind_another_where_workers_are_many() -> None:
    """Where a batch could wait behind whatever followed a quick one, these took 1.32 and 1.81 times the floor."""
    plan = uneven(2, 100, 10, 300, 1, pictures=10, immunize=5, unseen=2)
    assert simulate(plan, 4, by_option) <= 1.05 * floor(plan, 4, by_option)
    plan = uneven(1, 300, pictures=5, immunize=1, unseen=1)
    assert simulate(plan, 8, by_option) <= 1.03 * floor(plan, 8, by_option)


@given(st.integers(1, 6), st.lists(st.floats(0.01, 60), min_size=8, max_size=8), st.integers(1, 4))
def test_no_schedule_leaves_a_worker_idle_while_a_batch_is_ready(workers: int, times: list[float], batch: int) -> None:
    plan = plan_of(
        toy(
            purifiers=["jpeg:50"],
            metrics=["psnr", "fid"],
            protection=["psnr"],
            batch={"edit": batch, "immunize": batch},
        )
    )
    names: dict[str, int] = {}

    def seconds(job: Job) -> float:
        return times[names.setdefault(f"{job.kind} {job.steps[0].spec}", len(names)) % len(times)] * len(job.steps)

    # Graham's bound for list schedules, with the moment that a batch may wait behind a quick one.
    most = sum(map(seconds, plan.jobs)) / workers + longest_way(plan, seconds) + QUICK
    assert simulate(plan, workers, seconds) <= most + 1e-9


def row_of(plan: Plan, key: str, seconds: float) -> StepRow:
    step = plan.steps[key]
    return StepRow.model_construct(key=key, kind=step.kind, spec=dict(step.spec), inputs=step.inputs, seconds=seconds)


def test_what_is_quick_is_learned_from_finished_steps_of_the_same_spec() -> None:
    attacks = [{"name": "toy-shift", "label": f"a{n}", "options": {"levels": n}} for n in (1, 2)]
    plan = plan_of(toy(attacks=attacks, noise=None, batch={"immunize": 1, "edit": 2}))
    one, two = (
        [n for n, j in enumerate(plan.jobs) if j.kind == "immunize" and j.steps[0].spec["options"]["levels"] == level]
        for level in (1, 2)
    )
    key = plan.jobs[one[0]].steps[0].key
    scheduler = Scheduler(plan, {key: row_of(plan, key, QUICK / 2)})  # of an interrupted run
    assert scheduler.next("") == one[1]  # the first one is done
    assert scheduler.quick(one[1])
    assert not scheduler.quick(two[0])  # nothing is known of it
    scheduler.finished(two[0], [row_of(plan, plan.jobs[two[0]].steps[0].key, 2 * QUICK)])
    assert not scheduler.quick(two[1])


def test_batches_come_in_the_plans_order_and_best_to_who_holds_their_model() -> None:
    editors = [{"name": "toy"}, {"name": "toy", "label": "other", "options": {"weights": "w1"}}]
    plan = plan_of(toy(editors=editors, noise=None, batch={"immunize": 1, "edit": 1}))
    scheduler = Scheduler(plan, {})
    other = max(j.resource for j in plan.jobs if j.resource != plan.jobs[0].resource)
    first = [n for n, j in enumerate(plan.jobs) if not j.needs and j.resource == other]
    assert [scheduler.next(other) for _ in range(2)] == first[:2]
    rest = [n for n, j in enumerate(plan.jobs) if not j.needs and n not in first[:2]]
    assert [scheduler.next("") for _ in range(3)] == rest[:3]


def test_a_failed_batch_takes_what_rests_on_it_and_nothing_else() -> None:
    plan = plan_of(toy(metrics=["psnr"], batch={"immunize": 1, "edit": 2}))
    scheduler = Scheduler(plan, {})
    everything = scheduler.left
    number = next(n for n, j in enumerate(plan.jobs) if j.kind == "immunize")
    gone = {s.key for s in plan.jobs[number].steps}
    lost = 0
    for job in plan.jobs:  # in an order in which what rests on a batch comes after it
        if job.needs & gone:
            gone |= {s.key for s in job.steps}
            lost += 1
    assert lost > 0
    handed: list[int | None] = []
    while number not in handed:
        handed.append(scheduler.next(""))
    assert scheduler.fail(number) == lost
    assert scheduler.left == everything - lost - 1
    for other in handed:
        if other is not None and other != number:
            scheduler.finished(other, [])
    while (after := scheduler.next("")) is not None:
        assert not plan.jobs[after].needs & gone
        scheduler.finished(after, [])
    assert scheduler.left == 0


def test_a_batch_without_a_model_leaves_the_loaded_one_where_it_is() -> None:
    slot = Slot(name="w")
    slot.take(Batch(0, (), (), "editor a"))
    slot.batches.popleft()
    slot.take(Batch(1, (), ()))
    assert slot.resource == "editor a"


def test_only_behind_a_quick_batch_another_one_may_wait() -> None:
    def free(*batches: Any) -> bool:
        slot = Slot(name="w")
        for batch in batches:
            slot.take(batch)
        return slot.free

    short, long = Batch(0, (), (), quick=True), Batch(1, (), ())
    assert free()
    assert free(short)
    assert not free(long)
    assert not free(short, long)
