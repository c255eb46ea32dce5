"""Coverage of the intervals: exact for independent cases, simulated for clustered ones and paired differences.

    python benchmarks/bench_stats_coverage.py [--out coverage.json] [--runs 4000]

Criteria: Wilson at least 91 % for p in [.02, .98], n ≥ 50, and 94–96 % on average (dips outside 94–96 % are listed);
Clopper–Pearson at least 95 %; clustered Wilson at least 91 % for 50 images × 5 prompts, p in [.02, .98], within-image
correlation 0 to 1. Exits with 1 when one is missed. Within-image dependence comes in two shapes of the same correlation:
"beta" (every image has its own rate) and "copies" (an image's five outcomes are one outcome copied, with that probability).
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np
from scipy import special

from isr.stats.bootstrap import bca, bootstrap_sums, jackknife_sums
from isr.stats.intervals import clopper_pearson, critical_value, effective_n, score_interval, wilson
from isr.stats.paired import difference_intervals

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
    """Coverage summed over the binomial distribution."""
    out: dict[str, object] = {}
    for name, interval in (("wilson", wilson), ("clopper_pearson", clopper_pearson)):
        values, dips = [], []
        for n in SIZES:
            k = np.arange(n + 1)
            ends = np.array([(i.low, i.high) for i in (interval(int(x), n) for x in k)])
            logs = special.gammaln(n + 1) - special.gammaln(k + 1) - special.gammaln(n - k + 1)
            for p in RATES:
                inside = (ends[:, 0] <= p) & (p <= ends[:, 1])
                coverage = float(np.exp(logs + k * np.log(p) + (n - k) * np.log1p(-p))[inside].sum())
                values.append(coverage)
                if not 0.94 <= coverage <= 0.96:
                    dips.append((coverage, n, float(p)))
        out[name] = {
            "minimum": min(values), "mean": float(np.mean(values)), "cells": len(values),
            "share_outside_94_96": len(dips) / len(values), "lowest": sorted(dips)[:8], "highest": sorted(dips)[-3:],
        }  # fmt: skip
    return out


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


def clustered(runs: int, images: int, prompts: int) -> dict[str, object]:
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
    return {
        "images": images, "prompts": prompts, "runs": runs, "minimum": float(coverage.min()), "mean": float(coverage.mean()),
        "minimum_beta": min(c[0] for c in cells if c[2] == "beta"), "minimum_copies": min(c[0] for c in cells if c[2] == "copies"),
        "lowest": [(c[0], *c[2:5]) for c in sorted(cells)[:8]],
        "plain_rule_minimum": min(c[1] for c in cells), "plain_rule_mean": float(np.mean([c[1] for c in cells])),
        "plain_rule_lowest": [(c[1], *c[2:5]) for c in sorted(cells, key=lambda c: c[1])[:8]],
        "monte_carlo_se_at_91": float(np.sqrt(0.91 * 0.09 / runs)),
    }  # fmt: skip


PAIRED = (
    # ISR of the baseline, difference, within-image correlation
    (0.7, 0.09, 0.0), (0.7, 0.09, 0.5), (0.7, 0.0, 0.3), (0.5, 0.3, 0.5), (0.9, 0.05, 0.5), (0.9, 0.09, 0.8), (0.95, 0.02, 0.8),
    (0.97, 0.02, 0.5), (0.05, 0.93, 0.5),
)  # fmt: skip


def paired(runs: int, images: int, prompts: int) -> dict[str, object]:
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
        out.append({"rate": base, "difference": difference, "correlation": rho, "coverage": hits / runs, "plain_bca": plain / runs,
                    "width": width / runs, "methods": names})  # fmt: skip
    return {"images": images, "prompts": prompts, "runs": runs, "resamples": 2000, "cells": out,
            "minimum": min(c["coverage"] for c in out), "plain_bca_minimum": min(c["plain_bca"] for c in out)}  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--runs", type=int, default=4000)
    args = parser.parse_args()
    start = time.perf_counter()
    result: dict[str, object] = {"exact": exact()}
    print(json.dumps(result["exact"], indent=1))
    result["clustered"] = found = [
        clustered(args.runs, 50, 5),
        clustered(args.runs // 2, 100, 6),
        clustered(args.runs // 2, 20, 5),
    ]
    print(json.dumps(found, indent=1))
    result["paired"] = [paired(args.runs // 4, g, m) for g, m in ((20, 5), (50, 5), (100, 6), (100, 1))]
    print(json.dumps(result["paired"], indent=1))
    result["seconds"] = time.perf_counter() - start
    wilson_, cp = result["exact"]["wilson"], result["exact"]["clopper_pearson"]  # type: ignore[index]
    criteria = {
        "Wilson at least 91 %": wilson_["minimum"] >= 0.91,
        "Wilson 94-96 % on average": 0.94 <= wilson_["mean"] <= 0.96,
        "Clopper-Pearson at least 95 %": cp["minimum"] >= 0.95 - 1e-9,
        "clustered Wilson at least 91 % (50 x 5)": found[0]["minimum"] >= 0.91,  # type: ignore[operator]
    }
    result["criteria"] = criteria
    for name, held in criteria.items():
        print("held  " if held else "MISSED", name)
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    return 0 if all(criteria.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
