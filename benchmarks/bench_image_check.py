"""What the check of images before the first call costs, per image; prints one JSON object.

    python benchmarks/bench_image_check.py [--images 200] [--side 512] [--repeats 3] [--stream 50000]

Inputs: RGB PNG files as Pillow writes them by default, of a smooth picture with sensor-like noise (neither flat nor pure
noise). Each figure is the best of the repeats, as wall time over all images. The peer, in the same run and with the same
number of threads, is the least that any check must do: Pillow decodes every file and sha256 runs over its pixels.
`--stream N` measures the growth of resident memory from 1,000 to N cases as well.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from PIL import Image

from isr.cases import EditCase, iter_prepared, prepare
from isr.images import FileMemo, as_image, check_images


def picture(seed: int, side: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize(
        (side, side), Image.Resampling.BICUBIC
    )
    return (np.asarray(small) + rng.normal(0, 2, (side, side, 3))).clip(0, 255).round().astype(np.uint8)


def best(repeats: int, call: Callable[[], Any]) -> float:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def bare(path: Path) -> str:
    with Image.open(io.BytesIO(path.read_bytes())) as image:
        return hashlib.sha256(image.tobytes()).hexdigest()


def pillow_png(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def resident() -> int:
    """Resident memory of this process in bytes (Linux)."""
    fields = Path("/proc/self/statm").read_text(encoding="ascii").split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE")


def stream_growth(paths: list[Path], n: int) -> float:
    """MB by which resident memory grows between the 1,000th and the last case of a stream with originals and controls."""
    memo, count, base, last = FileMemo(), 0, 0, 0
    cases = (
        EditCase(paths[i % len(paths)], f"prompt {i}", original=paths[i % 7], control=paths[i % 5]) for i in range(n)
    )
    for case in iter_prepared(cases, memo=memo):
        count += case.record.arm != "control"
        if count == 1000 and not base:
            base = resident()
        if count == n:  # before the stream ends and lets go of what it held
            last = resident()
    return (last - base) / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--stream", type=int, default=0)
    options = parser.parse_args()
    n, threads = options.images, min(8, os.cpu_count() or 1)
    with tempfile.TemporaryDirectory() as folder:
        growth = None
        if options.stream:  # first, while there is no freed memory that it could grow into
            small = [Path(folder) / f"s{i}.png" for i in range(12)]
            for i, path in enumerate(small):
                Image.fromarray(picture(i, 64)).save(path)
            growth = round(stream_growth(small, options.stream), 1)
        arrays = [picture(seed, options.side) for seed in range(min(n, 50))]
        arrays = [arrays[i % len(arrays)].copy() for i in range(n)]
        paths = [Path(folder) / f"{i}.png" for i in range(n)]
        for path, array in zip(paths, arrays, strict=True):
            Image.fromarray(array).save(path)
        memo = FileMemo()
        check_images([as_image(path) for path in paths], memo=memo)
        prompts = [f"prompt {i}" for i in range(n)]

        def peer() -> None:
            with ThreadPoolExecutor(threads) as pool:
                list(pool.map(bare, paths))

        refs = [as_image(path) for path in paths]
        held = [as_image(array) for array in arrays]
        check_images(refs)
        check_images(held)
        seconds = {
            "png_paths": best(options.repeats, lambda: check_images([as_image(path) for path in paths])),
            "png_paths_memo_warm": best(options.repeats, lambda: check_images([as_image(p) for p in paths], memo=memo)),
            "uint8_arrays": best(options.repeats, lambda: check_images([as_image(array) for array in arrays])),
            "prepare_png_paths_memo_warm": best(options.repeats, lambda: prepare(paths, prompts, memo=memo)),
            "png_of_checked_png_path": best(options.repeats, lambda: [ref.png() for ref in refs]),
            "png_of_checked_uint8_array": best(options.repeats, lambda: [ref.png() for ref in held]),
            "peer_pillow_png_of_uint8_array": best(options.repeats, lambda: [pillow_png(array) for array in arrays]),
            "peer_pillow_decode_and_sha256": best(options.repeats, peer),
        }
        result: dict[str, Any] = {
            "images": n, "side": options.side, "threads": threads, "repeats": options.repeats,
            "ms_per_image": {name: round(1000 * value / n, 3) for name, value in seconds.items()},
            "png_paths_over_peer": round(seconds["png_paths"] / seconds["peer_pillow_decode_and_sha256"], 3),
            "file_bytes_mean": round(sum(path.stat().st_size for path in paths) / n),
            "sent_bytes_mean_of_arrays": round(sum(len(ref.png()) for ref in held) / n),
            "python": platform.python_version(), "pillow": PIL.__version__, "numpy": np.__version__,
        }  # fmt: skip
        if growth is not None:
            result["stream"] = {"cases": options.stream, "growth_mb": growth}
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
