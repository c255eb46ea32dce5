"""`isr check`: is a run what it claims to be? Everything is recomputed from the stored files; nothing is trusted."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import PIL.Image

from ..errors import IntegrityError, IsrError
from ..images import as_image
from ..perturbation import Budget, measure, within
from ..replaying import replay
from ..report import Report
from .dataset import stored_items
from .experiment import Experiment, canonical_json
from .files import ExperimentFiles, StepRow
from .plan import planned_cases, step_key
from .recheck import agree, recheck
from .records import names_of, place_of

__all__ = ["Check", "check_run"]


@dataclass
class Check:
    """What was looked at, what is wrong, missing, or could not be looked at (`unchecked`). `ok` when nothing is wrong."""

    looked: dict[str, int] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unchecked: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not self.wrong

    def count(self, what: str, n: int = 1) -> None:
        self.looked[what] = self.looked.get(what, 0) + n

    def text(self) -> str:
        lines = [f"{n:,} {what}" for what, n in self.looked.items()]
        lines += [f"  missing: {m}" for m in self.missing] + [f"  not checked: {u}" for u in self.unchecked]
        lines += [f"  ! {w}" for w in self.wrong]
        lines.append("Nothing is wrong." if self.ok else f"{len(self.wrong)} things are wrong.")
        return "\n".join(lines)


def check_run(folder: str | Path) -> Check:
    """Check a run of one's own or a stranger's: step names against their contents, pictures against their digests, every
    perturbation against its budget on the stored pictures, every image metric measured again on them (`recheck`), cases against
    steps, answers against stored replies.

    Raises:
        UsageError: no experiment run there. IntegrityError: files that are not of this layout at all.
    """
    files = ExperimentFiles.at(folder)
    info = files.info()
    found = Check()
    try:
        Experiment.of(info.get("experiment", {}), source=repr(str(folder)), stored=True)
        if hashlib.sha256(canonical_json(info["experiment"])).hexdigest() != info.get("hash"):
            found.wrong.append("experiment.json: its hash is not that of its content")
    except IsrError as error:
        found.wrong.append(str(error))
    rows = files.steps()
    for row in rows.values():
        _step(row, rows, files, found)
    found.count("steps", len(rows))
    _metrics(files, rows, found)
    if files.run.exists():
        _cases(files, rows, found)
        _labels(files, info, rows, found)
    return found


def _labels(files: ExperimentFiles, info: dict[str, Any], rows: dict[str, StepRow], found: Check) -> None:
    """Every case is called what the plan calls its edit (no edit stands under another method, editor or prompt kind), and has
    the control that the plan pairs with it."""
    try:
        experiment = Experiment.of(info["experiment"], source=repr(str(files.folder)), stored=True)
        planned = planned_cases(experiment, stored_items(info, "experiment.json"))
    except (IsrError, KeyError) as error:
        found.wrong.append(f"experiment.json: {error}")
        return
    names = names_of(planned)
    controls = {(c.edit, place): c.control for c in planned for place in names_of([c])[c.edit]}
    held = {c.case_id: c for c in files.run.cases()}
    compared = 0
    seen: dict[tuple[Any, ...], str] = {}
    for row in held.values():
        wanted = names.get(str(row.tags.get("step")))
        if wanted is None:
            continue  # a control row, or of an earlier state of the experiment
        compared += 1
        told = place_of(row)
        if told not in wanted:
            found.wrong.append(
                f"case {row.case_id}: is called {row.method}, {row.editor}, {row.prompt_kind}; the plan calls its edit something else"
            )
        else:
            control = held.get(row.control or "")
            made = rows.get(controls[str(row.tags["step"]), told])
            if control is None or made is None or (control.edited, control.arm) != (made.digest, "control"):
                found.wrong.append(f"case {row.case_id}: its control is not the edit that the plan pairs with it")
        place = (*told, row.tags.get("step"))
        if place in seen:
            found.wrong.append(
                f"case {row.case_id}: stands twice, also as {seen[place]}: one edit would count two times"
            )
        seen[place] = row.case_id
    found.count("cases compared with the plan", compared)


def _step(row: StepRow, rows: dict[str, StepRow], files: ExperimentFiles, found: Check) -> None:
    name = f"step {row.key[:12]} ({row.kind})"
    if step_key(row.kind, row.spec, row.inputs, row.prompt, row.seed) != row.key:
        found.wrong.append(
            f"{name}: its name is not the hash of its content; it was changed, or made by another version"
        )
    for one in row.inputs:
        if one.startswith("step:") and one.removeprefix("step:") not in rows:
            found.wrong.append(f"{name}: rests on a step that is not in the run")
    for digest in (row.digest, row.purified):
        if digest is not None:
            _picture(digest, files, found)
    if row.kind == "immunize" and row.digest is not None:
        _budget(row, name, files, found)


def _picture(digest: str, files: ExperimentFiles, found: Check) -> PIL.Image.Image | None:
    png = files.run.image_bytes(digest)
    if png is None:
        found.missing.append(f"picture {digest[:12]}…")
        return None
    try:
        image = as_image(png, name=f"images/{digest}.png")
        if image.digest != digest:
            found.wrong.append(f"images/{digest[:12]}….png: its pixels have the digest {image.digest[:12]}…")
            return None
    except IsrError as error:
        found.wrong.append(str(error))
        return None
    found.count("pictures hashed")
    return image.pil()


def _budget(row: StepRow, name: str, files: ExperimentFiles, found: Check) -> None:
    """The budget on the stored pictures, whatever the row says."""
    original = _picture(row.inputs[0].removeprefix("picture:"), files, found)
    protected = _picture(str(row.digest), files, found)
    if original is None or protected is None:
        return
    try:
        seen = measure(original, protected)
        budget = Budget.of(row.result)
    except IsrError as error:
        found.wrong.append(f"{name}: {error}")
        return
    if budget is not None and not within(seen, budget):
        found.wrong.append(
            f"{name}: changes by {seen.levels} levels (L2 {seen.l2:.4f}), over its budget {budget.norm} {budget.eps:g}"
        )
    if seen.levels != row.result.get("measured", {}).get("levels"):
        found.wrong.append(
            f"{name}: records {row.result.get('measured', {}).get('levels')} levels, the pictures differ by {seen.levels}"
        )
    for what, value in asdict(seen).items():
        told = row.result.get("measured", {}).get(what, value)
        if what != "levels" and not (_is_size(told) and agree(told, value)):
            found.wrong.append(f"{name}: records {what} {told!r:.60}, the pictures differ by {value:.7g}")
    found.count("perturbations measured")


def _is_size(value: Any) -> bool:
    return value == "inf" or (isinstance(value, int | float) and not isinstance(value, bool))


def _metrics(files: ExperimentFiles, rows: dict[str, StepRow], found: Check) -> None:
    """Every metric value on the stored pictures, whatever the rows say."""
    again = recheck(rows, files)
    found.wrong += again.wrong
    found.unchecked += again.unchecked
    if again.values:
        found.count("metric values measured again", again.values)


def _cases(files: ExperimentFiles, rows: dict[str, StepRow], found: Check) -> None:
    report = Report.load(files.folder)
    for case in report.case_records:
        step = case.tags.get("step")
        if step is None:
            continue
        row = rows.get(str(step))
        if row is None:
            found.wrong.append(f"case {case.case_id}: its edit is no step of the run")
        elif row.digest != case.edited or row.prompt != case.prompt:
            found.wrong.append(f"case {case.case_id}: picture or prompt is not that of its step")
    found.count("cases", len(report.case_records))
    judged = {(j.case_id, j.judge) for j in report.judgement_records}
    open_cases = sum((c.case_id, j) not in judged for c in report.case_records for j in report.judges)
    if open_cases:
        found.wrong.append(f"{open_cases} judgements are missing; the run is not finished")
        return
    try:
        again = replay(files.folder)
    except (IsrError, IntegrityError) as error:
        found.wrong.append(f"replay: {error}")
        return
    found.count("judgements recomputed from stored replies", again.recomputed)
    found.wrong += [f"replay: {line}" for line in again.differences]


def content_hash(folder: str | Path) -> str:
    """Sha256 over all rows of a run (order of rows and times left out): equal for equal results."""
    rows = ExperimentFiles.at(folder).steps()
    told = sorted(
        [r.key, r.digest, r.purified, canonical_json(r.result.get("metrics", {})).decode()] for r in rows.values()
    )
    return hashlib.sha256(canonical_json(told)).hexdigest()
