"""A linear way from a UNet's input to its output: at first it copies the source picture, and stays exact while it learns.

A UNet's output passes a group normalisation and a SiLU, which lose scale, mean and sign; small UNets never learn to undo
them well. Here the last ResNet's shortcut hands on each input latent twice, as x and −x, beside a large constant in
every group. The constant fixes the group's mean and deviation, so that the normalisation is affine, and
SiLU(x) − SiLU(−x) = x is exactly linear. What the trunk adds to those channels moves or shuts the copy.
"""

from __future__ import annotations

from typing import Any

import torch

__all__ = ["copy_the_source"]

_CONSTANT = 50.0  # far over any latent: it decides the group's mean and deviation
_PER_GROUP = 2  # input latents a group hands on


@torch.no_grad()
def copy_the_source(unet: Any, scale: float) -> None:
    """Set `unet` (a UNet2DConditionModel whose input is [noisy, source]) to predict `scale` × source.

    The first half of the last normalisation's groups carries the source, the second half the noisy latents (with no
    weight yet). One channel per group stays free for the trunk.

    Raises:
        ValueError: the groups are too few or too small to carry every input latent.
    """
    inputs, norm = unet.config.in_channels, unet.conv_norm_out
    each = unet.config.out_channels
    size = norm.num_channels // norm.num_groups
    if norm.num_groups * _PER_GROUP != inputs or size < 2 * _PER_GROUP + 1:
        raise ValueError(
            f"unet: expected {inputs} input latents, {_PER_GROUP} to each group of at least {2 * _PER_GROUP + 1} channels; "
            f"got {norm.num_groups} groups of {size}: choose other widths or norm_num_groups"
        )
    carriers = _plain_inputs(unet.conv_in)
    last = unet.up_blocks[-1].resnets[-1]
    shortcut, skipped = last.conv_shortcut, last.in_channels - unet.conv_in.out_channels
    for layer in (shortcut, last.conv2, unet.conv_out):
        layer.weight.zero_()
        layer.bias.zero_()
    norm.weight.fill_(1.0)
    norm.bias.zero_()
    mean, deviation = _CONSTANT / size, _CONSTANT * (size - 1) ** 0.5 / size
    for group in range(norm.num_groups):
        first = group * size
        for k in range(_PER_GROUP):
            source = group < norm.num_groups // 2
            latent = group % (norm.num_groups // 2) * _PER_GROUP + k
            for sign, channel in ((1.0, first + 2 * k), (-1.0, first + 2 * k + 1)):
                shortcut.weight[channel, skipped + carriers[latent + (each if source else 0)]] = sign
                norm.weight[channel], norm.bias[channel] = deviation, mean
                if source:
                    unet.conv_out.weight[latent, channel, 1, 1] = sign * scale
        shortcut.bias[first + 2 * _PER_GROUP] = _CONSTANT
        for free in range(first + 2 * _PER_GROUP + 1, first + size):
            shortcut.weight[free].normal_(
                0, 0.02
            )  # it moves the mean of its group; its output weights begin at nothing


def _plain_inputs(conv_in: Any) -> list[int]:
    """Makes one output of `conv_in` a plain copy of each input: those outputs that the others explain best give way."""
    inputs = conv_in.in_channels
    taps = torch.zeros(inputs, *conv_in.weight.shape[1:])
    taps[torch.arange(inputs), torch.arange(inputs), 1, 1] = 1.0
    rows, left = conv_in.weight.detach().flatten(1).clone(), list(range(conv_in.out_channels))
    given: list[int] = []
    for _ in range(inputs):
        losses = {}
        for k in left:
            rest = torch.cat([rows[[j for j in left if j != k]], taps.flatten(1)]).T
            losses[k] = float((rest @ torch.linalg.lstsq(rest, rows[k][:, None]).solution - rows[k][:, None]).norm())
        chosen = min(losses, key=lambda k: losses[k])
        left.remove(chosen)
        given.append(chosen)
    conv_in.weight[given] = taps
    conv_in.bias[given] = 0.0
    return given
