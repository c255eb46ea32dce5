"""SDXL editors: two CLIP encoders, size conditioning, zeros for the empty prompt (Podell et al. 2023, section 2.2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch

from .loading import Part
from .text import Text, tokens_of
from .unet import CLIP, CLIP_TOKENIZER, SCHEDULER, UNET, VAE, InstructPix2Pix, UNetEditor

__all__ = ["InstructPix2PixXL", "XLText"]


class XLText(UNetEditor):
    """SDXL's text side and size conditioning, for any way in which the image enters.

    `zero_empty`: with no negative prompt, the unconditional branch gets zeros instead of an encoded "" (SDXL base was
    trained so; model_index.json says it as force_zeros_for_empty_prompt).
    """

    PARTS: ClassVar[tuple[Part, ...]] = (
        UNET, VAE, CLIP, CLIP_TOKENIZER, SCHEDULER,
        Part("text_encoder_2", "transformers", ("CLIPTextModelWithProjection",)),
        Part("tokenizer_2", "transformers", CLIP_TOKENIZER.classes, weights=False),
    )  # fmt: skip
    FAMILY: ClassVar[str] = "unet-xl"
    TEXT_ROLES: ClassVar[tuple[str, ...]] = ("text_encoder", "text_encoder_2")

    def __init__(self, parts: Mapping[str, Any], *, zero_empty: bool = True, **options: Any) -> None:
        self.zero_empty = zero_empty
        super().__init__(parts, **options)

    @classmethod
    def _index_options(cls, index: Mapping[str, Any]) -> dict[str, Any]:
        return {"zero_empty": bool(index.get("force_zeros_for_empty_prompt", True))}

    def _record(self) -> dict[str, Any]:
        return {**super()._record(), "zero_empty": self.zero_empty}

    def _part_dtype(self, role: str) -> torch.dtype:
        # SDXL's VAE overflows in float16; diffusers upcasts it around each call, here it stays in float32.
        if role == "vae" and self._dtype == torch.float16 and self.vae.config.force_upcast:
            return torch.float32
        return self._dtype

    def embed(self, prompts: Sequence[str]) -> Text:
        hidden = []
        pooled: torch.Tensor | None = None
        with torch.no_grad():
            for suffix in ("", "_2"):
                tokens = tokens_of(self.parts[f"tokenizer{suffix}"], prompts, self.name)
                out = self.parts[f"text_encoder{suffix}"](
                    tokens.input_ids.to(self._text_device()), output_hidden_states=True
                )
                hidden.append(out.hidden_states[-2])
                pooled = out[0]  # of the second encoder: its projected text embedding
        assert pooled is not None  # noqa: S101 - for the type checker; the loop ran
        return Text(torch.cat(hidden, dim=-1).to(self.device), pooled.to(self.device))

    def _negative(self, settings: Mapping[str, Any], text: Text) -> Text:
        if settings["negative_prompt"] is None and self.zero_empty:
            pooled = None if text.pooled is None else torch.zeros_like(text.pooled)
            return replace(text, hidden=torch.zeros_like(text.hidden), pooled=pooled)
        return self._text([settings["negative_prompt"] or ""] * len(text))

    def _added(self, text: Text, noisy: torch.Tensor) -> dict[str, torch.Tensor] | None:
        """Pooled text and (original, crop, target) sizes: all the working size, no crop."""
        height, width = (side * self.vae_factor for side in noisy.shape[-2:])
        sizes = noisy.new_tensor([[height, width, 0, 0, height, width]]).repeat(len(text), 1)
        pooled = text.pooled if text.pooled is not None else noisy.new_zeros((len(text), 0))
        return {"text_embeds": pooled.to(self._dtype), "time_ids": sizes.to(self.device, self._dtype)}


class InstructPix2PixXL(XLText, InstructPix2Pix):
    """SDXL fine-tuned as InstructPix2Pix. `cosxl`: CosXL-Edit, whose image condition is scaled as latents are."""

    PIPELINES: ClassVar[tuple[str, ...]] = ("StableDiffusionXLInstructPix2PixPipeline",)
    DEFAULTS: ClassVar[Mapping[str, Any]] = {
        "steps": 100, "guidance": 5.0, "image_guidance": 1.5, "negative_prompt": None, "eta": 0.0,
    }  # fmt: skip

    def __init__(self, parts: Mapping[str, Any], *, cosxl: bool = False, **options: Any) -> None:
        self.cosxl = cosxl
        super().__init__(parts, **options)

    @classmethod
    def _index_options(cls, index: Mapping[str, Any]) -> dict[str, Any]:
        return {**super()._index_options(index), "cosxl": bool(index.get("is_cosxl_edit", False))}

    def _record(self) -> dict[str, Any]:
        return {**super()._record(), "cosxl": self.cosxl}

    def condition_of(self, raw: torch.Tensor) -> torch.Tensor:
        """Posterior mode of the latent, unscaled (CosXL-Edit: times the scaling factor)."""
        return raw * float(self.vae.config.scaling_factor) if self.cosxl else raw
