"""Purification by an unconditional pixel diffusion model: DiffPure (Nie et al. 2022) and GrIDPure (Zhao et al. 2023).

The model is a diffusers UNet2DModel with its scheduler (a folder or hub name of the user's); it is loaded at the first picture.
"""

from __future__ import annotations

from typing import Any

import PIL.Image
import torch

from isr.errors import UsageError
from isr.transforms import resize_to

from .loading import Part, check_environment, fingerprint, load_parts, locate
from .pixels import to_pictures, to_pixels
from .purify import BasePurifier, _named, derived_seed

__all__ = ["DiffPure", "GrIDPure", "tile_starts"]

PARTS = (Part("unet", "diffusers", ("UNet2DModel",)), Part("scheduler", "diffusers", weights=False))


class _PixelDiffusion(BasePurifier):
    """Noise a picture on [−1, 1] to timestep t and denoise it step by step (DDPM ancestral sampling).

    Args:
        source: folder or hub name of an unconditional diffusers checkpoint ("unet" and "scheduler"). t: steps of noise, 1 to
            the model's number of training steps.
        unet, scheduler: parts made already (then `source` is only recorded). offline: use only what is cached.
    """

    def __init__(
        self,
        name: str,
        settings: dict[str, Any],
        *,
        source: str | None,
        t: int,
        revision: str | None = None,
        device: str | None = None,
        offline: bool = False,
        unet: Any = None,
        scheduler: Any = None,
    ) -> None:
        if isinstance(t, bool) or not isinstance(t, int) or t < 1:
            raise UsageError(f"t must be a whole number of diffusion steps, at least 1, got {t!r}")
        if source is None and (unet is None or scheduler is None):
            raise UsageError(
                f"{name} needs source=: the folder or hub name of an unconditional diffusers checkpoint (UNet2DModel), such as an "
                "ImageNet 256×256 model that you have converted; none is downloaded unasked"
            )
        super().__init__(name, {**settings, "t": t, "source": source, "revision": revision, "sampler": "DDPM"})
        self.source, self.revision, self.t, self.offline = source, revision, t, offline
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self._parts = {"unet": unet, "scheduler": scheduler} if unet is not None and scheduler is not None else None

    def _load(self) -> tuple[Any, Any]:
        if self._parts is None:
            check_environment(self.name)
            where = locate(str(self.source), PARTS, revision=self.revision, offline=self.offline)
            self._parts = load_parts(where.folder, PARTS, editor=self.name)
            self._settings["weights"] = fingerprint(where.folder, PARTS)
        import diffusers

        ancestral: Any = diffusers.DDPMScheduler

        unet = self._parts["unet"].to(self.device).eval()
        scheduler = ancestral.from_config(self._parts["scheduler"].config)
        steps = int(scheduler.config["num_train_timesteps"])
        if self.t > steps:
            raise UsageError(f"t must be at most {steps}, the model's number of diffusion steps, got {self.t}")
        scheduler.set_timesteps(steps)
        return unet, scheduler

    def _side(self, unet: Any) -> int:
        size = unet.config.sample_size
        return int(size[0] if isinstance(size, list | tuple) else size)

    def _purified(self, x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """x (B, 3, s, s) in [0, 1], s the model's side, → the same, clamped."""
        unet, scheduler = self._load()
        x = (2 * x - 1).to(self.device)
        noise = torch.randn(x.shape, generator=generator).to(self.device)
        # Timesteps count from 0: t steps of noise end at index t − 1.
        z: torch.Tensor = scheduler.add_noise(x, noise, torch.full((len(x),), self.t - 1, device=self.device))
        for step in range(self.t - 1, -1, -1):
            z = scheduler.step(unet(z, step).sample, step, z, generator=generator).prev_sample
        return (z / 2 + 0.5).clamp(0, 1).cpu()

    def _generator(self, seed: int) -> torch.Generator:
        return torch.Generator().manual_seed(derived_seed(seed, "purify-diffusion"))


class DiffPure(_PixelDiffusion):
    """ "diffpure:100,source=FOLDER": the whole picture at the model's size, brought there and back by antialiased bilinear resampling."""

    def __init__(
        self,
        t: int = 100,
        *,
        source: str | None = None,
        revision: str | None = None,
        device: str | None = None,
        offline: bool = False,
        unet: Any = None,
        scheduler: Any = None,
    ) -> None:
        super().__init__(
            _named("diffpure", t),
            {"transform": "diffpure", "resample": "bilinear-antialias"},
            source=source,
            t=t,
            revision=revision,
            device=device,
            offline=offline,
            unet=unet,
            scheduler=scheduler,
        )

    @torch.no_grad()
    def one(self, image: PIL.Image.Image, seed: int) -> PIL.Image.Image:
        side = self._side(self._load()[0])
        x = to_pixels([image])
        out = self._purified(resize_to(x, (side, side)), self._generator(seed))
        return to_pictures(resize_to(out, (image.height, image.width)))[0]


def tile_starts(length: int, tile: int, stride: int) -> list[int]:
    """Where tiles begin along a side: every `stride`, and one that ends at the border."""
    starts = list(range(0, length - tile + 1, stride))
    return starts if starts[-1] == length - tile else [*starts, length - tile]


class GrIDPure(_PixelDiffusion):
    """ "gridpure:10,source=FOLDER": many rounds of little noise on overlapping tiles of the model's size.

    Each round purifies a grid of tiles (stride: half a tile) and one tile assembled from the picture's four corners, averages
    where they overlap, and keeps `gamma` of the round's input. A picture smaller than a tile is enlarged to one and brought back.
    """

    def __init__(
        self,
        t: int = 10,
        *,
        rounds: int = 20,
        gamma: float = 0.1,
        source: str | None = None,
        revision: str | None = None,
        device: str | None = None,
        offline: bool = False,
        unet: Any = None,
        scheduler: Any = None,
    ) -> None:
        if rounds < 1 or not 0 <= gamma < 1:
            raise UsageError(f"rounds must be at least 1 and gamma in [0, 1), got {rounds} and {gamma}")
        super().__init__(
            _named("gridpure", t, rounds=(rounds, 20), gamma=(gamma, 0.1)),
            {"transform": "gridpure", "rounds": rounds, "gamma": gamma},
            source=source, t=t, revision=revision, device=device, offline=offline, unet=unet, scheduler=scheduler,
        )  # fmt: skip
        self.rounds, self.gamma = rounds, gamma

    @torch.no_grad()
    def one(self, image: PIL.Image.Image, seed: int) -> PIL.Image.Image:
        tile = self._side(self._load()[0])
        x = to_pixels([image])
        h, w = x.shape[-2:]
        if min(h, w) < tile:
            x = resize_to(x, (max(h, tile), max(w, tile)))
        generator = self._generator(seed)
        for _ in range(self.rounds):
            x = (1 - self.gamma) * self._round(x, tile, generator) + self.gamma * x
        return to_pictures(resize_to(x, (h, w)) if x.shape[-2:] != (h, w) else x)[0]

    def _round(self, x: torch.Tensor, tile: int, generator: torch.Generator) -> torch.Tensor:
        h, w = x.shape[-2:]
        half = tile // 2
        places = [(i, j) for i in tile_starts(h, tile, half) for j in tile_starts(w, tile, half)]
        rows, columns = (slice(0, half), slice(h - (tile - half), h)), (slice(0, half), slice(w - (tile - half), w))
        corners = torch.cat([torch.cat([x[..., r, c] for c in columns], dim=-1) for r in rows], dim=-2)
        tiles = torch.cat([*(x[..., i : i + tile, j : j + tile] for i, j in places), corners])
        done = self._purified(tiles, generator)
        total, count = torch.zeros_like(x), torch.zeros_like(x)
        for one, (i, j) in zip(done, places, strict=False):
            total[0, :, i : i + tile, j : j + tile] += one
            count[0, :, i : i + tile, j : j + tile] += 1
        inside = (slice(0, half), slice(half, tile))
        for r, ri in zip(rows, inside, strict=True):
            for c, ci in zip(columns, inside, strict=True):
                total[0, :, r, c] += done[-1][:, ri, ci]
                count[0, :, r, c] += 1
        return total / count
