"""SIFM: Dong et al., "Semantic Mismatch and Perceptual Degradation", Section V, Eqs. 3-7 and Algorithm 1."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .common import Step, add_noise, denoise, gradients, inputs, levels, noise_estimate, sign_step


def phi(
    editor: Any,
    x: Tensor,
    clean: Tensor,
    prompt: str,
    time: float,
    n: Tensor,
    layers: Sequence[str],
    path: str,
) -> Tensor:
    """Eq. 3: φ_t(x, c) = (1/M) Σ_j L_j(E(x, t)_noisy, c, t), features averaged first."""
    total: Any = 0
    for value in layer_outputs(editor, x, clean, prompt, time, n, layers, path):
        total = total + value
    average: Tensor = total / len(layers)
    return average


def layer_outputs(
    editor: Any, x: Tensor, clean: Tensor, prompt: str, time: float, n: Tensor, layers: Sequence[str], path: str
) -> list[Tensor]:
    """L_j for every layer, where z_t is the noisy latent of x at t (Eq. 3's E(x, t)_noisy)."""
    z, c = inputs(editor, x, clean, path)
    z_t = add_noise(editor, z, time, n)
    t = torch.tensor([time], dtype=torch.float64)
    found = editor.features(z_t, t, editor.embed([prompt]), c, list(layers))
    return [found[name] for name in layers]


def norm_term(features: Tensor, original: Tensor, reduction: str, norm: str = "l1") -> Tensor:
    """Eq. 5: ‖φ‖₁ (a sum), or its mean, or its mean over that of the clean features.

    "frobenius", as the introduction says: ‖φ‖_F = √Σφ², or over √(element count), which is the root mean square, or over
    the clean features' ‖φ‖_F.
    """
    if norm == "frobenius":
        size = (features**2).sum().sqrt()
        if reduction == "paper":
            return size
        if reduction in ("mean_mean", "mean_sum"):
            return size / features.numel() ** 0.5
        if reduction == "relative":
            return size / (original**2).sum().sqrt()
        raise ValueError(reduction)
    if reduction == "paper":
        return features.abs().sum()
    if reduction in ("mean_mean", "mean_sum"):
        return features.abs().sum() / features.numel()
    if reduction == "relative":
        return features.abs().mean() / original.abs().mean()
    raise ValueError(reduction)


def dist_term(features: Tensor, original: Tensor, reduction: str, dist: str = "mse") -> Tensor:
    """Eq. 4, "a distance metric (e.g., MSE)": a mean, or a sum, or a mean over the mean square of the clean features.

    "l1": |Δφ| in the place of Δφ², so "relative" is mean|Δφ| over mean|φ_clean|. "cosine": 1 − cos, which has no reduction.
    """
    if dist == "cosine":
        dot = (features * original).sum()
        return 1 - dot / ((features**2).sum().sqrt() * (original**2).sum().sqrt())
    if dist == "l1":
        sizes = (features - original).abs()
        if reduction in ("paper", "mean_mean"):
            return sizes.sum() / sizes.numel()
        if reduction == "mean_sum":
            return sizes.sum()
        if reduction == "relative":
            return sizes.mean() / original.abs().mean()
        raise ValueError(reduction)
    squares = (features - original) ** 2
    if reduction in ("paper", "mean_mean"):
        return squares.sum() / squares.numel()
    if reduction == "mean_sum":
        return squares.sum()
    if reduction == "relative":
        return squares.mean() / (original**2).mean()
    raise ValueError(reduction)


def step(
    editor: Any,
    clean: Tensor,
    delta: Tensor,
    prompts: Sequence[str],
    *,
    times: Sequence[float],
    noise: Tensor,
    clean_noise: Tensor | None = None,
    layers: Sequence[str],
    lam: float | None = None,
    reduction: str = "paper",
    norm: str = "l1",
    dist: str = "mse",
    terms: str = "both",
    path: str = "both",
    alpha: float,
    eps: float,
) -> Step:
    """One pass of Algorithm 1's loop, lines 6-14, with L_t = ‖φ_t‖₁ − λ·Dist(φ_t, Φ_orig[t]) (Eq. 6) averaged over T (Eq. 7).

    Args:
        times: T, the editor's own timesteps. noise: (B, T, C, h, w), n_t. clean_noise: of the cached features, where it differs.
            lam: the paper's 0.1 where it is not given, but 1 where both terms are relative.
    """
    if lam is None:
        lam = 1.0 if reduction == "relative" else 0.1
    cached_noise = noise if clean_noise is None else clean_noise
    g = torch.zeros_like(clean)
    losses = torch.zeros(len(clean), dtype=clean.dtype)
    for i in range(len(clean)):
        x0 = clean[i : i + 1]
        # line 3: the original features
        with torch.no_grad():
            original = [
                phi(editor, x0, x0, prompts[i], t, cached_noise[i : i + 1, k], layers, path)
                for k, t in enumerate(times)
            ]
        x = torch.clip(x0 + delta[i : i + 1], 0, 1).detach().requires_grad_(True)
        g_total = torch.zeros_like(x)  # line 6
        for k, t in enumerate(times):  # line 7
            features = phi(editor, x, x0, prompts[i], t, noise[i : i + 1, k], layers, path)  # line 8
            loss: Any = 0  # line 9
            if terms in ("both", "norm"):
                loss = loss + norm_term(features, original[k], reduction, norm)
            if terms == "both":
                loss = loss - lam * dist_term(features, original[k], reduction, dist)
            if terms == "dist":
                loss = loss - dist_term(features, original[k], reduction, dist)
            g_total = g_total + torch.autograd.grad(loss, x)[0]  # line 10
            losses[i] += loss.detach() / len(times)
        g[i] = g_total[0] / len(times)  # line 12
    return Step(losses, g, *sign_step(clean, delta, g, alpha, eps))  # lines 13, 14


def step_layer_losses(
    editor: Any,
    clean: Tensor,
    delta: Tensor,
    prompts: Sequence[str],
    *,
    times: Sequence[float],
    noise: Tensor,
    layers: Sequence[str],
    lam: float = 0.1,
    alpha: float,
    eps: float,
) -> Step:
    """The reading for layers of unlike shapes: a mean over layers of per-layer losses of Eq. 6 in the literal reductions
    (‖·‖₁ a sum, MSE a mean), each loss divided by the layer's element count."""

    def loss(i: int, x: Tensor) -> Tensor:
        total: Any = 0
        for k, t in enumerate(times):
            n = noise[i : i + 1, k]
            x0 = clean[i : i + 1]
            with torch.no_grad():
                original = layer_outputs(editor, x0, x0, prompts[i], t, n, layers, "both")
            now = layer_outputs(editor, x, x0, prompts[i], t, n, layers, "both")
            for was, is_now in zip(original, now, strict=True):
                of_layer = norm_term(is_now, was, "paper") - lam * dist_term(is_now, was, "paper")
                total = total + of_layer / is_now.numel() / len(layers)
        mean: Tensor = total / len(times)
        return mean

    losses, g = gradients(loss, clean, delta)
    return Step(losses, g, *sign_step(clean, delta, g, alpha, eps))


def clean_edit(editor: Any, clean: Tensor, prompt: str, times: Sequence[float], n: Tensor) -> dict[float, Tensor]:
    """z at every t ∈ T of an edit of the clean picture from pure noise n, over the editor's own steps and T, unguided.

    VP: DDIM (Song et al. 2021, eq. 12, σ_t = 0), z' = √ā' ẑ₀ + √(1−ā') n̂. Flow: Euler, z' = z + (σ' − σ) v̂.
    """
    own = [float(t) for t in editor.timesteps(editor.traits.steps)]
    grid = sorted({*own, *times}, reverse=True)
    c, z, seen = editor.condition(clean), n, {}
    for k, time in enumerate(grid):
        seen[time] = z
        if time == min(times):
            break
        after = grid[k + 1]
        with torch.no_grad():
            out = denoise(editor, z, time, prompt, c)
        if editor.prediction == "flow":
            z = z + (after - time) / 1000 * out
        else:
            (a, b), (a_next, b_next) = levels(editor, time), levels(editor, after)
            n_hat = noise_estimate(editor, out, z, time)
            z = a_next * (z - b * n_hat) / a + b_next * n_hat
    return seen


def step_trajectory(
    editor: Any,
    clean: Tensor,
    delta: Tensor,
    prompts: Sequence[str],
    *,
    times: Sequence[float],
    noise: Tensor,
    layers: Sequence[str],
    lam: float = 0.1,
    alpha: float,
    eps: float,
) -> Step:
    """z_t from a clean edit, so that pixels reach φ_t through the condition alone. noise: (B, C, h, w), where it begins."""

    def loss(i: int, x: Tensor) -> Tensor:
        x0, total = clean[i : i + 1], torch.zeros((), dtype=clean.dtype)
        z = clean_edit(editor, x0, prompts[i], times, noise[i : i + 1])
        for time in times:

            def features(c: Tensor, time: float = time) -> Tensor:
                t = torch.tensor([time], dtype=torch.float64)
                found = editor.features(z[time], t, editor.embed([prompts[i]]), c, list(layers))
                return torch.stack([found[name] for name in layers]).sum(dim=0) / len(layers)

            with torch.no_grad():
                original = features(editor.condition(x0))
            now = features(editor.condition(x))
            total = total + norm_term(now, original, "paper") - lam * dist_term(now, original, "paper")
        return total / len(times)

    losses, g = gradients(loss, clean, delta)
    return Step(losses, g, *sign_step(clean, delta, g, alpha, eps))


def step_grad_balanced(
    editor: Any,
    clean: Tensor,
    delta: Tensor,
    prompts: Sequence[str],
    *,
    times: Sequence[float],
    noise: Tensor,
    layers: Sequence[str],
    lam: float = 1.0,
    alpha: float,
    eps: float,
) -> Step:
    """Direction g = g_N/‖g_N‖₁ − λ·g_D/‖g_D‖₁, gradients of Eq. 7's two parts at the pixels; a vanishing part is left out.

    Each of the two is immune to the reduction. The losses given back are NaN: no loss has this gradient.
    """

    def part(which: str) -> Tensor:
        def loss(i: int, x: Tensor) -> Tensor:
            total: Any = 0
            for k, t in enumerate(times):
                n, x0 = noise[i : i + 1, k], clean[i : i + 1]
                with torch.no_grad():
                    original = phi(editor, x0, x0, prompts[i], t, n, layers, "both")
                features = phi(editor, x, x0, prompts[i], t, n, layers, "both")
                total = total + (
                    norm_term(features, original, "paper")
                    if which == "norm"
                    else dist_term(features, original, "paper")
                )
            mean: Tensor = total / len(times)
            return mean

        _, g = gradients(loss, clean, delta)
        for i in range(len(g)):
            size = g[i].abs().sum()
            if size > 0:
                g[i] = g[i] / size
        return g

    g = part("norm") - lam * part("dist")
    return Step(torch.full((len(clean),), float("nan")), g, *sign_step(clean, delta, g, alpha, eps))
