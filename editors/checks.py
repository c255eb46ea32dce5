"""The arguments of every editor's `edit` (and of `rollout` and `embed`), checked without torch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import PIL.Image

from isr.errors import UsageError
from isr.masks import grey_mask

__all__ = ["check_call", "check_masks", "check_prompts", "check_seeds"]


#: what torch's generators take; a seed that is a function's own, or is hashed first, may be any whole number
SEEDS = range(-(2**63), 2**64)


def check_call(
    images: Sequence[PIL.Image.Image], prompts: Sequence[str], seeds: Sequence[int], *, bounded: bool = True
) -> None:
    """One 8-bit RGB picture, one text and one whole-number seed each (`bounded`: that a torch generator takes); raises on
    anything else."""
    if isinstance(images, PIL.Image.Image):
        raise UsageError("images must be a list of pictures, got one picture; write [image]")
    check_prompts(prompts)
    check_seeds(seeds, bounded=bounded)
    if not len(images) == len(prompts) == len(seeds):
        raise UsageError(
            f"edit needs one prompt and one seed per picture, got {len(images)} pictures, {len(prompts)} prompts, {len(seeds)} seeds"
        )
    for index, image in enumerate(images):
        if not isinstance(image, PIL.Image.Image) or image.mode != "RGB":
            what = f"a picture of mode {image.mode}" if isinstance(image, PIL.Image.Image) else type(image).__name__
            raise UsageError(f"images[{index}] must be an 8-bit RGB PIL.Image, got {what}; convert it first")


def check_prompts(prompts: Sequence[str]) -> None:
    """A list of texts; one text alone would be read letter by letter."""
    if isinstance(prompts, str):
        raise UsageError("prompts must be a list with one text per picture, got one text; write [prompt]")
    for index, prompt in enumerate(prompts):
        if not isinstance(prompt, str):
            raise UsageError(f"prompts[{index}] must be a text, got {type(prompt).__name__}")


def check_seeds(seeds: Sequence[int], *, bounded: bool = True) -> None:
    """A list of whole numbers (`bounded`: that a torch generator takes)."""
    if isinstance(seeds, int | np.integer):
        raise UsageError(f"seeds must be a list with one whole number per picture, got {seeds!r}; write [{seeds!r}]")
    for index, seed in enumerate(seeds):
        if isinstance(seed, bool) or not isinstance(seed, int | np.integer):
            raise UsageError(f"seeds[{index}] must be a whole number, got {type(seed).__name__}")
        if bounded and int(seed) not in SEEDS:
            raise UsageError(f"seeds[{index}] must be a whole number from −2⁶³ to 2⁶⁴ − 1, got {seed}")


def check_masks(masks: Sequence[PIL.Image.Image], images: Sequence[PIL.Image.Image]) -> list[PIL.Image.Image]:
    """One mask picture per picture, of its size, as 8-bit grey; what would silently mean something else is refused."""
    if isinstance(masks, PIL.Image.Image):
        raise UsageError("masks must be a list with one picture per picture, got one; write [mask]")
    if len(masks) != len(images):
        raise UsageError(f"edit needs one mask per picture, got {len(images)} pictures, {len(masks)} masks")
    for index, (mask, image) in enumerate(zip(masks, images, strict=True)):
        if not isinstance(mask, PIL.Image.Image) or mask.size != image.size:
            what = f"one of size {mask.size}" if isinstance(mask, PIL.Image.Image) else type(mask).__name__
            raise UsageError(f"masks[{index}] must be a PIL.Image of size {image.size}, as its picture, got {what}")
    return [grey_mask(mask, f"masks[{index}]") for index, mask in enumerate(masks)]
