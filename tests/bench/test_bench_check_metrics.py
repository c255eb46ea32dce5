"""`isr check` measures the stored pictures again: a changed metric value is named, one that cannot be checked is said."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from bench_help import run, toy, use_plugins

from isr.bench.checking import Check, check_run
from isr.bench.files import ExperimentFiles
from isr.bench.recheck import agree
from isr.cli import main
from isr.errors import IntegrityError

torch = pytest.importorskip("torch")

from isr.metrics import METRICS, NotAvailable  # noqa: E402

PLAIN = ["psnr", "ssim", "vifp", "fsim", "fsimc"]
GONE = NotAvailable("the weights are elsewhere", lacking=True)


def distance(a: Any, b: Any) -> Any:
    """A stand-in for a learned network: some number of a pair."""
    return (a - b).abs().mean((1, 2, 3))


def features(x: Any) -> Any:
    return torch.cat([x.mean((2, 3)), x.std((2, 3))], 1)


def loads(monkeypatch: pytest.MonkeyPatch, name: str, found: Any) -> None:
    def load() -> Any:
        if isinstance(found, Exception):
            raise found
        return found

    monkeypatch.setitem(METRICS, name, replace(METRICS[name], load=load))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two pictures, two prompts each: 4 edits against their controls, 2 immunized pictures against their originals."""
    folder = tmp_path_factory.mktemp("metrics") / "run"
    run(toy(data={"source": "miniworld", "n": 2}, metrics=PLAIN, protection=["psnr"], noise=None), folder)
    return folder


def changed(whole: Path, tmp_path: Path, change: Callable[[dict[str, Any]], None], *, kind: str = "measure") -> tuple[str, Check]:  # fmt: skip
    """The name of the one row that was changed, and what the check says."""
    folder = tmp_path / "run"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(whole, folder)
    rows = [json.loads(line) for line in (folder / "steps.jsonl").read_text().splitlines()]
    row = next(r for r in rows if r["kind"] == kind and r["spec"].get("against") != "original")
    change(row)
    (folder / "steps.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return f"step {row['key'][:12]} ({kind})", check_run(folder)


def test_an_honest_run_is_measured_again_whole(whole: Path) -> None:
    found = check_run(whole)
    assert (found.wrong, found.unchecked) == ([], [])
    assert found.looked["metric values measured again"] == 4 * len(PLAIN) + 2


@pytest.mark.parametrize("metric", PLAIN)
def test_a_changed_value_is_named(whole: Path, tmp_path: Path, metric: str) -> None:
    told: list[float] = []

    def change(row: dict[str, Any]) -> None:
        told.append(row["result"]["metrics"][metric]["value"])
        row["result"]["metrics"][metric]["value"] *= 1.01

    name, found = changed(whole, tmp_path, change)
    assert found.wrong == [f"{name}: {metric} is recorded as {told[0] * 1.01:.7g}, the pictures give {told[0]:.7g}"]


@pytest.mark.parametrize(
    ("value", "written"), [({"value": "inf"}, "inf"), ({"value": None, "reason": "no luck", "lacking": True}, r"n/a \('no luck'\)")]
)  # fmt: skip
def test_a_value_cannot_be_made_infinite_or_hidden(
    whole: Path, tmp_path: Path, value: dict[str, Any], written: str
) -> None:
    name, found = changed(whole, tmp_path, lambda row: row["result"]["metrics"]["psnr"].update(value))
    (wrong,) = found.wrong
    assert wrong.startswith(f"{name}: psnr is recorded as ")
    assert re.search(f"is recorded as {written}, the pictures give [0-9.]+$", wrong)


def test_a_value_that_was_taken_out_is_named(whole: Path, tmp_path: Path) -> None:
    name, found = changed(whole, tmp_path, lambda row: row["result"]["metrics"].pop("ssim"))
    assert found.wrong == [f"{name}: records no 'ssim', which it was to measure"]


def test_what_differs_as_machines_do_is_no_change(whole: Path, tmp_path: Path) -> None:
    def nudge(row: dict[str, Any]) -> None:
        for told in row["result"]["metrics"].values():
            told["value"] *= 1 + 5e-5

    assert changed(whole, tmp_path, nudge)[1].ok


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        (20.0, 20.0019, True),     # 1e-4 of 20.0019 is 0.0020
        (20.0, 20.0021, False),
        (0.0, 9e-6, True),         # near zero the absolute part counts
        (0.0, 1.1e-5, False),
        ("inf", "inf", True),
        ("inf", 90.0, False),
        (None, None, True),
        (None, 0.0, False),
        (0.0, None, False),
    ],
)  # fmt: skip
def test_the_tolerance_by_hand(a: Any, b: Any, same: bool) -> None:
    assert agree(a, b) is same


def test_another_convention_is_said_and_not_compared(whole: Path, tmp_path: Path) -> None:
    def other(row: dict[str, Any]) -> None:
        row["result"]["metrics"]["ssim"] |= {"value": 0.123, "convention": "a window of another size"}

    _, found = changed(whole, tmp_path, other)
    assert found.ok
    (line,) = found.unchecked
    assert line.startswith(
        "ssim on 1 of 4: recorded in another convention than this version's: 'a window of another size'"
    )


def test_a_metric_that_this_version_has_not_is_said(whole: Path, tmp_path: Path) -> None:
    def other(row: dict[str, Any]) -> None:
        row["result"]["metrics"]["dists"] = {"value": 0.5, "convention": "c", "higher_is_closer": False}

    _, found = changed(whole, tmp_path, other)
    assert found.unchecked == ["'dists' on 1 of 1: no metric of this version"]


def test_a_pictures_own_change_is_measured_whole(whole: Path, tmp_path: Path) -> None:
    name, found = changed(whole, tmp_path, lambda row: row["result"]["measured"].update(l2=0.5), kind="immunize")
    (wrong,) = found.wrong
    assert wrong.startswith(f"{name}: records l2 0.5, the pictures differ by ")


def test_without_torch_one_line_says_so(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    use_plugins(monkeypatch)
    assert main(["check", str(whole)]) == 0
    out = capsys.readouterr().out
    assert out.count("not checked") == 1
    assert "not checked: image metrics on 6 measurements: they need the package 'torch', which is not installed" in out


def test_a_missing_picture_is_no_wrong_value(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    row = next(r for r in ExperimentFiles.at(folder).steps().values() if r.kind == "edit" and r.inputs[0].startswith("step:"))  # fmt: skip
    (folder / "images" / f"{row.digest}.png").unlink()
    found = check_run(folder)
    assert [u for u in found.unchecked if "psnr" in u] == ["psnr on 1 of 6: a picture is missing or damaged"]
    assert not any("psnr" in w for w in found.wrong)


# ------------------------------------------------------------------------------------------- metrics with weights


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("learned") / "run"
    with pytest.MonkeyPatch.context() as patch:
        loads(patch, "lpips", distance)
        loads(patch, "fid", features)
        run(toy(metrics=["psnr", "lpips", "fid"], noise=None, prompts={"kinds": ["original"]}), folder)
    return folder


def test_learned_metrics_are_measured_again_where_their_weights_are(
    learned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads(monkeypatch, "lpips", distance)
    loads(monkeypatch, "fid", features)
    found = check_run(learned)
    assert (found.wrong, found.unchecked) == ([], [])
    # Three edits with psnr and lpips, one set with fid.
    assert found.looked["metric values measured again"] == 3 * 2 + 1
    name, found = changed(learned, tmp_path, lambda row: row["result"]["metrics"]["lpips"].update(value=0.9))
    assert [w.split(", the")[0] for w in found.wrong] == [f"{name}: lpips is recorded as 0.9"]


def test_a_set_is_measured_again_too(learned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loads(monkeypatch, "lpips", distance)
    loads(monkeypatch, "fid", features)
    folder = tmp_path / "run"
    shutil.copytree(learned, folder)
    rows = [json.loads(line) for line in (folder / "steps.jsonl").read_text().splitlines()]
    row = next(r for r in rows if r["spec"].get("set"))
    row["result"]["metrics"]["fid"]["value"] = 1.5
    (folder / "steps.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    assert [w.split(", the")[0] for w in check_run(folder).wrong] == [
        f"step {row['key'][:12]} (measure): fid is recorded as 1.5"
    ]


@pytest.mark.parametrize(
    ("there", "reason"), [(GONE, "the weights are elsewhere"), (IntegrityError("a damaged file"), "a damaged file")]
)
def test_without_weights_it_is_said_and_the_rest_is_checked(
    learned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: Any, reason: str
) -> None:
    loads(monkeypatch, "lpips", there)
    loads(monkeypatch, "fid", there)
    found = check_run(learned)
    assert found.ok
    assert found.unchecked == [f"lpips on 3 of 3: {reason}", f"fid on 1 of 1: {reason}"]
    assert f"  not checked: lpips on 3 of 3: {reason}\n" in found.text()
    assert found.looked["metric values measured again"] == 3
    name, found = changed(learned, tmp_path, lambda row: row["result"]["metrics"]["psnr"].update(value=50))
    assert [w.split(", the")[0] for w in found.wrong] == [f"{name}: psnr is recorded as 50"]


def test_rounding_is_a_tolerance_of_its_pair_only(whole: Path) -> None:
    from isr.bench.recheck import Rechecked, _Checker

    files = ExperimentFiles.at(whole)
    rows = files.steps()
    row = next(r for r in rows.values() if r.kind == "measure" and r.spec["against"] == "control")
    checker = _Checker(rows, files, Rechecked())
    value = row.result["metrics"]["vifp"]["value"]
    # As if float32 had been off by about 0.01 on this pair: another machine may be off by 0.05, but not by 0.2.
    assert checker._rounding(row, "vifp", value + 0.05, value + 0.01)
    assert not checker._rounding(row, "vifp", value + 0.2, value + 0.01)
    assert not checker._rounding(row, "vifp", "inf", value)
