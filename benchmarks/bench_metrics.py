"""PSNR, SSIM, VIFp and FSIM on a batch of 16 pictures of 512×512 on the CPU, against scikit-image, torchmetrics and piq.

    python benchmarks/bench_metrics.py [--batch 16] [--side 512] [--repeat 3] [--threads N] [--out metrics.json]

Target: at least as fast as each outside implementation that the metric is tested against (ratio ≥ 1). Both sides run in turn
on the same float32 pictures, input checks included on ours; the best of the repetitions counts. One thread for both by default:
scikit-image has no more, and only then do the seconds of CPU time, which other work on the machine does not change, compare. The
peers compute the same convention, so the largest difference of any value is printed beside the ratio.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torchmetrics.functional.image as tm
from skimage import data
from skimage import metrics as sk

from isr.metrics import fsim, fsimc, psnr, ssim, vifp

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "metrics"))
from metrics_oracles import load_piq

Measure = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def pictures(batch: int, side: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Crops of three photographs, and the same with noise that grows along the batch."""
    photos = [
        torch.tensor(p).permute(2, 0, 1)[None].float() / 255 for p in (data.astronaut(), data.coffee(), data.chelsea())
    ]
    sized = [torch.nn.functional.interpolate(p, size=(side, side), mode="bilinear", antialias=True) for p in photos]
    b = torch.cat([sized[i % 3].roll(17 * i, dims=3) for i in range(batch)])
    sigma = torch.linspace(0.01, 0.1, batch).view(-1, 1, 1, 1)
    noise = torch.randn(b.shape, generator=torch.Generator().manual_seed(0))
    return (b + sigma * noise).clamp(0, 1), b


def each(function: Callable[..., float], **options: object) -> Measure:
    """scikit-image takes one picture with channels last; the arrays are ready before the clock starts in `main`."""

    def run(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        pairs = zip(a.permute(0, 2, 3, 1).numpy(), b.permute(0, 2, 3, 1).numpy(), strict=True)
        return torch.tensor([function(y, x, **options) for x, y in pairs])

    return run


def luma(x: torch.Tensor) -> torch.Tensor:
    return (x * torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, keepdim=True) * 255


def peers() -> dict[str, tuple[Measure, dict[str, Measure]]]:
    gaussian = {
        "data_range": 1.0,
        "channel_axis": -1,
        "gaussian_weights": True,
        "sigma": 1.5,
        "use_sample_covariance": False,
    }
    table: dict[str, tuple[Measure, dict[str, Measure]]] = {
        "psnr": (
            psnr,
            {
                "scikit-image": each(sk.peak_signal_noise_ratio, data_range=1.0),
                "torchmetrics": lambda a, b: tm.peak_signal_noise_ratio(
                    a, b, data_range=1.0, reduction="none", dim=(1, 2, 3)
                ),
            },
        ),
        "ssim": (ssim, {"scikit-image": each(sk.structural_similarity, **gaussian)}),
        "vifp": (
            vifp,
            {"torchmetrics": lambda a, b: tm.visual_information_fidelity(luma(a), luma(b), reduction="none")},
        ),
        "fsim": (fsim, {}),
        "fsimc": (fsimc, {}),
    }
    piq = load_piq()
    if piq is None:
        print("piq is not installed (pip install --no-deps piq): FSIM has no peer in this run", file=sys.stderr)
        return table
    table["psnr"][1]["piq"] = lambda a, b: piq.psnr(a, b, reduction="none")
    table["ssim"][1]["piq"] = lambda a, b: piq.ssim(a, b, downsample=False, reduction="none")
    table["vifp"][1]["piq"] = lambda a, b: piq.vif_p(a, b, reduction="none")
    table["fsim"][1]["piq"] = lambda a, b: piq.fsim(a, b, chromatic=False, reduction="none")
    table["fsimc"][1]["piq"] = lambda a, b: piq.fsim(a, b, reduction="none")
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="of torch; 0 leaves its default")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    a, b = pictures(args.batch, args.side)
    rows = []
    for name, (ours, others) in peers().items():
        runs: dict[str, Measure] = {"isr": ours, **others}
        seconds: dict[str, list[float]] = {who: [] for who in runs}
        cpu: dict[str, list[float]] = {who: [] for who in runs}
        values: dict[str, np.ndarray] = {}
        for _ in range(args.repeat):
            for who, run in runs.items():
                start, used = time.perf_counter(), time.process_time()
                out = run(a, b)
                seconds[who].append(time.perf_counter() - start)
                cpu[who].append(time.process_time() - used)
                values[who] = out.double().numpy()
        for who in others:
            row = {
                "metric": name,
                "against": who,
                "ours_seconds": min(seconds["isr"]),
                "theirs_seconds": min(seconds[who]),
                "speed_ratio": min(seconds[who]) / min(seconds["isr"]),
                "ours_CPU_seconds": min(cpu["isr"]),
                "theirs_CPU_seconds": min(cpu[who]),
                "CPU_ratio": min(cpu[who]) / min(cpu["isr"]),
                "largest_difference": float(np.abs(values["isr"] - values[who]).max()),
            }
            rows.append(row)
            print(
                f"{name:6s} against {who:13s} {row['ours_seconds']:.3f} s, theirs {row['theirs_seconds']:.3f} s: "
                f"ratio {row['speed_ratio']:.2f} (CPU time {row['CPU_ratio']:.2f})",
                flush=True,
            )
    ratios = [float(row["speed_ratio"]) for row in rows]
    result = {
        "batch": args.batch, "side_pixels": args.side, "repeat": args.repeat, "torch_threads": torch.get_num_threads(),
        "smallest_speed_ratio": min(ratios), "smallest_CPU_ratio": min(float(row["CPU_ratio"]) for row in rows), "target_speed_ratio": 1.0, "all_at_least_as_fast": min(ratios) >= 1.0,
        "against": rows,
    }  # fmt: skip
    text = json.dumps(result, indent=1)
    if args.out:
        args.out.write_text(text + "\n", "utf-8")
    print(text)


if __name__ == "__main__":
    main()
