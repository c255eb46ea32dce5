"""FLUX.1 Kontext: the picture enters as further tokens beside the noisy ones, at every step.

noisy and reference latents are packed 2×2 into tokens, [noisy, reference], with position ids that differ in their first
axis (Labs et al. 2025, section 3; diffusers' FluxKontextPipeline). Guidance is an input of the network, not two passes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from isr.errors import UsageError

from .flow import FlowEditor, two_way
from .loading import Part
from .pixels import wide
from .text import Text, columns_of, joined, read_columns, tiled, tokens_of

__all__ = ["Kontext"]

#: (width, height) the model was trained at; the one nearest in aspect is used where no resolution is asked for
TRAINED_SIZES = (
    (672, 1568), (688, 1504), (720, 1456), (752, 1392), (800, 1328), (832, 1248), (880, 1184), (944, 1104), (1024, 1024),
    (1104, 944), (1184, 880), (1248, 832), (1328, 800), (1392, 752), (1456, 720), (1504, 688), (1568, 672),
)  # fmt: skip


class Kontext(FlowEditor):
    """FLUX.1 Kontext.

    The edit is made in the size of the reference: with `resolution=None` the trained size nearest in aspect, as the
    pipeline brings its reference to (the pipeline's own output is square unless told otherwise).

    Args:
        max_sequence_length: T5 tokens (diffusers' default 512).
    """

    PARTS: ClassVar[tuple[Part, ...]] = (
        Part("transformer", "diffusers", ("FluxTransformer2DModel",)),
        Part("vae", "diffusers", ("AutoencoderKL",)),
        Part("text_encoder", "transformers", ("CLIPTextModel",)),
        Part("text_encoder_2", "transformers", ("T5EncoderModel",)),
        Part("tokenizer", "transformers", ("CLIPTokenizer", "CLIPTokenizerFast"), weights=False),
        Part("tokenizer_2", "transformers", ("T5Tokenizer", "T5TokenizerFast"), weights=False),
        Part("scheduler", "diffusers", weights=False),
    )
    PIPELINES: ClassVar[tuple[str, ...]] = ("FluxKontextPipeline",)
    FAMILY: ClassVar[str] = "flux-kontext"
    TEXT_ROLES: ClassVar[tuple[str, ...]] = ("text_encoder", "text_encoder_2")
    MAX_SHIFT: ClassVar[float] = 1.15
    GRID: ClassVar[frozenset[str]] = frozenset({"sigmas", "mu"})
    DEFAULTS: ClassVar[Mapping[str, Any]] = {
        "steps": 28, "guidance": 3.5, "true_guidance": 1.0, "negative_prompt": "",
    }  # fmt: skip

    def __init__(self, parts: Mapping[str, Any], *, max_sequence_length: int = 512, **options: Any) -> None:
        if max_sequence_length < 1:
            raise UsageError(f"max_sequence_length must be at least 1, got {max_sequence_length}")
        self.max_sequence_length = max_sequence_length
        super().__init__(parts, **options)

    def _record(self) -> dict[str, Any]:
        return {
            "max_sequence_length": self.max_sequence_length,
            "sizes": "trained" if self.resolution is None else "own",
        }

    def working_size(self, height: int, width: int) -> tuple[int, int]:
        if self.resolution is not None:
            return super().working_size(height, width)
        aspect = width / height
        # Ties go to the narrower size, as in the pipeline.
        _, w, h = min((abs(aspect - w / h), w, h) for w, h in TRAINED_SIZES)
        m = self.size_multiple
        return h // m * m, w // m * m

    # ------------------------------------------------------------------------------------------------------ text

    def embed(self, prompts: Sequence[str]) -> Text:
        where = self._text_device()
        with torch.no_grad():
            tokens = tokens_of(self.parts["tokenizer"], prompts, self.name)
            pooled = self.parts["text_encoder"](tokens.input_ids.to(where)).pooler_output
            words = tokens_of(self.parts["tokenizer_2"], prompts, self.name, length=self.max_sequence_length)
            hidden = self.parts["text_encoder_2"](words.input_ids.to(where))[0]
        return Text(hidden.to(self.device), pooled.to(self.device))

    def word_columns(self, prompt: str, word: str | None = None) -> tuple[int, ...]:
        """Columns of T5's tokens, the only text in the sequence (CLIP gives one pooled vector)."""
        length = self.max_sequence_length
        return read_columns(columns_of(self.parts["tokenizer_2"], prompt, word, limit=length), prompt, word, length)

    # -------------------------------------------------------------------------------------------------- denoiser

    def condition_of(self, raw: torch.Tensor) -> torch.Tensor:
        """The reference latent, scaled, as a grid (B, C, h, w); `predict` makes tokens of it."""
        return self.scaled(raw)

    def predict(self, noisy: torch.Tensor, t: torch.Tensor, text: Text, cond: torch.Tensor | None) -> torch.Tensor:
        """The transformer's velocity for the noisy tokens, as a grid (B, C, h, w) float32, at the default guidance."""
        return self._velocity(noisy, t, text, cond, float(self._defaults["guidance"]))

    def _velocity(
        self, noisy: torch.Tensor, t: torch.Tensor, text: Text, cond: torch.Tensor | None, guidance: float
    ) -> torch.Tensor:
        batch, channels, height, width = noisy.shape
        if cond is None or cond.shape[1:] != noisy.shape[1:]:
            raise UsageError(
                f"{self.name} needs cond=editor.condition(x) of the noisy latent's shape {tuple(noisy.shape[1:])}, got "
                f"{None if cond is None else tuple(cond.shape[1:])}"
            )
        text = text.tiled(batch)
        tokens = torch.cat([packed(noisy), packed(tiled(cond, batch, "cond"))], dim=1)
        scale = None
        if self.denoiser.config.guidance_embeds:
            scale = torch.full((batch,), guidance, dtype=torch.float32, device=self.device)
        with self._using("transformer"):
            out: torch.Tensor = self.denoiser(
                hidden_states=tokens.to(self.device, self._dtype),
                timestep=tiled(t.to(self.device, non_blocking=True), batch, "t") / 1000,
                guidance=scale,
                pooled_projections=None if text.pooled is None else text.pooled.to(self._dtype),
                encoder_hidden_states=text.hidden.to(self._dtype),
                txt_ids=torch.zeros(text.hidden.shape[1], 3, device=self.device),
                img_ids=self._image_ids(height, width),
                return_dict=False,
            )[0]
        return wide(unpacked(out[:, : tokens.shape[1] // 2], height, width, channels))

    def _image_ids(self, height: int, width: int) -> torch.Tensor:
        """(tokens, 3): (0 noisy or 1 reference, row, column)."""
        rows, columns = torch.meshgrid(torch.arange(height // 2), torch.arange(width // 2), indexing="ij")
        grid = torch.stack([torch.zeros_like(rows), rows, columns], dim=-1).reshape(-1, 3)
        reference = grid.clone()
        reference[:, 0] = 1
        return torch.cat([grid, reference]).to(self.device, torch.float32)

    # -------------------------------------------------------------------------------------- looking into the net

    def _blocks(self) -> list[tuple[str, nn.Module]]:
        single = [(f"single_transformer_blocks.{i}", b) for i, b in enumerate(self.denoiser.single_transformer_blocks)]
        return [*super()._blocks(), *single]

    def image_tokens(self, noisy: torch.Tensor) -> int:
        """Of both pictures: the noisy one's first, then as many of the reference."""
        return 2 * (noisy.shape[-2] // 2) * (noisy.shape[-1] // 2)

    def _rotation(self, noisy: torch.Tensor, length: int) -> Callable[[torch.Tensor, int], torch.Tensor]:
        """Rotary positions (Su et al. 2021) of the [text, noisy, reference] sequence, pairs of neighbouring channels."""
        ids = torch.cat([torch.zeros(length, 3, device=self.device), self._image_ids(*noisy.shape[-2:])])
        table: tuple[torch.Tensor, torch.Tensor] = self.denoiser.pos_embed(ids)
        cos, sin = table

        def rotate(tokens: torch.Tensor, offset: int) -> torch.Tensor:
            here = slice(offset, offset + tokens.shape[-2])
            tokens = wide(tokens)
            even, odd = tokens[..., 0::2], tokens[..., 1::2]
            turned = torch.stack([-odd, even], dim=-1).reshape(tokens.shape)
            return tokens * cos[here] + turned * sin[here]

        return rotate

    # -------------------------------------------------------------------------------------------------- sampling

    def _grid(self, steps: int) -> dict[str, Any]:
        return {"sigmas": np.linspace(1.0, 1 / steps, steps)}

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
        scheduler = self._scheduled(settings["steps"], (int(x.shape[-2]), int(x.shape[-1])))
        guided = settings["true_guidance"] > 1
        text = self._text(prompts)
        if guided:
            text = joined([self._text([settings["negative_prompt"]] * len(prompts)), text])

        def denoise(noisy: torch.Tensor, t: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
            return self._velocity(noisy, t, text, image, settings["guidance"])

        def velocity(z: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            out = self._call(denoise, torch.cat([z] * 2) if guided else z, t, cond, wrap=wrap)
            return two_way(out, {"guidance": settings["true_guidance"]}) if guided else out

        return self._solve(self._randn(cond.shape, generators), scheduler, scheduler.timesteps, velocity, generators)


def packed(z: torch.Tensor) -> torch.Tensor:
    """(B, C, h, w) → (B, h/2·w/2, 4C): each token holds a 2×2 cell, channel-major."""
    batch, channels, height, width = z.shape
    cells = z.reshape(batch, channels, height // 2, 2, width // 2, 2)
    return cells.permute(0, 2, 4, 1, 3, 5).reshape(batch, (height // 2) * (width // 2), channels * 4)


def unpacked(tokens: torch.Tensor, height: int, width: int, channels: int) -> torch.Tensor:
    """The inverse of `packed`."""
    cells = tokens.reshape(tokens.shape[0], height // 2, width // 2, channels, 2, 2)
    return cells.permute(0, 3, 1, 4, 2, 5).reshape(tokens.shape[0], channels, height, width)
