"""isr batch submit, status, collect, forget: judging through the batch APIs."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .evaluate import judging_arguments, judging_options, show, writable_run

if TYPE_CHECKING:
    from . import Subparsers

__all__ = ["register"]


def register(commands: Subparsers) -> None:
    batch = commands.add_parser(
        "batch", help="judge through the batch APIs of Gemini and OpenAI: cheaper, within a day"
    )
    steps = batch.add_subparsers(dest="step", metavar="STEP", required=True)

    submit = steps.add_parser("submit", help="send every call that is neither answered nor under way")
    judging_options(submit)
    submit.add_argument(
        "--out", type=Path, metavar="RUN", help="run directory to make (not needed where MANIFEST is one already)"
    )
    submit.set_defaults(run=_submit)

    for name, text, function in (
        ("status", "ask the services how far the jobs are", _status),
        ("collect", "store what came back and add the judgements to the run", _collect),
    ):
        step = steps.add_parser(name, help=text)
        step.add_argument("run_folder", type=Path, metavar="RUN")
        step.add_argument(
            "--judge",
            action="append",
            metavar="SPEC",
            help="as at submit; needed where a judge is a server given by @URL",
        )
        step.add_argument("--cache", type=Path, metavar="FOLDER", help="where replies are kept, as at submit")
        if name == "collect":
            step.add_argument("--prices", type=Path, metavar="TOML", help="your own prices (form: isr/prices.toml)")
            step.add_argument("--wait", action="store_true", help="stay until every job has ended")
            step.add_argument(
                "--every", type=float, default=60.0, metavar="SECONDS", help="with --wait: between two looks"
            )
        step.set_defaults(run=function)

    forget = steps.add_parser("forget", help="give up a job that its service no longer knows")
    forget.add_argument("run_folder", type=Path, metavar="RUN")
    forget.add_argument("job", metavar="JOB", help="its id or label, as isr batch status prints them")
    forget.set_defaults(run=_forget)


def _submit(options: argparse.Namespace) -> int:
    from ..batching import submit
    from ..store import RunFiles

    writable_run("--out", options.out)
    given = judging_arguments(options)
    if RunFiles.at(options.manifest).exists():
        # Everything else is fixed by the run.
        own = ("judges", "cache", "retry_no_verdicts", "max_cost", "prices")
        plain: dict[str, Any] = {**judging_arguments(_defaults()), **{name: given[name] for name in own}}
        extra = {name: value for name, value in given.items() if value != plain[name]}
        status = submit(options.manifest, out=options.out, **{name: given[name] for name in own}, **extra)
    else:
        status = submit(options.manifest, out=options.out, **given)
    print(status)
    print(f"\nrun directory: {status.folder}\nlater: isr batch collect {status.folder}")
    return 0


def _defaults() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    judging_options(parser)
    return parser.parse_args(["-"])


def _status(options: argparse.Namespace) -> int:
    from ..batching import status

    print(status(options.run_folder, judges=options.judge, cache=options.cache or True))
    return 0


def _collect(options: argparse.Namespace) -> int:
    from ..batching import collect

    found = collect(
        options.run_folder,
        judges=options.judge,
        cache=options.cache or True,
        prices=options.prices,
        wait=options.wait,
        every=options.every,
    )
    print(found)
    if found.waiting == 0:
        print()
        show(found.report)
    return 0


def _forget(options: argparse.Namespace) -> int:
    from ..batching import forget

    forget(options.run_folder, options.job)
    print(f"{options.job} is given up; isr batch submit {options.run_folder} sends its calls again.")
    return 0
