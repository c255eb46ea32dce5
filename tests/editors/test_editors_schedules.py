"""Schedules: identities between VP and rectified flow on random tensors, and against diffusers' schedulers."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

import tiny  # noqa: E402
from isr.editors.schedules import clean_of, equal_snr_sigma, expand, noise_of, target_of, vp_levels  # noqa: E402

KINDS = ("epsilon", "v_prediction", "sample", "flow")


def draw(seed: int = 0) -> tuple[torch.Tensor, ...]:
    g = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(4, 3, 5, 5, generator=g, dtype=torch.float64) for _ in range(3))


def levels(kind: str) -> tuple[torch.Tensor, torch.Tensor]:
    share = torch.tensor([0.05, 0.4, 0.8, 0.95], dtype=torch.float64).reshape(-1, 1, 1, 1)
    return (1 - share, share) if kind == "flow" else ((1 - share**2).sqrt(), share)


@pytest.mark.parametrize("kind", KINDS)
def test_a_perfect_prediction_gives_back_noise_and_latent(kind: str) -> None:
    z, n, _ = draw()
    a, b = levels(kind)
    noisy = a * z + b * n
    v = target_of(kind, z, n, a, b)
    torch.testing.assert_close(noise_of(kind, v, noisy, a, b), n)
    torch.testing.assert_close(clean_of(kind, v, noisy, a, b), z)


@pytest.mark.parametrize("kind", KINDS)
def test_every_estimate_recomposes_the_noisy_latent(kind: str) -> None:
    """For any prediction: a·ẑ + b·n̂ = noisy."""
    z, n, wrong = draw(1)
    a, b = levels(kind)
    noisy = a * z + b * n
    again = a * clean_of(kind, wrong, noisy, a, b) + b * noise_of(kind, wrong, noisy, a, b)
    torch.testing.assert_close(again, noisy)


def test_errors_of_flow_estimates() -> None:
    """n̂ − n = (1−σ)(v̂ − v), ẑ − z = −σ(v̂ − v), so ‖n̂ − n‖² = (1−σ)²‖v̂ − v‖²."""
    z, n, guess = draw(2)
    a, b = levels("flow")
    noisy, v = a * z + b * n, n - z
    torch.testing.assert_close(noise_of("flow", guess, noisy, a, b) - n, a * (guess - v))
    torch.testing.assert_close(clean_of("flow", guess, noisy, a, b) - z, -b * (guess - v))


def test_the_loss_gradient_of_flow_runs_through_the_target_too() -> None:
    """d/dz ½‖v̂ − (n − z)‖² with v̂ constant is v̂ − v: z inside the target carries gradient."""
    z, n, guess = draw(3)
    z.requires_grad_(True)
    a, b = levels("flow")
    (g,) = torch.autograd.grad(0.5 * (guess - target_of("flow", z, n, a, b)).square().sum(), z)
    torch.testing.assert_close(g, (guess - (n - z)).detach())


def test_vp_levels_equal_diffusers() -> None:
    for kind in ("DDIMScheduler", "PNDMScheduler"):
        scheduler = tiny.vp_scheduler(kind)
        z, n, _ = (x.float() for x in draw(4))
        t = torch.tensor([0, 17, 500, 999])
        a, b = vp_levels(scheduler.alphas_cumprod, t)
        torch.testing.assert_close(
            expand(a, z) * z + expand(b, z) * n, scheduler.add_noise(z, n, t), atol=1e-6, rtol=1e-5
        )


def test_vp_levels_between_timesteps_equal_the_euler_schedulers() -> None:
    """Linear spacing gives fractional timesteps; there σ is interpolated, and the network sees x/√(σ²+1)."""
    scheduler = tiny.vp_scheduler("EulerDiscreteScheduler")
    scheduler.set_timesteps(7)
    assert any(float(t) % 1 for t in scheduler.timesteps)
    a, b = vp_levels(scheduler.alphas_cumprod, scheduler.timesteps)
    sigmas = scheduler.sigmas[:-1]
    torch.testing.assert_close(b / a, sigmas, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(a, 1 / (sigmas**2 + 1).sqrt(), rtol=1e-4, atol=1e-5)


def test_vp_levels_at_zero_signal() -> None:
    """Schedules rescaled to end in pure noise (Lin et al. 2024): a = 0 and b = 1 at the last timestep, and no NaN before it."""
    scheduler = tiny.vp_scheduler("DDIMScheduler", rescale_betas_zero_snr=True)
    a, b = vp_levels(scheduler.alphas_cumprod, torch.tensor([997.5, 998.0, 999.0]))
    assert torch.isfinite(a).all()
    torch.testing.assert_close(a**2 + b**2, torch.ones(3))
    assert float(a[2]) < 3e-4  # 2⁻¹² where the schedule holds 0, as in the Euler schedulers
    assert float(a[1]) == pytest.approx(float(scheduler.alphas_cumprod[998].sqrt()), rel=1e-5)


def test_sigma_of_equal_signal_to_noise() -> None:
    """SD 1.x's schedule: t → σ as tabulated to three digits."""
    table = {0: 0.028, 100: 0.256, 200: 0.364, 400: 0.538, 600: 0.696, 751: 0.805, 900: 0.893, 980: 0.929, 999: 0.936}
    a, b = vp_levels(tiny.vp_scheduler().alphas_cumprod, torch.tensor(list(table)))
    torch.testing.assert_close(equal_snr_sigma(a, b), torch.tensor(list(table.values())), atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    ("steps", "strength", "sigma"), [(50, 0.5, 0.743), (50, 0.6, 0.814), (50, 0.9, 0.964), (28, 0.6, 0.814)]
)
def test_where_sd3_img2img_starts(tmp_path: Path, steps: int, strength: float, sigma: float) -> None:
    """Shift 3. Of 28 steps at strength .6, floor(28 · .4) = 11 are skipped (not 12: SD3 rounds the skipped, not the kept)."""
    from isr.editors.mmdit import SD3Img2Img

    folder = tiny.build("sd3", tmp_path, with_t5=False, layers=1)
    editor = SD3Img2Img.from_pretrained(str(folder), device="cpu", defaults={"strength": strength})
    t = editor.timesteps(steps)
    a, b = editor.levels(t)
    assert float(b[0]) == pytest.approx(sigma, abs=1e-3)
    torch.testing.assert_close(a + b, torch.ones_like(a))
    assert (t.diff() < 0).all()


def test_the_editors_dictionary(tmp_path: Path) -> None:
    """`noisy`, `target`, `noise_from`, `clean_from` agree on an editor of each kind of prediction."""
    from isr.editors.mmdit import SD3Instruct
    from isr.editors.unet import InstructPix2Pix

    makers = {
        "epsilon": lambda f: InstructPix2Pix.from_pretrained(str(tiny.build("ip2p", f)), device="cpu"),
        "v_prediction": lambda f: InstructPix2Pix.from_pretrained(
            str(tiny.build("ip2p", f, prediction_type="v_prediction")), device="cpu"
        ),
        "sample": lambda f: InstructPix2Pix.from_pretrained(
            str(tiny.build("ip2p", f, prediction_type="sample")), device="cpu"
        ),
        "flow": lambda f: SD3Instruct.from_pretrained(str(tiny.build("ultraedit-sd3", f, with_t5=False)), device="cpu"),
    }
    for kind, make in makers.items():
        editor = make(tmp_path / kind)
        assert editor.prediction == kind
        z, n, _ = (x.float() for x in draw(5))
        t = editor.timesteps(10)[2:6]
        noisy = editor.noisy(z, t, n)
        v = editor.target(z, t, n)
        torch.testing.assert_close(editor.noise_from(v, noisy, t), n, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(editor.clean_from(v, noisy, t), z, atol=1e-3, rtol=1e-3)
