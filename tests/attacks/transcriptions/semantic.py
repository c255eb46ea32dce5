"""Semantic Attack: Lo et al. 2024, "Distraction is All You Need" (CVPR 2024), timestep-universal gradient; no official code."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .common import Step, add_noise, gradients, inputs, sign_step


def step(
    editor: Any,
    clean: Tensor,
    delta: Tensor,
    prompts: Sequence[str],
    *,
    times: Sequence[float],
    noise: Tensor,
    columns: Sequence[Sequence[int]],
    path: str = "both",
    alpha: float,
    eps: float,
) -> Step:
    """Per timestep of a 10-step schedule: L_t = ‖A[:, :, word]‖₁, A the cross-attention averaged over heads and layers; the
    gradients of all timesteps are averaged; a sign step down.

    The norm is a sum over the places of the map. A word of several tokens has the mean of its columns. No mask.

    Args:
        times: the schedule. noise: (B, T, C, h, w), fresh for every t. columns: of the word, per picture. path: by which
            pixels reach the map: z_t ("lat"), c ("cond") or "both"; the other input is the clean picture's.
    """
    losses = torch.zeros(len(clean), dtype=clean.dtype)
    g = torch.zeros_like(clean)
    for k, t in enumerate(times):

        def loss(i: int, x: Tensor, k: int = k, t: float = t) -> Tensor:
            z, c = inputs(editor, x, clean[i : i + 1], path)
            z_t = add_noise(editor, z, t, noise[i : i + 1, k])
            time = torch.tensor([t], dtype=torch.float64)
            maps = editor.attention(z_t, time, editor.embed([prompts[i]]), c)
            average: Any = 0
            for of_layer in maps.values():  # (1, places, text columns), head mean
                average = average + of_layer / len(maps)
            word: Any = 0
            for column in columns[i]:
                word = word + average[0, :, column] / len(columns[i])
            size: Tensor = word.abs().sum()
            return size

        values, one_time = gradients(loss, clean, delta)
        losses, g = losses + values / len(times), g + one_time / len(times)
    return Step(losses, g, *sign_step(clean, delta, g, alpha, eps))
