"""SD3 editors: image-to-image (SD3, SD3.5) and instruction-tuned with extra input channels (UltraEdit).

Text is [CLIP tokens of both encoders side by side, padded to T5's width; T5 tokens], and without T5 the latter are
zeros, as in diffusers' SD3 pipelines.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import PIL.Image
import torch
from torch.nn import functional as F

from isr.errors import UsageError

from .checks import check_call, check_masks
from .flow import FlowEditor, three_way, two_way
from .img2img import sampled_latents
from .loading import Part
from .pixels import to_pixels, wide
from .text import Text, columns_of, joined, log, read_columns, tiled, tokens_of

__all__ = ["SD3Img2Img", "SD3Instruct"]

_CLIP = ("CLIPTextModelWithProjection",)
_CLIP_TOKENIZER = ("CLIPTokenizer", "CLIPTokenizerFast")


class SD3Editor(FlowEditor):
    """The SD3 transformer and its three text encoders.

    Args:
        max_sequence_length: T5 tokens (diffusers' default 256). Without T5 these are zeros; a model that was trained
            without them takes 0.
    """

    PARTS: ClassVar[tuple[Part, ...]] = (
        Part("transformer", "diffusers", ("SD3Transformer2DModel",)),
        Part("vae", "diffusers", ("AutoencoderKL",)),
        Part("text_encoder", "transformers", _CLIP),
        Part("text_encoder_2", "transformers", _CLIP),
        Part("text_encoder_3", "transformers", ("T5EncoderModel",), optional=True),
        Part("tokenizer", "transformers", _CLIP_TOKENIZER, weights=False),
        Part("tokenizer_2", "transformers", _CLIP_TOKENIZER, weights=False),
        Part("tokenizer_3", "transformers", ("T5Tokenizer", "T5TokenizerFast"), weights=False, optional=True),
        Part("scheduler", "diffusers", weights=False),
    )
    FAMILY: ClassVar[str] = "mmdit"
    TEXT_ROLES: ClassVar[tuple[str, ...]] = ("text_encoder", "text_encoder_2", "text_encoder_3")

    def __init__(self, parts: Mapping[str, Any], *, max_sequence_length: int = 256, **options: Any) -> None:
        if max_sequence_length < 0 or (max_sequence_length == 0 and parts.get("text_encoder_3") is not None):
            raise UsageError(
                f"max_sequence_length must be at least 1 (0 where there is no T5 encoder), got {max_sequence_length}"
            )
        if parts.get("text_encoder_3") is not None and parts.get("tokenizer_3") is None:
            raise UsageError(
                "text_encoder_3 needs tokenizer_3; give both, or leave both out: without=['text_encoder_3', 'tokenizer_3']"
            )
        self.max_sequence_length = max_sequence_length
        super().__init__(parts, **options)

    @property
    def size_multiple(self) -> int:
        return self.vae_factor * int(self.denoiser.config.patch_size)

    def _record(self) -> dict[str, Any]:
        return {"max_sequence_length": self.max_sequence_length, "t5": self.parts.get("text_encoder_3") is not None}

    # ------------------------------------------------------------------------------------------------------ text

    def embed(self, prompts: Sequence[str]) -> Text:
        where = self._text_device()
        hidden, pooled = [], []
        with torch.no_grad():
            for suffix in ("", "_2"):
                tokens = tokens_of(self.parts[f"tokenizer{suffix}"], prompts, self.name)
                out = self.parts[f"text_encoder{suffix}"](tokens.input_ids.to(where), output_hidden_states=True)
                hidden.append(out.hidden_states[-2].to(self.device))
                pooled.append(out[0].to(self.device))
            clip = torch.cat(hidden, dim=-1)
            t5 = self._t5(prompts, clip)
            clip = F.pad(clip, (0, t5.shape[-1] - clip.shape[-1]))
        return Text(torch.cat([clip, t5], dim=1), torch.cat(pooled, dim=-1))

    def _t5(self, prompts: Sequence[str], like: torch.Tensor) -> torch.Tensor:
        encoder = self.parts.get("text_encoder_3")
        if encoder is None:
            return like.new_zeros((len(prompts), self.max_sequence_length, self.denoiser.config.joint_attention_dim))
        tokens = tokens_of(self.parts["tokenizer_3"], prompts, self.name, length=self.max_sequence_length)
        states: torch.Tensor = encoder(tokens.input_ids.to(self._text_device()))[0]
        return states.to(self.device, like.dtype)

    def word_columns(self, prompt: str, word: str | None = None) -> tuple[int, ...]:
        """Columns in the CLIP segment, then in the T5 segment (another tokenisation of the same word)."""
        tokenizer = self.parts["tokenizer"]
        columns, length = columns_of(tokenizer, prompt, word), int(tokenizer.model_max_length)
        if self.parts.get("text_encoder_3") is not None:
            start = int(tokenizer.model_max_length)
            more = columns_of(self.parts["tokenizer_3"], prompt, word, limit=self.max_sequence_length)
            columns = [*columns, *(start + c for c in more)]
            length = max(length, self.max_sequence_length)
        return read_columns(columns, prompt, word, length)

    # -------------------------------------------------------------------------------------------------- denoiser

    def predict(self, noisy: torch.Tensor, t: torch.Tensor, text: Text, cond: torch.Tensor | None) -> torch.Tensor:
        """The transformer's velocity for the conditional branch, (B, C, h, w) float32; t (B,), or (1,) for all rows."""
        batch = noisy.shape[0]
        parts = [noisy] if cond is None else [noisy, tiled(cond, batch, "cond")]
        channels = sum(p.shape[1] for p in parts)
        if channels != self.denoiser.config.in_channels:
            raise UsageError(
                f"{self.name}'s transformer takes {self.denoiser.config.in_channels} channels, got {channels}; "
                "pass cond=editor.condition(x)"
            )
        most = int(self.denoiser.config.pos_embed_max_size) * int(self.denoiser.config.patch_size)
        if max(noisy.shape[-2:]) > most:
            raise UsageError(
                f"{self.name} takes pictures of at most {most * self.vae_factor} pixels a side, got "
                f"{noisy.shape[-2] * self.vae_factor}×{noisy.shape[-1] * self.vae_factor} (height × width); load it with "
                f"resolution={most * self.vae_factor} or less"
            )
        text = text.tiled(batch)
        with self._using("transformer"):
            result: torch.Tensor = self.denoiser(
                hidden_states=torch.cat(parts, dim=1).to(self.device, self._dtype),
                timestep=tiled(t.to(self.device, non_blocking=True), batch, "t"),
                encoder_hidden_states=text.hidden.to(self._dtype),
                pooled_projections=None if text.pooled is None else text.pooled.to(self._dtype),
                return_dict=False,
            )[0]
        return wide(result)


class SD3Img2Img(SD3Editor):
    """SD3 and SD3.5 image-to-image: a posterior sample, (E − shift) · scale, noised to σ0, then Euler steps to 0.

    Of `steps` the last steps − floor(steps·(1 − strength)) run (diffusers' rounding for SD3).
    """

    PIPELINES: ClassVar[tuple[str, ...]] = ("StableDiffusion3Pipeline", "StableDiffusion3Img2ImgPipeline")
    DEFAULTS: ClassVar[Mapping[str, Any]] = {"steps": 50, "strength": 0.6, "guidance": 7.0, "negative_prompt": ""}
    _blind_told = False

    def condition(self, x: torch.Tensor) -> None:  # noqa: ARG002
        """None: the image enters through the start latent only."""
        return

    def condition_of(self, raw: torch.Tensor) -> None:  # noqa: ARG002
        """None."""
        return

    def _visited(self, scheduler: Any, n: int) -> torch.Tensor:
        return self._kept(scheduler, n, self._defaults["strength"])

    def _kept(self, scheduler: Any, steps: int, strength: float) -> torch.Tensor:
        start = int(max(steps - min(steps * strength, steps), 0)) * getattr(scheduler, "order", 1)
        scheduler.set_begin_index(start)
        timesteps: torch.Tensor = scheduler.timesteps[start:]
        return timesteps

    def _denoise(
        self,
        x: torch.Tensor,
        prompts: list[str],
        generators: list[torch.Generator],
        settings: Mapping[str, Any],
        *,
        wrap: bool,
    ) -> torch.Tensor:
        scheduler = self._scheduled(settings["steps"], (int(x.shape[-2]), int(x.shape[-1])))
        timesteps = self._kept(scheduler, settings["steps"], settings["strength"])
        if not self._blind_told and float(self.levels(timesteps[:1])[1]) >= 1:
            self._blind_told = True
            log.warning(
                "%s starts an edit of steps=%s at strength=%s from pure noise, so the picture has no part in it; take a lower "
                "strength, or more steps",
                self.name, settings["steps"], settings["strength"],
            )  # fmt: skip
        guided = settings["guidance"] > 1
        text = self._text(prompts)
        if guided:
            text = joined([self._text([settings["negative_prompt"]] * len(prompts)), text])

        def denoise(noisy: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            return self.predict(noisy, t, text, None)

        def velocity(z: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            out = self._call(denoise, torch.cat([z] * 2) if guided else z, t, wrap=wrap)
            return two_way(out, settings) if guided else out

        z = self.scaled(sampled_latents(self._posterior(x), generators))
        z = scheduler.scale_noise(z, timesteps[:1].repeat(len(z)), self._randn(z.shape, generators))
        return self._solve(z, scheduler, timesteps, velocity, generators)


class SD3Instruct(SD3Editor):
    """SD3 fine-tuned as InstructPix2Pix (UltraEdit): input [noisy, c], or [noisy, c, mask] for the checkpoint with masks.

    c is the posterior mode with neither shift nor scale; the mask channels hold the mode of a mask *picture* (white:
    edit everywhere). The sample starts as pure noise. Guidance as InstructPix2Pix. Decoding divides by the scale and
    does not add the shift back, as the authors' pipeline does, so `scaled` here is z · scale.

    Args:
        max_sequence_length: T5 tokens; None: as many as CLIP's (77), as in the authors' pipeline.
    """

    PIPELINES: ClassVar[tuple[str, ...]] = ("StableDiffusion3InstructPix2PixPipeline",)
    DEFAULTS: ClassVar[Mapping[str, Any]] = {"steps": 50, "guidance": 7.5, "image_guidance": 1.5, "negative_prompt": ""}

    def __init__(self, parts: Mapping[str, Any], *, max_sequence_length: int | None = None, **options: Any) -> None:
        channels, latent = parts["transformer"].config.in_channels, parts["vae"].config.latent_channels
        if channels not in (2 * latent, 3 * latent):
            raise UsageError(
                f"an SD3 instruct transformer takes {2 * latent} input channels, or {3 * latent} with a mask, got {channels}"
            )
        self.masked = channels == 3 * latent
        if max_sequence_length is None:
            max_sequence_length = int(parts["tokenizer"].model_max_length)
        self._whites: dict[tuple[Any, ...], torch.Tensor] = {}
        super().__init__(parts, max_sequence_length=max_sequence_length, **options)

    def _record(self) -> dict[str, Any]:
        return {**super()._record(), "mask": "white" if self.masked else None}

    def _affine(self, z: torch.Tensor) -> tuple[torch.Tensor | float, torch.Tensor | float]:
        return 0.0, super()._affine(z)[1]

    def condition(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Posterior mode, unscaled; with mask channels followed by the mode of the mask picture.

        mask: (B, 3, H, W) in [0, 1], white where the edit may happen; None: white everywhere.
        """
        if mask is None:
            return self.condition_of(self.latents(x))
        if not self.masked:
            raise UsageError(f"{self.name} has no mask channels; leave masks out, or load a checkpoint that has them")
        return torch.cat([self.latents(x), self.latents(mask)], dim=1)

    def edit(
        self,
        images: Sequence[PIL.Image.Image],
        prompts: Sequence[str],
        *,
        seeds: Sequence[int],
        masks: Sequence[PIL.Image.Image] | None = None,
        **settings: Any,
    ) -> list[PIL.Image.Image]:
        """One edit per picture, as every editor's; with `masks` under one mask each, and one picture at a time.

        masks: black and white or grey pictures (mode 1, L, P or RGB, of which the grey is taken) of the pictures' sizes, white
            where the edit may happen; None: white everywhere. Transparency, other modes and levels of 0 and 1 only are refused.
        """
        if masks is None:
            return super().edit(images, prompts, seeds=seeds, **settings)
        check_call(images, prompts, seeds)
        edits = []
        for image, prompt, seed, mask in zip(images, prompts, seeds, check_masks(masks, images), strict=True):
            one = to_pixels([mask.convert("RGB")])
            edits += super().edit([image], [prompt], seeds=[seed], **settings, _masks=one)
        return edits

    def rollout(
        self,
        x: torch.Tensor,
        prompts: Sequence[str],
        steps: int,
        *,
        seeds: Sequence[int],
        checkpoint: bool = True,
        masks: torch.Tensor | None = None,
        **settings: Any,
    ) -> torch.Tensor:
        """A differentiable edit, as every editor's; `masks`: as for `condition`, of the shape of x."""
        if masks is not None and (masks.shape != x.shape or not masks.is_floating_point()):
            raise UsageError(
                f"masks must be float pixels {tuple(x.shape)} in [0, 1], as x, got {masks.dtype} {tuple(masks.shape)}"
            )
        return super().rollout(x, prompts, steps, seeds=seeds, checkpoint=checkpoint, **settings, _masks=masks)

    def _checked(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """One call's mask pictures go with its settings (to `_denoise`), so that calls at the same time never share them."""
        masks = settings.get("_masks")
        checked = super()._checked({key: value for key, value in settings.items() if key != "_masks"})
        return checked if masks is None else {**checked, "_masks": masks}

    def condition_of(self, raw: torch.Tensor) -> torch.Tensor:
        """The same from raw latents, the mask white."""
        if not self.masked:
            return raw
        mask = self._white(int(raw.shape[-2]) * self.vae_factor, int(raw.shape[-1]) * self.vae_factor)
        return torch.cat([raw, mask.to(raw).expand(raw.shape[0], -1, -1, -1)], dim=1)

    def _white(self, height: int, width: int) -> torch.Tensor:
        """The mode of a white picture, (1, C, h, w): a constant, so it is remembered for the last few sizes and an attack pays
        one encoder pass per iteration. Another VAE, device or precision makes it anew."""
        kind = self.device.type
        half = torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind)
        key = (height, width, self.vae, self.device, self.vae.dtype, half)
        found = self._whites.get(key)
        if found is None:
            # Gradients go through it later, which a tensor made in inference mode would refuse.
            with torch.inference_mode(mode=False), torch.no_grad(), self._using("vae"):
                white = torch.ones((1, 3, height, width), device=self.device, dtype=self.vae.dtype)
                found = self.vae.encode(white).latent_dist.mode()
            if len(self._whites) >= 4:
                self._whites.clear()
            self._whites[key] = found
        return found

    def _denoise(
        self,
        x: torch.Tensor,
        prompts: list[str],
        generators: list[torch.Generator],
        settings: Mapping[str, Any],
        *,
        wrap: bool,
    ) -> torch.Tensor:
        cond = self.condition(x, settings.get("_masks"))
        scheduler = self._scheduled(settings["steps"], (int(x.shape[-2]), int(x.shape[-1])))
        guided = settings["guidance"] > 1 and settings["image_guidance"] >= 1
        text = self._text(prompts)
        if guided:
            negative = self._text([settings["negative_prompt"]] * len(prompts))
            text = joined([text, negative, negative])
            cond = torch.cat([cond, cond, torch.zeros_like(cond)])

        def denoise(noisy: torch.Tensor, t: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
            return self.predict(noisy, t, text, image)

        def velocity(z: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            out = self._call(denoise, torch.cat([z] * 3) if guided else z, t, cond, wrap=wrap)
            return three_way(out, settings) if guided else out

        shape = (len(x), self.vae.config.latent_channels, *cond.shape[-2:])
        return self._solve(self._randn(shape, generators), scheduler, scheduler.timesteps, velocity, generators)
