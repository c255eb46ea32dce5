"""benchmarks/run.py takes the JSON a script ends with, keeps it with its circumstances, and never invents a figure."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))
import run as bench  # noqa: E402


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(bench, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(bench, "PAGE", tmp_path / "RESULTS.md")
    monkeypatch.setattr(bench, "ROOT", tmp_path)
    all_scripts = bench.scripts
    monkeypatch.setattr(bench, "scripts", lambda: all_scripts(tmp_path))
    (tmp_path / "bench_good.py").write_text(
        '"""What it measures.\n\nMore."""\nprint("noise {")\nprint(\'{"ratio": 1.25, "rows": [{"n": 1}, {"n": 2}]}\')\n'
    )
    (tmp_path / "bench_slow.py").write_text('"""Hours."""\nLONG = True\nprint(\'{"hours": 3}\')\n')
    (tmp_path / "helper.py").write_text("raise SystemExit(1)\n")
    return tmp_path


def test_tools_bench_last_json_is_the_one_the_output_ends_with() -> None:
    assert bench.last_json('{"a": 1}\n{"b": 2}\n') == {"b": 2}
    assert bench.last_json('text\n{\n "a": {\n  "b": 1\n }\n}\n') == {"a": {"b": 1}}
    for text in ("", "text", '{"a": 1}\ntext', "[1]", '{"a": '):
        with pytest.raises(ValueError, match="does not end with a JSON object"):
            bench.last_json(text)


def test_tools_bench_runs_all_but_long_ones_and_writes_the_page(folder: Path) -> None:
    assert bench.main([]) == 0
    record = json.loads((folder / "results/good.json").read_text("utf-8"))
    assert record["result"] == {"ratio": 1.25, "rows": [{"n": 1}, {"n": 2}]}
    assert record["machine"]["python"]
    assert record["versions"]["numpy"]
    assert record["measured_at"]
    assert not (folder / "results/slow.json").exists()
    page = (folder / "RESULTS.md").read_text("utf-8")
    assert "## good" in page
    assert "What it measures." in page
    assert "| ratio | 1.25 |" in page
    assert "| n |\n|---|\n| 1 |\n| 2 |" in page
    assert bench.main(["slow"]) == 0
    assert "## slow" in (folder / "RESULTS.md").read_text("utf-8")


def test_tools_bench_a_failing_script_keeps_the_old_figures(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert bench.main(["good"]) == 0
    before = (folder / "results/good.json").read_text("utf-8")
    (folder / "bench_good.py").write_text('"""Now broken."""\nprint(\'{"ratio": 9}\')\nraise SystemExit(3)\n')
    assert bench.main(["good"]) == 1
    assert (folder / "results/good.json").read_text("utf-8") == before
    assert "status 3" in capfd.readouterr().err


def test_tools_bench_unknown_name_lists_what_there_is(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        bench.main(["godo"])
    assert "there are: good, slow" in capfd.readouterr().err


def test_tools_bench_every_shipped_benchmark_says_what_it_measures() -> None:
    assert [s.name for s in bench.scripts(ROOT / "benchmarks").values() if not s.about] == []
