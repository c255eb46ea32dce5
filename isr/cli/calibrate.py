"""isr calibrate: people's ratings against a run's judges."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from .evaluate import naming, writable_file

if TYPE_CHECKING:
    from . import Subparsers

__all__ = ["register"]


def register(commands: Subparsers) -> None:
    calibrate = commands.add_parser(
        "calibrate", help="how far to trust the judges: confusion with people, corrected ISR, labels to buy next"
    )
    calibrate.add_argument(
        "inputs", nargs="+", type=Path, metavar="RATINGS RUN", help="one or more CSVs of ratings, and the run"
    )
    calibrate.add_argument("--level", type=float, default=0.95)
    calibrate.add_argument(
        "--next", type=Path, metavar="CSV", help="write the cases worth a look (for `isr study new --picked`)"
    )
    calibrate.add_argument("--csv", type=Path, metavar="FOLDER", help="write every table as CSV")
    calibrate.set_defaults(run=_calibrate)


def _calibrate(options: argparse.Namespace) -> int:
    from ..calibrating import calibrate
    from ..errors import UsageError
    from ..reporting.escape import csv_safe

    runs = [path for path in options.inputs if path.is_dir()]
    tables = [path for path in options.inputs if not path.is_dir()]
    if len(runs) != 1 or not tables:
        raise UsageError(
            f"RATINGS RUN: expected at least one CSV of ratings and one run directory, got {len(tables)} and {len(runs)}"
        )
    writable_file("--next", options.next)
    if options.csv and options.csv.exists() and not options.csv.is_dir():
        raise UsageError(f"--csv: {str(options.csv)!r} is a file; the tables go into a folder")
    found = calibrate(tables, runs[0], level=options.level)
    print(found)
    if options.next:
        with naming("--next", options.next):
            csv_safe(found.next_items).to_csv(options.next, index=False)
        print(f"\ncases worth a look: {options.next}")
    if options.csv:
        parts = {
            "confusion": found.confusion, "corrected": found.corrected, "rogan_gladen": found.rogan_gladen,
            "errors": found.errors, "raters": found.raters, "next_items": found.next_items,
        }  # fmt: skip
        with naming("--csv", options.csv):
            options.csv.mkdir(parents=True, exist_ok=True)
            for name, table in parts.items():
                if table is not None:
                    csv_safe(table).to_csv(options.csv / f"{name}.csv", index=False)
        print(f"\ntables: {options.csv}")
    return 0
