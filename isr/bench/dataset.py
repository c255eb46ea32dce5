"""The pictures of an experiment: each with its original prompt, unseen prompts, id and category."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from ..errors import IntegrityError, Problem, ProblemsError, UsageError
from ..images import ImageError, ImageRef, as_image
from ..store import is_digest
from .experiment import Experiment
from .spreadsheet import rows_of

__all__ = ["Item", "StoredItem", "load_items", "share", "stored_items"]


P = TypeVar("P")


@dataclass(frozen=True)
class Item:
    """One picture. original: canonical. prompts: (kind, text), the original prompt first."""

    image_id: str
    original: ImageRef
    prompts: tuple[tuple[str, str], ...]
    category: str | None = None

    @property
    def prompt(self) -> str:
        """The original prompt, which immunizers may know."""
        return self.prompts[0][1]

    @property
    def digest(self) -> str:
        """Of the original."""
        return self.original.digest

    def record(self) -> dict[str, Any]:
        """JSON-able, as kept in the run: all that a plan needs, so that a run can be read where its data set is not."""
        return {
            "image_id": self.image_id, "original": self.digest, "category": self.category,
            "prompts": [list(p) for p in self.prompts],
        }  # fmt: skip


@dataclass(frozen=True)
class StoredItem:
    """One picture as a run recorded it. digest: of its original."""

    image_id: str
    digest: str
    prompts: tuple[tuple[str, str], ...]
    category: str | None = None

    @property
    def prompt(self) -> str:
        return self.prompts[0][1]


def stored_items(info: Mapping[str, Any], where: str) -> list[StoredItem]:
    """The pictures of a run, from its experiment.json; empty for runs that recorded none.

    Raises:
        IntegrityError: they are not what a run records.
    """
    found = []
    for row in info.get("items", ()):
        try:
            prompts = tuple((str(kind), str(text)) for kind, text in row["prompts"])
            item = StoredItem(str(row["image_id"]), str(row["original"]), prompts, row.get("category"))
        except (TypeError, KeyError, ValueError) as error:
            raise IntegrityError(f"{where}: a picture under 'items' is not of this layout ({error!r})") from error
        if not is_digest(item.digest) or not prompts or not isinstance(item.category, str | None):
            raise IntegrityError(f"{where}: a picture under 'items' needs a digest, prompts and a category")
        found.append(item)
    return found


def share(items: Sequence[P], shard: str) -> list[P]:
    """Every n-th picture, from the i-th on, of "i/n": one machine's part. All edits of a picture are in one share.

    Raises:
        UsageError: not 1 ≤ i ≤ n, or no picture is left for it.
    """
    first, _, last = shard.partition("/")
    if not (first.isdecimal() and last.isdecimal() and 1 <= int(first) <= int(last)):
        raise UsageError(f"shard: expected I/N with 1 ≤ I ≤ N (1/4 … 4/4), got {shard!r}")
    found = list(items[int(first) - 1 :: int(last)])
    if not found:
        raise UsageError(f"shard: {shard} of {len(items)} pictures is empty; give fewer shares")
    return found


def load_items(experiment: Experiment) -> list[Item]:
    """All pictures of an experiment, checked.

    Raises:
        ProblemsError: everything that is wrong with them. UsageError: no manifest there, or an empty one.
    """
    if experiment.data.source == "miniworld":
        return _miniworld(experiment)
    return _manifest(experiment)


def _prompts(experiment: Experiment, original: str, unseen: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    return (("original", original), *(("unseen", text) for text in unseen[: experiment.prompts.unseen]))


def _miniworld(experiment: Experiment) -> list[Item]:
    from ..data.miniworld import miniworld

    data = experiment.data
    found = miniworld(n=data.n, split=data.split, seed=data.seed)
    has = min(len(item.unseen) for item in found)
    if "unseen" in experiment.prompts.kinds and has < experiment.prompts.unseen:
        raise UsageError(
            f"prompts.unseen: {experiment.prompts.unseen} are wanted, and MiniWorld has {has} unseen prompts per picture"
        )
    return [
        Item(
            item.image_id,
            as_image(item.image, name=item.image_id),
            _prompts(experiment, item.prompt, item.unseen),
            item.category,
        )
        for item in found
    ]


def _manifest(experiment: Experiment) -> list[Item]:
    path = experiment.folder / str(experiment.data.path)
    problems: list[Problem] = []
    items: list[Item] = []
    wants = experiment.prompts.unseen if "unseen" in experiment.prompts.kinds else 0
    for number, row in enumerate(_rows(path), 1):
        if experiment.data.limit is not None and number > experiment.data.limit:
            break
        label = f"{path.name}, row {number}"
        picture, prompt = row.get("image"), row.get("prompt")
        if not isinstance(picture, str) or not picture or not isinstance(prompt, str) or not prompt.strip():
            problems.append(Problem(label, "needs the columns image (a file) and prompt (a text)"))
            continue
        unseen = row.get("unseen")
        if unseen is None:
            unseen = [row[key] for key in sorted((k for k in row if k.startswith("unseen_")), key=_natural) if row[key]]
        if not isinstance(unseen, list) or not all(isinstance(u, str) and u.strip() for u in unseen):
            problems.append(Problem(label, "unseen must be a list of texts (CSV: columns unseen_1, unseen_2, …)"))
            continue
        if len(unseen) < wants:
            problems.append(
                Problem(label, f"has {len(unseen)} unseen prompts, the experiment wants {wants} (prompts.unseen)")
            )
            continue
        repeated = _repeated(prompt, unseen[:wants])
        if repeated:
            problems.append(Problem(label, repeated))
            continue
        image = as_image(path.parent / picture, name=picture)
        try:
            image.check()
        except ImageError as error:
            problems.append(Problem(label, str(error)))
            continue
        items.append(
            Item(
                str(row.get("image_id") or "").strip() or picture,
                image,
                _prompts(experiment, prompt, tuple(unseen)),
                str(row.get("category") or "").strip() or None,
            )
        )
    seen: set[str] = set()
    for item in items:
        if item.image_id in seen:
            problems.append(
                Problem(item.image_id, "stands twice; image_id must be unique, it is the cluster of every interval")
            )
        seen.add(item.image_id)
    if problems:
        raise ProblemsError(problems)
    if not items:
        raise UsageError(f"data.path: {str(path)!r} holds no rows")
    return items


def _natural(column: str) -> tuple[int, str]:
    """unseen_2 before unseen_10."""
    number = column.removeprefix("unseen_")
    return (int(number) if number.isdecimal() else -1), column


def _repeated(original: str, unseen: Sequence[str]) -> str:
    """What is wrong with prompts that stand twice: one edit would count as two."""
    for i, text in enumerate(unseen):
        if text == original:
            return f"the unseen prompt {text!r} is the original one"
        if text in unseen[:i]:
            return f"the unseen prompt {text!r} stands twice"
    return ""


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    if path.suffix.lower() in (".csv", ".tsv"):
        yield from (row for _, row in rows_of(path, "data.path"))
        return
    if path.suffix.lower() not in (".jsonl", ".ndjson"):
        raise UsageError(f"data.path: expected a .csv, .tsv or .jsonl file, got {path.name!r}")
    try:
        text = path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"data.path: cannot read {str(path)!r}: {error}") from error
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                row = json.loads(line)
            except ValueError as error:
                raise UsageError(f"data.path: {path.name}:{number} is not JSON: {error}") from error
            if not isinstance(row, dict):
                raise UsageError(f"data.path: {path.name}:{number} must be a JSON object")
            yield row
