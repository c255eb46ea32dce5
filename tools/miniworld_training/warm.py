"""Beginning from earlier weights: every tensor that has a place of the same shape is copied, the rest stays new.

Only saves time: training from nothing reaches the same point later.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import nn
from transformers import CLIPTokenizer

__all__ = ["autoencoder_from", "copy_matching", "text_encoder_from", "unet_from"]


@torch.no_grad()
def copy_matching(model: nn.Module, other: nn.Module, place: Callable[[list[str]], list[str]]) -> int:
    """Copy tensors by name (`place` maps the parts of a name) where shapes agree; returns how many."""
    own, copied = model.state_dict(), 0
    for name, value in other.state_dict().items():
        target = own.get(".".join(place(name.split("."))))
        if target is not None and target.shape == value.shape:
            target.copy_(value)
            copied += 1
    return copied


def _moved(parts: list[str], path: tuple[str, ...], by: int) -> list[str]:
    n = len(path)
    return [*path, str(int(parts[n]) + by), *parts[n + 1 :]] if tuple(parts[:n]) == path else parts


def autoencoder_from(folder: Path, model: Any) -> int:
    """Blocks are matched from the pixel side: one with more halvings lends its fine levels."""
    other = AutoencoderKL.from_pretrained(folder)
    if model.quant_conv is None and other.quant_conv is not None:
        _fold_the_ends(other)
    more = len(other.config.block_out_channels) - len(model.config.block_out_channels)
    return copy_matching(model, other, lambda parts: _moved(parts, ("decoder", "up_blocks"), -more))


@torch.no_grad()
def _fold_the_ends(vae: Any) -> None:
    """Move the 1×1 convolutions around the latents into their neighbours, for an autoencoder that has none (as SD3's).

    What it computes stays the same, but for the border, where the neighbour pads with zeros instead of the offset.
    """
    first, last, quant, post = vae.encoder.conv_out, vae.decoder.conv_in, vae.quant_conv, vae.post_quant_conv
    inner, outer = quant.weight[:, :, 0, 0], post.weight[:, :, 0, 0]
    first.bias.copy_(inner @ first.bias + quant.bias)
    first.weight.copy_(torch.einsum("oi,ikhw->okhw", inner, first.weight))
    last.bias += torch.einsum("oihw,i->o", last.weight, post.bias)
    last.weight.copy_(torch.einsum("oihw,ij->ojhw", last.weight, outer))
    vae.quant_conv = vae.post_quant_conv = None


@torch.no_grad()
def unet_from(folder: Path, model: Any) -> int:
    """Blocks are matched from the middle: a UNet with one level less lends its levels as the inner ones."""
    other = UNet2DConditionModel.from_pretrained(folder)
    fewer = len(model.config.block_out_channels) - len(other.config.block_out_channels)
    copied = copy_matching(model, other, lambda parts: _moved(parts, ("down_blocks",), fewer))
    t = torch.arange(1000)
    theirs, ours = other.time_embedding.linear_1, model.time_embedding.linear_1
    if theirs.weight.shape != ours.weight.shape and theirs.out_features == ours.out_features:
        # the same function of the timestep, from another number of waves
        wanted = other.time_proj(t) @ theirs.weight.T
        ours.weight.copy_(torch.linalg.lstsq(model.time_proj(t), wanted).solution.T)
        ours.bias.copy_(theirs.bias)
    return copied


@torch.no_grad()
def text_encoder_from(folder: Path, model: Any, tokenizer: Any, name: str = "text_encoder") -> int:
    """Embeddings go by token, the rest by name; what the folder lacks (a projection) stays as it is in `model`."""
    other, found = type(model).from_pretrained(folder / name, output_loading_info=True)
    old = CLIPTokenizer.from_pretrained(folder / "tokenizer").get_vocab()
    copied = copy_matching(model, other, lambda parts: [] if ".".join(parts) in found["missing_keys"] else parts)
    theirs, ours = other.get_input_embeddings().weight, model.get_input_embeddings().weight
    for token, row in tokenizer.get_vocab().items():
        if token in old:
            ours[row] = theirs[old[token]]
    return copied
