"""Rectified-flow editors over joint transformers: schedule with its shift, image and text streams, joint attention.

noisy = (1−σ) z + σ n, the network predicts v = n − z, timestep = 1000 σ (Esser et al. 2024, sections 2 and 3.1).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import nn

from .base import DiffusionEditor
from .hooks import column_attention, heads_of, image_tensor, read_modules
from .options import fresh_scheduler
from .schedules import Kind
from .text import Text

__all__ = ["FlowEditor"]


class FlowEditor(DiffusionEditor):
    """What SD3 and FLUX share."""

    DENOISER: ClassVar[str] = "transformer"
    SCHEDULER: ClassVar[str] = "FlowMatchEulerDiscreteScheduler"
    #: the pipelines' linear law from image tokens to the shift exponent: (base, max) of tokens and shift
    MAX_SHIFT: ClassVar[float] = 1.16
    #: what the pipeline's scheduler must let itself be told
    GRID: ClassVar[frozenset[str]] = frozenset()

    @property
    def prediction(self) -> Kind:
        return "flow"

    @property
    def size_multiple(self) -> int:
        return self.vae_factor * 2

    def levels(self, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        sigma = t.float() / float(self.parts["scheduler"].config.num_train_timesteps)
        return 1 - sigma, sigma

    # -------------------------------------------------------------------------------------------------- schedule

    @classmethod
    def scheduler_problem(cls, kind: Any, own: Any = None) -> str:
        """Flow-matching schedulers only: others take the velocity for noise, and edit without an error."""
        if not kind.__name__.startswith("FlowMatch"):
            return "it is not for rectified flow (FlowMatch…), whose velocity it would take for noise"
        moved = own is not None and own.config.get("use_dynamic_shifting")
        missing = sorted(
            (cls.GRID | ({"mu"} if moved else set())) - set(inspect.signature(kind.set_timesteps).parameters)
        )
        return f"its steps cannot be set from {' and '.join(missing)}, as this model's are" if missing else ""

    def _scheduled(self, steps: int, size: tuple[int, int]) -> Any:
        """A fresh scheduler set to `steps` for a picture of the working size (height, width)."""
        scheduler = fresh_scheduler(self.parts["scheduler"])
        config = scheduler.config
        options: dict[str, Any] = {}
        if config.get("use_dynamic_shifting"):
            tokens = (size[0] // self.size_multiple) * (size[1] // self.size_multiple)
            low, high = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
            first, last = config.get("base_shift", 0.5), config.get("max_shift", self.MAX_SHIFT)
            options["mu"] = first + (last - first) * (tokens - low) / (high - low)
        scheduler.set_timesteps(**self._grid(steps), **options)
        return scheduler

    def _grid(self, steps: int) -> dict[str, Any]:
        """How this family's pipeline asks its scheduler for steps."""
        return {"num_inference_steps": steps}

    def timesteps(self, n: int, size: tuple[int, int] | None = None) -> torch.Tensor:
        """The timesteps of an n-step edit, from noisy to clean, (n,) float32.

        size: (height, width) of the picture, which moves the schedule where the shift depends on it (FLUX); None: 1024².
        """
        self._checked({"steps": n})
        scheduler = self._scheduled(n, self.working_size(*(size or (1024, 1024))))
        return self._visited(scheduler, n).float().to(self.device)

    def _visited(self, scheduler: Any, n: int) -> torch.Tensor:  # noqa: ARG002 - img2img overrides
        timesteps: torch.Tensor = scheduler.timesteps
        return timesteps

    # -------------------------------------------------------------------------------------- looking into the net

    @staticmethod
    def pick(name: str, output: Any) -> torch.Tensor:
        return image_tensor(name, output)

    def layers(self) -> tuple[str, ...]:
        """Whole blocks, in order of the forward pass."""
        return tuple(name for name, _ in self._blocks())

    def default_layers(self) -> tuple[str, ...]:
        """The second half of the blocks without the last (12 to 22 of SD3-medium's 24)."""
        names = self.layers()
        return names[len(names) // 2 : -1] or names[-1:]

    def _blocks(self) -> list[tuple[str, nn.Module]]:
        """The blocks in order of the forward pass."""
        return [(f"transformer_blocks.{i}", block) for i, block in enumerate(self.denoiser.transformer_blocks)]

    def _image_part(self, value: torch.Tensor, noisy: torch.Tensor, text: Text) -> torch.Tensor:
        """Image tokens only: single-stream layers hold [text, image]."""
        length = text.hidden.shape[1]
        joint = length + self.image_tokens(noisy)
        return value[:, length:] if value.ndim == 3 and value.shape[1] == joint else value

    def image_tokens(self, noisy: torch.Tensor) -> int:
        """Image tokens in the sequence for a noisy latent (with a reference picture: of both, the noisy one's first)."""
        patch = int(self.denoiser.config.patch_size)
        return (noisy.shape[-2] // patch) * (noisy.shape[-1] // patch)

    def attention(
        self,
        noisy: torch.Tensor,
        t: torch.Tensor,
        text: Text,
        cond: torch.Tensor | None,
        columns: Sequence[int] | None = None,
    ) -> dict[str, torch.Tensor]:
        """What image queries pay to text keys in the joint attention of every block, head mean, (B, image tokens, columns).

        Recomputed from q and k with their norms and rotary positions; a row over text and image keys sums to 1.
        """
        length = text.hidden.shape[1]
        rotate = self._rotation(noisy, length)
        hooked: dict[str, nn.Module] = {}
        for name, block in self._blocks():
            for which in ("to_q", "to_k", "add_k_proj"):
                module = getattr(block.attn, which, None)
                if isinstance(module, nn.Module):
                    hooked[f"{name}.{which}"] = module
        found = read_modules(hooked, lambda: self.predict(noisy, t, text, cond))
        maps = {}
        for name, block in self._blocks():
            attn: Any = block.attn
            # Norms act on each head's vector, in (B, heads, tokens, d) or (B, tokens, heads, d) alike.
            query = normed(attn.norm_q, heads_of(found[f"{name}.to_q"], attn.heads))
            key = normed(attn.norm_k, heads_of(found[f"{name}.to_k"], attn.heads))
            if f"{name}.add_k_proj" in found:
                words = normed(attn.norm_added_k, heads_of(found[f"{name}.add_k_proj"], attn.heads))
                key = torch.cat([words, key], dim=2)
            else:  # one stream holds [text, image] already
                query = query[:, :, length:]
            query, key = rotate(query, length), rotate(key, 0)
            maps[name] = column_attention(query, key, query.shape[-1] ** -0.5, columns, within=length)
        return maps

    def _rotation(self, noisy: torch.Tensor, length: int) -> Callable[[torch.Tensor, int], torch.Tensor]:  # noqa: ARG002
        """(tokens, offset in the [text, image] sequence) → the same with rotary positions; SD3 has none."""
        return lambda tokens, _offset: tokens

    # -------------------------------------------------------------------------------------------------- sampling

    def _solve(
        self,
        z: torch.Tensor,
        scheduler: Any,
        timesteps: torch.Tensor,
        velocity: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
        generators: list[torch.Generator],
    ) -> torch.Tensor:
        """Integrate from z with the scheduler's own step; what a stochastic one draws comes from the pictures' generators."""
        for t in timesteps:
            z = scheduler.step(velocity(z, t.reshape(1)), t, z, generator=generators, return_dict=False)[0]
        return z


def normed(norm: nn.Module | None, heads: torch.Tensor) -> torch.Tensor:
    """Apply a per-head norm where the model has one."""
    if norm is None:
        return heads
    result: torch.Tensor = norm(heads)
    return result


def three_way(out: torch.Tensor, settings: Mapping[str, Any]) -> torch.Tensor:
    """InstructPix2Pix guidance over a batch [text, image, plain]."""
    with_text, with_image, plain = torch.chunk(out, 3)
    guided: torch.Tensor = (
        plain + settings["guidance"] * (with_text - with_image) + settings["image_guidance"] * (with_image - plain)
    )
    return guided


def two_way(out: torch.Tensor, settings: Mapping[str, Any]) -> torch.Tensor:
    """Classifier-free guidance over a batch [plain, text]."""
    plain, with_text = torch.chunk(out, 2)
    guided: torch.Tensor = plain + settings["guidance"] * (with_text - plain)
    return guided
