"""SIFM against Algorithm 1 written out, and every reading of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from isr.attacks.context import Context, Draws
from isr.attacks.denoise import coefficients, schedule, trajectory
from isr.attacks.pgd import PGD, one_step, to_tensor
from isr.attacks.sifm import SIFM, sifm
from torch import Tensor
from toy import ToyEditor, pictures

from isr.errors import UsageError
from isr.registry import ATTACKS

PROMPTS = ["make the sky red", "a cat"]


def algorithm_1(
    editor: ToyEditor, x0: Tensor, *, lam: float, alpha: float, eps: float, steps: int, times: Tensor, noise: Tensor
) -> Tensor:
    """The paper's loop, line by line: one timestep at a time, gradients with respect to x_imu summed and divided by |T|."""
    text = editor.embed(PROMPTS)

    def phi(x: Tensor, k: int) -> Tensor:
        t = times[k].repeat(len(x))
        z = editor.latents(x)
        layers = editor.features(editor.noisy(editor.scaled(z), t, noise[:, k]), t, text, z, ["one", "two"])
        return (layers["one"] + layers["two"]) / 2  # Eq. 3

    delta, x = torch.zeros_like(x0), x0.clone()
    with torch.no_grad():
        original = [phi(x0, k) for k in range(len(times))]
    for _ in range(steps):
        total = torch.zeros_like(x0)
        for k in range(len(times)):
            at = x.clone().requires_grad_(True)
            f = phi(at, k)
            loss = f.abs().flatten(1).sum(1) - lam * ((f - original[k]) ** 2).flatten(1).mean(1)
            total += torch.autograd.grad(loss.sum(), at)[0]
        delta = (delta - alpha * (total / len(times)).sign()).clamp(-eps, eps)
        x = (x0 + delta).clamp(0, 1)
    return delta


@pytest.mark.parametrize("rows", [1, 2, 6, 16])
@pytest.mark.parametrize("lam", [0.1, 100.0])
def test_equals_algorithm_1(rows: int, lam: float) -> None:
    """All timesteps in one pass, or in parts, give the perturbation of the loop."""
    editor = ToyEditor(dtype=torch.float64)
    x0 = to_tensor(pictures(2))
    attack = sifm(lam=lam, iterations=5, rows=rows)
    result = attack.run(pictures(2), PROMPTS, editor=editor, seeds=[0, 1])
    # The noise the attack drew: (T, C, h, w) from each picture's generator, nothing before it (the start is 0).
    noise = torch.stack([torch.randn(4, 4, 4, 4, generator=torch.Generator().manual_seed(s)) for s in (0, 1)]).double()
    steps = schedule(editor)
    times = steps[[0, 2, 3, 5]]  # 60 % of 10 steps: places round(linspace(0, 5, 4)) = 0, 1.67, 3.33, 5
    want = algorithm_1(editor, x0, lam=lam, alpha=1 / 255, eps=0.03, steps=5, times=times, noise=noise)
    assert torch.allclose(torch.stack(result.deltas), (x0 + want).clamp(0, 1) - x0, atol=1e-6)


@pytest.mark.parametrize("reduction", ["paper", "mean_mean", "mean_sum", "relative", "grad_balanced"])
@pytest.mark.parametrize("kind", ["cond", "own"])
def test_parts_give_the_gradient_of_one_pass(reduction: Any, kind: str) -> None:
    editor = ToyEditor(image=kind, dtype=torch.float64)
    clean = to_tensor(pictures(2)).double()
    delta = 0.01 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    whole, parts = (
        one_step(
            SIFM(reduction=reduction), editor, clean, PROMPTS, delta=delta, settings=sifm(rows=rows).pgd, seeds=[0, 1]
        )
        for rows in (16, 2)
    )
    assert torch.allclose(whole.losses, parts.losses, rtol=1e-12)
    assert torch.allclose(whole.gradient, parts.gradient, rtol=1e-9, atol=1e-14)


def test_dist_only_from_zero_stays_at_zero() -> None:
    """Dist(δ = 0) is 0 and so is its gradient; sign(0) = 0. The preset therefore starts dist-only beside 0."""
    with pytest.warns(UserWarning, match=r"gradient of images \[0, 1\] is exactly zero, so nothing moves them"):
        stuck = sifm(terms="dist", start="zero", iterations=6).run(
            pictures(2), PROMPTS, editor=ToyEditor(), seeds=[0, 1]
        )
    assert all(not d.any() for d in stuck.deltas)
    assert stuck.images[0].tobytes() == pictures(2)[0].tobytes()
    assert sifm(terms="dist").pgd.start == "small"
    assert sifm().pgd.start == "zero"
    assert sifm(terms="norm").pgd.start == "zero"
    moved = sifm(terms="dist", iterations=6).run(pictures(2), PROMPTS, editor=ToyEditor(), seeds=[0, 1])
    assert all(d.any() for d in moved.deltas)


def test_fresh_noise_gives_dist_a_gradient_at_zero() -> None:
    clean = to_tensor(pictures(2))
    fixed, fresh = (
        one_step(SIFM(terms="dist", noise=n), ToyEditor(), clean, PROMPTS, seeds=[0, 1]) for n in ("fixed", "fresh_imm")
    )  # type: ignore[arg-type]
    assert not fixed.gradient.any()
    assert fresh.gradient.any()
    both = one_step(SIFM(terms="dist", noise="fresh_both"), ToyEditor(), clean, PROMPTS, seeds=[0, 1])
    assert not both.gradient.any(), "new noise on both sides leaves the distance of a picture to itself at 0"


def test_first_step_is_a_pure_norm_step() -> None:
    clean = to_tensor(pictures(2))
    both, norm = (one_step(SIFM(terms=t), ToyEditor(), clean, PROMPTS, seeds=[0, 1]) for t in ("both", "norm"))  # type: ignore[arg-type]
    assert torch.equal(both.gradient, norm.gradient)


def hand_terms(editor: ToyEditor, clean: Tensor, delta: Tensor) -> tuple[Tensor, Tensor]:
    """φ and φ₀ (B, T, n) from single calls, for the reductions."""
    noise = torch.stack([torch.randn(4, 4, 4, 4, generator=torch.Generator().manual_seed(s)) for s in (0, 1)]).double()
    times, text = schedule(editor)[[0, 2, 3, 5]], editor.embed(PROMPTS)

    def phi(x: Tensor) -> Tensor:
        z = editor.latents(x)
        rows = []
        for k in range(4):
            t = times[k].repeat(2)
            f = editor.features(editor.noisy(editor.scaled(z), t, noise[:, k]), t, text, z, ["one", "two"])
            rows.append(((f["one"] + f["two"]) / 2).flatten(1))
        return torch.stack(rows, 1)

    return phi(clean + delta), phi(clean)


def test_reductions_and_distances_are_what_they_say() -> None:
    editor, clean = ToyEditor(dtype=torch.float64), 0.2 + 0.6 * to_tensor(pictures(2)).double()
    delta = 0.02 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).clamp(
        -1, 1
    )
    f, f0 = hand_terms(editor, clean, delta)
    d2, n = (f - f0) ** 2, f.shape[-1]
    l1, l2 = f.abs().sum(-1), f.norm(dim=-1)
    want = {
        ("paper", "l1", "mse"): l1 - 0.1 * d2.mean(-1),
        ("mean_mean", "l1", "mse"): l1 / n - 0.1 * d2.mean(-1),
        ("mean_sum", "l1", "mse"): l1 / n - 0.1 * d2.sum(-1),
        ("relative", "l1", "mse"): l1 / f0.abs().sum(-1) - 1.0 * d2.mean(-1) / (f0**2).mean(-1),
        ("paper", "frobenius", "mse"): l2 - 0.1 * d2.mean(-1),
        ("mean_mean", "frobenius", "l1"): l2 / n**0.5 - 0.1 * (f - f0).abs().mean(-1),
        ("paper", "l1", "cosine"): l1 - 0.1 * (1 - (f * f0).sum(-1) / (l2 * f0.norm(dim=-1))),
    }
    for (reduction, norm, dist), expected in want.items():
        found = one_step(
            SIFM(reduction=reduction, feature_norm=norm, dist=dist), editor, clean, PROMPTS, delta=delta, seeds=[0, 1]
        )  # type: ignore[arg-type]
        assert torch.allclose(found.losses, expected.mean(1), rtol=1e-9), (reduction, norm, dist)


def test_grad_balanced_weighs_two_unit_gradients() -> None:
    editor, clean = ToyEditor(dtype=torch.float64), to_tensor(pictures(2)).double()
    delta = 0.01 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def g(**options: Any) -> Tensor:
        return one_step(SIFM(**options), editor, clean, PROMPTS, delta=delta, seeds=[0, 1]).gradient

    norm, dist = g(terms="norm"), -g(terms="dist")
    want = norm / norm.abs().sum((1, 2, 3), keepdim=True) - 0.7 * dist / dist.abs().sum((1, 2, 3), keepdim=True)
    assert torch.allclose(g(reduction="grad_balanced", lam=0.7), want, rtol=1e-9)


def test_layers_of_one_shape_are_averaged_first_and_others_by_loss() -> None:
    editor, clean = ToyEditor(dtype=torch.float64), to_tensor(pictures(2)).double()

    def loss(**options: Any) -> Tensor:
        return one_step(
            SIFM(terms="norm", reduction="mean_mean", **options), editor, clean, PROMPTS, seeds=[0, 1]
        ).losses

    one, two, out = (loss(layers=[name]) for name in ("one", "two", "out"))
    assert torch.allclose(loss(layers=["one", "two"], aggregate="losses"), (one + two) / 2)
    assert bool((loss(layers=["one", "two"]) <= (one + two) / 2 + 1e-12).all()), "‖mean‖ ≤ mean ‖·‖"
    assert torch.allclose(loss(layers=["one", "out"]), (one + out) / 2), "shapes differ, so the losses are averaged"
    with pytest.raises(UsageError, match=r"aggregate='features' averages layers of one shape \(Eq. 3\)"):
        loss(layers=["one", "out"], aggregate="features")


def test_timesteps_are_the_first_sixty_percent_of_the_editors_schedule() -> None:
    seen: list[Tensor] = []

    class Spy(ToyEditor):
        def features(self, noisy: Tensor, t: Tensor, *rest: Any) -> dict[str, Tensor]:
            seen.append(t)
            return super().features(noisy, t, *rest)

    for kind, first in (("cond", 951.0), ("latent", 951.0 * 0.6)):
        seen.clear()
        editor = Spy(image=kind)
        one_step(SIFM(), editor, to_tensor(pictures(1)), ["a"])
        steps = editor.timesteps(10)
        assert seen[0].tolist() == steps[[0, 2, 3, 5]].tolist()
        assert seen[0][0].item() == pytest.approx(first)
    seen.clear()
    one_step(SIFM(timesteps=(700, 300)), Spy(), to_tensor(pictures(1)), ["a"])
    assert seen[0].tolist() == [700.0, 300.0]


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample", "flow"])
def test_trajectory_passes_the_latents_of_a_clean_edit(prediction: str) -> None:
    """At the editor's own timesteps, its latents are those of the toy's rollout (no guidance, so the walks are the same)."""
    editor = ToyEditor(prediction, dtype=torch.float64)
    clean = to_tensor(pictures(1)).double()
    context = Context(editor=editor, clean=clean, prompts=("a b",), draws=Draws([0]))
    noise = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(5))
    steps = editor.timesteps(10)
    visited: list[Tensor] = []
    real = editor.predict

    def spy(z: Tensor, *rest: Any) -> Tensor:
        visited.append(z.detach().clone())
        return real(z, *rest)

    editor.predict = spy  # type: ignore[method-assign]
    editor.rollout(clean, ["a b"], 10, seeds=[5])
    walk = visited.copy()
    found = trajectory(context, steps[[0, 4, 7]], noise.double())
    for z, k in zip(found, (0, 4, 7), strict=True):
        assert torch.allclose(z, walk[k], atol=1e-9)


@pytest.mark.parametrize("prediction", ["epsilon", "flow"])
def test_timesteps_outside_of_the_schedule_are_refused(prediction: str) -> None:
    for wrong in ([1001.0], [500, -1], [float("nan")], []):
        with pytest.raises(UsageError, match=r"timesteps must be a list of numbers from 0 to 1000"):
            ATTACKS.create("sifm", timesteps=wrong)


def test_paths_of_sifm_differ_and_trajectory_reaches_pixels_through_the_condition_only() -> None:
    clean = to_tensor(pictures(2)).double()

    def gradient(path: str, editor: ToyEditor) -> Tensor:
        return one_step(SIFM(path=path), editor, clean, PROMPTS, seeds=[0, 1]).gradient  # type: ignore[arg-type]

    found = [gradient(p, ToyEditor(dtype=torch.float64)) for p in ("both", "lat", "cond", "trajectory")]
    assert all(not torch.allclose(a, b) for i, a in enumerate(found) for b in found[:i])
    blind = ToyEditor(dtype=torch.float64)
    blind.w1[:, 4:] = 0
    assert not gradient("trajectory", blind).any()


def test_coefficients_are_read_off_the_editor() -> None:
    like, t = torch.zeros(2, 4, 4, 4), torch.tensor([951.0, 95.1])
    a, b = coefficients(ToyEditor(), t, like)
    assert torch.allclose(a**2 + b**2, torch.ones(2, 1, 1, 1))
    a, b = coefficients(ToyEditor("flow"), t, like)
    assert torch.allclose(b.flatten(), t / 1000)
    assert torch.allclose(a + b, torch.ones(2, 1, 1, 1))


@pytest.mark.parametrize(
    "bad",
    [
        {"reduction": "sum"},
        {"noise": "none"},
        {"dist": "l2"},
        {"terms": "all"},
        {"feature_norm": "l0"},
        {"aggregate": "mean"},
    ],
)
def test_readings_have_names(bad: dict[str, Any]) -> None:
    (name,) = bad
    with pytest.raises(UsageError, match=f"{name} must be one of"):
        sifm(**bad)
    with pytest.raises(UsageError, match="count must be at least 1 and fraction in"):
        sifm(fraction=0)


def test_presets_are_the_papers_settings() -> None:
    attack: PGD = sifm()
    assert (attack.pgd.eps, attack.pgd.iterations, attack.pgd.norm, attack.pgd.step) == (0.03, 100, "linf", "sign")
    assert attack.objective.options()["lam"] == 0.1
