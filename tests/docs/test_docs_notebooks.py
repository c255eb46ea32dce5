"""The notebooks of docs/notebooks/ run from top to bottom in a real kernel (whose event loop is running), offline."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))

#: Runs in the kernel before the first cell, as the guard of the test suite does in this process.
_GUARD = """
import sys
sys.path.insert(0, {tests!r})
import netguard
netguard.quiet_environment()
netguard.install()
del sys.path[0]
"""


def test_docs_there_are_notebooks() -> None:
    assert NOTEBOOKS


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.name)
def test_docs_notebooks_are_committed_without_outputs(path: Path) -> None:
    cells = json.loads(path.read_text("utf-8"))["cells"]
    full = [c["id"] for c in cells if c["cell_type"] == "code" and (c["outputs"] or c["execution_count"] is not None)]
    assert not full, f"{path.name}: clear the outputs of {full}"


@pytest.mark.needs("nbclient", "nbformat", "ipykernel")
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.name)
def test_docs_notebooks_run(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import nbformat
    from nbclient import NotebookClient

    startup = tmp_path / "ipython" / "profile_default" / "startup"
    startup.mkdir(parents=True)
    (startup / "00-guard.py").write_text(_GUARD.format(tests=str(ROOT / "tests")), "utf-8")
    work = tmp_path / "work"
    work.mkdir()
    for name, folder in (
        ("IPYTHONDIR", "ipython"),
        ("HOME", "home"),
        ("ISR_CACHE", "cache"),
        ("JUPYTER_RUNTIME_DIR", "jupyter"),
    ):
        monkeypatch.setenv(name, str(tmp_path / folder))
    book = nbformat.read(path, as_version=4)
    nbformat.validate(book)
    # What is asked of the kernel is this interpreter, whatever kernels the machine knows.
    book.cells.append(nbformat.v4.new_code_cell("import os, sys\nprint(sys.executable, sorted(os.environ))"))
    probe = "import socket\nsocket.create_connection(('192.0.2.1', 80), timeout=1)"
    book.cells.append(nbformat.v4.new_code_cell(probe, metadata={"tags": ["raises-exception"]}))
    monkeypatch.setenv("OPENAI_API_KEY", "sk-never-to-be-used")
    NotebookClient(book, timeout=120, resources={"metadata": {"path": str(work)}}).execute()

    said = book.cells[-2].outputs[0].text
    assert "OPENAI_API_KEY" not in said
    assert book.cells[-1].outputs[0].ename == "NetworkRefusedError"  # the guard really was there
    counted = [c for c in book.cells if c.cell_type == "code"]
    assert all(c.execution_count for c in counted)
    shown = json.dumps([c.get("outputs") for c in counted])
    assert "Traceback" not in json.dumps([c.get("outputs") for c in counted[:-1]])
    assert "excess" in shown
    assert (work / "report.html").stat().st_size > 10_000
    assert os.environ["HOME"].startswith(str(tmp_path))
