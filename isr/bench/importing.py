"""`isr import`: another repository's outputs as a manifest, paired by file name, without code.

Rules are a small TOML file:

    [files]                                       # patterns below the folder; {field} stands for a part of a name
    edited = "results/{method}/{image}_{prompt_id}.png"
    original = "data/{image}"                     # without an ending: any picture
    control = "results/clean/{image}_{prompt_id}.png"
    immunized = "protected/{method}/{image}.png"

    [prompts]
    file = "prompts.csv"                          # columns: some of the fields, and prompt; or
    # text = "make it snow"                       # one prompt for all

    [columns]                                     # the same for all rows
    editor = "ip2p"

    [rename.method]                               # what a field says → what the manifest says
    ours = "sifm"
"""

from __future__ import annotations

import csv
import json
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from ..errors import Problem, ProblemsError, UsageError
from ..images import ImageError, as_image
from ..perturbation import measure
from ..store import write_atomic

__all__ = ["Imported", "Rules", "import_folder", "load_rules"]

#: Fields that are columns of a manifest; others become tags.
_COLUMNS = ("method", "editor", "prompt_kind", "category", "seed", "purifier", "arm")
_PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
_FIELD = re.compile(r"\{([a-z][a-z0-9_]*)\}")


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
            if "image" not in _FIELD.findall(pattern):
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
        role: _matches(role, pattern, names, problems)
        for role, pattern in rules.files.model_dump().items()
        if pattern is not None
    }
    # A control is often the edit pattern with one method ("clean"): what a narrower pattern takes is no edit.
    taken = {name for role in ("control", "original", "immunized") for _, name in found.get(role, [])}
    edits = [(fields, name) for fields, name in found["edited"] if name not in taken]
    if not edits and not problems:
        raise UsageError(
            f"files.edited: no picture below {str(folder)!r} fits {rules.files.edited!r}; the first are: {', '.join(names[:5])}"
        )
    prompts = _Prompts_of(rules, base, Path(rules_folder) if rules_folder is not None else base)
    rows: list[dict[str, Any]] = []
    for fields, name in edits:
        row: dict[str, Any] = {"edited": name, "id": name, "image_id": fields["image"], **rules.columns}
        row |= {_column(k): rules.rename.get(k, {}).get(v, v) for k, v in fields.items() if k != "image"}
        for role in ("original", "control"):
            if role in found:
                row[role] = _partner(role, fields, found[role], name, problems)
        if "immunized" in found and row.get("original") is not None:
            protected = _partner("immunized", fields, found["immunized"], name, problems)
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
    used = taken | {name for _, name in edits}
    return Imported(
        tuple({k: v for k, v in r.items() if v is not None} for r in rows),
        without_original=without,
        without_control=sum(r.get("control") is None for r in rows),
        without_immunized=sum("levels" not in r for r in rows) if "immunized" in found else len(rows),
        unmatched=tuple(n for n in names if n not in used),
    )


def _pictures(base: Path) -> Iterator[str]:
    for path in base.rglob("*"):
        if path.suffix.lower() in _PICTURES and path.is_file() and not path.is_symlink():
            yield path.relative_to(base).as_posix()


def _regex(pattern: str) -> re.Pattern[str]:
    """A pattern as a regular expression; a field that stands twice must say the same."""
    seen: set[str] = set()
    out = []
    last = 0
    for match in _FIELD.finditer(pattern):
        out.append(re.escape(pattern[last : match.start()]))
        name = match[1]
        out.append(f"(?P={name})" if name in seen else f"(?P<{name}>[^/]+?)")
        seen.add(name)
        last = match.end()
    out.append(re.escape(pattern[last:]))
    ending = "" if Path(pattern).suffix.lower() in _PICTURES else r"\.[A-Za-z]+"
    return re.compile("".join(out) + ending)


def _matches(role: str, pattern: str, names: list[str], problems: list[Problem]) -> list[tuple[dict[str, str], str]]:
    regex = _regex(pattern)
    found = [(match.groupdict(), name) for name in names if (match := regex.fullmatch(name))]
    seen: dict[tuple[tuple[str, str], ...], str] = {}
    for fields, name in found:
        key = tuple(sorted(fields.items()))
        if key in seen:
            problems.append(
                Problem(name, f"and {seen[key]} are both {role} of {fields}; keep one, or make files.{role} narrower")
            )
        seen[key] = name
    return found


def _partner(
    role: str,
    fields: Mapping[str, str],
    candidates: list[tuple[dict[str, str], str]],
    edit: str,
    problems: list[Problem],
) -> str | None:
    """The picture of a role that agrees with an edit in every field both have."""
    fitting = [n for f, n in candidates if all(fields.get(k, v) == v for k, v in f.items())]
    if len(fitting) > 1:
        problems.append(
            Problem(
                edit,
                f"{len(fitting)} pictures fit as its {role} ({fitting[0]}, {fitting[1]}, …); the pattern needs more fields",
            )
        )
    return fitting[0] if len(fitting) == 1 else None


class _Prompts_of:  # noqa: N801 - read as "prompts of"
    """Prompts by the fields that their table has."""

    def __init__(self, rules: Rules, base: Path, beside: Path) -> None:
        self.text = rules.prompts.text
        self.problems: list[Problem] = []
        self.keys: tuple[str, ...] = ()
        self.table: dict[tuple[str, ...], str] = {}
        if rules.prompts.file is None:
            return
        path = next((p for p in (base / rules.prompts.file, beside / rules.prompts.file) if p.is_file()), None)
        if path is None:
            raise UsageError(f"prompts.file: no {rules.prompts.file!r} in {str(base)!r}")
        try:
            rows = list(
                csv.DictReader(
                    path.read_text("utf-8-sig").splitlines(), delimiter="\t" if path.suffix == ".tsv" else ","
                )
            )
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"prompts.file: cannot read {str(path)!r}: {error}") from error
        heads = [h for h in (rows[0] if rows else {}) if h]
        known = set(_FIELD.findall(rules.files.edited))
        self.keys = tuple(h for h in heads if h in known)
        if "prompt" not in heads or not self.keys:
            raise UsageError(
                f"prompts.file: {path.name} needs the column prompt and at least one of {', '.join(sorted(known))}; it has {', '.join(heads) or 'none'}"
            )
        for number, row in enumerate(rows, 2):
            key = tuple(str(row[k]) for k in self.keys)
            if self.table.setdefault(key, str(row["prompt"])) != row["prompt"]:
                self.problems.append(Problem(f"{path.name}:{number}", f"another prompt for {key} than before"))

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
