"""Every transform: shape, range, dtype, batch = loop, determinism, gradient, references, errors; and the random variants."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage
from skimage import data

torch = pytest.importorskip("torch")

from isr.errors import UsageError  # noqa: E402
from isr.transforms import (  # noqa: E402
    EOT,
    JPEG,
    BitDepth,
    Blur,
    CropResize,
    Identity,
    Noise,
    PerImage,
    Random,
    Resize,
    Rotation,
    editshield_eot,
    standard_eot,
)

FIXED = [
    Identity(), JPEG(75), JPEG(50, rounding="cubic"), Resize(0.5), Resize(0.75, mode="bicubic"), Resize(0.5, mode="area"),
    CropResize(0.75), Blur(1.5, size=5), Blur(2.0), Noise(0.05, seed=3), Rotation(5.0), Rotation(5.0, back=True), BitDepth(3),
]  # fmt: skip


@pytest.fixture(scope="module")
def x() -> torch.Tensor:
    photo = Image.fromarray(data.astronaut()).resize((80, 48))
    a = torch.tensor(np.asarray(photo)).permute(2, 0, 1) / 255
    return torch.stack([a, a.flip(-1), 1 - a])


def generators(n: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(100 + i) for i in range(n)]


@pytest.mark.parametrize("t", FIXED, ids=lambda t: t.kind)
def test_ladder_of_every_fixed_transform(t, x):
    y = t(x)
    assert y.shape == x.shape
    assert y.dtype == x.dtype
    assert float(y.min()) >= 0
    assert float(y.max()) <= 1 + 1e-6
    assert torch.equal(y, t(x)), "the same call gives the same bytes"
    loop = torch.cat([t(x[i : i + 1]) for i in range(len(x))])
    assert torch.allclose(y, loop, atol=1e-6)
    assert t(x.double()).dtype == torch.float64
    assert json.loads(json.dumps(t.settings()))["transform"] == t.kind
    leaf = x.clone().requires_grad_()
    (g,) = torch.autograd.grad(t(leaf).square().sum(), leaf)
    assert torch.isfinite(g).all()
    assert float(g.abs().sum()) > 0


@pytest.mark.parametrize("t", [f for f in FIXED if f.kind not in ("noise", "jpeg")], ids=lambda t: t.kind)
def test_a_constant_picture_stays_constant(t):
    # 1/7 ticks: 3/7 is a level of 3 bits (levels k/7), so that bit depth leaves it alone too.
    c = torch.full((1, 3, 32, 24), 3 / 7)
    assert torch.allclose(t(c), c, atol=1e-5)


@pytest.mark.parametrize("t", FIXED, ids=lambda t: t.kind)
def test_one_pixel_is_enough(t):
    assert t(torch.full((1, 3, 1, 1), 0.5)).shape == (1, 3, 1, 1)


def test_blur_is_scipys_gaussian(x):
    # truncate·σ = 6 pixels of radius, as Blur(2.0) takes; "nearest" repeats the edge.
    reference = ndimage.gaussian_filter(x[0].double().numpy(), sigma=(0, 2, 2), mode="nearest", truncate=3.0)
    assert np.allclose(Blur(2.0)(x[:1].double())[0].numpy(), reference, atol=1e-7)


def test_blur_5x5_sigma_1_5_by_hand():
    # e^(−1/4.5) = .800737, e^(−4/4.5) = .411112; sum = 1 + 2·(.800737 + .411112) = 3.423698; centre weight² = (1/3.423698)² = .085312
    x = torch.zeros(1, 3, 9, 9)
    x[..., 4, 4] = 1
    y = Blur(1.5, size=5)(x)
    assert float(y[0, 0, 4, 4]) == pytest.approx(0.085312, abs=1e-5)
    assert float(y[0, 0, 4, 3] / y[0, 0, 4, 4]) == pytest.approx(0.800737, abs=1e-5)
    assert float(y[0, 0].sum()) == pytest.approx(1.0, abs=1e-6)


def test_rotation_turns_as_pillow_does():
    photo = Image.fromarray(data.astronaut()).resize((120, 80))
    x = torch.tensor(np.asarray(photo)).permute(2, 0, 1)[None] / 255
    ours = (Rotation(5.0, border="zeros")(x)[0].permute(1, 2, 0) * 255).numpy()
    theirs = np.asarray(photo.rotate(5, resample=Image.Resampling.BILINEAR)).astype(float)
    inside = np.abs(ours - theirs)[15:-15, 15:-15]
    assert inside.mean() < 0.6
    # A quarter turn of a square is exact.
    square = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(Rotation(90.0)(square), torch.rot90(square, 1, (2, 3)), atol=1e-5)


def test_resize_down_is_pillows_antialiased_bilinear():
    photo = Image.fromarray(data.astronaut()).resize((120, 80))
    x = torch.tensor(np.asarray(photo)).permute(2, 0, 1)[None] / 255
    from isr.transforms import resize_to

    ours = (resize_to(x, (40, 60))[0].permute(1, 2, 0) * 255).numpy()
    theirs = np.asarray(photo.resize((60, 40), Image.Resampling.BILINEAR)).astype(float)
    assert np.abs(ours - theirs).max() <= 1.01  # Pillow rounds after each of its two passes


def test_crop_resize_keeps_the_middle(x):
    # fraction .5 of a 4×4 picture keeps rows and columns 1–2.
    small = torch.arange(16.0).reshape(1, 1, 4, 4).expand(1, 3, 4, 4) / 16
    middle = small[..., 1:3, 1:3]
    from isr.transforms import resize_to

    assert torch.equal(CropResize(0.5)(small), resize_to(middle, (4, 4), "bicubic"))
    assert torch.equal(CropResize(1.0, mode="bilinear")(x), x)


def test_bit_depth_by_hand():
    # One bit: below .5 → 0, from .5 on → 1. Two bits: levels 0, 1/3, 2/3, 1.
    x = torch.tensor([0.1, 0.49, 0.5, 0.9]).reshape(1, 1, 2, 2).expand(1, 3, 2, 2)
    assert BitDepth(1)(x)[0, 0].flatten().tolist() == [0, 0, 1, 1]
    assert BitDepth(2)(x)[0, 0].flatten().tolist() == pytest.approx([0, 1 / 3, 2 / 3, 1])


def test_noise_has_its_sigma_and_needs_randomness():
    x = torch.full((1, 3, 128, 128), 0.5)
    y = Noise(0.05)(x, torch.Generator().manual_seed(0))
    assert float((y - x).std()) == pytest.approx(0.05, rel=0.02)
    with pytest.raises(UsageError, match="draws random numbers"):
        Noise(0.05)(x)


def test_one_generator_per_image_is_independent_of_the_batch(x):
    batch = Noise(0.05)(x, generators(3))
    alone = torch.cat([Noise(0.05)(x[i : i + 1], [g]) for i, g in enumerate(generators(3))])
    assert torch.equal(batch, alone)
    with pytest.raises(UsageError, match="one generator per image: 3 images, 2 generators"):
        Noise(0.05)(x, generators(2))


@pytest.mark.parametrize("make", [editshield_eot, standard_eot])
def test_eot_draws_reproducibly_per_image_and_stays_in_its_ranges(make, x):
    eot = make()
    assert torch.equal(eot(x, generators(3)), eot(x, generators(3)))
    alone = torch.cat([eot(x[i : i + 1], [g]) for i, g in enumerate(generators(3))])
    assert torch.equal(eot(x, generators(3)), alone)
    g = torch.Generator().manual_seed(0)
    drawn = [eot.sample(g) for _ in range(300)]
    assert {d.kind for d in drawn} == {getattr(c, "kind", None) or c.make.kind for c in eot.choices}
    for d in drawn:
        if isinstance(d, JPEG):
            assert 50 <= d.quality <= 95
        if isinstance(d, Rotation):
            assert -5 <= d.degrees <= 5
        if isinstance(d, Noise):
            assert d.seed is not None, "a sampled noise is fixed"
    json.dumps(eot.settings())


def test_the_same_draw_serves_two_pictures(x):
    t = standard_eot().sample_each(generators(3))
    assert isinstance(t, PerImage)
    assert torch.equal(t(x), t(x.clone()))
    with pytest.raises(UsageError, match="3 transforms were drawn"):
        t(x[:2])


def test_weights_and_ranges():
    eot = EOT([Identity(), Random(JPEG, quality=(30, 30))], weights=[0, 1])
    assert eot.sample(torch.Generator().manual_seed(0)) == JPEG(30)
    with pytest.raises(UsageError, match="weights must be 1 numbers"):
        EOT([Identity()], weights=[1, 2])
    with pytest.raises(UsageError, match="low ≤ high"):
        Random(JPEG, quality=(90, 50))
    with pytest.raises(UsageError, match="needs generator="):
        standard_eot()(torch.rand(1, 3, 8, 8))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Blur(1.0)(torch.rand(3, 8, 8)), r"\(B, 3, H, W\) of RGB pixels, not shape \(3, 8, 8\)"),
        (lambda: Blur(1.0)(torch.zeros(1, 3, 8, 8, dtype=torch.uint8)), "float tensor with values in"),
        (lambda: Blur(0.0), "sigma must be a positive number"),
        (lambda: Blur(1.0, size=4), "size must be an odd number"),
        (lambda: Resize(0.0), "scale must be a positive number"),
        (lambda: Resize(0.5, mode="lanczos"), "mode must be one of"),
        (lambda: CropResize(1.5), r"fraction must be in \(0, 1\]"),
        (lambda: Rotation(float("nan")), "degrees must be a finite number"),
        (lambda: Rotation(5, border="wrap"), "border must be one of"),
        (lambda: BitDepth(9), "bits must be a whole number from 1 to 8"),
        (lambda: Noise(-1.0), "sigma must be a number ≥ 0"),
    ],
)
def test_errors_say_what_to_do(call, message):
    with pytest.raises(UsageError, match=message):
        call()
