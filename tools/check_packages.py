"""Compare the explicit `packages` list of pyproject.toml with the folders on disk; exits 1 and says what differs.

The list is explicit because automatic discovery would also ship attacks/, judges/ and the rest under their bare names.
"""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("attacks", "editors", "human_study", "judges")


def on_disk(root: Path = ROOT) -> dict[str, str]:
    """Import name → folder (POSIX, relative) of every package of the tree."""
    found = {}
    for top, name in [("isr", "isr"), *((room, f"isr.{room}") for room in ROOMS)]:
        for init in sorted((root / top).rglob("__init__.py")):
            folder = init.parent.relative_to(root)
            found[".".join([name, *folder.parts[1:]])] = folder.as_posix()
    return found


def problems(root: Path = ROOT) -> list[str]:
    """One line per difference, each with what to do; empty when list and folders agree."""
    table = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]
    listed, mapping, found = table["packages"], table["package-dir"], on_disk(root)
    lines = [f"pyproject.toml lists {name!r} twice; remove one" for name in {n for n in listed if listed.count(n) > 1}]
    lines += [
        f"{found[name]}/ is missing from [tool.setuptools] packages; add {name!r}"
        for name in found
        if name not in listed
    ]
    lines += [
        f"pyproject.toml lists {name!r}, but there is no such folder; remove it" for name in listed if name not in found
    ]
    for name, folder in found.items():
        # setuptools resolves a package by its longest listed prefix.
        prefix = max((p for p in mapping if name == p or name.startswith(p + ".")), key=len, default=None)
        resolved = (
            None if prefix is None else "/".join([mapping[prefix], *name[len(prefix) + 1 :].split(".")]).rstrip("/")
        )
        if resolved != folder:
            lines.append(f"[tool.setuptools.package-dir] maps {name!r} to {resolved!r}, but it lives in {folder!r}")
    for top in ("isr", *ROOMS):
        for source in sorted((root / top).rglob("*.py")):
            folder = source.parent.relative_to(root).as_posix()
            if folder not in found.values():
                lines.append(f"{folder}/ holds {source.name} but no __init__.py, so no wheel would ship it; add one")
    return sorted(set(lines))


if __name__ == "__main__":
    wrong = problems()
    for line in wrong:
        print(line, file=sys.stderr)
    if not wrong:
        print(f"{len(on_disk())} packages listed, as on disk")
    raise SystemExit(1 if wrong else 0)
