"""A trained editor that edits from given image latents, which the disturbances change."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from diffusers import AutoencoderKL, SD3Transformer2DModel, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from .autoencoder import encode
from .editor import build_scheduler, sample_latents
from .mmdit import embed, sample_img2img, sample_instruct
from .models import Model

__all__ = ["Trained"]


class Trained:
    """Parts of a saved pipeline in float32 on a device."""

    def __init__(self, model: Model, work: Path, device: torch.device) -> None:
        folder = model.pipeline(work)

        def part(cls: Any, name: str) -> Any:
            return cls.from_pretrained(folder / name, torch_dtype=torch.float32).to(device).eval()

        self.model, self.device = model, device
        self.vae = part(AutoencoderKL, "vae")
        self.tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
        if model.kind == "ip2p":
            self.denoiser = part(UNet2DConditionModel, "unet")
            self.words: dict[str, Any] = {"text_encoder": part(CLIPTextModel, "text_encoder")}
        else:
            self.denoiser = part(SD3Transformer2DModel, "transformer")
            self.words = {n: part(CLIPTextModelWithProjection, n) for n in ("text_encoder", "text_encoder_2")}
        self.scale = float(self.vae.config.scaling_factor)
        self.shift = float(self.vae.config.shift_factor or 0.0) if model.kind == "img2img" else 0.0

    def latents(self, pictures: npt.NDArray[np.uint8]) -> torch.Tensor:
        """Raw encoder means (N, C, h, w)."""
        return encode(self.vae, pictures, batch=256)

    @torch.no_grad()
    def edit(
        self, latents: torch.Tensor, prompts: Sequence[str], generator: torch.Generator, *, steps: int
    ) -> npt.NDArray[np.uint8]:
        """Edited pictures (N, 64, 64, 3) uint8 from raw image latents."""
        texts = ["", *prompts]
        ids = self.tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids
        ids = ids.to(self.device)
        n = len(prompts)
        if self.model.kind == "ip2p":
            states = self.words["text_encoder"](ids)[0]
            y = sample_latents(
                self.denoiser, build_scheduler(), latents, states[1:], states[:1].expand(n, -1, -1), steps=steps,
                generator=generator,
            )  # fmt: skip
        else:
            hidden, pooled = embed(self.words, ids)
            text, empty = (hidden[1:], pooled[1:]), (hidden[:1].expand(n, -1, -1), pooled[:1].expand(n, -1))
            if self.model.kind == "instruct":
                y = sample_instruct(self.denoiser, latents, text, empty, steps=steps, generator=generator)
            else:
                start = (latents - self.shift) * self.scale
                y = sample_img2img(self.denoiser, start, text, empty, steps=steps, generator=generator)
        pictures = self.vae.decode(y / self.scale + self.shift).sample.clamp(-1, 1)
        return ((pictures + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()  # type: ignore[no-any-return]
