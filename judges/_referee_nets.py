"""The networks behind the MiniWorld referees, and how their weights are read. Needs torch; imported late.

Three kinds that share no layer: a plain convolutional net (`plain`), a residual net (`residual`), and a small patch
transformer (`patches`). Each has one classifier per scene attribute and, on a trunk of its own that sees edit and
original, a map of local damage, which its degradation sums up in one number.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from isr.errors import IntegrityError, UsageError

__all__ = ["KINDS", "Loaded", "RefereeNet", "build", "load", "summed_up"]

WEIGHTS, CONFIG = "model.safetensors", "config.json"


def _conv(inside: int, outside: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inside, outside, 3, padding=1, bias=False), nn.BatchNorm2d(outside), nn.ReLU())


class _PlainTrunk(nn.Sequential):
    """Convolutions with batch normalisation and max pooling; (B, c, 64, 64) to (B, width)."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__(
            nn.Conv2d(channels, 24, 5, 2, 2), nn.ReLU(),
            _conv(24, 40), nn.MaxPool2d(2), _conv(40, 64), _conv(64, 64), nn.MaxPool2d(2), _conv(64, 80), nn.MaxPool2d(2),
            nn.Flatten(), nn.Dropout(0.2), nn.Linear(80 * 16, width), nn.ReLU(),
        )  # fmt: skip


class _Residual(nn.Module):
    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.GroupNorm(8, inside), nn.GELU(), nn.Conv2d(inside, outside, 3, stride, 1))
        self.second = nn.Sequential(nn.GroupNorm(8, outside), nn.GELU(), nn.Conv2d(outside, outside, 3, 1, 1))
        self.skip = nn.Conv2d(inside, outside, 1, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.skip(x) + self.second(self.first(x))
        return y


class _ResidualTrunk(nn.Sequential):
    """Pre-activation residual blocks with group normalisation; pooled to a 4×4 grid."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__(
            nn.Conv2d(channels, 16, 4, 2, 1),
            _Residual(16, 32, 2), _Residual(32, 48, 1), _Residual(48, 72, 2), _Residual(72, 72, 2),
            nn.GELU(), nn.Flatten(), nn.Dropout(0.1), nn.Linear(72 * 16, width), nn.GELU(),
        )  # fmt: skip


class _PatchTrunk(nn.Module):
    """A transformer on overlapping patches, 8×8 of them, with learnt positions; the tokens' mean and maximum go on."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        size = 96
        self.patch = nn.Sequential(
            nn.Conv2d(channels, 32, 4, 2, 1),
            nn.GELU(),
            nn.Conv2d(32, 64, 4, 2, 1),
            nn.GELU(),
            nn.Conv2d(64, size, 4, 2, 1),
        )
        self.place = nn.Parameter(torch.randn(1, 64, size) * 0.02)
        layer = nn.TransformerEncoderLayer(
            size, 4, 2 * size, dropout=0.0, batch_first=True, norm_first=True, activation="gelu"
        )
        self.layers = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
        self.out = nn.Sequential(nn.LayerNorm(2 * size), nn.Linear(2 * size, width), nn.GELU())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.layers(self.patch(x).flatten(2).transpose(1, 2) + self.place)
        y: torch.Tensor = self.out(torch.cat([tokens.mean(1), tokens.amax(1)], 1))
        return y


class _PlainDamage(nn.Module):
    """Convolutions with batch normalisation down to 8×8 and up again: (B, 6, 64, 64) to (B, 1, 16, 16)."""

    def __init__(self) -> None:
        super().__init__()
        self.near = nn.Sequential(
            nn.Conv2d(6, 24, 5, 2, 2), nn.ReLU(), _conv(24, 40), nn.MaxPool2d(2), _conv(40, 64), _conv(64, 64)
        )
        self.far = nn.Sequential(nn.MaxPool2d(2), _conv(64, 96), _conv(96, 96), nn.Upsample(scale_factor=2))
        self.out = nn.Sequential(_conv(160, 64), nn.Dropout2d(0.1), nn.Conv2d(64, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        near = self.near(x)
        y: torch.Tensor = self.out(torch.cat([near, self.far(near)], 1))
        return y


class _ResidualDamage(nn.Module):
    """Pre-activation residual blocks at 16×16 and 8×8; (B, 6, 64, 64) to (B, 1, 16, 16)."""

    def __init__(self) -> None:
        super().__init__()
        self.near = nn.Sequential(nn.Conv2d(6, 24, 4, 2, 1), _Residual(24, 48, 2), _Residual(48, 64, 1))
        self.far = nn.Sequential(_Residual(64, 80, 2), _Residual(80, 64, 1), nn.Upsample(scale_factor=2))
        self.out = nn.Sequential(_Residual(64, 64, 1), nn.GELU(), nn.Conv2d(64, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        near = self.near(x)
        y: torch.Tensor = self.out(near + self.far(near))
        return y


class _PatchDamage(nn.Module):
    """A transformer on 4×4-pixel patches; (B, 6, 64, 64) to (B, 1, 16, 16)."""

    def __init__(self) -> None:
        super().__init__()
        size = 64
        self.patch = nn.Conv2d(6, size, 4, 4)
        self.place = nn.Parameter(torch.randn(1, 256, size) * 0.02)
        layer = nn.TransformerEncoderLayer(
            size, 4, 2 * size, dropout=0.0, batch_first=True, norm_first=True, activation="gelu"
        )
        self.layers = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
        self.out = nn.Sequential(nn.LayerNorm(size), nn.Linear(size, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.layers(self.patch(x).flatten(2).transpose(1, 2) + self.place)
        y: torch.Tensor = self.out(tokens).transpose(1, 2).unflatten(2, (16, 16))
        return y


#: kind -> (trunk of the attributes, network of the damage)
KINDS: Mapping[str, tuple[type[nn.Module], type[nn.Module]]] = {
    "plain": (_PlainTrunk, _PlainDamage),
    "residual": (_ResidualTrunk, _ResidualDamage),
    "patches": (_PatchTrunk, _PatchDamage),
}


def summed_up(damage: torch.Tensor) -> torch.Tensor:
    """(B,): logarithm of the root mean square of maps (B, 16, 16), so that small bad places count as well."""
    return damage.square().mean((1, 2)).clamp(min=1e-8).log() / 2


class RefereeNet(nn.Module):
    """Attribute classifiers and a map of local damage.

    Args:
        kind: one of `KINDS`. heads: head name -> number of values. width: features that the classifiers read.
    """

    def __init__(self, kind: str, heads: Mapping[str, int], *, width: int = 144) -> None:
        super().__init__()
        trunk, damage = KINDS[kind]
        self.scene = trunk(3, width)
        self.heads = nn.ModuleDict({f"head_{name}": nn.Linear(width, count) for name, count in heads.items()})
        self.quality = damage()

    def attributes(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """Logits per head of pictures (B, 3, 64, 64) in [−1, 1]."""
        seen = self.scene(x)
        return {name.removeprefix("head_"): head(seen) for name, head in self.heads.items()}

    def damage(self, edited: torch.Tensor, original: torch.Tensor) -> torch.Tensor:
        """Damage of every 4×4 pixels, (B, 16, 16), 0 where nothing is wrong; from pictures (B, 3, 64, 64) in [−1, 1]."""
        y: torch.Tensor = nn.functional.softplus(self.quality(torch.cat([edited, original], 1))[:, 0])
        return y

    def degradation(self, edited: torch.Tensor, original: torch.Tensor) -> torch.Tensor:
        """Degradation (B,): the damage, `summed_up`."""
        return summed_up(self.damage(edited, original))


def build(config: Mapping[str, Any]) -> RefereeNet:
    """An untrained network from a configuration ({"kind", "heads": {name: [values]}, "width"})."""
    return RefereeNet(
        config["kind"], {name: len(values) for name, values in config["heads"].items()}, width=config["width"]
    )


@dataclass(frozen=True)
class Loaded:
    """A referee in memory: network in eval mode, its configuration, and the digest of both files."""

    net: RefereeNet
    config: Mapping[str, Any]
    digest: str


def load(folder: Path) -> Loaded:
    """Read `config.json` and `model.safetensors` (float16 on disk, float32 in memory).

    Raises:
        UsageError: a file is missing. IntegrityError: the weights do not fit the configuration.
    """
    from safetensors.torch import load_file

    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise UsageError(
                f"referee: expected a folder with {CONFIG} and {WEIGHTS}, but {folder} has no {name}; "
                "name a folder written by tools/train_miniworld.py, or install immunization-success-rate-miniworld"
            )
    raw, text = (folder / WEIGHTS).read_bytes(), (folder / CONFIG).read_text("utf-8")
    config = json.loads(text)
    net = build(config)
    state = {
        name: value.float() if value.is_floating_point() else value
        for name, value in load_file(folder / WEIGHTS).items()
    }
    try:
        net.load_state_dict(state)
    except RuntimeError as error:
        raise IntegrityError(
            f"referee: the weights in {folder} do not fit their {CONFIG} ({error}); install them again"
        ) from error
    return Loaded(
        net.eval().requires_grad_(requires_grad=False), config, hashlib.sha256(raw + text.encode()).hexdigest()
    )
