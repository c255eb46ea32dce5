"""The judge lock: everything that makes two ISRs comparable, written into run.json and compared before any comparison."""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from . import __version__
from .rubric import Rubric
from .schema import Judgement, NotAsked
from .store import LAYOUT

__all__ = ["judge_lock", "lock_differences", "package_versions", "shard_note", "with_served", "with_shards"]

_RECORDED = ("numpy", "pillow", "pandas", "scipy", "pydantic", "google-genai", "openai", "httpx2", "diskcache", "torch", "diffusers", "transformers")  # fmt: skip


def package_versions() -> dict[str, str]:
    """Versions of Python and of the packages that can change a number; absent ones are left out."""
    return dict(_versions())


@cache  # reading the metadata of a dozen packages takes longer than a whole cached run of a few cases
def _versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "isr": __version__}
    for name in _RECORDED:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def judge_lock(
    *,
    judges: Sequence[Mapping[str, Any]],
    rubric: Rubric,
    consensus: str,
    with_originals: bool,
    settings: Mapping[str, Any],
    notes: Sequence[str] = (),
) -> dict[str, Any]:
    """The content of run.json.

    Args:
        judges: per judge: name, fingerprint, identity, served (model → replies), limits.
        settings: votes, ask_overall, lazy, codec, max_side, on_bad_image, shard (where some were left out).
        notes: what a reader should know of the data (e.g. cases count as independent).
    """
    return {
        "layout": LAYOUT,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": package_versions(),
        "rubric": rubric.model_dump(mode="json"),
        "rubric_hash": rubric.hash,
        "consensus": consensus,
        "with_originals": with_originals,
        "settings": dict(settings),
        "judges": [dict(j) for j in judges],
        "notes": list(notes),
    }


_SHARD_NOTE = "Only shard "


def shard_note(shard: str) -> str:
    """The note of a run that holds only these shards ("1/3", "1,2/3") of its cases."""
    return f"{_SHARD_NOTE}{shard} of the images: the ISR of all needs every shard (isr merge)."


def lock_differences(
    a: Mapping[str, Any], b: Mapping[str, Any], *, consensus: bool = True, served: bool = True
) -> list[str]:
    """What differs between two locks in a way that makes their ISRs different measurements; empty when comparable.

    served: count another served snapshot of the same model too (within one run that is a warning, not a difference).
    """
    found: list[str] = []

    def differ(what: str, left: object, right: object) -> None:
        if left != right:
            found.append(f"{what}: {left!r} against {right!r}")

    differ("rubric", a.get("rubric_hash", "")[:12], b.get("rubric_hash", "")[:12])
    differ("judged with originals", a.get("with_originals"), b.get("with_originals"))
    if consensus:
        differ("consensus", a.get("consensus"), b.get("consensus"))
    for key in ("votes", "ask_overall", "codec", "max_side"):
        differ(key, a.get("settings", {}).get(key), b.get("settings", {}).get(key))
    prints = [{j["name"]: j["fingerprint"] for j in lock.get("judges", ())} for lock in (a, b)]
    differ("judges", sorted(prints[0]), sorted(prints[1]))
    for name in sorted(set(prints[0]) & set(prints[1])):
        if prints[0][name] != prints[1][name]:
            found.append(f"settings of judge {name}: fingerprint {prints[0][name]} against {prints[1][name]}")
    if not served:
        return found
    snapshots = [
        {j["name"]: sorted(j.get("served", {})) for j in lock.get("judges", ()) if j.get("served")} for lock in (a, b)
    ]
    for name in sorted(set(snapshots[0]) & set(snapshots[1])):
        differ(f"model served to {name}", snapshots[0][name], snapshots[1][name])
    return found


def with_served(lock: Mapping[str, Any], judgements: Iterable[Judgement]) -> dict[str, Any]:
    """The lock with, per judge, the models that its stored replies were served by, and `lazy` as the rows show it."""
    counts: dict[str, Counter[str]] = {}
    lazy = False
    names = {str(j["name"]) for j in lock["judges"]}
    for judgement in judgements:
        found = counts.setdefault(judgement.judge, Counter())
        found.update(c.served_model for c in judgement.calls if c.served_model)
        lazy |= (
            judgement.judge in names and isinstance(judgement.answer, NotAsked) and judgement.answer.reason == "lazy"
        )
    judges = [{**j, "served": dict(sorted(counts.get(str(j["name"]), {}).items()))} for j in lock["judges"]]
    return {**lock, "judges": judges, "settings": {**lock["settings"], "lazy": lazy}}


def with_shards(lock: Mapping[str, Any], held: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The lock of a run that holds what the runs of these locks hold: `settings.shard` ("1,2/3"; absent: everything, or
    nobody knows), and a note where shards are missing."""
    given = [str(other.get("settings", {}).get("shard") or "") for other in held]
    totals = {text.partition("/")[2] for text in given}
    settings = {key: value for key, value in lock["settings"].items() if key != "shard"}
    notes = [note for note in lock.get("notes", ()) if not str(note).startswith(_SHARD_NOTE)]
    if len(totals) == 1 and (total := totals.pop()).isdecimal() and len(total) < 9:
        there = sorted({i for text in given for i in text.partition("/")[0].split(",")}, key=lambda i: (len(i), i))
        if len(there) < int(total):
            settings["shard"] = f"{','.join(there)}/{total}"
            notes.append(shard_note(settings["shard"]))
    return {**lock, "settings": settings, "notes": notes}
