"""isr evaluate, isr estimate"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UsageError
from ..store import RunFiles

if TYPE_CHECKING:
    from ..report import Report
    from . import Subparsers

__all__ = ["judging_arguments", "judging_options", "naming", "register", "show", "writable_file", "writable_run"]


def register(commands: Subparsers) -> None:
    evaluate = commands.add_parser("evaluate", help="judge the edits of a manifest and compute their ISR")
    judging_options(evaluate)
    evaluate.add_argument("--out", type=Path, metavar="RUN", help="run directory to write (default: print only)")
    evaluate.add_argument("--no-images", action="store_true", help="leave the pictures out of the run directory")
    evaluate.add_argument("--html", type=Path, metavar="FILE", help="also write the report page here")
    evaluate.add_argument("--quiet", action="store_true", help="no progress bar")
    evaluate.set_defaults(run=_evaluate)

    estimate = commands.add_parser("estimate", help="calls and tokens that `isr evaluate` would need; sends nothing")
    judging_options(estimate)
    estimate.set_defaults(run=_estimate)


def judging_options(command: argparse.ArgumentParser) -> None:
    """The options that decide what is asked of whom; shared by every command that judges."""
    command.add_argument(
        "manifest",
        type=Path,
        help="CSV, JSONL or Parquet with the columns edited, prompt, [original, control, method, …]",
    )
    command.add_argument(
        "--judge",
        action="append",
        metavar="SPEC",
        help="e.g. gemini:MODEL, openai:MODEL@URL, paper, current; repeatable (default: from the keys that are set)",
    )
    command.add_argument(
        "--consensus",
        default="strict",
        metavar="POLICY",
        help="strict (the paper), any, majority, per_criterion or a plugin's name",
    )
    command.add_argument("--rubric", type=Path, metavar="TOML", help="a rubric of your own")
    command.add_argument("--votes", type=int, default=1, metavar="K", help="odd number of calls per judge and case")
    command.add_argument("--ask-overall", action="store_true", help="ask the third question (overall success) too")
    command.add_argument(
        "--lazy", action="store_true", help="skip later judges once one says not defeated (strict only)"
    )
    command.add_argument(
        "--cache", type=Path, metavar="FOLDER", help="where replies are kept (default: the user's cache folder)"
    )
    command.add_argument("--no-cache", action="store_true", help="keep replies for this run only")
    command.add_argument(
        "--retry-no-verdicts", action="store_true", help="ask again where the stored answer is no verdict"
    )
    command.add_argument(
        "--skip-bad-images", action="store_true", help="count unreadable images as missing verdicts instead of stopping"
    )
    command.add_argument(
        "--max-side", type=int, metavar="PIXELS", help="shrink pictures to this longer side before sending"
    )
    command.add_argument(
        "--max-cost",
        type=float,
        metavar="USD",
        help="spend cap; the worst case of a call is reserved before it is sent",
    )
    command.add_argument("--prices", type=Path, metavar="TOML", help="your own prices (form: isr/prices.toml)")
    command.add_argument(
        "--shard", metavar="I/N", help="judge only this share of the images (1/4 … 4/4), then isr merge"
    )
    command.add_argument(
        "--reuse",
        type=Path,
        action="append",
        default=[],
        metavar="RUN",
        help="take stored replies of this run instead of asking again; repeatable",
    )


def judging_arguments(options: argparse.Namespace) -> dict[str, Any]:
    """The keyword arguments of `isr.evaluate` behind the options."""
    return {
        "judges": options.judge,
        "consensus": options.consensus,
        "rubric": options.rubric,
        "votes": options.votes,
        "ask_overall": options.ask_overall,
        "lazy": options.lazy,
        "cache": False if options.no_cache else (options.cache or True),
        "retry_no_verdicts": options.retry_no_verdicts,
        "on_bad_image": "skip" if options.skip_bad_images else "raise",
        "max_side": options.max_side,
        "max_cost": options.max_cost,
        "prices": options.prices,
        "shard": options.shard,
        "reuse": options.reuse,
    }


def writable_file(argument: str, path: Path | None) -> None:
    """Refuse, before anything is paid or printed, a path under which no file can be written.

    Raises:
        UsageError: what is in the way, with the argument's name.
    """
    if path is None:
        return
    if path.is_dir():
        raise UsageError(f"{argument}: {str(path)!r} is a folder; name a file in it")
    if not path.parent.is_dir():
        raise UsageError(f"{argument}: the folder {str(path.parent)!r} does not exist; make it first")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise UsageError(f"{argument}: {str(path)!r} cannot be written (no permission)")


def writable_run(argument: str, folder: Path | None) -> None:
    """Refuse, before anything is paid or printed, a place where no run can be saved.

    Raises:
        UsageError: what is in the way, with the argument's name. IntegrityError: a run.json that cannot be read.
    """
    if folder is None:
        return
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{argument}: {str(folder)!r} is a file; a run is a folder")
    files = RunFiles.at(folder)
    try:
        if files.exists():
            files.read_lock()
        elif folder.is_dir() and any(folder.iterdir()):
            raise UsageError(f"{argument}: {str(folder)!r} is not empty and holds no run; give a new folder")
    except OSError as error:
        raise UsageError(f"{argument}: {str(folder)!r} cannot be read: {_said(error)}") from error
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not there.is_dir():
        raise UsageError(f"{argument}: {str(there)!r} is a file, so nothing can be written below it")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UsageError(f"{argument}: {str(folder)!r} cannot be written (no permission in {str(there)!r})")


def same_judges(folder: Path | None, arguments: dict[str, Any]) -> None:
    """Refuse, before anything is paid, to add to a run that was judged differently.

    Raises:
        UsageError: everything that differs.
    """
    from ..engine.waiting import WaitingRunner
    from ..evaluation import lock_of, plan_judging
    from ..lock import lock_differences

    if folder is None or not RunFiles.at(folder).exists():
        return
    stored = RunFiles.at(folder).read_lock()
    made = plan_judging(**{k: v for k, v in arguments.items() if k not in ("shard", "reuse")})
    runners = [WaitingRunner(j, made.rubric, made.settings, cache=made.cache) for j in made.judges]
    now = lock_of(made, runners, with_originals=bool(stored.get("with_originals")))
    differences = lock_differences(stored, now, served=False)
    if differences:
        raise UsageError(
            f"--out: {str(folder)!r} holds a run that was judged differently:\n  - "
            + "\n  - ".join(differences)
            + "\nGive another folder."
        )


@contextmanager
def naming(argument: str, path: Path) -> Iterator[None]:
    """What the system says of a path becomes an error that names the argument."""
    try:
        yield
    except OSError as error:
        raise UsageError(f"{argument}: {str(path)!r} could not be written: {_said(error)}") from error


def _said(error: OSError) -> str:
    return error.strerror or type(error).__name__


def _evaluate(options: argparse.Namespace) -> int:
    from ..evaluation import evaluate

    writable_run("--out", options.out)
    writable_file("--html", options.html)
    arguments = judging_arguments(options)
    same_judges(options.out, arguments)
    report = evaluate(options.manifest, progress=False if options.quiet else None, **arguments)
    try:
        # First of all: whatever goes wrong with showing it, the run is there.
        if options.out:
            with naming("--out", options.out):
                report.save(options.out, images=not options.no_images)
    finally:
        show(report)
    if options.out:
        print(f"\nrun directory: {options.out}")
    if options.html:
        with naming("--html", options.html):
            report.to_html(options.html)
        print(f"report: {options.html}")
    return 0


def show(report: Report) -> None:
    """Print headline, methods and costs."""
    print(report.summary())
    methods = report.by("method")
    if len(methods) > 1:
        print("\n" + methods.to_string(index=False, float_format=lambda v: f"{v:.3f}"))
    costs = report.costs()
    if costs["cost"].notna().any():
        print("\n" + costs.to_string(index=False, float_format=lambda v: f"{v:.4f}"))


def _estimate(options: argparse.Namespace) -> int:
    from ..estimation import estimate

    found = estimate(options.manifest, **judging_arguments(options))
    print(f"{found.cases} cases" + (f", {found.bad_images} of them with bad images" if found.bad_images else ""))
    print(found.table().to_string(index=False))
    if found.cost is not None:
        print(f"in all {found.cost[0]:.2f} – {found.cost[1]:.2f} US dollars (prices: isr/prices.toml; check them)")
    print("Upper ends include one re-ask of every reply; token counts are orders of magnitude.")
    return 0
