"""isr demo: a complete small run, offline: trained miniature models attack, edit and judge 64×64 pictures."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from .evaluate import naming, writable_run

if TYPE_CHECKING:
    from . import Subparsers

__all__ = ["register"]

_JUDGES = ("referee:a", "referee:b")


def register(commands: Subparsers) -> None:
    demo = commands.add_parser("demo", help="a complete small run, offline and without a key")
    demo.add_argument(
        "--out", type=Path, default=Path("isr-demo"), metavar="RUN", help="run directory (default: isr-demo)"
    )
    demo.add_argument("--images", type=int, default=12, metavar="N", help="pictures of MiniWorld's test split (12)")
    demo.add_argument("--iterations", type=int, default=None, metavar="N", help="of each attack (default: 40)")
    demo.set_defaults(run=_demo)


def _demo(options: argparse.Namespace) -> int:
    from ..data.minidemo import EPS, ITERATIONS, METHODS, miniworld_cases
    from ..errors import UsageError
    from ..evaluation import evaluate

    if options.images < 1:
        raise UsageError(f"--images must be at least 1, got {options.images}")
    writable_run("--out", options.out)
    print(
        f"{options.images} pictures of MiniWorld are protected by {', '.join(METHODS)} (ε = {EPS:g}), edited by mini-ip2p and"
    )
    print(
        "judged by two trained referees. They are stand-ins of 64×64 pixels that show the pipeline; a real evaluation"
    )
    print("edits photographs and asks multimodal models (docs/getting-started.md).\n")
    cases = miniworld_cases(
        options.images,
        iterations=ITERATIONS if options.iterations is None else options.iterations,
        say=lambda line: print(line, flush=True),
    )
    report = evaluate(cases, judges=list(_JUDGES), cache=False)
    print("\n" + report.summary())
    print("\n" + report.by("method").to_string(index=False, float_format=lambda v: f"{v:.3f}"))
    with naming("--out", options.out):
        folder = report.save(options.out)
        report.to_html(folder / "report.html")
    print(f"\nrun directory: {folder}\nreport:        {folder / 'report.html'}")
    return 0
