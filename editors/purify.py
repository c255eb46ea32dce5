"""Purifiers: what an attacker may do to a downloaded picture before editing it. Names such as "jpeg:75" or "resize:0.5".

Here: names and chains, and the purifiers that need no model. Models: purify_latent.py (VAE round trip, img2img, upscaling,
IMPRESS) and purify_diffusion.py (DiffPure, GrIDPure). Parameters and their sources: docs/purifiers.md.
"""

from __future__ import annotations

import hashlib
import inspect
import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import PIL.Image
import torch

from isr.errors import UsageError
from isr.protocols import Purifier
from isr.registry import PURIFIERS
from isr.transforms import BitDepth, Blur, CropResize, Noise, Resize, Rotation, Transform

from .checks import check_call
from .pixels import to_pictures, to_pixels

__all__ = [
    "BasePurifier", "Chain", "JPEGPurifier", "TransformPurifier", "bit_depth", "blur", "crop_resize", "derived_seed", "jpeg",
    "make_purifier", "noise", "resize", "rotation",
]  # fmt: skip

#: The ladder that tables use where the user names no purifiers of their own.
LADDER = (
    "jpeg:90", "jpeg:75", "jpeg:50", "jpeg:30", "resize:0.75", "resize:0.5", "crop-resize:0.75", "noise:0.05", "noise:0.1",
    "blur:0.5", "blur:1", "blur:2", "rotation:5", "bit-depth:4",
)  # fmt: skip


def derived_seed(seed: int, label: str) -> int:
    """A seed for a purifier's own randomness that shares no numbers with the editor's noise under the same seed."""
    return int.from_bytes(hashlib.sha256(f"{label}:{seed}".encode()).digest()[:7], "big")


class BasePurifier:
    """One picture at a time: a picture is purified the same alone and in any batch. Subclasses define `one`.

    Args:
        name: as tables print it. settings: JSON-able, recorded with every result.
    """

    def __init__(self, name: str, settings: Mapping[str, Any]) -> None:
        self._name = name
        self._settings = dict(settings)

    @property
    def name(self) -> str:
        return self._name

    def __repr__(self) -> str:
        return f"<purifier {self._name}>"

    def settings(self) -> Mapping[str, Any]:
        return {"purifier": self._name, **self._settings}

    def purify(self, images: Sequence[PIL.Image.Image], *, seeds: Sequence[int]) -> list[PIL.Image.Image]:
        """One purified picture per picture, 8-bit RGB, same size; seed i belongs to picture i.

        Raises:
            UsageError: another number of seeds than pictures, or a picture that is not 8-bit RGB.
        """
        if len(images) != len(seeds):
            raise UsageError(f"purify needs one seed per picture, got {len(images)} pictures and {len(seeds)} seeds")
        check_call(images, [""] * len(images), seeds, bounded=False)  # derived_seed hashes them
        return [self.one(image, int(seed)) for image, seed in zip(images, seeds, strict=True)]

    def one(self, image: PIL.Image.Image, seed: int) -> PIL.Image.Image:
        raise NotImplementedError(f"{type(self).__name__} must define one(image, seed)")


class TransformPurifier(BasePurifier):
    """A transform of isr.transforms on 8-bit pictures; rounding back to 8 bits is part of it."""

    def __init__(self, name: str, transform: Transform) -> None:
        super().__init__(name, transform.settings())
        self.transform = transform

    def one(self, image: PIL.Image.Image, seed: int) -> PIL.Image.Image:
        generator = torch.Generator().manual_seed(derived_seed(seed, f"purify-{self.transform.kind}"))
        with torch.no_grad():
            return to_pictures(self.transform(to_pixels([image]), generator))[0]


class JPEGPurifier(BasePurifier):
    """A real JPEG file: Pillow's encoder and decoder (libjpeg), optimised tables off."""

    def __init__(self, quality: int, subsampling: str = "4:2:0") -> None:
        if isinstance(quality, bool) or not isinstance(quality, int) or not 1 <= quality <= 100:
            raise UsageError(f"quality must be a whole number from 1 to 100, got {quality!r}")
        if subsampling not in ("4:2:0", "4:2:2", "4:4:4"):
            raise UsageError(f"subsampling must be '4:2:0', '4:2:2' or '4:4:4', got {subsampling!r}")
        super().__init__(
            _named("jpeg", quality, subsampling=(subsampling, "4:2:0")),
            {
                "transform": "jpeg-file",
                "quality": quality,
                "subsampling": subsampling,
                "encoder": f"Pillow {PIL.__version__}",
            },
        )
        self.quality, self.subsampling = quality, subsampling

    def one(self, image: PIL.Image.Image, seed: int) -> PIL.Image.Image:  # noqa: ARG002 - deterministic
        file = io.BytesIO()
        # A picture without metadata: an embedded profile or EXIF must not travel along.
        PIL.Image.fromarray(np.asarray(image)).save(file, "JPEG", quality=self.quality, subsampling=self.subsampling)
        return PIL.Image.open(file).convert("RGB")


class Chain(BasePurifier):
    """Several purifiers one after the other; written "jpeg:75+resize:0.5"."""

    def __init__(self, links: Sequence[Purifier]) -> None:
        if not links:
            raise UsageError("a chain needs at least one purifier")
        super().__init__("+".join(link.name for link in links), {})
        self.links = tuple(links)

    def settings(self) -> Mapping[str, Any]:
        return {"purifier": self.name, "chain": [dict(link.settings()) for link in self.links]}

    def purify(self, images: Sequence[PIL.Image.Image], *, seeds: Sequence[int]) -> list[PIL.Image.Image]:
        out = list(images)
        for i, link in enumerate(self.links):
            # The same purifier twice in a chain must not draw the same noise twice.
            own = seeds if i == 0 else [derived_seed(int(seed), f"chain-{i}") for seed in seeds]
            out = link.purify(out, seeds=own)
        return out


# ---------------------------------------------------------------------------------------------------------- factories


def _named(kind: str, value: Any = None, **options: tuple[Any, Any]) -> str:
    """ "kind:value,option=…" with the options that are not at their default (value, default)."""

    def written(v: Any) -> str:
        if isinstance(v, bool):
            return str(v).lower()
        return f"{v:g}" if isinstance(v, float) else str(v)

    told = [] if value is None else [written(value)]
    told += [f"{k.replace('_', '-')}={written(v)}" for k, (v, default) in options.items() if v != default]
    return f"{kind}:{','.join(told)}" if told else kind


def jpeg(quality: int = 75, subsampling: str = "4:2:0") -> JPEGPurifier:
    """A JPEG file of this quality. Ladder 90, 75, 50, 30."""
    return JPEGPurifier(quality, subsampling)


def resize(scale: float = 0.5, mode: str = "bilinear") -> TransformPurifier:
    """Down by `scale` and back."""
    return TransformPurifier(_named("resize", float(scale), mode=(mode, "bilinear")), Resize(float(scale), mode))  # type: ignore[arg-type]


def crop_resize(fraction: float = 0.75, mode: str = "bicubic") -> TransformPurifier:
    """Keep the middle `fraction` of each side and enlarge it again (Mist's post-processing: 512 → 384 → 512 bicubic)."""
    return TransformPurifier(
        _named("crop-resize", float(fraction), mode=(mode, "bicubic")),
        CropResize(float(fraction), mode),  # type: ignore[arg-type]
    )


def noise(sigma: float = 0.05) -> TransformPurifier:
    """Gaussian noise of this standard deviation on [0, 1] pixels, from the picture's seed."""
    return TransformPurifier(_named("noise", float(sigma)), Noise(float(sigma)))


def blur(sigma: float = 1.0, size: int | None = None) -> TransformPurifier:
    """Gaussian blur; "blur:1.5,size=5" is EditShield's kernel, normalised."""
    return TransformPurifier(_named("blur", float(sigma), size=(size, None)), Blur(float(sigma), size))


def rotation(degrees: float = 5.0, back: bool = False, border: str = "reflection") -> TransformPurifier:
    """Rotate counter-clockwise; the editor sees the turned picture unless `back` (two resamplings, upright again)."""
    return TransformPurifier(
        _named("rotation", float(degrees), back=(back, False), border=(border, "reflection")),
        Rotation(float(degrees), border, back),  # type: ignore[arg-type]
    )


def bit_depth(bits: int = 4) -> TransformPurifier:
    """2^bits levels per channel."""
    return TransformPurifier(_named("bit-depth", bits), BitDepth(bits))


# -------------------------------------------------------------------------------------------------------------- names

_LINK = re.compile(r"^(?P<kind>[A-Za-z][\w.-]*)(?::(?P<rest>.+))?$", re.DOTALL)


def _read(text: str) -> Any:
    if text in ("true", "false"):
        return text == "true"
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            continue
    return text


def _link(spec: str, options: Mapping[str, Any]) -> Purifier:
    match = _LINK.match(spec.strip())
    if match is None:
        raise UsageError(f"a purifier is written name, name:value or name:value,option=value, not {spec!r}")
    kind, rest = match["kind"], match["rest"]
    factory: Callable[..., Purifier] = PURIFIERS.load(kind)
    parameters = inspect.signature(factory).parameters
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    arguments: dict[str, Any] = {}
    for i, item in enumerate(rest.split(",") if rest else []):
        key, equals, value = item.partition("=")
        if not equals:
            if i:
                raise UsageError(f"in {spec!r}, {item!r} has no name; only the first value may stand alone")
            key, value = next(iter(parameters), "value"), item
        arguments[key.strip().replace("-", "_")] = _read(value.strip())
    for key, value in options.items():
        if key in arguments:
            raise UsageError(f"{key} is given twice for the purifier {kind!r}: in its name and as an option")
        arguments[key] = value
    unknown = [] if open_ended else sorted(set(arguments) - set(parameters))
    if unknown:
        raise UsageError(f"the purifier {kind!r} has no option {', '.join(unknown)}; it takes: {', '.join(parameters)}")
    return factory(**arguments)


def make_purifier(purifier: str | Purifier, **options: Any) -> Purifier:
    """A purifier from its name.

    Args:
        purifier: "jpeg:75", "resize:0.5,mode=area", "noise:0.05", a chain "jpeg:75+resize:0.5", or a purifier (returned as
            it is). The value after the colon is the factory's first argument.
        options: further arguments of the factory that no name can hold, such as `editor=` for "vae" and "img2img"; in a
            chain, of every link that takes them.

    Raises:
        RegistryError: no such purifier (near matches are listed). UsageError: a malformed name or a wrong value.
    """
    if not isinstance(purifier, str):
        if not isinstance(purifier, Purifier):
            raise UsageError(f"purifier must be a name or a purifier, got {type(purifier).__name__}")
        if options:
            raise UsageError(f"{purifier.name} is made already; options {sorted(options)} go where it is made")
        return purifier
    # A plus inside a number ("1e+2") does not start a link: a link starts with a letter.
    specs = re.split(r"\+(?=[A-Za-z])", purifier)
    if len(specs) == 1:
        return _link(purifier, options)
    taken = [_taken(spec, options) for spec in specs]
    unused = sorted(set(options).difference(*taken))
    if unused:
        raise UsageError(f"no link of {purifier!r} takes {', '.join(unused)}")
    return Chain([_link(spec, own) for spec, own in zip(specs, taken, strict=True)])


def _taken(spec: str, options: Mapping[str, Any]) -> dict[str, Any]:
    parameters = inspect.signature(PURIFIERS.load(spec.partition(":")[0].strip())).parameters
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    return {k: v for k, v in options.items() if open_ended or k in parameters}
