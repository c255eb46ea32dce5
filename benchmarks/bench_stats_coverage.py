"""Coverage of 95 % intervals: exact for independent cases, simulated for clustered rates and paired differences.

    python benchmarks/bench_stats_coverage.py [--runs 2000]

Criteria: Wilson at least 91 % for p in [.02, .98], n ≥ 50, and 94–96 % on average (`…_by_n` shows the dips outside 94–96 % for
every n: how many, how deep, at which p; `…_lowest` the deepest);
Clopper–Pearson at least 95 %; clustered Wilson at least 91 % for 50 images × 5 prompts, p in [.02, .98], within-image
correlation 0 to 1. Ends with status 1 when one is missed. Within-image dependence comes in two shapes of the same correlation:
"beta" (every image has its own rate) and "copies" (an image's five outcomes are one outcome copied, with that probability).
"Plain" rules are what the shipped ones replaced: no half images added, and BCa for every difference.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from typing import Any

import numpy as np
from scipy import special

from isr.stats.bootstrap import bca, bootstrap_sums, jackknife_sums
from isr.stats.intervals import clopper_pearson, critical_value, effective_n, score_interval, wilson
from isr.stats.paired import BCA_METHOD, difference_intervals

LONG = True
#: Outside the claimed range: smaller n, and rarer events (by symmetry also near 1). Shown, not judged.
SMALLER, RARE = (10, 20, 30), (0.002, 0.005, 0.01, 0.015)
SIZES = (50, 75, 100, 150, 200, 300, 500, 1000)
RATES = np.round(np.arange(0.02, 0.9801, 0.002), 4)
CLUSTERED_RATES = (
    0.02,
    0.03,
    0.05,
    0.07,
    0.1,
    0.2,
    0.3,
    0.5,
    0.7,
    0.8,
    0.9,
    0.92,
    0.93,
    0.94,
    0.95,
    0.96,
    0.97,
    0.975,
    0.98,
)
CORRELATIONS = (0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0)


def exact() -> dict[str, object]:
    """Coverage summed over the binomial distribution, inside the claimed range and (for Wilson) outside it."""
    out: dict[str, object] = {}
    for name, interval in (("wilson", wilson), ("clopper_pearson", clopper_pearson)):
        cells, beyond = [], []
        for n in (*SMALLER, *SIZES):
            k = np.arange(n + 1)
            ends = np.array([(i.low, i.high) for i in (interval(int(x), n) for x in k)])
            logs = special.gammaln(n + 1) - special.gammaln(k + 1) - special.gammaln(n - k + 1)
            for p in (*RARE, *RATES):
                inside = (ends[:, 0] <= p) & (p <= ends[:, 1])
                coverage = float(np.exp(logs + k * np.log(p) + (n - k) * np.log1p(-p))[inside].sum())
                (beyond if n in SMALLER or p < RATES[0] else cells).append((coverage, n, float(p)))
        values = [c[0] for c in cells]
        out[name] = {
            "minimum": min(values), "mean": float(np.mean(values)), "cells": len(cells),
            "share_below_94": float(np.mean(np.array(values) < 0.94)), "share_above_96": float(np.mean(np.array(values) > 0.96)),
            "minimum_outside_the_range": min(beyond)[0],
        }  # fmt: skip
        out[f"{name}_by_n"] = [by_n(n, [(c, p) for c, size, p in cells if size == n]) for n in SIZES]
        out[f"{name}_lowest"] = [{"n": n, "p": p, "coverage": c} for c, n, p in sorted(cells)[:10]]
        out[f"{name}_lowest_outside_the_range"] = [{"n": n, "p": p, "coverage": c} for c, n, p in sorted(beyond)[:6]]
    return out


def by_n(n: int, cells: list[tuple[float, float]]) -> dict[str, object]:
    """Coverage over all rates of one n, from (coverage, p): what lies outside 94–96 %, and where."""
    low, high = [p for c, p in cells if c < 0.94], [p for c, p in cells if c > 0.96]
    return {
        "n": n, "minimum": min(cells)[0], "mean": float(np.mean([c for c, _ in cells])), "maximum": max(cells)[0],
        "cells": len(cells), "cells_below_94": len(low), "cells_above_96": len(high),
        # Coverage is symmetric about one half, so the lower side tells both.
        "p_below_94": " ".join(f"{p:g}" for p in low if p <= 0.5) or "none",
    }  # fmt: skip


def draw(
    rng: np.random.Generator, p: float, rho: float, images: int, prompts: int, runs: int, shape: str
) -> np.ndarray:
    """Successes per image, (runs, images)."""
    if shape == "copies":
        copied = rng.random((runs, images)) < rho
        return np.where(copied, prompts * rng.binomial(1, p, (runs, images)), rng.binomial(prompts, p, (runs, images)))
    if rho in (0.0, 1.0):
        return prompts * rng.binomial(1, p, (runs, images)) if rho else rng.binomial(prompts, p, (runs, images))
    a, b = p * (1 - rho) / rho, (1 - p) * (1 - rho) / rho
    return rng.binomial(prompts, rng.beta(a, b, (runs, images)))


def plain_n_eff(totals: np.ndarray, sizes: np.ndarray) -> float:
    """The effective n without the half images added: what the shipped rule is compared with."""
    g, n, p = len(sizes), sizes.sum(), totals.sum() / sizes.sum()
    variance = g / (g - 1) * ((totals - p * sizes) ** 2).sum() / n**2
    return float(g if variance <= 0 else min(n, p * (1 - p) / variance))


def clustered(runs: int, images: int, prompts: int) -> tuple[dict[str, float], list[dict[str, object]]]:
    """Coverage per correlation, rate and shape, for the shipped rule and the plain one."""
    rng = np.random.default_rng(20)
    sizes = np.full(images, float(prompts))
    t = critical_value(0.95, images - 1)
    cells = []
    for shape in ("beta", "copies"):
        for rho in CORRELATIONS:
            for p in CLUSTERED_RATES:
                totals = draw(rng, p, rho, images, prompts, runs, shape)
                hits, plain, width = 0, 0, 0.0
                # Most samples repeat as multisets; each is evaluated once.
                unique, counts = np.unique(np.sort(totals, axis=1), axis=0, return_counts=True)
                for row, count in zip(unique.astype(float), counts, strict=True):
                    rate = float(row.sum() / sizes.sum())
                    low, high = score_interval(rate, effective_n(row, sizes), t)
                    hits += int(count) * (low <= p <= high)
                    width += int(count) * (high - low)
                    low, high = score_interval(rate, plain_n_eff(row, sizes), t)
                    plain += int(count) * (low <= p <= high)
                cells.append((hits / runs, plain / runs, shape, rho, p, width / runs))
    coverage = np.array([c[0] for c in cells])
    summary = {
        "images": images, "prompts": prompts, "samples": runs, "minimum": float(coverage.min()), "mean": float(coverage.mean()),
        "minimum_beta": min(c[0] for c in cells if c[2] == "beta"), "minimum_copies": min(c[0] for c in cells if c[2] == "copies"),
        "plain_minimum": min(c[1] for c in cells), "plain_mean": float(np.mean([c[1] for c in cells])),
    }  # fmt: skip
    lowest = [
        {
            "images": images,
            "prompts": prompts,
            "shape": shape,
            "correlation": rho,
            "p": p,
            "coverage": c,
            "plain": plain,
        }
        for c, plain, shape, rho, p, _ in sorted(cells)[:6]
    ]
    return summary, lowest


PAIRED = (
    # ISR of the baseline, difference, within-image correlation
    (0.7, 0.09, 0.0), (0.7, 0.09, 0.5), (0.7, 0.0, 0.3), (0.5, 0.3, 0.5), (0.9, 0.05, 0.5), (0.9, 0.09, 0.8), (0.95, 0.02, 0.8),
    (0.97, 0.02, 0.5), (0.05, 0.93, 0.5),
)  # fmt: skip


def paired(runs: int, images: int, prompts: int) -> list[dict[str, object]]:
    """Coverage of the interval of a paired difference, as shipped and as plain BCa; blocks of runs share their resamples."""
    rng = np.random.default_rng(21)
    out = []
    for base, difference, rho in PAIRED:
        hits, plain, width, names, done = 0, 0, 0.0, {}, 0
        while done < runs:
            size = min(100, runs - done)
            done += size
            # Images hard for one method are hard for the other: half of the cases share their draw.
            shared, fresh = rng.random((size, images, 1)) * np.ones(prompts), rng.random((size, images, prompts))
            u = np.where(rng.random((size, images, 1)) < rho, shared, fresh)
            v = np.where(rng.random((size, images, prompts)) < 0.5, u, rng.random((size, images, prompts)))
            first, second = v < base + difference, u < base
            sums = (first.astype(float) - second).sum(axis=2)
            only = [(float((a & ~b).mean()), float((b & ~a).mean())) for a, b in zip(first, second, strict=True)]
            sizes = np.full(images, float(prompts))
            found = difference_intervals(
                [(s, sizes, *p) for s, p in zip(sums, only, strict=True)], level=0.95, n_boot=2000, seed=done
            )
            boots = bootstrap_sums(sums.T, 2000, done) / (images * prompts)
            for i, interval in enumerate(found):
                hits += interval.low <= difference <= interval.high
                width += interval.high - interval.low
                names[interval.method] = names.get(interval.method, 0) + 1
                if np.ptp(sums[i]) > 0:
                    jack = jackknife_sums(sums[i][:, None])[:, 0] / ((images - 1) * prompts)
                    low, high = bca(float(sums[i].sum() / (images * prompts)), boots[:, i], jack, 0.95)
                    plain += low <= difference <= high
        out.append(
            {"images": images, "prompts": prompts, "rate": base, "difference": difference, "correlation": rho,
             "coverage": hits / runs, "plain_bca": plain / runs, "mean_width": width / runs,
             "share_score_interval": 1 - names.get(BCA_METHOD, 0) / runs}
        )  # fmt: skip
    return out


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=2000)
    args = parser.parse_args()
    start = time.perf_counter()
    result: dict[str, Any] = {
        "level": 0.95,
        "samples_per_cell": args.runs,
        "samples_per_paired_cell": args.runs // 4,
        **exact(),
    }
    found = [clustered(args.runs, 50, 5), clustered(args.runs // 2, 100, 6), clustered(args.runs // 2, 20, 5)]
    result["clustered"] = [summary for summary, _ in found]
    result["clustered_lowest"] = [row for _, lowest in found for row in lowest]
    result["paired"] = [
        row for shape in ((20, 5), (50, 5), (100, 6), (100, 1)) for row in paired(args.runs // 4, *shape)
    ]
    result["paired_minimum"] = min(row["coverage"] for row in result["paired"])
    result["paired_minimum_plain_bca"] = min(row["plain_bca"] for row in result["paired"])
    result["criteria"] = {
        "wilson_at_least_91": result["wilson"]["minimum"] >= 0.91,
        "wilson_94_to_96_on_average": 0.94 <= result["wilson"]["mean"] <= 0.96,
        "clopper_pearson_at_least_95": result["clopper_pearson"]["minimum"] >= 0.95 - 1e-9,
        "clustered_50x5_at_least_91": result["clustered"][0]["minimum"] >= 0.91,
    }
    result["seconds"] = time.perf_counter() - start
    print(json.dumps(result, indent=1))
    return 0 if all(result["criteria"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
