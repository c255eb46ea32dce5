"""mini-ip2p: a UNet and a text encoder trained jointly as an InstructPix2Pix on MiniWorld, saved as a diffusers pipeline.

As in the pipeline, the image condition is the *unscaled* mode of the encoder, while the denoiser works on *scaled*
latents (Brooks et al. 2023, InstructPix2Pix; diffusers' StableDiffusionInstructPix2PixPipeline).

The UNet predicts the edited latents themselves (prediction_type "sample") and begins as a copy of its source
(`copying`): most of an edited picture is the picture, and a small UNet that has to learn copying through its
normalisations keeps it soft. An empty instruction asks for nothing: its target is the source.
Where the place of what appears is the sampler's to choose (`answers`), it learns as any diffusion model, from the target with noise,
by squared errors. Else the loss is a smooth L1, and three quarters of the pairs stand on the sampler's own way: a third of these at its
beginning, noise alone, the others at predictions of the net itself, with errors as they really are, where a noised target would
show it the answer.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, StableDiffusionInstructPix2PixPipeline, UNet2DConditionModel
from torch import nn

from isr.data.miniworld import EDITS

from .autoencoder import HELD_OUT, cache_latents, trained_autoencoder
from .batches import Batches
from .copying import copy_the_source
from .loop import Plan, fit
from .models import Model
from .pairs import Pairs
from .ranks import Ranks
from .warm import text_encoder_from, unet_from
from .words import build_text_encoder, build_tokenizer

__all__ = [
    "build_scheduler",
    "build_unet",
    "chances",
    "changed",
    "imperfect",
    "load_editor",
    "sample_latents",
    "shared_passes",
    "smooth",
    "towards",
    "train_editor",
]

#: The settings that the card's figures were measured at.
STEPS, GUIDANCE, IMAGE_GUIDANCE = 20, 1.0, 1.0
_CHANGED = 0.25  # a latent counts as changed when source and target differ by more (scaled units, channel mean)
_EXTRA = 2.0  # extra weight of changed latents in the loss
_SMALL = 0.1  # error of a latent, in scaled units, from which the loss grows linearly
_NO_TEXT, _NO_IMAGE = 0.07, 0.05  # shares of the batch without instruction, without picture
_UNSEEN = 0.2  # weight of those without picture: what they should become is a guess
_ERROR, _LEFT = 0.2, 0.3  # up to: standard deviation of errors in what is noised, share of the edit not yet made there
#: How often pairs of a family are drawn beside the others: what is learnt last more often.
_OFTEN = {
    "hair": 4.0,
    "time": 4.0,
    "reshape": 3.0,
    "pattern": 1.5,
    "trees": 1.5,
    "season": 1.5,
    "mountain": 1.5,
    "balloon": 1.5,
    "headwear": 1.5,
    "beard": 1.5,
}
_OWN = 0.75  # share of what is not placed anywhere that stands on the sampler's own way: at its start, or after a pass or two
_EARLY = 0.6  # share of the other draws from the noisier half of the steps, where an edit's layout is decided


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
        prediction_type="sample",
    )


def load_editor(folder: Path) -> Any:
    """The saved pipeline in float32, without progress bars."""
    pipe = StableDiffusionInstructPix2PixPipeline.from_pretrained(
        folder, safety_checker=None, local_files_only=True, torch_dtype=torch.float32
    )
    pipe.set_progress_bar_config(disable=True)
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
    x = torch.randn(image.shape, generator=generator).to(image)
    words = torch.cat([text, empty, empty])
    for t in scheduler.timesteps:
        if guidance <= 1:  # no guidance, as in the pipeline
            x = scheduler.step(unet(torch.cat([x, image], 1), t, text).sample, t, x).prev_sample
            continue
        seen = torch.cat([x.repeat(3, 1, 1, 1), torch.cat([image, image, torch.zeros_like(image)])], 1)
        both, only_image, none = unet(seen, t, words).sample.chunk(3)
        guided = none + guidance * (both - only_image) + image_guidance * (only_image - none)
        x = scheduler.step(guided, t, x).prev_sample
    return x


class _Task:
    """The loss on a batch, and checks on held-out pairs."""

    def __init__(self, batches: Batches, scale: float) -> None:
        self.batches, self.scale = batches, scale
        self.alphas = build_scheduler().alphas_cumprod.to(batches.device)

    def embed(self, encoder: nn.Module, unique: torch.Tensor, back: torch.Tensor) -> torch.Tensor:
        states: torch.Tensor = encoder(self.batches.ids[unique])[0]
        return states[back]

    def loss(
        self, models: Mapping[str, nn.Module], rows: Any, rng: np.random.Generator, *, drop: bool, passes: int = 1
    ) -> torch.Tensor:
        """The weighted error of what the UNet makes of these pairs: in training (`drop`) a smooth L1, partly from its own
        predictions after `passes` passes, but plain and squared for what is `placed_anywhere`; squared in checks."""
        u = rng.random(len(rows)) if drop else np.ones(len(rows))
        device = self.batches.device
        batch = self.batches.draw(rows, rng, no_text=u < _NO_TEXT + _NO_IMAGE / 2)
        idle = torch.from_numpy(u < _NO_TEXT).to(device)[:, None, None, None]
        blind = torch.from_numpy((u >= _NO_TEXT) & (u < _NO_TEXT + _NO_IMAGE)).to(device)[:, None, None, None]
        target = torch.where(idle, batch.source, batch.target) * self.scale
        weight = 1 + _EXTRA * changed(batch.source, target / self.scale, self.scale).float()
        weight = torch.where(blind, _UNSEEN, 1.0) * weight
        source = torch.where(blind, 0.0, 1.0) * batch.source
        text = self.embed(models["text_encoder"], batch.unique, batch.back)
        early = torch.rand(len(rows), device=device) < _EARLY
        t = torch.where(early, 500, 0) + (torch.rand(len(rows), device=device) * torch.where(early, 500, 1000)).long()
        a = self.alphas[t][:, None, None, None]
        placed = batch.placed[:, None, None, None] & ~idle
        clean = torch.where(placed, target, imperfect(target, batch.source * self.scale))
        noisy = a.sqrt() * clean + (1 - a).sqrt() * torch.randn_like(target)
        if drop:
            own = ~placed.flatten() & (torch.rand(len(rows), device=device) < _OWN)
            if own.any():
                noisy[own], t[own] = self.walked(models["unet"], source[own], text[own], passes=passes)
        got = _predicted(models["unet"], noisy, source, t, text)
        error = (got - target) ** 2
        if drop:
            error = torch.where(placed, error, smooth(got, target))
        return (weight * error).mean() / weight.mean()

    @torch.no_grad()
    def walked(
        self, unet: nn.Module, source: torch.Tensor, text: torch.Tensor, *, passes: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Where the sampler stands after some passes from noise alone: with errors of the net itself.

        Args:
            source: raw encoder means (B, C, h, w). text: (B, tokens, width). passes: of the net, 0 or more.

        Returns:
            Scaled noised latents (B, C, h, w) and their timesteps (B,), 0 to 999: each picture at one of its own, which is why
            this is not the scheduler's step.
        """
        t = (900 + 100 * torch.rand(len(source), device=source.device)).long()
        x = torch.randn_like(source)
        for _ in range(passes):
            a, y = self.alphas[t][:, None, None, None], _predicted(unet, x, source, t, text)
            noise = (x - a.sqrt() * y) / (1 - a).sqrt()
            t = (t * torch.rand(len(t), device=t.device)).long()
            a = self.alphas[t][:, None, None, None]
            x = a.sqrt() * y + (1 - a).sqrt() * noise
        return x, t

    @torch.no_grad()
    def check(self, models: Mapping[str, nn.Module], rows: Any) -> dict[str, float]:
        rng, generator = np.random.default_rng(0), torch.Generator().manual_seed(1)
        torch.manual_seed(0)  # the same noise at every check; the loop seeds every step anew
        value = float(self.loss(models, rows, rng, drop=False))
        batch = self.batches.told(rows)
        text = self.embed(models["text_encoder"], batch.unique, batch.back)
        empty = self.embed(models["text_encoder"], *self.batches.texts([""] * len(rows)))
        y = sample_latents(
            models["unet"], build_scheduler(), batch.source, text, empty, steps=10, generator=generator
        )  # fmt: skip
        found = towards(y / self.scale, batch.source, batch.target, self.scale, ~batch.placed)
        return {"held_out_loss": value, **found}


def _predicted(
    unet: nn.Module, noisy: torch.Tensor, source: torch.Tensor, t: torch.Tensor, text: torch.Tensor
) -> torch.Tensor:
    seen = torch.cat([noisy, source], 1).contiguous(memory_format=torch.channels_last)
    got: torch.Tensor = unet(seen, t, text).sample
    return got


def smooth(got: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Absolute error beyond _SMALL: what does not change gets an error of zero, and what is uncertain is not blurred."""
    return F.smooth_l1_loss(got, target, reduction="none", beta=_SMALL)


def shared_passes(seed: int, step: int) -> int:
    """How many passes of the sampler training makes before this step: 0, 1 or 2, the same on all ranks, which would else wait."""
    return int(np.random.default_rng([seed, 4, step]).integers(0, 3))


def chances(edits: Sequence[str]) -> npt.NDArray[np.float64]:
    """Of each pair to be drawn, by the name of its edit."""
    often = np.array([_OFTEN.get(EDITS[name].family, 1.0) for name in edits])
    total: npt.NDArray[np.float64] = often / often.sum()
    return total


def imperfect(target: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
    """The target with errors of the kind that sampling leaves, white, smooth and of edits half made, which the next steps
    have to mend (after Ning et al. 2023, Input Perturbation Reduces Exposure Bias in Diffusion Models)."""
    smooth = F.interpolate(torch.randn_like(target[..., ::4, ::4]), size=target.shape[2:], mode="bilinear")
    amount, share, left = (torch.rand(len(target), 1, 1, 1, device=target.device) for _ in range(3))
    error = share * torch.randn_like(target) + (1 - share) * smooth
    return target + _ERROR * amount * error + _LEFT * left**2 * (source - target)


def changed(source: torch.Tensor, target: torch.Tensor, scale: float) -> torch.Tensor:
    """Where raw latents differ by more than a quarter of their scaled unit, (B, 1, h, w) bool."""
    return ((target - source) * scale).abs().mean(1, keepdim=True) > _CHANGED


def towards(
    y: torch.Tensor, source: torch.Tensor, target: torch.Tensor, scale: float, rows: torch.Tensor
) -> dict[str, float]:
    """Share of edits nearer the target than the source in the latents that should change, and the error left there.

    rows: (B,) bool, the pairs whose target is the one right picture; where there are none, all are taken.
    """
    if rows.any():
        y, source, target = y[rows], source[rows], target[rows]
    region = changed(source, target, scale)
    far, back, whole = (((a - b) ** 2 * region).sum((1, 2, 3)) for a, b in ((y, target), (y, source), (source, target)))
    return {
        "nearer_target": float((far < back).float().mean()),
        "relative_error": float((far / whole.clamp(min=1e-6)).median()),
    }


def train_editor(
    model: Model,
    work: Path,
    data: Pairs,
    *,
    plan: Plan,
    ranks: Ranks,
    tiny: bool = False,
    batch: int = 16,
    start: Path | None = None,
) -> None:
    """Train and save the pipeline folder of a UNet editor (float16 safetensors) from the moving averages."""
    folder, seed = model.folder(work), model.seed
    folder.mkdir(parents=True, exist_ok=True)
    vae = trained_autoencoder(work / model.autoencoder).to(ranks.device)
    latents = cache_latents(vae, data, work / model.autoencoder, ranks)
    torch.manual_seed(seed)
    tokenizer = build_tokenizer(captions=50 if tiny else 1500)
    models = {
        "text_encoder": build_text_encoder(tokenizer),
        "unet": build_unet(vae.config.latent_channels, widths=(16, 32, 32) if tiny else (48, 80, 128)),
    }
    copied, copies = 0, False
    if start is not None:
        config = json.loads((start / "scheduler" / "scheduler_config.json").read_text("utf-8"))
        copies = config["prediction_type"] == "sample"
        copied = unet_from(start / "unet", models["unet"]) + text_encoder_from(start, models["text_encoder"], tokenizer)
    if not (copies or tiny):
        copy_the_source(models["unet"], vae.config.scaling_factor)
    models["text_encoder"].to(ranks.device)
    models["unet"].to(ranks.device, memory_format=torch.channels_last)  # a third faster on a processor
    task = _Task(Batches(data, latents, tokenizer, ranks.device, captions=0), vae.config.scaling_factor)
    size, exam, held_out = (2, 4, 4) if tiny else (batch, 256 if ranks.gpu else 64, HELD_OUT)
    often = chances(data.edits[: len(data) - held_out])

    def loss(step: int) -> torch.Tensor:
        rng = np.random.default_rng([seed, 2, step, ranks.rank])
        rows = np.sort(rng.choice(len(often), size, p=often))
        return task.loss(models, rows, rng, drop=True, passes=shared_passes(seed, step))

    def check(averages: Mapping[str, nn.Module]) -> dict[str, float]:
        _save(model.pipeline(work), vae, tokenizer, averages)
        return task.check(averages, np.arange(len(data) - exam, len(data)))

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
    half = {name: copy.deepcopy(module).half().cpu() for name, module in parts.items()}
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
