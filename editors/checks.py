"""The arguments of every editor's `edit`, checked without torch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import PIL.Image

from isr.errors import UsageError

__all__ = ["check_call"]


def check_call(images: Sequence[PIL.Image.Image], prompts: Sequence[str], seeds: Sequence[int]) -> None:
    """One 8-bit RGB picture, one text and one whole-number seed each; raises on anything else."""
    if isinstance(prompts, str):
        raise UsageError("prompts must be a list with one text per picture, got one text; write [prompt]")
    if not len(images) == len(prompts) == len(seeds):
        raise UsageError(
            f"edit needs one prompt and one seed per picture, got {len(images)} pictures, {len(prompts)} prompts, {len(seeds)} seeds"
        )
    for index, image in enumerate(images):
        if not isinstance(image, PIL.Image.Image) or image.mode != "RGB":
            what = f"a picture of mode {image.mode}" if isinstance(image, PIL.Image.Image) else type(image).__name__
            raise UsageError(f"images[{index}] must be an 8-bit RGB PIL.Image, got {what}; convert it first")
    for index, prompt in enumerate(prompts):
        if not isinstance(prompt, str):
            raise UsageError(f"prompts[{index}] must be a text, got {type(prompt).__name__}")
    for index, seed in enumerate(seeds):
        if isinstance(seed, bool) or not isinstance(seed, int | np.integer):
            raise UsageError(f"seeds[{index}] must be a whole number, got {type(seed).__name__}")
