"""SIGKILL at random points of a 300-edit run: what was received is kept, nothing kept is asked again, no case is lost."""

from __future__ import annotations

import json
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from servers.loopback import Loopback, serve

import isr

EDITS = 300
KILLS = 6
#: `python -m isr` where SIGINT is not ignored, as it is in the background jobs of a shell.
LISTENING = (
    "import runpy, signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "runpy.run_module('isr', run_name='__main__', alter_sys=True)"
)
SCRIPT = Path(__file__).with_name("killed_run.py")


def write_manifest(folder: Path) -> Path:
    rng = np.random.default_rng(0)
    rows = []
    for i in range(EDITS):
        for kind in ("e", "o"):
            PIL.Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(folder / f"{kind}{i}.png")
        rows.append({"edited": f"e{i}.png", "original": f"o{i}.png", "prompt": f"edit {i}", "seed": i})
    path = folder / "manifest.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def stored(cache: Path) -> set[str]:
    """Response ids of every stored reply."""
    with sqlite3.connect(cache / "cache.db") as con:
        rows = con.execute("SELECT value FROM Cache WHERE key LIKE 'call:%'").fetchall()
    return {json.loads(value)["response_id"] for (value,) in rows}


def asked(*servers: Loopback) -> Counter[tuple[str, str]]:
    return Counter((server.kind, json.loads(seen.text[0])["edit_prompt"]) for server in servers for seen in server.seen)


@pytest.mark.kill
@pytest.mark.slow
def test_kill_and_resume(tmp_path: Path) -> None:
    manifest, cache, out = write_manifest(tmp_path), tmp_path / "cache", tmp_path / "run"
    rng = random.Random(7)
    with serve("gemini", latency=0.05) as gemini, serve("openai", latency=0.05) as openai:
        command = [sys.executable, str(SCRIPT), str(manifest), str(cache), str(out), gemini.url, openai.url]
        kept: set[str] = set()
        kills = 0
        for _ in range(KILLS):
            before = gemini.count + openai.count
            process = subprocess.Popen(command)
            # kill after a random number of further requests, wherever the run happens to be then
            target = before + rng.randint(5, 2 * EDITS // KILLS)
            while process.poll() is None and gemini.count + openai.count < target:
                time.sleep(0.002)
            if process.poll() is not None:
                break
            process.send_signal(signal.SIGKILL)
            assert process.wait(10) == -signal.SIGKILL
            kills += 1
            now = stored(cache)
            assert kept <= now, "a stored reply is gone"
            kept = now
        assert kills >= 3
        subprocess.run(command, check=True, timeout=300)
        report = isr.Report.load(out)
        final = {c.response_id for j in report.judgement_records for c in j.calls}
        assert kept <= final, "a stored reply was not used"
        assert (report.n, report.n_no_verdict, len(report.judgement_records)) == (EDITS, 0, 2 * EDITS)
        # A request is repeated only where a kill hit it on the way: at most what was in flight at each kill.
        repeated = sum(n - 1 for n in asked(gemini, openai).values())
        assert repeated <= kills * 2 * 16
        assert len(asked(gemini, openai)) == 2 * EDITS
        total = gemini.count + openai.count
        subprocess.run(command, check=True, timeout=300)
        assert gemini.count + openai.count == total, "a finished run asked again"


@pytest.mark.kill
def test_ctrl_c_says_how_to_go_on_and_keeps_what_was_received(tmp_path: Path) -> None:
    manifest, cache = write_manifest(tmp_path), tmp_path / "cache"
    with serve("compatible", latency=0.1) as server:
        command = [
            sys.executable,
            "-c",
            LISTENING,
            "evaluate",
            str(manifest),
            "--judge",
            f"openai:local@{server.url}",
            "--cache",
            str(cache),
            "--quiet",
        ]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        while process.poll() is None and server.count < 40:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=60)
        assert process.returncode == 130, told
        assert "goes on where it stopped" in told
        assert "Traceback" not in told
        kept = len(stored(cache))
        assert kept >= 40 - 16 - 1
        before = server.count
        subprocess.run(command, check=True, timeout=300, stdout=subprocess.DEVNULL)
        assert server.count - before == EDITS - kept
