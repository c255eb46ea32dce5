"""The study server under 100 raters who answer every 2–5 s: page to page at the 95th percentile, and memory of the server."""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import PIL.Image

ROOT = Path(__file__).resolve().parent.parent
sys.path += [str(ROOT / "tests" / "load"), str(ROOT / "tests" / "human_study")]

from isr.human_study.making import new_study  # noqa: E402
from isr.human_study.store import Store  # noqa: E402
from study_help import Fixed  # noqa: E402
from study_load import LoadRater, Server, free_port, make_raters, seconds_from_environment  # noqa: E402

import isr  # noqa: E402

LONG = True
RATERS = 100
ITEMS = 60
SIDE = 512
PACE = (2.0, 5.0)
SECONDS = 90.0
TARGET_MS = 100.0


def picture(seed: int) -> PIL.Image.Image:
    """Smooth colour with grain: about the bytes of a photograph of this size as PNG."""
    rng = np.random.default_rng(seed)
    coarse = PIL.Image.fromarray(rng.integers(40, 216, (8, 8, 3), dtype=np.uint8)).resize(
        (SIDE, SIDE), PIL.Image.Resampling.BICUBIC
    )
    grain = rng.integers(-6, 7, (SIDE, SIDE, 1))
    return PIL.Image.fromarray((np.asarray(coarse, int) + grain).clip(0, 255).astype(np.uint8))


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


async def load(server: Server, raters: list[LoadRater], seconds: float) -> dict[str, float]:
    """Everybody comes in; from then on pages count for so many seconds. Returns times and the server's CPU seconds between."""
    await server.ready()
    end = float("inf")
    tasks = [asyncio.create_task(r.live(lambda: time.monotonic() > end)) for r in raters]
    await asyncio.gather(*(r.entered.wait() for r in raters))
    await asyncio.sleep(PACE[1])
    begun, cpu, own = time.monotonic(), server.cpu_seconds(), time.process_time()
    end = begun + seconds
    await asyncio.sleep(seconds)
    found = {"begun": begun, "end": end, "cpu": server.cpu_seconds() - cpu, "client": time.process_time() - own}
    await asyncio.gather(*tasks)
    return found


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        run = isr.evaluate(
            [picture(i) for i in range(ITEMS)], [f"do number {i}" for i in range(ITEMS)],
            originals=[picture(1000 + i // 4) for i in range(ITEMS)], judges=[Fixed("a", lambda i: (i % 2 == 0, False))],
            cache=False, progress=False,
        )  # fmt: skip
        study = new_study(Path(folder) / "study", run, ITEMS, raters=RATERS, training=1, attention=2, repeats=3)
        store = Store(study)
        server = Server(study.folder, free_port())
        raters = make_raters(store, RATERS, server.port, PACE, pictures=True)
        server.start()
        try:
            found = asyncio.run(load(server, raters, seconds_from_environment(SECONDS)))
            memory = server.memory_mb()
        finally:
            server.kill()
        stored = len(store.history())
    pages = [
        s
        for r in raters
        for at, s in zip(r.page_at, r.page_seconds, strict=True)
        if found["begun"] <= at <= found["end"]
    ]
    acknowledged = sum(len(r.acknowledged) for r in raters)
    print(
        json.dumps(
            {
                "raters": RATERS, "think_seconds": list(PACE), "picture_side": SIDE, "cpu_cores": os.cpu_count(),
                "machine_load_1min": round(os.getloadavg()[0], 1), "answers_acknowledged": acknowledged, "answers_stored": stored,
                "pages_measured": len(pages),
                "answers_per_second": round(len(pages) / (found["end"] - found["begun"]), 1),
                "server_cpu_ms_per_answer": round(1000 * found["cpu"] / len(pages), 1),
                "client_cpu_ms_per_answer": round(1000 * found["client"] / len(pages), 1),
                "page_to_page_ms_median": round(1000 * statistics.median(pages), 1),
                "page_to_page_ms_p95": round(1000 * percentile(pages, 0.95), 1),
                "page_to_page_ms_max": round(1000 * max(pages), 1), "target_ms_p95": TARGET_MS,
                "server_memory_MB": round(memory["VmRSS"], 1), "server_peak_memory_MB": round(memory["VmHWM"], 1),
                "note": "the raters' client runs on the same cores as the server; page to page = POST of an answer and GET of the next page",
            },
            indent=2,
        )
    )  # fmt: skip


if __name__ == "__main__":
    main()
