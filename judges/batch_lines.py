"""Result files of batch jobs: one JSON object per line, read without trust and without holding the file in memory."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["JOB_ID", "json_lines"]

#: Longer lines than this are no reply of ours (its text alone is cut off at far less).
MAX_LINE = 16 * 2**20
#: Ids that may become part of a path. They come back from files and services.
JOB_ID = re.compile(r"\A[A-Za-z0-9_.-]{1,200}\Z")


def json_lines(path: Path, judge: str) -> Iterator[dict[str, Any]]:
    """Every line that is a JSON object; the others are counted and left out with a warning (their calls stay open).

    Lines end at a line feed only: a reply may hold U+2028 and the like.
    """
    broken = 0
    with open(path, "rb") as file:
        while line := file.readline(MAX_LINE + 1):
            if len(line) > MAX_LINE and not line.endswith(b"\n"):
                broken += 1
                while (rest := file.readline(MAX_LINE)) and not rest.endswith(b"\n"):
                    pass
                continue
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                row = None
            if isinstance(row, dict):
                yield row
            else:
                broken += 1
    if broken:
        warnings.warn(
            f"{judge}: {broken} lines of a batch result cannot be read; their calls stay open",
            UserWarning,
            stacklevel=2,
        )
