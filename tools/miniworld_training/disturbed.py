"""Edits of the train split for the degradation heads: by the trained editor, half of them from disturbed image latents.

The disturbances are random: no attack, and no picture of one, has a part in them. Each referee gets kinds of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from isr.data.miniworld import EDITS

from .autoencoder import encode
from .editor import assemble, build_scheduler, sample_latents
from .pairs import Pairs

__all__ = ["DISTURB", "draw_edits"]

#: Where each referee's pairs begin, so that no two learn from the same pictures, and its own seed.
FIRST = {"a": 0, "b": 7000, "c": 14000}


def _unit(noise: torch.Tensor) -> torch.Tensor:
    """Scaled to standard deviation one, picture by picture."""
    return noise / noise.std((1, 2, 3), keepdim=True)


def _white_and_smooth(z: torch.Tensor) -> torch.Tensor:
    """A random mixture of white noise and noise on a quarter of the grid."""
    smooth = F.interpolate(
        torch.randn(*z.shape[:2], z.shape[2] // 4, z.shape[3] // 4), size=z.shape[2:], mode="bicubic"
    )
    k = torch.rand(len(z), 1, 1, 1)
    return _unit(k * torch.randn_like(z) + (1 - k) * _unit(smooth))


def _foreign_and_channels(z: torch.Tensor) -> torch.Tensor:
    """What another picture's latent would change, at random places, plus a random offset for every channel."""
    other = z.roll(1, 0)[:, torch.randperm(z.shape[1])]
    mask = F.interpolate(torch.rand(len(z), 1, 4, 4), size=z.shape[2:], mode="bilinear")
    offset = torch.randn(len(z), z.shape[1], 1, 1).expand_as(z)
    return _unit(mask * _unit(other - z) + 0.5 * torch.rand(len(z), 1, 1, 1) * offset + 0.3 * torch.randn_like(z))


def _blocks_and_bands(z: torch.Tensor) -> torch.Tensor:
    """Noise in random blocks, and along random rows and columns."""
    blocks = (torch.rand(len(z), 1, z.shape[2] // 2, z.shape[3] // 2) < 0.4).float()
    blocks = F.interpolate(blocks, size=z.shape[2:], mode="nearest")
    rows, columns = torch.randn(*z.shape[:3], 1), torch.randn(*z.shape[:2], 1, z.shape[3])
    return _unit(blocks * torch.randn_like(z) + 0.5 * torch.rand(len(z), 1, 1, 1) * (rows + columns))


DISTURB: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "a": _white_and_smooth,
    "b": _foreign_and_channels,
    "c": _blocks_and_bands,
}


@torch.no_grad()
def draw_edits(
    work: Path, data: Pairs, *, only: str | None = None, tiny: bool = False, count: int = 120, steps: int = 8
) -> None:
    """Write `work/edits/<referee>.npz`: `edited` (N, 64, 64, 3) uint8, `pair` (N,) rows of the pairs, `strength` (N,).

    strength 0: an edit of the picture as it is. Otherwise the noise's standard deviation in units of the latents' own.
    """
    pipe = assemble(work)
    vae = pipe.vae
    scale = float(vae.config.scaling_factor)
    (work / "edits").mkdir(exist_ok=True)
    for name in ("a", "b", "c"):
        if only not in {None, name} or (work / "edits" / f"{name}.npz").is_file():
            continue
        rng = np.random.default_rng([7, FIRST[name]])
        torch.manual_seed(int(rng.integers(1 << 30)))
        wanted, size = (4, 2) if tiny else (count, 32)
        start = 0 if tiny else FIRST[name]
        rows = np.arange(start, start + 2 * wanted)
        strength = np.where(np.arange(len(rows)) % 2 == 0, 0.0, rng.uniform(0.5, 1.15, len(rows))).astype(np.float32)
        edited: list[Any] = []
        for i in range(0, len(rows), size):
            part = rows[i : i + size]
            z = encode(vae, data.pictures[part, 0])
            z = z + DISTURB[name](z) * torch.from_numpy(strength[i : i + size])[:, None, None, None] / scale
            prompts = [str(rng.choice(EDITS[data.edits[k]].wordings)) for k in part]
            text, empty = _embed(pipe, prompts), _embed(pipe, [""] * len(part))
            generator = torch.Generator().manual_seed(int(rng.integers(1 << 30)))
            y = sample_latents(pipe.unet, build_scheduler(), z, text, empty, steps=steps, generator=generator)
            pictures = vae.decode(y / scale).sample.clamp(-1, 1)
            edited.append(((pictures + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy())
        np.savez_compressed(work / "edits" / f"{name}.npz", edited=np.concatenate(edited), pair=rows, strength=strength)


def _embed(pipe: Any, prompts: list[str]) -> torch.Tensor:
    ids = pipe.tokenizer(prompts, padding="max_length", truncation=True, return_tensors="pt").input_ids
    states: torch.Tensor = pipe.text_encoder(ids)[0]
    return states
