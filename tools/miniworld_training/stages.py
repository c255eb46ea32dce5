"""The stages of `tools/train_miniworld.py`, in the order in which they run."""

from __future__ import annotations

import argparse
from pathlib import Path

from .loop import Plan
from .pairs import Pairs, draw_pairs
from .ranks import Ranks

__all__ = ["attributes", "autoencoder", "decoder", "degradation", "disturbed", "editor", "export", "pairs"]

COUNT, TINY = 24_000, 40


def _plan(options: argparse.Namespace, plan: Plan) -> Plan:
    if options.tiny:
        return Plan(steps=options.steps or 10, seconds=options.seconds, rate=1e-3, warmup=2, every=5, check=5)
    return Plan(**{**plan.__dict__, "steps": options.steps or plan.steps, "seconds": options.seconds})


def _load(work: Path) -> Pairs:
    if not (work / "pairs" / "edits.json").is_file():
        raise SystemExit(f"no training pairs in {work / 'pairs'}; run the stage `pairs` first")
    return Pairs.load(work / "pairs")


def pairs(options: argparse.Namespace) -> None:
    draw_pairs(options.work / "pairs", TINY if options.tiny else COUNT, workers=options.workers)


def autoencoder(options: argparse.Namespace) -> None:
    from .autoencoder import train_autoencoder

    ranks, data = Ranks(), _load(options.work)
    folder = options.work / "autoencoder"
    plan = _plan(options, Plan(steps=2400, rate=1.5e-3, check=200))
    sizes = {"widths": (8, 16, 16), "batch": 2, "held_out": 4} if options.tiny else {}
    train_autoencoder(data, folder, plan=plan, ranks=ranks, start=options.start, **sizes)


def decoder(options: argparse.Namespace) -> None:
    from .autoencoder import train_decoder

    sizes = {"batch": 2, "held_out": 4} if options.tiny else {}
    plan = _plan(options, Plan(steps=4000, rate=6e-4, check=400))
    train_decoder(_load(options.work), options.work / "autoencoder", plan=plan, ranks=Ranks(), **sizes)


def editor(options: argparse.Namespace) -> None:
    from .editor import train_editor

    train_editor(
        options.work,
        _load(options.work).first(options.pairs),
        plan=_plan(options, Plan(steps=6000, rate=1e-3, warmup=150, decay=1e-3, check=500)),
        ranks=Ranks(),
        tiny=options.tiny,
        start=options.start,
    )


def disturbed(options: argparse.Namespace) -> None:
    from .disturbed import draw_edits

    draw_edits(options.work, _load(options.work), only=options.only, tiny=options.tiny)


def attributes(options: argparse.Namespace) -> None:
    from .referees import REFEREES, train_attributes

    plan = _plan(options, Plan(steps=900, decay=1e-2, check=150))
    for name in [options.only] if options.only else REFEREES:
        train_attributes(name, options.work, _load(options.work), plan=plan, tiny=options.tiny)


def degradation(options: argparse.Namespace) -> None:
    from .referees import REFEREES, join, train_degradation

    plan = _plan(options, Plan(steps=900, decay=1e-2, check=150))
    for name in [options.only] if options.only else REFEREES:
        train_degradation(name, options.work, _load(options.work), plan=plan, tiny=options.tiny)
        join(name, options.work)


def export(options: argparse.Namespace) -> None:
    from .export import export_weights

    export_weights(options.work, options.package)
