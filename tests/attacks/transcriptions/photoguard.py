"""PhotoGuard: Salman et al. 2023 (arXiv 2302.06588), as the authors' notebooks have it.

Encoder attack: `pgd` of demo_simple_attack_img2img.ipynb. Diffusion attack: `attack_forward`,
`super_l2`, `super_linf` of demo_complex_attack_inpainting.ipynb.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .common import Step, descend, gradients, l2_step


def encoder_step(
    editor: Any, clean: Tensor, delta: Tensor, *, target: Tensor | None = None, alpha: float, eps: float
) -> Step:  # fmt: skip
    """L = ‖E_mean(x) − T‖₂, a norm and not its square, raw latents without a scaling factor.

    T = 0 (img2img notebook), or E_mean of a target picture (1, 3, H, W), grey in the hosted demo.
    """

    def loss(i: int, x: Tensor) -> Tensor:
        latent = editor.latents(x)
        wanted = torch.zeros_like(latent) if target is None else editor.latents(target).detach()
        return ((latent - wanted) ** 2).sum().sqrt()

    return descend(loss, clean, delta, alpha=alpha, eps=eps)


def decayed(alpha: float, iteration: int, iterations: int) -> float:
    """α_i = α (1 − 0.99·i/N): the step falls linearly to one hundredth."""
    return alpha * (1 - 0.99 * iteration / iterations)


def _diffusion_loss(editor: Any, prompts: Sequence[str], seeds: Sequence[int], steps: int, i: int, x: Tensor) -> Tensor:
    """‖f_K(x) − T‖₂ over the edited picture's pixels on [−1, 1], T = 0 (mid-grey); f_K a K-step edit, K = 4."""
    edited = editor.rollout(x, [prompts[i]], steps, seeds=[seeds[i]])
    on_minus_one_to_one = 2 * edited - 1
    return (on_minus_one_to_one**2).sum().sqrt()  # type: ignore[no-any-return]


def diffusion_step(
    editor: Any,
    clean: Tensor,
    delta: Tensor,
    prompts: Sequence[str],
    *,
    seeds: Sequence[int],
    steps: int = 4,
    alpha: float,
    eps: float,
) -> Step:
    """The L∞ variant (`super_linf`): a sign step in the box."""

    def loss(i: int, x: Tensor) -> Tensor:
        return _diffusion_loss(editor, prompts, seeds, steps, i, x)

    return descend(loss, clean, delta, alpha=alpha, eps=eps)


def diffusion_step_l2(
    editor: Any,
    clean: Tensor,
    delta: Tensor,
    prompts: Sequence[str],
    *,
    seeds: Sequence[Sequence[int]],
    steps: int = 4,
    alpha: float,
    radius: float,
) -> Step:
    """The default variant (`super_l2`): the mean gradient of several passes, a step of fixed length, an L2 ball.

    Args:
        seeds: one row of B seeds per pass.
    """
    g, losses = torch.zeros_like(clean), torch.zeros(len(clean), dtype=clean.dtype)
    for row in seeds:

        def loss(i: int, x: Tensor, row: Sequence[int] = row) -> Tensor:
            return _diffusion_loss(editor, prompts, row, steps, i, x)

        values, one_pass = gradients(loss, clean, delta)
        g, losses = g + one_pass / len(seeds), losses + values / len(seeds)
    return Step(losses, g, *l2_step(clean, delta, g, alpha, radius))
