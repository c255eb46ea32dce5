"""Feature similarity (Zhang, Zhang, Mou, Zhang 2011): phase congruency and gradient magnitude, with (FSIMc) or without chroma."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from .pairs import check_pair, working

__all__ = ["FSIMC_CONVENTION", "FSIM_CONVENTION", "fsim", "fsimc"]

MIN_SIDE = 16
_COMMON = (
    "YIQ on the 0–255 scale; mean-pooled by round(min side/256) first (part of the definition); log-Gabor bank 4 scales × "
    "4 orientations, noise threshold k = 2; T1 .85, T2 160"
)
FSIM_CONVENTION = f"luminance only; {_COMMON}"
FSIMC_CONVENTION = f"with chroma, |S_I·S_Q|^.03, T3 = T4 = 200; {_COMMON}"

SCALES, ORIENTATIONS = 4, 4
MIN_WAVELENGTH, MULTIPLIER, SIGMA_F = 6, 2, 0.55
SIGMA_THETA = math.pi / ORIENTATIONS / 1.2
K_NOISE, PC2_RESCALE = 2.0, 1.7
T1, T2, T3, T4, CHROMA_WEIGHT = 0.85, 160.0, 200.0, 200.0, 0.03
_YIQ = ((0.299, 0.587, 0.114), (0.596, -0.274, -0.322), (0.211, -0.523, 0.312))


def fsim(a: Tensor, b: Tensor, *, data_range: float = 1.0) -> Tensor:
    """FSIM of the luminance per picture, in (0, 1], without gradient (it is a score, not a loss).

    Args:
        a, b: float (B, 3, H, W), RGB in [0, data_range], sides ≥ 16. data_range: 1.0 or 255.

    Returns:
        (B,), float32 (float64 for float64 input); NaN where both pictures are constant (0/0). Symmetric up to rounding.
        Equals piq's `fsim(chromatic=False)`.
    """
    check_pair(a, b, data_range=data_range, min_side=MIN_SIDE, what="fsim")
    return _fsim(a, b, data_range, chromatic=False)


def fsimc(a: Tensor, b: Tensor, *, data_range: float = 1.0) -> Tensor:
    """FSIMc: `fsim` with the chroma term. Arguments, result and limits as there; equals piq's `fsim(chromatic=True)`."""
    check_pair(a, b, data_range=data_range, min_side=MIN_SIDE, what="fsimc")
    return _fsim(a, b, data_range, chromatic=True)


@dataclass(frozen=True)
class _Bank:
    """filters: (orientations, scales, H, W), zero frequency at the corner. noise: per orientation, what multiplies the
    median amplitude of the finest scale to give the noise threshold."""

    filters: Tensor
    noise: tuple[float, ...]


def _frequencies(n: int) -> Tensor:
    """Centred frequencies as the reference grid has them: k/n for even n, k/(n − 1) for odd n."""
    if n % 2:
        return torch.arange(-(n - 1) // 2, (n - 1) // 2 + 1, dtype=torch.float64) / max(n - 1, 1)
    return torch.arange(-n // 2, n // 2, dtype=torch.float64) / n


@lru_cache(maxsize=8)
def _bank(h: int, w: int, dtype: torch.dtype, device: torch.device) -> _Bank:
    """Kovesi's log-Gabor bank (Eqs. 4–6 of the paper) and his noise constants, computed once per size in float64."""
    fy, fx = torch.meshgrid(_frequencies(h), _frequencies(w), indexing="ij")
    radius, theta = torch.fft.ifftshift(torch.hypot(fy, fx)), torch.fft.ifftshift(torch.atan2(-fy, fx))
    low_pass = 1 / (1 + (radius / 0.45) ** 30)
    radius[0, 0] = 1.0
    radial = []
    for s in range(SCALES):
        g = (
            torch.exp(-(torch.log(radius * MIN_WAVELENGTH * MULTIPLIER**s) ** 2) / (2 * math.log(SIGMA_F) ** 2))
            * low_pass
        )
        g[0, 0] = 0.0
        radial.append(g)
    angular = []
    for o in range(ORIENTATIONS):
        angle = o * math.pi / ORIENTATIONS
        away = torch.atan2(torch.sin(theta - angle), torch.cos(theta - angle)).abs()
        angular.append(torch.exp(-(away**2) / (2 * SIGMA_THETA**2)))
    filters = torch.stack(angular)[:, None] * torch.stack(radial)[None]
    # Noise power = (median A₁² / ln 2) / Σ|F₁|². Its energy sums to 2·power·Σ(Σ_s f_s)² over the impulse responses f_s:
    # the squares and the cross terms of the reference formula are one square. τ² is half of that; Rayleigh mean and spread follow.
    impulses = torch.fft.ifft2(filters).real * math.sqrt(h * w)
    joint = impulses.sum(1).square().sum((-2, -1))
    power = 1 / math.log(2) / filters[:, 0].square().sum((-2, -1))
    tau = torch.sqrt(power * joint)
    threshold = tau * (math.sqrt(math.pi / 2) + K_NOISE * math.sqrt(2 - math.pi / 2)) / PC2_RESCALE
    return _Bank(filters.to(device=device, dtype=dtype), tuple(threshold.tolist()))


def _phase_congruency(y: Tensor) -> Tensor:
    """PC₂ of a luminance plane (H, W), in [0, 1]; zero for a constant plane."""
    if bool(y.amax() == y.amin()):
        return torch.zeros_like(y)
    bank = _bank(y.shape[-2], y.shape[-1], y.dtype, y.device)
    spectrum = torch.fft.fft2(y)
    energy, amplitude = torch.zeros_like(y), torch.zeros_like(y)
    # One orientation at a time keeps the four complex responses in cache.
    for filters, noise in zip(bank.filters, bank.noise, strict=True):
        response = torch.fft.ifft2(spectrum * filters)
        even, odd = response.real.contiguous(), response.imag.contiguous()
        sizes = (even * even).addcmul_(odd, odd).sqrt_()
        e, o = even.sum(0), odd.sum(0)
        length = torch.hypot(e, o).clamp_min_(torch.finfo(y.dtype).tiny)
        # Σ_s of Re − |Im| of each response turned by the mean phase; Σ Re is the length of the sum itself.
        off_phase = (even * o).addcmul_(odd, e, value=-1).abs_().sum(0) / length
        energy += (length - off_phase - noise * sizes[0].median()).clamp_min_(0)
        amplitude += sizes.sum(0)
    return energy / amplitude.clamp_min(torch.finfo(y.dtype).tiny)


def _similarity(x: Tensor, y: Tensor, constant: float) -> Tensor:
    """(2xy + T)/(x² + y² + T), Eqs. 8, 9, 13."""
    return (2 * x * y + constant) / (x * x + y * y + constant)


def _gradient(planes: Tensor) -> Tensor:
    """Scharr gradient magnitude of planes (N, H, W), zeros beyond the border."""
    k = (
        torch.tensor([[3.0, 0.0, -3.0], [10.0, 0.0, -10.0], [3.0, 0.0, -3.0]], dtype=planes.dtype, device=planes.device)
        / 16
    )
    g = F.conv2d(planes[:, None], torch.stack([k, k.T])[:, None], padding=1)
    return torch.hypot(g[:, 0], g[:, 1])


@torch.no_grad()
def _fsim(a: Tensor, b: Tensor, data_range: float, *, chromatic: bool) -> Tensor:
    out = []
    for x, y in zip(a, b, strict=True):
        pair = torch.stack([working(x), working(y)])
        pooled = F.avg_pool2d(pair, max(1, round(min(pair.shape[-2:]) / 256)))
        matrix = torch.tensor(_YIQ, dtype=pooled.dtype, device=pooled.device) * (255 / data_range)
        yiq = torch.einsum("ij,njhw->inhw", matrix if chromatic else matrix[:1], pooled)
        pc = torch.stack([_phase_congruency(plane) for plane in yiq[0]])
        gradient = _gradient(yiq[0])
        weight = pc.amax(0)
        score = _similarity(pc[0], pc[1], T1) * _similarity(gradient[0], gradient[1], T2)
        if chromatic:
            colour = _similarity(yiq[1, 0], yiq[1, 1], T3) * _similarity(yiq[2, 0], yiq[2, 1], T4)
            score = score * colour.abs() ** CHROMA_WEIGHT
        total = weight.sum()
        # 0/0 where both are constant: left as NaN, which `compute` turns into a missing value with the reason.
        out.append((score * weight).sum() / total)
    return torch.stack(out) if out else working(a).new_zeros(0)
