"""`isr run`, `tables`, `pack`, `figure` … from the shell: what is wrong is one sentence, and is said before anything is done."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import pytest
from bench_help import run, toy, toy_toml, use_plugins

from isr.bench.card import make_card
from isr.bench.engine import InlineEngine
from isr.bench.experiment import SHIPPED, load_experiment
from isr.bench.local_engine import LocalEngine
from isr.bench.preflight import check_settings
from isr.bench.results import Results
from isr.bench.tables import make_tables, write_tables
from isr.cli import main

TOML = toy_toml()


@pytest.fixture(autouse=True)
def _plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    use_plugins(monkeypatch)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "toy.toml"
    path.write_text(TOML)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    run(toy(noise=None, prompts={"kinds": ["original"]}), tmp_path / "run")
    return tmp_path / "run"


def told(capsys: pytest.CaptureFixture[str], *words: object, status: int = 1) -> str:
    assert main([str(w) for w in words]) == status
    captured = capsys.readouterr()
    return str(captured.out if status == 0 else captured.err)


def test_paths_that_cannot_be_written_are_one_sentence(
    tmp_path: Path, folder: Path, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    taken = tmp_path / "file"
    taken.touch()
    assert "cannot write into" in told(capsys, "run", file, "--out", taken, "--quiet", "--workers", "0")
    assert "cannot write into" in told(capsys, "run", file, "--out", taken / "below", "--quiet", "--workers", "0")
    assert "could not be written" in told(capsys, "tables", folder, "--out", taken, "--resamples", "200")
    assert "could not be written" in told(capsys, "pack", folder, "--out", tmp_path / "nowhere" / "x.zip")
    assert "does not exist; make it first" in told(capsys, "figure", folder, "--out", tmp_path / "nowhere" / "x.png")
    assert "is a folder; name a file in it" in told(capsys, "figure", folder, "--out", tmp_path)
    assert "--rows: expected at least 1" in told(capsys, "figure", folder, "--out", tmp_path / "x.png", "--rows", "-1")
    assert "--resamples: expected at least 1" in told(capsys, "tables", folder, "--resamples", "0")


def test_what_cannot_be_used_is_found_before_anything_is_made(
    tmp_path: Path, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    taken = tmp_path / "file"
    taken.touch()
    out = tmp_path / "new"
    words = ("run", file, "--out", out, "--quiet")
    assert "cache: cannot use the folder" in told(capsys, *words, "--workers", "0", "--cache", taken)
    assert "workers: expected at least 1, got -1" in told(capsys, *words, "--workers", "-1")
    assert "--gpus belongs to --engine ray" in told(capsys, *words, "--gpus", "0.5")
    assert not out.exists()
    told(capsys, *words, "--workers", "0", "--no-cache", status=0)
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file() and p.name != ".lock"}
    file.write_text(TOML.replace('"toy-judge:b"', '"toy-judge:c"').replace("n = 2", "n = 3"))
    assert "judged differently" in told(capsys, *words, "--workers", "0", "--no-cache")
    assert {p: p.read_bytes() for p in out.rglob("*") if p.is_file() and p.name != ".lock"} == before


def test_a_dry_run_says_what_is_left(tmp_path: Path, file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("run", file, "--out", tmp_path / "new")
    first = told(capsys, *words, "--dry-run", status=0)
    assert "judgements     8  (2 cases of the immunized and noise arms, and their controls)" in first
    told(capsys, *words, "--quiet", "--workers", "0", "--no-cache", status=0)
    assert "steps done     8 of 8" in told(capsys, *words, "--dry-run", status=0)
    file.write_text(TOML.replace("n = 2", "n = 3"))
    again = told(capsys, *words, "--dry-run", status=0)
    assert "steps done     8 of 12" in again
    assert (
        "judgements     12  (3 cases of the immunized and noise arms, and their controls; 4 of 6 are judged)" in again
    )


def test_a_pack_unpacks_into_one_folder_wherever_it_was_made(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    told(capsys, "pack", ".", status=0)
    with zipfile.ZipFile(tmp_path / "run.zip") as archive:
        assert {name.split("/")[0] for name in archive.namelist()} == {"run"}


def test_the_card_says_who_made_what(tmp_path: Path) -> None:
    run(toy(), tmp_path / "run", LocalEngine(1, ()), judge=False)
    run(toy(), tmp_path / "run", InlineEngine())  # judged elsewhere: nothing was made there
    (making,) = make_card(Results(tmp_path / "run", n_boot=200))["makings"]
    assert (making["steps"], making["engine"]["engine"]) == (24, "local")
    assert making["hardware"]["cores"] >= 1
    assert making["hardware"]["memory_bytes"] > 2**28
    worker = making["workers"]["local-0"]
    assert worker["batches"] > 0
    spent = sum(worker[k] for k in ("working", "loading", "before", "between", "after"))
    assert spent == pytest.approx(making["seconds"], abs=0.1)
    run(toy(data={"source": "miniworld", "n": 4}), tmp_path / "run", InlineEngine())
    grown = make_card(Results(tmp_path / "run", n_boot=200))["makings"]
    assert [m["engine"]["engine"] for m in grown] == ["local", "inline"]


def test_tables_whose_labels_differ_in_signs_only_are_two_files(tmp_path: Path) -> None:
    editors = [{"name": "toy", "label": label} for label in ("a/b", "a:b", "A-B")]
    run(toy(editors=editors, judging={}, noise=None, metrics=["psnr"]), tmp_path / "run", judge=False)
    names = [p.name for p in write_tables(Results(tmp_path / "run"), tmp_path / "tables")]
    assert len({n.lower() for n in names}) == len(names)
    assert {"main-a-b.csv", "main-a-b.2.csv", "main-A-B.3.csv"} <= set(names)


def test_tables_name_their_ablation_and_noise_has_no_noise_beside_it(tmp_path: Path) -> None:
    attacks: list[dict[str, Any]] = [
        {"name": "toy-shift"}, {"name": "toy-shift", "label": "b", "options": {"levels": 9}, "table": "lambda"},
    ]  # fmt: skip
    run(toy(attacks=attacks, purifiers=["jpeg:50"]), tmp_path / "run")
    tables = make_tables(Results(tmp_path / "run", n_boot=200))
    captions = [t.caption for t in tables]
    assert len(set(captions)) == len(captions)
    control = next(t for t in tables if t.key == "control")
    column = [head for _, head in control.heads].index("noise arm")
    assert {row[column].text for row in control.rows if row[3].text == "noise"} == {"–"}
    assert not any("no noise arm" in note for note in control.notes)


def test_settings_that_nothing_takes_are_found_before_anything_is_made(
    tmp_path: Path, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file.write_text(
        TOML.replace('name = "toy-shift"', 'name = "toy-shift"\noptions = { nolevels = 3 }').replace(
            'metrics = ["psnr"]', 'purifiers = ["jpeg:75", "jpeg:ten", "vae", { name = "vae", editor = "toy" }]'
        )
        + '[[attacks]]\nname = "photoguard-encoder"\noptions = { iterations = -3 }\n[noise.options]\neps = "big"\n'
    )
    out = tmp_path / "new"
    for more in ([], ["--dry-run"]):
        error = told(capsys, "run", file, "--out", out, "--quiet", "--workers", "0", *more)
        lines = [line.strip() for line in error.splitlines()[1:]]
        assert lines == [
            "attacks.0.options: attack 'toy-shift' takes no setting 'nolevels'; it takes levels, over",
            "attacks.1.options: iterations must be a whole number of at least 1, not -3",
            "noise.options: budget eps must be a positive number on [0, 1] pixels (0.03, not 8), not 'big'",
            "purifiers.1: quality must be a whole number from 1 to 100, got 'ten'",
            'purifiers.2: needs an editor\'s networks; name one of the file\'s editors: { name = "…", editor = "LABEL" }',
        ]
        assert not out.exists()


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_files_pass_the_check_of_their_settings(name: str) -> None:
    check_settings(load_experiment(name), source=name)
