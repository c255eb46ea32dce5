"""Published numbers, from a data file; always marked "reported" and never mixed with measured ones."""

from __future__ import annotations

import tomllib
from collections.abc import Collection
from functools import cache
from importlib.resources import files
from typing import Any

import pandas as pd

from .experiment import Experiment
from .plan import NONE

__all__ = ["reported_rows", "reported_source"]


@cache
def _data() -> dict[str, Any]:
    return tomllib.loads((files("isr.bench") / "reported.toml").read_text("utf-8"))


def reported_source() -> str:
    """Where the published numbers are from."""
    return str(_data()["source"])


def reported_rows(tables: Collection[str] | None = None) -> pd.DataFrame:
    """Published rows in the form of the long table: origin "reported", id of the table, place in the matrix, metrics, isr as a
    fraction. `prompt_kind` is "unstated" where the paper does not say which prompts.

    Args:
        tables: "II" … "VII"; None: all.
    """
    rows: list[dict[str, Any]] = []
    for table in _data()["table"]:
        if tables is not None and table["id"] not in tables:
            continue
        for entry in table["rows"]:
            for kind in ("original", "unseen", "unstated"):
                if kind not in entry:
                    continue
                values = dict(zip(table["columns"], entry[kind], strict=True))
                rows.append(
                    {
                        "origin": "reported", "id": table["id"], "table": table["kind"], "source": table["source"],
                        "target": table["target"], "purifier": NONE, "method": entry["method"], "attack": entry["attack"],
                        "prompt_kind": kind, **values, "isr": values["isr"] / 100,
                    }
                )  # fmt: skip
    return pd.DataFrame(rows)


def reported_for(experiment: Experiment, source: str, target: str, table: str) -> pd.DataFrame:
    """The published rows that belong beside one of our tables: same editors by registered name and same kind of table, and
    the tables that the experiment asks for by number (beside the table of the same kind)."""
    every = reported_rows()
    names = {e.title: e.name for e in experiment.editors}
    same = (every["source"] == names.get(source, source)) & (every["target"] == names.get(target, target))
    transfer = source != target
    asked = every["id"].isin(experiment.tables.reported) & ((every["source"] != every["target"]) == transfer)
    return every[(every["table"] == table) & (same | asked)]
