"""The stages of `tools/train_miniworld.py`, in the order in which they run."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .loop import Plan
from .models import MODELS, Model
from .pairs import Pairs, draw_pairs
from .ranks import Ranks

__all__ = ["attributes", "autoencoder", "decoder", "degradation", "disturbed", "editor", "export", "pairs"]

TINY = 40


def _plan(options: argparse.Namespace, plan: Plan) -> Plan:
    if options.tiny:
        return Plan(steps=options.steps or 10, seconds=options.seconds, rate=1e-3, warmup=2, every=5, check=5)
    given = {"rate": options.rate, "average": options.average, "check": options.check}
    given = {name: value for name, value in given.items() if value is not None}
    return Plan(**{**plan.__dict__, "steps": options.steps or plan.steps, "seconds": options.seconds, **given})


def _load(work: Path, model: Model) -> Pairs:
    if not (work / model.pairs / "edits.json").is_file():
        raise SystemExit(f"no training pairs in {work / model.pairs}; run the stage `pairs` first")
    return Pairs.load(work / model.pairs)


def _model(options: argparse.Namespace) -> Model:
    if options.model not in MODELS:
        raise SystemExit(f"--model: expected one of {', '.join(MODELS)}, got {options.model}")
    return MODELS[options.model]


def _batch(options: argparse.Namespace) -> dict[str, int]:
    return {} if options.batch is None else {"batch": options.batch}


def pairs(options: argparse.Namespace) -> None:
    model = _model(options)
    draw_pairs(
        options.work / model.pairs,
        TINY if options.tiny else options.pairs,
        workers=options.workers,
        style=model.style,
        seed=1 if model.style == "canvas" else 0,
    )


def autoencoder(options: argparse.Namespace) -> None:
    from .autoencoder import train_autoencoder

    model, ranks = _model(options), Ranks(options.device)
    data = _load(options.work, model)
    plan = _plan(options, Plan(steps=2400, rate=1.5e-3, check=200))
    sizes = {"widths": (8, 16, 16), "batch": 2, "held_out": 4} if options.tiny else _batch(options)
    train_autoencoder(
        data, options.work / model.autoencoder, plan=plan, ranks=ranks, start=options.start, seed=model.seed,
        flow=model.kind != "ip2p", **sizes,
    )  # fmt: skip


def decoder(options: argparse.Namespace) -> None:
    from .autoencoder import train_decoder

    model = _model(options)
    sizes = {"batch": 2, "held_out": 4} if options.tiny else _batch(options)
    plan = _plan(options, Plan(steps=4000, rate=6e-4, check=400))
    ranks = Ranks(options.device)
    train_decoder(_load(options.work, model), options.work / model.autoencoder, plan=plan, ranks=ranks, **sizes)


def editor(options: argparse.Namespace) -> None:
    from .editor import train_editor
    from .mmdit import train_flow_editor

    model, ranks = _model(options), Ranks(options.device)
    data = _load(options.work, model).first(options.pairs)
    plan = _plan(options, Plan(steps=6000, rate=1e-3, warmup=150, decay=1e-3, check=500))
    common: dict[str, Any] = {"plan": plan, "ranks": ranks, "tiny": options.tiny, **_batch(options)}
    if model.kind == "ip2p":
        train_editor(model, options.work, data, start=options.start, **common)
    else:
        train_flow_editor(model, options.work, data, start=options.start, **common)


def disturbed(options: argparse.Namespace) -> None:
    from .disturbed import draw_edits

    count = {} if options.count is None else {"count": options.count}
    device = Ranks(options.device).device
    draw_edits(options.work, device=device, only=options.only, tiny=options.tiny, steps=options.edit_steps, **count)


def attributes(options: argparse.Namespace) -> None:
    from .referees import REFEREES, train_attributes

    plan = _plan(options, Plan(steps=900, decay=1e-2, check=150))
    for name in [options.only] if options.only else REFEREES:
        train_attributes(
            name, options.work, plan=plan, ranks=Ranks(options.device), tiny=options.tiny, **_batch(options)
        )


def degradation(options: argparse.Namespace) -> None:
    from .referees import REFEREES, join, train_degradation

    plan = _plan(options, Plan(steps=900, decay=1e-2, check=150))
    for name in [options.only] if options.only else REFEREES:
        train_degradation(
            name, options.work, plan=plan, ranks=Ranks(options.device), tiny=options.tiny, **_batch(options)
        )
        join(name, options.work)


def export(options: argparse.Namespace) -> None:
    from .export import export_weights

    export_weights(options.work, options.package)
