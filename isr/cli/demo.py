"""isr demo: a first report, offline, from pictures made on the spot."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from .evaluate import naming, writable_run

if TYPE_CHECKING:
    from . import Subparsers

__all__ = ["register"]


def register(commands: Subparsers) -> None:
    demo = commands.add_parser("demo", help="a complete small run, offline and without a key")
    demo.add_argument(
        "--out", type=Path, default=Path("isr-demo"), metavar="RUN", help="run directory (default: isr-demo)"
    )
    demo.set_defaults(run=_demo)


def _demo(options: argparse.Namespace) -> int:
    from ..data.demo import demo_cases, judge_by_pixels, judge_by_sharpness
    from ..evaluation import evaluate

    writable_run("--out", options.out)
    print("Twelve small edits are judged by two Python functions that measure pixels. They are stand-ins that show the")
    print("pipeline; a real evaluation asks multimodal models (docs/getting-started.md).\n")
    report = evaluate(demo_cases(), judges=[judge_by_pixels, judge_by_sharpness], cache=False)
    print(report.summary())
    print("\n" + report.by("method").to_string(index=False, float_format=lambda v: f"{v:.3f}"))
    with naming("--out", options.out):
        folder = report.save(options.out)
        report.to_html(folder / "report.html")
    print(f"\nrun directory: {folder}\nreport:        {folder / 'report.html'}")
    return 0
