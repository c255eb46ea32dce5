"""The autoencoder of the miniature editors: diffusers' AutoencoderKL, 64×64 pixels to 16×16 latents of 8 channels."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from diffusers import AutoencoderKL
from torch import nn

from .loop import Plan, fit
from .pairs import Pairs
from .ranks import Ranks

__all__ = ["build", "cache_latents", "equalise", "psnr", "train_autoencoder"]

HELD_OUT = 256  # pairs at the end of the set, never trained on
_KL = 1e-4


def build(*, widths: tuple[int, ...] = (16, 32, 64), channels: int = 8) -> Any:
    """An untrained autoencoder; each width after the first halves the side."""
    n = len(widths)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * n,
        up_block_types=("UpDecoderBlock2D",) * n,
        block_out_channels=widths,
        layers_per_block=1,
        latent_channels=channels,
        norm_num_groups=8,
        sample_size=64,
        mid_block_add_attention=False,
    )


def pixels(pictures: npt.NDArray[np.uint8]) -> torch.Tensor:
    """(N, 64, 64, 3) uint8 to (N, 3, 64, 64) float in [−1, 1]."""
    return torch.from_numpy(np.array(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1


def psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    """Mean over pictures of the PSNR in dB, one MSE per picture over all channels; inputs in [−1, 1]."""
    mse = ((a.clamp(-1, 1) - b.clamp(-1, 1)) ** 2).mean((1, 2, 3)) / 4
    return float((-10 * torch.log10(mse)).mean())


def _slopes(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return x[..., 1:, :] - x[..., :-1, :], x[..., :, 1:] - x[..., :, :-1]


def warm_start(model: Any, folder: Path) -> int:
    """Copy from another autoencoder every tensor that has a place of the same shape; returns how many.

    Blocks are matched from the pixel side, so that one with more halvings can lend its fine levels.
    """
    other = AutoencoderKL.from_pretrained(folder)
    more = len(other.config.block_out_channels) - len(model.config.block_out_channels)
    own = model.state_dict()
    copied = 0
    for name, value in other.state_dict().items():
        parts = name.split(".")
        if parts[:2] == ["decoder", "up_blocks"]:
            parts[2] = str(int(parts[2]) - more)
        place = own.get(".".join(parts))
        if place is not None and place.shape == value.shape:
            place.copy_(value)
            copied += 1
    return copied


def train_autoencoder(
    pairs: Pairs,
    folder: Path,
    *,
    plan: Plan,
    ranks: Ranks,
    batch: int = 6,
    widths: tuple[int, ...] = (16, 32, 64),
    channels: int = 8,
    held_out: int = HELD_OUT,
    seed: int = 0,
    start: Path | None = None,
) -> Any:
    """Train and save the diffusers folder `folder/vae`. Returns the averaged model (on rank 0 and others alike)."""
    torch.manual_seed(seed)
    model = build(widths=widths, channels=channels)
    copied = warm_start(model, start) if start is not None else 0
    flat = pairs.pictures.reshape(-1, *pairs.pictures.shape[2:])
    usable = len(flat) - 2 * held_out
    exam = pixels(flat[-2 * held_out :][: min(256, 2 * held_out)])

    def loss(step: int) -> torch.Tensor:
        rng = np.random.default_rng([seed, 1, step, ranks.rank])
        x = pixels(flat[np.sort(rng.integers(0, usable, batch))])
        posterior = model.encode(x).latent_dist
        y = model.decode(posterior.sample()).sample
        edges = sum(((a - b).abs().mean() for a, b in zip(_slopes(y), _slopes(x), strict=True)), torch.zeros(()))
        kl = 0.5 * (posterior.mean**2 + posterior.logvar.exp() - 1 - posterior.logvar).mean()
        total: torch.Tensor = (y - x).abs().mean() + 0.8 * edges + 0.5 * ((y - x) ** 2).mean() + _KL * kl
        return total

    def check(averages: Mapping[str, nn.Module]) -> dict[str, float]:
        with torch.no_grad():
            held: Any = averages["vae"]
            z = held.encode(exam).latent_dist.mode()
            return {"psnr": psnr(held.decode(z).sample, exam), "latent_std": float(z.std())}

    averages = fit(
        {"vae": model},
        loss,
        plan=plan,
        ranks=ranks,
        folder=folder,
        check=check,
        seed=seed,
        card={"batch": batch * ranks.world, "warm_started_tensors": copied},
    )
    vae: Any = averages["vae"]
    if ranks.first:
        with torch.no_grad():
            spread = equalise(vae, pixels(flat[:512]))
        record = json.loads((folder / "training.json").read_text("utf-8"))
        (folder / "training.json").write_text(json.dumps({**record, **check(averages), **spread}, indent=1), "utf-8")
        vae.save_pretrained(folder / "vae")
    return vae


def equalise(vae: Any, x: torch.Tensor) -> dict[str, Any]:
    """Bring the latent channels to similar scales without changing what the autoencoder computes, and set its scaling factor.

    A factor per channel goes into quant_conv and its inverse into post_quant_conv.
    """
    z = vae.encode(x).latent_dist.mode()
    before = vae.decode(z).sample
    std = z.std((0, 2, 3))
    factor = (std.mean() / std) ** 0.75
    c = len(std)
    quant, post = vae.quant_conv, vae.post_quant_conv
    quant.weight[:c] *= factor[:, None, None, None]
    quant.bias[:c] *= factor
    quant.bias[c:] += 2 * factor.log()
    post.weight /= factor[None, :, None, None]
    z = vae.encode(x).latent_dist.mode()
    gap = float((vae.decode(z).sample - before).abs().max())
    vae.register_to_config(scaling_factor=round(1 / float(z.std()), 5))
    return {
        "fold_error": gap,
        "channel_std": [round(v, 3) for v in z.std((0, 2, 3)).tolist()],
        "scaling_factor": vae.config.scaling_factor,
    }


@torch.no_grad()
def cache_latents(vae: Any, pairs: Pairs, folder: Path, *, batch: int = 64) -> npt.NDArray[np.float16]:
    """Encoder means of all pairs, unscaled, (N, 2, C, h, w) float16, kept in `folder/latents.npy`."""
    path = folder / "latents.npy"
    if path.is_file():
        kept = np.load(path, mmap_mode="r")
        if len(kept) == len(pairs):
            return kept  # type: ignore[no-any-return]
    blocks = []
    for i in range(0, len(pairs), batch):
        part = pairs.pictures[i : i + batch]
        z = vae.encode(pixels(part.reshape(-1, *part.shape[2:]))).latent_dist.mode()
        blocks.append(z.reshape(len(part), 2, *z.shape[1:]).numpy().astype(np.float16))
    part_path = folder / "latents.part.npy"
    np.save(part_path, np.concatenate(blocks))
    part_path.replace(path)
    return np.load(path, mmap_mode="r")  # type: ignore[no-any-return]
