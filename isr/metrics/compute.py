"""Metrics by name on lists of pictures: one table of what exists, one function that runs it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from ..errors import UsageError
from ..images import as_image
from . import clip, fsim, inception, lpips, psnr, ssim, vif
from .features import frechet_distance, precision
from .pairs import check_pair
from .result import MetricResult, NotAvailable

__all__ = ["METRICS", "Metric", "compute", "metric_names"]

PRECISION_K = 5

#: (a, b, data range) → (B,) values; a is the judged picture, b what it is compared with.
PairFunction = Callable[[Tensor, Tensor, float], Tensor]


@dataclass(frozen=True)
class Metric:
    """What can be known of a metric before it is computed.

    Attributes:
        name, convention, higher_is_better: as in `MetricResult`.
        symmetric: a and b may be swapped.
        per: "pair", or "set" (one value for all of a against all of b).
        min_side: smallest side in pixels it is defined for.
        undefined: what a NaN means, where the formula is 0/0.
        pair: the function of the metrics that need no weights; None for learned ones.
        model: for learned ones, the key in `compute(models=…)` and the loader that looks in the user's caches.
        needs_prompts: it compares a with `prompts` and ignores b.
    """

    name: str
    convention: str
    higher_is_better: bool
    symmetric: bool
    per: Literal["pair", "set"] = "pair"
    min_side: int = 1
    undefined: str = "the formula is 0/0"
    pair: PairFunction | None = None
    model: str = ""
    load: Callable[[], Any] | None = None
    needs_prompts: bool = False


def _table(*metrics: Metric) -> dict[str, Metric]:
    return {m.name: m for m in metrics}


METRICS: dict[str, Metric] = _table(
    Metric("psnr", psnr.PSNR_CONVENTION, True, True, pair=psnr._psnr),
    Metric("ssim", ssim.SSIM_CONVENTION, True, True, min_side=ssim.SIZE, pair=ssim._ssim),
    Metric(
        "vifp", vif.VIFP_CONVENTION, True, False, min_side=vif.MIN_SIDE, pair=vif._vifp,
        undefined="the reference b is constant and holds no information (0/0)",
    ),
    Metric(
        "fsim", fsim.FSIM_CONVENTION, True, True, min_side=fsim.MIN_SIDE,
        pair=lambda a, b, r: fsim._fsim(a, b, r, chromatic=False), undefined="both pictures are constant (0/0)",
    ),
    Metric(
        "fsimc", fsim.FSIMC_CONVENTION, True, True, min_side=fsim.MIN_SIDE,
        pair=lambda a, b, r: fsim._fsim(a, b, r, chromatic=True), undefined="both pictures are constant (0/0)",
    ),
    Metric(
        "lpips", lpips.lpips_convention("alex"), False, True, min_side=lpips.MIN_SIDE, model="lpips", load=lambda: lpips.load_lpips("alex"),
    ),
    Metric(
        "lpips-vgg", lpips.lpips_convention("vgg"), False, True, min_side=lpips.MIN_SIDE, model="lpips-vgg", load=lambda: lpips.load_lpips("vgg"),
    ),
    Metric(
        "clip", clip.clip_convention(), True, False, model="clip", load=clip.load_clip, needs_prompts=True,
    ),
    Metric(
        "fid", f"Fréchet distance, sample covariances, float64; {inception.INCEPTION_CONVENTION}", False, True, per="set",
        model="inception", load=inception.load_inception,
    ),
    Metric(
        "precision",
        f"generative precision of a against the manifold of b, k = {PRECISION_K} neighbours; {inception.INCEPTION_CONVENTION}",
        True, False, per="set", model="inception", load=inception.load_inception,
    ),
)  # fmt: skip


def metric_names() -> tuple[str, ...]:
    """Every name `compute` knows, whether or not its weights are here."""
    return tuple(METRICS)


def compute(
    names: Sequence[str],
    a: Sequence[Any] | Tensor,
    b: Sequence[Any] | Tensor,
    *,
    prompts: Sequence[str] | None = None,
    data_range: float = 1.0,
    models: Mapping[str, Any] | None = None,
    loaded: dict[str, Any] | None = None,
) -> dict[str, MetricResult]:
    """Metrics of pictures a against pictures b, pair by pair.

    Args:
        names: of `metric_names()`.
        a: the judged pictures (edits of immunized images, or the immunized images). Either a sequence of anything
            `isr.images.as_image` takes (8-bit sRGB; pairs may differ in size from one another, the two of a pair may not), or
            one float tensor (B, 3, H, W) in [0, data_range].
        b: what they are compared with, in the same order: the control edits, or the originals.
        prompts: one per picture of a; only "clip" needs them.
        data_range: of tensors, 1.0 or 255; pictures have their own.
        models: networks to use instead of those in the user's caches, by key: "lpips", "lpips-vgg" (a, b → (B,)),
            "clip" (x, prompts → (B,)), "inception" (x → features (B, D)), all on RGB in [0, 1]. A result then says so.
        loaded: keeps the networks that are read from the caches; hand the same dict to further calls and each is read once.

    Returns:
        One result per name, in order. Where weights are missing, a picture is too small or a formula is 0/0, the value is
        `NotAvailable` with the reason: never another metric, never a number. Nothing is downloaded.

    Raises:
        UsageError: unknown names, unequal counts or sizes, values out of range, missing prompts.
    """
    if isinstance(names, str):
        raise UsageError(f"names must be a sequence of metric names, such as [{names!r}]")
    for name in names:
        if name not in METRICS:
            raise UsageError(f"no metric is called {name!r}; there are {', '.join(METRICS)}")
    pairs = _pairs(a, b, data_range)
    if prompts is not None and len(prompts) != len(pairs):
        raise UsageError(f"prompts must hold one prompt per picture: {len(pairs)} pictures, {len(prompts)} prompts")
    given = dict(models or {})
    unknown = set(given) - {m.model for m in METRICS.values() if m.model}
    if unknown:
        raise UsageError(f"models has unknown keys {sorted(unknown)}; there are lpips, lpips-vgg, clip, inception")
    held = {} if loaded is None else loaded
    missing: dict[str, NotAvailable] = {}
    features: list[Tensor] = []
    results: dict[str, MetricResult] = {}
    for name in names:
        metric = METRICS[name]
        if metric.needs_prompts and prompts is None:
            raise UsageError(f"the metric {name!r} compares pictures with their prompts: give prompts=")
        convention = metric.convention
        if metric.model in given:
            convention = f"{convention}; with the network given by the caller ({type(given[metric.model]).__name__})"
        if metric.pair is not None:
            values = _pairwise(metric, metric.pair, pairs, data_range)
        else:
            model = given.get(metric.model)
            if model is None:
                if metric.load is not None and metric.model not in held and metric.model not in missing:
                    found = metric.load()
                    if isinstance(found, NotAvailable):
                        missing[metric.model] = found
                    else:
                        held[metric.model] = found
                model = missing.get(metric.model, held.get(metric.model))
            values = _learned(metric, model, pairs, prompts=prompts, data_range=data_range, features=features)
        results[name] = MetricResult(name, values, convention, metric.higher_is_better, metric.per)
    return results


def _pairs(a: Sequence[Any] | Tensor, b: Sequence[Any] | Tensor, data_range: float) -> list[tuple[Tensor, Tensor]]:
    """Each pair as two tensors (1, 3, H, W) with values in [0, data_range]; everything checked."""
    if len(a) != len(b):
        raise UsageError(f"a and b must hold the same number of pictures, not {len(a)} and {len(b)}")
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        if not (isinstance(a, Tensor) and isinstance(b, Tensor)):
            raise UsageError("a and b must both be tensors or both be sequences of pictures")
        check_pair(a, b, data_range=data_range, min_side=1, what="compute")
        return [(a[i : i + 1].detach(), b[i : i + 1].detach()) for i in range(len(a))]
    out = []
    for i, (one, other) in enumerate(zip(a, b, strict=True)):
        x, y = _pixels(one, f"a[{i}]", data_range), _pixels(other, f"b[{i}]", data_range)
        if x.shape != y.shape:
            raise UsageError(
                f"a[{i}] is {x.shape[-1]}×{x.shape[-2]} and b[{i}] is {y.shape[-1]}×{y.shape[-2]} pixels; pictures of different "
                "sizes have no pairwise metric, so resize one of them yourself and say so"
            )
        out.append((x, y))
    return out


def _pixels(picture: Any, name: str, data_range: float) -> Tensor:
    array = as_image(picture, name=name).array()
    return torch.tensor(array).permute(2, 0, 1)[None].float() / 255 * data_range


def _value(x: float, metric: Metric) -> float | NotAvailable:
    return NotAvailable(metric.undefined) if math.isnan(x) else x


def _too_small(metric: Metric, x: Tensor) -> NotAvailable | None:
    if min(x.shape[-2:]) >= metric.min_side:
        return None
    return NotAvailable(
        f"needs at least {metric.min_side}×{metric.min_side} pixels, the picture has {x.shape[-1]}×{x.shape[-2]}"
    )


def _pairwise(
    metric: Metric, function: PairFunction, pairs: Sequence[tuple[Tensor, Tensor]], data_range: float
) -> tuple[float | NotAvailable, ...]:
    out: list[float | NotAvailable] = []
    with torch.no_grad():
        for x, y in pairs:
            small = _too_small(metric, x)
            out.append(small if small is not None else _value(float(function(x, y, data_range)[0]), metric))
    return tuple(out)


def _learned(
    metric: Metric,
    model: Any,
    pairs: Sequence[tuple[Tensor, Tensor]],
    *,
    prompts: Sequence[str] | None,
    data_range: float,
    features: list[Tensor],
) -> tuple[float | NotAvailable, ...]:
    """`features` holds both sets' features once some metric of the same call has computed them."""
    n = 1 if metric.per == "set" else len(pairs)
    if isinstance(model, NotAvailable):
        return (model,) * n
    with torch.no_grad():
        if metric.per == "set":
            if not pairs:
                return (NotAvailable("there are no pictures"),)
            if not features:
                features.extend(torch.cat([model(pair[i] / data_range) for pair in pairs]) for i in (0, 1))
            least = PRECISION_K + 1 if metric.name == "precision" else 2
            if len(pairs) < least:
                return (NotAvailable(f"needs at least {least} pictures, there are {len(pairs)}"),)
            a, b = features
            return (precision(a, b, k=PRECISION_K) if metric.name == "precision" else frechet_distance(a, b),)
        out: list[float | NotAvailable] = []
        for i, (x, y) in enumerate(pairs):
            small = _too_small(metric, x)
            if small is not None:
                out.append(small)
            elif metric.needs_prompts and prompts is not None:
                out.append(_value(float(model(x / data_range, [prompts[i]])[0]), metric))
            else:
                out.append(_value(float(model(x / data_range, y / data_range)[0]), metric))
        return tuple(out)
