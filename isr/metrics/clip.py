"""CLIP score: how well an edited picture fits its prompt (Hessel et al. 2021), as 100 · max(cos, 0)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import UsageError
from .pairs import working
from .result import NotAvailable

__all__ = ["CLIP_MODEL", "ClipScore", "clip_convention", "load_clip"]

CLIP_MODEL = "openai/clip-vit-large-patch14"


def clip_convention(model: str = CLIP_MODEL) -> str:
    return f"100·max(cos(image, text), 0) of {model}; text cut at the model's length; the picture is a, the text its prompt"


class ClipScore:
    """Scores pictures against texts.

    Args:
        model: a transformers `CLIPModel`. tokenizer: its tokenizer. name: for the convention.
    """

    # The CLIP release's own preprocessing (also what its image processor holds).
    MEAN = (0.48145466, 0.4578275, 0.40821073)
    STD = (0.26862954, 0.26130258, 0.27577711)

    def __init__(self, model: Any, tokenizer: Any, name: str = CLIP_MODEL) -> None:
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.name = name

    def pixels(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] → the model's input: short side to its size (bicubic, antialiased), centre crop, normalised."""
        side = int(self.model.config.vision_config.image_size)
        x = working(x)
        h, w = x.shape[-2:]
        grown = (side, max(side, int(w * side / h))) if h <= w else (max(side, int(h * side / w)), side)
        x = torch.nn.functional.interpolate(x, size=grown, mode="bicubic", antialias=True).clamp(0, 1)
        top, left = (grown[0] - side) // 2, (grown[1] - side) // 2
        x = x[..., top : top + side, left : left + side]
        mean, std = (torch.tensor(v, dtype=x.dtype, device=x.device).view(1, 3, 1, 1) for v in (self.MEAN, self.STD))
        return (x - mean) / std

    @torch.no_grad()
    def __call__(self, x: Tensor, prompts: Sequence[str]) -> Tensor:
        """x (B, 3, H, W) RGB in [0, 1], B texts → (B,), in [0, 100]."""
        if len(prompts) != len(x):
            raise UsageError(f"the CLIP score needs one prompt per picture: {len(x)} pictures, {len(prompts)} prompts")
        text = self.tokenizer(list(prompts), padding=True, truncation=True, return_tensors="pt")
        out = self.model(
            pixel_values=self.pixels(x), input_ids=text["input_ids"], attention_mask=text["attention_mask"]
        )
        image, words = (torch.nn.functional.normalize(v, dim=-1) for v in (out.image_embeds, out.text_embeds))
        return (100 * (image * words).sum(-1)).clamp_min(0)


def load_clip(model: str | Path = CLIP_MODEL) -> ClipScore | NotAvailable:
    """The model from the user's Hugging Face cache or a folder (safetensors only, never downloaded), or why it is not available."""
    try:
        from transformers import AutoTokenizer, CLIPModel
    except ImportError as error:
        return NotAvailable(
            f"the CLIP score needs transformers: pip install 'immunization-success-rate[attacks]' ({error})",
            lacking=True,
        )
    try:
        loaded = CLIPModel.from_pretrained(str(model), local_files_only=True, use_safetensors=True)
        tokenizer = AutoTokenizer.from_pretrained(str(model), local_files_only=True)
    except (OSError, ValueError):
        return NotAvailable(
            f"{model} is not in the Hugging Face cache as safetensors; fetch it once with: hf download {model}",
            lacking=True,
        )
    return ClipScore(loaded, tokenizer, str(model))
