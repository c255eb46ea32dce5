"""One closing line over several JUnit files, as pytest prints it: "==== 3 failed, 812 passed, 4 skipped in 1410.22s ====".

    python tools/ci_summary.py SECONDS RESULT.xml …

Exits 1 where a file is missing or unreadable, or where no test ran at all.
"""

from __future__ import annotations

import sys
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Iterable
from pathlib import Path


def count(files: Iterable[Path]) -> Counter[str]:
    """Outcomes ("passed", "failed", "error", "skipped") of every test case."""
    total: Counter[str] = Counter()
    for file in files:
        for case in ET.parse(file).getroot().iter("testcase"):  # noqa: S314 - written by our own pytest a moment ago
            kinds = {child.tag for child in case}
            outcome = (
                "failed"
                if "failure" in kinds
                else "error"
                if "error" in kinds
                else "skipped"
                if "skipped" in kinds
                else "passed"
            )
            total[outcome] += 1
    return total


def line(total: Counter[str], seconds: float) -> str:
    parts = [f"{total[kind]} {kind}" for kind in ("failed", "passed", "skipped", "error") if total[kind]]
    return f" {', '.join(parts) or 'no tests ran'} in {seconds:.2f}s ".center(80, "=")


def main(argv: list[str]) -> int:
    total = count(Path(name) for name in argv[1:])
    print(line(total, float(argv[0])))
    return 0 if total["passed"] and not total["failed"] and not total["error"] else 1


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
