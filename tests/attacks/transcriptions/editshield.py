"""EditShield: Chen et al. 2024 (arXiv 2311.12066): the paper's objective, and `get_emb` in Functions.py of the release."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .common import Step, add_noise, descend, first_adam_step, gradients, mean_square, model_time


def paper_step(
    editor: Any, clean: Tensor, delta: Tensor, *, transform: Callable[[Tensor], Tensor], alpha: float, eps: float
) -> Step:  # fmt: skip
    """Maximise E_τ ‖E_mean(τ(x)) − E_mean(τ(x₀))‖², one τ in an iteration: sign ascent on the squared distance."""

    def loss(i: int, x: Tensor) -> Tensor:
        moved = editor.latents(transform(x)) - editor.latents(transform(clean[i : i + 1])).detach()
        return -(moved**2).sum()

    return descend(loss, clean, delta, alpha=alpha, eps=eps)


def released_step(
    editor: Any,
    clean: Tensor,
    delta: Tensor,
    *,
    noise: Tensor,
    timestep: Tensor,
    clean_noise: Tensor,
    clean_timestep: Tensor,
    weight: float = 0.1,
    pixels_as_they_are: bool = False,
    rate: float = 1e-3,
) -> Step:
    """L = −MSE(feat(x), feat₀) + 0.1·MSE(x, x₀), feat(x) = [z_t ‖ c], with its own t and n for x and for feat₀; Adam.

    z_t is the noisy scaled latent, c the raw latent. `pixels_as_they_are` feeds [0, 1] pixels to an encoder made for
    [−1, 1], as the release does by mistake. The first Adam step follows; there is no projection and no clip in the loop.
    """

    def feat(x: Tensor, n: Tensor, t: float) -> Tensor:
        # `latents` maps p to 2p − 1; (x + 1)/2 undoes this
        raw = editor.latents((x + 1) / 2 if pixels_as_they_are else x)
        return torch.cat([add_noise(editor, editor.scaled(raw), t, n), raw], dim=1)

    def loss(i: int, x: Tensor) -> Tensor:
        x0 = clean[i : i + 1]
        anchor = feat(x0, clean_noise[i : i + 1], model_time(editor, int(clean_timestep[i]))).detach()
        now = feat(x, noise[i : i + 1], model_time(editor, int(timestep[i])))
        return -mean_square(now, anchor) + weight * mean_square(x, x0)

    losses, g = gradients(loss, clean, delta)
    moved = first_adam_step(delta, g, rate)
    return Step(losses, g, moved, clean + moved)
