"""Run the Python blocks of Markdown pages, top to bottom, one namespace per page, as a reader would paste them.

    python tools/run_docs.py docs/judges.md README.md

A block fenced as ```python runs. One fenced as ```python no-run does not; its first line must be a comment that says
why (a paid service, a GPU). Tracebacks name the page and its own line numbers.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent
from types import ModuleType


@dataclass(frozen=True)
class Block:
    """One fenced block: the words after the fence, its source (dedented), and the page line of its first source line."""

    info: tuple[str, ...]
    source: str
    line: int


def blocks(text: str) -> Iterator[Block]:
    """Every fenced block of a page, in order. Raises ValueError for a fence that is never closed."""
    lines = text.splitlines()
    number = 0
    while number < len(lines):
        stripped = lines[number].lstrip()
        fence = stripped[: len(stripped) - len(stripped.lstrip("`"))]
        number += 1
        if len(fence) < 3 or "`" in stripped[len(fence) :]:
            continue
        start = number
        while number < len(lines) and lines[number].strip() != fence:
            number += 1
        if number == len(lines):
            raise ValueError(f"the block that opens in line {start} is never closed")
        yield Block(tuple(stripped[len(fence) :].split()), dedent("\n".join(lines[start:number])), start + 1)
        number += 1


def runnable(text: str) -> list[Block]:
    """The Python blocks that run. Raises ValueError where one says no-run without a reason, or something unknown."""
    found = []
    for block in blocks(text):
        if block.info[:1] != ("python",):
            continue
        if len(block.info) == 1:
            found.append(block)
        elif block.info[1:] != ("no-run",):
            raise ValueError(
                f"line {block.line - 1}: ```{' '.join(block.info)} is neither ```python nor ```python no-run"
            )
        elif not block.source.lstrip().startswith("#"):
            raise ValueError(f"line {block.line}: a no-run block must begin with a comment that says why it is not run")
    return found


def run(page: Path) -> int:
    """Execute a page's blocks in the working directory; returns how many ran."""
    todo = runnable(page.read_text("utf-8"))
    # A module of its own under "__main__", so that classes and pickles defined on a page behave as in a script.
    module = ModuleType("__main__")
    sys.modules["__main__"] = module
    for block in todo:
        code = compile("\n" * (block.line - 1) + block.source, str(page), "exec")
        exec(code, module.__dict__)  # noqa: S102 - our own documentation
    return len(todo)


def main(argv: list[str]) -> int:
    failed = False
    for name in argv:
        page = Path(name).resolve()
        try:
            print(f"{name}: {run(page)} blocks ran")
        except Exception:  # noqa: BLE001 - whatever a page raises is that page's failure, shown in full
            traceback.print_exc()
            print(f"{name}: failed", file=sys.stderr)
            failed = True
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
