"""Prices by day, the price of a call by hand, and a spend cap that cannot be overrun."""

from __future__ import annotations

import asyncio
import datetime
from pathlib import Path
from typing import Any

import pytest
from evaluate_help import Scripted, pictures, text
from hypothesis import given
from hypothesis import strategies as st

import isr
from isr.engine.retry import RetryPolicy
from isr.errors import TransientError, UsageError
from isr.money import Budget, Price, Prices, WorstCase, judge_model
from isr.protocols import Reply
from isr.schema import Usage

PRICES = Prices.load()


def test_the_price_of_a_call_by_hand() -> None:
    price = Price(model="m", input=2.0, output=10.0, cached=0.5)
    usage = Usage(input_tokens=1000, cached_tokens=400, output_tokens=50, thinking_tokens=150)
    # 600 · 2 + 400 · 0.5 + 200 · 10 = 1200 + 200 + 2000 = 3400 per million
    assert price.of(usage) == pytest.approx(3400 / 1e6)
    assert Price(model="m", input=2.0, output=10.0).of(usage) == pytest.approx((1000 * 2 + 200 * 10) / 1e6)
    assert price.of(Usage()) is None


def test_prices_hold_for_a_period() -> None:
    before = PRICES.find("gemini:gemini-3.8-flash", datetime.date(2026, 12, 31))
    after = PRICES.find("gemini:gemini-3.8-flash", datetime.date(2027, 1, 1))
    assert before is not None
    assert after is not None
    assert (before.input, after.input) == (0.75, 1.5)
    assert PRICES.find("gemini:gemini-unheard-of") is None


def test_every_current_and_paper_judge_has_a_price() -> None:
    from isr.judges.models import presets

    for preset in presets().values():
        for judge in preset.judges:
            assert PRICES.find(judge, datetime.date(2026, 11, 20)) is not None, judge


def test_ones_own_prices_win(tmp_path: Path) -> None:
    path = tmp_path / "p.toml"
    path.write_text('written = 2026-11-20\n[[price]]\nmodel = "gemini:*"\ninput = 9\noutput = 9\n')
    own = Prices.load(path)
    found = own.find("gemini:gemini-3.8-flash")
    assert found is not None
    assert found.input == 9
    assert own.find("openai:gpt-6.1-sol") == PRICES.find("openai:gpt-6.1-sol")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("x = ", "p.toml"),
        ("written = 2026-01-01\n[[price]]\nmodel='m'\ninput=-1\noutput=1", "input"),
        ("[[price]]\n", "written"),
    ],
)
def test_broken_price_files_are_named(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "p.toml"
    path.write_text(content)
    with pytest.raises(UsageError, match=message):
        Prices.load(path)
    with pytest.raises(UsageError, match="cannot read"):
        Prices.load(tmp_path / "none.toml")


def test_only_a_services_own_address_has_a_list_price() -> None:
    own = {"provider": "gemini", "host": "generativelanguage.googleapis.com", "model": "m"}
    assert judge_model(own) == "gemini:m"
    assert judge_model({**own, "host": "127.0.0.1:9"}) is None
    assert judge_model({"provider": "function"}) is None


@given(st.floats(0, 5), st.lists(st.tuples(st.floats(0.01, 1), st.floats(0, 1)), min_size=1, max_size=30))
def test_a_cap_is_never_overrun(cap: float, calls: list[tuple[float, float]]) -> None:
    async def main() -> Budget:
        budget = Budget(cap)
        highest = 0.0

        async def one(worst: float, share: float) -> None:
            nonlocal highest
            if await budget.reserve(worst):
                await asyncio.sleep(0)
                budget.settle(worst, worst * share)
                highest = max(highest, budget.spent + budget.reserved)

        await asyncio.gather(*(one(*c) for c in calls))
        assert highest <= cap + 1e-9
        return budget

    budget = asyncio.run(main())
    assert budget.spent <= cap + 1e-9
    assert budget.reserved == pytest.approx(0, abs=1e-9)


def test_a_call_waits_for_room_that_calls_under_way_will_make() -> None:
    async def main() -> tuple[bool, bool]:
        budget = Budget(1.0)
        first = await budget.reserve(0.8)
        waiting = asyncio.create_task(budget.reserve(0.8))
        await asyncio.sleep(0)
        assert not waiting.done()
        budget.settle(0.8, 0.1)
        return first, await waiting

    assert asyncio.run(main()) == (True, True)


@pytest.mark.parametrize("cap", [-1, float("nan"), float("inf"), True, "5"])
def test_silly_caps_are_refused(cap: Any) -> None:
    with pytest.raises(UsageError, match="max_cost"):
        Budget(cap)


class Priced(Scripted):
    """A judge that costs 1000 $ per million output tokens and may write at most 100 of them."""

    def identity(self) -> dict[str, Any]:
        return {
            "provider": "gemini",
            "host": "generativelanguage.googleapis.com",
            "model": "priced",
            "settings": {"max_output_tokens": 100},
        }


@pytest.fixture
def prices(tmp_path: Path) -> Path:
    path = tmp_path / "prices.toml"
    path.write_text('written = 2026-11-20\n[[price]]\nmodel = "gemini:priced"\ninput = 0\noutput = 1000\n')
    return path


def run(judge: Any, n: int, **options: Any) -> isr.Report:
    return isr.evaluate(pictures(n), [f"edit {i}" for i in range(n)], originals=pictures(n, 50), judges=[judge], progress=False, retry=RetryPolicy(attempts=2, base=0, cap=0), **options)  # fmt: skip


def good(_: Any) -> Reply:
    return Reply(text=text(True), usage=Usage(input_tokens=10, output_tokens=50))


def test_a_run_stops_at_its_cap_and_a_higher_cap_goes_on(prices: Path, tmp_path: Path) -> None:
    # a call costs 0.05 $ and reserves 0.10 $: after 4 calls 0.20 $ are spent, and the next 0.10 $ no longer fit under 0.29 $
    judge = Priced(good, "p", concurrency=1)
    report = run(judge, 10, max_cost=0.29, prices=prices, cache=tmp_path / "c")
    assert len(judge.asked) == 4
    assert dict(report.no_verdicts) == {"over_budget": 6}
    assert (report.isr, report.bounds) == (0.4, (0.4, 1.0))
    assert report.costs()["cost"].sum() == pytest.approx(0.20)
    again = Priced(good, "p", concurrency=1)
    report = run(again, 10, max_cost=5, prices=prices, cache=tmp_path / "c")
    assert len(again.asked) == 6
    assert report.isr == 1.0


def test_attempts_that_may_have_been_billed_count(prices: Path) -> None:
    lost = Priced([TransientError("dropped"), good(None)], "p", concurrency=1)
    # the dropped attempt may have been served: its 0.10 $ count as spent, and the second try no longer fits under 0.15 $
    assert dict(run(lost, 1, max_cost=0.15, prices=prices, cache=False).no_verdicts) == {"over_budget": 1}
    refused = Priced([TransientError("busy", status=429), good(None)], "p", concurrency=1)
    assert run(refused, 1, max_cost=0.15, prices=prices, cache=False).isr == 1.0


def test_a_cap_needs_a_price(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no price is known for gemini:priced"):
        run(Priced(good, "p"), 1, max_cost=1, cache=False)


def test_worst_case_is_above_what_a_call_can_cost() -> None:
    worst = WorstCase(Price(model="m", input=1e6, output=0.0), 100)
    # 200 characters: 100 tokens; 513 × 512 pixels: 2 tiles and the overview, 3 · 770
    assert worst.dollars(200, ((513, 512),)) == pytest.approx(100 + 3 * 770)


def test_what_a_judge_without_a_limit_may_write_is_reserved() -> None:
    from isr.money import output_limit

    assert output_limit({"provider": "gemini", "settings": {"max_output_tokens": 900}}) == 900
    assert output_limit({"provider": "gemini", "settings": {}}) == 65_536
    assert output_limit({"provider": "openai"}) >= 128_000
    assert output_limit({"provider": "house"}) >= 128_000
