"""The part of `isr check` that measures again: every stored metric value against the stored pictures that it is of."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

from ..errors import IntegrityError, IsrError
from ..images import as_image
from .files import ExperimentFiles, StepRow
from .plan import Step
from .work import Batch, Worker

__all__ = ["ABSOLUTE", "RELATIVE", "Rechecked", "agree", "recheck"]

#: How far machines may differ in one value; the larger of the two counts. Kernels of other instruction sets add in another
#: order, which moves float32 metrics by some 1e-6 (docs/benchmark.md); pairs that it moves farther: `_rounding`.
RELATIVE, ABSOLUTE = 1e-4, 1e-5
#: The same for learned networks, whose convolutions a library may also carry out by another algorithm.
LEARNED_RELATIVE, LEARNED_ABSOLUTE = 1e-3, 1e-4
#: Pairs of pictures in memory at a time.
BATCH = 16

_PROMPTS = ("clip-text",)


@dataclass
class Rechecked:
    """values: how many were measured again. wrong: one line per value that is not what the pictures give.
    skipped: (metric, reason) → how many values could not be checked. of: metric → how many there are.
    lines: what else was not checked."""

    values: int = 0
    wrong: list[str] = field(default_factory=list)
    skipped: dict[tuple[str, str], int] = field(default_factory=dict)
    of: dict[str, int] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)

    def skip(self, metric: str, reason: str) -> None:
        self.skipped[metric, reason] = self.skipped.get((metric, reason), 0) + 1

    @property
    def unchecked(self) -> list[str]:
        """One line per metric and reason."""
        return self.lines + [f"{m} on {n} of {self.of[m]}: {reason}" for (m, reason), n in self.skipped.items()]


def agree(stored: Any, again: Any, *, relative: float = RELATIVE, absolute: float = ABSOLUTE) -> bool:
    """Whether two values of a metric (a number, "inf", or None where there is none) are the same but for the machine."""
    if stored is None or again is None:
        return stored is again
    return math.isclose(float(stored), float(again), rel_tol=relative, abs_tol=absolute)


def recheck(rows: Mapping[str, StepRow], files: ExperimentFiles) -> Rechecked:
    """Measure again what a run's measurements record, in batches.

    Metrics without weights always (PSNR, SSIM, VIFp, FSIM); the others where their weights lie on this machine. A value that
    was n/a for want of weights is no claim, and is left alone.

    Args:
        rows: all steps of the run, by key.
    """
    found = Rechecked()
    measurements = [row for row in rows.values() if row.kind == "measure"]
    if measurements and find_spec("torch") is None:
        n = len(measurements)
        found.lines.append(f"image metrics on {n} measurements: they need the package 'torch', which is not installed")
    elif measurements:
        _Checker(rows, files, found).check(measurements)
    return found


class _Checker:
    def __init__(self, rows: Mapping[str, StepRow], files: ExperimentFiles, found: Rechecked) -> None:
        from ..metrics import METRICS

        self.rows, self.files, self.found = rows, files, found
        self.metrics = METRICS
        self.worker = Worker("check")
        self.gone: dict[str, str] = {}

    def check(self, measurements: Iterable[StepRow]) -> None:
        groups: dict[tuple[str, bool, tuple[str, ...]], list[StepRow]] = {}
        for row in measurements:
            against, whole = str(row.spec.get("against")), bool(row.spec.get("set"))
            plain, learned = self._names(row)
            # One by one for learned ones: a damaged file of weights costs that metric only.
            for names in (plain, *((name,) for name in learned)):
                if names:
                    groups.setdefault(("prompt" if against == "prompt" else "", whole, names), []).append(row)
        for (_, whole, names), members in groups.items():
            size = 1 if whole else BATCH
            for i in range(0, len(members), size):
                self._batch(names, members[i : i + size])

    def _names(self, row: StepRow) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """What of a row can be measured again: metrics without weights, metrics with. The rest is said here."""
        told: Mapping[str, Any] = row.result["metrics"]
        asked = row.spec.get("metrics")
        for name in asked if isinstance(asked, list) else ():
            if name not in told:
                self.found.wrong.append(f"{_name(row)}: records no {name!r:.60}, which it was to measure")
        if wrong := _inputs_wrong(row):
            self.found.wrong.append(f"{_name(row)}: {wrong}")
            return (), ()
        per = "set" if row.spec.get("set") else "pair"
        plain, learned = [], []
        for name, value in told.items():
            metric = self.metrics.get(name)
            of_prompts = row.spec.get("against") == "prompt"
            if (name not in _PROMPTS) if of_prompts else (metric is None):
                shown = f"{name!r:.60}"
                self._count(shown)
                self.found.skip(shown, "no metric of this version")
            elif metric is not None and metric.per != per:
                self.found.wrong.append(
                    f"{_name(row)}: {name} is a metric per {metric.per}, this is a measurement per {per}"
                )
            elif metric is not None and metric.pair is not None:
                self._count(name)
                plain.append(name)
            elif value.get("lacking") is not True or value["value"] is not None:
                self._count(name)
                learned.append(name)
        return tuple(plain), tuple(learned)

    def _count(self, name: str) -> None:
        self.found.of[name] = self.found.of.get(name, 0) + 1

    def _batch(self, names: tuple[str, ...], members: Sequence[StepRow]) -> None:
        if names[0] in self.gone:  # its weights are not here
            for _ in members:
                self.found.skip(names[0], self.gone[names[0]])
            return
        whole, pictures = [], []
        for row in members:
            read = [self._read(i) for i in row.inputs]
            there = [r for r in read if r is not None]
            if len(there) == len(read):
                whole.append(row)
                pictures.append(tuple(there))
            else:
                for name in names:
                    self.found.skip(name, "a picture is missing or damaged")
        if whole:
            self._measure(names, whole, pictures)

    def _measure(
        self, names: tuple[str, ...], members: Sequence[StepRow], pictures: Sequence[tuple[bytes, ...]]
    ) -> None:
        steps = tuple(
            Step(row.key, row.kind, {**row.spec, "metrics": list(names)}, row.inputs, row.prompt, row.seed)
            for row in members
        )
        try:
            done = self.worker.do(Batch(0, steps, tuple(pictures)))
        except IntegrityError as error:  # of the weights: what the pictures are was looked at before
            self.gone[names[0]] = str(error)
            self._batch(names, members)
            return
        except IsrError as error:
            if len(members) > 1:
                for row, one in zip(members, pictures, strict=True):
                    self._measure(names, [row], [one])
            else:
                self.found.wrong.append(f"{_name(members[0])}: cannot be measured again: {error}")
            return
        for row, new in zip(members, done.rows, strict=True):
            for name in names:
                self._compare(row, name, row.result["metrics"][name], new.result["metrics"][name])

    def _compare(self, row: StepRow, name: str, stored: Mapping[str, Any], again: Mapping[str, Any]) -> None:
        if again["value"] is None and again.get("lacking") is True:
            self.gone[name] = str(again.get("reason", ""))
            self.found.skip(name, self.gone[name])
            return
        conventions = stored.get("convention"), again.get("convention")
        if None not in conventions and conventions[0] != conventions[1]:
            self.found.skip(name, f"recorded in another convention than this version's: {conventions[0]!r:.80}")
            return
        self.found.values += 1
        metric = self.metrics.get(name)
        if metric is not None and metric.pair is not None:
            same = agree(stored["value"], again["value"]) or self._rounding(row, name, stored["value"], again["value"])
        else:
            # Precision counts pictures, and rounding may carry one of them over the edge.
            one = 2 / len(row.inputs) if name == "precision" else 0.0
            absolute = max(LEARNED_ABSOLUTE, 1.001 * one)
            same = agree(stored["value"], again["value"], relative=LEARNED_RELATIVE, absolute=absolute)
        if not same:
            self.found.wrong.append(
                f"{_name(row)}: {name} is recorded as {_shown(stored)}, the pictures give {_shown(again)}"
            )

    def _rounding(self, row: StepRow, name: str, stored: Any, again: Any) -> bool:
        """Whether float32 itself carries this pair that far: VIFp of a nearly flat reference divides by variances that are
        mostly rounding. Its error against float64, ten times over, is the pair's tolerance."""
        if not (isinstance(stored, int | float) and isinstance(again, int | float)):
            return False
        import torch

        from ..metrics import compute

        read = [self._read(i) for i in row.inputs[:2]]
        pair = [
            torch.tensor(as_image(r, name=name).array()).permute(2, 0, 1)[None].double() / 255
            for r in read
            if r is not None
        ]
        if len(pair) != 2:
            return False
        exact = compute([name], pair[0], pair[1])[name].available
        return bool(exact) and abs(stored - exact[0]) <= 10 * abs(again - exact[0])

    def _read(self, name: str) -> bytes | None:
        """A step's input; None where it is not in the run, or is not what its name says (said by the check of the steps)."""
        kind, _, rest = name.partition(":")
        if kind == "text":
            return rest.encode("utf-8")
        made = self.rows.get(rest) if kind == "step" else None
        digest = rest if kind == "picture" else None if made is None else made.digest
        if digest is None:
            return None
        try:
            return self.files.picture(digest)
        except IsrError:
            return None


def _inputs_wrong(row: StepRow) -> str:
    kinds = {name.partition(":")[0] for name in row.inputs}
    if row.spec.get("against") == "prompt":
        return "" if kinds == {"text"} else "compares prompts, and its inputs are none"
    if "text" in kinds:
        return "compares pictures, and an input is a text"
    return "its set has an odd number of pictures" if row.spec.get("set") and len(row.inputs) % 2 else ""


def _name(row: StepRow) -> str:
    return f"step {row.key[:12]} ({row.kind})"


def _shown(told: Mapping[str, Any]) -> str:
    value = told["value"]
    if value is None:
        return f"n/a ({str(told.get('reason', ''))!r:.100})"
    return value if isinstance(value, str) else f"{value:.7g}"
