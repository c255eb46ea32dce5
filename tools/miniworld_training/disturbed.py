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

from .answers import many_answers
from .models import MODELS
from .pairs import Pairs
from .trained import Trained

__all__ = ["DISTURB", "draw_edits"]


def _unit(noise: torch.Tensor) -> torch.Tensor:
    """Scaled to standard deviation one, picture by picture."""
    return noise / noise.std((1, 2, 3), keepdim=True)


def _white_and_smooth(z: torch.Tensor) -> torch.Tensor:
    """A random mixture of white noise and noise on a quarter of the grid."""
    smooth = F.interpolate(
        torch.randn(*z.shape[:2], z.shape[2] // 4, z.shape[3] // 4, device=z.device), size=z.shape[2:], mode="bicubic"
    )
    k = torch.rand(len(z), 1, 1, 1, device=z.device)
    return _unit(k * torch.randn_like(z) + (1 - k) * _unit(smooth))


def _foreign_and_channels(z: torch.Tensor) -> torch.Tensor:
    """What another picture's latent would change, at random places, plus a random offset for every channel."""
    other = z.roll(1, 0)[:, torch.randperm(z.shape[1], device=z.device)]
    mask = F.interpolate(torch.rand(len(z), 1, 4, 4, device=z.device), size=z.shape[2:], mode="bilinear")
    offset = torch.randn(len(z), z.shape[1], 1, 1, device=z.device).expand_as(z)
    return _unit(
        mask * _unit(other - z)
        + 0.5 * torch.rand(len(z), 1, 1, 1, device=z.device) * offset
        + 0.3 * torch.randn_like(z)
    )


def _blocks_and_bands(z: torch.Tensor) -> torch.Tensor:
    """Noise in random blocks, and along random rows and columns."""
    blocks = (torch.rand(len(z), 1, z.shape[2] // 2, z.shape[3] // 2, device=z.device) < 0.4).float()
    blocks = F.interpolate(blocks, size=z.shape[2:], mode="nearest")
    rows = torch.randn(*z.shape[:3], 1, device=z.device)
    columns = torch.randn(*z.shape[:2], 1, z.shape[3], device=z.device)
    share = 0.5 * torch.rand(len(z), 1, 1, 1, device=z.device)
    return _unit(blocks * torch.randn_like(z) + share * (rows + columns))


DISTURB: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "a": _white_and_smooth,
    "b": _foreign_and_channels,
    "c": _blocks_and_bands,
}


@torch.no_grad()
def draw_edits(
    work: Path, *, device: torch.device, only: str | None = None, tiny: bool = False, count: int = 1500, steps: int = 20
) -> None:
    """Write `work/edits/<referee>.npz`: `edited`, `source`, `target` (N, 64, 64, 3) uint8, `strength` (N,), `graded` (N,).

    `count` edits from pictures as they are (strength 0) and as many from disturbed ones, by each trained editor, of the last
    pairs of its set, which it has not seen where it was trained with fewer. strength: standard deviation of the noise in
    units of the latents' own, 0 to 1.2, more of them weak. graded: whether the target is the one right picture.
    """
    trained = {name: m for name, m in MODELS.items() if m.pipeline(work).is_dir()}
    if not trained:
        raise SystemExit(f"no trained editor in {work}; run the stage `editor` first")
    (work / "edits").mkdir(exist_ok=True)
    for name in ("a", "b", "c"):
        if only not in {None, name} or (work / "edits" / f"{name}.npz").is_file():
            continue
        found: dict[str, list[Any]] = {"edited": [], "source": [], "target": [], "strength": [], "graded": []}
        for number, model in enumerate(trained.values()):
            editor, data = Trained(model, work, device), Pairs.load(work / model.pairs)
            place = sorted(DISTURB).index(name)
            rng = np.random.default_rng([7, place, number])
            torch.manual_seed(int(rng.integers(1 << 30)))
            wanted, size = (4, 2) if tiny else (count, 250)
            rows = (len(data) - 2 * wanted * (place + 1) + np.arange(2 * wanted)) % len(data)
            level = 1.2 * rng.uniform(0, 1, len(rows)) ** 1.5
            strength = np.where(np.arange(len(rows)) % 2 == 0, 0.0, level).astype(np.float32)
            for i in range(0, len(rows), size):
                part = rows[i : i + size]
                z = editor.latents(data.pictures[part, 0])
                z = (
                    z
                    + DISTURB[name](z)
                    * torch.from_numpy(strength[i : i + size])[:, None, None, None].to(z)
                    / editor.scale
                )
                prompts = [str(rng.choice(EDITS[data.edits[k]].wordings)) for k in part]
                generator = torch.Generator().manual_seed(int(rng.integers(1 << 30)))
                found["edited"].append(editor.edit(z, prompts, generator, steps=steps))
                found["source"].append(data.pictures[part, 0])
                found["target"].append(data.pictures[part, 1])
            found["strength"].append(strength)
            found["graded"].append(~many_answers([data.edits[k] for k in rows]))
        order = np.random.default_rng(place).permutation(sum(map(len, found["strength"])))
        np.savez_compressed(work / "edits" / f"{name}.npz", **{k: np.concatenate(v)[order] for k, v in found.items()})
