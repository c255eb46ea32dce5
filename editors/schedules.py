"""Noise schedules as pure functions: what a timestep means for variance-preserving diffusion (VP) and rectified flow.

Both are written as noisy = a·z + b·n with z the scaled latent and n ~ N(0, I):
VP: a = √ᾱ, b = √(1−ᾱ) (Ho et al. 2020, eq. 4). Flow: a = 1−σ, b = σ (Liu et al. 2023; Esser et al. 2024, eq. 13).
"""

from __future__ import annotations

from typing import Literal

import torch

__all__ = ["Kind", "clean_of", "equal_snr_sigma", "expand", "noise_of", "target_of", "vp_levels"]

Kind = Literal["epsilon", "v_prediction", "sample", "flow"]


def expand(value: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """(B,) → (B, 1, …, 1) with the device of `like`, to multiply with it."""
    return value.to(like.device, non_blocking=True).reshape(-1, *([1] * (like.ndim - 1)))


def vp_levels(alphas_cumprod: torch.Tensor, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(√ᾱ_t, √(1−ᾱ_t)), each (B,) float32.

    Fractional timesteps (Euler schedulers with linear spacing) interpolate σ = √((1−ᾱ)/ᾱ) linearly, as those schedulers do.
    """
    # The floor is that of diffusers' Euler schedulers: schedules rescaled to end in pure noise hold a 0.
    table = alphas_cumprod.to(t.device, torch.float64, non_blocking=True).clamp(min=2.0**-24)
    sigmas = ((1 - table) / table).sqrt()
    position = t.to(torch.float64).clamp(0, len(table) - 1)
    below = position.floor().long()
    above = (below + 1).clamp(max=len(table) - 1)
    sigma = torch.lerp(sigmas[below], sigmas[above], position - below)
    a = (1 / (1 + sigma**2)).sqrt()
    return a.float(), (sigma * a).float()


def equal_snr_sigma(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """The rectified-flow σ with the same signal-to-noise ratio as a VP level: b / (a + b)."""
    return b / (a + b)


def noise_of(
    kind: Kind, prediction: torch.Tensor, noisy: torch.Tensor, a: torch.Tensor, b: torch.Tensor
) -> torch.Tensor:
    """The noise estimate n̂ behind a raw prediction; a, b broadcast against it.

    epsilon: n̂ itself. v_prediction (v = a·n − b·z): n̂ = b·noisy + a·v̂. sample (z itself): n̂ = (noisy − a·ẑ)/b.
    flow (v = n − z): n̂ = noisy + (1−σ)·v̂.
    """
    if kind == "epsilon":
        return prediction
    if kind == "v_prediction":
        return b * noisy + a * prediction
    if kind == "sample":
        return (noisy - a * prediction) / b
    return noisy + a * prediction


def clean_of(
    kind: Kind, prediction: torch.Tensor, noisy: torch.Tensor, a: torch.Tensor, b: torch.Tensor
) -> torch.Tensor:
    """The clean latent ẑ behind a raw prediction; a, b broadcast against it.

    epsilon: (noisy − b·n̂)/a. v_prediction: a·noisy − b·v̂. sample: ẑ itself. flow: noisy − σ·v̂.
    """
    if kind == "epsilon":
        return (noisy - b * prediction) / a
    if kind == "v_prediction":
        return a * noisy - b * prediction
    if kind == "sample":
        return prediction
    return noisy - b * prediction


def target_of(kind: Kind, z: torch.Tensor, noise: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """What a perfect denoiser would predict for (z, noise): n, a·n − b·z, z, or n − z."""
    if kind == "epsilon":
        return noise
    if kind == "v_prediction":
        return a * noise - b * z
    if kind == "sample":
        return z
    return noise - z
