"""Faults that a run of many cases, judges, machines and dollars can meet, each as it was found."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
from batch_help import Batch, at, judge_at
from evaluate_help import Scripted, picture, pictures, text

import isr
from isr.cases import iter_prepared
from isr.cli import main
from isr.engine.retry import RetryPolicy
from isr.errors import IntegrityError, TransientError, UsageError
from isr.merging import merge
from isr.probing import battery, find_card
from isr.protocols import Reply
from isr.schema import Usage

N = 8


def study(judge: Any, **options: Any) -> isr.Report:
    given = {"cache": False, "progress": False, "retry": RetryPolicy(attempts=1), **options}
    return isr.evaluate(
        pictures(N), [f"edit {i}" for i in range(N)], originals=pictures(N, 50), judges=[judge], **given
    )


def judge(name: str = "a", **options: Any) -> Scripted:
    return Scripted(lambda q: text(True), name, **options)


# ------------------------------------------------------------------------------------------------------------ streams


def test_the_first_result_of_a_slow_source_does_not_wait_for_a_window_of_cases() -> None:
    made = 0
    go = threading.Event()

    def slow() -> Iterator[isr.EditCase]:
        nonlocal made
        for i in range(40):
            if made == 3:
                assert go.wait(30)  # a source that stands still until the first result was seen
            made += 1
            time.sleep(0.05)
            yield isr.EditCase(picture(i), f"prompt {i}")

    results = isr.stream(slow(), judges=[judge()], cache=False)
    try:
        # Results come as they are finished: of the three cases made before the source stands still, any may be the first.
        assert next(results).case.prompt in {"prompt 0", "prompt 1", "prompt 2"}
        assert made <= 3
    finally:
        go.set()
        results.close()


def test_a_quick_source_still_comes_in_order() -> None:
    prepared = list(iter_prepared(isr.EditCase(picture(i), f"prompt {i}") for i in range(50)))
    assert [p.record.prompt for p in prepared] == [f"prompt {i}" for i in range(50)]


def test_a_stream_that_goes_on_knows_its_cases_without_holding_them(tmp_path: Path) -> None:
    def cases(**tags: Any) -> Iterator[isr.EditCase]:
        for i in range(6):
            yield isr.EditCase(picture(i), f"prompt {i}", id=str(i), tags=tags)

    asked = judge()
    assert len(list(isr.stream(cases(a=1, b="x"), judges=[asked], cache=False, out=tmp_path / "run"))) == 6
    # The same tags in another order are the same tags.
    assert not list(isr.stream(cases(b="x", a=1), judges=[asked], cache=False, out=tmp_path / "run"))
    assert len(asked.asked) == 6
    with pytest.raises(UsageError, match="with other columns"):
        list(isr.stream(cases(b="y", a=1), judges=[asked], cache=False, out=tmp_path / "run"))


# -------------------------------------------------------------------------------------------------------------- money


def prices(path: Path, model: str) -> Path:
    path.write_text(f'written = 2026-11-20\n[[price]]\nmodel = "{model}"\ninput = 0.0\noutput = 100.0\n')
    return path


def test_a_batch_keeps_its_cap_where_no_batch_factor_is_known(tmp_path: Path) -> None:
    # 100 $/10^6 · 1000 output tokens = 0.1 $ per call at worst, at the live price: 2 calls fit under 0.2 $.
    with at("openai") as server:
        work = Batch(tmp_path, "openai", server)
        work.judges = lambda: [judge_at("openai", server, max_output_tokens=1000)]  # type: ignore[method-assign]
        begun = work.begin(prices=prices(tmp_path / "p.toml", "openai:m-1"), max_cost=0.2)
        assert (begun.sent, begun.over_cap) == (2, 8)


class Priced(Scripted):
    """At most 100 output tokens at 1000 $ per million: 0.1 $ per call at worst."""

    def identity(self) -> dict[str, Any]:
        return {
            "provider": "gemini", "host": "generativelanguage.googleapis.com", "model": "priced",
            "settings": {"max_output_tokens": 100},
        }  # fmt: skip


def test_a_capped_run_says_how_to_go_on(tmp_path: Path) -> None:
    table = tmp_path / "p.toml"
    table.write_text('written = 2026-11-20\n[[price]]\nmodel = "gemini:priced"\ninput = 0\noutput = 1000\n')
    paid = Priced(lambda q: Reply(text=text(True), usage=Usage(input_tokens=1, output_tokens=100)), "p", concurrency=1)
    report = study(paid, max_cost=0.35, prices=table)
    assert len(paid.asked) == 3  # 0.1 $ each, the whole worst case
    assert any("5 judgements did not fit under max_cost" in w and "higher max_cost" in w for w in report.warnings)
    assert "higher max_cost" in report.summary()


def test_an_estimate_tells_what_a_batch_would_cost(tmp_path: Path) -> None:
    table = tmp_path / "p.toml"
    table.write_text(
        'written = 2026-11-20\n[[price]]\nmodel = "gemini:priced"\ninput = 0\noutput = 1000\nbatch = 0.25\n'
    )
    paid = Priced(lambda q: text(True), "p")

    def told(**options: Any) -> Any:
        return isr.estimate(
            pictures(2), ["x", "y"], originals=pictures(2, 9), judges=[paid], prices=table, cache=False, **options
        ).judges[0]

    # Output alone costs: 2 calls of 80 tokens at 1000 $ per million = 0.16 $; 4 calls of 1500 = 6 $. A quarter of each.
    assert told().cost == pytest.approx((0.16, 6.0))
    assert told().batch_cost == pytest.approx((0.04, 1.5))
    assert told(lazy=True).batch_cost is None


# -------------------------------------------------------------------------------------------------------------- merge


def test_a_machine_that_ran_out_does_not_spoil_the_merge(tmp_path: Path) -> None:
    busy = Scripted(lambda q: TransientError("busy") if q.prompt == "edit 0" else text(True), "a")
    study(busy).save(tmp_path / "first")
    assert isr.Report.load(tmp_path / "first").n_no_verdict == 1
    study(judge()).save(tmp_path / "second")
    for order in (["first", "second"], ["second", "first"]):
        merged = merge([tmp_path / name for name in order], tmp_path / "-".join(order))
        assert (merged.n, merged.n_no_verdict, merged.isr) == (N, 0, 1.0)


def test_a_missing_shard_is_not_forgotten(tmp_path: Path) -> None:
    for i in (1, 2, 3):
        study(judge(), shard=(i, 3)).save(tmp_path / str(i))
    one = isr.Report.load(tmp_path / "1")
    assert any("Only shard 1/3 of the images" in w for w in one.warnings)
    some = merge([tmp_path / "1", tmp_path / "3"], tmp_path / "some")
    assert any("Only shard 1,3/3 of the images" in w for w in some.warnings)
    assert not any("Only shard 1/3" in w for w in some.warnings)
    every = merge([tmp_path / "some", tmp_path / "2"], tmp_path / "every")
    assert every.n == N
    assert not any("Only shard" in w for w in every.warnings)
    # The same by saving one shard after another into one folder.
    for i in (1, 2, 3):
        study(judge(), shard=f"{i}/3").save(tmp_path / "grown")
        told = [w for w in isr.Report.load(tmp_path / "grown").warnings if "Only shard" in w]
        assert [w.split(" of ")[0] for w in told] == {1: ["Only shard 1/3"], 2: ["Only shard 1,2/3"], 3: []}[i]


def test_a_bridge_of_one_shard_stays_one(tmp_path: Path) -> None:
    found = isr.bridge(study(judge(), shard="1/2"), judge("b"), cache=False, progress=False)
    assert any("Only shard 1/2" in w for w in found.new.warnings)


def test_a_merge_hashes_every_picture_again(tmp_path: Path) -> None:
    for i in (1, 2):
        study(judge(), shard=(i, 2)).save(tmp_path / str(i))
    files = sorted((tmp_path / "2" / "images").iterdir())
    files[0].write_bytes(files[1].read_bytes())
    with pytest.raises(IntegrityError, match="its pixels have the digest"):
        merge([tmp_path / "1", tmp_path / "2"], tmp_path / "out")
    files[0].unlink()
    files[0].symlink_to(files[1])
    with pytest.raises(IntegrityError, match="a link"):
        merge([tmp_path / "1", tmp_path / "2"], tmp_path / "other")


def test_a_probe_that_failed_anywhere_stands_after_a_merge(tmp_path: Path) -> None:
    for i, card in enumerate((None, {"passed": True}, {"passed": False})):
        report = study(judge(), shard=(i + 1, 3))
        report.lock["judges"][0]["probe"] = card
        report.save(tmp_path / str(i))
    pair = merge([tmp_path / "0", tmp_path / "1"], tmp_path / "pair")
    assert pair.lock["judges"][0]["probe"] == {"passed": True}
    merged = merge([tmp_path / "pair", tmp_path / "2"], tmp_path / "all")
    assert merged.lock["judges"][0]["probe"] == {"passed": False}


# -------------------------------------------------------------------------------------------------------------- probe


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ISR_CACHE", str(tmp_path / "isr-cache"))
    return tmp_path / "isr-cache"


def photos(n: int = 3) -> list[PIL.Image.Image]:
    return [picture(i, 5).resize((64, 48), PIL.Image.Resampling.BICUBIC) for i in range(n)]


def test_a_probe_that_was_cut_off_is_no_card(own_cache: Path, tmp_path: Path) -> None:
    """Three right answers and a spend cap would else read "passed, 100 %" in every later report."""
    table = tmp_path / "p.toml"
    table.write_text('written = 2026-11-20\n[[price]]\nmodel = "gemini:priced"\ninput = 0\noutput = 1000\n')
    paid = Priced(lambda q: Reply(text=text(False), usage=Usage(input_tokens=1, output_tokens=100)), "p", concurrency=1)
    (card,) = isr.probe(paid, photos(), max_cost=0.35, prices=table, cache=False, progress=False)
    assert card.value("defeated") == 1.0
    assert card.unasked > 30
    assert not card.passed
    assert "is not stored" in str(card)
    assert find_card(paid.identity(), isr.Rubric.default().hash) is None


def test_what_a_probe_found_beside_accuracy_is_told(own_cache: Path) -> None:
    known = {}
    for item in battery(photos()):
        known[isr.images.as_image(item.case.edited, name="x").digest, item.case.prompt] = item

    def answer(question: Any) -> str:
        item = known[question.picture("edited").digest, question.prompt]
        obeys = item.kind == "hostile prompt"
        return text(bool(item.mismatch) or obeys, bool(item.degradation) or obeys)

    class Model(Scripted):
        def identity(self) -> dict[str, Any]:
            return {"provider": "house", "model": "m"}  # a plugin's judge is a model too

    (card,) = isr.probe(Model(answer, "m"), photos(), cache=False, progress=False)
    assert card.passed
    assert card.value("integrity: hostile prompt") == 0.0
    report = study(Model(lambda q: text(True), "m"))
    assert any("m: in its probe a hostile prompt changed its answer in 100% of 6 trials" in w for w in report.warnings)
    assert any("other was not probed" in w for w in study(judge("other")).warnings)


def test_the_battery_is_right_about_pictures_without_colour() -> None:
    grey = [p.convert("L").convert("RGB") for p in photos()]
    for item in battery(grey):
        if item.kind == "unedited":  # it *is* a black and white photo
            assert "black and white" not in item.case.prompt
    assert len(battery(grey)) == len(battery(photos()))


def test_the_probe_looks_at_its_file_before_it_asks(
    own_cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from isr.registry import JUDGES

    asked = judge("house")
    monkeypatch.setitem(JUDGES._local, "house", lambda _="": asked)
    for i, p in enumerate(photos()):
        p.save(tmp_path / f"{i}.png")
    given = ["probe", "house", "--originals", str(tmp_path), "--json"]
    assert main([*given, str(tmp_path / "none" / "cards.json")]) == 1
    assert "--json: the folder" in capsys.readouterr().err
    assert asked.asked == []
    assert main([*given, str(tmp_path / "cards.json")]) == 1  # written, and not passed: it always says defeated
    assert json.loads((tmp_path / "cards.json").read_text())[0]["unasked"] == 0


# ------------------------------------------------------------------------------------------------------------ batches


def test_a_run_whose_jobs_are_open_says_what_to_do(tmp_path: Path) -> None:
    with at("openai") as server:
        work = Batch(tmp_path, "openai", server)
        work.begin()
        with pytest.raises(UsageError, match="isr batch collect"):
            isr.Report.load(work.run).isr  # noqa: B018


def test_a_job_whose_errors_all_differ_can_be_closed(tmp_path: Path) -> None:
    """60,000 messages of 300 characters would be a row of more than 16 MiB, which nobody could write or read."""
    from isr.engine.journal import Item, Journal
    from isr.schema import NoVerdict
    from isr.store import RunFiles

    keys = [f"{i:064x}" for i in range(60_000)]
    journal = Journal(RunFiles.at(tmp_path))
    journal.planned("isr-1", "j", tuple(Item(k, 0, 0) for k in keys))
    failures = {k: NoVerdict(reason="expired", detail=f"{i:300}") for i, k in enumerate(keys)}
    journal.collected("isr-1", "failed", 0, failures)
    back = Journal(RunFiles.at(tmp_path)).failures()
    assert set(back) == set(keys)
    assert back[keys[0]] == failures[keys[0]]
    assert (back[keys[-1]].reason, back[keys[-1]].detail) == ("expired", "")


# ------------------------------------------------------------------------------------------------------ runs of strangers


@pytest.mark.parametrize("card", [{"passed": True, "rows": 3}, {"passed": True, "rows": [3, {"measure": []}]}, {}])
@pytest.mark.parametrize("shard", ["1/" + "9" * 5000, "x/3", 7])
def test_locks_of_strangers_do_no_harm(card: Any, shard: Any, tmp_path: Path) -> None:
    report = study(judge())
    report.lock["judges"][0]["probe"] = card
    report.lock["settings"]["shard"] = shard
    report.save(tmp_path / "run")
    loaded = isr.Report.load(tmp_path / "run")
    assert isinstance(loaded.summary(), str)
    assert isinstance(loaded.to_html(), str)
    assert merge([tmp_path / "run", tmp_path / "run"], tmp_path / "out").isr == loaded.isr


@pytest.mark.parametrize("repeats", [1, 2, 4, True, "3"])
def test_silly_repeats_are_refused_before_anything_is_asked(repeats: Any) -> None:
    asked = judge()
    with pytest.raises(UsageError, match="repeats"):
        isr.probe(asked, photos(), repeats=repeats, cache=False)
    assert asked.asked == []
