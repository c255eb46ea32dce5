"""What a metric hands back: one value per picture (or per set), with the convention it was computed in, or why there is none."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

__all__ = ["MetricResult", "NotAvailable"]


@dataclass(frozen=True)
class NotAvailable:
    """A value that does not exist, with the reason. Prints as "n/a" and refuses to become a number or a truth value.

    Attributes:
        lacking: weights or a package are missing on this machine, so the same call can have a value another time. False: the
            picture itself has none (too small, 0/0).
    """

    reason: str
    lacking: bool = False

    def _refuse(self) -> Any:
        raise TypeError(
            f"this metric value is not available ({self.reason}); test with isinstance(value, NotAvailable)"
        )

    def __bool__(self) -> bool:
        return bool(self._refuse())

    def __float__(self) -> float:
        return float(self._refuse())

    def __int__(self) -> int:
        return int(self._refuse())

    def __str__(self) -> str:
        return "n/a"


Value = float | NotAvailable


@dataclass(frozen=True)
class MetricResult:
    """One metric on one list of pairs.

    Attributes:
        name: as asked for ("ssim").
        values: one per pair, in order; for a metric of whole sets (`per="set"`) one in all.
        convention: what exactly was computed (window, scale, colours, borders); numbers of different conventions never
            share a column.
        higher_is_better: whether a higher value means closer pictures (an immunizer wants edits far from the control edit).
        per: "pair" or "set".
    """

    name: str
    values: tuple[Value, ...]
    convention: str
    higher_is_better: bool
    per: Literal["pair", "set"] = "pair"

    @property
    def reason(self) -> str:
        """Why values are missing, each reason once; empty where none is."""
        return "; ".join(dict.fromkeys(v.reason for v in self.values if isinstance(v, NotAvailable)))

    @property
    def available(self) -> tuple[float, ...]:
        """The values that are numbers, in order (PSNR of identical pictures is inf)."""
        return tuple(v for v in self.values if not isinstance(v, NotAvailable))

    def to_json(self) -> dict[str, Any]:
        """JSON-able record; infinite values are written as "inf", missing ones as null beside their reason."""
        shown: list[float | str | None] = [
            None if isinstance(v, NotAvailable) else v if math.isfinite(v) else "inf" for v in self.values
        ]
        return {
            "name": self.name,
            "values": shown,
            "convention": self.convention,
            "higher_is_better": self.higher_is_better,
            "per": self.per,
            "reason": self.reason,
        }
