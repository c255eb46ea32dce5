"""Comparing methods on the same cases: all pairs, Holm within a family, and the bold rule (docs/definitions.md section 8).

A family is all method pairs within one editor × prompt kind × purifier.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from ..errors import UsageError
from ._inputs import FloatArray, cluster_codes, cluster_sums, need_columns, need_level, outcome_codes
from .outcomes import isr_table
from .paired import difference_intervals, lead_test
from .significance import holm

__all__ = ["FAMILY", "BeatsEvery", "beats_every", "compare_methods", "mark_best"]

#: Columns that make a family, and columns that make two edits "the same case" under two methods.
FAMILY = ("editor", "prompt_kind", "purifier")
KEY = ("image_id", "prompt", "seed")


@dataclass
class _Pair:
    first: Any
    second: Any
    rows: Any
    sums: FloatArray
    sizes: FloatArray
    images: Any
    only_a: int
    only_b: int


def _wide(cases: pd.DataFrame, key: Sequence[str], method: str, family: tuple[Any, ...]) -> pd.DataFrame:
    """Outcome codes (−1, 0, 1; NaN: this method lacks the case), one row per case, one column per method."""
    nameless = cases[method].isna()
    if bool(nameless.any()):
        raise UsageError(
            f"cases: {int(nameless.sum())} rows of family {family} have no {method!r}; name the method of every row"
        )
    repeated = cases.duplicated([*key, method], keep=False)
    if bool(repeated.any()):
        row = cases.loc[repeated, [*key, method]].iloc[0].to_dict()
        raise UsageError(
            f"cases: {int(repeated.sum())} rows of family {family} share {(*key, method)} with another, the first is {row}; "
            "a comparison needs one row per case and method (add the column that tells them apart to key= or by=)"
        )
    methods = list(pd.unique(cases[method]))
    wide = cases.set_index([*key, method])["_code"].unstack(method)
    return wide[methods]


def _pairs(wide: pd.DataFrame, image: str | None) -> list[_Pair]:
    ids = None if image is None else wide.index.get_level_values(image).to_numpy(dtype=object)
    codes, count = cluster_codes("image", ids, len(wide))
    values = {name: wide[name].to_numpy(dtype=np.float64) for name in wide.columns}
    pairs = []
    for first, second in combinations(wide.columns, 2):
        rows = ~np.isnan(values[first]) & ~np.isnan(values[second])
        a, b = values[first][rows] == 1.0, values[second][rows] == 1.0
        sizes = cluster_sums(codes[rows], count)
        images = sizes > 0
        sums = cluster_sums(codes[rows], count, a.astype(np.float64) - b.astype(np.float64))
        only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
        pairs.append(_Pair(first, second, rows, sums[images], sizes[images], images, only_a, only_b))
    return pairs


def _bounds(a: FloatArray, b: FloatArray) -> tuple[float, float]:
    """Where the difference can lie whatever the undetermined outcomes were."""
    return float((a == 1).mean() - (b != 0).mean()), float((a != 0).mean() - (b == 1).mean())


def compare_methods(
    cases: pd.DataFrame,
    *,
    by: Sequence[str] = FAMILY,
    key: Sequence[str] = KEY,
    method: str = "method",
    outcome: str = "outcome",
    image: str | None = "image_id",
    level: float = 0.95,
    n_boot: int = 10_000,
    seed: int = 0,
) -> pd.DataFrame:
    """All method pairs within each family, on the cases that both have.

    An undetermined case is not a success, as in ISR; `bound_low` and `bound_high` say what it could change.

    Args:
        cases: one row per case and method, immunized arm only, with columns by…, key…, method, outcome. `by` and `key`
            columns that the table lacks are left out (a table of one editor needs no editor column); `image` must be in `key`.

    Returns:
        One row per pair: by…, a, b, rate_a, rate_b, difference (a − b, fraction), low, high, bound_low, bound_high,
        only_a, only_b, n, n_images, n_unpaired (cases that only one of the two has), p, p_holm, test, p_sign_flip, interval.
        Empty where a family has one method.
    """
    need_level(level)
    by, key = [c for c in by if c in cases.columns], [c for c in key if c in cases.columns]
    need_columns("cases", cases, [*by, *key, method, outcome, *([image] if image else [])])
    if not key or (image is not None and image not in key):
        raise UsageError(f"key: expected the columns that make a case, {image!r} among them, got {tuple(key)}")
    table = cases[[*by, *key, method]].copy()
    table["_code"] = outcome_codes(outcome, cases[outcome].to_numpy(dtype=object))
    rows: list[dict[str, Any]] = []
    families: Any = table.groupby(by, sort=False, dropna=False) if by else [((), table)]
    for family, group in families:
        wide = _wide(group, key, method, family)
        pairs = [p for p in _pairs(wide, image) if p.rows.any()]
        found: list[dict[str, Any]] = [{} for _ in pairs]
        by_images: dict[bytes, list[int]] = {}
        for index, pair in enumerate(pairs):
            by_images.setdefault(pair.images.tobytes(), []).append(index)
        for members in by_images.values():
            data = [
                (p.sums, p.sizes, p.only_a / p.sizes.sum(), p.only_b / p.sizes.sum())
                for p in map(pairs.__getitem__, members)
            ]
            for index, interval in zip(
                members, difference_intervals(data, level=level, n_boot=n_boot, seed=seed), strict=True
            ):
                found[index] = {"low": interval.low, "high": interval.high, "interval": interval.method}
        for pair, extra in zip(pairs, found, strict=True):
            a, b = (wide[name].to_numpy(dtype=np.float64)[pair.rows] for name in (pair.first, pair.second))
            n = len(a)
            test, p_flip = lead_test(pair.sums, pair.only_a, pair.only_b, n, seed)
            low, high = _bounds(a, b)
            has = wide[[pair.first, pair.second]].notna().any(axis=1)
            extra |= {
                "a": pair.first, "b": pair.second, "rate_a": float((a == 1).mean()), "rate_b": float((b == 1).mean()),
                "difference": (pair.only_a - pair.only_b) / n, "bound_low": low, "bound_high": high,
                "only_a": pair.only_a, "only_b": pair.only_b, "n": n, "n_images": len(pair.sizes),
                "n_unpaired": int(has.sum()) - n, "p": test.p, "test": test.method, "p_sign_flip": p_flip,
            }  # fmt: skip
        adjusted = holm([r["p"] for r in found])
        rows.extend(
            dict(zip(by, family, strict=True)) | row | {"p_holm": float(p)}
            for row, p in zip(found, adjusted, strict=True)
        )
    order = [*by, "a", "b", "rate_a", "rate_b", "difference", "low", "high", "bound_low", "bound_high", "only_a", "only_b",
             "n", "n_images", "n_unpaired", "p", "p_holm", "test", "p_sign_flip", "interval"]  # fmt: skip
    return pd.DataFrame(rows, columns=order)


def _same(value: Any, other: Any) -> bool:
    return bool(value == other) or (bool(pd.isna(value)) and bool(pd.isna(other)))


def mark_best(
    rates: pd.DataFrame, pairs: pd.DataFrame, *, by: Sequence[str] = FAMILY, alpha: float = 0.05
) -> pd.DataFrame:
    """Add `bold` (not significantly below the best) and `p_below_best` to a table of rates.

    Within a family the best method has the highest ISR. Another is significantly below it when the paired difference on
    shared cases says so with Holm-adjusted p ≤ alpha. Where several tie for best, being below any of them counts. A method
    that shares no case with the best cannot be tested: it is not bold, and `p_below_best` is missing.

    Args:
        rates: from `isr_table(cases, (*by, "method"))`. pairs: from `compare_methods` over the same cases.
    """
    by = [c for c in by if c in rates.columns]
    out = rates.copy()
    bold, below = [], []
    for _, row in rates.iterrows():
        same = pd.Series(True, index=rates.index)
        relevant = pd.Series(True, index=pairs.index)
        for column in by:
            same &= rates[column].map(lambda v, w=row[column]: _same(v, w))
            relevant &= pairs[column].map(lambda v, w=row[column]: _same(v, w))
        top = rates.loc[same, "isr"].max()
        best = list(rates.loc[same & (rates["isr"] == top), "method"])
        others = [name for name in best if name != row["method"]]
        verdicts = []
        for other in others:
            match = pairs[
                relevant
                & (
                    ((pairs["a"] == other) & (pairs["b"] == row["method"]))
                    | ((pairs["b"] == other) & (pairs["a"] == row["method"]))
                )
            ]
            if len(match) == 1:
                pair = match.iloc[0]
                lead = pair["difference"] if pair["a"] == other else -pair["difference"]
                verdicts.append((float(pair["p_holm"]), bool(lead > 0 and pair["p_holm"] <= alpha)))
        is_best = row["method"] in best
        below.append(min((p for p, _ in verdicts), default=float("nan")))
        bold.append((is_best or bool(verdicts)) and not any(lower for _, lower in verdicts))
    out["bold"], out["p_below_best"] = bold, below
    return out


@dataclass(frozen=True)
class BeatsEvery:
    """Whether a method beats every baseline (intersection–union test: Berger 1982, Technometrics 24, p. 295–300).

    Attributes:
        holds: every single comparison is in its favour with unadjusted p ≤ alpha; no correction is needed for "every".
        p: the largest of the p-values. worst: the baseline that decides.
    """

    holds: bool
    p: float
    worst: str
    n_baselines: int


def beats_every(pairs: pd.DataFrame, method: str, *, alpha: float = 0.05) -> BeatsEvery:
    """Test "better than every baseline" within one family.

    Args:
        pairs: rows of one family of `compare_methods`. Baselines are all methods that `method` is compared with.
    """
    mine = pairs[(pairs["a"] == method) | (pairs["b"] == method)]
    names = set(pairs["a"]) | set(pairs["b"])
    if len(mine) == 0:
        raise UsageError(f"method: {method!r} is in no comparison; there are {sorted(map(str, names))}")
    if len(mine) != len(names) - 1:
        raise UsageError(
            f"pairs: expected one comparison of {method!r} with each of the other {len(names) - 1} methods, got {len(mine)}; "
            "pass the rows of one family, whose methods share cases"
        )
    wins = np.where(mine["a"] == method, mine["difference"], -mine["difference"]) > 0
    baseline = np.where(mine["a"] == method, mine["b"], mine["a"])
    # A lost comparison decides whatever its two-sided p is, so it sorts above every won one.
    worst = int(np.argmax(np.where(wins, mine["p"], 1.0 + np.asarray(mine["p"]))))
    p = np.asarray(mine["p"], dtype=np.float64)
    holds = bool(wins.all() and (p <= alpha).all())
    return BeatsEvery(holds, float(p[wins].max()) if wins.all() else 1.0, str(baseline[worst]), len(mine))


def rates_and_comparison(
    cases: pd.DataFrame, *, by: Sequence[str] = FAMILY, method: str = "method", alpha: float = 0.05, **options: Any
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """`isr_table` with the bold rule, and `compare_methods`, of one table of cases."""
    by = [c for c in by if c in cases.columns]
    pairs = compare_methods(cases, by=by, method=method, **options)
    rates = isr_table(cases, (*by, method), **{k: v for k, v in options.items() if k in ("outcome", "image", "level")})
    if method != "method":
        rates = rates.rename(columns={method: "method"})
    return mark_best(rates, pairs, by=by, alpha=alpha), pairs
