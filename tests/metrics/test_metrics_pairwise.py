"""PSNR, SSIM, VIFp, FSIM(c): against outside implementations, recorded constants, hand-worked values, and the property ladder."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from metrics_oracles import load_piq
from PIL import Image
from scipy import ndimage
from skimage import data
from skimage import metrics as skimage_metrics

torch = pytest.importorskip("torch")
torchmetrics_image = pytest.importorskip("torchmetrics.functional.image")

from isr.errors import UsageError  # noqa: E402
from isr.metrics import METRICS, fsim, fsimc, psnr, ssim, vifp  # noqa: E402

piq = load_piq()
needs_piq = pytest.mark.skipif(
    piq is None, reason="piq is not installed (pip install --no-deps piq); recorded constants stand in"
)

FUNCTIONS = {"psnr": psnr, "ssim": ssim, "vifp": vifp, "fsim": fsim, "fsimc": fsimc}
ASTRONAUT = Image.fromarray(data.astronaut())


def tensor(array: np.ndarray | Image.Image) -> torch.Tensor:
    return torch.tensor(np.asarray(array)).permute(2, 0, 1)[None].float() / 255


def jpeg20(image: Image.Image) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=20)
    return Image.open(file).convert("RGB")


def make_pairs() -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """(judged, reference) of the kinds that convention tables are usually made of."""
    image = ASTRONAUT.resize((160, 160))
    pixels = np.asarray(image).astype(float)
    noise = np.random.default_rng(0).normal(0, 5, pixels.shape)
    other = Image.fromarray(data.coffee()).resize((160, 160))
    judged = {
        "noise": np.clip(pixels + noise, 0, 255).round().astype(np.uint8),
        "blur": ndimage.gaussian_filter(pixels, (1.5, 1.5, 0)).round().astype(np.uint8),
        "jpeg 20": np.asarray(jpeg20(image)),
        "+20": np.clip(pixels + 20, 0, 255).astype(np.uint8),
        "unrelated": np.asarray(other),
    }
    pairs = {name: (tensor(x), tensor(image)) for name, x in judged.items()}
    odd = ASTRONAUT.resize((151, 117))
    pairs["odd sides"] = (tensor(jpeg20(odd)), tensor(odd))
    return pairs


PAIRS = make_pairs()
AT_512 = (tensor(jpeg20(ASTRONAUT)), tensor(ASTRONAUT))
each_pair = pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS.keys())


# --------------------------------------------------------------------------------------------- outside implementations


def _reference_skimage_psnr(a, b):
    return skimage_metrics.peak_signal_noise_ratio(b[0].double().numpy(), a[0].double().numpy(), data_range=1)


def _reference_skimage_ssim(a, b):
    return skimage_metrics.structural_similarity(
        a[0].double().numpy(), b[0].double().numpy(), data_range=1, channel_axis=0,
        gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
    )  # fmt: skip


def _reference_torchmetrics_vif(a, b):
    weights = torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64).view(1, 3, 1, 1)
    luma = [(x.double() * weights).sum(1, keepdim=True) * 255 for x in (a, b)]
    return float(torchmetrics_image.visual_information_fidelity(*luma))


@each_pair
def test_psnr_is_scikit_images_and_torchmetrics(pair):
    ours = float(psnr(*pair))
    assert ours == pytest.approx(_reference_skimage_psnr(*pair), abs=1e-3)
    assert ours == pytest.approx(float(torchmetrics_image.peak_signal_noise_ratio(*pair, data_range=1.0)), abs=1e-3)


@each_pair
def test_ssim_is_scikit_images_with_the_wang_window(pair):
    assert float(ssim(*pair)) == pytest.approx(_reference_skimage_ssim(*pair), abs=2e-5)
    assert float(ssim(*(x.double() for x in pair))) == pytest.approx(_reference_skimage_ssim(*pair), abs=1e-9)


@each_pair
def test_vifp_is_torchmetrics_on_luminance_at_255(pair):
    assert float(vifp(*pair)) == pytest.approx(_reference_torchmetrics_vif(*pair), abs=2e-4)
    assert float(vifp(*(x.double() for x in pair))) == pytest.approx(_reference_torchmetrics_vif(*pair), abs=1e-6)


@needs_piq
@each_pair
def test_all_are_piqs(pair):
    a, b = (x.double() for x in pair)
    assert float(psnr(a, b)) == pytest.approx(float(piq.psnr(a, b)), abs=1e-3)  # piq adds 1e-8 to the MSE
    assert float(ssim(a, b)) == pytest.approx(float(piq.ssim(a, b, downsample=False)), abs=1e-6)
    assert float(vifp(a, b)) == pytest.approx(float(piq.vif_p(a, b)), abs=1e-6)
    assert float(fsim(a, b)) == pytest.approx(float(piq.fsim(a, b, chromatic=False)), abs=1e-5)
    # piq's YIQ matrix has one more digit than the one FSIM's authors use.
    assert float(fsimc(a, b)) == pytest.approx(float(piq.fsim(a, b)), abs=2e-4)


@needs_piq
def test_fsim_is_piqs_where_both_shrink_the_picture_first():
    a, b = AT_512
    assert float(fsim(a, b)) == pytest.approx(float(piq.fsim(a, b, chromatic=False)), abs=1e-5)


def test_recorded_constants_stand_without_any_oracle():
    # scikit-image's astronaut (512×512) and its JPEG at quality 20: PSNR of skimage 0.26 = torchmetrics 1.9 = piq 0.8;
    # SSIM of skimage (Gaussian) and piq (downsample=False); VIFp and FSIM(c) of piq 0.8.
    a, b = AT_512
    recorded = {"psnr": 29.31, "ssim": 0.869, "vifp": 0.551, "fsimc": 0.979, "fsim": 0.981}
    for name, value in recorded.items():
        assert float(FUNCTIONS[name](a, b)) == pytest.approx(value, abs=6e-3 if name == "psnr" else 6e-4), name


@needs_piq
def test_the_conventions_that_are_not_ours_differ():
    # piq's default SSIM shrinks a 512 picture first, torchmetrics pads: neither may be reported under our convention.
    a, b = AT_512
    assert float(piq.ssim(a, b)) - float(ssim(a, b)) > 0.05
    # VIF of [0, 1] pixels on a [0, 255] formula is the silent mistake; the data_range check catches it.
    with pytest.raises(UsageError, match="give data_range=1"):
        vifp(a, b, data_range=255)


# ------------------------------------------------------------------------------------------------- hand-worked values


def test_psnr_by_hand():
    # Every value is 20/255 away: MSE = (20/255)², PSNR = 20·log10(255/20) = 22.1102 dB.
    a, b = torch.full((1, 3, 4, 4), 100 / 255), torch.full((1, 3, 4, 4), 120 / 255)
    assert float(psnr(a, b)) == pytest.approx(22.1102, abs=1e-3)
    # One of 48 values is 1 away: MSE = 1/48, PSNR = 10·log10(48) = 16.8124.
    c = torch.zeros(1, 3, 4, 4)
    d = c.clone()
    d[0, 0, 0, 0] = 1
    assert float(psnr(c, d)) == pytest.approx(16.8124, abs=1e-3)


def test_a_saturated_budget_has_its_known_psnr():
    # ±.03 everywhere: 20·log10(1/.03) = 30.4576 dB.
    x = torch.full((1, 3, 16, 16), 0.5)
    sign = torch.where(torch.rand(x.shape, generator=torch.Generator().manual_seed(0)) < 0.5, -1.0, 1.0)
    assert float(psnr(x + 0.03 * sign, x)) == pytest.approx(30.4576, abs=1e-3)


def test_ssim_of_two_constants_by_hand():
    # No variance: SSIM = (2·.4·.6 + .0001)/(.16 + .36 + .0001) = .4801/.5201 = .923092.
    a, b = torch.full((1, 3, 11, 11), 0.4, dtype=torch.float64), torch.full((1, 3, 11, 11), 0.6, dtype=torch.float64)
    assert float(ssim(a, b)) == pytest.approx(0.4801 / 0.5201, abs=1e-9)


def test_ssim_of_a_negative_by_hand():
    # y = 1 − x with mean ½ under the window: means equal, covariance −σ²: SSIM = (−2σ² + C2)/(2σ² + C2).
    # A checkerboard of 0 and 1 has E[x²] = E[x]; the window's mean is ½ up to 1e-5, so σ² = ¼: (−.5 + .0009)/(.5 + .0009) = −.996406.
    i = torch.arange(11)
    x = ((i[:, None] + i[None, :]) % 2).double().expand(1, 3, 11, 11)
    assert float(ssim(x, 1 - x)) == pytest.approx(-0.4991 / 0.5009, abs=1e-4)


def test_vifp_of_a_contrast_change_is_above_one():
    b = PAIRS["jpeg 20"][1] * 0.5 + 0.25
    more = (b - 0.5) * 1.5 + 0.5
    assert float(vifp(more, b)) > 1 > float(vifp(b, more))


# ---------------------------------------------------------------------------------------------------- property ladder

each = pytest.mark.parametrize("name", FUNCTIONS)


@pytest.fixture(scope="module")
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    b = torch.stack(
        [tensor(ASTRONAUT.resize((64, 48)))[0], tensor(Image.fromarray(data.coffee()).resize((64, 48)))[0]] * 2
    )
    noise = torch.randn(b.shape, generator=torch.Generator().manual_seed(0))
    a = (b + torch.tensor([0.02, 0.05, 0.1, 0.2]).view(4, 1, 1, 1) * noise).clamp(0, 1)
    return a, b


@each
def test_identity(name, batch):
    _, b = batch
    expected = math.inf if name == "psnr" else 1.0
    assert FUNCTIONS[name](b, b).tolist() == pytest.approx([expected] * 4, abs=1e-6)


@each
def test_symmetry_is_as_declared(name, batch):
    a, b = batch
    forth, back = FUNCTIONS[name](a, b), FUNCTIONS[name](b, a)
    assert METRICS[name].symmetric == torch.allclose(forth, back, atol=1e-6)


@each
def test_range_and_direction(name, batch):
    a, b = batch
    values = FUNCTIONS[name](a, b)
    assert METRICS[name].higher_is_better
    # Pictures 0 and 2 are the same with more and more noise, and so are 1 and 3.
    assert values[0] > values[2]
    assert values[1] > values[3]
    if name != "psnr":
        assert float(values.min()) > 0
        assert float(values.max()) < 1


@each
def test_batch_is_loop_and_permutation(name, batch):
    a, b = batch
    values = FUNCTIONS[name](a, b)
    assert torch.equal(values, torch.cat([FUNCTIONS[name](x[None], y[None]) for x, y in zip(a, b, strict=True)]))
    order = torch.tensor([2, 0, 3, 1])
    assert torch.equal(FUNCTIONS[name](a[order], b[order]), values[order])
    assert FUNCTIONS[name](a[:0], b[:0]).shape == (0,)


@each
def test_dtypes(name, batch):
    a, b = batch
    single, double = FUNCTIONS[name](a, b), FUNCTIONS[name](a.double(), b.double())
    assert single.dtype == torch.float32
    assert double.dtype == torch.float64
    assert torch.allclose(single.double(), double, atol=1e-3 if name == "psnr" else 2e-4)
    half = FUNCTIONS[name](a.half(), b.half())
    assert half.dtype == torch.float32
    assert torch.allclose(half, single, rtol=5e-3)


@each
def test_data_range_1_and_255_agree(name, batch):
    a, b = batch
    scaled = FUNCTIONS[name](a * 255, b * 255, data_range=255)
    assert torch.allclose(scaled, FUNCTIONS[name](a, b), atol=2e-4)


@each
def test_a_wrong_range_fails(name, batch):
    a, b = batch
    with pytest.raises(UsageError, match=rf"{name}: values of a must lie in \[0, 1\]"):
        FUNCTIONS[name](a * 255, b)
    with pytest.raises(UsageError, match="give data_range=1"):
        FUNCTIONS[name](a, b, data_range=255)
    broken = a.clone()
    broken[0, 0, 0, 0] = math.nan
    with pytest.raises(UsageError, match="values of a must lie in"):
        FUNCTIONS[name](broken, b)


@each
def test_constants(name):
    grey, dark = torch.full((1, 3, 48, 48), 0.5), torch.full((1, 3, 48, 48), 0.25)
    value = float(FUNCTIONS[name](dark, grey))
    if name in ("vifp", "fsim", "fsimc"):
        assert math.isnan(value), "0/0 is no number"
    else:
        assert math.isfinite(value)
    photo = tensor(ASTRONAUT.resize((48, 48)))
    flat = float(FUNCTIONS[name](grey, photo))
    assert math.isfinite(flat)
    if name == "vifp":
        assert flat == pytest.approx(0.0, abs=1e-9), "a constant picture keeps nothing of the reference"


@each
def test_smallest_size(name):
    side = METRICS[name].min_side
    g = torch.Generator().manual_seed(0)
    a, b = torch.rand(1, 3, side, side, generator=g), torch.rand(1, 3, side, side + 3, generator=g)[..., :side]
    assert math.isfinite(float(FUNCTIONS[name](a, b)))
    if side > 1:
        with pytest.raises(UsageError, match=f"at least {side}×{side} pixels"):
            FUNCTIONS[name](a[..., 1:], b[..., 1:])


@each
@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (torch.rand(1, 3, 64, 64), torch.rand(1, 3, 64, 65), "same shape"),
        (torch.rand(3, 64, 64), torch.rand(3, 64, 64), r"\(B, 3, H, W\) of RGB pixels, not shape"),
        (torch.rand(1, 1, 64, 64), torch.rand(1, 1, 64, 64), r"\(B, 3, H, W\) of RGB pixels"),
        (
            torch.zeros(1, 3, 64, 64, dtype=torch.uint8),
            torch.zeros(1, 3, 64, 64, dtype=torch.uint8),
            "must be a float tensor",
        ),
    ],
)
def test_errors(name, a, b, message):
    with pytest.raises(UsageError, match=message):
        FUNCTIONS[name](a, b)


def test_psnr_has_the_gradient_of_its_value():
    a = torch.full((2, 3, 4, 4), 0.5, dtype=torch.float64, requires_grad=True)
    # d/da of −10·log10(mean d²) = −20·d/(ln 10 · Σd²); here d = .25 everywhere and Σd² = 48·.0625 = 3: −.25·20/(2.302585·3) = −.723824.
    (g,) = torch.autograd.grad(psnr(a, torch.full_like(a, 0.25)).sum(), a)
    assert torch.allclose(g, torch.full_like(g, -0.723824), atol=1e-6)


def test_ssim_has_the_gradient_of_its_value():
    g = torch.Generator().manual_seed(0)
    a = torch.rand(1, 3, 13, 12, generator=g, dtype=torch.float64) * 0.8 + 0.1
    b = torch.rand(1, 3, 13, 12, generator=g, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: ssim(x, b), (a.requires_grad_(),), atol=1e-6)


@settings(max_examples=25, deadline=None)
@given(st.integers(11, 30), st.integers(11, 30), st.integers(0, 2**31))
def test_ssim_stays_in_its_interval_on_anything(h, w, seed):
    g = torch.Generator().manual_seed(seed)
    a, b = torch.rand(1, 3, h, w, generator=g).round(), torch.rand(1, 3, h, w, generator=g)
    value = float(ssim(a, b))
    assert -1 <= value <= 1
    assert value == pytest.approx(_reference_skimage_ssim(a, b), abs=1e-4)
