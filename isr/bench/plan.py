"""The plan: every immunization, edit, measurement and case of an experiment, decided before anything runs.

A step is named by the hash of what it depends on (settings, seed, prompt, and its input: a picture's digest or an earlier
step's name), so a step that was done is never done again. Batches are fixed here, over all steps, done or not: results do
not depend on the number of workers, nor on where a run was interrupted.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, get_args

from .dataset import Item
from .experiment import SET_METRICS, AttackEntry, EditorEntry, Experiment, PurifierEntry, canonical_json

__all__ = [
    "KINDS", "NONE", "PIPELINE", "CaseSpec", "Cell", "Job", "Kind", "Plan", "Step", "cell_of", "editor_record", "image_seed",
    "make_plan", "planned_cases", "planned_counts", "planned_steps", "step_key",
]  # fmt: skip

Kind = Literal["immunize", "edit", "measure"]
KINDS: tuple[Kind, ...] = get_args(Kind)
#: No purifier, as tables print it.
NONE = "none"
#: What a step does; a change that alters results changes this number, and old steps no longer count as done.
PIPELINE = 1


def image_seed(base: int, image_id: str, redraw: int = 0) -> int:
    """The seed of a picture, the same in every arm: 31 bits from sha256. redraw: the attacker's further tries (ISR@k)."""
    return int.from_bytes(hashlib.sha256(f"{base}:{image_id}:{redraw}".encode()).digest()[:4], "big") >> 1


def step_key(kind: Kind, spec: Mapping[str, Any], inputs: Sequence[str], prompt: str | None, seed: int | None) -> str:
    """64 hex digits over everything that decides a step's result."""
    parts = {"pipeline": PIPELINE, "kind": kind, "spec": spec, "inputs": list(inputs), "prompt": prompt, "seed": seed}
    return hashlib.sha256(canonical_json(parts)).hexdigest()


@dataclass(frozen=True)
class Step:
    """One thing to do to one picture.

    Attributes:
        key: its name. kind: what is done. spec: how (shared by a batch).
        inputs: "picture:<digest>" of an original, "step:<key>" of an earlier step's picture, or "text:<prompt>".
        prompt, seed: of this picture.
    """

    key: str
    kind: Kind
    spec: Mapping[str, Any] = field(hash=False)
    inputs: tuple[str, ...]
    prompt: str | None = None
    seed: int | None = None

    @classmethod
    def of(
        cls,
        kind: Kind,
        spec: Mapping[str, Any],
        inputs: Sequence[str],
        prompt: str | None = None,
        seed: int | None = None,
    ) -> Step:
        return cls(step_key(kind, spec, inputs, prompt, seed), kind, spec, tuple(inputs), prompt, seed)

    @property
    def needs(self) -> tuple[str, ...]:
        """Keys of the steps whose pictures it works on."""
        return tuple(i.removeprefix("step:") for i in self.inputs if i.startswith("step:"))


@dataclass(frozen=True)
class Job:
    """One batch: steps of one kind and one spec, done together by one worker.

    Attributes:
        resource: what the worker has to hold (an editor); a worker that holds it already is preferred.
    """

    steps: tuple[Step, ...]
    resource: str

    @property
    def kind(self) -> Kind:
        return self.steps[0].kind

    @property
    def needs(self) -> frozenset[str]:
        return frozenset(n for step in self.steps for n in step.needs)


@dataclass(frozen=True)
class CaseSpec:
    """One case to be judged and one row of the tables.

    Attributes:
        edit, control: step keys of the edit of the immunized image and of its control edit. immunize: of the immunization.
        source, target: labels of editors. table: of the attack's entry. measure: step key of its metrics, or None.
    """

    edit: str
    control: str
    immunize: str
    measure: str | None
    image_id: str
    original: str
    prompt: str
    prompt_kind: str
    unseen: int
    category: str | None
    method: str
    source: str
    target: str
    purifier: str
    seed: int
    redraw: int
    arm: str
    table: str


#: (table, method, source, target, purifier, prompt kind)
Cell = tuple[str, str, str, str, str, str]


def cell_of(case: CaseSpec) -> Cell:
    """The cell of a table that a case belongs to."""
    return case.table, case.method, case.source, case.target, case.purifier, case.prompt_kind


@dataclass(frozen=True)
class Plan:
    """Everything that an experiment does, in order.

    Attributes:
        steps: by key. jobs: all batches. cases: in order. items: the pictures.
        protection: immunization → its measurement against the original (step keys).
        sets: cell of a table → measurement of the whole set (FID, generative precision).
    """

    experiment: Experiment
    items: tuple[Item, ...]
    steps: Mapping[str, Step]
    jobs: tuple[Job, ...]
    cases: tuple[CaseSpec, ...]
    protection: Mapping[str, str]
    sets: Mapping[Cell, str]

    def count(self, kind: Kind) -> int:
        return sum(step.kind == kind for step in self.steps.values())


def editor_record(entry: EditorEntry) -> dict[str, Any]:
    """What loads an editor."""
    return {"name": entry.name, "options": dict(entry.options)}


def _purifier_record(experiment: Experiment, entry: PurifierEntry | None) -> dict[str, Any] | None:
    if entry is None:
        return None
    editor = None if entry.editor is None else editor_record(experiment.editor(entry.editor))
    return {"name": entry.name, "editor": editor, "options": dict(entry.options)}


class _Picture(Protocol):
    """What a plan needs to know of a picture (an `Item`, or what a run recorded of it)."""

    @property
    def image_id(self) -> str: ...

    @property
    def digest(self) -> str: ...

    @property
    def prompts(self) -> tuple[tuple[str, str], ...]: ...

    @property
    def category(self) -> str | None: ...

    @property
    def prompt(self) -> str: ...


class _Builder:
    def __init__(self, experiment: Experiment, items: Sequence[_Picture]) -> None:
        self.experiment = experiment
        self.items = items
        self.steps: dict[str, Step] = {}
        self.cases: list[CaseSpec] = []
        self.protection: dict[str, str] = {}
        self.pairwise = [name for name in experiment.metrics if name not in SET_METRICS]

    def step(self, kind: Kind, spec: Mapping[str, Any], inputs: Sequence[str], **more: Any) -> Step:
        step = Step.of(kind, spec, inputs, **more)
        return self.steps.setdefault(step.key, step)

    def immunize(self, attack: AttackEntry | None, source: EditorEntry | None, item: _Picture) -> Step:
        if attack is None:
            noise = self.experiment.noise
            spec: dict[str, Any] = {
                "attack": "noise",
                "options": {} if noise is None else dict(noise.options),
                "source": None,
            }
        else:
            made_on = None if source is None else editor_record(source)
            spec = {"attack": attack.name, "options": dict(attack.options), "source": made_on}
        seed = image_seed(self.experiment.seeds.base, item.image_id)
        made = self.step("immunize", spec, [f"picture:{item.digest}"], prompt=item.prompt, seed=seed)
        if self.experiment.protection:
            told = {"metrics": list(self.experiment.protection), "against": "original"}
            inputs = [f"step:{made.key}", f"picture:{item.digest}"]
            self.protection[made.key] = self.step("measure", told, inputs, prompt=item.prompt).key
        return made

    def edit(self, target: EditorEntry, purifier: PurifierEntry | None, picture: str, prompt: str, seed: int) -> Step:
        spec = {
            "editor": editor_record(target),
            "settings": dict(target.settings),
            "purifier": _purifier_record(self.experiment, purifier),
        }
        return self.step("edit", spec, [picture], prompt=prompt, seed=seed)

    def lay_out(self) -> None:
        """All steps and cases."""
        e = self.experiment
        arms: list[tuple[AttackEntry | None, EditorEntry | None, EditorEntry]] = []
        for target in dict.fromkeys(p.target for p in e.matrix):
            if e.noise is not None:
                arms.append((None, None, e.editor(target)))
            arms += [
                (attack, e.editor(pair.source), e.editor(target))
                for pair in e.matrix
                if pair.target == target
                for attack in e.attacks
                if attack.takes(pair)
            ]
        for attack, source, target_entry in arms:
            for purifier in (None, *e.purifiers):
                for item in self.items:
                    self._picture(attack, source, target_entry, purifier, item)

    def sets(self) -> dict[Cell, str]:
        names = [name for name in self.experiment.metrics if name in SET_METRICS]
        cells: dict[Cell, list[CaseSpec]] = {}
        for case in self.cases if names else ():
            cells.setdefault(cell_of(case), []).append(case)
        spec = {"metrics": names, "against": "control", "set": True}
        return {
            cell: self.step(
                "measure", spec, [f"step:{c.edit}" for c in members] + [f"step:{c.control}" for c in members]
            ).key
            for cell, members in cells.items()
        }

    def _picture(
        self,
        attack: AttackEntry | None,
        source: EditorEntry | None,
        target: EditorEntry,
        purifier: PurifierEntry | None,
        item: _Picture,
    ) -> None:
        e = self.experiment
        immunized = self.immunize(attack, source, item)
        for number, (kind, prompt) in enumerate(item.prompts):
            if kind not in e.prompts.kinds:
                continue
            if kind == "unseen" and "clip-text" in e.similarity:
                told = {"metrics": ["clip-text"], "against": "prompt"}
                self.step("measure", told, [f"text:{item.prompt}"], prompt=prompt)
            for redraw in range(e.seeds.redraws):
                seed = image_seed(e.seeds.base, item.image_id, redraw)
                control = self.edit(target, purifier, f"picture:{item.digest}", prompt, seed)
                edit = self.edit(target, purifier, f"step:{immunized.key}", prompt, seed)
                measure = None
                if self.pairwise:
                    told = {"metrics": self.pairwise, "against": "control"}
                    measure = self.step("measure", told, [f"step:{edit.key}", f"step:{control.key}"], prompt=prompt).key
                self.cases.append(
                    CaseSpec(
                        edit=edit.key, control=control.key, immunize=immunized.key, measure=measure, image_id=item.image_id,
                        original=item.digest, prompt=prompt, prompt_kind=kind, unseen=number, category=item.category,
                        method="noise" if attack is None else attack.title, source="" if source is None else source.title,
                        target=target.title, purifier=NONE if purifier is None else purifier.title, seed=seed, redraw=redraw,
                        arm="noise" if attack is None else "immunized", table="main" if attack is None else attack.table,
                    )
                )  # fmt: skip


def _jobs(experiment: Experiment, steps: Iterable[Step]) -> tuple[Job, ...]:
    """Batches of consecutive steps of one spec; an edit of an original never waits for an immunization."""
    sizes = {"immunize": experiment.batch.immunize, "edit": experiment.batch.edit, "measure": experiment.batch.measure}
    groups: dict[tuple[str, bytes, bool], list[Step]] = {}
    for step in steps:
        groups.setdefault((step.kind, canonical_json(step.spec), bool(step.needs)), []).append(step)
    order = {"immunize": 0, "edit": 1, "measure": 2}
    jobs: list[Job] = []
    for (kind, _, waits), members in sorted(groups.items(), key=lambda g: (g[0][2], order[g[0][0]])):
        del waits
        size = 1 if members[0].spec.get("set") else sizes[kind]
        jobs += [Job(tuple(members[i : i + size]), _resource(members[0])) for i in range(0, len(members), size)]
    return tuple(jobs)


def _resource(step: Step) -> str:
    held = step.spec.get("editor") or step.spec.get("source")
    return "" if held is None else canonical_json(held).decode("ascii")


def make_plan(experiment: Experiment, items: Sequence[Item]) -> Plan:
    """The plan of an experiment on these pictures; the same every time."""
    builder = _Builder(experiment, items)
    builder.lay_out()
    sets = builder.sets()
    jobs = _jobs(experiment, builder.steps.values())
    return Plan(experiment, tuple(items), builder.steps, jobs, tuple(builder.cases), builder.protection, sets)


def planned_counts(experiment: Experiment, items: Sequence[_Picture]) -> dict[str, int]:
    """How many steps of each kind, cases and controls an experiment on these pictures has."""
    builder = _Builder(experiment, items)
    builder.lay_out()
    builder.sets()
    found: dict[str, int] = {kind: sum(s.kind == kind for s in builder.steps.values()) for kind in KINDS}
    return {**found, "cases": len(builder.cases), "controls": len({c.control for c in builder.cases})}


def planned_steps(experiment: Experiment, items: Sequence[_Picture]) -> dict[str, Kind]:
    """Names and kinds of all steps of an experiment on these pictures."""
    builder = _Builder(experiment, items)
    builder.lay_out()
    builder.sets()
    return {key: step.kind for key, step in builder.steps.items()}


def planned_cases(experiment: Experiment, items: Sequence[_Picture]) -> list[CaseSpec]:
    """The cases alone, in order: for reading a run whose data set is not at hand."""
    builder = _Builder(experiment, items)
    builder.lay_out()
    return builder.cases
