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
from isr.judges._referee_nets import CONFIG, WEIGHTS, build
from safetensors.torch import save_file
from torch import nn

from .autoencoder import encode, pixels, trained_autoencoder
from .disturbed import FIRST
from .loop import Plan, fit
from .models import MODELS
from .pairs import HEADS, Pairs
from .ranks import Ranks

__all__ = ["CORRUPT", "REFEREES", "join", "train_attributes", "train_degradation"]

REFEREES: dict[str, dict[str, Any]] = {
    "a": {"kind": "plain", "width": 144, "seed": 101, "rate": 1.5e-3},
    "b": {"kind": "residual", "width": 128, "seed": 202, "rate": 1.2e-3},
    "c": {"kind": "patches", "width": 128, "seed": 303, "rate": 8e-4},
}
_SPAN, _EXAM = 12_000, 400
_EDIT = 0.15  # how degraded an undisturbed edit counts in training


def _noise_blur_blocks(x: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """White noise, blur, or random squares, a third each."""
    y, k = x.clone(), len(x) // 3
    y[:k] += torch.randn_like(y[:k]) * x.new_empty(k, 1, 1, 1).uniform_(0.15, 0.4)
    for j in range(k, 2 * k):
        small = F.avg_pool2d(y[j : j + 1], int(rng.integers(4, 7)))
        y[j] = F.interpolate(small, size=64, mode="bilinear")[0]
    mask = F.interpolate((torch.rand(len(x) - 2 * k, 1, 16, 16, device=x.device) < 0.12).float(), size=64)
    y[2 * k :] = y[2 * k :] * (1 - mask) + mask * (torch.rand(len(x) - 2 * k, 3, 64, 64, device=x.device) * 2 - 1)
    return y.clamp(-1, 1)


def _warps_ghosts_salt(x: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Local warps, a second picture shining through, or salt and pepper, a third each."""
    y, k = x.clone(), len(x) // 3
    shift = F.interpolate(torch.randn(k, 2, 9, 9, device=x.device), size=64, mode="bicubic").permute(0, 2, 3, 1) * 0.12
    grid = (
        F.affine_grid(torch.eye(2, 3, device=x.device)[None].repeat(k, 1, 1), [k, 3, 64, 64], align_corners=False)
        + shift
    )
    y[:k] = F.grid_sample(y[:k], grid, padding_mode="reflection", align_corners=False)
    weight = x.new_empty(k, 1, 1, 1).uniform_(0.3, 0.5)
    y[k : 2 * k] = (1 - weight) * y[k : 2 * k] + weight * x.roll(int(rng.integers(1, len(x))), 0)[k : 2 * k]
    hit = torch.rand(len(x) - 2 * k, 1, 64, 64, device=x.device) < float(rng.uniform(0.06, 0.2))
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
    wave = torch.sin(torch.arange(64, device=x.device) * float(rng.uniform(0.4, 1.6)) + float(rng.uniform(0, 6)))
    y[k : 2 * k] += wave[None, None, :, None] * x.new_empty(k, 3, 1, 1).uniform_(-0.4, 0.4)
    y[2 * k :] += F.interpolate(torch.randn(len(x) - 2 * k, 3, 6, 6, device=x.device) * 0.35, size=64, mode="bicubic")
    return y.clamp(-1, 1)


CORRUPT: Mapping[str, Callable[[torch.Tensor, np.random.Generator], torch.Tensor]] = {
    "a": _noise_blur_blocks,
    "b": _warps_ghosts_salt,
    "c": _tiles_bands_colours,
}


def _harmless(x: torch.Tensor) -> torch.Tensor:
    """Small changes of gain, tint and grain that change no answer."""
    n, where = len(x), x.device
    x = x * (1 + 0.06 * torch.randn(n, 1, 1, 1, device=where)) + 0.03 * torch.randn(n, 3, 1, 1, device=where)
    return (x + 0.025 * torch.rand(n, 1, 1, 1, device=where) * torch.randn_like(x)).clamp(-1, 1)


@torch.no_grad()
def _copies(
    work: Path, pictures: npt.NDArray[np.uint8], noise: float, seed: int, device: torch.device
) -> npt.NDArray[np.uint8]:
    """The autoencoders' copies of pictures (N, 64, 64, 3) uint8, through latents with up to `noise` std; they take turns."""
    folders = sorted({m.autoencoder for m in MODELS.values() if (work / m.autoencoder / "vae").is_dir()})
    generator = torch.Generator().manual_seed(seed)
    out = np.empty_like(pictures)
    for k, folder in enumerate(folders):
        vae = trained_autoencoder(work / folder).to(device)
        own = pictures[k :: len(folders)]
        for i in range(0, len(own), 64):
            z = encode(vae, own[i : i + 64])
            level = noise * torch.rand(len(z), 1, 1, 1, generator=generator).to(z)
            z = z + level * torch.randn(z.shape, generator=generator).to(z) / vae.config.scaling_factor
            y = ((vae.decode(z).sample.clamp(-1, 1) + 1) * 127.5).round().byte()
            rows = slice(k + i * len(folders), k + (i + len(z)) * len(folders), len(folders))
            out[rows] = y.permute(0, 2, 3, 1).cpu().numpy()
    return out


def _config(name: str) -> dict[str, Any]:
    return {
        "kind": REFEREES[name]["kind"],
        "width": REFEREES[name]["width"],
        "heads": {head: list(values) for head, values in HEADS.items()},
        "thresholds": {"asked": 0.0, "degradation": 0.0},
    }


def _pictures(
    name: str, work: Path, *, tiny: bool
) -> tuple[npt.NDArray[np.uint8], torch.Tensor, npt.NDArray[np.uint8], torch.Tensor]:
    """This referee's renders of every style (sources and targets) with their labels: to train on, and held out."""
    kept: list[Any] = [[], [], [], []]
    for folder in sorted({m.pairs for m in MODELS.values() if (work / m.pairs / "edits.json").is_file()}):
        data = Pairs.load(work / folder)
        first, span = (0, 20) if tiny else (min(FIRST[name], max(0, len(data) - _SPAN)), _SPAN)
        flat = data.pictures[first : first + span].reshape(-1, *data.pictures.shape[2:])
        marks = torch.from_numpy(data.labels[first : first + span].reshape(len(flat), -1).astype(np.int64))
        cut = len(flat) - (4 if tiny else _EXAM)
        for part, value in zip(kept, (flat[:cut], marks[:cut], flat[cut:], marks[cut:]), strict=True):
            part.append(value)
    return np.concatenate(kept[0]), torch.cat(kept[1]), np.concatenate(kept[2]), torch.cat(kept[3])


def _plan(plan: Plan, name: str) -> Plan:
    return Plan(**{**plan.__dict__, "rate": REFEREES[name]["rate"], "average": 0.99 if plan.steps < 2000 else 0.998})


def train_attributes(name: str, work: Path, *, plan: Plan, ranks: Ranks, batch: int = 24, tiny: bool = False) -> None:
    """Train the attribute heads of one referee in `work/referee-<name>/attributes`."""
    config, seed, device = _config(name), int(REFEREES[name]["seed"]), ranks.device
    flat, marks, exam, truths = _pictures(name, work, tiny=tiny)
    marks, truths = marks.to(device), truths.to(device)
    copied = np.sort(np.random.default_rng(seed).permutation(len(flat))[: 16 if tiny else 9000 if ranks.gpu else 1200])
    copies = _copies(work, flat[copied], 0.4, seed, device)
    torch.manual_seed(seed)
    net = build(config).to(device)
    size = 8 if tiny else batch
    shown = pixels(exam, device)

    def loss(step: int) -> torch.Tensor:
        rng = np.random.default_rng([seed, step])
        i, j = rng.integers(0, len(flat), size), rng.integers(0, len(copied), size // 2)
        truth = marks[torch.from_numpy(np.concatenate([i, copied[j]])).to(device)]
        logits = net.attributes(_harmless(torch.cat([pixels(flat[i], device), pixels(copies[j], device)])))
        total = torch.zeros((), device=device)
        for k, head in enumerate(config["heads"]):
            known = (truth[:, k] >= 0).float()
            each = F.cross_entropy(logits[head], truth[:, k].clamp(min=0), reduction="none")
            total = total + (each * known).sum() / known.sum().clamp(min=1)
        return total

    def check(averages: Mapping[str, nn.Module]) -> dict[str, float]:
        held = copy.deepcopy(net).eval()
        held.scene, held.heads = averages["scene"], averages["heads"]
        right = {}
        with torch.no_grad():
            logits = held.attributes(shown)
        for k, head in enumerate(config["heads"]):
            known = truths[:, k] >= 0
            if bool(known.any()):
                right[f"accuracy_{head}"] = float((logits[head].argmax(1) == truths[:, k])[known].float().mean())
        return right

    fit(
        {"scene": net.scene, "heads": net.heads},
        loss,
        plan=_plan(plan, name),
        ranks=ranks,
        folder=work / f"referee-{name}" / "attributes",
        check=check,
        seed=seed,
    )


def train_degradation(name: str, work: Path, *, plan: Plan, ranks: Ranks, batch: int = 42, tiny: bool = False) -> None:
    """Train the degradation head of one referee in `work/referee-<name>/degradation`.

    What is surely fine is the autoencoders' copies of renders. The editor's own undisturbed edits stand above them
    (target `_EDIT`), since some are smudged: the net has to find out which resemble which. The target of a disturbed edit
    grows with the disturbance, 1 from 0.9 standard deviations on, so that the logit orders mild and severe ones; where it
    counts as degraded is set from labels.
    """
    config, seed, device = _config(name), int(REFEREES[name]["seed"]), ranks.device
    flat, _, _, _ = _pictures(name, work, tiny=tiny)
    edits = np.load(work / "edits" / f"{name}.npz")
    edited, source, strength = edits["edited"], edits["source"], edits["strength"]
    last = len(edited) - (2 if tiny else min(800, len(edited) // 8))  # the rest is held out
    clean, bad = (np.flatnonzero((strength[:last] > 0) == flag) for flag in (False, True))
    torch.manual_seed(seed + 1)
    net = build(config).to(device)
    part = 4 if tiny else batch // 4
    copied = np.random.default_rng([seed, 5]).permutation(len(flat))[: 16 if tiny else 3000 if ranks.gpu else 1500]
    copies, origins = _copies(work, flat[copied], 0.15, seed + 7, device), flat[copied]

    def loss(step: int) -> torch.Tensor:
        rng = np.random.default_rng([seed, 1, step])
        good, spoilt = rng.choice(clean, part), rng.choice(bad, part)
        plain, broken = rng.integers(0, len(copies), part), rng.integers(0, len(flat), part)
        ruined = pixels(flat[broken], device)
        y = torch.cat(
            [pixels(np.concatenate([copies[plain], edited[good], edited[spoilt]]), device), CORRUPT[name](ruined, rng)]
        )
        origin = torch.cat([pixels(np.concatenate([origins[plain], source[good], source[spoilt]]), device), ruined])
        if rng.random() < 0.5:
            y, origin = y.flip(-1), origin.flip(-1)
        much = torch.from_numpy(np.clip(strength[spoilt] / 0.9, 0, 1)).float()
        wrong = torch.cat(
            [torch.zeros(part), torch.full((part,), _EDIT), _EDIT + (1 - _EDIT) * much, torch.ones(part)]
        ).to(device)
        return F.binary_cross_entropy_with_logits(net.degradation(_harmless(y), origin), wrong)

    def check(averages: Mapping[str, nn.Module]) -> dict[str, float]:
        held = copy.deepcopy(net).eval()
        held.quality, held.degraded = averages["quality"], averages["degraded"]
        with torch.no_grad():
            scores = held.degradation(pixels(edited[last:], device), pixels(source[last:], device)).cpu()
        spoilt, fine = torch.from_numpy(strength[last:] > 0.5), torch.from_numpy(strength[last:] == 0)
        pairs = scores[spoilt][:, None] > scores[fine][None]
        return {"degradation_auc": float(pairs.float().mean()) if pairs.numel() else float("nan")}

    fit(
        {"quality": net.quality, "degraded": net.degraded},
        loss,
        plan=_plan(plan, name),
        ranks=ranks,
        folder=work / f"referee-{name}" / "degradation",
        check=check,
        seed=seed + 1,
    )


def join(name: str, work: Path) -> None:
    """Both trained parts → `work/referee-<name>/{config.json, model.safetensors}` (float16)."""
    folder, config = work / f"referee-{name}", _config(name)
    net = build(config)
    for part, names in (("attributes", ("scene", "heads")), ("degradation", ("quality", "degraded"))):
        state = torch.load(folder / part / "checkpoint.pt", weights_only=True, map_location="cpu")["averages"]
        for key in names:
            getattr(net, key).load_state_dict(state[key])
    state = {k: v.half().contiguous() if v.is_floating_point() else v.contiguous() for k, v in net.state_dict().items()}
    save_file(state, folder / WEIGHTS)
    (folder / CONFIG).write_text(json.dumps(config, indent=1), "utf-8")
