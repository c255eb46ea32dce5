"""What all diffusion editors share: sizes, pixels, seeds, settings, batches, text columns, offload, rounding.

A family (unet.py, mmdit.py, …) says how its denoiser is fed and guided. `edit` and `rollout` are one code path, once
without and once with gradients, so an attack sees exactly the model that will make the edit.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, Literal

import PIL.Image
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint as checkpointed

from isr.errors import UsageError
from isr.protocols import Traits

from .checks import check_call, check_prompts, check_seeds
from .hooks import first_tensor, read_modules
from .loading import Part, check_environment, fingerprint, load_parts, locate, memory_hint, read_index
from .options import (
    check_scheduler,
    checked_offload,
    checked_options,
    checked_settings,
    scheduler_class,
    torch_device,
    torch_dtype,
    whole_number,
)
from .pixels import batches, generator_of, resized, to_pictures, to_pixels, wide
from .schedules import Kind, clean_of, expand, noise_of, target_of
from .text import Text, columns_of, read_columns

__all__ = ["DiffusionEditor"]

Offload = Literal["text", "model"]


class DiffusionEditor(ABC):
    """Base of the white-box families. Build one with `from_pretrained`, `isr.editors.load_editor`, or from parts.

    Args:
        parts: role → frozen module, tokenizer or scheduler.
        name: as tables print it. traits: see `isr.protocols.Traits`.
        origin: what is recorded about the weights (source, revision, fingerprint).
        device: "cuda", "cpu", …; None: CUDA where there is one. dtype: of the weights ("float32", "bfloat16", "float16").
        batch_size: images per denoiser pass. It changes a result only within docs/definitions.md section 12.
        resolution: the longer side is brought to this; None: pictures keep their size.
        restore_size: edits come back in the size of the input (False: in the working size).
        checkpointing: gradient checkpointing inside denoiser and VAE (less memory, same gradients, more time).
        scheduler: another sampler for the same weights (a class name of diffusers); None: the checkpoint's own.
        offload: "text" keeps text encoders on the CPU; "model" does so too, and has VAE and denoiser on the device in turn (edits
            only).
        vae_tiling, vae_slicing: decode and encode in tiles, or one picture at a time.
        defaults: sampling settings that replace the family's (steps, guidance, …).
    """

    #: parts of the checkpoint, and the pipelines of model_index.json that this class stands for
    PARTS: ClassVar[tuple[Part, ...]] = ()
    PIPELINES: ClassVar[tuple[str, ...]] = ()
    FAMILY: ClassVar[str] = ""
    DENOISER: ClassVar[str] = "unet"
    TEXT_ROLES: ClassVar[tuple[str, ...]] = ("text_encoder",)
    #: sampling settings a call may change, with the pipeline's own defaults
    DEFAULTS: ClassVar[Mapping[str, Any]] = {}
    OFFLOADS: ClassVar[tuple[str | None, ...]] = (None, "text", "model")
    #: a scheduler class of diffusers that serves this family
    SCHEDULER: ClassVar[str] = "DDIMScheduler"

    def __init__(
        self,
        parts: Mapping[str, Any],
        *,
        name: str = "",
        traits: Traits | None = None,
        origin: Mapping[str, Any] | None = None,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        batch_size: int = 1,
        resolution: int | None = None,
        restore_size: bool = True,
        checkpointing: bool = False,
        scheduler: str | None = None,
        offload: Offload | None = None,
        vae_tiling: bool = False,
        vae_slicing: bool = False,
        defaults: Mapping[str, Any] | None = None,
    ) -> None:
        checked_offload(type(self).__name__, self.OFFLOADS, offload)
        self.parts = dict(parts)
        self._origin = dict(origin or {})
        self._name = name or str(self._origin.get("source", "")).rstrip("/").rpartition("/")[2] or self.FAMILY
        self._device = torch_device(device)
        self._dtype = torch_dtype(dtype) or next(iter(self.denoiser.parameters())).dtype
        self.batch_size = whole_number("batch_size", batch_size, 1)
        if resolution is not None:
            resolution = whole_number("resolution", resolution, self.size_multiple, " (this model's multiple)")
        self.resolution = resolution
        self.restore_size = restore_size
        self.checkpointing = checkpointing
        self.offload = offload
        if scheduler is not None:
            own = self.parts["scheduler"]
            kind = scheduler_class(type(self), scheduler)
            check_scheduler(type(self), kind, own)
            self.parts["scheduler"] = kind.from_config(own.config)
        check_scheduler(type(self), type(self.parts["scheduler"]))
        for role, part in self.parts.items():
            if isinstance(part, nn.Module):
                part.requires_grad_(False).eval()
                stays = offload == "model" or (offload == "text" and role in self.TEXT_ROLES)
                part.to(torch.device("cpu") if stays else self._device)
                if next(part.parameters()).dtype != self._part_dtype(role):
                    part.to(self._part_dtype(role))
        if checkpointing:
            self.denoiser.enable_gradient_checkpointing()
            if getattr(self.vae, "_supports_gradient_checkpointing", False):
                self.vae.enable_gradient_checkpointing()
        if vae_tiling:
            self.vae.enable_tiling()
        if vae_slicing:
            self.vae.enable_slicing()
        self._tiling = (vae_tiling, vae_slicing)
        self._texts: dict[Any, Text] = {}
        self._visitor: str | None = None  # with offload="model": the part that is on the device
        self._sampling = False
        self._defaults = self._checked({**self.DEFAULTS, **self._own_defaults(), **(defaults or {})})
        self._traits = traits or Traits(
            white_box=True,
            size_multiple=self.size_multiple,
            family=self.FAMILY,
            source=str(self._origin.get("source", "")),
            **{
                k: self._defaults[k] for k in ("steps", "guidance", "image_guidance", "strength") if k in self._defaults
            },
        )

    # ------------------------------------------------------------------------------------------------- making one

    @classmethod
    def from_pretrained(
        cls,
        source: str,
        *,
        revision: str | None = None,
        variant: str | None = None,
        dtype: str | torch.dtype | None = None,
        device: str | torch.device | None = None,
        allow_pickle: bool = False,
        offline: bool = False,
        cache_dir: str | None = None,
        licence: str = "",
        gated: bool = False,
        without: Sequence[str] = (),
        **options: Any,
    ) -> DiffusionEditor:
        """Load a hub name or a folder in diffusers layout. `options` are those of the class; see `loading.locate` for the rest.

        dtype None means float32 (the weights' own precision on disk is widened: attacks need it). `without` names optional
        parts to leave out (SD3's third text encoder: ["text_encoder_3"]; its tokenizer goes with it).
        """
        check_environment(cls.__name__)
        kind = torch_dtype(dtype) or torch.float32
        device = torch_device(device)
        checked_options(cls, options)
        without = cls._leaving_out(without)
        parts_of = [part for part in cls.PARTS if part.role not in without]
        needed = [part.role for part in cls.PARTS if part.role in without and not part.optional]
        if needed or set(without) - {part.role for part in cls.PARTS}:
            raise UsageError(
                f"without={list(without)} names parts that {cls.__name__} needs or does not have; it can do without "
                f"{[part.role for part in cls.PARTS if part.optional]}"
            )
        where = locate(
            source, parts_of, revision=revision, variant=variant, allow_pickle=allow_pickle, offline=offline,
            licence=licence, gated=gated, cache_dir=cache_dir,
        )  # fmt: skip
        index = read_index(where.folder, pipelines=cls.PIPELINES, editor=cls.__name__)
        parts = load_parts(
            where.folder,
            parts_of,
            editor=cls.__name__,
            dtype=kind,
            variant=variant,
            allow_pickle=allow_pickle,
            index=index,
        )
        origin = {
            "source": where.source, "revision": where.revision, "weights": fingerprint(where.folder, parts_of), "licence": licence,
        }  # fmt: skip
        if variant is not None:
            origin["variant"] = variant
        parts |= dict.fromkeys(without)
        with memory_hint(cls.__name__):
            return cls(parts, origin=origin, device=device, dtype=kind, **{**cls._index_options(index), **options})

    @classmethod
    def _leaving_out(cls, without: Sequence[str]) -> tuple[str, ...]:
        """An optional text encoder and its tokenizer go together: one is of no use without the other."""
        if isinstance(without, str):
            raise UsageError(f"without must be a list of parts, got {without!r}; write [{without!r}]")
        pairs = [
            role.replace(*names)
            for role in without
            for names in (("text_encoder", "tokenizer"), ("tokenizer", "text_encoder"))
        ]
        optional = {part.role for part in cls.PARTS if part.optional}
        return tuple(dict.fromkeys([*without, *(role for role in pairs if role in optional)]))

    @classmethod
    def _index_options(cls, index: Mapping[str, Any]) -> dict[str, Any]:  # noqa: ARG003 - families override
        """Constructor options that a family reads from model_index.json."""
        return {}

    @classmethod
    def scheduler_problem(cls, kind: Any, own: Any = None) -> str:  # noqa: ARG003 - families override
        """Why a scheduler class cannot sample for this family (beside the checkpoint's `own`, where given), or ""."""
        return ""

    def _record(self) -> dict[str, Any]:
        """Further fixed choices of a family that decide an edit."""
        return {}

    def _own_defaults(self) -> dict[str, Any]:
        """Defaults that a family takes from its checkpoint."""
        return {}

    def _part_dtype(self, role: str) -> torch.dtype:  # noqa: ARG002 - families override
        return self._dtype

    # ----------------------------------------------------------------------------------------------- what it is

    @property
    def name(self) -> str:
        return self._name

    @property
    def traits(self) -> Traits:
        return self._traits

    def set_traits(self, traits: Traits) -> None:
        """Replace the traits (the catalogue knows licence and native size; the class does not)."""
        self._traits = traits

    @property
    def device(self) -> torch.device:
        return self._device

    @property
    def dtype(self) -> torch.dtype:
        return self._dtype

    @property
    def denoiser(self) -> Any:
        return self.parts[self.DENOISER]

    @property
    def vae(self) -> Any:
        return self.parts["vae"]

    @property
    def vae_factor(self) -> int:
        """Pixels per latent cell along a side."""
        return int(2 ** (len(self.vae.config.block_out_channels) - 1))

    @property
    def size_multiple(self) -> int:
        return self.vae_factor

    @property
    @abstractmethod
    def prediction(self) -> Kind: ...

    def settings(self, **overrides: Any) -> Mapping[str, Any]:
        """Everything that decides an edit besides image, prompt and seed."""
        import diffusers
        import transformers

        scheduler, vae_dtype = self.parts["scheduler"], self._part_dtype("vae")
        return {
            "editor": self.name,
            "family": self.FAMILY,
            **self._origin,
            **self._checked({**self._defaults, **overrides}),
            **self._record(),
            "scheduler": type(scheduler).__name__,
            "scheduler_config": {k: v for k, v in sorted(scheduler.config.items()) if not k.startswith("_")},
            "dtype": str(self._dtype).removeprefix("torch."),
            **({} if vae_dtype == self._dtype else {"vae_dtype": str(vae_dtype).removeprefix("torch.")}),
            "batch_size": self.batch_size,
            "resolution": self.resolution,
            "restore_size": self.restore_size,
            "size_multiple": self.size_multiple,
            "resample": "bicubic-antialias",
            "vae_tiling": self._tiling[0],
            "vae_slicing": self._tiling[1],
            "versions": {
                "torch": torch.__version__,
                "diffusers": diffusers.__version__,
                "transformers": transformers.__version__,
            },
        }

    def _checked(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        checked = checked_settings(self.name, self.DEFAULTS, settings)
        most = self.parts["scheduler"].config.get("num_train_timesteps")
        if most is not None and checked.get("steps", 0) > most:
            raise UsageError(
                f"steps must be at most {most}, the timesteps {self.name} was trained with, got {checked['steps']}"
            )
        return checked

    # ---------------------------------------------------------------------------------------------------- sizes

    def working_size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) in which a picture of that size is edited: scaled to `resolution`, sides cut down to the multiple."""
        scale = 1.0 if self.resolution is None else self.resolution / max(height, width)
        m = self.size_multiple
        return (max(m, round(height * scale) // m * m), max(m, round(width * scale) // m * m))

    def fit(self, x: torch.Tensor) -> torch.Tensor:
        """Pixels in the working size: antialiased bicubic, differentiable; nothing is done where the size is right."""
        self._pixels(x)
        size = self.working_size(int(x.shape[-2]), int(x.shape[-1]))
        return resized(x, size)

    def _pixels(self, x: torch.Tensor) -> None:
        if x.ndim != 4 or x.shape[1] != 3 or not x.is_floating_point():
            raise UsageError(f"x must be float pixels (B, 3, H, W) in [0, 1], got {x.dtype} {tuple(x.shape)}")

    # ----------------------------------------------------------------------------------------------------- text

    @abstractmethod
    def embed(self, prompts: Sequence[str]) -> Text: ...

    def _text(self, prompts: Sequence[str]) -> Text:
        """`embed`, remembered for the last few lists of prompts: an attack edits with the same ones in every iteration."""
        kind = self._device.type
        key = (tuple(prompts), torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind))
        if key not in self._texts:
            if len(self._texts) >= 4:
                self._texts.clear()
            self._texts[key] = self.embed(key[0])
        return self._texts[key]

    def word_columns(self, prompt: str, word: str | None = None) -> tuple[int, ...]:
        """Text columns of a word of the prompt (all its sub-tokens), or of all content tokens, for `attention`.

        Start, end and padding tokens are never content.

        Raises:
            UsageError: the word does not stand in the prompt, or only past what is read of it.
        """
        tokenizer = self.parts["tokenizer"]
        return read_columns(columns_of(tokenizer, prompt, word), prompt, word, int(tokenizer.model_max_length))

    # ---------------------------------------------------------------------------------------------- the surface

    def latents(self, x: torch.Tensor) -> torch.Tensor:
        """Raw encoder mean of pixels in [0, 1], unscaled, (B, C, h, w) float32; any size (see `fit`)."""
        mode: torch.Tensor = self._posterior(x).mode()
        return wide(mode)

    def _posterior(self, x: torch.Tensor) -> Any:
        x = self.fit(x)
        with self._using("vae"):
            return self.vae.encode((2 * x - 1).to(self.device, self.vae.dtype)).latent_dist

    def scaled(self, z: torch.Tensor) -> torch.Tensor:
        """What the denoiser works on: (z − shift) · scale with the VAE's own numbers."""
        shift, scale = self._affine(z)
        return (z - shift) * scale

    def unscaled(self, z: torch.Tensor) -> torch.Tensor:
        """The inverse of `scaled`, as this family's pipeline applies it before decoding."""
        shift, scale = self._affine(z)
        return z / scale + shift

    def _affine(self, z: torch.Tensor) -> tuple[torch.Tensor | float, torch.Tensor | float]:
        """(shift, scale) of the VAE: one number each, or per channel where its config holds means and deviations."""
        config = self.vae.config
        mean, std = getattr(config, "latents_mean", None), getattr(config, "latents_std", None)
        scale = float(getattr(config, "scaling_factor", None) or 1.0)
        if mean is not None and std is not None:
            shape = (1, -1, *([1] * (z.ndim - 2)))
            return z.new_tensor(mean).reshape(shape), scale / z.new_tensor(std).reshape(shape)
        return float(getattr(config, "shift_factor", None) or 0.0), scale

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        """Pixels, nominally in [0, 1] and not clamped, of a scaled latent, (B, 3, H, W) float32."""
        with self._using("vae"):
            raw: torch.Tensor = self.vae.decode(self.unscaled(z).to(self.device, self.vae.dtype), return_dict=False)[0]
        return wide(raw) / 2 + 0.5

    def condition(self, x: torch.Tensor) -> torch.Tensor | None:
        """What the image adds to the denoiser's input, or None where it enters through the noisy latent only."""
        return self.condition_of(self.latents(x))

    @abstractmethod
    def condition_of(self, raw: torch.Tensor) -> torch.Tensor | None:
        """`condition` from raw latents at hand (`latents(x)`), which spares an encoder pass."""

    @abstractmethod
    def timesteps(self, n: int) -> torch.Tensor: ...

    @abstractmethod
    def levels(self, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(a, b) of noisy = a·z + b·noise at timesteps t, each (B,) float32."""

    @abstractmethod
    def predict(self, noisy: torch.Tensor, t: torch.Tensor, text: Text, cond: torch.Tensor | None) -> torch.Tensor: ...

    def noisy(self, z: torch.Tensor, t: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """a·z + b·noise for a scaled latent z (B, C, h, w) at timesteps t (B,), as the denoiser's input."""
        a, b = self.levels(t)
        return expand(a, z) * z + expand(b, z) * noise

    def noise_from(self, prediction: torch.Tensor, noisy: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """The noise estimate n̂ behind a raw prediction (attacks.md's dictionary between VP and flow)."""
        a, b = self.levels(t)
        return noise_of(self.prediction, prediction, noisy, expand(a, noisy), expand(b, noisy))

    def clean_from(self, prediction: torch.Tensor, noisy: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """The clean scaled latent ẑ behind a raw prediction."""
        a, b = self.levels(t)
        return clean_of(self.prediction, prediction, noisy, expand(a, noisy), expand(b, noisy))

    def target(self, z: torch.Tensor, t: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """What a perfect denoiser predicts from noisy(z, t, noise): noise, a·noise − b·z, noise − z, or z (`sample`)."""
        a, b = self.levels(t)
        return target_of(self.prediction, z, noise, expand(a, z), expand(b, z))

    @abstractmethod
    def layers(self) -> tuple[str, ...]: ...

    @abstractmethod
    def default_layers(self) -> tuple[str, ...]: ...

    def features(
        self, noisy: torch.Tensor, t: torch.Tensor, text: Text, cond: torch.Tensor | None, layers: Sequence[str]
    ) -> dict[str, torch.Tensor]:
        """Outputs of the named layers, float32, in one pass that stops after the deepest of them.

        Any name of `denoiser.named_modules()` that returns a tensor is understood; `layers()` lists the useful ones.
        Rows may hold several timesteps of the same pictures: K·B noisy latents take B texts and conditions (repeated).
        """
        if isinstance(layers, str) or not layers:
            raise UsageError(f"layers must be a list of at least one name from editor.layers(), got {layers!r}")
        known = dict(self.denoiser.named_modules())
        unknown = [name for name in layers if name not in known or not name]
        if unknown:
            raise UsageError(
                f"{self.name} has no layers {unknown}; editor.layers() lists them, e.g. {self.layers()[-3:]}"
            )
        wanted = {name: known[name] for name in layers}
        found = read_modules(wanted, lambda: self.predict(noisy, t, text, cond), pick=self.pick)
        return {name: wide(self._image_part(value, noisy, text)) for name, value in found.items()}

    @staticmethod
    def pick(name: str, output: Any) -> torch.Tensor:
        """The tensor of a layer's output that `features` reads."""
        return first_tensor(name, output)

    def _image_part(self, value: torch.Tensor, noisy: torch.Tensor, text: Text) -> torch.Tensor:  # noqa: ARG002
        """The image's share of a layer's output, where text stands in the same sequence."""
        return value

    # --------------------------------------------------------------------------------------------------- editing

    def edit(
        self, images: Sequence[PIL.Image.Image], prompts: Sequence[str], *, seeds: Sequence[int], **settings: Any
    ) -> list[PIL.Image.Image]:
        """One edit per picture; 8-bit RGB in and out; seed i belongs to picture i. Unknown settings raise."""
        check_call(images, prompts, seeds)
        chosen = self._checked({**self._defaults, **settings})
        edited: dict[int, PIL.Image.Image] = {}
        with torch.no_grad(), memory_hint(self.name):
            for batch in batches([image.size for image in images], self.batch_size):
                y = self._sample(
                    to_pixels([images[i] for i in batch]),
                    [prompts[i] for i in batch],
                    [seeds[i] for i in batch],
                    chosen,
                    wrap=False,
                )
                edited.update(zip(batch, to_pictures(y), strict=True))
        return [edited[i] for i in range(len(images))]

    def rollout(
        self,
        x: torch.Tensor,
        prompts: Sequence[str],
        steps: int,
        *,
        seeds: Sequence[int],
        checkpoint: bool = True,
        **settings: Any,
    ) -> torch.Tensor:
        """A differentiable edit: (B, 3, H, W) float32, neither rounded nor clamped; `edit` is this, clamped and rounded.

        Args:
            x: pixels in [0, 1]. prompts, seeds: one each per picture. steps: of this edit.
            checkpoint: recompute each denoiser pass during backward, so that memory does not grow with steps.
            settings: guidance, …, as for `edit`.
        """
        self._pixels(x)
        check_prompts(prompts)
        check_seeds(seeds)
        if not len(x) == len(prompts) == len(seeds):
            raise UsageError(
                f"rollout needs one prompt and one seed per picture, got {len(x)} pictures, {len(prompts)} prompts, {len(seeds)} seeds"
            )
        chosen = self._checked({**self._defaults, **settings, "steps": steps})
        with memory_hint(self.name):
            return self._sample(x, prompts, seeds, chosen, wrap=checkpoint)

    def _sample(
        self, x: torch.Tensor, prompts: Sequence[str], seeds: Sequence[int], settings: Mapping[str, Any], *, wrap: bool
    ) -> torch.Tensor:
        generators = [generator_of(seed) for seed in seeds]
        size = (int(x.shape[-2]), int(x.shape[-1]))
        x = self.fit(x.to(self.device))
        self._sampling = True
        try:
            z = self._denoise(x, list(prompts), generators, settings, wrap=wrap and torch.is_grad_enabled())
            y = self._finish(z)
        finally:
            self._sampling = False
            self._send_home()
        return resized(y, size, clamp=False) if self.restore_size else y

    @abstractmethod
    def _denoise(
        self,
        x: torch.Tensor,
        prompts: list[str],
        generators: list[torch.Generator],
        settings: Mapping[str, Any],
        *,
        wrap: bool,
    ) -> torch.Tensor:
        """From pixels in the working size to the final scaled latent; `wrap` asks for a checkpoint around each pass."""

    def _finish(self, z: torch.Tensor) -> torch.Tensor:
        """Pixels of the final latent, as this family's pipeline makes them."""
        return self.decode(z)

    def _call(self, run: Callable[..., torch.Tensor], *args: torch.Tensor, wrap: bool) -> torch.Tensor:
        if not wrap:
            return run(*args)
        result: torch.Tensor = checkpointed(run, *args, use_reentrant=False)
        return result

    def _randn(self, shape: Sequence[int], generators: Sequence[torch.Generator]) -> torch.Tensor:
        """Float32 noise, drawn on the CPU so that every device edits with the same; row i from generator i."""
        rows = [torch.randn((1, *shape[1:]), generator=generator) for generator in generators]
        return torch.cat(rows).to(self.device, non_blocking=True)

    @contextmanager
    def _using(self, role: str) -> Iterator[None]:
        """Have a part on the device while it runs; during an edit until another part needs the room."""
        part = self.parts[role]
        if self.offload != "model" or role in self.TEXT_ROLES:
            yield
            return
        if torch.is_grad_enabled():
            raise UsageError(
                "offload='model' serves edits only; for gradients load the editor with offload='text' or none"
            )
        if self._visitor != role:
            self._send_home()
            part.to(self.device)
            self._visitor = role
        try:
            yield
        finally:
            if not self._sampling:
                self._send_home()

    def _send_home(self) -> None:
        if self._visitor is not None:
            self.parts[self._visitor].to(torch.device("cpu"))
            self._visitor = None

    def _text_device(self) -> torch.device:
        return torch.device("cpu") if self.offload is not None else self.device
