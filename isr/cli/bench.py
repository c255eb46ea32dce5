"""isr run, isr status, isr tables, isr check, isr pack, isr import, isr figure"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..bench.engine import Engine
    from . import Subparsers

__all__ = ["register"]


def register(commands: Subparsers) -> None:
    run = commands.add_parser(
        "run",
        help="run an experiment: immunize, purify, edit, measure, judge",
        description="The same command goes on where an interrupted run stopped; what is done is never done again.",
    )
    run.add_argument("experiment", metavar="EXPERIMENT", help="a TOML file, or quick, miniworld, paper")
    run.add_argument("--out", type=Path, metavar="RUN", help="run directory (default: runs/NAME)")
    run.add_argument(
        "--dry-run", action="store_true", help="print the plan: steps, judgements, disk, time, money; does nothing"
    )
    run.add_argument("--engine", choices=("local", "ray"), default="local")
    run.add_argument(
        "--workers", type=int, metavar="N", help="processes (default: one per GPU, else per core; 0: this one)"
    )
    run.add_argument("--gpus", type=float, metavar="G", help="GPUs per worker, fractions allowed (ray)")
    run.add_argument("--address", metavar="HOST", help="a running Ray cluster (ray; default: this machine)")
    run.add_argument("--shard", metavar="I/N", help="only this share of the pictures (1/4 … 4/4), then isr merge")
    run.add_argument("--keep-going", action="store_true", help="after a failed batch, do all that does not rest on it")
    run.add_argument("--no-judging", action="store_true", help="pictures and metrics only")
    run.add_argument(
        "--allow-host", action="append", default=[], metavar="HOST", help="a judge's server that the file may name"
    )
    run.add_argument(
        "--cache", type=Path, metavar="FOLDER", help="where judges' replies are kept (default: the user's cache)"
    )
    run.add_argument("--no-cache", action="store_true", help="keep replies in the run only")
    run.add_argument("--retry-no-verdicts", action="store_true", help="ask again wherever there is no verdict")
    run.add_argument(
        "--retry-missing", action="store_true", help="measure metrics again that were n/a because weights were missing"
    )
    run.add_argument("--quiet", action="store_true", help="no progress")
    run.set_defaults(run=_run)

    status = commands.add_parser("status", help="what of an experiment is done")
    status.add_argument("run_folder", type=Path, metavar="RUN")
    status.set_defaults(run=_status)

    tables = commands.add_parser("tables", help="the paper's tables from a run: Markdown, LaTeX, CSV, HTML")
    tables.add_argument("run_folder", type=Path, metavar="RUN")
    tables.add_argument("--out", type=Path, metavar="FOLDER", help="default: tables/ in the run")
    tables.add_argument("--reported", default="", metavar="II,III,…", help="also print these published tables")
    tables.add_argument("--resamples", type=int, default=10_000)
    tables.set_defaults(run=_tables)

    check = commands.add_parser("check", help="is a run what it claims to be? hashes, budgets, answers; offline")
    check.add_argument("run_folder", type=Path, metavar="RUN")
    check.set_defaults(run=_check)

    pack = commands.add_parser("pack", help="one ZIP of a run for reviewers")
    pack.add_argument("run_folder", type=Path, metavar="RUN")
    pack.add_argument("--out", type=Path, metavar="ZIP", help="default: RUN.zip")
    pack.add_argument("--no-images", action="store_true")
    pack.set_defaults(run=_pack)

    bring = commands.add_parser("import", help="another repository's edits as a manifest, paired by file name")
    bring.add_argument("folder", type=Path, metavar="FOLDER")
    bring.add_argument(
        "--rules", type=Path, required=True, metavar="TOML", help="patterns of names (docs/benchmark.md)"
    )
    bring.add_argument("--out", type=Path, required=True, metavar="MANIFEST.jsonl")
    bring.set_defaults(run=_import)

    figure = commands.add_parser("figure", help="a grid of edits from a run, chosen by rule or by image id")
    figure.add_argument("run_folder", type=Path, metavar="RUN")
    figure.add_argument("--out", type=Path, required=True, metavar="PNG")
    figure.add_argument("--rule", choices=("first", "differ", "all-defeated", "none-defeated"), default="first")
    figure.add_argument("--id", action="append", default=[], metavar="IMAGE_ID", help="these images; repeatable")
    figure.add_argument("--rows", type=int, default=4)
    figure.add_argument("--target", metavar="EDITOR", help="label of the editor (default: the first)")
    figure.add_argument(
        "--misleads", metavar="METRIC", help="instead: the edits on which this metric and the judges disagree most"
    )
    figure.set_defaults(run=_figure)


def _figure(options: argparse.Namespace) -> int:
    from ..bench.figures import write_grid, write_misleading
    from ..bench.results import Results
    from ..errors import UsageError
    from .evaluate import naming, writable_file

    if options.rows < 1:
        raise UsageError(f"--rows: expected at least 1, got {options.rows}")
    writable_file("--out", options.out)
    results = Results(options.run_folder)
    if options.misleads:
        if options.id or options.rule != "first":
            raise UsageError("--misleads has a rule of its own; leave --rule and --id out")
        with naming("--out", options.out):
            cases = write_misleading(results, options.out, options.misleads, n=options.rows, target=options.target)
        columns = ["image_id", "prompt", "method", "value", "far", "outcome", "disagreement"]
        print(cases[columns].to_string(index=False, float_format=lambda v: f"{v:.3f}"))
        print(f"figure: {options.out}, {len(cases)} edits on which {options.misleads} and the judges disagree most")
        return 0
    with naming("--out", options.out):
        n = write_grid(results, options.out, rule=options.rule, ids=options.id, n=options.rows, target=options.target)
    print(f"figure: {options.out}, {n} rows chosen by {'id' if options.id else f'the rule {options.rule!r}'}")
    return 0


def _run(options: argparse.Namespace) -> int:
    from ..bench.card import write_card
    from ..bench.dataset import load_items, share
    from ..bench.driver import begin, folder_of, make_pictures
    from ..bench.estimate import dry_run
    from ..bench.experiment import load_experiment
    from ..bench.files import ExperimentFiles
    from ..bench.judging import experiment_judges, judge_open, judge_run, judged_cases, judging_arguments
    from ..bench.plan import make_plan
    from ..bench.plugins import import_user_plugins
    from ..bench.preflight import check_settings
    from ..bench.remeasure import lacking_text, retry_missing
    from ..bench.results import Results
    from ..bench.tables import write_tables
    from ..errors import IsrError
    from .evaluate import same_judges

    import_user_plugins()
    experiment = load_experiment(options.experiment)
    items = load_items(experiment)
    plan = make_plan(experiment, items if options.shard is None else share(items, options.shard))
    folder = folder_of(experiment, options.out)
    files = ExperimentFiles.at(folder)
    if not files.exists() or files.info()["hash"] != experiment.hash:  # else it was found good when it was begun
        check_settings(experiment, source=repr(options.experiment))
    if options.dry_run:
        judges: Any
        try:
            judges = experiment_judges(experiment, options.allow_host) if experiment.judging.judges else []
        except IsrError as error:
            judges = error
        figures = dry_run(plan, files.steps(), judges, judged=judged_cases(files))
        print(f"{experiment.name}: {len(plan.items)} pictures → {folder}\n{figures.text()}")
        return 0
    wants_judges = bool(experiment.judging.judges) and not options.no_judging
    cache: Any = False if options.no_cache else options.cache or True
    # What cannot be used (judges, their cache, the engine) is found before hours of edits, not after them.
    asked = experiment_judges(experiment, options.allow_host, cache=cache) if wants_judges else []
    engine = _engine(options)
    with files.writing():
        if asked:
            same_judges(folder, {"judges": asked, "cache": cache, **judging_arguments(experiment)})
        begin(files, plan, items=items, shard=options.shard)
        with _Bar("steps", len(plan.steps), options.quiet) as bar:
            made = make_pictures(plan, files, engine, keep_going=options.keep_going, progress=bar.to)
        print(
            f"{made.done} steps done, {made.skipped} were there"
            + (f", {made.differing} differ from before" if made.differing else "")
        )
        if options.retry_missing:
            print(retry_missing(plan, files, engine).text())
        elif told := lacking_text(plan, files.steps()):
            print(told)
        if wants_judges:
            again = judge_open(plan, files, asked, cache=cache, every=options.retry_no_verdicts)
            with _Bar("cases", None, options.quiet) as bar:
                judged = judge_run(plan, files, asked, cache=cache, progress=bar.to_count)
            print(f"{judged.cases} cases judged" + (f", {again} asked again" if again else ""))
        results = Results(folder)
        write_tables(results, folder / "tables")
        write_card(results)
    if results.report is not None:
        print("\n" + results.report.summary())
    print(f"\nrun: {folder}\ntables: {folder / 'tables' / 'tables.md'}\ncard: {folder / 'card.json'}")
    return 0


def _engine(options: argparse.Namespace) -> Engine:
    from ..errors import UsageError

    for name in ("gpus", "address"):
        if options.engine != "ray" and getattr(options, name) is not None:
            raise UsageError(f"--{name} belongs to --engine ray; the local engine has one process per GPU, or per core")
    if options.engine == "ray":
        from ..bench.ray_engine import RayEngine

        return RayEngine(options.workers, gpus=options.gpus, address=options.address)
    if options.workers == 0:
        from ..bench.engine import InlineEngine

        return InlineEngine()
    from ..bench.local_engine import LocalEngine

    return LocalEngine(options.workers)


class _Bar:
    """Progress where a person watches."""

    def __init__(self, unit: str, total: int | None, quiet: bool) -> None:
        from tqdm.auto import tqdm

        self._bar: Any = tqdm(total=total, unit=unit, disable=True if quiet else None, dynamic_ncols=True)

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *exc: object) -> None:
        self._bar.close()

    def to(self, done: int, total: int) -> None:
        self._bar.total = total
        self._bar.update(done - self._bar.n)

    def to_count(self, done: int) -> None:
        self._bar.update(done - self._bar.n)


def _status(options: argparse.Namespace) -> int:
    from ..bench.status import status_text

    print(status_text(options.run_folder))
    return 0


def _tables(options: argparse.Namespace) -> int:
    from ..bench.results import Results
    from ..bench.tables import make_tables, write_tables
    from ..errors import UsageError
    from .evaluate import naming

    wanted = [n.strip().upper() for n in options.reported.split(",") if n.strip()]
    unknown = [n for n in wanted if n not in ("II", "III", "IV", "V", "VI", "VII")]
    if unknown:
        raise UsageError(f"--reported: {unknown[0]!r} is none of II, III, IV, V, VI, VII")
    if options.resamples < 1:
        raise UsageError(f"--resamples: expected at least 1, got {options.resamples}")
    results = Results(options.run_folder, n_boot=options.resamples)
    out = options.out or options.run_folder / "tables"
    with naming("--out", out):
        write_tables(results, out, also_reported=wanted)
    for table in make_tables(results, also_reported=wanted):
        print(table.markdown())
    print(f"tables: {out}")
    return 0


def _check(options: argparse.Namespace) -> int:
    from ..bench.checking import check_run

    found = check_run(options.run_folder)
    print(found.text(), file=sys.stdout if found.ok else sys.stderr)
    return 0 if found.ok else 1


def _pack(options: argparse.Namespace) -> int:
    from ..bench.packing import pack_run
    from .evaluate import naming

    folder = options.run_folder
    out = options.out or folder.absolute().with_name(folder.absolute().name + ".zip")
    with naming("--out", out):
        print(f"packed: {pack_run(folder, out, images=not options.no_images)}")
    return 0


def _import(options: argparse.Namespace) -> int:
    from ..bench.importing import import_folder, load_rules
    from .evaluate import naming, writable_file

    writable_file("--out", options.out)
    found = import_folder(options.folder, load_rules(options.rules), rules_folder=options.rules.parent)
    with naming("--out", options.out):
        path = found.write(options.out, options.folder)
    print(
        f"{len(found.rows)} edits in {path}; {found.without_original} without original, {found.without_control} without control, "
        f"{found.without_immunized} without immunized picture; {len(found.unmatched)} pictures fit no pattern"
    )
    print(f"next: isr evaluate {path}")
    return 0
