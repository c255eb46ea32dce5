"""Every Python block of README.md and docs/ runs: per page, top to bottom, offline, without keys, in an empty folder."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]

sys.path.insert(0, str(ROOT / "tools"))
from run_docs import blocks, runnable  # noqa: E402

# The guard of the test suite, in the process that runs a page. Output is flushed so that a failure shows what came before.
_RUN_PAGE = """
import sys
sys.path[:0] = sys.argv[1:3]
import netguard
netguard.quiet_environment()
netguard.install()
import run_docs
del sys.path[:2]
raise SystemExit(run_docs.main([sys.argv[3]]))
"""


def _name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", [p for p in PAGES if runnable(p.read_text("utf-8"))], ids=_name)
def test_docs_page_runs(page: Path, tmp_path: Path) -> None:
    env = os.environ | {"ISR_CACHE": str(tmp_path / "cache"), "HOME": str(tmp_path), "PYTHONSAFEPATH": "1"}
    work = tmp_path / "work"
    work.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", _RUN_PAGE, str(ROOT / "tests"), str(ROOT / "tools"), str(page)],
        cwd=work, env=env, capture_output=True, text=True, check=False, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, f"{_name(page)}\n{done.stdout}\n{done.stderr}"


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_docs_fences_are_closed_and_no_run_blocks_say_why(page: Path) -> None:
    runnable(page.read_text("utf-8"))


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_docs_python_blocks_parse_even_where_they_do_not_run(page: Path) -> None:
    for block in blocks(page.read_text("utf-8")):
        if block.info[:1] == ("python",):
            compile(block.source, f"{_name(page)}:{block.line}", "exec", dont_inherit=True)


def _commands(page: Path) -> list[tuple[int, str]]:
    """(line, command) of every `isr …` line in console and bash blocks."""
    found = []
    for block in blocks(page.read_text("utf-8")):
        if block.info[:1] in (("console",), ("bash",), ("sh",)):
            for offset, line in enumerate(block.source.splitlines()):
                shown = re.match(r"(?:\$ )?(isr [a-z][a-z-]*.*)", line)
                if shown:
                    found.append((block.line + offset, shown[1]))
    return found


@pytest.fixture(scope="module")
def subcommands() -> set[str]:
    done = subprocess.run(
        [sys.executable, "-m", "isr.cli", "--help"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return set(re.findall(r"\b[a-z][a-z-]+\b", done.stdout))


@pytest.mark.parametrize("page", [p for p in PAGES if _commands(p)], ids=_name)
def test_docs_commands_exist(page: Path, subcommands: set[str]) -> None:
    wrong = [f"line {line}: {text}" for line, text in _commands(page) if text.split()[1] not in subcommands]
    assert not wrong, f"{_name(page)} shows commands that `isr --help` does not know: {wrong}"


def test_docs_relative_links_lead_somewhere() -> None:
    wrong = []
    for page in PAGES:
        for target in re.findall(r"\[[^\]]*\]\(([^)\s]+)\)", page.read_text("utf-8")):
            path = target.partition("#")[0]
            if path and not re.match(r"[a-z]+:", path) and not (page.parent / path).exists():
                wrong.append(f"{_name(page)} → {target}")
    assert not wrong, wrong


def test_docs_runner_reports_the_page_and_its_line(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# T\n\n```python\nx = 1\n```\n\ntext\n\n```python\nassert x == 1\nraise KeyError('boom')\n```\n", "utf-8"
    )
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools/run_docs.py"), str(page)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert 'page.md", line 11' in done.stderr


def test_docs_runner_refuses_silent_no_run(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="says why"):
        runnable("```python no-run\nimport x\n```\n")
    with pytest.raises(ValueError, match="neither"):
        runnable("```python norun\nimport x\n```\n")
    with pytest.raises(ValueError, match="never closed"):
        runnable("```python\nimport x\n")
    assert runnable("```python no-run\n# needs a paid key\nimport x\n```\n") == []
    assert [b.line for b in runnable("a\n\n```python\nx = 1\n```\n")] == [4]


def test_docs_page_runner_has_no_network_and_no_keys(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "```python\nimport os, socket\nassert 'OPENAI_API_KEY' not in os.environ\n"
        "socket.create_connection(('192.0.2.1', 80), timeout=1)\n```\n",
        "utf-8",
    )
    done = subprocess.run(
        [sys.executable, "-c", _RUN_PAGE, str(ROOT / "tests"), str(ROOT / "tools"), str(page)],
        env=os.environ | {"OPENAI_API_KEY": "sk-live"}, cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "NetworkRefusedError" in done.stderr
