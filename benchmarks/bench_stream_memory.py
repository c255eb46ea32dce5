"""Memory of isr.stream from 1,000 to 50,000 edits with controls, judged by a function, written to a run directory as it goes."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import PIL.Image

import isr
from isr.schema import Verdict

LONG = True
EDITS = 50_000
FIRST = 1_000
TARGET_MB = 50


def resident_mb() -> float:
    """Resident memory of this process now."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("no VmRSS in /proc/self/status: this benchmark needs Linux")


async def judge(case: object) -> Verdict:
    return Verdict(
        semantic_mismatch=True, degradation=False, observations="o" * 200, reasons={"degradation": "r" * 100}
    )


def main() -> None:
    edits = int(sys.argv[1]) if len(sys.argv) > 1 else EDITS
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rng = np.random.default_rng(0)
        for i in range(200):  # 200 different files; every case is told apart by its seed
            PIL.Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(folder / f"{i}.png")

        def cases() -> Iterator[isr.EditCase]:
            for i in range(edits):
                path = [folder / f"{(i + k) % 200}.png" for k in range(3)]
                yield isr.EditCase(
                    path[0],
                    f"edit {i}",
                    original=path[1],
                    control=path[2],
                    image_id=f"image-{i // 5}",
                    method="m",
                    seed=i,
                )

        at: dict[int, float] = {}
        seen = 0
        started = time.perf_counter()
        for result in isr.stream(cases(), judges=[judge], cache=False, out=folder / "run"):
            if result.case.arm == "immunized":
                seen += 1
                if seen % FIRST == 0 or seen == edits:
                    at[seen] = resident_mb()
        seconds = time.perf_counter() - started
        assert seen == edits
        highest = max(at.values())
    growth = highest - at[FIRST]
    print(
        json.dumps(
            {
                "edits": edits, "judgements": 2 * edits, "seconds": seconds, "resident_MB_at_first_1000": at[FIRST], "highest_resident_MB": highest,
                "growth_MB": growth, "target_growth_MB": TARGET_MB, "within_target": growth < TARGET_MB,
            }
        )
    )  # fmt: skip


if __name__ == "__main__":
    main()
