"""A linear way through an SD3 transformer: the copy of the source (or the best scaling of the noisy latents) from the first step.

v = g(σ) · d, where d is carried by the tokens and g by the last normalisation's scale:

- Each token carries its patch of d in channels of their own, which have no position embedding and which no block writes
  to at first, beside one channel of zeros and two for large constants ±K, which the last block writes. The constants fix
  the token's deviation, so that the last LayerNorm is affine; the zeros carry the mean that it takes off, which `proj_out`
  adds again. The blocks' own normalisations never see the constants.
- One channel of the time embedding is fitted to g; `norm_out` takes the carriers' scale from it alone. Small steps in these
  few weights would move v much at once, so `hold_the_gain` keeps them as they are: g is not learnt.

Instructed editing: d = noisy − s, s the source latents, g = 1/max(σ, 0.05). Then ẑ = noisy − σ v = s: what a block adds to
the carriers is an edit −e in the units of latents, ẑ = s + e at every σ ≥ 0.05. If g is off by a share ε, ẑ misses s by ε d
only; below 0.05 ẑ passes into noisy linearly, which is within 0.05 of the end anyway.

Image to image (no source among the inputs): d = noisy, g = (2σ − 1) / ((1 − σ)² + σ²), the velocity of the posterior mean
of latents of variance one, E[z | noisy] = (1 − σ) noisy / ((1 − σ)² + σ²) (the skip connection of Karras et al. 2022,
Elucidating the Design Space of Diffusion-Based Generative Models, section 5, for rectified flow).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F

__all__ = ["SMALLEST", "carries", "copy_the_source_flow", "gain", "hold_the_gain", "keep_the_noisy_flow"]

SMALLEST = 0.05  #: σ below which 1/σ no longer grows: there noisy is nearly clean
_CONSTANT = 50.0  # over all else in a token: it decides the deviation
_ELSE = 0.8  # variance of all else at first: 3 % of the constants'
_OTHERS = 11  # channels beside the carriers: zero, two constants, a few for the blocks
_TIMES = 16  # hidden units of the time embedding that become ramps in σ
_STEEP = 4.0  # value of a ramp at σ = 0
_CHANNEL = 0  # of the time embedding: holds g


@torch.no_grad()
def copy_the_source_flow(transformer: Any, scale: float, shift: float = 0.0) -> None:
    """Set `transformer` (input [noisy, raw source]) to predict the velocity towards (source − shift) · scale.

    Raises:
        ValueError: it lacks the source's input channels, is too narrow to carry a patch, or has dual attention.
    """
    channels = transformer.config.out_channels
    if transformer.config.in_channels != 2 * channels:
        raise ValueError(
            f"transformer: expected {2 * channels} input channels (noisy, source), got {transformer.config.in_channels}"
        )
    _carry(transformer, {0: 1.0, channels: -scale}, scale * shift, lambda sigma: 1 / sigma.clamp(min=SMALLEST))


@torch.no_grad()
def keep_the_noisy_flow(transformer: Any) -> None:
    """Set `transformer` (input: noisy alone) to predict the velocity towards a noisy latent's linear posterior mean.

    Raises:
        ValueError: it is too narrow to carry a patch, or has dual attention.
    """
    _carry(transformer, {0: 1.0}, 0.0, lambda sigma: (2 * sigma - 1) / ((1 - sigma) ** 2 + sigma**2))


@torch.no_grad()
def carries(transformer: Any) -> bool:
    """Whether a transformer has such a way already, trained further or not: no other training makes biases of ±50."""
    bias = transformer.transformer_blocks[-1].ff.net[2].bias
    out = transformer.proj_out.weight
    return min(float(bias.max()), -float(bias.min())) > _CONSTANT / 2 and float(out.amax(1).min()) > 0.5


def hold_the_gain(transformer: Any) -> None:
    """From now on g gets no gradients. Again needed after loading, and for a copy: hooks are not saved."""
    last, width = transformer.transformer_blocks[-1], transformer.inner_dim
    constants = last.ff.net[2].bias.detach().abs() > _CONSTANT / 2
    own = (transformer.pos_embed.pos_embed[0].abs().amax(0) == 0) & ~constants
    none = torch.zeros_like(own)
    times, text = transformer.time_text_embed.timestep_embedder, transformer.time_text_embed.text_embedder
    ramps, channel = (torch.arange(width, device=own.device) < n for n in (_TIMES, _CHANNEL + 1))
    for layer, rows in (
        (transformer.norm_out.linear, torch.cat([own, none])),  # the scale, not the shift
        (last.norm1.linear, torch.cat([none] * 5 + [constants])),
        (times.linear_1, ramps),
        (times.linear_2, channel),
        (text.linear_2, channel),
    ):
        for held in (layer.weight, layer.bias):
            held.register_hook(lambda gradient, rows=rows: _without(gradient, rows))


def _without(gradient: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    return gradient.masked_fill(rows.to(gradient.device).view(-1, *(1,) * (gradient.ndim - 1)), 0.0)


@torch.no_grad()
def gain(transformer: Any, sigma: torch.Tensor) -> torch.Tensor:
    """g as an untrained way has it: (N,) for σ (N,), read from the last normalisation's scale without text."""
    row = int(transformer.proj_out.weight[0].argmax())
    times = transformer.time_text_embed.timestep_embedder(transformer.time_text_embed.time_proj(1000 * sigma))
    scale = transformer.norm_out.linear(F.silu(times))[:, : transformer.inner_dim]
    found: torch.Tensor = (1 + scale[:, row]) / _deviation(transformer)
    return found


def _deviation(transformer: Any) -> float:
    """Of a token before the last normalisation."""
    return float((2 * _CONSTANT**2 / transformer.inner_dim + _ELSE) ** 0.5)


def _carry(
    transformer: Any, inputs: dict[int, float], bias: float, function: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    """v = function(σ) · d, d = bias + Σ factor · input, where `inputs` gives the first channel of each summand its factor."""
    side, channels, width = transformer.config.patch_size, transformer.config.out_channels, transformer.inner_dim
    count = side * side * channels
    if transformer.config.dual_attention_layers:
        raise ValueError("transformer: expected blocks with one attention each, got dual_attention_layers")
    if width < count + _OTHERS:
        raise ValueError(
            f"transformer: expected at least {count + _OTHERS} channels to carry patches of {count} values, got {width}"
        )
    embed, deviation = transformer.pos_embed, _deviation(transformer)
    table = embed.pos_embed[0]
    own = table.var(0).argsort(stable=True)[: count + 3]  # channels that hardly tell positions apart
    carriers, zero, constants = own[:count], own[count], own[count + 1 :]
    table[:, own] = 0.0
    embed.proj.weight[own], embed.proj.bias[own] = 0.0, 0.0
    place = 0
    for p in range(side):
        for q in range(side):
            for c in range(channels):  # the order in which the output's patches are laid out
                for first, factor in inputs.items():
                    embed.proj.weight[carriers[place], first + c, p, q] = factor
                place += 1
    embed.proj.bias[carriers] = bias
    for block in transformer.transformer_blocks:
        for writer in (block.attn.to_out[0], block.ff.net[2]):
            writer.weight[own], writer.bias[own] = 0.0, 0.0
    last, gate = transformer.transformer_blocks[-1], 5 * width + constants  # of the MLP: the sixth of its modulations
    last.ff.net[2].bias[constants] = torch.tensor([_CONSTANT, -_CONSTANT]).to(table)
    last.norm1.linear.weight[gate], last.norm1.linear.bias[gate] = 0.0, 1.0
    scale, shift = transformer.norm_out.linear, width + own
    scale.weight[own], scale.weight[shift], scale.bias[shift] = 0.0, 0.0, 0.0
    scale.bias[:width] = deviation - 1
    scale.bias[constants] = -1.0
    factor, offset = _fit(transformer.time_text_embed, function)
    scale.weight[own[: count + 1], _CHANNEL], scale.bias[own[: count + 1]] = deviation * factor, deviation * offset - 1
    out = transformer.proj_out
    out.weight.zero_()
    out.bias.zero_()
    out.weight[torch.arange(count), carriers] = 1.0
    out.weight[:, zero] = -1.0


def _fit(embedder: Any, function: Callable[[torch.Tensor], torch.Tensor]) -> tuple[float, float]:
    """Let silu of the time embedding's channel be (function(σ) − offset) / factor; returns factor and offset.

    The ramps are c (1 − sin(ωt) / sin(ωt_k)) with the t_k in geometric steps, so that they resolve small σ as well as large.
    """
    first, second = embedder.timestep_embedder.linear_1, embedder.timestep_embedder.linear_2
    like = first.weight
    sigma = torch.cat([torch.linspace(0, 1, 2001), torch.logspace(-2.5, 0, 1000)]).to(like.device)
    waves = embedder.time_proj.num_channels // 2
    slow = int(waves * 0.75)  # ω = 10000^(−3/4): sin(ωt) rises over all of t ≤ 1000
    features = embedder.time_proj(1000 * sigma).to(like)
    knots = torch.logspace(-1.6, 0.4, _TIMES).to(like)
    first.weight[:_TIMES] = 0.0
    first.weight[:_TIMES, waves + slow] = (-_STEEP / knots).half().float()  # cosines come first; exact once saved
    first.bias[:_TIMES] = _STEEP
    values = function(sigma).double()
    low, factor = float(values.min()), float(values.max() - values.min()) / 2
    offset = low - 0.1 * factor  # silu runs from 0.1 to 2.1, where it has an inverse
    wanted = (values - offset) / factor
    u = wanted.clone()
    for _ in range(40):  # Newton: silu is convex and rising here
        s = torch.sigmoid(u)
        slope = s * (1 + u * (1 - s))
        u = u - (u * s - wanted) / slope
    hidden = F.silu(first(features)[:, :_TIMES]).double()
    design = torch.cat([hidden, torch.ones_like(hidden[:, :1])], 1)
    weight = (factor * slope / values.abs().clamp(min=1.0))[:, None]  # share of g where g > 1
    ridge = 1e-3 * torch.eye(_TIMES + 1).to(design)
    solution = torch.linalg.lstsq(
        torch.cat([weight * design, ridge]), torch.cat([weight[:, 0] * u, 0 * ridge[0]])[:, None]
    ).solution[:, 0]
    second.weight[_CHANNEL].zero_()
    second.weight[_CHANNEL, :_TIMES], second.bias[_CHANNEL] = solution[:-1].to(like), solution[-1].to(like)
    text = embedder.text_embedder.linear_2
    text.weight[_CHANNEL].zero_()
    text.bias[_CHANNEL] = 0.0
    return factor, offset
