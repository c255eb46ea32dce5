"""The autoencoder of the miniature editors: diffusers' AutoencoderKL, 64×64 pixels to 16×16 latents of 8 channels."""

from __future__ import annotations

import copy
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
from .warm import autoencoder_from

__all__ = [
    "build",
    "cache_latents",
    "centre",
    "encode",
    "equalise",
    "pixels",
    "psnr",
    "train_autoencoder",
    "train_decoder",
    "trained_autoencoder",
]

HELD_OUT = 256  # pairs at the end of the set, never trained on
_KL = 1e-4


def build(*, widths: tuple[int, ...] = (16, 32, 64), channels: int = 8, flow: bool = False) -> Any:
    """An untrained autoencoder; each width after the first halves the side. flow: as SD3's (no 1×1 convolutions, a shift)."""
    n = len(widths)
    ends = {"use_quant_conv": False, "use_post_quant_conv": False, "shift_factor": 0.0} if flow else {}
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * n,
        up_block_types=("UpDecoderBlock2D",) * n,
        block_out_channels=widths,
        layers_per_block=1,
        latent_channels=channels,
        norm_num_groups=8,
        sample_size=64,
        mid_block_add_attention=False,
        **ends,
    )


def pixels(pictures: npt.NDArray[np.uint8], device: torch.device | str = "cpu") -> torch.Tensor:
    """(N, 64, 64, 3) uint8 to (N, 3, 64, 64) float in [−1, 1]."""
    return torch.from_numpy(np.array(pictures)).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1


def psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    """Mean over pictures of the PSNR in dB, one MSE per picture over all channels; inputs in [−1, 1]."""
    mse = ((a.clamp(-1, 1) - b.clamp(-1, 1)) ** 2).mean((1, 2, 3)) / 4
    return float((-10 * torch.log10(mse)).mean())


def _slopes(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return x[..., 1:, :] - x[..., :-1, :], x[..., :, 1:] - x[..., :, :-1]


def _difference(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Mostly squared: half of all squared error sits in a hundredth of the pixels (eyes, strokes, rings), which absolute
    differences lose among the grain."""
    total = 0.15 * (y - x).abs().mean() + 10 * ((y - x) ** 2).mean()
    for a, b in zip(_slopes(y), _slopes(x), strict=True):
        total = total + 0.15 * (a - b).abs().mean() + 3 * ((a - b) ** 2).mean()
    return total


def train_decoder(
    pairs: Pairs, folder: Path, *, plan: Plan, ranks: Ranks, batch: int = 6, held_out: int = HELD_OUT, seed: int = 0
) -> None:
    """Train the decoder of `folder/vae` further with the encoder fixed: latents, and all that was learnt on them, stay valid.

    The latents get a little noise, as sampled latents have.
    """
    vae = AutoencoderKL.from_pretrained(folder / "vae").to(ranks.device)
    vae.requires_grad_(requires_grad=False)
    parts = {"decoder": vae.decoder}
    if vae.post_quant_conv is not None:
        parts["post_quant_conv"] = vae.post_quant_conv
    for part in parts.values():
        part.requires_grad_(requires_grad=True)
    flat = pairs.pictures.reshape(-1, *pairs.pictures.shape[2:])
    usable = len(flat) - 2 * held_out
    exam = pixels(flat[usable:][:256], ranks.device)
    noise = 0.04 / float(vae.config.scaling_factor)

    def loss(step: int) -> torch.Tensor:
        rng = np.random.default_rng([seed, 3, step, ranks.rank])
        x = pixels(flat[np.sort(rng.integers(0, usable, batch))], ranks.device)
        with torch.no_grad():
            z = vae.encode(x).latent_dist.mode()
            z = z + noise * torch.randn_like(z)
        with torch.autocast("cuda", torch.bfloat16, enabled=ranks.gpu):
            y = vae.decode(z).sample
        return _difference(y.float(), x)

    def check(averages: Mapping[str, nn.Module]) -> dict[str, float]:
        with torch.no_grad():
            held = copy.deepcopy(vae)
            for name, part in averages.items():
                getattr(held, name).load_state_dict(part.state_dict())
            value = psnr(held.decode(held.encode(exam).latent_dist.mode()).sample, exam)
            held.save_pretrained(folder / "vae-decoder")
        return {"psnr": value}

    fit(
        parts,
        loss,
        plan=plan,
        ranks=ranks,
        folder=folder / "decoder",
        check=check,
        seed=seed,
        card={"batch": batch * ranks.world},
    )


def train_autoencoder(
    pairs: Pairs,
    folder: Path,
    *,
    plan: Plan,
    ranks: Ranks,
    batch: int = 6,
    widths: tuple[int, ...] = (16, 32, 64),
    channels: int = 8,
    flow: bool = False,
    held_out: int = HELD_OUT,
    seed: int = 0,
    start: Path | None = None,
) -> Any:
    """Train and save the diffusers folder `folder/vae`. Returns the averaged model (on rank 0 and others alike)."""
    torch.manual_seed(seed)
    model = build(widths=widths, channels=channels, flow=flow)
    copied = autoencoder_from(start, model) if start is not None else 0
    earlier = AutoencoderKL.load_config(start) if start is not None else {}
    # the same architecture: what was learnt on its latents should still fit
    further = copied == len(model.state_dict()) and earlier.get("use_quant_conv", True) == model.config.use_quant_conv
    model.to(ranks.device, memory_format=torch.channels_last)
    flat = pairs.pictures.reshape(-1, *pairs.pictures.shape[2:])
    usable = len(flat) - 2 * held_out
    exam = pixels(flat[-2 * held_out :][: min(256, 2 * held_out)], ranks.device)

    def loss(step: int) -> torch.Tensor:
        rng = np.random.default_rng([seed, 1, step, ranks.rank])
        x = pixels(flat[np.sort(rng.integers(0, usable, batch))], ranks.device)
        x = x.contiguous(memory_format=torch.channels_last)
        with torch.autocast("cuda", torch.bfloat16, enabled=ranks.gpu):
            posterior = model.encode(x).latent_dist
            y = model.decode(posterior.sample()).sample
        mean, logvar = posterior.mean.float(), posterior.logvar.float()
        kl = 0.5 * (mean**2 + logvar.exp() - 1 - logvar).mean()
        return _difference(y.float(), x) + _KL * kl

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
            some = pixels(flat[: min(1024, len(flat))], ranks.device)
            spread = {} if further else (centre if flow else equalise)(vae, some)
        if further:
            vae.register_to_config(**{k: earlier[k] for k in ("scaling_factor", "shift_factor") if k in earlier})
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


def centre(vae: Any, x: torch.Tensor) -> dict[str, Any]:
    """Set shift and scaling factor as SD3 has them: (z − shift) · scale has mean 0 and standard deviation 1."""
    z = vae.encode(x).latent_dist.mode()
    vae.register_to_config(shift_factor=round(float(z.mean()), 5), scaling_factor=round(1 / float(z.std()), 5))
    return {
        "channel_std": [round(v, 3) for v in z.std((0, 2, 3)).tolist()],
        "scaling_factor": vae.config.scaling_factor,
        "shift_factor": vae.config.shift_factor,
    }


@torch.no_grad()
def encode(vae: Any, pictures: npt.NDArray[np.uint8], *, batch: int = 64) -> torch.Tensor:
    """Encoder means, unscaled, (N, C, h, w), of pictures (N, 64, 64, 3) uint8; on the autoencoder's device."""
    return torch.cat(
        [
            vae.encode(pixels(pictures[i : i + batch], vae.device)).latent_dist.mode()
            for i in range(0, len(pictures), batch)
        ]
    )


def cache_latents(vae: Any, pairs: Pairs, folder: Path, ranks: Ranks) -> npt.NDArray[np.float16]:
    """Encoder means of the pairs, unscaled, (N, 2, C, h, w) float16; kept in `folder/latents.npy`, each rank encodes a share."""
    path = folder / "latents.npy"
    if path.is_file():
        kept: npt.NDArray[np.float16] = np.load(path, mmap_mode="r")
        if len(kept) == len(pairs):
            return kept
    share = np.array_split(np.arange(len(pairs)), ranks.world)[ranks.rank]
    own = pairs.pictures[share[0] : share[-1] + 1]
    z = encode(vae, own.reshape(-1, *own.shape[2:]), batch=512 if ranks.gpu else 64)
    np.save(folder / f"latents.{ranks.rank}.npy", z.reshape(len(own), 2, *z.shape[1:]).half().cpu().numpy())
    ranks.barrier()
    if ranks.first:
        np.save(path, np.concatenate([np.load(folder / f"latents.{r}.npy") for r in range(ranks.world)]))
    ranks.barrier()
    return np.load(path, mmap_mode="r")  # type: ignore[no-any-return]


def trained_autoencoder(folder: Path) -> Any:
    """The autoencoder of a training folder, with the decoder that was trained further where there is one."""
    later = folder / "vae-decoder"
    return AutoencoderKL.from_pretrained(later if later.is_dir() else folder / "vae").eval().requires_grad_(False)
