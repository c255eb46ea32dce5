"""Inception-v3 features as FID and generative precision use them (the 2015 TensorFlow network, 2048 pooled features).

The network is built here (Szegedy et al. 2016, with that release's average pools, which leave the border out, and its one max
pool); parameters are named as in the published PyTorch port, whose file is read from the user's torch hub cache.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .pairs import working
from .result import NotAvailable
from .weights import find_hub_file, load_hub_state

__all__ = ["INCEPTION_CONVENTION", "InceptionFeatures", "load_inception"]

INCEPTION_CONVENTION = "Inception-v3 2015 pool features (2048), pictures to 299×299 bilinear without antialiasing"
_FILE = "pt_inception-2015-12-05-6726825d.pth"
_SOURCE = "released with pytorch-fid, https://github.com/mseitzer/pytorch-fid/releases"


class _Conv(nn.Module):
    """Convolution without bias, batch norm (ε .001), ReLU."""

    def __init__(
        self, into: int, out: int, kernel: int | tuple[int, int], stride: int = 1, padding: int | tuple[int, int] = 0
    ):
        super().__init__()
        self.conv = nn.Conv2d(into, out, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(out, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


_WIDE, _TALL = ((1, 7), (0, 3)), ((7, 1), (3, 0))


class _Block(nn.Module):
    """Branches side by side; each is a chain of named convolutions. The pool branch comes last."""

    def __init__(self, branches: Sequence[Sequence[tuple[str, _Conv]]], pool: str) -> None:
        super().__init__()
        self.chains = [[name for name, _ in branch] for branch in branches]
        for branch in branches:
            for name, conv in branch:
                self.add_module(name, conv)
        self.pool = pool

    def _pooled(self, x: Tensor) -> Tensor:
        if self.pool == "mean":
            return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
        if self.pool == "max":
            return F.max_pool2d(x, 3, 1, 1)
        return F.max_pool2d(x, 3, 2)

    def forward(self, x: Tensor) -> Tensor:
        out = []
        for chain in self.chains:
            y = self._pooled(x) if chain == ["branch_pool"] else x
            for name in chain:
                if name.endswith("a") and name[:-1] + "b" in self._modules:  # a fork: …a and …b side by side
                    y = torch.cat([self.get_submodule(name)(y), self.get_submodule(name[:-1] + "b")(y)], 1)
                else:
                    y = self.get_submodule(name)(y)
            out.append(y)
        if self.pool == "reduce":
            out.append(self._pooled(x))
        return torch.cat(out, 1)


def _a(into: int, pool: int) -> _Block:
    return _Block(
        [
            [("branch1x1", _Conv(into, 64, 1))],
            [("branch5x5_1", _Conv(into, 48, 1)), ("branch5x5_2", _Conv(48, 64, 5, padding=2))],
            [
                ("branch3x3dbl_1", _Conv(into, 64, 1)),
                ("branch3x3dbl_2", _Conv(64, 96, 3, padding=1)),
                ("branch3x3dbl_3", _Conv(96, 96, 3, padding=1)),
            ],
            [("branch_pool", _Conv(into, pool, 1))],
        ],
        "mean",
    )


def _b(into: int) -> _Block:
    return _Block(
        [
            [("branch3x3", _Conv(into, 384, 3, 2))],
            [
                ("branch3x3dbl_1", _Conv(into, 64, 1)),
                ("branch3x3dbl_2", _Conv(64, 96, 3, padding=1)),
                ("branch3x3dbl_3", _Conv(96, 96, 3, 2)),
            ],
        ],
        "reduce",
    )


def _c(into: int, mid: int) -> _Block:
    return _Block(
        [
            [("branch1x1", _Conv(into, 192, 1))],
            [
                ("branch7x7_1", _Conv(into, mid, 1)),
                ("branch7x7_2", _Conv(mid, mid, _WIDE[0], padding=_WIDE[1])),
                ("branch7x7_3", _Conv(mid, 192, _TALL[0], padding=_TALL[1])),
            ],
            [
                ("branch7x7dbl_1", _Conv(into, mid, 1)),
                ("branch7x7dbl_2", _Conv(mid, mid, _TALL[0], padding=_TALL[1])),
                ("branch7x7dbl_3", _Conv(mid, mid, _WIDE[0], padding=_WIDE[1])),
                ("branch7x7dbl_4", _Conv(mid, mid, _TALL[0], padding=_TALL[1])),
                ("branch7x7dbl_5", _Conv(mid, 192, _WIDE[0], padding=_WIDE[1])),
            ],
            [("branch_pool", _Conv(into, 192, 1))],
        ],
        "mean",
    )


def _d(into: int) -> _Block:
    return _Block(
        [
            [("branch3x3_1", _Conv(into, 192, 1)), ("branch3x3_2", _Conv(192, 320, 3, 2))],
            [
                ("branch7x7x3_1", _Conv(into, 192, 1)),
                ("branch7x7x3_2", _Conv(192, 192, _WIDE[0], padding=_WIDE[1])),
                ("branch7x7x3_3", _Conv(192, 192, _TALL[0], padding=_TALL[1])),
                ("branch7x7x3_4", _Conv(192, 192, 3, 2)),
            ],
        ],
        "reduce",
    )


def _e(into: int, pool: str) -> _Block:
    block = _Block(
        [
            [("branch1x1", _Conv(into, 320, 1))],
            [("branch3x3_1", _Conv(into, 384, 1)), ("branch3x3_2a", _Conv(384, 384, (1, 3), padding=(0, 1)))],
            [
                ("branch3x3dbl_1", _Conv(into, 448, 1)),
                ("branch3x3dbl_2", _Conv(448, 384, 3, padding=1)),
                ("branch3x3dbl_3a", _Conv(384, 384, (1, 3), padding=(0, 1))),
            ],
            [("branch_pool", _Conv(into, 192, 1))],
        ],
        pool,
    )
    for fork in ("branch3x3_2b", "branch3x3dbl_3b"):
        block.add_module(fork, _Conv(384, 384, (3, 1), padding=(1, 0)))
    return block


class InceptionFeatures(nn.Module):
    """(B, 3, H, W) RGB in [0, 1], any size → (B, 2048). Random weights unless a state is loaded (`load_inception`)."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = _Conv(3, 32, 3, 2)
        self.Conv2d_2a_3x3 = _Conv(32, 32, 3)
        self.Conv2d_2b_3x3 = _Conv(32, 64, 3, padding=1)
        self.Conv2d_3b_1x1 = _Conv(64, 80, 1)
        self.Conv2d_4a_3x3 = _Conv(80, 192, 3)
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = _a(192, 32), _a(256, 64), _a(288, 64)
        self.Mixed_6a = _b(288)
        self.Mixed_6b, self.Mixed_6c, self.Mixed_6d, self.Mixed_6e = (
            _c(768, 128),
            _c(768, 160),
            _c(768, 160),
            _c(768, 192),
        )
        self.Mixed_7a = _d(768)
        self.Mixed_7b, self.Mixed_7c = _e(1280, "mean"), _e(2048, "max")
        self.requires_grad_(False).eval()

    def forward(self, x: Tensor) -> Tensor:
        x = F.interpolate(working(x), size=(299, 299), mode="bilinear", align_corners=False) * 2 - 1
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(F.max_pool2d(x, 3, 2)))
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(F.max_pool2d(x, 3, 2))))
        x = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))))
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x)))
        return x.mean((-2, -1))


def load_inception() -> InceptionFeatures | NotAvailable:
    """The network with the published weights, or why it is not available on this machine."""
    path = find_hub_file(_FILE, _SOURCE)
    if isinstance(path, NotAvailable):
        return path
    state = load_hub_state(path)
    model = InceptionFeatures()
    model.load_state_dict({k: v for k, v in state.items() if not k.startswith("fc.")})
    return model
