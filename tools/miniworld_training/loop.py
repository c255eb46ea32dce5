"""One training loop for all miniatures: AdamW, warm-up and cosine, moving average of the weights, curve, resumable checkpoint."""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .ranks import Ranks

__all__ = ["Plan", "average_of", "fit"]


@dataclass(frozen=True)
class Plan:
    """How long and how fast to train.

    Attributes:
        steps: optimiser steps of the whole schedule. seconds: a limit on training time over all runs, or None; the
            learning rate falls with whichever of the two is used up sooner.
        rate: peak learning rate; warmup: steps to reach it; decay: weight decay.
        average: decay of the weights' moving average. every: steps between curve points. check: steps between checks
            and checkpoints.
    """

    steps: int
    seconds: float | None = None
    rate: float = 1e-3
    warmup: int = 100
    decay: float = 1e-4
    average: float = 0.998
    every: int = 100
    check: int = 500


def average_of(module: nn.Module) -> nn.Module:
    """A frozen copy that will hold the moving average."""
    return copy.deepcopy(module).eval().requires_grad_(requires_grad=False)


def fit(
    models: Mapping[str, nn.Module],
    loss: Callable[[int], torch.Tensor],
    *,
    plan: Plan,
    ranks: Ranks,
    folder: Path,
    check: Callable[[Mapping[str, nn.Module]], dict[str, float]] | None = None,
    seed: int = 0,
    card: Mapping[str, Any] | None = None,
) -> dict[str, nn.Module]:
    """Train `models` jointly; returns their moving averages.

    `folder/checkpoint.pt` is written every `plan.check` steps and at the end, and continued from when it exists;
    `folder/curve.jsonl` gets one line per point. `loss(step)` draws its own batch: it must depend on step and rank only
    (and torch's generator, which is seeded per step), so that a resumed run sees the batches it would have seen.
    """
    folder.mkdir(parents=True, exist_ok=True)
    averages = {name: average_of(m) for name, m in models.items()}
    parameters = [p for m in models.values() for p in m.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=plan.rate, betas=(0.9, 0.99), weight_decay=plan.decay, fused=ranks.gpu)
    step, used = _resume(folder / "checkpoint.pt", models, averages, optimiser)
    started, recent = time.monotonic() - used, list[torch.Tensor]()
    curve = (folder / "curve.jsonl").open("a", encoding="utf-8") if ranks.first else None

    def write(record: dict[str, Any]) -> None:
        if curve is not None:
            curve.write(json.dumps(record) + "\n")
            curve.flush()

    while True:
        seconds = ranks.agree(time.monotonic() - started)
        share = step / plan.steps
        if plan.seconds is not None:
            share = max(share, seconds / plan.seconds)
        if share >= 1:
            break
        rate = plan.rate * min(1.0, (step + 1) / plan.warmup) * (0.5 * (1 + math.cos(math.pi * share)) + 0.01)
        for group in optimiser.param_groups:
            group["lr"] = rate
        torch.manual_seed((seed * 1_000_003 + step) * 64 + ranks.rank)
        value = loss(step)
        optimiser.zero_grad(set_to_none=True)
        value.backward()
        ranks.average_gradients(parameters)
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        step += 1
        recent.append(value.detach())  # read at curve points only: reading waits for the device
        keep = min(plan.average, (1 + step) / (20 + step))
        with torch.no_grad():
            for name, module in models.items():
                torch._foreach_lerp_(list(averages[name].parameters()), list(module.parameters()), 1 - keep)
                for held, new in zip(averages[name].buffers(), module.buffers(), strict=True):
                    held.copy_(new)
        if step % plan.every == 0:
            write({"step": step, "seconds": round(seconds, 1), "loss": float(torch.stack(recent).mean()), "rate": rate})
            recent.clear()
        if step % plan.check == 0 and ranks.first:
            if check is not None:
                write({"step": step, "seconds": round(seconds, 1), **check(averages)})
            _save(
                folder / "checkpoint.pt",
                step=step,
                seconds=seconds,
                models=models,
                averages=averages,
                optimiser=optimiser,
            )
    if ranks.first:
        if check is not None:
            write({"step": step, "seconds": round(time.monotonic() - started, 1), "final": True, **check(averages)})
        _save(
            folder / "checkpoint.pt",
            step=step,
            seconds=time.monotonic() - started,
            models=models,
            averages=averages,
            optimiser=optimiser,
        )
        record = {
            "steps": step,
            "seconds": round(time.monotonic() - started, 1),
            "world": ranks.world,
            "device": torch.cuda.get_device_name() if ranks.gpu else "cpu",
            "seed": seed,
            **(card or {}),
        }
        (folder / "training.json").write_text(json.dumps(record, indent=1), "utf-8")
    if curve is not None:
        curve.close()
    return averages


def _save(
    path: Path,
    *,
    step: int,
    seconds: float,
    models: Mapping[str, nn.Module],
    averages: Mapping[str, nn.Module],
    optimiser: torch.optim.Optimizer,
) -> None:
    state = {
        "step": step,
        "seconds": seconds,
        "models": {n: m.state_dict() for n, m in models.items()},
        "averages": {n: m.state_dict() for n, m in averages.items()},
        "optimiser": optimiser.state_dict(),
    }
    part = path.with_suffix(".part")
    torch.save(state, part)
    part.replace(path)  # never a half-written checkpoint under the real name


def _resume(
    path: Path, models: Mapping[str, nn.Module], averages: Mapping[str, nn.Module], optimiser: torch.optim.Optimizer
) -> tuple[int, float]:
    if not path.is_file():
        return 0, 0.0
    state = torch.load(
        path, weights_only=True, map_location=next(iter(averages.values())).parameters().__next__().device
    )
    for name, module in models.items():
        module.load_state_dict(state["models"][name])
        averages[name].load_state_dict(state["averages"][name])
    optimiser.load_state_dict(state["optimiser"])
    return int(state["step"]), float(state["seconds"])


def parameters_in_millions(models: Sequence[nn.Module]) -> float:
    return sum(p.numel() for m in models for p in m.parameters()) / 1e6
