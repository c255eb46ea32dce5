"""U-Net editors: InstructPix2Pix and its fine-tunes (HQ-Edit), and what all U-Net families share.

The image enters InstructPix2Pix through extra input channels that hold the *unscaled* posterior mode of its latent; the
sample itself starts as pure noise (Brooks et al. 2023, section 3.2, and diffusers' pipeline of that name).
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import nn

from isr.errors import UsageError

from .base import DiffusionEditor
from .hooks import column_attention, heads_of, read_modules
from .loading import Part
from .options import fresh_scheduler
from .pixels import wide
from .schedules import Kind, vp_levels
from .text import Text, joined, tiled, tokens_of

__all__ = ["InstructPix2Pix", "UNetEditor"]

UNET = Part("unet", "diffusers", ("UNet2DConditionModel",))
VAE = Part("vae", "diffusers", ("AutoencoderKL",))
CLIP = Part("text_encoder", "transformers", ("CLIPTextModel",))
CLIP_TOKENIZER = Part("tokenizer", "transformers", ("CLIPTokenizer", "CLIPTokenizerFast"), weights=False)
SCHEDULER = Part("scheduler", "diffusers", weights=False)
#: diffusers' schedulers whose step refuses prediction_type "sample".
_NO_SAMPLE = frozenset(
    {
        "DPMSolverSDEScheduler", "EulerAncestralDiscreteScheduler", "KDPM2AncestralDiscreteScheduler",
        "KDPM2DiscreteScheduler", "PNDMScheduler",
    }
)  # fmt: skip


#: Schedulers for something else than sampling with this checkpoint's own schedule and the seeds of its pictures.
_NOT_FOR_EDITS = {
    "CogVideoXDDIMScheduler": "it shifts the schedule", "CogVideoXDPMScheduler": "it shifts the schedule",
    "DDIMInverseScheduler": "it runs towards noise", "DPMSolverMultistepInverseScheduler": "it runs towards noise",
    "DPMSolverSDEScheduler": "its noise does not follow the pictures' seeds", "UnCLIPScheduler": "it has a schedule of its own",
}  # fmt: skip


class UNetEditor(DiffusionEditor):
    """Variance-preserving diffusion with a cross-attention U-Net: schedule, features, attention, CLIP text."""

    PARTS: ClassVar[tuple[Part, ...]] = (UNET, VAE, CLIP, CLIP_TOKENIZER, SCHEDULER)
    FAMILY: ClassVar[str] = "unet"
    DENOISER: ClassVar[str] = "unet"

    # -------------------------------------------------------------------------------------------------- schedule

    @classmethod
    def scheduler_problem(cls, kind: Any, own: Any = None) -> str:
        """Diffusion schedules only: with ᾱ, or Karras' (EDM) where the checkpoint has that already."""
        if kind.__name__ in _NOT_FOR_EDITS:
            return _NOT_FOR_EDITS[kind.__name__]
        edm = kind.__name__.startswith("EDM")
        if not edm:
            vp = not set(_needs(kind.__init__)) - {"self", "args", "kwargs"} and hasattr(kind(), "alphas_cumprod")
            if not vp or _needs(kind.step) != ["self", "model_output", "timestep", "sample"]:
                return "it is not for variance-preserving diffusion (epsilon, v or sample), which this network does"
        if own is not None and edm != type(own).__name__.startswith("EDM"):
            return f"its noise levels are not those of the checkpoint's own {type(own).__name__}"
        return ""

    @property
    def prediction(self) -> Kind:
        found = self.parts["scheduler"].config.get("prediction_type", "epsilon")
        known: tuple[Kind, ...] = ("epsilon", "v_prediction", "sample")
        for kind in known:
            if found == kind:
                return kind
        raise UsageError(
            f"{self.name}: prediction_type {found!r} of the scheduler is not supported, only {', '.join(known)}"
        )

    def timesteps(self, n: int) -> torch.Tensor:
        """The timesteps of an n-step edit, from noisy to clean, (n,) float32. (A multistep sampler's repeats are left out.)"""
        scheduler = fresh_scheduler(self.parts["scheduler"])
        scheduler.set_timesteps(self._checked({"steps": n})["steps"])
        kept = dict.fromkeys(float(t) for t in scheduler.timesteps)
        return torch.tensor(list(kept), dtype=torch.float32, device=self.device)

    @property
    def undefined(self) -> Mapping[str, str]:
        """`noisy`, and why, where the checkpoint's sampler has no table of ᾱ (EDM): such an editor edits, and methods that add
        noise refuse it."""
        scheduler = self.parts["scheduler"]
        if hasattr(scheduler, "alphas_cumprod"):
            return {}
        return {"noisy": f"its sampler {type(scheduler).__name__} has no table of ᾱ; take another checkpoint or method"}

    def levels(self, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if why := self.undefined.get("noisy"):
            raise UsageError(f"noise levels are not defined for this editor ({self.name!r}): {why}")
        return vp_levels(self.parts["scheduler"].alphas_cumprod, t)

    # ------------------------------------------------------------------------------------------------------ text

    def embed(self, prompts: Sequence[str]) -> Text:
        tokenizer, encoder = self.parts["tokenizer"], self.parts["text_encoder"]
        with torch.no_grad():
            tokens = tokens_of(tokenizer, prompts, self.name)
            mask = tokens.attention_mask if getattr(encoder.config, "use_attention_mask", False) else None
            where = self._text_device()
            hidden = encoder(tokens.input_ids.to(where), attention_mask=None if mask is None else mask.to(where))[0]
        return Text(hidden.to(self.device))

    def _negative(self, settings: Mapping[str, Any], text: Text) -> Text:
        """The text of the unconditional branch, one row per row of `text`."""
        return self._text([settings["negative_prompt"]] * len(text))

    # -------------------------------------------------------------------------------------------------- denoiser

    def predict(self, noisy: torch.Tensor, t: torch.Tensor, text: Text, cond: torch.Tensor | None) -> torch.Tensor:
        """The U-Net's output for the conditional branch, (B, C, h, w) float32; t (B,), or (1,) for all rows."""
        batch = noisy.shape[0]
        parts = [noisy] if cond is None else [noisy, tiled(cond, batch, "cond")]
        channels = sum(p.shape[1] for p in parts)
        if channels != self.denoiser.config.in_channels:
            raise UsageError(
                f"{self.name}'s U-Net takes {self.denoiser.config.in_channels} channels, got {channels}; "
                "pass cond=editor.condition(x)"
            )
        text = text.tiled(batch)
        kind = self._dtype
        with self._using("unet"):
            result: torch.Tensor = self.denoiser(
                torch.cat(parts, dim=1).to(self.device, kind),
                tiled(t.to(self.device, non_blocking=True), batch, "t"),
                encoder_hidden_states=text.hidden.to(kind),
                added_cond_kwargs=self._added(text, noisy),
                return_dict=False,
            )[0]
        return wide(result)

    def _added(self, text: Text, noisy: torch.Tensor) -> dict[str, torch.Tensor] | None:  # noqa: ARG002 - SDXL overrides
        return None

    # -------------------------------------------------------------------------------------- looking into the net

    def layers(self) -> tuple[str, ...]:
        """Residual blocks, transformers and whole blocks, in order of the forward pass."""
        return tuple(_forward_order(self.denoiser))

    def default_layers(self) -> tuple[str, ...]:
        """The transformers of the deepest level that has any on the way down, and of the same level on the way up (all
        of one shape: 16²×1280 at 512² in SD 1.5). Where that is the outermost level: mid block and up blocks."""
        down, up = self.denoiser.down_blocks, self.denoiser.up_blocks
        level = max((i for i, block in enumerate(down) if getattr(block, "attentions", None)), default=0)
        if level == 0:
            return ("mid_block", *(f"up_blocks.{i}" for i in range(len(up))))
        mirror = len(up) - 1 - level
        names = [f"down_blocks.{level}.attentions.{i}" for i in range(len(down[level].attentions))]
        return (
            *names,
            *(f"up_blocks.{mirror}.attentions.{i}" for i in range(len(getattr(up[mirror], "attentions", ())))),
        )

    def attention(
        self,
        noisy: torch.Tensor,
        t: torch.Tensor,
        text: Text,
        cond: torch.Tensor | None,
        columns: Sequence[int] | None = None,
    ) -> dict[str, torch.Tensor]:
        """Cross-attention probabilities of every attn2, head mean, (B, image tokens, columns), recomputed from q and k."""
        modules = {name: m for name, m in self.denoiser.named_modules() if name.endswith("attn2")}
        order = [
            name
            for block in _forward_order(self.denoiser)
            for name in modules
            if name.startswith(f"{block}.transformer_blocks.")
        ]
        hooked: dict[str, nn.Module] = {}
        for name in order:
            hooked[f"{name}.to_q"] = modules[name].to_q
            hooked[f"{name}.to_k"] = modules[name].to_k
        found = read_modules(hooked, lambda: self.predict(noisy, t, text, cond))
        maps = {}
        for name in order:
            query, key = (heads_of(found[f"{name}.{which}"], modules[name].heads) for which in ("to_q", "to_k"))
            maps[name] = column_attention(query, key, modules[name].scale, columns)
        return maps

    # -------------------------------------------------------------------------------------------------- sampling

    def _step_options(
        self, scheduler: Any, settings: Mapping[str, Any], generators: list[torch.Generator]
    ) -> dict[str, Any]:
        if self.prediction == "sample" and type(scheduler).__name__ in _NO_SAMPLE:
            raise UsageError(
                f"{self.name}: its network predicts the clean latents (prediction_type 'sample'), from which "
                f"{type(scheduler).__name__} cannot step; load it with scheduler='DDIMScheduler' or another that can"
            )
        takes = set(inspect.signature(scheduler.step).parameters)
        options: dict[str, Any] = {}
        if "eta" in takes:
            options["eta"] = settings.get("eta", 0.0)
        if "generator" in takes:
            options["generator"] = generators
        return options


class InstructPix2Pix(UNetEditor):
    """InstructPix2Pix-type editors: `timbrooks/instruct-pix2pix`, `MudeHui/HQ-Edit`, or any local folder of the kind.

    Guidance (Brooks et al. 2023, eq. 3): ê = ê(∅,∅) + s_I (ê(c,∅) − ê(∅,∅)) + s_T (ê(c,text) − ê(c,∅)); off when
    guidance ≤ 1 or image_guidance < 1, as in diffusers.
    """

    PIPELINES: ClassVar[tuple[str, ...]] = ("StableDiffusionInstructPix2PixPipeline",)
    DEFAULTS: ClassVar[Mapping[str, Any]] = {
        "steps": 100, "guidance": 7.5, "image_guidance": 1.5, "negative_prompt": "", "eta": 0.0,
    }  # fmt: skip

    def condition_of(self, raw: torch.Tensor) -> torch.Tensor:
        """Posterior mode of the latent, unscaled: what the extra input channels hold."""
        return raw

    def _denoise(
        self,
        x: torch.Tensor,
        prompts: list[str],
        generators: list[torch.Generator],
        settings: Mapping[str, Any],
        *,
        wrap: bool,
    ) -> torch.Tensor:
        cond = self.condition_of(self.latents(x))
        scheduler = fresh_scheduler(self.parts["scheduler"])
        scheduler.set_timesteps(settings["steps"])
        options = self._step_options(scheduler, settings, generators)
        s_text, s_image = settings["guidance"], settings["image_guidance"]
        guided = s_text > 1 and s_image >= 1
        text = self._text(prompts)
        if guided:
            negative = self._negative(settings, text)
            text = joined([text, negative, negative])
            cond = torch.cat([cond, cond, torch.zeros_like(cond)])

        def denoise(noisy: torch.Tensor, t: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
            return self.predict(noisy, t, text, image)

        channels = self.denoiser.config.in_channels - cond.shape[1]
        z: torch.Tensor = self._randn((len(x), channels, *cond.shape[-2:]), generators) * scheduler.init_noise_sigma
        for t in scheduler.timesteps:
            noisy = scheduler.scale_model_input(torch.cat([z] * 3) if guided else z, t)
            out = self._call(denoise, noisy, t.reshape(1), cond, wrap=wrap)
            if guided:
                with_text, with_image, plain = out.chunk(3)
                out = plain + s_text * (with_text - with_image) + s_image * (with_image - plain)
            z = scheduler.step(out, t, z, return_dict=False, **options)[0]
        return z


def _needs(function: Any) -> list[str]:
    """Names of the arguments without a default."""
    return [name for name, one in inspect.signature(function).parameters.items() if one.default is one.empty]


def _forward_order(unet: Any) -> list[str]:
    """Names of residual blocks, transformers and blocks of a UNet2DConditionModel in the order in which they run."""
    names: list[str] = []

    def inside(prefix: str, block: Any) -> None:
        attentions = getattr(block, "attentions", None) or ()
        for i in range(len(block.resnets)):
            names.append(f"{prefix}.resnets.{i}")
            if i < len(attentions):
                names.append(f"{prefix}.attentions.{i}")
        names.append(prefix)

    for i, block in enumerate(unet.down_blocks):
        inside(f"down_blocks.{i}", block)
    if unet.mid_block is not None:
        inside("mid_block", unet.mid_block)
    for i, block in enumerate(unet.up_blocks):
        inside(f"up_blocks.{i}", block)
    return names
