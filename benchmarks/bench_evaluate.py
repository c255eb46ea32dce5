"""isr.evaluate against a bare loop over the same two SDK clients (same pictures, latency, concurrency), then rerun from the cache."""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "tests"))

from isr.judges.gemini import GeminiJudge  # noqa: E402
from isr.judges.openai import OpenAIJudge  # noqa: E402
from servers.loopback import KEY, spawn  # noqa: E402 - the imitated services live beside the tests

import isr  # noqa: E402
from isr.images import as_image, check_images  # noqa: E402
from isr.rubric import Rubric  # noqa: E402

EDITS = 1000
SIDE = 512
LATENCY = 0.2
CONCURRENCY = 32
ROUNDS = 3
TARGET = 1.10
REPLY = json.dumps(
    {"observations": "o", "reason_semantic_mismatch": "r", "reason_degradation": "r", "semantic_mismatch": True, "degradation": False}
)  # fmt: skip
MODELS = ("gemini-3.8-flash", "gpt-5.2")


def pictures(folder: Path, n: int, kind: str, side: int) -> list[Path]:
    """RGB PNG files of smooth colour with grain, about the bytes of a photograph of this size."""
    rng = np.random.default_rng(0 if kind == "e" else 1)
    paths = []
    for i in range(n):
        coarse = PIL.Image.fromarray(rng.integers(40, 216, (8, 8, 3), dtype=np.uint8)).resize(
            (side, side), PIL.Image.Resampling.BICUBIC
        )
        grain = rng.integers(-6, 7, (side, side, 1))
        path = folder / f"{kind}{i}.png"
        PIL.Image.fromarray((np.asarray(coarse, int) + grain).clip(0, 255).astype(np.uint8)).save(
            path, compress_level=1
        )
        paths.append(path)
    return paths


async def bare(edits: list[Path], originals: list[Path], prompts: list[str], gemini_url: str, openai_url: str) -> int:
    """What a careful user would write by hand: both clients at once, a semaphore each, the same requests, replies parsed."""
    import httpx2
    import openai
    from google import genai
    from google.genai import types

    rubric = Rubric.default()
    instructions, schema = rubric.instructions(with_original=True), rubric.reply_schema()
    limits = httpx2.Limits(max_connections=CONCURRENCY, max_keepalive_connections=CONCURRENCY)
    gates = [asyncio.Semaphore(CONCURRENCY), asyncio.Semaphore(CONCURRENCY)]
    async with (
        httpx2.AsyncClient(limits=limits, timeout=180) as first,
        httpx2.AsyncClient(limits=limits, timeout=180) as second,
    ):
        google = genai.Client(
            api_key=KEY,
            http_options=types.HttpOptions(
                base_url=gemini_url,
                timeout=180_000,
                httpx_async_client=first,
                retry_options=types.HttpRetryOptions(attempts=1),
            ),
        )
        chat = openai.AsyncOpenAI(api_key=KEY, base_url=openai_url, max_retries=0, timeout=180, http_client=second)

        async def ask_google(i: int) -> dict[str, Any]:
            async with gates[0]:
                parts = [types.Part.from_text(text=json.dumps({"edit_prompt": prompts[i]}))]
                parts += [
                    types.Part.from_bytes(data=p.read_bytes(), mime_type="image/png") for p in (originals[i], edits[i])
                ]
                reply = await google.aio.models.generate_content(
                    model=MODELS[0],
                    contents=[types.Content(role="user", parts=parts)],
                    config=types.GenerateContentConfig(
                        system_instruction=instructions, temperature=0, response_mime_type="application/json", response_json_schema=schema,
                        automatic_function_calling=types.AutomaticFunctionCallingConfig(disable=True),
                    ),
                )  # fmt: skip
                found: dict[str, Any] = json.loads(reply.text or "")
                return found

        async def ask_openai(i: int) -> dict[str, Any]:
            async with gates[1]:
                content: list[dict[str, Any]] = [{"type": "text", "text": json.dumps({"edit_prompt": prompts[i]})}]
                for p in (originals[i], edits[i]):
                    url = "data:image/png;base64," + base64.b64encode(p.read_bytes()).decode()
                    content.append({"type": "image_url", "image_url": {"url": url, "detail": "high"}})
                messages: Any = [{"role": "system", "content": instructions}, {"role": "user", "content": content}]
                form: Any = {"type": "json_schema", "json_schema": {"name": "reply", "schema": schema, "strict": True}}
                reply = await chat.chat.completions.create(model=MODELS[1], messages=messages, response_format=form)
                found: dict[str, Any] = json.loads(reply.choices[0].message.content or "")
                return found

        replies = await asyncio.gather(*(f(i) for i in range(len(edits)) for f in (ask_google, ask_openai)))
    return sum(r["semantic_mismatch"] for r in replies)


class Clock:
    """Wall seconds, and CPU seconds of this process (all its threads; the servers are other processes)."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def read(self) -> tuple[float, float]:
        return time.perf_counter() - self._wall, time.process_time() - self._cpu


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--edits", type=int, default=EDITS)
    parser.add_argument(
        "--rounds", type=int, default=ROUNDS, help="each: ours and the bare loop, in turns which goes first"
    )
    parser.add_argument("--side", type=int, default=SIDE, help="of the pictures, in pixels")
    options = parser.parse_args()
    n, rounds = options.edits, options.rounds
    with tempfile.TemporaryDirectory() as name, spawn("gemini", latency=LATENCY, light=REPLY) as gemini, spawn("openai", latency=LATENCY, light=REPLY) as openai:  # fmt: skip
        folder = Path(name)
        edits, originals = pictures(folder, n, "e", options.side), pictures(folder, n, "o", options.side)
        prompts = [f"make it look like number {i}" for i in range(n)]
        kilobytes = statistics.mean(p.stat().st_size for p in edits) / 1000
        arrays = [np.asarray(PIL.Image.open(p)) for p in edits[: min(100, n)]]

        def timed_check(sources: list[Any]) -> float:
            started = time.perf_counter()
            check_images([as_image(s, name=str(i)) for i, s in enumerate(sources)])
            return 1000 * (time.perf_counter() - started) / len(sources)

        checks = {
            "check_ms_per_image_png_path": timed_check(list(edits)),
            "check_ms_per_image_array": timed_check(list(arrays)),
        }

        def judges() -> list[Any]:
            return [
                GeminiJudge(MODELS[0], base_url=gemini, api_key=KEY, concurrency=CONCURRENCY),
                OpenAIJudge(MODELS[1], base_url=openai, api_key=KEY, concurrency=CONCURRENCY),
            ]

        def ours(cache: Path) -> tuple[float, float]:
            # The look at all pictures before the first call is reported on a line of its own: here the memo is warm.
            isr.estimate(edits, prompts, originals=originals, judges=judges(), cache=cache)
            clock = Clock()
            report = isr.evaluate(edits, prompts, originals=originals, judges=judges(), cache=cache, progress=False)
            taken = clock.read()
            assert report.isr == 1.0
            return taken

        def peer() -> tuple[float, float]:
            clock = Clock()
            assert asyncio.run(bare(edits, originals, prompts, gemini, openai)) == 2 * n
            return clock.read()

        def rerun(cache: Path) -> tuple[float, float]:
            clock = Clock()
            report = isr.evaluate(edits, prompts, originals=originals, judges=judges(), cache=cache, progress=False)
            taken = clock.read()
            assert report.judgements["cached"].all()
            return taken

        warm = slice(0, 2 * CONCURRENCY)  # both sides import and compile their clients before the clock runs
        isr.evaluate(
            edits[warm], prompts[warm], originals=originals[warm], judges=judges(), cache=False, progress=False
        )
        asyncio.run(bare(edits[warm], originals[warm], prompts[warm], gemini, openai))
        times: dict[str, list[tuple[float, float]]] = {"ours": [], "bare": [], "again": []}
        for round_ in range(rounds):
            cache = folder / f"cache{round_}"
            if round_ % 2:
                times["bare"].append(peer())
            times["ours"].append(ours(cache))
            if not round_ % 2:
                times["bare"].append(peer())
            times["again"].append(rerun(cache))
            print(*(f"{what} {times[what][-1][0]:.2f} s ({times[what][-1][1]:.2f} CPU)" for what in times), sep=", ", file=sys.stderr)  # fmt: skip

    def middle(what: str, which: int) -> float:
        return statistics.median(t[which] for t in times[what])

    ratios = [[a[k] / b[k] for a, b in zip(times["ours"], times["bare"], strict=True)] for k in (0, 1)]
    ratio = statistics.median(ratios[0])
    print(
        json.dumps(
            {
                "edits": n, "judges": 2, "picture_side": options.side, "kilobytes_per_picture": round(kilobytes), "latency_seconds": LATENCY,
                "concurrency_per_judge": CONCURRENCY, "rounds": rounds, "ours_seconds": middle("ours", 0),
                "bare_loop_seconds": middle("bare", 0), "ratio_ours_to_bare": ratio, "ratios": [round(r, 3) for r in ratios[0]],
                "target_ratio": TARGET, "within_target": ratio <= TARGET,
                "ours_cpu_ms_per_judgement": 1000 * middle("ours", 1) / (2 * n), "bare_cpu_ms_per_judgement": 1000 * middle("bare", 1) / (2 * n),
                "cpu_ratio_ours_to_bare": statistics.median(ratios[1]),
                "cached_judgements_per_second": 2 * n / middle("again", 0), "target_cached_judgements_per_second": 2000,
                "cached_cpu_ms_per_judgement": 1000 * middle("again", 1) / (2 * n),
                **checks,
            }
        )
    )  # fmt: skip


if __name__ == "__main__":
    main()
