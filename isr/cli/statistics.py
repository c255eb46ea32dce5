"""isr compare, isr agree, isr bridge, isr sample-size"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from .evaluate import naming, writable_file, writable_run

if TYPE_CHECKING:
    from . import Subparsers

__all__ = ["register"]


def register(commands: Subparsers) -> None:
    compare = commands.add_parser(
        "compare", help="compare the methods of runs on the same cases (refuses unlike judge locks)"
    )
    compare.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    compare.add_argument("--latex", action="store_true", help="print the table in the paper's shape, the best in bold")
    compare.set_defaults(run=_compare)

    agree = commands.add_parser("agree", help="Table I: agreement of people and models")
    agree.add_argument(
        "ratings", nargs="+", type=Path, metavar="RATINGS", help="CSV of human ratings and/or run directories"
    )
    agree.add_argument("--latex", action="store_true", help="print the table in the paper's shape")
    agree.add_argument("--resamples", type=int, default=10_000)
    agree.set_defaults(run=_agree)

    bridge = commands.add_parser(
        "bridge", help="judge a run's edits again with other judges, and say what that changes"
    )
    bridge.add_argument("run_folder", type=Path, metavar="RUN")
    bridge.add_argument("--judges", nargs="+", required=True, metavar="SPEC")
    bridge.add_argument("--cache", type=Path, metavar="FOLDER")
    bridge.add_argument("--out", type=Path, metavar="RUN", help="save the run under the new judges here")
    bridge.add_argument("--flips", type=Path, metavar="CSV", help="write the cases whose outcome changed")
    bridge.set_defaults(run=_bridge)

    size = commands.add_parser("sample-size", help="images needed to see a difference between two methods")
    size.add_argument("--baseline", type=float, required=True, help="ISR of the baseline, as a fraction")
    size.add_argument("--difference", type=float, required=True, help="difference to be seen, as a fraction")
    size.add_argument(
        "--discordance",
        type=float,
        help="share of cases on which the two differ, from a pilot (default: as if independent)",
    )
    size.add_argument("--cases-per-image", type=int, default=1)
    size.add_argument("--icc", type=float, help="within-image correlation of the differences")
    size.add_argument("--design-effect", type=float, help="in place of --icc: n over effective n of a pilot")
    size.add_argument("--power", type=float, default=0.8)
    size.add_argument("--alpha", type=float, default=0.05, help="two-sided level")
    size.add_argument("--comparisons", type=int, default=1, help="methods compared in one family; the level is divided")
    size.set_defaults(run=_size)


def _compare(options: argparse.Namespace) -> int:
    from ..comparing import compare

    found = compare(*options.runs)
    print(found.to_latex() if options.latex else found)
    return 0


def _agree(options: argparse.Namespace) -> int:
    import pandas as pd

    from ..agreeing import agreement

    runs = [path for path in options.ratings if path.is_dir()]
    tables = [path for path in options.ratings if not path.is_dir()]
    found = agreement(human=tables or None, mllm=runs or None, n_boot=options.resamples)
    if options.latex:
        print(found.to_latex())
        return 0
    print(f"{found.n_items} items of {found.n_images} images\n")
    print(found.paper_shape().map(lambda v: "–" if pd.isna(v) else f"{100 * v:.0f} %").to_string())
    print("\n" + found.table.to_string(index=False, float_format=lambda v: f"{v:.3f}"))
    for note in found.notes:
        print(f"  ! {note}")
    return 0


def _bridge(options: argparse.Namespace) -> int:
    from ..comparing import bridge
    from ..reporting.escape import csv_safe

    writable_run("--out", options.out)
    writable_file("--flips", options.flips)
    found = bridge(options.run_folder, options.judges, cache=options.cache or True)
    try:
        # First of all: whatever goes wrong with showing it, what was paid is there.
        if options.out:
            with naming("--out", options.out):
                found.new.save(options.out)
    finally:
        print(found)
    if options.out:
        print(f"run directory: {options.out}")
    if options.flips:
        with naming("--flips", options.flips):
            csv_safe(found.flipped).to_csv(options.flips, index=False)
        print(f"flipped cases: {options.flips}")
    return 0


def _size(options: argparse.Namespace) -> int:
    from ..stats.power import sample_size

    found = sample_size(
        options.baseline,
        options.difference,
        discordance=options.discordance,
        cases_per_image=options.cases_per_image,
        icc=options.icc,
        design_effect=options.design_effect,
        power=options.power,
        alpha=options.alpha,
        comparisons=options.comparisons,
    )
    print(
        f"{found.images} images with {found.cases_per_image} edits each ({found.cases} cases) show {100 * found.difference:+.1f} points on a "
        f"baseline of {100 * found.baseline:.1f} % with power {found.power:.2f} at α = {found.alpha:g}"
    )
    print(f"discordance {found.discordance:.3f}, design effect {found.design_effect:.2f}. {found.note}")
    return 0
