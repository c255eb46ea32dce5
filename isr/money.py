"""What calls cost: a dated price file, the price of a call, and a spend cap that reserves the worst case before sending."""

from __future__ import annotations

import asyncio
import datetime
import fnmatch
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from math import ceil
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from .errors import UsageError
from .schema import Usage

__all__ = ["Budget", "Price", "Prices", "WorstCase", "costs_nothing", "judge_model", "output_limit"]

MILLION = 1_000_000


class Price(BaseModel):
    """US dollars per million tokens of one model in one period."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    input: float = Field(ge=0)
    output: float = Field(ge=0)
    cached: float | None = Field(default=None, ge=0)
    batch: float | None = Field(default=None, gt=0, le=1)
    from_: datetime.date | None = Field(default=None, alias="from")
    until: datetime.date | None = None

    def of(self, usage: Usage) -> float | None:
        """Dollars of one call; None where the service reported no tokens. Cached tokens are part of the input tokens,
        thinking tokens come on top of the output tokens and are billed as such."""
        if usage.input_tokens is None:
            return None
        cached = min(usage.cached_tokens or 0, usage.input_tokens)
        written = (usage.output_tokens or 0) + (usage.thinking_tokens or 0)
        rate = self.input if self.cached is None else self.cached
        return ((usage.input_tokens - cached) * self.input + cached * rate + written * self.output) / MILLION


class _File(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    written: datetime.date
    price: tuple[Price, ...] = ()


@dataclass(frozen=True)
class Prices:
    """Price entries, the user's own before the package's."""

    entries: tuple[Price, ...]
    written: tuple[datetime.date, ...]

    @classmethod
    def load(cls, own: str | Path | None = None) -> Prices:
        """The package's prices, preceded by those of a file of the same form (isr/prices.toml).

        Raises:
            UsageError: naming the key that is wrong.
        """
        parts = [] if own is None else [_read(Path(own).expanduser(), str(own))]
        parts.append(_parse((files("isr") / "prices.toml").read_text("utf-8"), "isr/prices.toml"))
        return cls(tuple(p for part in parts for p in part.price), tuple(part.written for part in parts))

    def find(self, model: str, day: datetime.date | None = None) -> Price | None:
        """The price of "provider:model" on a day (default: today), or None."""
        day = day or datetime.date.today()
        for price in self.entries:
            started = price.from_ is None or price.from_ <= day
            running = price.until is None or day <= price.until
            if started and running and fnmatch.fnmatchcase(model, price.model):
                return price
        return None


def _read(path: Path, name: str) -> _File:
    try:
        return _parse(path.read_text("utf-8"), name)
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"prices: cannot read {name!r}: {error}") from error


def _parse(text: str, name: str) -> _File:
    try:
        return _File.model_validate(tomllib.loads(text))
    except (tomllib.TOMLDecodeError, ValidationError) as error:
        raise UsageError(f"prices {name}: {error}") from error


def judge_model(identity: Mapping[str, Any]) -> str | None:
    """ "provider:model" of a judge behind a service's own address, as the price file names it; None for judges that cost
    nothing per token that we could know (functions, servers given by URL)."""
    provider, model = identity.get("provider"), identity.get("model")
    known_hosts = {"gemini": "generativelanguage.googleapis.com", "openai": "api.openai.com"}
    if not isinstance(provider, str) or not isinstance(model, str) or known_hosts.get(provider) != identity.get("host"):
        return None
    return f"{provider}:{model}"


def costs_nothing(identity: Mapping[str, Any]) -> bool:
    """Functions, stored runs, MiniWorld's referees and servers on this machine are not billed."""
    host = str(identity.get("host", ""))
    name = host[1 : host.index("]")] if host.startswith("[") and "]" in host else host.partition(":")[0]
    local = name in {"localhost", "::1"} or name.startswith("127.") or host == "::1"
    return local or identity.get("provider") in {"function", "replay", "referee"}


# Upper ends for a reservation: one token per two characters, one picture tile of 770 tokens per 512 × 512 pixels and one
# more for the overview. Providers count otherwise, but not more, at the sizes judged here.
_CHARS_PER_TOKEN = 2.0
_TILE = 512
_TILE_TOKENS = 770
#: Output that is reserved where the judge sends no limit: the most that the service's models are documented to write
#: (Gemini 2.5 and 3: 65,536 tokens, OpenAI's GPT-5: 128,000), thinking included.
_OUTPUT_TOKENS = 131_072
_OUTPUT_TOKENS_OF = {"gemini": 65_536}


def output_limit(identity: Mapping[str, Any]) -> int:
    """The most output tokens of one call: the limit that the judge sends, or what its service allows."""
    limit = identity.get("settings", {}).get("max_output_tokens")
    return limit if isinstance(limit, int) else _OUTPUT_TOKENS_OF.get(str(identity.get("provider")), _OUTPUT_TOKENS)


@dataclass(frozen=True)
class WorstCase:
    """The most one call of a judge can cost.

    Attributes:
        price: of the judge. max_output_tokens: of one call (`output_limit`).
    """

    price: Price
    max_output_tokens: int = _OUTPUT_TOKENS

    def dollars(self, characters: int, sizes: tuple[tuple[int, int], ...]) -> float:
        """Dollars of a call with so many characters of text and pictures of these (width, height)."""
        pictures = sum(_TILE_TOKENS * (1 + ceil(w / _TILE) * ceil(h / _TILE)) for w, h in sizes)
        tokens = characters / _CHARS_PER_TOKEN + pictures
        return (tokens * self.price.input + self.max_output_tokens * self.price.output) / MILLION


@dataclass
class Budget:
    """A spend cap shared by all judges of a run, in US dollars. Used from one event loop.

    A call is sent only when what was spent, what is reserved by calls under way, and its own worst case fit under the cap.
    """

    cap: float
    spent: float = 0.0
    reserved: float = 0.0
    refused: int = 0
    _settled: asyncio.Event = field(default_factory=asyncio.Event, repr=False)

    def __post_init__(self) -> None:
        if (
            isinstance(self.cap, bool)
            or not isinstance(self.cap, int | float)
            or not math.isfinite(self.cap)
            or self.cap < 0
        ):
            raise UsageError(f"max_cost: expected a number of US dollars ≥ 0, got {self.cap!r}")

    async def reserve(self, worst: float) -> bool:
        """Take the worst case of a call; waits for calls under way where their end may make room. False: it does not fit."""
        while self.spent + self.reserved + worst > self.cap:
            if self.reserved <= 0 or self.spent + worst > self.cap:
                self.refused += 1
                return False
            self._settled.clear()
            await self._settled.wait()
        self.reserved += worst
        return True

    def settle(self, worst: float, actual: float) -> None:
        """A call ended: its reservation becomes what it cost."""
        self.reserved = max(0.0, self.reserved - worst)
        self.spent += actual
        self._settled.set()
