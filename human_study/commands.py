"""`isr study new | serve | links | export | import | join | erase`"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .store import Store

__all__ = ["register"]


def register(commands: Any) -> None:
    """Add the group to `isr`. Nothing heavy is imported before a command runs."""
    study = commands.add_parser("study", help="a study with people: sample, web app, export, join")
    actions = study.add_subparsers(dest="action", metavar="ACTION", required=True)

    new = actions.add_parser("new", help="draw a stratified sample of a run and write a study folder")
    new.add_argument("study", type=Path)
    new.add_argument("--from", dest="run_folder", type=Path, required=True, metavar="RUN")
    new.add_argument("--n", type=int, required=True, help="items to rate")
    new.add_argument(
        "--stratify", default="", metavar="COLUMN[,COLUMN]", help="for example method,prompt_kind,category"
    )
    new.add_argument("--allocation", choices=("proportional", "equal"), default="proportional")
    new.add_argument("--raters", type=int, default=3)
    new.add_argument("--per-item", type=int, help="raters per item (default: all of them)")
    new.add_argument("--seed", type=int, default=0)
    new.add_argument("--arm", default="immunized", help="immunized (default), control or noise")
    new.add_argument(
        "--title", default="Picture study", help="what raters read at the top; must not give anything away"
    )
    new.add_argument(
        "--rubric", type=Path, metavar="TOML", help="other words than those the models of the run were asked with"
    )
    new.add_argument(
        "--training",
        default="4",
        metavar="N|CSV",
        help="practice items with explanation (default 4, made from pictures)",
    )
    new.add_argument("--attention", default=None, metavar="N|CSV", help="attention checks (default: about 1 in 30)")
    new.add_argument("--repeats", type=int, help="items shown a second time (default: about 1 in 20)")
    new.add_argument(
        "--picked", type=Path, metavar="CSV", help="further cases to look at (column case_id); never in a correction"
    )
    new.add_argument("--allow-empty", action="store_true", help="accept combinations of strata that hold no case")
    new.add_argument("--preview", action="store_true", help="show the sample and write nothing")
    new.set_defaults(run=_new)

    serve = actions.add_parser(
        "serve", help="run the web app; prints one private link per rater and one for the organiser"
    )
    serve.add_argument("study", type=Path)
    serve.add_argument("--host", default="127.0.0.1", help="default 127.0.0.1: this machine only")
    serve.add_argument("--port", type=int, default=8080)
    serve.add_argument("--certfile", type=Path, help="TLS certificate of this server")
    serve.add_argument("--keyfile", type=Path)
    serve.add_argument("--behind-proxy", action="store_true", help="a proxy on this machine speaks TLS")
    serve.add_argument("--public-url", metavar="URL", help="what raters type, for example https://study.example.org")
    serve.add_argument(
        "--database", metavar="URL", help="another database than the SQLite file of the folder (or ISR_STUDY_DATABASE)"
    )
    serve.add_argument("--no-access-log", action="store_true")
    serve.set_defaults(run=_serve)

    links = actions.add_parser("links", help="who has used their link; make a new one")
    links.add_argument("study", type=Path)
    links.add_argument(
        "--new", metavar="RATER|organiser", action="append", default=[], help="ends the old link and signs out"
    )
    links.add_argument("--base", default="http://127.0.0.1:8080", metavar="URL", help="what the link begins with")
    links.add_argument("--database", metavar="URL")
    links.set_defaults(run=_links)

    export = actions.add_parser(
        "export", help="ratings as CSV for `isr agree` and `isr calibrate`, and a tidy table with all checks"
    )
    export.add_argument("study", type=Path)
    export.add_argument("csv", type=Path)
    export.add_argument("--comments", action="store_true", help="with comments, which may identify a person")
    export.add_argument(
        "--without",
        metavar="RATER",
        action="append",
        default=[],
        help="leave a rater out, for example one who was revoked",
    )
    export.add_argument("--database", metavar="URL")
    export.set_defaults(run=_export)

    bring = actions.add_parser("import", help="labels of another tool (CSV) in the form of `isr study export`")
    bring.add_argument("labels", type=Path)
    bring.add_argument("run_folder", type=Path, metavar="RUN")
    bring.add_argument("csv", type=Path)
    bring.add_argument(
        "--column", action="append", default=[], metavar="OURS=THEIRS", help="for example rater=annotator"
    )
    bring.add_argument("--id-column", metavar="THEIRS", help="their column with the manifest's id, in place of case_id")
    bring.set_defaults(run=_import)

    join = actions.add_parser("join", help="add ratings to a run as judges human:<rater>")
    join.add_argument("csv", type=Path)
    join.add_argument("run_folder", type=Path, metavar="RUN")
    join.set_defaults(run=_join)

    erase = actions.add_parser("erase", help="delete the answers of a rater who asked for it")
    erase.add_argument("study", type=Path)
    erase.add_argument("rater")
    erase.add_argument("--yes", action="store_true", help="really delete; there is no way back")
    erase.add_argument("--database", metavar="URL")
    erase.set_defaults(run=_erase)


def _open(options: argparse.Namespace) -> Store:
    import os

    from isr.errors import missing_extra

    try:
        from .store import Store
    except ImportError as error:
        raise missing_extra("isr study", "study", error.name or "sqlalchemy") from error
    from .study import Study

    return Store(Study(options.study), options.database or os.environ.get("ISR_STUDY_DATABASE"))


def _count_or_csv(text: str | None) -> int | Path | None:
    return None if text is None else int(text) if text.isdigit() else Path(text)


def _new(options: argparse.Namespace) -> int:
    import pandas as pd

    from isr.errors import UsageError
    from isr.report import Report

    from .making import draft_study, new_study

    report = Report.load(options.run_folder)
    by = [c.strip() for c in options.stratify.split(",") if c.strip()]
    draft = draft_study(
        report, options.n, by, allocation=options.allocation, raters=options.raters, per_item=options.per_item,
        seed=options.seed, arm=options.arm, allow_empty=options.allow_empty,
    )  # fmt: skip
    print(draft.sample.preview() + "\n")
    for line in draft.advice:
        print(f"- {line}")
    if options.preview:
        return 0
    picked: list[str] = []
    if options.picked:
        table = pd.read_csv(options.picked, dtype=str)
        if "case_id" not in table.columns:
            raise UsageError(f"picked: {str(options.picked)!r} has no column case_id")
        picked = table["case_id"].tolist()
    training, attention = _count_or_csv(options.training), _count_or_csv(options.attention)
    study = new_study(
        options.study, report, options.n, by, allocation=options.allocation, raters=options.raters, per_item=options.per_item,
        seed=options.seed, arm=options.arm, title=options.title, rubric=options.rubric, training=4 if training is None else training,
        attention=attention, repeats=options.repeats, picked=picked, allow_empty=options.allow_empty,
    )  # fmt: skip
    plan = study.plan()
    print(
        f"\nstudy: {options.study}: {plan['rating']} items, {plan['training']} practice items, {plan['attention']} attention "
        f"checks, {study.settings.repeats} hidden repeats per rater"
    )
    print(
        f"Now edit {options.study / 'consent.md'} and {options.study / 'instructions.md'}, then:  isr study serve {options.study}"
    )
    return 0


def _serve(options: argparse.Namespace) -> int:
    import os

    from isr.errors import missing_extra

    try:
        from .serve import Where, run
    except ImportError as error:
        raise missing_extra("isr study serve", "study", error.name or "fastapi") from error
    from .study import Study

    where = Where(
        options.host, options.port, options.certfile, options.keyfile, options.behind_proxy, options.public_url
    )
    where.check()

    def say(line: str) -> None:
        print(line, flush=True)

    run(
        Study(options.study), where, database=options.database or os.environ.get("ISR_STUDY_DATABASE"), say=say,
        access_log=not options.no_access_log,
    )  # fmt: skip
    return 0


def _links(options: argparse.Namespace) -> int:
    store = _open(options)
    base = options.base.rstrip("/")
    for name in options.new:
        if name == "organiser":
            print(f"{name:10} {base}/organiser/enter/{store.new_link(sign_out=True)}")
        else:
            print(f"{name:10} {base}/enter/{store.new_link(store.rater(name))}")
    if not options.new:
        for rater in store.raters():
            state = "withdrew" if rater.withdrawn else "revoked" if rater.revoked else f"link {store.has_link(rater)}"
            print(f"{rater.label:10} {state}")
    return 0


def _export(options: argparse.Namespace) -> int:
    from isr.cli.evaluate import naming, writable_file
    from isr.reporting.escape import csv_safe

    from .results import progress, ratings_table, tidy_table

    writable_file("csv", options.csv)
    store = _open(options)
    state = store.state()
    ratings, tidy = (
        make(store, comments=options.comments, without=options.without) for make in (ratings_table, tidy_table)
    )
    beside = options.csv.with_suffix(".answers.csv")
    for path, table in ((options.csv, ratings), (beside, tidy)):
        with naming("csv", path):
            csv_safe(table).to_csv(path, index=False)
    store.tell("command line", "export", f"while {state}")
    print(f"ratings:           {options.csv} ({len(ratings)} rows, {ratings['rater'].nunique()} raters)")
    print(f"answers and checks: {beside}")
    for rater in store.raters():
        if rater.revoked and not rater.withdrawn and rater.label not in options.without:
            count = int((ratings["rater"] == f"human:{rater.label}").sum())
            print(
                f"{rater.label} was revoked; {count} ratings given before are in the file (--without {rater.label} leaves them out).",
                file=sys.stderr,
            )
    if state != "closed":
        open_places = sum(p.total - p.done for p in progress(store) if not (p.rater.revoked or p.rater.withdrawn))
        print(
            f"The study is {state}; {open_places} answers are still to come. Close it before looking at agreement.",
            file=sys.stderr,
        )
    return 0


def _import(options: argparse.Namespace) -> int:
    from isr.cli.evaluate import naming, writable_file
    from isr.errors import UsageError
    from isr.report import Report
    from isr.reporting.escape import csv_safe

    from .labels import import_labels

    writable_file("csv", options.csv)

    rename = {}
    for pair in options.column:
        ours, mark, theirs = pair.partition("=")
        if not mark:
            raise UsageError(f"column: expected OURS=THEIRS, got {pair!r}")
        rename[ours] = theirs
    table = import_labels(options.labels, Report.load(options.run_folder), rename=rename, id_column=options.id_column)
    with naming("csv", options.csv):
        csv_safe(table).to_csv(options.csv, index=False)
    print(f"{options.csv}: {len(table)} ratings of {table['rater'].nunique()} raters")
    return 0


def _join(options: argparse.Namespace) -> int:
    from isr.report import Report

    from .labels import join_ratings

    report = Report.load(options.run_folder)
    joined = join_ratings(report, options.csv)
    joined.save(options.run_folder)
    added = len(joined.judgement_records) - len(report.judgement_records)
    names = sorted({j.judge for j in joined.judgement_records if j.judge.startswith("human:")})
    print(f"{options.run_folder}: {added} judgements added; people in this run: {', '.join(names)}")
    return 0


def _erase(options: argparse.Namespace) -> int:
    from isr.errors import UsageError

    if not options.yes:
        raise UsageError(f"erase: this deletes every answer of {options.rater} for good; say --yes")
    store = _open(options)
    print(f"{options.rater}: {store.erase(store.rater(options.rater))} answers deleted")
    return 0
