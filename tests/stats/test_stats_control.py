"""The control arm: every formula by brute force over all assignments on small tables, and by hand."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isr.errors import UsageError
from isr.stats.control import control_arm

S, F, U = "success", "failure", "undetermined"
VALUES = st.sampled_from([S, F, U])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(VALUES, st.sampled_from([S, F, U, None])), min_size=1, max_size=5))
def test_bounds_and_cells_by_brute_force(rows: list[tuple[str, str | None]]) -> None:
    arm = control_arm([r[0] for r in rows], [r[1] for r in rows], n_boot=50)
    options = [[(S, F) if v in (U, None) else (v,) for v in row] for row in rows]
    reached = []
    for assignment in product(*[product(*row) for row in options]):
        reached.append(sum((i == S) - (c == S) for i, c in assignment) / len(rows))
    assert arm.bounds == (pytest.approx(min(reached)), pytest.approx(max(reached)))
    complete = [(i, c) for i, c in rows if U not in (i, c) and c is not None]
    assert arm.n_pairs == len(complete)
    assert arm.n_pairs + arm.n_pairs_undetermined + arm.n_control_missing == len(rows)
    cells = arm.cells
    assert (cells.ok_ok, cells.broken, cells.mended, cells.defeated_defeated) == (
        complete.count((F, F)), complete.count((S, F)), complete.count((F, S)), complete.count((S, S)),
    )  # fmt: skip
    if not complete:
        assert arm.excess is None
        assert arm.paired_isr is None
        assert arm.reason == "no case has a determined outcome in both arms"
        return
    assert arm.excess is not None
    assert arm.excess.difference == pytest.approx(sum((i == S) - (c == S) for i, c in complete) / len(complete))
    assert arm.excess.difference == pytest.approx((cells.broken - cells.mended) / arm.n_pairs)


def table(ok_ok: int, broken: int, mended: int, both: int) -> tuple[list[str], list[str]]:
    return [F] * ok_ok + [S] * broken + [F] * mended + [S] * both, [F] * (ok_ok + broken) + [S] * (mended + both)


def test_by_hand() -> None:
    # ok→ok 20, ok→defeated 40, defeated→ok 5, defeated→defeated 15: n 80. ISR 55/80, control 20/80, excess 35/80 = 43.75 points.
    # Broken share 40/60; Abbott (55/80 − 20/80)/(1 − 20/80) = 35/60. Two cases more: an undetermined control (success) and an
    # undetermined edit (control ok): ISR over all 56/82, bounds [(56 − 21)/82, (57 − 20)/82].
    immunized, control = table(20, 40, 5, 15)
    arm = control_arm([*immunized, S, U], [*control, U, F])
    assert arm.excess is not None
    assert arm.excess.difference == pytest.approx(0.4375)
    assert (arm.paired_isr, arm.paired_control) == (55 / 80, 20 / 80)
    assert arm.broken_share.value == pytest.approx(40 / 60)
    assert arm.broken_share.n == 60
    assert arm.abbott.value == pytest.approx(35 / 60)
    assert arm.abbott.interval is not None
    assert arm.abbott.interval.low < 35 / 60 < arm.abbott.interval.high
    assert arm.isr_all.value == pytest.approx(56 / 82)
    assert arm.bounds == (pytest.approx((56 - 21) / 82), pytest.approx((57 - 20) / 82))
    assert (arm.n_pairs, arm.n_pairs_undetermined) == (80, 2)
    assert arm.noise_broken_share.value is None
    assert arm.noise_broken_share.reason == "no noise arm"


def test_dropping_undetermined_only_from_the_control_would_flatter() -> None:
    # 30 pairs ok→defeated, 10 defeated→undetermined. Paired: 30/30 − 0/30 = 100 points on 30; over all cases bounds [50, 75].
    arm = control_arm([S] * 30 + [U] * 10, [F] * 30 + [S] * 10)
    assert arm.n_pairs == 30
    assert arm.bounds == (pytest.approx(30 / 40 - 10 / 40), pytest.approx(40 / 40 - 10 / 40))


def test_abbott_is_never_clipped() -> None:
    # Worse than no protection: ISR 5/100, control 20/100 → (0.05 − 0.20)/0.80 = −0.1875.
    arm = control_arm(*table(78, 2, 17, 3))
    assert arm.abbott.value == pytest.approx(-0.1875)


def test_few_ok_controls() -> None:
    arm = control_arm(*table(9, 20, 0, 0))
    assert arm.broken_share.value is None
    assert arm.broken_share.reason == "only 29 controls are ok, fewer than 30"
    assert arm.abbott.reason == arm.broken_share.reason
    assert arm.excess is not None
    thirty = control_arm(*table(10, 20, 0, 0))
    assert thirty.broken_share.value == pytest.approx(20 / 30)


def test_high_control_rate() -> None:
    arm = control_arm(*table(10, 30, 1, 40))
    assert arm.abbott.value is None
    assert arm.abbott.reason.startswith("the control rate 50.6% is above 50%")
    half = control_arm(*table(10, 30, 0, 40))
    assert half.abbott.value == pytest.approx((70 / 80 - 0.5) / 0.5)


def test_noise_arm_beside() -> None:
    noise, noise_control = table(36, 4, 2, 8)
    arm = control_arm(*table(20, 40, 5, 15), noise=noise, noise_control=noise_control)
    assert arm.noise_broken_share.value == pytest.approx(0.1)
    with pytest.raises(UsageError, match="noise_control: expected the controls"):
        control_arm([S], [F], noise=[S])
    few = control_arm(*table(20, 40, 5, 15), noise=[S, F], noise_control=[F, F])
    assert few.noise_broken_share.reason == "only 2 controls are ok, fewer than 30"


def test_interval_is_clustered_by_image() -> None:
    rng = np.random.default_rng(0)
    per_image = rng.integers(0, 2, 40)
    immunized = np.where(np.repeat(per_image, 5) == 1, S, F)
    control = np.full(200, F)
    ids = np.repeat(np.arange(40), 5)
    clustered, independent = control_arm(immunized, control, ids), control_arm(immunized, control)
    assert clustered.excess is not None
    assert independent.excess is not None
    wide = clustered.excess.interval.high - clustered.excess.interval.low
    assert wide > 1.8 * (independent.excess.interval.high - independent.excess.interval.low)
    assert clustered.excess.n_clusters == 40
    assert clustered.broken_share.interval is not None
    assert clustered.broken_share.interval.n_clusters == 40


def test_all_pairs_alike() -> None:
    arm = control_arm([S] * 40, [F] * 40, np.repeat(np.arange(8), 5))
    assert arm.excess is not None
    assert arm.excess.difference == 1.0
    assert arm.excess.interval.method.startswith("paired score on effective n")
    assert arm.abbott.value == 1.0
    assert arm.abbott.interval is None
    assert arm.abbott.reason.startswith("no interval")


def test_no_control_at_all_and_unpaired_noise() -> None:
    arm = control_arm([S, F], [None, None], paired_noise=False)
    assert arm.control_all is None
    assert arm.bounds == (-0.5, 0.5)
    assert not arm.paired_noise
    assert arm.broken_share.value is None


def test_errors() -> None:
    with pytest.raises(UsageError, match=r"control: expected one entry per case \(2\), got 1"):
        control_arm([S, F], [S])
    with pytest.raises(UsageError, match="control: expected 'success'"):
        control_arm([S, F], [S, "ok"])
    with pytest.raises(UsageError, match="image_ids: expected one entry per case"):
        control_arm([S, F], [S, F], ["a"])
