"""Streams, shards, reuse and merging: nothing lost, nothing asked twice, memory does not grow."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from evaluate_help import Scripted, picture, pictures, text

import isr
from isr.errors import JudgeStoppedError, UsageError
from isr.merging import merge

N = 12


def cases(n: int = N, start: int = 0) -> Iterator[isr.EditCase]:
    for i in range(start, start + n):
        yield isr.EditCase(
            picture(i), f"edit {i}", original=picture(i + 500), control=picture(i + 900), method="m", seed=i
        )


def judge(name: str = "a") -> Scripted:
    return Scripted(lambda q: text(int(q.prompt.split()[1]) % 3 == 0), name)


def test_a_stream_gives_what_evaluate_gives(tmp_path: Path) -> None:
    results = list(isr.stream(cases(), judges=[judge()], cache=False))
    whole = isr.evaluate(list(cases()), judges=[judge()], cache=False, progress=False)
    by_id = {r.case.case_id: r for r in results}
    assert set(by_id) == {c.case_id for c in whole.case_records}
    assert len(results) == 2 * N
    for outcome in whole.outcomes:
        assert by_id[outcome.case_id].outcome == outcome.value


def test_a_stream_is_consumed_lazily_and_may_be_left() -> None:
    taken = 0

    def endless() -> Iterator[isr.EditCase]:
        nonlocal taken
        while True:
            taken += 1
            yield isr.EditCase(picture(taken), f"edit {taken}", original=picture(1))

    for _, result in zip(range(5), isr.stream(endless(), judges=[judge()], cache=False), strict=False):
        assert result.outcome in {"success", "failure"}
    assert taken < 2000


def test_a_stream_writes_a_run_directory_that_goes_on(tmp_path: Path) -> None:
    first = judge()
    assert len(list(isr.stream(cases(5), judges=[first], cache=False, out=tmp_path / "run"))) == 10
    again = judge()
    more = list(isr.stream(cases(8), judges=[again], cache=False, out=tmp_path / "run"))
    assert len(more) == 6  # three edits and their controls; the rest is in the run already
    assert {q.prompt for q in again.asked} == {"edit 5", "edit 6", "edit 7"}
    report = isr.Report.load(tmp_path / "run")
    assert report.n == 8
    assert report.isr == 3 / 8
    assert report.excess is not None
    with pytest.raises(UsageError, match="judged differently"):
        list(isr.stream(cases(8), judges=[judge("b")], cache=False, out=tmp_path / "run"))


def test_a_stream_keeps_what_it_has_when_a_judge_stops(tmp_path: Path) -> None:
    def answer(question: Any) -> Any:
        return JudgeStoppedError("no credit") if question.prompt == "edit 9" else text()

    with pytest.raises(JudgeStoppedError):
        list(isr.stream(cases(), judges=[Scripted(answer, "a", concurrency=1)], cache=False, out=tmp_path / "run"))
    kept = isr.Report.load(tmp_path / "run")
    assert 0 < len(kept.case_records) < 2 * N


def test_bad_pictures_in_a_stream_are_counted() -> None:
    def broken() -> Iterator[isr.EditCase]:
        yield isr.EditCase(b"not a picture", "edit 0", original=picture(1))
        yield isr.EditCase(picture(2), "edit 1", original=picture(1))

    results = list(isr.stream(broken(), judges=[judge()], cache=False))
    assert sorted(r.outcome for r in results) == ["failure", "undetermined"]


def test_evaluate_takes_a_lazy_iterable_and_skips_bad_pictures() -> None:
    def some() -> Iterator[isr.EditCase]:
        yield from cases(4)
        yield isr.EditCase(b"broken", "edit 99", original=picture(1))

    report = isr.evaluate(some(), judges=[judge()], cache=False, progress=False)
    assert (report.n, report.isr, dict(report.no_verdicts)) == (5, 2 / 5, {"bad_image": 1})
    with pytest.raises(UsageError, match="nothing to judge"):
        isr.evaluate(iter([]), judges=[judge()], cache=False)


def test_astream() -> None:
    async def main() -> int:
        return len([r async for r in isr.astream(cases(4), judges=[judge()], cache=False)])

    assert asyncio.run(main()) == 8


def whole(**options: Any) -> isr.Report:
    return isr.evaluate(list(cases()), judges=[judge()], cache=False, progress=False, **options)


def test_shards_are_a_partition_that_merges_to_the_whole(tmp_path: Path) -> None:
    parts = []
    for i in range(1, 4):
        part = whole(shard=f"{i}/3")
        part.save(tmp_path / str(i))
        parts.append(tmp_path / str(i))
        # every edit has its control in the same shard
        ids = {c.case_id for c in part.case_records}
        assert all(c.control in ids for c in part.case_records if c.arm == "immunized")
    merged = merge(parts, tmp_path / "all")
    reference = whole()
    assert {c.case_id for c in merged.case_records} == {c.case_id for c in reference.case_records}
    assert (merged.isr, merged.interval, merged.excess) == (reference.isr, reference.interval, reference.excess)
    loaded = isr.Report.load(tmp_path / "all")
    assert (loaded.isr, loaded.excess) == (reference.isr, reference.excess)
    assert all(loaded.picture(str(c.edited)) is not None for c in loaded.case_records)


@pytest.mark.parametrize("shard", ["0/3", "4/3", "x", (1, 2, 3), "1"])
def test_silly_shards_are_refused(shard: Any) -> None:
    with pytest.raises(UsageError, match="shard"):
        whole(shard=shard)


def test_unlike_runs_do_not_merge(tmp_path: Path) -> None:
    whole(shard="1/2").save(tmp_path / "a")
    whole(shard="2/2", votes=3).save(tmp_path / "b")
    with pytest.raises(UsageError, match="votes: 1 against 3"):
        merge([tmp_path / "a", tmp_path / "b"], tmp_path / "c")


def test_a_case_with_two_answers_does_not_merge(tmp_path: Path) -> None:
    whole().save(tmp_path / "a")
    other = isr.evaluate(list(cases()), judges=[Scripted(lambda q: text(True), "a")], cache=False, progress=False)
    other.save(tmp_path / "b")
    with pytest.raises(UsageError, match="answers differ"):
        merge([tmp_path / "a", tmp_path / "b"], tmp_path / "c")


def test_stored_replies_of_another_machine_are_not_paid_again(tmp_path: Path) -> None:
    whole().save(tmp_path / "run")
    silent = Scripted(lambda q: AssertionError("asked"), "a")
    report = isr.evaluate(
        list(cases()), judges=[silent], cache=tmp_path / "fresh", reuse=[tmp_path / "run"], progress=False
    )
    assert silent.asked == []
    assert report.isr == whole().isr


def test_an_added_judge_asks_only_what_is_new(tmp_path: Path) -> None:
    isr.evaluate(list(cases()), judges=[judge("a")], cache=tmp_path, progress=False)
    a, b = judge("a"), judge("b")
    report = isr.evaluate(list(cases()), judges=[a, b], cache=tmp_path, progress=False)
    assert a.asked == []
    assert len(b.asked) == 2 * N
    assert report.judges == ("a", "b")


def test_the_metric_class_in_the_torchmetrics_manner() -> None:
    metric = isr.ImmunizationSuccessRate(judges=[judge()], cache=False, progress=False)
    for start in (0, 6):
        batch = [picture(i) for i in range(start, start + 6)]
        metric.update(batch, [f"edit {i}" for i in range(start, start + 6)], originals=pictures(6, 500 + start))
    assert metric.compute() == 4 / 12
    assert metric.report.n == 12
    assert metric.compute() == 4 / 12
    metric.reset()
    with pytest.raises(UsageError, match="update"):
        metric.compute()
    metric.update([picture(1)], ["edit 1"], originals=[picture(2)])
    with pytest.raises(UsageError, match="some updates came with originals"):
        metric.update([picture(1)], ["edit 1"])


def test_an_array_that_changes_after_update_changes_nothing() -> None:
    import numpy as np

    metric = isr.ImmunizationSuccessRate(judges=[judge()], cache=False, progress=False)
    batch = np.zeros((1, 8, 8, 3), dtype=np.uint8)
    metric.update(batch, ["edit 0"], originals=batch.copy())
    batch[:] = 255
    metric.compute()
    digest = metric.report.case_records[0].edited
    assert digest is not None
    png = metric.report.picture(digest)
    assert png is not None
    assert np.asarray(isr.images.as_image(png).pil()).max() == 0
