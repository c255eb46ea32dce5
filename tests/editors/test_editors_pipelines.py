"""Every family against its diffusers pipeline where the easy case hides things: not square, an empty prompt, no guidance."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

import editor_surface as surface  # noqa: E402
import tiny  # noqa: E402
from isr.editors.img2img import Img2Img, Img2ImgXL  # noqa: E402
from isr.editors.kontext import Kontext  # noqa: E402
from isr.editors.mmdit import SD3Img2Img  # noqa: E402
from isr.editors.pixels import to_pixels  # noqa: E402
from isr.editors.unet import InstructPix2Pix  # noqa: E402
from isr.editors.unet_xl import InstructPix2PixXL  # noqa: E402

SIZE = {"height": 32, "width": 48}
#: family → (class, its options, pipeline, what the pipeline must be told of the size)
FAMILIES: dict[str, tuple[Any, dict[str, Any], str, dict[str, Any]]] = {
    "ip2p": (InstructPix2Pix, {}, "StableDiffusionInstructPix2PixPipeline", {}),
    "sd15": (Img2Img, {}, "StableDiffusionImg2ImgPipeline", {"strength": 1.0}),
    "sdxl": (Img2ImgXL, {}, "StableDiffusionXLImg2ImgPipeline", {"strength": 0.8}),
    "sdxl-ip2p": (InstructPix2PixXL, {}, "StableDiffusionXLInstructPix2PixPipeline", SIZE),
    "sd3": (SD3Img2Img, {}, "StableDiffusion3Img2ImgPipeline", {**SIZE, "strength": 1.0}),
    "kontext": (
        Kontext, {"resolution": 48}, "FluxKontextPipeline", {**SIZE, "_auto_resize": False, "max_area": 32 * 48},
    ),
}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_pictures_that_are_not_square_an_empty_prompt_and_no_guidance(family: str, tmp_path: Path) -> None:
    cls, options, name, more = FAMILIES[family]
    folder = tiny.build(family, tmp_path)
    editor = cls.from_pretrained(str(folder), device="cpu", **options)
    pipeline = getattr(diffusers, name).from_pretrained(str(folder), local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    images, prompts = surface.pictures(2, (48, 32)), ["make the hat red", ""]
    shared = {"strength": more["strength"]} if "strength" in more else {}
    for ours, theirs in (
        ({}, {}),
        ({"guidance": 1.0}, {"guidance_scale": 1.0}),
    ):
        reference = pipeline(
            prompt=prompts, image=images, num_inference_steps=3, generator=surface.generators(), output_type="np", **more, **theirs
        ).images  # fmt: skip
        with torch.no_grad():
            y = editor.rollout(to_pixels(images), prompts, 3, seeds=surface.SEEDS, **shared, **ours)
        assert y.shape == (2, 3, 32, 48)
        assert np.abs(y.clamp(0, 1).permute(0, 2, 3, 1).numpy() - reference).max() < 1e-4
        assert ((reference > 0) & (reference < 1)).mean() > 0.2
