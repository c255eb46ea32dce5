"""Attacks on the denoising loss: AdvDM, SDS (Diff-Protect), MIST, ACE, DiffusionGuard, with their rectified-flow analogues.

A timestep is a draw on the 1000-step scale; a rectified flow gets the σ of equal signal-to-noise ratio.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .common import (
    Step,
    add_noise,
    clean_estimate,
    denoise,
    descend,
    gradients,
    inputs,
    mean_square,
    model_time,
    noise_estimate,
    sign_step,
)


def denoising_loss(editor: Any, z: Tensor, c: Tensor | None, prompt: str, time: float, n: Tensor) -> Tensor:
    """MSE(ε̂(z_t, t, P), n) (latent diffusion, Rombach et al. 2022, eq. 2), or MSE(v̂(z_σ, σ, P), n − z) with the gradient
    of the target kept."""
    z_t = add_noise(editor, z, time, n)
    out = denoise(editor, z_t, time, prompt, c)
    if editor.prediction == "flow":
        return mean_square(out, n - z)
    return mean_square(noise_estimate(editor, out, z_t, time), n)


def advdm_step(
    editor: Any,
    clean: Tensor,
    delta: Tensor,
    prompts: Sequence[str],
    *,
    noise: Tensor,
    timestep: Tensor,
    direction: str = "+",
    path: str = "both",
    alpha: float,
    eps: float,
) -> Step:
    """AdvDM (Liang et al. 2023, arXiv 2302.04578; Diff-Protect's mode `advdm`): ascent on the denoising loss at one (t, n).

    AdvDM(−) of Diff-Protect descends instead.
    """
    sign = -1.0 if direction == "+" else 1.0

    def loss(i: int, x: Tensor) -> Tensor:
        z, c = inputs(editor, x, clean[i : i + 1], path)
        time = model_time(editor, int(timestep[i]))
        return sign * denoising_loss(editor, z, c, prompts[i], time, noise[i : i + 1])

    return descend(loss, clean, delta, alpha=alpha, eps=eps)


def sds_step(
    editor: Any,
    clean: Tensor,
    delta: Tensor,
    prompts: Sequence[str],
    *,
    noise: Tensor,
    timestep: Tensor,
    direction: str = "-",
    alpha: float,
    eps: float,
) -> Step:
    """Diff-Protect (Xue et al. 2024, arXiv 2311.12832; `Linf_PGD.pgd_sds`): g_z = ε̂ − n without the network's
    Jacobian and without a weight; g_x = J_Eᵀ g_z through the encoder alone; x ← x + d·α·sign(g_x), d = −1 for SDS(−).

    A flow has g_z = v̂ − v, v = n − z. What is minimised is −d·⟨g_z, z(x)⟩ with g_z held constant; the gradient given back is
    of this.
    """
    d = {"+": 1.0, "-": -1.0}[direction]
    losses, grads = [], []
    for i in range(len(clean)):
        n = noise[i : i + 1]
        x = torch.clip(clean[i : i + 1] + delta[i : i + 1], 0, 1).detach().requires_grad_(True)
        time = model_time(editor, int(timestep[i]))
        z = editor.scaled(editor.latents(x))
        with torch.no_grad():
            z_t = add_noise(editor, z, time, n)
            out = denoise(editor, z_t, time, prompts[i], editor.condition(x))
            g_z = out - (n - z) if editor.prediction == "flow" else noise_estimate(editor, out, z_t, time) - n
        (g_x,) = torch.autograd.grad(z, x, grad_outputs=g_z)
        losses.append(-d * (g_z * z.detach()).sum())
        grads.append(-d * g_x)
    g = torch.cat(grads)
    return Step(torch.stack(losses), g, *sign_step(clean, delta, g, alpha, eps))


MIST_WEIGHT = 1e4 / (4 * 64 * 64)  # R = 10⁴ beside a sum over SD 1.x's 16384 latent elements, for a mean


def mist_step(
    editor: Any,
    clean: Tensor,
    delta: Tensor,
    prompts: Sequence[str],
    *,
    noise: Tensor,
    timestep: Tensor,
    target: Tensor,
    mode: str = "fused",
    path: str = "both",
    alpha: float,
    eps: float,
) -> Step:
    """MIST (Liang & Wu 2023, arXiv 2305.12683; `target_model.forward` of mist_v3.py): minimise Σ(z − z_T)² − 10⁴·MSE(ε̂, n), in means
    MSE(z, z_T) − 0.61·MSE; z_T = s·E(target picture).

    Args:
        target: (1, 3, H, W). mode: "fused", or either term alone. path: of the denoising term.
    """

    def loss(i: int, x: Tensor) -> Tensor:
        z, c = inputs(editor, x, clean[i : i + 1], path)
        z_target = editor.scaled(editor.latents(target)).detach()
        # the texture term is about the picture under attack, whichever way the denoising term takes
        texture = mean_square(editor.scaled(editor.latents(x)), z_target)
        if mode == "textural":
            return texture
        time = model_time(editor, int(timestep[i]))
        semantic = denoising_loss(editor, z, c, prompts[i], time, noise[i : i + 1])
        if mode == "semantic":
            return -semantic
        return texture - MIST_WEIGHT * semantic

    return descend(loss, clean, delta, alpha=alpha, eps=eps)


def ace_step(
    editor: Any,
    clean: Tensor,
    delta: Tensor,
    prompts: Sequence[str],
    *,
    noise: Tensor,
    timestep: Tensor,
    target: Tensor,
    of: str = "noise",
    fused: bool = False,
    path: str = "both",
    alpha: float,
    eps: float,
) -> Step:
    """ACE (Zheng et al. 2025; `pgd_attack`, mode lunet): minimise MSE(ε̂(z_t, t, P), z_T), z_T = s·E(target): the noise
    prediction is pulled to one pattern. ACE+ (`fused`) adds 100·MSE(z, z_T).

    Flow: MSE(n̂, z_T) with n̂ = z_σ + (1−σ) v̂ (of="noise"), or MSE(v̂, z_T) (of="velocity").

    Args:
        target: (1, 3, H, W). path: of the prediction: pixels through z_t ("lat"), through c ("cond") or "both"; the other
            input is the clean picture's. ACE+'s second term is about the picture under attack on every path.
    """

    def loss(i: int, x: Tensor) -> Tensor:
        z, c = inputs(editor, x, clean[i : i + 1], path)
        time = model_time(editor, int(timestep[i]))
        z_t = add_noise(editor, z, time, noise[i : i + 1])
        out = denoise(editor, z_t, time, prompts[i], c)
        predicted = out if of == "velocity" else noise_estimate(editor, out, z_t, time)
        z_target = editor.scaled(editor.latents(target)).detach()
        value = mean_square(predicted, z_target)
        if fused:
            value = value + 100 * mean_square(editor.scaled(editor.latents(x)), z_target)
        return value

    return descend(loss, clean, delta, alpha=alpha, eps=eps)


def diffusionguard_step(
    editor: Any,
    clean: Tensor,
    delta: Tensor,
    prompts: Sequence[str],
    *,
    noise: Tensor,
    steps: int = 4,
    of: str = "output",
    alpha: float,
    eps: float,
) -> Step:
    """DiffusionGuard (Choi et al. 2025, arXiv 2410.05694; `attack_pipeline`): maximise ‖ε̂([n ‖ c], t₁, P)‖₂, a
    norm and not its square, t₁ the first timestep of a 4-step schedule, n pure noise that knows nothing of the picture.

    Flow: ‖v̂([n ‖ c], σ = 1)‖₂. Image-to-image has no c: ‖·‖₂ of the output at the first timestep, from z noised to it.

    Args:
        of: what has the norm: the network's "output" (ε̂ or v̂ as it comes), or the estimate behind it, n̂ ("noise") or ẑ
            ("clean"), which depend on the denoiser's input too. For a flow from pure noise n̂ is n, whatever c is.
    """

    def loss(i: int, x: Tensor) -> Tensor:
        first = float(editor.timesteps(steps)[0])
        c = editor.condition(x)
        n = noise[i : i + 1]
        start = n if c is not None else add_noise(editor, editor.scaled(editor.latents(x)), first, n)
        out = denoise(editor, start, first, prompts[i], c)
        if of == "noise":
            out = noise_estimate(editor, out, start, first)
        if of == "clean":
            out = clean_estimate(editor, out, start, first)
        return -((out**2).sum().sqrt())

    return descend(loss, clean, delta, alpha=alpha, eps=eps)


def sdst_step(
    editor: Any,
    clean: Tensor,
    delta: Tensor,
    prompts: Sequence[str],
    *,
    noise: Tensor,
    timestep: Tensor,
    target: Tensor,
    direction: str = "-",
    alpha: float,
    eps: float,
) -> Step:
    """SDST, the variant with a target: x ← x + α·sign(d·5·g_x − g_tex), g_x as in `sds_step`, g_tex = ∇Σ(z_T − z)².

    The losses given back are NaN: the source states a step only.
    """
    d = {"+": 1.0, "-": -1.0}[direction]
    plain = sds_step(
        editor, clean, delta, prompts, noise=noise, timestep=timestep, direction=direction, alpha=alpha, eps=eps
    )
    g_x = plain.gradient / -d

    def texture(i: int, x: Tensor) -> Tensor:
        z_target = editor.scaled(editor.latents(target)).detach()
        return ((z_target - editor.scaled(editor.latents(x))) ** 2).sum()

    _, g_tex = gradients(texture, clean, delta)
    upwards = d * 5 * g_x - g_tex
    moved, pixels = sign_step(clean, delta, -upwards, alpha, eps)
    return Step(torch.full((len(clean),), float("nan")), -upwards, moved, pixels)
