"""The dated data file `models.toml`: model pairs, and which settings a model family accepts."""

from __future__ import annotations

import datetime
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from importlib.resources import files
from typing import Any

__all__ = ["Preset", "accepted", "presets", "written"]


@dataclass(frozen=True)
class Preset:
    """A named list of judges.

    Attributes:
        name: what users write. judges: judge strings, in order.
        retired: the first day on which the service no longer serves these models, or None. retired_at: which service.
    """

    name: str
    judges: tuple[str, ...]
    retired: datetime.date | None = None
    retired_at: str = ""


@cache
def _data() -> Mapping[str, Any]:
    return tomllib.loads((files("isr.judges") / "models.toml").read_text("utf-8"))


def written() -> datetime.date:
    """The day on which the data file was written."""
    day: datetime.date = _data()["written"]
    return day


@cache
def presets() -> dict[str, Preset]:
    """All presets by name."""
    return {
        name: Preset(name, tuple(entry["judges"]), entry.get("retired"), entry.get("retired_at", ""))
        for name, entry in _data()["presets"].items()
    }


def accepted(provider: str, model: str, *, by_url: bool) -> frozenset[str]:
    """Names of the settings that are sent to this model. `by_url`: the server was given by `@url`."""
    bare = model.lower().rpartition("/")[2]
    for rule in _data()["accepts"]:
        if (
            rule["provider"] == provider
            and (by_url or rule.get("served") != "url")
            and any(fnmatchcase(bare, pattern) for pattern in rule["match"])
        ):
            return frozenset(rule["settings"])
    return frozenset()
