"""Perturbations for the labelled edits: random signs, an encoder attack, and a SIFM-like one. Only the label sheets use them.

Pixels are float (B, 3, 64, 64) in [0, 1]; every perturbation stays within eps in the maximum norm.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

__all__ = ["METHODS", "embed", "perturb"]

METHODS = ("none", "noise", "encoder", "sifm")
_TIMES = (181, 481, 781)


def embed(pipe: Any, prompts: Sequence[str]) -> torch.Tensor:
    """Text states (B, tokens, width) of the pipeline's own encoder."""
    ids = pipe.tokenizer(list(prompts), padding="max_length", truncation=True, return_tensors="pt").input_ids
    with torch.no_grad():
        states: torch.Tensor = pipe.text_encoder(ids)[0]
    return states


def perturb(
    pipe: Any, x: torch.Tensor, prompts: Sequence[str], method: str, *, eps: torch.Tensor, steps: int, seed: int
) -> torch.Tensor:
    """Perturbed pixels, rounded to 8 bits. eps: (B,), one budget per picture."""
    generator = torch.Generator().manual_seed(seed)
    e = eps[:, None, None, None]
    if method == "none":
        return x
    if method == "noise":
        signs = torch.randint(0, 2, x.shape, generator=generator) * 2.0 - 1
        return _eight_bit(x, (x + e * signs).clamp(0, 1), e)
    for part in (pipe.vae, pipe.unet, pipe.text_encoder):
        part.requires_grad_(False)
    loss = {"encoder": _encoder, "sifm": _sifm}[method](pipe, x, prompts, generator)
    delta = torch.zeros_like(x)
    for _ in range(steps):
        delta.requires_grad_(True)
        (slope,) = torch.autograd.grad(loss((x + delta).clamp(0, 1)), delta)
        with torch.no_grad():
            delta = torch.minimum(torch.maximum(delta - 2.5 * e / steps * slope.sign(), -e), e)
            delta = (x + delta).clamp(0, 1) - x
    return _eight_bit(x, (x + delta).detach(), e)


def _eight_bit(x: torch.Tensor, y: torch.Tensor, e: torch.Tensor) -> torch.Tensor:
    """Rounded towards the original, so that the saved file keeps the budget."""
    levels = torch.trunc((y - x) * 255 + torch.sign(y - x) * 1e-3)
    levels = torch.minimum(torch.maximum(levels, -torch.floor(e * 255)), torch.floor(e * 255))
    return ((x * 255).round() + levels).clamp(0, 255) / 255


def _encoder(
    pipe: Any, x: torch.Tensor, prompts: Sequence[str], generator: torch.Generator
) -> Callable[[torch.Tensor], torch.Tensor]:
    """Pull the image latent towards zero."""
    del x, prompts, generator

    def loss(y: torch.Tensor) -> torch.Tensor:
        z = pipe.vae.encode(y * 2 - 1).latent_dist.mode()
        total: torch.Tensor = (z**2).mean((1, 2, 3)).sum()
        return total

    return loss


def _sifm(
    pipe: Any, x: torch.Tensor, prompts: Sequence[str], generator: torch.Generator
) -> Callable[[torch.Tensor], torch.Tensor]:
    """Shrink the features of mid and up blocks and push them away from where they were (paper Eq. 3 to 6, weights 1)."""
    text, n = embed(pipe, prompts), len(_TIMES)
    scale, alphas = pipe.vae.config.scaling_factor, pipe.scheduler.alphas_cumprod
    t = torch.tensor(_TIMES).repeat_interleave(len(x))
    a = alphas[t][:, None, None, None]
    held: list[torch.Tensor] = []

    def features(y: torch.Tensor) -> list[torch.Tensor]:
        z = pipe.vae.encode(y * 2 - 1).latent_dist.mode()
        noisy = a.sqrt() * (z * scale).repeat(n, 1, 1, 1) + (1 - a).sqrt() * noise
        held.clear()
        hooks = [
            m.register_forward_hook(lambda _m, _i, out: held.append(out if torch.is_tensor(out) else out[0]))
            for m in (pipe.unet.mid_block, *pipe.unet.up_blocks)
        ]
        try:
            pipe.unet(torch.cat([noisy, z.repeat(n, 1, 1, 1)], 1), t, text.repeat(n, 1, 1))
        finally:
            for hook in hooks:
                hook.remove()
        return list(held)

    with torch.no_grad():
        shape = pipe.vae.encode(x * 2 - 1).latent_dist.mode().shape
        noise = torch.randn((n * shape[0], *shape[1:]), generator=generator)
        before = features(x)

    def loss(y: torch.Tensor) -> torch.Tensor:
        total = torch.zeros(())
        for f, f0 in zip(features(y), before, strict=True):
            total = total + (f.abs() - (f - f0) ** 2).flatten(1).mean(1).sum() / (n * len(before))
        return total

    return loss
