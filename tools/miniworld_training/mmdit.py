"""mini-sd3 and mini-sd3-instruct: an SD3 transformer, rectified flow, two small CLIP text encoders, no T5.

noisy = (1 − σ) z + σ n, velocity n − z, timestep 1000 σ (Esser et al. 2024, section 2).
mini-sd3 edits image to image. It learns pictures from their caption, with σ drawn logit-normally (section 3.1), and the sampler's
own path from a noised source to its target, from an instruction or (half of the captions) from the target's caption: which
parts of the two are in a latent at σ follows from the strength that the path began at. An instruction alone does not say
what a picture shows, its noised source does.
mini-sd3-instruct also sees the raw encoder mean of the source as extra channels and, as UltraEdit's pipeline does, works on
latents that are scaled but not shifted. Its loss is the error of ẑ = noisy − σ v, the noisy half is drawn more often,
what is noised has errors to mend, and an empty instruction asks for nothing: its target is the source, as mini-ip2p's.
As mini-ip2p, both also learn to mend what the sampler itself arrives at, except where the place of what appears is the
sampler's to choose (`answers`): there they learn the plain way, from the target with noise, by squared errors.

Both begin with a linear way from their input to the velocity (`copying_flow`): a copy of the source, or of the noisy latents.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Img2ImgPipeline
from torch import nn

from .autoencoder import HELD_OUT, cache_latents, trained_autoencoder
from .batches import Batch, Batches
from .copying_flow import carries, copy_the_source_flow, hold_the_gain, keep_the_noisy_flow
from .editor import chances, changed, imperfect, shared_passes, smooth, towards
from .loop import Plan, fit
from .models import Model
from .pairs import Pairs
from .ranks import Ranks
from .warm import copy_matching, text_encoder_from
from .words import build_text_encoder, build_tokenizer

__all__ = [
    "STRENGTH",
    "build_transformer",
    "embed",
    "euler",
    "sample_img2img",
    "sample_instruct",
    "source_left",
    "train_flow_editor",
]

_WIDTH = 64  # of each text encoder
#: Settings of the checks and of the cards: image-to-image strength; text guidance; image guidance (instruct only).
STEPS, STRENGTH, GUIDANCE, INSTRUCT_GUIDANCE, IMAGE_GUIDANCE = 20, 0.3, 1.0, 1.0, 1.0
_WEAKEST, _STRONGEST = 0.1, 0.25  # σ that paths from a noised source begin at (image to image)
#: Of the schedules: the same noise leaves less of a small picture, so SD3's shift of 3 for 128×128 latents is 3/8 for 16×16 (Esser et
#: al. 2024, eq. 23). Image to image keeps of the source what the noise leaves: strength 0.3 begins at σ = 0.14.
_SHIFT, _INSTRUCT_SHIFT = 3 * 16 / 128, 1.5
_STEADY = 0.3  # σ below which the error of the velocity counts no more than that of ẑ (image to image)
_EXTRA = 2.0  # extra weight of changed latents (for instructions)
_NO_TEXT, _NO_IMAGE = 0.07, 0.05  # shares of the batch without instruction, without picture (instruct)
_UNSEEN = 0.2  # weight of those without picture: what they should become is a guess
_OWN = 0.75  # share of the edits not placed anywhere that stand on the sampler's own way: at its start, or after a pass or two
_EARLY = 0.6  # share of the other draws from σ ≥ 0.5 alone, where an edit's layout is decided (instruct)
_LEAST = 0.02  # share of σ that a pass leaves at least: the next pass divides by σ
_UNTOLD, _CAPTIONED = 0.05, 0.2  # shares of the batch without text, of the rest by captions (image to image)


def build_transformer(channels: int, *, instruct: bool, layers: int = 6, heads: int = 5) -> Any:
    """An untrained SD3 transformer for 16×16 latents in 2×2 patches."""
    return SD3Transformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=2 * channels if instruct else channels,
        out_channels=channels,
        num_layers=layers,
        attention_head_dim=32,
        num_attention_heads=heads,
        joint_attention_dim=2 * _WIDTH,
        caption_projection_dim=32 * heads,
        pooled_projection_dim=2 * _WIDTH,
        pos_embed_max_size=8,
    )


def build_scheduler(*, instruct: bool) -> Any:
    return FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=_INSTRUCT_SHIFT if instruct else _SHIFT)


def embed(
    models: Mapping[str, Any], ids: torch.Tensor, back: torch.Tensor | slice = slice(None)
) -> tuple[torch.Tensor, torch.Tensor]:
    """Hidden states (B, tokens, 128) and pooled (B, 128), as SD3's pipelines join them."""
    out = [models[name](ids, output_hidden_states=True) for name in ("text_encoder", "text_encoder_2")]
    hidden = torch.cat([o.hidden_states[-2] for o in out], -1)
    pooled = torch.cat([o[0] for o in out], -1)
    return hidden[back], pooled[back]


Velocity = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def euler(velocity: Velocity, z: torch.Tensor, sigmas: torch.Tensor) -> torch.Tensor:
    """From sigmas[0] down to 0."""
    ends = torch.cat([sigmas[1:], sigmas.new_zeros(1)])
    for sigma, end in zip(sigmas.tolist(), ends.tolist(), strict=True):
        z = z + (end - sigma) * velocity(z, torch.full((len(z),), 1000 * sigma, device=z.device))
    return z


def _sigmas(steps: int, *, instruct: bool) -> torch.Tensor:
    scheduler = build_scheduler(instruct=instruct)
    scheduler.set_timesteps(steps)
    sigmas: torch.Tensor = scheduler.sigmas[:-1]
    return sigmas


def source_left(sigma: torch.Tensor, start: torch.Tensor) -> torch.Tensor:
    """Share of the source in the clean part at σ, on the straight way from (1 − start) source + start noise to the target.

    z(σ) = σ/start z(start) + (1 − σ/start) target, so the source's part is (1 − start) σ/start of 1 − σ.
    """
    return (1 - start) * sigma / (start * (1 - sigma))


Text = tuple[torch.Tensor, torch.Tensor]


@torch.no_grad()
def sample_img2img(
    transformer: Any,
    source: torch.Tensor,
    text: Text,
    empty: Text,
    *,
    generator: torch.Generator,
    steps: int = STEPS,
    strength: float = STRENGTH,
    guidance: float = GUIDANCE,
) -> torch.Tensor:
    """Shifted and scaled latents of an image-to-image edit of shifted and scaled `source`. guidance ≤ 1: one pass a step."""
    sigmas = _sigmas(steps, instruct=False)[steps - int(steps * strength) :]
    noise = torch.randn(source.shape, generator=generator).to(source)
    hidden, pooled = torch.cat([empty[0], text[0]]), torch.cat([empty[1], text[1]])

    def velocity(z: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        if guidance <= 1:
            return transformer(z, *text, t).sample  # type: ignore[no-any-return]
        none, told = transformer(z.repeat(2, 1, 1, 1), hidden, pooled, t.repeat(2)).sample.chunk(2)
        return none + guidance * (told - none)

    return euler(velocity, (1 - sigmas[0]) * source + sigmas[0] * noise, sigmas)


@torch.no_grad()
def sample_instruct(
    transformer: Any,
    cond: torch.Tensor,
    text: Text,
    empty: Text,
    *,
    generator: torch.Generator,
    steps: int = STEPS,
    guidance: float = INSTRUCT_GUIDANCE,
    image_guidance: float = IMAGE_GUIDANCE,
) -> torch.Tensor:
    """Scaled latents of an instructed edit; cond: raw encoder means. guidance ≤ 1: one pass a step, as in the pipeline."""
    hidden, pooled = torch.cat([text[0], empty[0], empty[0]]), torch.cat([text[1], empty[1], empty[1]])
    image = torch.cat([cond, cond, torch.zeros_like(cond)])

    def velocity(z: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        if guidance <= 1:
            return transformer(torch.cat([z, cond], 1), *text, t).sample  # type: ignore[no-any-return]
        seen = torch.cat([z.repeat(3, 1, 1, 1), image], 1)
        both, only_image, none = transformer(seen, hidden, pooled, t.repeat(3)).sample.chunk(3)
        return none + guidance * (both - only_image) + image_guidance * (only_image - none)

    return euler(velocity, torch.randn(cond.shape, generator=generator).to(cond), _sigmas(steps, instruct=True))


class _Task:
    def __init__(self, batches: Batches, vae: Any, *, instruct: bool) -> None:
        self.batches, self.instruct = batches, instruct
        self.scale = float(vae.config.scaling_factor)
        self.shift = 0.0 if instruct else float(vae.config.shift_factor)

    def embed(self, models: Mapping[str, nn.Module], batch: Batch) -> Text:
        return embed(models, self.batches.ids[batch.unique], batch.back)

    def loss(
        self, models: Mapping[str, nn.Module], rows: Any, rng: np.random.Generator, *, drop: bool, passes: int = 1
    ) -> torch.Tensor:
        """The weighted error of ẑ = noisy − σ v: in training (`drop`) a smooth L1 where an edit is asked for, partly from the net's
        own predictions after `passes` passes, but plain and squared for what is `placed_anywhere`; squared in checks."""
        u = rng.random(len(rows)) if drop else np.ones(len(rows))
        return (self._instructed if self.instruct else self._described)(models, rows, rng, u, drop, passes)

    def _described(
        self, models: Mapping[str, nn.Module], rows: Any, rng: np.random.Generator, u: Any, drop: bool, passes: int = 1
    ) -> torch.Tensor:
        """Image to image: the error of ẑ counts as the velocity's, for σ not too small."""
        batch = self.batches.draw(rows, rng, no_text=u < _UNTOLD)
        source, target = ((z - self.shift) * self.scale for z in (batch.source, batch.target))
        idle, captioned = (
            torch.from_numpy(x).to(source.device)[:, None, None, None] for x in (u < _UNTOLD, rng.random(len(u)) < 0.5)
        )
        told = batch.instructed[:, None, None, None] | (captioned & ~idle)
        target = torch.where(idle, source, target)
        start, share = (torch.rand(len(u), 1, 1, 1, device=source.device) for _ in range(2))
        start = _WEAKEST + (_STRONGEST - _WEAKEST) * start
        sigma = torch.where(told, start * share.sqrt(), torch.sigmoid(torch.randn_like(start)))
        clean = torch.where(told, target + source_left(sigma, start) * (source - target), target)
        placed = batch.placed[:, None, None, None] & told
        noisy = (1 - sigma) * torch.where(placed, clean, imperfect(clean, clean)) + sigma * torch.randn_like(clean)
        text = self.embed(models, batch)
        if drop:
            own = (told & ~placed).flatten() & (torch.rand(len(u), device=source.device) < _OWN)
            begun = (1 - start) * source + start * torch.randn_like(source)
            if own.any():
                noisy[own], sigma[own] = self.walked(
                    models, begun[own], start[own], (text[0][own], text[1][own]), passes=passes
                )
        got = noisy - sigma * self._velocity(models, text, sigma, noisy)
        weight = 1 + _EXTRA * told * changed(source, target, 1.0).float()
        steady = sigma.clamp(min=_STEADY)
        error = (got - target) ** 2 / steady**2
        if drop:  # an absolute error of ẑ is the velocity's once divided by σ
            error = torch.where(told & ~placed, smooth(got, target) / steady, error)
        return (weight * error).mean() / weight.mean()

    def _instructed(
        self, models: Mapping[str, nn.Module], rows: Any, rng: np.random.Generator, u: Any, drop: bool, passes: int = 1
    ) -> torch.Tensor:
        batch = self.batches.draw(rows, rng, no_text=u < _NO_TEXT + _NO_IMAGE / 2)
        device = batch.source.device
        idle = torch.from_numpy(u < _NO_TEXT).to(device)[:, None, None, None]
        blind = torch.from_numpy((u >= _NO_TEXT) & (u < _NO_TEXT + _NO_IMAGE)).to(device)[:, None, None, None]
        source, target = batch.source * self.scale, torch.where(idle, batch.source, batch.target) * self.scale
        weight = 1 + _EXTRA * changed(batch.source, target / self.scale, self.scale).float()
        weight = torch.where(blind, _UNSEEN, 1.0) * weight
        sigma, early = (torch.rand(len(u), 1, 1, 1, device=device) for _ in range(2))
        sigma = torch.where(early < _EARLY, 0.5 + 0.5 * sigma, sigma)
        placed = batch.placed[:, None, None, None] & ~idle
        noisy = (1 - sigma) * torch.where(placed, target, imperfect(target, source)) + sigma * torch.randn_like(target)
        cond, text = torch.where(blind, 0.0, 1.0) * batch.source, self.embed(models, batch)
        if drop:
            own = ~placed.flatten() & (torch.rand(len(u), device=device) < _OWN)
            if own.any():
                told, begun = (text[0][own], text[1][own]), torch.randn_like(cond[own])
                noisy[own], sigma[own] = self.walked(
                    models, begun, torch.ones_like(sigma[own]), told, cond[own], passes=passes
                )
        got = noisy - sigma * self._velocity(models, text, sigma, noisy, cond)
        error = (got - target) ** 2
        if drop:
            error = torch.where(placed, error, smooth(got, target))
        return (weight * error).mean() / weight.mean()

    @torch.no_grad()
    def walked(
        self,
        models: Mapping[str, nn.Module],
        x: torch.Tensor,
        sigma: torch.Tensor,
        text: Text,
        *cond: torch.Tensor,
        passes: int,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Where the sampler, begun with `x` at `sigma`, stands after some passes: with errors of the net itself.

        Args:
            x: scaled latents (B, C, h, w). sigma: (B, 1, 1, 1), above 0 and at most 1. cond: raw encoder means (B, C, h, w),
                for an instructed transformer. passes: of the net, 0 or more.

        Returns:
            Latents and σ, shaped as they came: each picture at a σ of its own, which is why this is not `euler`.
        """
        for _ in range(passes):
            y = x - sigma * self._velocity(models, text, sigma, x, *cond)
            end = sigma * torch.rand_like(sigma).clamp(min=_LEAST)
            x, sigma = y + end / sigma * (x - y), end
        return x, sigma

    def _velocity(
        self, models: Mapping[str, nn.Module], text: Text, sigma: torch.Tensor, *seen: torch.Tensor
    ) -> torch.Tensor:
        """float32 (B, C, h, w); sigma: (B, 1, 1, 1); seen: the transformer's inputs."""
        with torch.autocast("cuda", torch.bfloat16, enabled=sigma.is_cuda):
            got: torch.Tensor = models["transformer"](torch.cat(seen, 1), *text, 1000 * sigma.flatten()).sample
        return got.float()

    @torch.no_grad()
    def check(self, models: Mapping[str, nn.Module], rows: Any) -> dict[str, float]:
        torch.manual_seed(0)  # the same noise at every check; the loop seeds every step anew
        out = {"held_out_loss": float(self.loss(models, rows, np.random.default_rng(0), drop=False))}
        for kind in ("",) if self.instruct else ("", "_from_captions"):
            batch = self.batches.told(rows, captions=bool(kind))
            text = self.embed(models, batch)
            unique, back = self.batches.texts([""] * len(rows))
            empty = embed(models, self.batches.ids[unique], back)
            generator = torch.Generator().manual_seed(1)
            if self.instruct:
                y = sample_instruct(models["transformer"], batch.source, text, empty, generator=generator)
            else:
                start = (batch.source - self.shift) * self.scale
                y = sample_img2img(models["transformer"], start, text, empty, generator=generator)
            raw = y / self.scale + self.shift
            found = towards(raw, batch.source, batch.target, self.scale, ~batch.placed)
            still = ~changed(batch.source, batch.target, self.scale)
            kept = ((raw - batch.source) * self.scale) ** 2 * still
            found["kept_error"] = float(kept.sum() / (still.sum() * raw.shape[1]).clamp(min=1))
            out |= {k + kind: v for k, v in found.items()}
        return out


def begin(models: Mapping[str, Any], scale: float, shift: float, *, start: Path | None = None, tokenizer: Any) -> int:
    """Lay the linear way into an untrained transformer, and copy what fits of earlier weights; returns how many tensors.

    start: a saved pipeline. If its transformer has the way and the same size, it is kept as it was trained; else the way is
    laid anew over what was copied. Of one without a transformer (mini-ip2p) both text encoders begin as its text encoder.
    """
    transformer, copied = models["transformer"], 0
    kept = False
    if start is not None and not any((start / part).is_dir() for part in ("transformer", "text_encoder")):
        raise SystemExit(f"--start: expected the folder of a saved pipeline, got {start}")
    if start is not None and not (start / "transformer").is_dir():
        for name in ("text_encoder", "text_encoder_2"):
            copied += text_encoder_from(start, models[name], tokenizer)
    elif start is not None:
        other = SD3Transformer2DModel.from_pretrained(start / "transformer")
        copied = copy_matching(transformer, other, lambda parts: parts)
        kept = carries(other) and copied == len(transformer.state_dict()) == len(other.state_dict())
        for name in ("text_encoder", "text_encoder_2"):
            copied += text_encoder_from(start, models[name], tokenizer, name)
    if not kept:
        if transformer.config.in_channels == 2 * transformer.config.out_channels:
            copy_the_source_flow(transformer, scale, shift)
        else:
            keep_the_noisy_flow(transformer)
    hold_the_gain(transformer)
    return copied


def train_flow_editor(
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
    """Train and save the pipeline folder of an SD3 editor (float16 safetensors) from the moving averages."""
    folder, seed, instruct = model.folder(work), model.seed, model.kind == "instruct"
    folder.mkdir(parents=True, exist_ok=True)
    vae = trained_autoencoder(work / model.autoencoder).to(ranks.device)
    latents = cache_latents(vae, data, work / model.autoencoder, ranks)
    torch.manual_seed(seed)
    tokenizer = build_tokenizer(captions=50 if tiny else 1500)
    sizes = {"layers": 2, "heads": 2} if tiny else {}
    models = {
        "text_encoder": build_text_encoder(tokenizer, width=_WIDTH, projection=True),
        "text_encoder_2": build_text_encoder(tokenizer, width=_WIDTH, projection=True),
        "transformer": build_transformer(vae.config.latent_channels, instruct=instruct, **sizes),
    }
    batches = Batches(data, latents, tokenizer, ranks.device, captions=0.0 if instruct else _CAPTIONED)
    task = _Task(batches, vae, instruct=instruct)
    copied = begin(models, task.scale, task.shift, start=start, tokenizer=tokenizer)
    for part in models.values():
        part.to(ranks.device)
    size, exam, held_out = (2, 4, 4) if tiny else (batch, 256 if ranks.gpu else 64, HELD_OUT)
    often = chances(data.edits[: len(data) - held_out])

    def loss(step: int) -> torch.Tensor:
        rng = np.random.default_rng([seed, 2, step, ranks.rank])
        rows = np.sort(rng.choice(len(often), size, p=often))
        return task.loss(models, rows, rng, drop=True, passes=shared_passes(seed, step))

    def check(averages: Mapping[str, nn.Module]) -> dict[str, float]:
        _save(model.pipeline(work), vae, tokenizer, averages, instruct=instruct)
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


def _save(folder: Path, vae: Any, tokenizer: Any, averages: Mapping[str, nn.Module], *, instruct: bool) -> None:
    half = {name: copy.deepcopy(part).half().cpu() for name, part in {"vae": vae, **averages}.items()}
    pipe = StableDiffusion3Img2ImgPipeline(
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        scheduler=build_scheduler(instruct=instruct),
        text_encoder_3=None,
        tokenizer_3=None,
        image_encoder=None,
        feature_extractor=None,
        **half,
    )
    pipe.save_pretrained(folder)
    if instruct:  # UltraEdit's pipeline, which diffusers does not have; the editors read its name
        index = folder / "model_index.json"
        record = json.loads(index.read_text("utf-8"))
        index.write_text(
            json.dumps({**record, "_class_name": "StableDiffusion3InstructPix2PixPipeline"}, indent=2) + "\n", "utf-8"
        )
