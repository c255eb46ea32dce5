"""Image-to-image with text-to-image U-Nets: SD 1.5 and SDXL. The image enters as the noised start latent only.

Of `steps` scheduler steps the last int(steps · strength) run, from a sample of the posterior (not its mode), scaled and
noised to the first of them (SDEdit, Meng et al. 2022; diffusers' img2img pipelines).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch

from isr.errors import UsageError

from .options import fresh_scheduler
from .pixels import wide
from .text import joined
from .unet import UNetEditor
from .unet_xl import XLText

__all__ = ["Img2Img", "Img2ImgXL", "kept_timesteps", "sampled_latents"]


def kept_timesteps(scheduler: Any, steps: int, strength: float) -> torch.Tensor:
    """The timesteps of a set scheduler that an img2img edit runs; tells the scheduler where it begins."""
    kept = min(int(steps * strength), steps)
    if kept < 1:
        raise UsageError(
            f"strength={strength} of steps={steps} leaves no step to run; raise steps to at least {int(1 / strength) + 1}"
        )
    start = (steps - kept) * getattr(scheduler, "order", 1)
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(start)
    timesteps: torch.Tensor = scheduler.timesteps[start:]
    return timesteps


def sampled_latents(posterior: Any, generators: list[torch.Generator]) -> torch.Tensor:
    """One sample per row of a diagonal Gaussian, row i from generator i, drawn on the CPU in float32."""
    mean, std = wide(posterior.mean), wide(posterior.std)
    rows = [torch.randn((1, *mean.shape[1:]), generator=generator) for generator in generators]
    sample: torch.Tensor = mean + std * torch.cat(rows).to(mean.device, non_blocking=True)
    return sample


class Img2Img(UNetEditor):
    """SD 1.x image-to-image with two-way guidance: ê = ê(∅) + s (ê(text) − ê(∅)), off when guidance ≤ 1."""

    PIPELINES: ClassVar[tuple[str, ...]] = ("StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline")
    DEFAULTS: ClassVar[Mapping[str, Any]] = {
        "steps": 50, "strength": 0.8, "guidance": 7.5, "negative_prompt": "", "eta": 0.0,
    }  # fmt: skip

    def condition(self, x: torch.Tensor) -> None:  # noqa: ARG002
        """None: nothing is concatenated to the input."""
        return

    def condition_of(self, raw: torch.Tensor) -> None:  # noqa: ARG002
        """None."""
        return

    def timesteps(self, n: int) -> torch.Tensor:
        """The timesteps that an edit of n scheduler steps runs at the default strength: int(n · strength) of them."""
        scheduler = fresh_scheduler(self.parts["scheduler"])
        scheduler.set_timesteps(self._checked({"steps": n})["steps"])
        kept = dict.fromkeys(float(t) for t in kept_timesteps(scheduler, n, self._defaults["strength"]))
        return torch.tensor(list(kept), dtype=torch.float32, device=self.device)

    def _denoise(
        self,
        x: torch.Tensor,
        prompts: list[str],
        generators: list[torch.Generator],
        settings: Mapping[str, Any],
        *,
        wrap: bool,
    ) -> torch.Tensor:
        scheduler = fresh_scheduler(self.parts["scheduler"])
        scheduler.set_timesteps(settings["steps"])
        timesteps = kept_timesteps(scheduler, settings["steps"], settings["strength"])
        options = self._step_options(scheduler, settings, generators)
        scale = settings["guidance"]
        guided = scale > 1
        text = self._text(prompts)
        if guided:
            text = joined([self._negative(settings, text), text])

        def denoise(noisy: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            return self.predict(noisy, t, text, None)

        z: torch.Tensor = self.scaled(sampled_latents(self._posterior(x), generators))
        z = scheduler.add_noise(z, self._randn(z.shape, generators), timesteps[:1].repeat(len(z)))
        for t in timesteps:
            noisy = scheduler.scale_model_input(torch.cat([z] * 2) if guided else z, t)
            out = self._call(denoise, noisy, t.reshape(1), wrap=wrap)
            if guided:
                plain, with_text = out.chunk(2)
                out = plain + scale * (with_text - plain)
            z = scheduler.step(out, t, z, return_dict=False, **options)[0]
        return z


class Img2ImgXL(XLText, Img2Img):
    """SDXL image-to-image (the base model; the refiner's aesthetic score is not supported)."""

    PIPELINES: ClassVar[tuple[str, ...]] = ("StableDiffusionXLPipeline", "StableDiffusionXLImg2ImgPipeline")
    DEFAULTS: ClassVar[Mapping[str, Any]] = {
        "steps": 50, "strength": 0.3, "guidance": 5.0, "negative_prompt": None, "eta": 0.0,
    }  # fmt: skip

    def _part_dtype(self, role: str) -> torch.dtype:
        # diffusers' SDXL image-to-image pipeline encodes in float32 wherever the VAE asks for it, under bfloat16 too (its
        # instruct pipeline: under float16 only). Decoding in float32 as well only spares a rounding.
        if role == "vae" and self.vae.config.force_upcast:
            return torch.float32
        return super()._part_dtype(role)

    @classmethod
    def _index_options(cls, index: Mapping[str, Any]) -> dict[str, Any]:
        if index.get("requires_aesthetics_score"):
            raise UsageError(
                "this checkpoint is an SDXL refiner (requires_aesthetics_score); give the base model's folder"
            )
        return super()._index_options(index)
