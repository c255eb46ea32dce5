"""Training of the three referees. They share nothing: another kind of network, seed, pictures and kinds of corruption each.

Attribute heads learn from renders and from the autoencoder's copies of them, some through noisy latents (the labels
stay). Degradation heads learn how damaged (`damage.py`) the editor's edits of disturbed and undisturbed image latents
(`disturbed.py`), copies of renders and generic corruptions are. Nothing here has seen an attacked picture.
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
from isr.judges._referee_nets import CONFIG, WEIGHTS, build, summed_up
from safetensors.torch import save_file
from scipy.stats import spearmanr
from torch import nn

from .autoencoder import encode, pixels, trained_autoencoder
from .damage import MEASURES, severity
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
#: Where each referee's pairs begin, so that no two learn from the same pictures.
_FIRST = {"a": 0, "b": 13_000, "c": 26_000}


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
        first, span = (0, 20) if tiny else (min(_FIRST[name], max(0, len(data) - _SPAN)), _SPAN)
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


def train_degradation(name: str, work: Path, *, plan: Plan, ranks: Ranks, batch: int = 48, tiny: bool = False) -> None:
    """Train the degradation head of one referee in `work/referee-<name>/degradation`.

    It learns a map of local damage (`damage.severity`) from edit and original alone: of undisturbed and disturbed edits
    (those with one right picture), of the autoencoders' copies of targets, and of corrupted targets, with their sources as
    originals; some are half one and half another. How much damage counts as degraded is set from labels.
    """
    config, seed, device = _config(name), int(REFEREES[name]["seed"]), ranks.device
    edits = np.load(work / "edits" / f"{name}.npz")
    seen, source, target = edits["edited"], edits["source"], edits["target"]
    graded, strength = edits["graded"], edits["strength"]
    last = len(seen) - (2 if tiny else min(400, len(seen) // 8))  # the rest is held out
    usable = np.flatnonzero(graded[:last]) if graded[:last].any() else np.arange(last)
    copied = np.random.default_rng([seed, 5]).permutation(last)[: 16 if tiny else 3000 if ranks.gpu else 1500]
    copies = _copies(work, target[copied], 0.15, seed + 7, device)
    torch.manual_seed(seed + 1)
    net = build(config).to(device)
    part = 4 if tiny else batch // 8

    def draw(rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        edit, fine, ruined = (
            rng.choice(usable, 6 * part),
            rng.integers(0, len(copied), part),
            rng.integers(0, last, part),
        )
        rows = np.concatenate([edit, copied[fine], ruined])
        before, asked = pixels(source[rows], device), pixels(target[rows], device)
        y = torch.cat([pixels(np.concatenate([seen[edit], copies[fine]]), device), CORRUPT[name](asked[-part:], rng)])
        # Damage in one place only: some edits keep it where a smooth mask says so, and are as asked elsewhere.
        some = 2 * part
        mask = F.interpolate(torch.rand(some, 1, 5, 5, device=device) * 3 - 1, size=64, mode="bilinear").clamp(0, 1)
        y[:some] = mask * y[:some] + (1 - mask) * asked[:some]
        if rng.random() < 0.5:
            y, before, asked = y.flip(-1), before.flip(-1), asked.flip(-1)
        return y, before, asked

    def loss(step: int) -> torch.Tensor:
        y, before, asked = draw(np.random.default_rng([seed, 1, step]))
        truth = severity(y, before, asked, MEASURES[name])
        found = net.damage(_harmless(y), before)
        whole = [summed_up(x) for x in (found, truth)]
        return 20 * F.mse_loss(found, truth) + 0.2 * F.smooth_l1_loss(*whole)

    def check(averages: Mapping[str, nn.Module]) -> dict[str, float]:
        held = copy.deepcopy(net).eval()
        held.quality = averages["quality"]
        rows = np.arange(last, len(seen))[graded[last:]] if graded[last:].any() else np.arange(last, len(seen))
        y, before, asked = (pixels(x[rows], device) for x in (seen, source, target))
        with torch.no_grad():
            scores, truth = held.degradation(y, before), summed_up(severity(y, before, asked, MEASURES[name]))
        fine = torch.from_numpy(strength[rows] == 0)
        return {
            f"rank_correlation{which}": _rank_correlation(scores.cpu()[keep], truth.cpu()[keep])
            for which, keep in (("", fine | True), ("_undisturbed", fine))
        }

    fit(
        {"quality": net.quality},
        loss,
        plan=_plan(plan, name),
        ranks=ranks,
        folder=work / f"referee-{name}" / "degradation",
        check=check,
        seed=seed + 1,
    )


def _rank_correlation(x: torch.Tensor, y: torch.Tensor) -> float:
    return float(spearmanr(x.numpy(), y.numpy()).statistic) if len(x) > 2 else float("nan")


def join(name: str, work: Path) -> None:
    """Both trained parts → `work/referee-<name>/{config.json, model.safetensors}` (float16)."""
    folder, config = work / f"referee-{name}", _config(name)
    net = build(config)
    for part, names in (("attributes", ("scene", "heads")), ("degradation", ("quality",))):
        state = torch.load(folder / part / "checkpoint.pt", weights_only=True, map_location="cpu")["averages"]
        for key in names:
            getattr(net, key).load_state_dict(state[key])
    state = {k: v.half().contiguous() if v.is_floating_point() else v.contiguous() for k, v in net.state_dict().items()}
    save_file(state, folder / WEIGHTS)
    (folder / CONFIG).write_text(json.dumps(config, indent=1), "utf-8")
