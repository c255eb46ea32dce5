"""Random noise: the baseline from which several attacks differ only in structure. Needs no model."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import PIL.Image

from isr.errors import UsageError
from isr.masks import mask_for
from isr.perturbation import Budget, pixels, quantise
from isr.protocols import Editor

__all__ = ["Noise", "noise"]


class Noise:
    """Random noise inside the budget: uniform, or ±ε signs (the energy of a saturated sign attack; the fair baseline).

    δ ~ U(−ε, ε), or δ = ε·Rademacher, per pixel and channel; clipped, rounded, projected. Random: everything (one NumPy
    generator per picture). Cost: none.

    Args:
        kind: "uniform" or "sign". eps: on [0, 1]; the preset "paper" has 0.03, and there is no other preset.
    """

    any_size = True

    def __init__(self, *, kind: Literal["uniform", "sign"] = "sign", eps: float = 0.03) -> None:
        if kind not in ("uniform", "sign"):
            raise UsageError(f"kind must be 'uniform' or 'sign', not {kind!r}")
        self.kind = kind
        self.budget = Budget("linf", eps)

    @property
    def name(self) -> str:
        return "noise"

    def settings(self) -> Mapping[str, Any]:
        return {"attack": "noise", "preset": "paper", "kind": self.kind, "budget": self.budget.settings()}

    def immunize(
        self,
        images: Sequence[PIL.Image.Image],
        prompts: Sequence[str | None],
        *,
        editor: Editor | None = None,  # noqa: ARG002 - no model is looked at
        seeds: Sequence[int],
        masks: Sequence[Any] | None = None,
    ) -> list[PIL.Image.Image]:
        """Noisy copies of 8-bit RGB pictures of any size; prompts are not read.

        masks: in the size of the pictures, read as in `isr.immunize`: δ is multiplied by their share of white (the same draws
        as without).
        """
        if len(seeds) != len(images) or len(prompts) != len(images):
            raise UsageError(
                f"prompts and seeds must hold one entry per image: {len(images)} images, {len(prompts)} prompts, {len(seeds)} seeds"
            )
        given = [None] * len(images) if masks is None else list(masks)
        if len(given) != len(images):
            raise UsageError(f"masks must hold one entry per image: {len(images)} images, {len(given)} masks")
        greys = [mask_for(image, m, f"masks[{k}]") for k, (image, m) in enumerate(zip(images, given, strict=True))]
        return [self._one(image, int(seed), m) for image, seed, m in zip(images, seeds, greys, strict=True)]

    def _one(self, image: PIL.Image.Image, seed: int, mask: PIL.Image.Image | None) -> PIL.Image.Image:
        levels, draw = pixels(image), np.random.default_rng(seed % 2**63)
        if self.kind == "sign":
            delta = self.budget.eps * (2.0 * draw.integers(0, 2, size=levels.shape) - 1.0)
        else:
            delta = draw.uniform(-self.budget.eps, self.budget.eps, size=levels.shape)
        if mask is not None:
            delta = delta * (np.asarray(mask)[:, :, None] / 255)
        return PIL.Image.fromarray(quantise(levels, levels / 255.0 + delta, self.budget))


def noise(*, preset: str = "paper", **settings: Any) -> Noise:
    """The registry's factory. Raises UsageError for unknown presets and settings, naming those there are."""
    if preset != "paper":
        raise UsageError(f"noise has no preset {preset!r}; it has paper")
    for key in settings:
        if key not in ("eps", "kind"):
            near = difflib.get_close_matches(key, ("eps", "kind"), n=1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise UsageError(f"noise has no setting {key!r}{hint}; options: eps, kind")
    return Noise(**settings)


noise.__doc__ = Noise.__doc__
noise.presets = ("paper",)  # type: ignore[attr-defined]
noise.summary = (Noise.__doc__ or "").partition("\n")[0]  # type: ignore[attr-defined]
