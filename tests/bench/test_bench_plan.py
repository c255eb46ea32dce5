"""Plans: hand-counted matrices, shared controls, names of steps."""

from __future__ import annotations

from collections import Counter

from bench_help import plan_of, toy
from hypothesis import given
from hypothesis import strategies as st

from isr.bench.plan import image_seed, step_key


def test_counts_by_hand() -> None:
    plan = plan_of(
        toy(
            attacks=[{"name": "toy-shift"}, {"name": "toy-shift", "label": "strong", "options": {"levels": 9}}],
            purifiers=["jpeg:50"],
            seeds={"redraws": 2},
            metrics=["psnr", "fid"],
            protection=["psnr"],
        )
    )
    # 3 pictures × (2 attacks + noise) = 9 immunizations.
    assert plan.count("immunize") == 9
    # Contexts: 3 pictures × 2 prompts × 2 redraws × 2 purifiers = 24; each has a control and 3 arms: 24 × 4 = 96 edits.
    assert plan.count("edit") == 96
    assert len(plan.cases) == 24 * 3
    # Pair metrics 72, protection 9, FID per method (3) × purifier (2) × prompt kind (2) = 12.
    assert plan.count("measure") == 72 + 9 + 12
    assert sum(len(job.steps) for job in plan.jobs) == len(plan.steps)


def test_arms_share_the_seed_the_control_and_the_immunization() -> None:
    plan = plan_of(toy(purifiers=["jpeg:50"]))
    by_context: dict[tuple[str, str, str], set[tuple[str, int]]] = {}
    for case in plan.cases:
        by_context.setdefault((case.image_id, case.prompt, case.purifier), set()).add((case.control, case.seed))
        step = plan.steps[case.edit]
        control = plan.steps[case.control]
        assert step.needs == (case.immunize,)
        assert control.inputs == (f"picture:{case.original}",)
        assert (step.spec, step.prompt, step.seed) == (control.spec, control.prompt, control.seed)
    assert all(len(found) == 1 for found in by_context.values())
    assert len({c.seed for c in plan.cases}) == 3  # one seed per picture
    # Original and unseen prompts edit the same immunized picture.
    assert len({c.immunize for c in plan.cases if c.method == "toy-shift"}) == 3


def test_controls_wait_for_nothing_and_batches_hold_one_spec() -> None:
    plan = plan_of(toy(purifiers=["jpeg:50"]))
    for job in plan.jobs:
        assert len({str(s.spec) for s in job.steps}) == 1
        assert len({bool(s.needs) for s in job.steps}) == 1
        assert len(job.steps) <= 2 or job.kind != "edit"
    assert Counter(bool(j.needs) for j in plan.jobs if j.kind == "edit")[False] > 0


def test_a_grown_experiment_keeps_the_names_of_its_steps() -> None:
    small, large = plan_of(toy()), plan_of(toy(data={"source": "miniworld", "n": 5}, purifiers=["jpeg:50"]))
    assert set(small.steps) < set(large.steps)


def test_transfer_pairs_reuse_the_immunization() -> None:
    editors = [{"name": "toy"}, {"name": "toy", "label": "other", "options": {"weights": "w1"}}]
    plan = plan_of(
        toy(
            editors=editors,
            noise=None,
            pairs=[{"source": "toy", "target": "toy"}, {"source": "toy", "target": "other"}],
        )
    )
    assert plan.count("immunize") == 3
    assert {(c.source, c.target) for c in plan.cases} == {("toy", "toy"), ("toy", "other")}


@given(st.integers(-5, 5), st.text(max_size=8), st.integers(0, 3))
def test_seeds_are_31_bits_and_depend_on_every_part(base: int, name: str, redraw: int) -> None:
    seed = image_seed(base, name, redraw)
    assert 0 <= seed < 2**31
    assert seed == image_seed(base, name, redraw)
    assert (
        len(
            {
                seed,
                image_seed(base + 1, name, redraw),
                image_seed(base, name + "x", redraw),
                image_seed(base, name, redraw + 1),
            }
        )
        == 4
    )


def test_the_name_of_a_step_depends_on_everything() -> None:
    base = step_key("edit", {"a": 1}, ["picture:x"], "p", 1)
    others = [
        step_key("immunize", {"a": 1}, ["picture:x"], "p", 1), step_key("edit", {"a": 2}, ["picture:x"], "p", 1),
        step_key("edit", {"a": 1}, ["picture:y"], "p", 1), step_key("edit", {"a": 1}, ["picture:x"], "q", 1),
        step_key("edit", {"a": 1}, ["picture:x"], "p", 2),
    ]  # fmt: skip
    assert len({base, *others}) == 6
    assert step_key("edit", {"b": 1, "a": 2}, [], None, None) == step_key("edit", {"a": 2, "b": 1}, [], None, None)
