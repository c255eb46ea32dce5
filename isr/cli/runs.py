"""isr report, isr replay, isr merge: what can be done with stored runs, offline."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import UsageError
from .evaluate import naming, writable_file, writable_run

if TYPE_CHECKING:
    from . import Subparsers

__all__ = ["register"]


def register(commands: Subparsers) -> None:
    report = commands.add_parser("report", help="tables and pages of a stored run")
    report.add_argument("run_folder", type=Path, metavar="RUN")
    report.add_argument(
        "--by",
        default="method",
        metavar="COLUMN[,COLUMN]",
        help="group the table by these columns (judge: each judge alone)",
    )
    report.add_argument("--html", type=Path, metavar="FILE", help="write the report page")
    report.add_argument(
        "--assets", action="store_true", help="with --html: pictures as files in a folder beside the page"
    )
    report.add_argument("--latex", action="store_true", help="print the table in the paper's shape")
    report.add_argument("--methods", action="store_true", help="print the sentence and BibTeX for a paper")
    report.add_argument(
        "--figures", type=Path, metavar="FOLDER", help="draw ISR, differences, agreement and disagreement as PDF"
    )
    report.add_argument("--csv", type=Path, metavar="FILE", help="write all judgements in long form")
    report.set_defaults(run=_report)

    merge = commands.add_parser(
        "merge", help="join runs that several machines made (isr evaluate --shard i/n, isr run --shard i/n)"
    )
    merge.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    merge.add_argument("--out", type=Path, required=True, metavar="RUN")
    merge.add_argument("--no-images", action="store_true")
    merge.set_defaults(run=_merge)

    replay = commands.add_parser("replay", help="recompute every number of a run from its stored replies, offline")
    replay.add_argument("run_folder", type=Path, metavar="RUN")
    replay.set_defaults(run=_replay)


def _report(options: argparse.Namespace) -> int:
    from ..report import Report
    from ..reporting.escape import csv_safe

    columns = tuple(c.strip() for c in options.by.split(",") if c.strip())
    _check(options, columns)
    report = Report.load(options.run_folder)
    if (options.run_folder / "experiment.json").is_file():
        from ..bench.records import load_report

        report = load_report(options.run_folder)
    if options.latex:
        print(report.to_latex(columns[0]))
    elif options.methods:
        print(report.methods_text())
    else:
        print(report.summary())
        print("\n" + report.by(*columns).to_string(index=False, float_format=lambda v: f"{v:.3f}"))
    if options.html:
        with naming("--html", options.html):
            report.to_html(options.html, assets=options.assets)
        print(f"report: {options.html}")
    if options.figures:
        from ..reporting.figures import save_figures

        with naming("--figures", options.figures):
            drawn = save_figures(report, options.figures)
        for name, told in drawn.items():
            print(f"{name}: {told}")
    if options.csv:
        with naming("--csv", options.csv):
            csv_safe(report.judgements).to_csv(options.csv, index=False)
        print(f"judgements: {options.csv}")
    return 0


def _check(options: argparse.Namespace, columns: tuple[str, ...]) -> None:
    """Options that do not go together, and files that cannot be written, are told before anything is printed."""
    if options.assets and not options.html:
        raise UsageError("--assets puts the pictures beside the page of --html; give --html FILE too")
    if "judge" in columns and len(columns) > 1:
        others = ",".join(c for c in columns if c != "judge")
        raise UsageError(f"--by: judge stands alone (each judge over all cases); use --by judge or --by {others}")
    if options.latex and (len(columns) != 1 or columns == ("judge",)):
        raise UsageError(
            f"--latex: the table has one row per value of one case column (--by method, say), got --by {options.by!r}"
        )
    writable_file("--html", options.html)
    writable_file("--csv", options.csv)


def _merge(options: argparse.Namespace) -> int:
    from ..merging import merge

    writable_run("--out", options.out)
    experiments = [run for run in options.runs if (run / "experiment.json").is_file()]
    if experiments:
        return _merge_experiments(options, experiments)
    with naming("--out", options.out):
        merged = merge(options.runs, options.out, images=not options.no_images)
    print(merged.summary())
    print(f"run directory: {options.out}")
    return 0


def _merge_experiments(options: argparse.Namespace, experiments: list[Path]) -> int:
    from ..bench.merging import merge_experiments
    from ..bench.status import status_text

    if len(experiments) != len(options.runs):
        other = next(run for run in options.runs if run not in experiments)
        raise UsageError(f"merge: {experiments[0]} is an experiment's run and {other} is not; join runs of one kind")
    with naming("--out", options.out):
        merge_experiments(options.runs, options.out, images=not options.no_images)
    print(status_text(options.out))
    print(f"run directory: {options.out}; isr run with the same experiment file does what is missing")
    return 0


def _replay(options: argparse.Namespace) -> int:
    from ..replaying import replay

    found = replay(options.run_folder)
    print(found.report.summary())
    print(f"\n{found.recomputed} judgements recomputed from stored replies, {found.kept} rest on none.")
    for line in found.differences:
        print(f"  differs: {line}")
    print(
        "Every stored answer is what its replies say."
        if not found.differences
        else f"{len(found.differences)} answers differ."
    )
    return 1 if found.differences else 0
