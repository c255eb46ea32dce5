"""Budgets on 8-bit pictures: what is measured, rounded, projected and refused."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import PIL.Image
import pytest
from hypothesis import given
from hypothesis import strategies as st
from skimage.metrics import peak_signal_noise_ratio

from isr.errors import BudgetError, UsageError
from isr.perturbation import Budget, fit, measure, quantise, verify, within


def picture(seed: int = 0, size: tuple[int, int] = (12, 10)) -> PIL.Image.Image:
    return PIL.Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def changed(image: PIL.Image.Image, change: Any) -> PIL.Image.Image:
    return PIL.Image.fromarray(np.clip(np.asarray(image).astype(int) + change, 0, 255).astype(np.uint8))


def test_levels_of_the_budgets_in_use() -> None:
    # 255 · 0.03 = 7.65 → 7; 255 · (8/255) must be 8 whatever its float product is; 255 · 0.045 = 11.475 → 11, and so on.
    eps = (0.03, 4 / 255, 8 / 255, 16 / 255, 0.045, 0.06, 0.09, 0.12)
    assert [Budget("linf", e).levels for e in eps] == [7, 4, 8, 16, 11, 15, 22, 30]


def test_measure_against_hand_and_scikit_image() -> None:
    # 2×1 pixels, changes (3, 0, −4) and (0, 0, 0): l∞ 4/255, l2 5/255, psnr 10 log10(255² · 6 / 25) = 41.933 dB.
    a = PIL.Image.fromarray(np.full((1, 2, 3), 100, np.uint8))
    b = PIL.Image.fromarray(np.array([[[103, 100, 96], [100, 100, 100]]], np.uint8))
    found = measure(a, b)
    assert (found.levels, found.linf, found.l2, found.changed) == (4, 4 / 255, 5 / 255, 2 / 6)
    assert found.psnr == pytest.approx(41.933, abs=1e-3)
    assert found.psnr == pytest.approx(peak_signal_noise_ratio(np.asarray(a), np.asarray(b), data_range=255))
    assert measure(a, a).psnr == math.inf


def test_saturated_noise_has_the_known_psnr() -> None:
    # ±0.03 everywhere is 30.46 dB as floats; saved it is 7 levels: −20 log10(7/255) = 31.23 dB.
    grey = PIL.Image.new("RGB", (64, 64), (128, 128, 128))
    sign = np.where(np.random.default_rng(0).random((64, 64, 3)) < 0.5, -0.03, 0.03)
    saved = PIL.Image.fromarray(quantise(np.asarray(grey), 128 / 255 + sign, Budget("linf", 0.03)))
    assert measure(grey, saved).psnr == pytest.approx(-20 * math.log10(7 / 255), abs=1e-9)


@given(st.integers(0, 10_000), st.floats(0.004, 0.3), st.floats(0, 0.6), st.sampled_from(["linf", "l2"]))
def test_quantise_is_inside_and_changes_nothing_it_need_not(seed: int, eps: float, spread: float, norm: Any) -> None:
    rng = np.random.default_rng(seed)
    base = rng.integers(0, 256, (5, 7, 3), dtype=np.uint8)
    wanted = base / 255 + rng.uniform(-spread, spread, base.shape)
    budget = Budget(norm, eps if norm == "linf" else 10 * eps)
    saved = quantise(base, wanted, budget)
    a, b = PIL.Image.fromarray(base), PIL.Image.fromarray(saved)
    assert within(measure(a, b), budget)
    verify(a, b, budget)
    # No value moved further from the original than asked for, plus rounding; none moved the other way.
    asked, got = np.clip(wanted, 0, 1) * 255 - base, saved.astype(float) - base
    assert (np.abs(got) <= np.abs(asked) + 0.5 + 1e-9).all()
    assert (got * asked >= 0).all()
    free = quantise(base, wanted, None)
    floats_inside = norm == "linf" or math.sqrt((asked**2).sum()) / 255 <= budget.eps
    if floats_inside and within(measure(a, PIL.Image.fromarray(free)), budget):
        assert np.array_equal(saved, free), "already inside: plain rounding"
    assert np.array_equal(saved, quantise(base, saved / 255, budget)), "idempotent"


def test_l2_takes_back_the_largest_excess_first() -> None:
    # Changes 0.6, 0.6, 0.9 levels in a ball of 1.28 levels: as floats √(.36+.36+.81) = 1.237, rounded (1, 1, 1) √3 = 1.73.
    # Taking back one of the first two (excess 0.4 each) gives √2 = 1.41, both give 1.
    base = np.full((1, 1, 3), 100, np.uint8)
    saved = quantise(base, (base + np.array([[[0.6, 0.6, 0.9]]])) / 255, Budget("l2", 1.28 / 255))
    assert (saved.astype(int) - 100).tolist() == [[[0, 0, 1]]]


def test_verify_names_the_culprit_and_the_remedy() -> None:
    image, black = picture(), PIL.Image.new("RGB", (4, 4))
    with pytest.raises(
        BudgetError,
        match=r"thief broke its own L∞ budget on a\.png: the saved picture changes by 9 levels \(0\.03529\), allowed are 7 levels",
    ):
        verify(black, PIL.Image.new("RGB", (4, 4), (9, 0, 0)), Budget("linf", 0.03), name="thief", item="a.png")
    with pytest.raises(BudgetError, match="broke its own L2 budget"):
        verify(image, changed(image, 20), Budget("l2", 0.5))
    with pytest.raises(UsageError, match="protected is 4×4, its original 12×10"):
        verify(image, black, None)
    with pytest.raises(UsageError, match="must be an 8-bit RGB picture, not mode 'L'"):
        measure(image, image.convert("L"))
    with pytest.raises(UsageError, match="must be a PIL image, not ndarray"):
        measure(image, np.asarray(image))  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="not finite"):
        quantise(np.asarray(image), np.full((10, 12, 3), np.nan), None)


def test_fit_is_the_projection() -> None:
    image = PIL.Image.new("RGB", (6, 6), (128, 128, 128))
    assert measure(image, fit(image, changed(image, 30), Budget("linf", 0.03))).levels == 7
    assert fit(image, changed(image, 5), Budget("linf", 0.03)).tobytes() == changed(image, 5).tobytes()


@pytest.mark.parametrize(
    ("norm", "eps", "match"),
    [
        ("linf", 8, "at most 1"),
        ("l1", 0.1, "one of linf, l2"),
        ("linf", 0, "positive"),
        ("l2", math.nan, "positive"),
    ],
)
def test_budgets_refuse_what_makes_no_sense(norm: Any, eps: float, match: str) -> None:
    with pytest.raises(UsageError, match=match):
        Budget(norm, eps)


def test_budget_is_read_from_settings() -> None:
    assert Budget.of({"budget": {"norm": "linf", "eps": 0.03}}) == Budget("linf", 0.03)
    assert Budget.of({"budget": None}) is None
    assert Budget.of({}) is None
    with pytest.raises(UsageError, match=r'settings\(\)\["budget"\] must be'):
        Budget.of({"budget": {"eps": 0.03}})
