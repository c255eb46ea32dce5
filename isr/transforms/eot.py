"""Random transforms for an expectation over transformations (EOT; Athalye et al. 2018).

A distribution is *sampled* into a fixed transform, so that the same draw can be applied to the protected picture and to the
clean one. Parameters are drawn from the generator in the order in which they are written.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import UsageError
from .base import Generators, Transform, check_pixels
from .geometry import CropResize, Resize, Rotation
from .jpeg import JPEG
from .pixel import Blur, Identity, Noise

__all__ = ["EOT", "PerImage", "Random", "editshield_eot", "standard_eot"]

Range = tuple[int, int] | tuple[float, float]


class PerImage:
    """Transform i on image i; what a batch with one generator per image needs.

    Args:
        transforms: one per image of the batches it will be called on.
    """

    def __init__(self, transforms: Sequence[Transform]) -> None:
        self.transforms = tuple(transforms)

    def __call__(self, x: Tensor, generator: Generators = None) -> Tensor:
        check_pixels(x)
        if len(self.transforms) != len(x):
            raise UsageError(f"x holds {len(x)} images, but {len(self.transforms)} transforms were drawn")
        if generator is None or isinstance(generator, torch.Generator):
            return torch.cat([t(x[i : i + 1], generator) for i, t in enumerate(self.transforms)])
        if len(generator) != len(x):
            raise UsageError(
                f"generator must hold one generator per image: {len(x)} images, {len(generator)} generators"
            )
        return torch.cat([t(x[i : i + 1], g) for i, (t, g) in enumerate(zip(self.transforms, generator, strict=True))])

    def settings(self) -> dict[str, Any]:
        return {"transform": "per-image", "transforms": [t.settings() for t in self.transforms]}


class _Distribution:
    """Something that can be sampled into fixed transforms."""

    def sample(self, generator: torch.Generator) -> Transform:
        raise NotImplementedError(f"{type(self).__name__} must define sample(generator)")

    def settings(self) -> dict[str, Any]:
        """JSON-able: the ranges and choices."""
        raise NotImplementedError(f"{type(self).__name__} must define settings()")

    def sample_each(self, generators: Sequence[torch.Generator]) -> PerImage:
        """One draw per image, image i from generator i."""
        return PerImage([self.sample(g) for g in generators])

    def __call__(self, x: Tensor, generator: Generators = None) -> Tensor:
        """Draw and apply: once for the batch with one generator, per image with a sequence of them."""
        check_pixels(x)
        if generator is None:
            raise UsageError("a random transform needs generator= (a torch.Generator, or one per image)")
        if isinstance(generator, torch.Generator):
            return self.sample(generator)(x, generator)
        return self.sample_each(generator)(x, generator)


class Random(_Distribution):
    """A transform whose named parameters are uniform in a range.

    Args:
        make: the transform's class. ranges: per parameter (low, high): whole numbers draw from low … high inclusive,
            floats from [low, high). Other values are passed on as they are. A `Noise` also draws its seed, so that a
            sampled noise is fixed.
    """

    def __init__(self, make: Callable[..., Transform], **ranges: Any) -> None:
        self.make = make
        self.ranges = ranges
        for name, value in ranges.items():
            if isinstance(value, tuple) and (len(value) != 2 or value[0] > value[1]):
                raise UsageError(f"{name} must be a pair (low, high) with low ≤ high, not {value!r}")

    def sample(self, generator: torch.Generator) -> Transform:
        drawn: dict[str, Any] = {}
        for name, value in self.ranges.items():
            if not isinstance(value, tuple):
                drawn[name] = value
            elif all(isinstance(v, int) for v in value):
                drawn[name] = int(torch.randint(value[0], value[1] + 1, (), generator=generator))
            else:
                u = float(torch.rand((), generator=generator, dtype=torch.float64))
                drawn[name] = value[0] + (value[1] - value[0]) * u
        if self.make is Noise and "seed" not in drawn:
            drawn["seed"] = int(torch.randint(0, 2**31, (), generator=generator))
        return self.make(**drawn)

    def settings(self) -> dict[str, Any]:
        ranges = {k: list(v) if isinstance(v, tuple) else v for k, v in self.ranges.items()}
        return {"transform": "random", "of": getattr(self.make, "kind", str(self.make)), **ranges}


class EOT(_Distribution):
    """One of several transforms at random, equally likely unless weights are given.

    Args:
        choices: fixed transforms and distributions. weights: one positive number per choice, or None.
    """

    def __init__(self, choices: Sequence[Transform | _Distribution], weights: Sequence[float] | None = None) -> None:
        if not choices:
            raise UsageError("choices must hold at least one transform")
        if weights is not None and (len(weights) != len(choices) or min(weights) < 0 or sum(weights) <= 0):
            raise UsageError(f"weights must be {len(choices)} numbers ≥ 0 that are not all 0, not {list(weights)!r}")
        self.choices = tuple(choices)
        self.weights = tuple(float(w) for w in weights) if weights is not None else (1.0,) * len(choices)

    def sample(self, generator: torch.Generator) -> Transform:
        picked = int(torch.multinomial(torch.tensor(self.weights, dtype=torch.float64), 1, generator=generator))
        choice = self.choices[picked]
        return choice.sample(generator) if isinstance(choice, _Distribution) else choice

    def settings(self) -> dict[str, Any]:
        return {"transform": "eot", "weights": list(self.weights), "choices": [c.settings() for c in self.choices]}


def editshield_eot() -> EOT:
    """EditShield's set as its paper means it (arXiv 2311.12066): identity, centre crop to 90 % and back, Gaussian blur 5×5
    σ 1.5, rotation U(−5°, 5°); one of them per draw."""
    return EOT([Identity(), CropResize(0.9), Blur(1.5, size=5), Random(Rotation, degrees=(-5.0, 5.0))])


def standard_eot() -> EOT:
    """What a downloaded picture commonly goes through: identity, JPEG quality 50–95, resize to 50–90 % and back, Gaussian
    blur σ 0.5–1.5, noise σ 0.01–0.05, crop to 90–100 % anywhere and back, rotation U(−5°, 5°)."""
    return EOT(
        [
            Identity(),
            Random(JPEG, quality=(50, 95)),
            Random(Resize, scale=(0.5, 0.9)),
            Random(Blur, sigma=(0.5, 1.5)),
            Random(Noise, sigma=(0.01, 0.05)),
            Random(CropResize, fraction=(0.9, 1.0), top=(0.0, 1.0), left=(0.0, 1.0)),
            Random(Rotation, degrees=(-5.0, 5.0)),
        ]
    )
