"""`isr import`: another repository's outputs as a manifest, paired by file name, without code.

Rules are a small TOML file:

    [files]                                       # patterns below the folder; {field} stands for a part of a name
    edited = "results/{method}/{image}_{prompt_id}.png"
    original = "data/{image}"                     # without an ending: any picture
    control = "results/clean/{image}_{prompt_id}.png"
    immunized = "protected/{method}/{image}.png"

    [prompts]
    file = "prompts.csv"                          # columns: some of the fields, and prompt; others (prompt_kind) go along; or
    # text = "make it snow"                       # one prompt for all

    [columns]                                     # the same for all rows
    editor = "ip2p"

    [rename.method]                               # what a field says → what the manifest says
    ours = "sifm"
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from ..errors import Problem, ProblemsError, UsageError
from ..images import ImageError, as_image
from ..perturbation import measure
from ..store import write_atomic
from .naming import FIELD, PICTURES, Candidates, Named, matches
from .spreadsheet import rows_of

__all__ = ["Imported", "Rules", "import_folder", "load_rules"]

#: Fields that are columns of a manifest; others become tags.
_COLUMNS = ("method", "editor", "prompt_kind", "category", "seed", "purifier", "arm")


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class _Files(_Part):
    edited: str
    original: str | None = None
    control: str | None = None
    immunized: str | None = None

    @field_validator("edited", "original", "control", "immunized")
    @classmethod
    def _pattern(cls, pattern: str | None) -> str | None:
        if pattern is not None:
            if "image" not in FIELD.findall(pattern):
                raise ValueError(f"{pattern!r} has no {{image}}, which says what belongs together")
            if pattern.startswith("/") or ".." in pattern.split("/") or "\\" in pattern:
                raise ValueError(f"{pattern!r} must be a path below the folder, with forward slashes")
        return pattern


class _Prompts(_Part):
    file: str | None = None
    text: str | None = None

    @model_validator(mode="after")
    def _one(self) -> _Prompts:
        if (self.file is None) == (self.text is None):
            raise ValueError("give either file or text")
        return self


class Rules(_Part):
    """How names are read; see the module's docstring."""

    files: _Files
    prompts: _Prompts
    columns: dict[str, str | int | float | bool] = Field(default_factory=dict)
    rename: dict[str, dict[str, str]] = Field(default_factory=dict)


@dataclass(frozen=True)
class Imported:
    """What was found.

    Attributes:
        rows: of the manifest, paths relative to the folder. without_original, without_control, without_immunized: counts.
        unmatched: pictures that no pattern names.
    """

    rows: tuple[dict[str, Any], ...]
    without_original: int
    without_control: int
    without_immunized: int
    unmatched: tuple[str, ...]

    def write(self, path: str | Path, folder: str | Path) -> Path:
        """The manifest as JSONL for `isr evaluate`; paths are relative to it where they can be."""
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        base = Path(folder).resolve()
        lines = []
        for row in self.rows:
            told = dict(row)
            for name in ("edited", "original", "control"):
                if told.get(name) is not None:
                    full = base / told[name]
                    here = target.resolve().parent
                    told[name] = str(full.relative_to(here) if full.is_relative_to(here) else full)
            lines.append(json.dumps(told, ensure_ascii=False) + "\n")
        write_atomic(target, "".join(lines).encode("utf-8"))
        return target


def load_rules(path: str | Path) -> Rules:
    """Rules from a TOML file; errors name the key."""
    try:
        return Rules.model_validate(tomllib.loads(Path(path).read_text("utf-8")))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"rules {str(path)!r}: {error}") from error
    except ValidationError as error:
        told = "\n".join(
            f"  {'.'.join(map(str, e['loc'])) or 'file'}: {str(e['msg']).removeprefix('Value error, ')}"
            for e in error.errors()
        )
        raise UsageError(f"rules {str(path)!r}:\n{told}") from error


def import_folder(folder: str | Path, rules: Rules, *, rules_folder: str | Path | None = None) -> Imported:
    """Pair the pictures of a folder.

    Args:
        rules_folder: where prompts.file is looked for after the folder itself.

    Raises:
        UsageError: the folder holds no edit. ProblemsError: two files fit one place, edits without a prompt, prompts that
            contradict one another, or only some edits with an original.
    """
    base = Path(folder)
    if not base.is_dir():
        raise UsageError(f"folder: {str(folder)!r} is no folder")
    names = sorted(_pictures(base))
    problems: list[Problem] = []
    found = {
        role: matches(role, pattern, names, problems)
        for role, pattern in rules.files.model_dump().items()
        if pattern is not None
    }
    # A control is often the edit pattern with one method ("clean"): what a narrower pattern takes is no edit.
    taken = {one.name for role in ("control", "original", "immunized") for one in found.get(role, [])}
    edits = [one for one in found["edited"] if one.name not in taken]
    of_role = {role: Candidates(found[role]) for role in ("original", "control", "immunized") if role in found}
    if not edits and not problems:
        raise UsageError(
            f"files.edited: no picture below {str(folder)!r} fits {rules.files.edited!r}; the first are: {', '.join(names[:5])}"
        )
    prompts = _Prompts_of(rules, base, Path(rules_folder) if rules_folder is not None else base)
    rows: list[dict[str, Any]] = []
    for edit in edits:
        name, fields = edit.name, _reading(edit, prompts, of_role.get("original"), problems)
        row: dict[str, Any] = {"edited": name, "id": name, "image_id": fields["image"], **rules.columns}
        told = {**prompts.beside(fields), **{k: v for k, v in fields.items() if k != "image"}}
        row |= {_column(k): rules.rename.get(k, {}).get(v, v) for k, v in told.items()}
        for role in ("original", "control"):
            if role in found:
                row[role] = _partner(role, of_role[role].of(fields), name, problems)
        if "immunized" in found and row.get("original") is not None:
            protected = _partner("immunized", of_role["immunized"].of(fields), name, problems)
            if protected is not None:
                row |= _perturbation(base / row["original"], base / protected, protected, problems)
        prompt = prompts.of(fields)
        if prompt is None:
            problems.append(Problem(name, f"no prompt for {fields}"))
        row["prompt"] = prompt
        if "seed" in row:
            row["seed"] = _seed(row["seed"], name, problems)
        rows.append(row)
    problems += prompts.problems
    without = sum(r.get("original") is None for r in rows)
    if "original" in found and without:
        first = next(r["edited"] for r in rows if r.get("original") is None)
        problems.append(
            Problem(
                first, f"has no original, as {without} of {len(rows)} edits; complete them or leave files.original out"
            )
        )
    if problems:
        raise ProblemsError(problems)
    used = taken | {edit.name for edit in edits}
    return Imported(
        tuple({k: v for k, v in r.items() if v is not None} for r in rows),
        without_original=without,
        without_control=sum(r.get("control") is None for r in rows),
        without_immunized=sum("levels" not in r for r in rows) if "immunized" in found else len(rows),
        unmatched=tuple(n for n in names if n not in used),
    )


def _pictures(base: Path) -> Iterator[str]:
    for path in base.rglob("*"):
        if path.suffix.lower() in PICTURES and path.is_file() and not path.is_symlink():
            yield path.relative_to(base).as_posix()


def _reading(
    edit: Named, prompts: _Prompts_of, originals: Candidates | None, problems: list[Problem]
) -> Mapping[str, str]:
    """What the fields of an edit say. Where its name can be read in several ways, the one that has a prompt, an
    original and a seed that is a number."""
    known = [
        f
        for f in edit.ways
        if prompts.of(f) is not None and (originals is None or originals.of(f)) and f.get("seed", "0").isdecimal()
    ]
    if len(known) > 1 or (len(edit.ways) > 1 and not known and originals is None):
        one, other = (known or edit.ways)[:2]
        problems.append(
            Problem(
                edit.name,
                f"can be read as {dict(one)} and as {dict(other)}; make files.edited narrower, or give prompts.file or "
                "files.original, so that one of them fits",
            )
        )
    return (known or edit.ways)[0]


def _partner(role: str, fitting: Sequence[str], edit: str, problems: list[Problem]) -> str | None:
    """The one picture of a role."""
    if len(fitting) > 1:
        problems.append(
            Problem(
                edit,
                f"{len(fitting)} pictures fit as its {role} ({fitting[0]}, {fitting[1]}, …); the pattern needs more fields",
            )
        )
    return fitting[0] if len(fitting) == 1 else None


class _Prompts_of:  # noqa: N801 - read as "prompts of"
    """Prompts by the fields that their table has, and what its further columns say of each."""

    def __init__(self, rules: Rules, base: Path, beside: Path) -> None:
        self.text = rules.prompts.text
        self.problems: list[Problem] = []
        self.keys: tuple[str, ...] = ()
        self.table: dict[tuple[str, ...], str] = {}
        self.more: dict[tuple[str, ...], dict[str, str]] = {}
        if rules.prompts.file is None:
            return
        path = next((p for p in (base / rules.prompts.file, beside / rules.prompts.file) if p.is_file()), None)
        if path is None:
            raise UsageError(f"prompts.file: no {rules.prompts.file!r} in {str(base)!r}")
        rows = list(rows_of(path, "prompts.file"))
        heads = [h for h in (rows[0][1] if rows else {}) if h]
        known = set(FIELD.findall(rules.files.edited))
        self.keys = tuple(h for h in heads if h in known)
        if "prompt" not in heads or not self.keys:
            raise UsageError(
                f"prompts.file: {path.name} needs the column prompt and at least one of {', '.join(sorted(known))}; it has {', '.join(heads) or 'none'}"
            )
        for number, row in rows:
            key = tuple(row[k] for k in self.keys)
            if not row["prompt"].strip():
                self.problems.append(Problem(f"{path.name}:{number}", f"no prompt for {key}"))
                continue
            more = {h: row[h] for h in heads if h not in ("prompt", *self.keys) and row[h]}
            if self.table.setdefault(key, row["prompt"]) != row["prompt"]:
                self.problems.append(Problem(f"{path.name}:{number}", f"another prompt for {key} than before"))
            elif self.more.setdefault(key, more) != more:
                self.problems.append(
                    Problem(
                        f"{path.name}:{number}",
                        f"says something else of {key} than before; add a field to tell them apart",
                    )
                )

    def beside(self, fields: Mapping[str, str]) -> dict[str, str]:
        """Further columns of the table: prompt_kind, category, …"""
        return {} if self.text is not None else self.more.get(tuple(fields[k] for k in self.keys), {})

    def of(self, fields: Mapping[str, str]) -> str | None:
        return self.text if self.text is not None else self.table.get(tuple(fields[k] for k in self.keys))


def _column(name: str) -> str:
    return (
        name
        if name in _COLUMNS
        else f"tag_{name}"
        if name in ("edited", "original", "control", "prompt", "id", "image_id")
        else name
    )


def _seed(value: object, name: str, problems: list[Problem]) -> int | None:
    try:
        return int(str(value))
    except ValueError:
        problems.append(Problem(name, f"its seed is {value!r}, not a whole number; call the field otherwise"))
        return None


def _perturbation(original: Path, protected: Path, name: str, problems: list[Problem]) -> dict[str, Any]:
    """How far the immunized picture is from its original (levels, L2); another size is a problem, not a number."""
    try:
        a, b = as_image(original).pil(), as_image(protected).pil()
        found = measure(a, b)
    except (ImageError, UsageError) as error:
        problems.append(Problem(name, str(error)))
        return {}
    return {"levels": found.levels, "l2": round(found.l2, 6)}
