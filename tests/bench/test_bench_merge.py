"""Shares of an experiment made on several machines, joined: the run that one machine would have made."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from bench_help import run, toy, use_plugins

from isr.bench.checking import check_run, content_hash
from isr.bench.merging import merge_experiments
from isr.bench.results import Results
from isr.bench.tables import write_tables
from isr.cli import main
from isr.errors import IntegrityError, UsageError

TOML = """
name = "toy"
metrics = ["psnr"]
[noise]
[data]
source = "miniworld"
n = 4
[prompts]
unseen = 1
[[editors]]
name = "toy"
[[attacks]]
name = "toy-shift"
[judging]
judges = ["toy-judge:a", "toy-judge:b"]
"""


def isr(*words: object, status: int = 0) -> None:
    assert main([str(w) for w in words]) == status


def test_shares_of_two_machines_make_the_run_of_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    use_plugins(monkeypatch)
    file = tmp_path / "toy.toml"
    file.write_text(TOML)
    alike = ("--workers", "0", "--quiet", "--no-cache")
    for number in (1, 2):
        isr("run", file, "--out", tmp_path / f"host{number}", "--shard", f"{number}/2", *alike)
    capsys.readouterr()
    isr("status", tmp_path / "host2")
    assert "share 2/2 of the pictures" in capsys.readouterr().out
    isr("merge", tmp_path / "host2", tmp_path / "host1", "--out", tmp_path / "merged")
    # 4 pictures × 2 arms; (2 prompts × 3 edits) × 4; judged: 16 cases and 8 controls.
    told = capsys.readouterr().out
    assert "immunize   8 of 8" in told
    assert "edit       24 of 24" in told
    assert "judged     24 of 24" in told
    isr("run", file, "--out", tmp_path / "merged", *alike)
    assert "0 steps done, 48 were there\n0 cases judged" in capsys.readouterr().out
    isr("run", file, "--out", tmp_path / "whole", *alike)
    assert check_run(tmp_path / "merged").ok
    assert content_hash(tmp_path / "merged") == content_hash(tmp_path / "whole")

    def tables(name: str) -> dict[str, bytes]:
        written = write_tables(Results(tmp_path / name, n_boot=200), tmp_path / name / "tables")
        return {p.name: p.read_bytes() for p in written if p.name != "protection.csv"}

    assert tables("merged") == tables("whole")
    isr("merge", tmp_path / "merged", tmp_path, "--out", tmp_path / "no", status=1)
    assert "join runs of one kind" in capsys.readouterr().err


def test_what_does_not_belong_together_is_refused(tmp_path: Path) -> None:
    a = run(toy(), tmp_path / "a", judge=False)
    assert a.done == 24
    run(toy(seeds={"base": 1}), tmp_path / "b", judge=False)
    with pytest.raises(UsageError, match="are not of the same experiments"):
        merge_experiments([tmp_path / "a", tmp_path / "b"], tmp_path / "out")
    with pytest.raises(UsageError, match="at least two run directories, got 1"):
        merge_experiments([tmp_path / "a"], tmp_path / "out")

    def changed(change: Any) -> Path:
        copy = tmp_path / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(tmp_path / "a", copy)
        change(copy)
        return copy

    def another_result(copy: Path) -> None:
        lines = (copy / "steps.jsonl").read_text().splitlines()
        rows = [json.loads(line) for line in lines]
        edits = [r for r in rows if r["kind"] == "edit"]
        edits[0]["digest"] = edits[1]["digest"]
        (copy / "steps.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))

    def another_picture(copy: Path) -> None:
        first, second = sorted((copy / "images").iterdir())[:2]
        first.write_bytes(second.read_bytes())

    def other_weights(copy: Path) -> None:
        text = (copy / "steps.jsonl").read_text()
        # Keys stay: only what the editor told of itself differs, and only in steps that the other run lacks.
        (copy / "steps.jsonl").write_text(text.replace('"weights":"w0"', '"weights":"w9"'))

    with pytest.raises(UsageError, match="has another result in"):
        merge_experiments([tmp_path / "a", changed(another_result)], tmp_path / "out")
    with pytest.raises(IntegrityError, match="its pixels are not those of its name"):
        merge_experiments([changed(another_picture), tmp_path / "a"], tmp_path / "out2")
    lines = (tmp_path / "a" / "steps.jsonl").read_bytes().splitlines(keepends=True)
    half = changed(other_weights)
    (tmp_path / "a" / "steps.jsonl").write_bytes(b"".join(lines[:-1]))
    with pytest.raises(IntegrityError, match="is not what it was when this run started"):
        merge_experiments([tmp_path / "a", half], tmp_path / "out3")
    assert not (tmp_path / "out3").exists()
