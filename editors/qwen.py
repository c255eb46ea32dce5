"""Qwen-Image-Edit as an editor (no white-box surface): diffusers' own pipeline, one picture at a time.

The prompt is read together with the picture by Qwen2.5-VL. Its stock processor cannot be built without torchvision
(for videos, which no edit has), so a small one of our own prepares text and picture.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import PIL.Image
import torch

from isr.errors import UsageError
from isr.protocols import Traits

from .checks import check_call
from .loading import Part, check_environment, fingerprint, load_parts, locate, memory_hint, read_index
from .options import checked_offload, checked_options, checked_settings, torch_device, torch_dtype
from .pixels import generator_of

__all__ = ["PromptProcessor", "QwenEdit"]

IMAGE_TOKEN = "<|image_pad|>"  # noqa: S105 - a placeholder in the prompt, not a secret


class PromptProcessor:
    """Text and picture for Qwen2.5-VL: each image placeholder is repeated once per merged patch of its picture.

    Args:
        tokenizer: Qwen2's. images: a Qwen2-VL image processor (the Pillow one).
    """

    def __init__(self, tokenizer: Any, images: Any) -> None:
        self.tokenizer = tokenizer
        self.images = images

    def __call__(self, *, text: Sequence[str], images: Any, padding: bool = True, return_tensors: str = "pt") -> Any:
        from transformers import BatchFeature

        pixels = self.images(images=images, return_tensors=return_tensors)
        merged = [int(grid.prod()) // self.images.merge_size**2 for grid in pixels["image_grid_thw"]]
        if len(merged) != sum(t.count(IMAGE_TOKEN) for t in text):
            raise UsageError(f"{len(merged)} pictures for {sum(t.count(IMAGE_TOKEN) for t in text)} image placeholders")
        counts = iter(merged)
        filled = []
        for one in text:
            head, *rest = one.split(IMAGE_TOKEN)
            filled.append(head + "".join(IMAGE_TOKEN * next(counts) + piece for piece in rest))
        tokens = self.tokenizer(filled, padding=padding, return_tensors=return_tensors)
        return BatchFeature({"input_ids": tokens["input_ids"], "attention_mask": tokens["attention_mask"], **pixels})


class QwenEdit:
    """Qwen-Image-Edit. Edits are made at about 1024² pixels, as the pipeline does, and come back in the input's size.

    Guidance is on where `guidance` > 1: ê = ê(neg) + s (ê(text) − ê(neg)), rescaled to the norm of ê(text); the model
    card's negative prompt is a space.
    """

    PARTS: ClassVar[tuple[Part, ...]] = (
        Part("transformer", "diffusers", ("QwenImageTransformer2DModel",)),
        Part("vae", "diffusers", ("AutoencoderKLQwenImage",)),
        Part("text_encoder", "transformers", ("Qwen2_5_VLForConditionalGeneration",)),
        Part("tokenizer", "transformers", ("Qwen2Tokenizer", "Qwen2TokenizerFast"), weights=False),
        Part("scheduler", "diffusers", weights=False),
    )
    #: settings of the image processor; read by hand
    PROCESSOR: ClassVar[Part] = Part("processor", "transformers", weights=False, optional=True)
    PIPELINES: ClassVar[tuple[str, ...]] = ("QwenImageEditPipeline",)
    FAMILY: ClassVar[str] = "qwen-edit"
    DEFAULTS: ClassVar[Mapping[str, Any]] = {"steps": 50, "guidance": 4.0, "negative_prompt": " "}
    OFFLOADS: ClassVar[tuple[str | None, ...]] = (None, "model")

    def __init__(
        self,
        pipeline: Any,
        *,
        name: str = "qwen-edit",
        origin: Mapping[str, Any] | None = None,
        restore_size: bool = True,
        defaults: Mapping[str, Any] | None = None,
        offload: str | None = None,
        device: str | torch.device | None = None,
        vae_tiling: bool = False,
        vae_slicing: bool = False,
    ) -> None:
        checked_offload(name, self.OFFLOADS, offload)
        self.pipeline = pipeline
        self._name = name
        self._origin = dict(origin or {})
        self._restore = restore_size
        self._options = {"vae_tiling": vae_tiling, "vae_slicing": vae_slicing}
        where = torch_device(device)
        if offload == "model":
            pipeline.enable_model_cpu_offload(device=where)
        else:
            pipeline.to(where)
        if vae_tiling:
            pipeline.vae.enable_tiling()
        if vae_slicing:
            pipeline.vae.enable_slicing()
        pipeline.set_progress_bar_config(disable=True)
        self._defaults = checked_settings(name, self.DEFAULTS, {**self.DEFAULTS, **(defaults or {})})
        self._traits = Traits(
            white_box=False, size_multiple=32, native_size=1024, family=self.FAMILY, source=str(self._origin.get("source", "")),
            steps=self._defaults["steps"], guidance=self._defaults["guidance"],
        )  # fmt: skip

    @classmethod
    def from_pretrained(
        cls,
        source: str,
        *,
        revision: str | None = None,
        variant: str | None = None,
        dtype: str | torch.dtype | None = None,
        allow_pickle: bool = False,
        offline: bool = False,
        cache_dir: str | None = None,
        licence: str = "",
        gated: bool = False,
        **options: Any,
    ) -> QwenEdit:
        """Load a hub name or a folder in diffusers layout; arguments as for the white-box families."""
        check_environment(cls.__name__)
        kind = torch_dtype(dtype) or torch.float32
        checked_options(cls, options)
        torch_device(options.get("device"))
        parts_of = (*cls.PARTS, cls.PROCESSOR)
        where = locate(
            source, parts_of, revision=revision, variant=variant, allow_pickle=allow_pickle, offline=offline,
            licence=licence, gated=gated, cache_dir=cache_dir,
        )  # fmt: skip
        index = read_index(where.folder, pipelines=cls.PIPELINES, editor=cls.__name__)
        parts = load_parts(
            where.folder, cls.PARTS, editor=cls.__name__, dtype=kind, variant=variant,
            allow_pickle=allow_pickle, index=index,
        )  # fmt: skip
        from diffusers import QwenImageEditPipeline

        make: Any = QwenImageEditPipeline
        pipeline = make(**parts, processor=None)
        pipeline.processor = PromptProcessor(parts["tokenizer"], image_processor(where.folder / cls.PROCESSOR.role))
        origin = {
            "source": where.source, "revision": where.revision, "weights": fingerprint(where.folder, parts_of), "licence": licence,
        }  # fmt: skip
        if variant is not None:
            origin["variant"] = variant
        with memory_hint(cls.__name__):
            return cls(pipeline, origin=origin, **options)

    @property
    def name(self) -> str:
        return self._name

    @property
    def traits(self) -> Traits:
        return self._traits

    def set_traits(self, traits: Traits) -> None:
        """Replace the traits (the catalogue knows the licence)."""
        self._traits = traits

    def settings(self, **overrides: Any) -> Mapping[str, Any]:
        """Everything that decides an edit besides image, prompt and seed."""
        import diffusers
        import transformers

        scheduler = self.pipeline.scheduler
        return {
            "editor": self.name,
            "family": self.FAMILY,
            **self._origin,
            **checked_settings(self.name, self.DEFAULTS, {**self._defaults, **overrides}),
            "scheduler": type(scheduler).__name__,
            "scheduler_config": {k: v for k, v in sorted(scheduler.config.items()) if not k.startswith("_")},
            "dtype": str(self.pipeline.transformer.dtype).removeprefix("torch."),
            "restore_size": self._restore,
            **self._options,
            "versions": {
                "torch": torch.__version__,
                "diffusers": diffusers.__version__,
                "transformers": transformers.__version__,
            },
        }

    def edit(
        self, images: Sequence[PIL.Image.Image], prompts: Sequence[str], *, seeds: Sequence[int], **settings: Any
    ) -> list[PIL.Image.Image]:
        """One edit per picture, one after another; 8-bit RGB in and out; seed i belongs to picture i."""
        check_call(images, prompts, seeds)
        chosen = checked_settings(self.name, self.DEFAULTS, {**self._defaults, **settings})
        edits = []
        with memory_hint(self.name):
            for image, prompt, seed in zip(images, prompts, seeds, strict=True):
                edited = self.pipeline(
                    image=image,
                    prompt=prompt,
                    negative_prompt=chosen["negative_prompt"] if chosen["guidance"] > 1 else None,
                    true_cfg_scale=chosen["guidance"],
                    num_inference_steps=chosen["steps"],
                    generator=generator_of(seed),
                ).images[0]
                if self._restore and edited.size != image.size:
                    edited = edited.resize(image.size, PIL.Image.Resampling.LANCZOS)
                edits.append(edited)
        return edits


def image_processor(folder: Path) -> Any:
    """The Pillow image processor of Qwen2-VL with the checkpoint's settings (its own defaults where there are none)."""
    from transformers import Qwen2VLImageProcessorPil

    if (folder / "preprocessor_config.json").is_file():
        return Qwen2VLImageProcessorPil.from_pretrained(str(folder), local_files_only=True)
    return Qwen2VLImageProcessorPil()
