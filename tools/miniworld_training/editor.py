"""mini-ip2p: a UNet and a text encoder trained jointly as an InstructPix2Pix on MiniWorld, saved as a diffusers pipeline.

As in the pipeline, the image condition is the *unscaled* mode of the encoder, while the denoiser works on *scaled*
latents (Brooks et al. 2023, InstructPix2Pix; diffusers' StableDiffusionInstructPix2PixPipeline).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionInstructPix2PixPipeline, UNet2DConditionModel
from torch import nn

from isr.data.miniworld import EDITS

from .autoencoder import HELD_OUT, cache_latents
from .loop import Plan, fit
from .pairs import Pairs
from .ranks import Ranks
from .warm import text_encoder_from, unet_from
from .words import build_text_encoder, build_tokenizer

__all__ = ["assemble", "build_scheduler", "build_unet", "load_editor", "sample_latents", "train_editor"]

#: The settings that the card's figures were measured at.
STEPS, GUIDANCE, IMAGE_GUIDANCE = 20, 3.0, 1.2
_CHANGED = 0.25  # a latent counts as changed when source and target differ by more (scaled units, channel mean)


def build_unet(
    channels: int, *, widths: tuple[int, ...] = (48, 80, 128), text: int = 64, time: int | None = 320
) -> Any:
    """An untrained UNet: cross-attention at the middle resolution and in the mid block."""
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=2 * channels,
        out_channels=channels,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=widths,
        layers_per_block=1,
        cross_attention_dim=text,
        attention_head_dim=4,
        norm_num_groups=8,
        time_embedding_dim=time,
    )


def build_scheduler() -> Any:
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="v_prediction",
    )


def load_editor(folder: Path) -> Any:
    """The saved pipeline in float32, without progress bars."""
    pipe = StableDiffusionInstructPix2PixPipeline.from_pretrained(
        folder, safety_checker=None, local_files_only=True, torch_dtype=torch.float32
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def assemble(work: Path) -> Any:
    """The pipeline trained in a work folder, with the best decoder there is."""
    pipe = load_editor(work / "editor" / "mini-ip2p")
    later = work / "autoencoder" / "vae-decoder"
    pipe.vae = AutoencoderKL.from_pretrained(later if later.is_dir() else work / "autoencoder" / "vae").eval()
    return pipe


@torch.no_grad()
def sample_latents(
    unet: nn.Module,
    scheduler: Any,
    image: torch.Tensor,
    text: torch.Tensor,
    empty: torch.Tensor,
    *,
    steps: int,
    generator: torch.Generator,
    guidance: float = GUIDANCE,
    image_guidance: float = IMAGE_GUIDANCE,
) -> torch.Tensor:
    """Scaled latents of an edit: DDIM with the pipeline's three-way guidance."""
    scheduler.set_timesteps(steps)
    x = torch.randn(image.shape, generator=generator)
    words = torch.cat([text, empty, empty])
    for t in scheduler.timesteps:
        seen = torch.cat([x.repeat(3, 1, 1, 1), torch.cat([image, image, torch.zeros_like(image)])], 1)
        both, only_image, none = unet(seen, t, words).sample.chunk(3)
        guided = none + guidance * (both - only_image) + image_guidance * (only_image - none)
        x = scheduler.step(guided, t, x).prev_sample
    return x


class _Task:
    """Draws training batches of latents and instructions, and computes the loss."""

    def __init__(self, data: Pairs, latents: Any, scale: float, tokenizer: Any, held_out: int) -> None:
        self.latents, self.scale, self.held_out = latents, scale, held_out
        self.names = data.edits
        texts = [*sorted({w for e in EDITS.values() for w in e.wordings}), ""]
        self.index = {t: i for i, t in enumerate(texts)}
        self.ids = tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids
        self.alphas = build_scheduler().alphas_cumprod

    def embed(self, encoder: nn.Module, prompts: Sequence[str]) -> torch.Tensor:
        unique = sorted(set(prompts))
        states: torch.Tensor = encoder(self.ids[[self.index[t] for t in unique]])[0]
        return states[[unique.index(t) for t in prompts]]

    def loss(self, models: Mapping[str, nn.Module], rows: Any, rng: np.random.Generator, *, drop: bool) -> torch.Tensor:
        z = torch.from_numpy(np.asarray(self.latents[rows], np.float32))
        source, target = z[:, 0], z[:, 1] * self.scale
        changed = (target - source * self.scale).abs().mean(1, keepdim=True) > _CHANGED
        weight = 1 + 4 * changed.float()
        prompts = [str(rng.choice(EDITS[self.names[i]].wordings)) for i in rows]
        if drop:  # text only 5 %, both 5 %, image only 5 %: what the three branches of the guidance need
            u = rng.random(len(rows))
            prompts = ["" if a < 0.10 else p for a, p in zip(u, prompts, strict=True)]
            source = (
                source * torch.from_numpy(np.where((u >= 0.05) & (u < 0.15), 0.0, 1.0)).float()[:, None, None, None]
            )
        text = self.embed(models["text_encoder"], prompts)
        t = torch.randint(0, 1000, (len(rows),))
        a = self.alphas[t][:, None, None, None]
        noise = torch.randn_like(target)
        noisy = a.sqrt() * target + (1 - a).sqrt() * noise
        wanted = a.sqrt() * noise - (1 - a).sqrt() * target
        got = models["unet"](torch.cat([noisy, source], 1), t, text).sample
        return (weight * (got - wanted) ** 2).mean() / weight.mean()

    def check(self, models: Mapping[str, nn.Module], count: int) -> dict[str, float]:
        """On held-out pairs: share nearer the target than the source in the changed latents, and the error left there."""
        n = len(self.names)
        rows = np.arange(n - count, n)
        rng, generator = np.random.default_rng(0), torch.Generator().manual_seed(1)
        with torch.no_grad():
            value = float(self.loss(models, rows, rng, drop=False))
            z = torch.from_numpy(np.asarray(self.latents[rows], np.float32))
            text = self.embed(models["text_encoder"], [EDITS[self.names[i]].wordings[0] for i in rows])
            empty = self.embed(models["text_encoder"], [""] * count)
            y = (
                sample_latents(models["unet"], build_scheduler(), z[:, 0], text, empty, steps=10, generator=generator)
                / self.scale
            )
            region = ((z[:, 1] - z[:, 0]) * self.scale).abs().mean(1, keepdim=True) > _CHANGED
            far, back, whole = (
                ((a - b) ** 2 * region).sum((1, 2, 3)) for a, b in ((y, z[:, 1]), (y, z[:, 0]), (z[:, 0], z[:, 1]))
            )
        return {
            "held_out_loss": value,
            "nearer_target": float((far < back).float().mean()),
            "relative_error": float((far / whole.clamp(min=1e-6)).median()),
        }


def train_editor(
    work: Path,
    data: Pairs,
    *,
    plan: Plan,
    ranks: Ranks,
    tiny: bool = False,
    batch: int = 16,
    seed: int = 0,
    start: Path | None = None,
) -> None:
    """Train and save the pipeline folder `work/editor/mini-ip2p` (float16 safetensors) from the moving averages."""
    folder = work / "editor"
    folder.mkdir(parents=True, exist_ok=True)
    vae = AutoencoderKL.from_pretrained(work / "autoencoder" / "vae").eval()
    latents = cache_latents(vae, data, folder, ranks)
    torch.manual_seed(seed)
    tokenizer = build_tokenizer(captions=50 if tiny else 1500)
    models = {
        "text_encoder": build_text_encoder(tokenizer),
        "unet": build_unet(vae.config.latent_channels, widths=(16, 32, 32) if tiny else (48, 80, 128)),
    }
    copied = 0
    if start is not None:
        copied = unet_from(start / "unet", models["unet"]) + text_encoder_from(start, models["text_encoder"], tokenizer)
    task = _Task(data, latents, vae.config.scaling_factor, tokenizer, 4 if tiny else HELD_OUT)
    size, exam = (2, 4) if tiny else (batch, 64)
    usable = len(data) - task.held_out

    def loss(step: int) -> torch.Tensor:
        rng = np.random.default_rng([seed, 2, step, ranks.rank])
        return task.loss(models, np.sort(rng.integers(0, usable, size)), rng, drop=True)

    def check(averages: Mapping[str, nn.Module]) -> dict[str, float]:
        _save(folder / "mini-ip2p", vae, tokenizer, averages)
        return task.check(averages, exam)

    fit(
        models,
        loss,
        plan=plan,
        ranks=ranks,
        folder=folder,
        check=check,
        seed=seed,
        card={"batch": size * ranks.world, "warm_started_tensors": copied},
    )


def _save(folder: Path, vae: Any, tokenizer: Any, averages: Mapping[str, nn.Module]) -> None:
    import copy

    parts = {"vae": vae, **averages}
    half = {name: copy.deepcopy(module).half() for name, module in parts.items()}
    pipe = StableDiffusionInstructPix2PixPipeline(
        tokenizer=tokenizer,
        scheduler=build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        image_encoder=None,
        requires_safety_checker=False,
        **half,
    )
    pipe.save_pretrained(folder)
