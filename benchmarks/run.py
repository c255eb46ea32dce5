"""Run benchmark scripts, keep what they measured, and write RESULTS.md from it.

    python benchmarks/run.py                 every script that is not marked LONG
    python benchmarks/run.py import_time …   only these (long ones too)
    python benchmarks/run.py --render        only write RESULTS.md anew from benchmarks/results/*.json

What a script is, and what it prints: benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import ast
import datetime
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
RESULTS = HERE / "results"
PAGE = HERE / "RESULTS.md"
#: Distributions whose version can change a figure here.
RECORDED = ("numpy", "scipy", "pandas", "pillow", "openai", "google-genai", "torch", "diffusers", "transformers", "torchmetrics", "scikit-image", "ray")  # fmt: skip
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass(frozen=True)
class Script:
    """A benchmark: its name (the file's, without `bench_`), what it measures (first line of its docstring), and whether
    it takes long and so runs only when named."""

    name: str
    path: Path
    about: str
    long: bool


def scripts(folder: Path = HERE) -> dict[str, Script]:
    """All benchmark scripts: the files bench_*.py."""
    found = {}
    for path in sorted(folder.glob("bench_*.py")):
        tree = ast.parse(path.read_text("utf-8"))
        about = (ast.get_docstring(tree) or "").strip().split("\n", 1)[0]
        long = any(
            isinstance(node, ast.Assign)
            and any(isinstance(t, ast.Name) and t.id == "LONG" for t in node.targets)
            and isinstance(node.value, ast.Constant)
            and node.value.value is True
            for node in tree.body
        )
        name = path.stem.removeprefix("bench_")
        found[name] = Script(name, path, about, long)
    return found


def last_json(text: str) -> dict[str, Any]:
    """The JSON object that a script's output ends with (other lines may come before it). Raises ValueError if none does."""
    lines = text.rstrip().splitlines()
    for start in range(len(lines) - 1, -1, -1):
        if lines[start].startswith("{"):
            try:
                found = json.loads("\n".join(lines[start:]))
            except json.JSONDecodeError:
                continue
            if isinstance(found, dict):
                return found
    raise ValueError("the output does not end with a JSON object")


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        model = next(
            (x.partition(":")[2].strip() for x in cpuinfo.read_text().splitlines() if x.startswith("model name")), model
        )
    memory = None
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        memory = round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    return {
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_GiB": memory,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }


def versions() -> dict[str, str]:
    found = {}
    for name in RECORDED:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def commit() -> str:
    """The commit that was measured; "+ changes" where tracked files differ from it (results themselves aside)."""
    head = subprocess.run(
        ["git", "rev-parse", "--short=12", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if head.returncode != 0:
        return "unknown"
    dirty = subprocess.run(
        ["git", "status", "--porcelain", "--untracked-files=no", "--", ".", ":!benchmarks/results", ":!benchmarks/RESULTS.md"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return head.stdout.strip() + (" + changes" if dirty.stdout.strip() else "")


def run(script: Script) -> bool:
    """Run one script and store what it measured; a failure is shown and stores nothing."""
    print(f"── {script.name}: {script.about}", flush=True)
    started, measured = time.perf_counter(), commit()
    done = subprocess.run([sys.executable, str(script.path)], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    seconds = time.perf_counter() - started
    sys.stdout.write(done.stdout)
    try:
        if done.returncode != 0:
            raise ValueError(f"it ended with status {done.returncode}")
        result = last_json(done.stdout)
    except ValueError as error:
        print(f"── {script.name}: FAILED, {error}; the stored figures stay as they were", file=sys.stderr)
        return False
    record = {
        "name": script.name, "about": script.about, "result": result, "machine": machine(), "versions": versions(),
        "threads": {name: os.environ.get(name, "unset") for name in THREADS}, "commit": measured,
        "measured_at": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"), "seconds": round(seconds, 1),
    }  # fmt: skip
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{script.name}.json").write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", "utf-8")
    print(f"── {script.name}: done in {seconds:.1f} s", flush=True)
    return True


# ------------------------------------------------------------------------------------------------------------- the page


def _cell(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        text = {True: "yes", False: "no", None: "–"}[value]
    elif isinstance(value, float):
        text = f"{value:.4g}"
    elif isinstance(value, list | dict):
        text = json.dumps(value, ensure_ascii=False)
    else:
        text = str(value)
    return text.replace("|", "\\|").replace("\n", " ")


def _table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = ["| " + " | ".join(map(_cell, columns)) + " |", "|" + "---|" * len(columns)]
    return [*lines, *("| " + " | ".join(_cell(row.get(c, "")) for c in columns) + " |" for row in rows)]


def _body(result: Mapping[str, Any]) -> list[str]:
    """Scalars as one table, then every list of rows (or dict of rows) as a table of its own."""
    lines: list[str] = []
    plain: dict[str, Any] = {}
    for key, value in result.items():
        if isinstance(value, list) and value and all(isinstance(row, dict) for row in value):
            lines += ["", f"**{key}**", "", *_table(value)]
        elif isinstance(value, dict) and value and all(isinstance(row, dict) for row in value.values()):
            lines += ["", f"**{key}**", "", *_table([{"": name, **row} for name, row in value.items()])]
        elif isinstance(value, dict):
            plain |= {f"{key}.{inner}": held for inner, held in value.items()}
        else:
            plain[key] = value
    head = _table([{"figure": key, "value": value} for key, value in plain.items()]) if plain else []
    return [*head, *lines]


def render(records: Sequence[Mapping[str, Any]]) -> str:
    """The whole of RESULTS.md."""
    lines = [
        "# Results", "",
        "Written by `benchmarks/run.py` from `benchmarks/results/*.json`; not edited by hand. Ratios compare both sides in one run on",
        "one machine, and are what carries over; seconds belong to the machine named.", "",
    ]  # fmt: skip
    for record in records:
        about, where = record["about"], record["machine"]
        settings = (
            ", ".join(f"{name}={value}" for name, value in record["threads"].items() if value != "unset")
            or "threads not set"
        )
        lines += [
            f"## {record['name']}", "", about, "", *_body(record["result"]), "",
            f"*{record['measured_at']}, commit {record['commit']}, {record['seconds']} s in all. {where['cpu']}, {where['cores']} cores, "
            f"{where['memory_GiB']} GiB, {where['system']}, Python {where['python']}, {settings}; "
            f"{', '.join(f'{name} {version}' for name, version in record['versions'].items())}.*", "",
        ]  # fmt: skip
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*", help="benchmarks to run (default: all that do not take long)")
    parser.add_argument("--render", action="store_true", help="run nothing; write RESULTS.md from the stored figures")
    parser.add_argument("--list", action="store_true", help="only list the benchmarks")
    options = parser.parse_args(argv)
    known = scripts()
    if options.list:
        for script in known.values():
            print(f"{script.name:24} {'long  ' if script.long else '      '}{script.about}")
        return 0
    unknown = [name for name in options.names if name not in known]
    if unknown:
        parser.error(f"no benchmark is called {', '.join(map(repr, unknown))}; there are: {', '.join(known) or 'none'}")
    failed = []
    if not options.render:
        chosen = [known[name] for name in options.names] or [script for script in known.values() if not script.long]
        failed = [script.name for script in chosen if not run(script)]
    records = [json.loads(file.read_text("utf-8")) for file in sorted(RESULTS.glob("*.json"))]
    PAGE.write_text(render(records), "utf-8")
    print(f"{len(records)} results in {PAGE.relative_to(ROOT)}")
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
