"""`isr run --retry-missing`: metrics whose weights were missing are measured once they are there, and nothing else is."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from bench_help import plan_of, run, toy, toy_toml, use_plugins

from isr.bench.checking import check_run
from isr.bench.engine import InlineEngine, StepError
from isr.bench.experiment import Experiment
from isr.bench.files import ExperimentFiles, StepRow, filled
from isr.bench.merging import merge_experiments
from isr.bench.remeasure import Retried, lacking, retry_missing
from isr.bench.results import Results
from isr.cli import main
from isr.errors import IntegrityError
from isr.images import as_image

torch = pytest.importorskip("torch")

from isr.metrics import METRICS, NotAvailable, compute  # noqa: E402

GONE = NotAvailable("the weights are elsewhere", lacking=True)


class Loader:
    """Stands in for a loader of weights: counts how often it is asked."""

    def __init__(self, found: Any = GONE) -> None:
        self.found, self.calls = found, 0

    def __call__(self) -> Any:
        self.calls += 1
        if isinstance(self.found, Exception):
            raise self.found
        return self.found


@pytest.fixture
def weights(monkeypatch: pytest.MonkeyPatch) -> dict[str, Loader]:
    found = {name: Loader() for name in ("lpips", "precision")}
    for name, loader in found.items():
        monkeypatch.setitem(METRICS, name, replace(METRICS[name], load=loader))
    return found


def distance(a: Any, b: Any) -> Any:
    """A stand-in for a learned network: some number of a pair."""
    return (a - b).abs().mean((1, 2, 3))


def features(x: Any) -> Any:
    return x.mean((2, 3))


def retry(experiment: Experiment, folder: Path) -> Retried:
    files = ExperimentFiles.at(folder)
    with files.writing():
        return retry_missing(plan_of(experiment), files, InlineEngine())


def rows(folder: Path) -> list[str]:
    return (folder / "steps.jsonl").read_text().splitlines()


def test_only_what_lacked_weights_is_measured_again(
    tmp_path: Path, weights: dict[str, Loader], monkeypatch: pytest.MonkeyPatch
) -> None:
    log, folder = tmp_path / "log", tmp_path / "run"
    experiment = toy(
        editors=[{"name": "toy", "options": {"log": str(log)}}], metrics=["psnr", "lpips"], protection=["lpips"],
        batch={"measure": 2},
    )  # fmt: skip
    run(experiment, folder)
    edits, before = log.read_text(), rows(folder)
    first = Results(folder, n_boot=200).measured
    assert {m["lpips"]["value"] for m in first.values()} == {None}

    # Without weights: one batch finds that out, the others are left alone, and nothing is written.
    weights["lpips"].calls = 0
    told = retry(experiment, folder)
    # 12 edits against their controls, 6 immunized pictures against their originals.
    assert (told.measured, told.still) == (0, {"lpips": ("the weights are elsewhere", 18)})
    assert weights["lpips"].calls == 1
    assert rows(folder) == before

    asked: list[list[str]] = []

    def spy(names: list[str], *arguments: Any, **more: Any) -> Any:
        asked.append(names)
        return compute(names, *arguments, **more)

    weights["lpips"].found = distance
    monkeypatch.setattr("isr.metrics.compute", spy)
    told = retry(experiment, folder)
    assert (told.measured, told.still) == (18, {})
    assert {tuple(names) for names in asked} == {("lpips",)}
    assert log.read_text() == edits
    assert rows(folder)[: len(before)] == before
    assert len(rows(folder)) == len(before) + 18
    results = Results(folder, n_boot=200)
    assert {s: m["psnr"] for s, m in results.measured.items()} == {s: m["psnr"] for s, m in first.items()}
    for case in results.cases:
        pair = [as_image(folder / "images" / f"{d}.png") for d in (case.record.edited, results.records[case.record.control or ""].edited)]  # fmt: skip
        wanted = compute(["lpips"], [pair[0]], [pair[1]], models={"lpips": distance})["lpips"].values[0]
        assert results.measured[case.step]["lpips"]["value"] == wanted
    assert results.long["lpips_n"].eq(3).all()
    assert results.protection["lpips_n"].eq(3).all()
    assert check_run(folder).ok

    # And again: nothing is left to do.
    whole = rows(folder)
    asked.clear()
    assert retry(experiment, folder).measured == 0
    assert asked == []
    assert rows(folder) == whole
    assert run(experiment, folder).done == 0


def test_what_does_not_exist_is_settled_and_not_asked_again(tmp_path: Path, weights: dict[str, Loader]) -> None:
    experiment = toy(metrics=["precision"], noise=None)
    run(experiment, tmp_path / "run", judge=False)
    weights["precision"].found = features
    assert retry(experiment, tmp_path / "run").measured == 0
    found = [r for r in ExperimentFiles.at(tmp_path / "run").steps().values() if r.kind == "measure"]
    assert {r.result["metrics"]["precision"]["reason"] for r in found} == {"needs at least 6 pictures, there are 3"}
    assert [lacking(r) for r in found] == [(), ()]
    weights["precision"].calls = 0
    retry(experiment, tmp_path / "run")
    assert weights["precision"].calls == 0


def test_a_damaged_file_is_said_and_keeps_what_was_measured(tmp_path: Path, weights: dict[str, Loader]) -> None:
    experiment = toy(metrics=["lpips"])
    run(experiment, tmp_path / "run", judge=False)
    weights["lpips"].found = IntegrityError("the file is not what its name claims")
    with pytest.raises(StepError, match="is not what its name claims"):
        retry(experiment, tmp_path / "run")
    weights["lpips"].found = distance
    assert retry(experiment, tmp_path / "run").measured == 12


def measurement(**metrics: Any) -> StepRow:
    return StepRow(
        key="k", kind="measure", spec={}, inputs=(f"step:{'a' * 64}", f"step:{'b' * 64}"), result={"metrics": metrics}
    )


def test_a_number_stands_before_a_reason_and_a_reason_before_missing_weights() -> None:
    number, none = {"value": 1.0}, {"value": None, "reason": "too small", "lacking": False}
    missing = {"value": None, "reason": "no weights", "lacking": True}
    assert filled(measurement(a=missing, b=number), measurement(a={"value": 2.0}, b={"value": 9.0})).result["metrics"] == {
        "a": {"value": 2.0}, "b": number,
    }  # fmt: skip
    assert filled(measurement(a=missing), measurement(a=none)).result["metrics"] == {"a": none}
    held = measurement(a=none)
    assert filled(held, measurement(a=missing)) is held
    edit = StepRow(key="k", kind="edit", spec={}, inputs=(f"step:{'a' * 64}",), digest="0" * 64)
    assert filled(edit, measurement(a=number)) is edit


def test_machines_with_different_weights_complete_each_other(tmp_path: Path, weights: dict[str, Loader]) -> None:
    experiment = toy(metrics=["lpips", "precision"], data={"source": "miniworld", "n": 6}, noise=None)
    run(experiment, tmp_path / "a", judge=False)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    weights["lpips"].found = distance
    retry(experiment, tmp_path / "a")
    weights["lpips"].found, weights["precision"].found = GONE, features
    retry(experiment, tmp_path / "b")
    merge_experiments([tmp_path / "a", tmp_path / "b"], tmp_path / "both")
    found = [r for r in ExperimentFiles.at(tmp_path / "both").steps().values() if r.kind == "measure"]
    assert all(m["value"] is not None for r in found for m in r.result["metrics"].values())


TOML = toy_toml(metrics="lpips", judged=False)


def test_the_command(
    tmp_path: Path, weights: dict[str, Loader], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    use_plugins(monkeypatch)
    (tmp_path / "toy.toml").write_text(TOML)
    words = ["run", str(tmp_path / "toy.toml"), "--out", str(tmp_path / "run"), "--workers", "0", "--quiet"]
    assert main(words) == 0
    assert "lpips is n/a on 2 of 2: the weights are elsewhere" in capsys.readouterr().out
    assert main([*words, "--retry-missing"]) == 0
    assert "0 missing values measured\n  lpips: still n/a on 2: the weights are elsewhere" in capsys.readouterr().out
    weights["lpips"].found = distance
    assert main([*words, "--retry-missing"]) == 0
    told = capsys.readouterr().out
    assert "0 steps done, 8 were there\n2 missing values measured\n" in told
    assert "n/a" not in told
    assert "n/a" not in (tmp_path / "run" / "tables" / "main-toy.csv").read_text()
