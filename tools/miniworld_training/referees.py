"""Training of the three referees. They share nothing: another kind of network, seed, pictures and kinds of corruption each.

Attribute heads learn from renders and from the autoencoder's copies of them, some through noisy latents (the labels
stay). Degradation heads learn from the editor's edits of disturbed and undisturbed image latents (`disturbed.py`) and
from generic corruptions. Nothing here has seen an attacked picture.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from isr.judges._referee_nets import CONFIG, WEIGHTS, build
from safetensors.torch import save_file
from torch import nn

from .autoencoder import encode, pixels
from .disturbed import FIRST
from .loop import Plan, fit
from .pairs import HEADS, Pairs
from .ranks import Ranks

__all__ = ["CORRUPT", "REFEREES", "join", "train_attributes", "train_degradation"]

REFEREES: dict[str, dict[str, Any]] = {
    "a": {"kind": "plain", "width": 144, "seed": 101, "rate": 1.5e-3},
    "b": {"kind": "residual", "width": 128, "seed": 202, "rate": 1.2e-3},
    "c": {"kind": "patches", "width": 128, "seed": 303, "rate": 8e-4},
}
_SPAN, _EXAM = 6500, 400


def _noise_blur_blocks(x: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """White noise, blur, or random squares, a third each."""
    y, k = x.clone(), len(x) // 3
    y[:k] += torch.randn_like(y[:k]) * torch.empty(k, 1, 1, 1).uniform_(0.15, 0.4)
    for j in range(k, 2 * k):
        small = F.avg_pool2d(y[j : j + 1], int(rng.integers(4, 7)))
        y[j] = F.interpolate(small, size=64, mode="bilinear")[0]
    mask = F.interpolate((torch.rand(len(x) - 2 * k, 1, 16, 16) < 0.12).float(), size=64)
    y[2 * k :] = y[2 * k :] * (1 - mask) + mask * (torch.rand(len(x) - 2 * k, 3, 64, 64) * 2 - 1)
    return y.clamp(-1, 1)


def _warps_ghosts_salt(x: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Local warps, a second picture shining through, or salt and pepper, a third each."""
    y, k = x.clone(), len(x) // 3
    shift = F.interpolate(torch.randn(k, 2, 9, 9), size=64, mode="bicubic").permute(0, 2, 3, 1) * 0.12
    grid = F.affine_grid(torch.eye(2, 3)[None].repeat(k, 1, 1), [k, 3, 64, 64], align_corners=False) + shift
    y[:k] = F.grid_sample(y[:k], grid, padding_mode="reflection", align_corners=False)
    weight = torch.empty(k, 1, 1, 1).uniform_(0.3, 0.5)
    y[k : 2 * k] = (1 - weight) * y[k : 2 * k] + weight * x.roll(int(rng.integers(1, len(x))), 0)[k : 2 * k]
    hit = torch.rand(len(x) - 2 * k, 1, 64, 64) < float(rng.uniform(0.06, 0.2))
    y[2 * k :] = torch.where(hit, torch.sign(torch.randn_like(y[2 * k :])), y[2 * k :])
    return y.clamp(-1, 1)


def _tiles_bands_colours(x: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Shuffled tiles, coloured bands, or smooth colour clouds, a third each."""
    y, k = x.clone(), len(x) // 3
    for j in range(k):
        tiles = y[j].unfold(1, 8, 8).unfold(2, 8, 8).reshape(3, 64, 8, 8)
        order = np.arange(64)
        moved = rng.choice(64, 14, replace=False)
        order[moved] = order[np.roll(moved, 1)]
        y[j] = tiles[:, order].reshape(3, 8, 8, 8, 8).permute(0, 1, 3, 2, 4).reshape(3, 64, 64)
    wave = torch.sin(torch.arange(64) * float(rng.uniform(0.4, 1.6)) + float(rng.uniform(0, 6)))
    y[k : 2 * k] += wave[None, None, :, None] * torch.empty(k, 3, 1, 1).uniform_(-0.4, 0.4)
    y[2 * k :] += F.interpolate(torch.randn(len(x) - 2 * k, 3, 6, 6) * 0.35, size=64, mode="bicubic")
    return y.clamp(-1, 1)


CORRUPT: Mapping[str, Callable[[torch.Tensor, np.random.Generator], torch.Tensor]] = {
    "a": _noise_blur_blocks,
    "b": _warps_ghosts_salt,
    "c": _tiles_bands_colours,
}


def _harmless(x: torch.Tensor) -> torch.Tensor:
    """Small changes of gain, tint and grain that change no answer."""
    n = len(x)
    x = x * (1 + 0.06 * torch.randn(n, 1, 1, 1)) + 0.03 * torch.randn(n, 3, 1, 1)
    return (x + 0.025 * torch.rand(n, 1, 1, 1) * torch.randn_like(x)).clamp(-1, 1)


@torch.no_grad()
def _copies(work: Path, pictures: npt.NDArray[np.uint8], noise: float, seed: int) -> npt.NDArray[np.uint8]:
    """The autoencoder's copies of sources and targets, (2N, 64, 64, 3) uint8, through latents with up to `noise` std."""
    vae = AutoencoderKL.from_pretrained(work / "autoencoder" / "vae").eval()
    generator = torch.Generator().manual_seed(seed)
    out = []
    for i in range(0, len(pictures), 64):
        z = encode(vae, pictures[i : i + 64])
        level = noise * torch.rand(len(z), 1, 1, 1, generator=generator)
        y = vae.decode(z + level * torch.randn(z.shape, generator=generator) / vae.config.scaling_factor).sample
        out.append(((y.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy())
    return np.concatenate(out)


def _config(name: str) -> dict[str, Any]:
    return {
        "kind": REFEREES[name]["kind"],
        "width": REFEREES[name]["width"],
        "heads": {head: list(values) for head, values in HEADS.items()},
        "thresholds": {"asked": 0.0, "degradation": 0.0},
    }


def _pictures(name: str, data: Pairs, *, tiny: bool) -> tuple[npt.NDArray[np.uint8], torch.Tensor, int]:
    """This referee's renders (sources and targets), their labels, and how many may be trained on."""
    first, span = (0, 20) if tiny else (FIRST[name], _SPAN)
    flat = data.pictures[first : first + span].reshape(-1, *data.pictures.shape[2:])
    marks = torch.from_numpy(data.labels[first : first + span].reshape(len(flat), -1).astype(np.int64))
    return flat, marks, len(flat) - (4 if tiny else _EXAM)


def _plan(plan: Plan, name: str) -> Plan:
    return Plan(**{**plan.__dict__, "rate": REFEREES[name]["rate"], "average": 0.99})


def train_attributes(name: str, work: Path, data: Pairs, *, plan: Plan, tiny: bool = False) -> None:
    """Train the attribute heads of one referee in `work/referee-<name>/attributes`."""
    config, seed = _config(name), int(REFEREES[name]["seed"])
    flat, marks, usable = _pictures(name, data, tiny=tiny)
    copied = 16 if tiny else 1200
    copies = _copies(work, flat[:copied], 0.4, seed)
    torch.manual_seed(seed)
    net = build(config)
    size = 8 if tiny else 24
    exam = pixels(flat[usable:])

    def loss(step: int) -> torch.Tensor:
        rng = np.random.default_rng([seed, step])
        i, j = rng.integers(0, usable, size), rng.integers(0, copied, size // 2)
        truth = torch.cat([marks[i], marks[j]])
        logits = net.attributes(_harmless(torch.cat([pixels(flat[i]), pixels(copies[j])])))
        total = torch.zeros(())
        for k, head in enumerate(config["heads"]):
            if bool((truth[:, k] >= 0).any()):
                total = total + F.cross_entropy(logits[head], truth[:, k], ignore_index=-1)
        return total

    def check(averages: Mapping[str, nn.Module]) -> dict[str, float]:
        held = copy.deepcopy(net).eval()
        held.scene, held.heads = averages["scene"], averages["heads"]
        right = {}
        with torch.no_grad():
            logits = held.attributes(exam)
        for k, head in enumerate(config["heads"]):
            known = marks[usable:, k] >= 0
            if bool(known.any()):
                right[f"accuracy_{head}"] = float((logits[head].argmax(1) == marks[usable:, k])[known].float().mean())
        return right

    fit(
        {"scene": net.scene, "heads": net.heads},
        loss,
        plan=_plan(plan, name),
        ranks=Ranks(),
        folder=work / f"referee-{name}" / "attributes",
        check=check,
        seed=seed,
    )


def train_degradation(name: str, work: Path, data: Pairs, *, plan: Plan, tiny: bool = False) -> None:
    """Train the degradation head of one referee in `work/referee-<name>/degradation`."""
    config, seed = _config(name), int(REFEREES[name]["seed"])
    flat, _, usable = _pictures(name, data, tiny=tiny)
    edits = np.load(work / "edits" / f"{name}.npz")
    edited, strength = edits["edited"], edits["strength"]
    source = data.pictures[edits["pair"], 0]
    last = len(edited) - (2 if tiny else 60)  # the rest is held out
    clean, bad = (np.flatnonzero((strength[:last] > 0) == flag) for flag in (False, True))
    torch.manual_seed(seed + 1)
    net = build(config)
    half = 4 if tiny else 14
    plain_count = 4 if tiny else 7

    def loss(step: int) -> torch.Tensor:
        rng = np.random.default_rng([seed, 1, step])
        good, spoilt = rng.choice(clean, half), rng.choice(bad, half)
        plain, broken = rng.integers(0, usable, plain_count), rng.integers(0, usable, plain_count)
        y = torch.cat(
            [
                pixels(edited[good]),
                pixels(flat[plain]),
                pixels(edited[spoilt]),
                CORRUPT[name](pixels(flat[broken]), rng),
            ]
        )
        origin = torch.cat([pixels(source[good]), pixels(flat[plain]), pixels(source[spoilt]), pixels(flat[broken])])
        if rng.random() < 0.5:
            y, origin = y.flip(-1), origin.flip(-1)
        wrong = torch.cat([torch.zeros(half + plain_count), torch.ones(half + plain_count)])
        return F.binary_cross_entropy_with_logits(net.degradation(_harmless(y), origin), wrong)

    def check(averages: Mapping[str, nn.Module]) -> dict[str, float]:
        held = copy.deepcopy(net).eval()
        held.quality, held.degraded = averages["quality"], averages["degraded"]
        with torch.no_grad():
            scores = held.degradation(pixels(edited[last:]), pixels(source[last:]))
        spoilt = torch.from_numpy(strength[last:] > 0)
        pairs = scores[spoilt][:, None] > scores[~spoilt][None]
        return {"degradation_auc": float(pairs.float().mean()) if pairs.numel() else float("nan")}

    fit(
        {"quality": net.quality, "degraded": net.degraded},
        loss,
        plan=_plan(plan, name),
        ranks=Ranks(),
        folder=work / f"referee-{name}" / "degradation",
        check=check,
        seed=seed + 1,
    )


def join(name: str, work: Path) -> None:
    """Both trained parts → `work/referee-<name>/{config.json, model.safetensors}` (float16)."""
    folder, config = work / f"referee-{name}", _config(name)
    net = build(config)
    for part, names in (("attributes", ("scene", "heads")), ("degradation", ("quality", "degraded"))):
        state = torch.load(folder / part / "checkpoint.pt", weights_only=True)["averages"]
        for key in names:
            getattr(net, key).load_state_dict(state[key])
    state = {k: v.half().contiguous() if v.is_floating_point() else v.contiguous() for k, v in net.state_dict().items()}
    save_file(state, folder / WEIGHTS)
    (folder / CONFIG).write_text(json.dumps(config, indent=1), "utf-8")
