"""The store of an experiment: a run directory (isr/store.py) with the steps beside the cases.

    experiment.json     the experiment as planned, its hash, its pictures in order, versions (replaced atomically)
    steps.jsonl         one `StepRow` per finished step, append-only
    card.json           the result card (isr/bench/card.py)
    .lock               held by the process that writes

Only one process writes: workers hand their pictures and rows to it. The lock is the operating system's, so it goes with a
killed process and never has to be removed by hand.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, model_validator

from ..errors import IntegrityError, UsageError
from ..images import as_image
from ..schema import Record
from ..store import RunFiles, is_digest, write_atomic
from .plan import Kind

__all__ = ["ExperimentFiles", "RunInfo", "StepRow", "filled"]


class StepRow(Record):
    """A finished step.

    Attributes:
        key, kind, spec, inputs, prompt, seed: of the step.
        digest: of its picture, or None (measurements). purified: of the picture that the editor was given, where purified.
        result: what it recorded: verified perturbation, settings with the weights' fingerprint, metric values.
        seconds: of its batch without loading of models, divided by the batch's size. worker: who did it. at: when (ISO 8601 UTC).
    """

    key: str
    kind: Kind
    spec: dict[str, Any]
    inputs: tuple[str, ...]
    prompt: str | None = None
    seed: int | None = None
    digest: str | None = None
    purified: str | None = None
    result: dict[str, Any] = Field(default_factory=dict)
    seconds: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    worker: str = ""
    at: str = ""

    @model_validator(mode="after")
    def _readable(self) -> StepRow:
        """A row may come from a stranger: whatever tables, checks and merges read of it is there and of its type."""
        if wrong := wrong_in(self.kind, self.result):
            raise ValueError(wrong)
        if len(self.inputs) < (2 if self.kind == "measure" and self.spec.get("against") != "prompt" else 1):
            raise ValueError(f"inputs: {len(self.inputs)} are too few for a step of kind {self.kind}")
        for name in self.inputs:
            kind, _, rest = name.partition(":")
            if kind != "text" and not (kind in ("picture", "step") and is_digest(rest)):
                raise ValueError(f"inputs: {name[:80]!r} is no picture:DIGEST, step:KEY or text:TEXT")
        if self.kind != "measure" and self.digest is None:
            raise ValueError(f"digest: a finished step of kind {self.kind} has a picture")
        json.dumps([self.spec, self.result], allow_nan=False)
        return self


def wrong_in(kind: Kind, result: Mapping[str, Any]) -> str:
    """What is not of its type in a step's result; empty where nothing is."""

    def part(name: str, value: Any, fits: bool) -> str:
        return "" if fits else f"result: {name} is {value!r:.60}"

    if kind == "measure":
        metrics = result.get("metrics")
        if not isinstance(metrics, dict):
            return part("metrics", metrics, False)
        return next((w for name, told in metrics.items() if (w := part(name, told, _is_value(told)))), "")
    editor = result.get("editor")
    wrong = part("editor", editor, editor is None or isinstance(editor, dict))
    if kind == "edit":
        seedable = result.get("seedable", True)
        return wrong or part("seedable", seedable, isinstance(seedable, bool))
    measured, budget = result.get("measured"), result.get("budget")
    sizes = isinstance(measured, dict) and _is_number(measured.get("levels")) and _is_number(measured.get("l2"))
    known = budget is None or (
        isinstance(budget, dict) and isinstance(budget.get("norm"), str) and _is_number(budget.get("eps"))
    )
    return wrong or part("measured", measured, sizes) or part("budget", budget, known)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_value(told: Any) -> bool:
    """One value of a metric, or why there is none (isr/bench/work.py)."""
    return (
        isinstance(told, dict)
        and "value" in told
        and (told["value"] in (None, "inf") or _is_number(told["value"]))
        and isinstance(told.get("reason", ""), str)
        and ("convention" not in told or (isinstance(told["convention"], str) and "higher_is_closer" in told))
    )


class RunInfo(Record):
    """experiment.json.

    Attributes:
        layout: of the folder. experiment, hash: as planned last. history: hashes before. versions: of packages at the first start.
        items, shard: the pictures in the plan's order, and which share of them this folder is to have. plan: counts.
        makings: when, where and how steps were made.
    """

    layout: int
    experiment: dict[str, Any]
    hash: str
    versions: dict[str, str | None] = Field(default_factory=dict)
    history: list[str] = Field(default_factory=list)
    plan: dict[str, int] = Field(default_factory=dict)
    items: list[Any] = Field(default_factory=list)
    shard: str | None = None
    makings: list[dict[str, Any]] = Field(default_factory=list)

    @model_validator(mode="after")
    def _finite(self) -> RunInfo:
        json.dumps([self.experiment, self.items, self.makings], allow_nan=False)
        return self


@dataclass(frozen=True)
class ExperimentFiles:
    """Reading and writing of one experiment's folder."""

    run: RunFiles

    @classmethod
    def at(cls, folder: str | Path) -> ExperimentFiles:
        return cls(RunFiles.at(folder))

    @property
    def folder(self) -> Path:
        return self.run.folder

    def exists(self) -> bool:
        return (self.folder / "experiment.json").is_file()

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the lock; a second process on the same run gets a clear error and changes nothing."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = open(self.folder / ".lock", "a+b")  # noqa: SIM115 - held open by the block below
        except OSError as error:
            raise UsageError(
                f"run: cannot write into {str(self.folder)!r} ({error.strerror or type(error).__name__}); give another folder"
            ) from error
        with lock as file:
            if not _try_lock(file.fileno()):
                file.seek(0)
                holder = file.read(64).decode("ascii", "replace").strip() or "unknown"
                raise UsageError(
                    f"run: another process (id {holder}) works on {str(self.folder)!r}; wait for it, or give another folder"
                )
            file.truncate(0)
            file.write(str(os.getpid()).encode("ascii"))
            file.flush()
            yield  # closing the file gives the lock back

    # ------------------------------------------------------------------------------------------------ records

    def write_record(self, name: str, record: Mapping[str, Any]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False)
        write_atomic(self.folder / name, text.encode("utf-8") + b"\n")

    def read_record(self, name: str) -> dict[str, Any]:
        path = self.folder / name
        if not path.is_file() or path.is_symlink():
            raise UsageError(f"run: {str(self.folder)!r} holds no {name}, so it is no experiment run")
        try:
            found = json.loads(path.read_text("utf-8"))
        except ValueError as error:
            raise IntegrityError(f"{path}: not valid JSON ({error})") from error
        if not isinstance(found, dict):
            raise IntegrityError(f"{path}: expected a JSON object")
        return found

    def info(self) -> dict[str, Any]:
        """experiment.json as `RunInfo` has it.

        Raises:
            UsageError: there is none. IntegrityError: it is not of this layout.
        """
        try:
            return RunInfo.model_validate(self.read_record("experiment.json")).model_dump()
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise IntegrityError(f"{self.folder / 'experiment.json'}: {where}: {first['msg']}") from error

    def picture(self, digest: str) -> bytes | None:
        """PNG of a stored picture, hashed again; None where the run holds no pictures.

        Raises:
            IntegrityError: its pixels are not those of its name.
        """
        png = self.run.image_bytes(digest)
        if png is not None and as_image(png, name=digest).digest != digest:
            raise IntegrityError(f"{self.run.image_path(digest)}: its pixels are not those of its name")
        return png

    # -------------------------------------------------------------------------------------------------- steps

    def steps(self) -> dict[str, StepRow]:
        """Finished steps by key; the first row of a key stands. What a measurement lacked, a later row of it fills in."""
        found: dict[str, StepRow] = {}
        for row in self.run._rows("steps.jsonl", StepRow):
            for digest in (row.digest, row.purified):
                if digest is not None and not is_digest(digest):
                    raise IntegrityError(f"{self.folder}/steps.jsonl: {digest!r} is not a digest (64 hex digits)")
            held = found.setdefault(row.key, row)
            if held is not row:
                found[row.key] = filled(held, row)
        return found

    def append_steps(self, rows: Sequence[StepRow]) -> None:
        """Pictures must be there already: a row is what marks a step as done."""
        self.run.append("steps.jsonl", rows)


def filled(row: StepRow, later: StepRow) -> StepRow:
    """A measurement with what it lacked (docs/benchmark.md), from another one of the same step; any other row as it is."""
    if row.kind != "measure":
        return row
    have, more = row.result.get("metrics", {}), later.result.get("metrics", {})
    new = {name: m for name, m in more.items() if _settled(m) > _settled(have.get(name))}
    return row.model_copy(update={"result": {**row.result, "metrics": {**have, **new}}}) if new else row


def _settled(value: Mapping[str, Any] | None) -> int:
    """How final a stored value is: absent, lacking weights, known not to exist, a number."""
    if value is None:
        return 0
    if value.get("value") is not None:
        return 3
    return 1 if value.get("lacking") is True else 2


def _try_lock(handle: int) -> bool:
    """The operating system's lock on a file, without waiting."""
    try:
        import fcntl
    except ImportError:  # Windows
        import msvcrt

        try:
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined,unused-ignore]
        except OSError:
            return False
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
