"""`import isr` in a fresh interpreter, against the bare interpreter and against `import numpy`, alternating."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time

REPETITIONS = 15
TARGET_SECONDS = 0.3


def seconds(code: str) -> float:
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    return time.perf_counter() - started


def main() -> None:
    codes = {"bare": "pass", "isr": "import isr", "evaluate": "import isr; isr.evaluate", "numpy": "import numpy"}
    for code in codes.values():  # compiled files and disk cache warm
        seconds(code)
    times: dict[str, list[float]] = {name: [] for name in codes}
    for _ in range(REPETITIONS):
        for name, code in codes.items():
            times[name].append(seconds(code))
    median = {name: statistics.median(values) for name, values in times.items()}
    extra = median["isr"] - median["bare"]
    print(
        json.dumps(
            {
                "repetitions": REPETITIONS,
                "bare_interpreter_seconds": median["bare"],
                "import_isr_seconds": extra,
                "import_isr_and_reach_evaluate_seconds": median["evaluate"] - median["bare"],
                "import_numpy_seconds": median["numpy"] - median["bare"],
                "worst_import_isr_seconds": max(times["isr"]) - median["bare"],
                "target_seconds": TARGET_SECONDS,
                "within_target": extra < TARGET_SECONDS,
            }
        )
    )


if __name__ == "__main__":
    main()
