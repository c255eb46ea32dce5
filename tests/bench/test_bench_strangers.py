"""A run from a stranger: whatever its rows hold, reading it ends in one of our errors, never in a traceback or a wrong number."""

from __future__ import annotations

import json
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from bench_help import run, toy

from isr.bench.card import make_card
from isr.bench.checking import check_run
from isr.bench.results import Results
from isr.bench.status import status_text
from isr.bench.tables import make_tables
from isr.errors import IsrError


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stranger") / "run"
    run(toy(metrics=["psnr"], protection=["psnr"]), folder)
    return folder


def changed(whole: Path, tmp_path: Path, name: str, kind: str, path: tuple[Any, ...], value: Any) -> Path:
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    text = (folder / name).read_text()
    rows = [json.loads(text)] if name.endswith(".json") else [json.loads(line) for line in text.splitlines()]
    place = next(r for r in rows if not kind or r["kind"] == kind)
    for part in path[:-1]:
        place = place[part]
    place[path[-1]] = value
    (folder / name).write_text("".join(json.dumps(r) + "\n" for r in rows))
    return folder


INFO, STEPS = "experiment.json", "steps.jsonl"


@pytest.mark.parametrize(
    ("name", "kind", "path", "value"),
    [
        (STEPS, "measure", ("result", "metrics"), -1),
        (STEPS, "measure", ("result", "metrics", "psnr"), 3),
        (STEPS, "measure", ("result", "metrics", "psnr", "value"), "9 dB"),
        (STEPS, "measure", ("inputs",), []),
        (STEPS, "immunize", ("result", "measured"), ""),
        (STEPS, "immunize", ("result", "measured", "levels"), "none"),
        (STEPS, "immunize", ("result", "budget"), ["linf", 1]),
        (STEPS, "immunize", ("result", "editor"), 3),
        (STEPS, "immunize", ("digest",), None),
        (STEPS, "edit", ("spec", "editor", "name"), float("inf")),
        (STEPS, "edit", ("inputs", 0), "../../etc/passwd"),
        (STEPS, "edit", ("result", "seedable"), "no"),
        (STEPS, "edit", ("seconds",), -1),
        (INFO, "", ("experiment",), "toy"),
        (INFO, "", ("experiment", "attacks", 0, "options"), None),
        (INFO, "", ("plan", "edit"), {}),
        (INFO, "", ("items",), 3),
        (INFO, "", ("makings", 0, "seconds"), float("inf")),
    ],
)
def test_rows_of_another_type_are_an_error_of_ours(
    whole: Path, tmp_path: Path, name: str, kind: str, path: tuple[Any, ...], value: Any
) -> None:
    folder = changed(whole, tmp_path, name, kind, path, value)
    with pytest.raises(IsrError):
        Results(folder, n_boot=100)
    with suppress(IsrError):
        assert not check_run(folder).ok
    with pytest.raises(IsrError):
        status_text(folder)


def test_a_step_whose_input_is_not_there_is_told_and_stops_nothing_else(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    lines = (folder / STEPS).read_text().splitlines(keepends=True)
    (folder / STEPS).write_text("".join(x for x in lines if json.loads(x)["kind"] != "immunize"))
    assert any("rests on a step that is not in the run" in w for w in check_run(folder).wrong)
    results = Results(folder, n_boot=100)
    assert results.protection.empty
    assert make_tables(results)
    assert make_card(results)["verified_budget"] == []
