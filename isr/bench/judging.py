"""The judging of an experiment: its cases as `isr.stream` takes them, into the same run directory."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .. import evaluation
from ..cases import EditCase
from ..comparing import edit_cases
from ..engine.loop import run_anywhere
from ..errors import IntegrityError, IsrError, UsageError
from ..protocols import Judge
from ..registry import RESOLVERS
from ..report import Report
from ..schema import NoVerdict
from ..streaming import stream
from .experiment import Experiment
from .files import ExperimentFiles, StepRow
from .plan import NONE, CaseSpec, Plan
from .records import Place, names_of, place_of

__all__ = ["Judged", "experiment_judges", "judge_open", "judge_run", "judged_cases", "judging_arguments", "make_cases"]


@dataclass(frozen=True)
class Judged:
    """cases: judged now (controls included). missing: cases whose pictures are not there yet."""

    cases: int
    missing: int


def experiment_judges(
    experiment: Experiment, allow_hosts: Sequence[str] = (), *, cache: bool | str | Path = False
) -> list[Judge]:
    """The judges that the file names; servers given by @url need `--allow-host`. cache: checked with them."""
    spec = list(experiment.judging.judges)
    if len(spec) == 1:
        spec = spec[0]  # type: ignore[assignment] # a preset stands alone
    try:
        found = list(RESOLVERS.load("judges")(spec, from_file=True, allow_hosts=list(allow_hosts)))
        # The rubric, the policy and the prices too are wrong now or never, not after hours of edits.
        evaluation.plan_judging(judges=found, cache=cache, **judging_arguments(experiment))
        return found
    except IsrError:
        raise
    except LookupError as error:  # a referee whose weights the installed MiniWorld distribution lacks
        raise UsageError(
            f"judging.judges: {', '.join(experiment.judging.judges)}: {error}. Update MiniWorld's weights, or run with --no-judging"
        ) from error


def judging_arguments(experiment: Experiment) -> dict[str, Any]:
    """Arguments of `isr.evaluate` that the file decides, without the judges."""
    told = experiment.judging
    rubric = None if told.rubric is None else experiment.folder / told.rubric
    return {
        "consensus": told.consensus, "votes": told.votes, "lazy": told.lazy, "max_side": told.max_side,
        "max_cost": told.max_cost, "rubric": rubric,
    }  # fmt: skip


def judged_cases(files: ExperimentFiles) -> int:
    """Cases of a folder that are judged, controls among them."""
    return sum(1 for _ in files.run.case_rows()) if files.run.exists() else 0


def make_cases(
    cases: Iterable[CaseSpec], files: ExperimentFiles, rows: Mapping[str, StepRow], originals: Container[str]
) -> Iterator[EditCase]:
    """Cases of these originals, with their controls; pictures are read from the run.

    Args:
        cases: whose pictures are there, in the plan's order.
    """
    for case in cases:
        edit, control = rows[case.edit], rows[case.control]
        if case.original in originals:
            seedable = bool(edit.result.get("seedable", True))
            yield _case(case, files, str(edit.digest), str(control.digest), seedable=seedable)


def _case(case: CaseSpec, files: ExperimentFiles, edit: str, control: str, *, seedable: bool) -> EditCase:
    def picture(digest: str) -> dict[str, Any]:
        # Named by digest alone: a run can be moved, and its rows say nothing of this machine.
        png = files.run.image_bytes(digest)
        if png is None:
            raise IntegrityError(f"{files.folder}: the picture {digest[:12]}… of a finished step is missing")
        return {"bytes": png, "path": f"{digest[:16]}.png"}

    return EditCase(
        picture(edit),
        case.prompt,
        original=picture(case.original),
        control=picture(control),
        image_id=case.image_id,
        method=case.method,
        editor=case.target,
        prompt_kind=case.prompt_kind,
        category=case.category,
        seed=case.seed if seedable else None,
        purifier=None if case.purifier == NONE else case.purifier,
        arm=case.arm,
        tags={
            "source": case.source,
            "table": case.table,
            "redraw": case.redraw,
            "unseen": case.unseen,
            "step": case.edit,
        },
    )


def judge_run(
    plan: Plan,
    files: ExperimentFiles,
    judges: Sequence[Judge],
    *,
    cache: bool | str | Path = True,
    progress: Any = None,
) -> Judged:
    """Judge what is not judged yet; rows are appended as they come.

    Raises:
        UsageError: something is open, and the run was judged by other judges. JudgeStoppedError: a judge cannot be used; what was received is kept.
    """
    if not judges:
        raise UsageError('judging.judges: the experiment names no judge; add judges = ["…"] to its [judging] table')
    rows = files.steps()
    ready = [c for c in plan.cases if c.edit in rows and c.control in rows]
    arguments: dict[str, Any] = {"judges": list(judges), "cache": cache}
    arguments |= judging_arguments(plan.experiment)
    count = 0
    # Pictures are read and hashed again only of originals of which something is not judged; all cases of these come in the
    # plan's order, so that exact duplicates keep their ordinals.
    wanted = _open_originals(ready, files)
    if wanted:
        for _ in stream(make_cases(ready, files, rows, wanted), out=files.folder, images=False, **arguments):
            count += 1
            if progress is not None:
                progress(count)
    return Judged(count, len(plan.cases) - len(ready))


def _open_originals(cases: Sequence[CaseSpec], files: ExperimentFiles) -> frozenset[str]:
    """Digests of the originals of which a case, or its control, is not judged."""
    ids: set[str] = set()
    judged: dict[tuple[str, Place], str | None] = {}
    for row in files.run.case_rows() if files.run.exists() else ():
        ids.add(row.case_id)
        judged[str(row.tags.get("step")), place_of(row)] = row.control
    places = {(step, place) for step, found in names_of(cases).items() for place in found}
    open_edits = {edit for edit, place in places if judged.get((edit, place)) not in ids}
    return frozenset(c.original for c in cases if c.edit in open_edits)


#: No verdicts that a higher spend cap or another try can still decide.
_OPEN = frozenset({"over_budget", "exhausted", "expired", "judge_error"})


def judge_open(
    plan: Plan, files: ExperimentFiles, judges: Sequence[Judge], *, cache: bool | str | Path = True, every: bool = False
) -> int:
    """Ask again where a stored judgement is open (spend cap, exhausted retries), or with `every` wherever there is no
    verdict; new rows are appended, and the last row of a (case, judge) stands. Returns how many were asked."""
    if not files.run.exists():
        return 0
    cases = files.run.cases()
    # A process that is killed between judgements and their cases leaves judgements of none: `judge_run` makes these again.
    again = {c.case_id for c in cases} & {
        j.case_id
        for j in files.run.judgements()
        if isinstance(j.answer, NoVerdict) and (every or j.answer.reason in _OPEN)
    }
    if not again:
        return 0
    arguments = {**judging_arguments(plan.experiment), "retry_no_verdicts": every, "on_bad_image": "skip"}
    # With the open ones, those that differ from them by an ordinal only (exact duplicates), and all controls of theirs.
    alike = {case_id.partition("-")[0] for case_id in again}
    rows = [c for c in cases if c.case_id.partition("-")[0] in alike]
    wanted = {c.case_id for c in rows} | {c.control for c in rows}
    part = Report(files.run.read_lock(), [c for c in cases if c.case_id in wanted], [], picture=files.picture)
    made = evaluation.plan(edit_cases(part), judges=list(judges), cache=cache, **arguments)
    made = replace(made, cases=tuple(c for c in made.cases if c.record.case_id in again))
    report = run_anywhere(evaluation._run(made, False))
    files.run.append("judgements.jsonl", report.judgement_records)
    return len(again)
