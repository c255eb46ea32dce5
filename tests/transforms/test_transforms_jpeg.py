"""The differentiable JPEG against Pillow's codec (libjpeg-turbo), and its gradient."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
from PIL import Image
from skimage import data

torch = pytest.importorskip("torch")

from isr.errors import UsageError  # noqa: E402
from isr.transforms import JPEG, quantisation_tables  # noqa: E402


def pillow_jpeg(image: Image.Image, quality: int, subsampling: str) -> np.ndarray:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality, subsampling=subsampling)
    return np.asarray(Image.open(file).convert("RGB")).astype(int)


def tensor(image: Image.Image) -> torch.Tensor:
    return torch.tensor(np.asarray(image)).permute(2, 0, 1)[None] / 255


def levels(x: torch.Tensor) -> np.ndarray:
    return (x * 255).round()[0].permute(1, 2, 0).numpy().astype(int)


PHOTO = Image.fromarray(data.astronaut())


@pytest.mark.parametrize("subsampling", ["4:2:0", "4:4:4"])
@pytest.mark.parametrize("quality", [1, 20, 50, 75, 90, 100])
@pytest.mark.parametrize("size", [(256, 256), (131, 90)])
def test_forward_is_pillows_jpeg_within_half_a_level(size, quality, subsampling):
    # Stated tolerance (docs/purifiers.md): mean absolute difference at most 0.5 of a level and at least 4 in 5 values equal,
    # where the codec itself moves the picture several times as far. What is left are ties that the codec's integer DCT decides differently.
    image = PHOTO.resize(size)
    ours, theirs = (
        levels(JPEG(quality, subsampling=subsampling)(tensor(image))),
        pillow_jpeg(image, quality, subsampling),
    )
    difference = np.abs(ours - theirs)
    moved = np.abs(theirs - np.asarray(image).astype(int)).mean()
    assert difference.mean() <= 0.5
    assert (difference == 0).mean() >= 0.8
    assert difference.mean() < 0.5 * moved


@pytest.mark.parametrize("size", [(1, 1), (5, 3), (8, 8), (17, 33)])
def test_any_size_keeps_its_shape(size):
    image = PHOTO.resize(size)
    out = JPEG(75)(tensor(image))
    assert out.shape == (1, 3, size[1], size[0])
    # One coefficient on a tie moves a whole block, which on so few pixels weighs more than the half level above.
    assert np.abs(levels(out) - pillow_jpeg(image, 75, "4:2:0")).mean() <= 2.0


def test_tables_are_those_in_pillows_file():
    for quality in (1, 10, 49, 50, 75, 99, 100):
        file = io.BytesIO()
        PHOTO.resize((16, 16)).save(file, "JPEG", quality=quality)
        held = Image.open(file).quantization  # row-major since Pillow 8.3
        for ours, index in zip(quantisation_tables(quality), (0, 1), strict=True):
            assert ours.flatten().int().tolist() == list(held[index])


def test_hand_worked_constant_picture():
    # Grey 100: DC = 8·(100 − 128) = −224; luminance table at quality 50 has 16 there: −224/16 = −14 exactly, so 100 comes back.
    # At quality 10 (scale 500) it is 80: −2.8 → −3 → −240 → 128 − 30 = 98. Chroma is 0 throughout.
    grey = torch.full((1, 3, 16, 16), 100 / 255)
    assert torch.equal((JPEG(50)(grey) * 255).round(), torch.full((1, 3, 16, 16), 100.0))
    assert torch.equal((JPEG(10)(grey) * 255).round(), torch.full((1, 3, 16, 16), 98.0))


def test_gradients_are_finite_and_straight_through_is_the_identity_on_grey():
    x = tensor(PHOTO.resize((32, 32))).requires_grad_()
    for rounding in ("ste", "cubic"):
        (g,) = torch.autograd.grad((JPEG(75, rounding=rounding)(x) - 0.5).square().sum(), x)
        assert torch.isfinite(g).all()
        assert g.abs().sum() > 0
    # Away from clamping, every rounding passes the gradient on and the linear steps cancel: on a constant grey picture
    # without subsampling the Jacobian is the identity.
    y = torch.full((1, 3, 8, 8), 0.4, requires_grad=True)
    w = torch.randn((1, 3, 8, 8), generator=torch.Generator().manual_seed(0))
    (g,) = torch.autograd.grad((JPEG(75, subsampling="4:4:4")(y) * w).sum(), y)
    assert torch.allclose(g, w, atol=2e-4)


def test_cubic_rounding_has_the_derivative_of_its_forward():
    x = (
        torch.rand((1, 3, 8, 8), generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 0.4 + 0.3
    ).requires_grad_()
    jpeg = JPEG(50, rounding="cubic")
    # Float32 tables and matrices enter with rounding, so central differences at 1e-6 agree to a few digits.
    (g,) = torch.autograd.grad(jpeg(x).sum(), x)
    for i, j in [(0, 0), (3, 5)]:
        d = torch.zeros_like(x)
        d[0, 1, i, j] = 1e-6
        slope = float((jpeg(x + d).sum() - jpeg(x - d).sum()).detach() / 2e-6)
        assert math.isclose(slope, float(g[0, 1, i, j]), rel_tol=1e-3, abs_tol=1e-4)


def test_lower_quality_is_further_away_and_half_precision_is_kept():
    x = tensor(PHOTO.resize((64, 64)))
    errors = [float((JPEG(q)(x) - x).square().mean()) for q in (90, 75, 50, 30, 10)]
    assert errors == sorted(errors)
    assert JPEG(75)(x.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"quality": 0}, "quality must be a whole number from 1 to 100"),
        ({"quality": 75.0}, "quality must be a whole number"),
        ({"rounding": "hard"}, "rounding must be 'ste' or 'cubic'"),
        ({"subsampling": "4:1:1"}, "subsampling must be"),
    ],
)
def test_wrong_settings(wrong, message):
    with pytest.raises(UsageError, match=message):
        JPEG(**wrong)
