"""Which class serves a checkpoint, from its model_index.json."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from .loading import EditorLoadError, read_index

__all__ = ["CLASSES", "class_of"]

#: pipeline class of model_index.json → "module:Class" of this package
CLASSES = {
    "StableDiffusionInstructPix2PixPipeline": "unet:InstructPix2Pix",
    "StableDiffusionXLInstructPix2PixPipeline": "unet_xl:InstructPix2PixXL",
    "StableDiffusionPipeline": "img2img:Img2Img",
    "StableDiffusionImg2ImgPipeline": "img2img:Img2Img",
    "StableDiffusionXLPipeline": "img2img:Img2ImgXL",
    "StableDiffusionXLImg2ImgPipeline": "img2img:Img2ImgXL",
    "StableDiffusion3Pipeline": "mmdit:SD3Img2Img",
    "StableDiffusion3Img2ImgPipeline": "mmdit:SD3Img2Img",
    "StableDiffusion3InstructPix2PixPipeline": "mmdit:SD3Instruct",
    "FluxKontextPipeline": "kontext:Kontext",
    "QwenImageEditPipeline": "qwen:QwenEdit",
}


def class_of(folder: Path) -> Any:
    """The editor class for a local checkpoint."""
    found = str(read_index(folder).get("_class_name", "checkpoint without a class name"))
    if found not in CLASSES:
        raise EditorLoadError(
            f"{str(folder)!r} holds a {found}, which no editor here serves; known: {', '.join(sorted(CLASSES))}. "
            "Any model can be an editor as a function: load_editor(lambda image, prompt, seed: …)"
        )
    module, _, attribute = CLASSES[found].partition(":")
    return getattr(importlib.import_module(f".{module}", __package__), attribute)
