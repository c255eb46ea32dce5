"""The closing line of .ci/run counts what the runs recorded, and a run without passing tests is a failure."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def _suite(folder: Path, name: str, source: str) -> Path:
    test = folder / f"test_{name}.py"
    test.write_text(source, "utf-8")
    out = folder / f"{name}.xml"
    subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-c", "/dev/null", "--rootdir", folder, "--junitxml", out, test],
        cwd=folder,
        env={k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")},
        check=False,
        capture_output=True,
    )
    return out


def _summary(*files: Path) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, ROOT / "tools/ci_summary.py", "12.5", *files], capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout.strip().strip("= ")


def test_tools_ci_summary_adds_up_real_runs(tmp_path: Path) -> None:
    good = _suite(
        tmp_path, "good", "import pytest\ndef test_a(): pass\ndef test_b(): pass\ndef test_c(): pytest.skip('why')\n"
    )
    bad = _suite(
        tmp_path, "bad",
        "import pytest\n@pytest.fixture\ndef broken(): raise OSError\ndef test_d(): assert 0\ndef test_e(broken): pass\ndef test_f(): pass\n",
    )  # fmt: skip
    assert _summary(good) == (0, "2 passed, 1 skipped in 12.50s")
    assert _summary(good, bad) == (1, "1 failed, 3 passed, 1 skipped, 1 error in 12.50s")
    empty = _suite(tmp_path, "empty", "")
    assert _summary(empty) == (1, "no tests ran in 12.50s")
