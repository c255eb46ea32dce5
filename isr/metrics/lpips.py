"""Learned perceptual image patch similarity (Zhang et al. 2018, Eq. 1), version 0.1 with linear heads.

The backbone is built here from its published layer table, so that torchvision is never needed; its ImageNet weights come from
the user's torch hub cache, the linear heads from the installed torchmetrics.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from ..errors import UsageError
from .pairs import check_pair
from .result import NotAvailable
from .weights import find_hub_file, load_hub_state

__all__ = ["LPIPS", "Net", "load_lpips", "lpips_convention"]

Net = Literal["alex", "vgg"]
MIN_SIDE = 32

# Convolutions as (in, out, kernel, stride, padding), "P" = 3×3 stride 2 pool, "Q" = 2×2 pool, "*" = a tap after the last ReLU.
_LAYERS: dict[str, tuple[tuple[int, int, int, int, int] | str, ...]] = {
    "alex": (
        (3, 64, 11, 4, 2), "*", "P", (64, 192, 5, 1, 2), "*", "P", (192, 384, 3, 1, 1), "*", (384, 256, 3, 1, 1), "*",
        (256, 256, 3, 1, 1), "*",
    ),
    "vgg": (
        (3, 64, 3, 1, 1), (64, 64, 3, 1, 1), "*", "Q", (64, 128, 3, 1, 1), (128, 128, 3, 1, 1), "*", "Q",
        (128, 256, 3, 1, 1), (256, 256, 3, 1, 1), (256, 256, 3, 1, 1), "*", "Q",
        (256, 512, 3, 1, 1), (512, 512, 3, 1, 1), (512, 512, 3, 1, 1), "*", "Q",
        (512, 512, 3, 1, 1), (512, 512, 3, 1, 1), (512, 512, 3, 1, 1), "*",
    ),
}  # fmt: skip
_FILES = {"alex": "alexnet-owt-7be5be79.pth", "vgg": "vgg16-397923af.pth"}
_SOURCE = "torchvision's ImageNet weights, https://download.pytorch.org/models/"


def lpips_convention(net: str) -> str:
    return f"LPIPS 0.1, {net} backbone (ImageNet), linear heads, pixels to [−1, 1], spatial mean; no resizing"


class LPIPS(nn.Module):
    """The distance network; random weights unless a state is loaded (`load_lpips`).

    Args:
        net: "alex" (the paper's and the field's default for evaluation) or "vgg".
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, net: Net = "alex") -> None:
        super().__init__()
        if net not in get_args(Net):
            raise UsageError(f"net must be 'alex' or 'vgg', not {net!r}")
        self.net = net
        layers: list[nn.Module] = []
        self.taps: list[int] = []
        widths: list[int] = []
        width = 3
        for layer in _LAYERS[net]:
            if layer == "*":
                self.taps.append(len(layers) - 1)
                widths.append(width)
            elif isinstance(layer, str):
                layers.append(nn.MaxPool2d(3 if layer == "P" else 2, 2))
            else:
                into, width, kernel, stride, padding = layer
                layers += [nn.Conv2d(into, width, kernel, stride, padding), nn.ReLU()]
        self.features = nn.Sequential(*layers)
        self.heads = nn.ParameterList([torch.rand(1, w, 1, 1) for w in widths])
        # The ImageNet statistics, moved to [−1, 1] pixels.
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1), persistent=False)
        self.requires_grad_(False).eval()

    def _unit_features(self, x: Tensor) -> list[Tensor]:
        out = []
        x = (2 * x - 1 - self.shift) / self.scale
        for i, layer in enumerate(self.features):
            x = layer(x)
            if i in self.taps:
                out.append(x / torch.sqrt(1e-8 + x.square().sum(1, keepdim=True)))
        return out

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """a, b: float (B, 3, H, W), RGB in [0, 1], sides ≥ 32 → distances (B,), ≥ 0; 0 for identical pictures. Symmetric."""
        check_pair(a, b, data_range=1.0, min_side=MIN_SIDE, what="lpips")
        total = a.new_zeros(len(a))
        for fa, fb, head in zip(self._unit_features(a), self._unit_features(b), self.heads, strict=True):
            total = total + ((fa - fb).square() * head).sum(1).mean((-2, -1))
        return total


def load_lpips(net: Net = "alex") -> LPIPS | NotAvailable:
    """The network with published weights, or why it is not available on this machine."""
    package = find_spec("torchmetrics")
    if package is None or package.origin is None:
        return NotAvailable(
            "LPIPS takes its linear heads from torchmetrics: pip install 'immunization-success-rate[metrics]'",
            lacking=True,
        )
    heads = Path(package.origin).parent / "functional" / "image" / "lpips_models" / f"{net}.pth"
    if not heads.is_file():
        return NotAvailable(f"the installed torchmetrics holds no LPIPS heads at {heads.name}", lacking=True)
    path = find_hub_file(_FILES[net], _SOURCE)
    if isinstance(path, NotAvailable):
        return path
    model = LPIPS(net)
    set_weights(model, load_hub_state(path), torch.load(heads, map_location="cpu", weights_only=True))
    return model


def set_weights(model: LPIPS, backbone: dict[str, Tensor], heads: dict[str, Tensor]) -> None:
    """Put a torchvision classifier's state (its `features.*` part) and LPIPS heads (`lin<i>.model.1.weight`) into the model."""
    prefix = "features."
    model.features.load_state_dict({k.removeprefix(prefix): v for k, v in backbone.items() if k.startswith(prefix)})
    with torch.no_grad():
        for i, head in enumerate(model.heads):
            head.copy_(heads[f"lin{i}.model.1.weight"])
