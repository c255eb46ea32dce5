"""How damaged an edit is beside its source and its target: what the degradation heads learn."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))

from isr.data.miniworld import EDITS, miniworld  # noqa: E402

MEASURES = ("a", "b", "c")


def _pictures(count: int = 6) -> tuple[Any, Any]:
    items = list(miniworld(count, "design"))
    both = [np.stack([np.asarray(p(i)) for i in items]) for p in (lambda i: i.image, lambda i: i.target_image())]
    return tuple(torch.from_numpy(x.copy()).permute(0, 3, 1, 2).float() / 127.5 - 1 for x in both)


def _severity(name: str, *pictures: Any) -> Any:
    from miniworld_training.damage import MEASURES as MADE
    from miniworld_training.damage import severity

    return severity(*pictures, MADE[name])


@pytest.mark.parametrize("name", MEASURES)
def test_both_true_pictures_are_undamaged_and_a_third_is_not(name: str) -> None:
    before, asked = _pictures()
    for true in (before, asked):
        assert _severity(name, true, before, asked).shape == (6, 16, 16)
        assert float(_severity(name, true, before, asked).max()) < 1e-4
    other = before.roll(1, 0)
    assert float(_severity(name, other, before, asked).mean((1, 2)).min()) > 0.1


@pytest.mark.parametrize("name", MEASURES)
def test_half_an_edit_is_no_damage_away_from_the_seam(name: str) -> None:
    before, asked = _pictures()
    half = torch.cat([before[..., :32], asked[..., 32:]], 3)
    far = _severity(name, half, before, asked)[..., [0, 1, 2, 3, 12, 13, 14, 15]]
    assert float(far.max()) < 1e-3


@pytest.mark.parametrize("name", MEASURES)
def test_it_grows_with_noise_and_with_blur_and_stays_where_they_are(name: str) -> None:
    before, asked = _pictures()
    noise = torch.randn(before.shape, generator=torch.Generator().manual_seed(0))
    values = [
        float(_severity(name, (asked + s * noise).clamp(-1, 1), before, asked).mean()) for s in (0, 0.1, 0.3, 0.8)
    ]
    assert values == sorted(values)
    assert values[-1] > 10 * max(values[0], 1e-3)
    small = [torch.nn.functional.avg_pool2d(asked, k) for k in (2, 4, 8)]
    blurred = [torch.nn.functional.interpolate(x, size=64, mode="bilinear") for x in small]
    values = [float(_severity(name, x, before, asked).mean()) for x in blurred]
    assert values == sorted(values)
    spoilt = asked.clone()
    spoilt[..., :16, :16] = noise[..., :16, :16].clamp(-1, 1)
    found = _severity(name, spoilt, before, asked)
    assert float(found[:, :3, :3].mean()) > 0.3
    assert float(found[:, 8:, 8:].max()) < 1e-3


def test_a_change_of_brightness_is_no_damage_to_structure() -> None:
    before, asked = _pictures()
    assert float(_severity("a", 0.9 * asked + 0.05, before, asked).mean()) < 0.02


def test_the_term_is_that_of_ssim() -> None:
    """Against scikit-image's whole SSIM of pictures of equal local means, where the other factor is 1."""
    metrics = pytest.importorskip("skimage.metrics")
    from miniworld_training.damage import Measure, _apart

    rng = np.random.default_rng(0)
    x, y = rng.random((2, 40, 40))
    measure = Measure(sigma=1.5, floor=0.03)
    # skimage: S = (2 mx my + C1)/(mx² + my² + C1) · (2 cov + C2)/(vx + vy + C2); a huge K1 makes the first factor 1.
    _, theirs = metrics.structural_similarity(
        x, y, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1.0, K1=1e6, K2=0.03, full=True
    )
    a, b = (torch.from_numpy(v)[None, None].float() for v in (x, y))
    ours = 1 - _apart(a, b, measure)[0, 0].numpy()
    keep = slice(6, -6)
    assert np.abs(ours[keep, keep] - np.minimum(theirs, 1)[keep, keep]).max() < 2e-3


def test_edits_with_many_right_answers() -> None:
    from miniworld_training.answers import many_answers

    names = sorted(EDITS)
    shapes = {n for n in names if n.startswith("artwork/reshape/")}
    assert len(shapes) == 6
    assert {n for n, free in zip(names, many_answers(names), strict=True) if free} == shapes | {
        "landscape/balloon/add", "landscape/house/add", "landscape/mountain/add", "landscape/time/night", "landscape/trees/add",
    }  # fmt: skip


@pytest.mark.parametrize("sigma", [1.0, 2.5])
def test_blurring_is_a_gaussian_filter_reflected_at_the_border(sigma: float) -> None:
    from miniworld_training.damage import _blur
    from scipy.ndimage import gaussian_filter

    x = np.random.default_rng(0).normal(size=(2, 3, 64, 64))
    want = gaussian_filter(x, sigma, mode="mirror", radius=int(3 * sigma + 0.5), axes=(2, 3))
    assert np.allclose(_blur(torch.from_numpy(x), sigma).numpy(), want, atol=1e-6)
