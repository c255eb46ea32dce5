"""Run mypy over the package as users import it (`isr.judges`, not `judges`).

The four top-level folders install under `isr.`; a type checker cannot know that from a checkout. This builds a folder
of links in build/typing (never committed) and checks there. Arguments: files or folders to report on (default: all).
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LINKS = ROOT / "build" / "typing"
ROOMS = ("attacks", "editors", "human_study", "judges")


def link() -> Path:
    """(Re)build build/typing/isr; returns build/typing."""
    target = LINKS / "isr"
    target.mkdir(parents=True, exist_ok=True)
    wanted = {source.name: source for source in [*(ROOT / "isr").iterdir(), *(ROOT / room for room in ROOMS)]}
    wanted.pop("__pycache__", None)
    for stale in target.iterdir():
        if stale.name not in wanted:
            stale.unlink(missing_ok=True)
    for name, source in wanted.items():
        with contextlib.suppress(FileExistsError):
            (target / name).symlink_to(source)
    return LINKS


def main(argv: list[str]) -> int:
    # Checked from inside the link folder, so that the checkout's own isr/ cannot shadow the linked one.
    folder = link()
    command = [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml"), "-p", "isr"]
    done = subprocess.run(command, cwd=folder, check=False, capture_output=True, text=True)
    wanted = [Path(a).resolve().relative_to(ROOT).as_posix() for a in argv]
    shown = 0
    for line in done.stdout.splitlines():
        path = line.partition(":")[0].removeprefix("isr/")
        own = path if path.split("/")[0] in ROOMS else f"isr/{path}"
        if not wanted or any(own == w or own.startswith(w.rstrip("/") + "/") for w in wanted):
            shown += ": error:" in line
            print(line)
    sys.stderr.write(done.stderr)
    if not wanted:
        return done.returncode
    return 1 if shown else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
