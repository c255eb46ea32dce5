"""Batches of both services, with the real clients against imitations of them: the report is that of a live run, nothing is
paid twice, and every step can be cut off and repeated."""

from __future__ import annotations

from pathlib import Path

import pytest
from batch_help import SERVICES, Batch, at, judge_at, study

import isr


@pytest.mark.parametrize("service", SERVICES)
def test_a_batch_gives_the_report_of_a_live_run(service, tmp_path: Path) -> None:
    with at(service) as server:
        work = Batch(tmp_path, service, server)
        sent = work.begin()
        assert (sent.sent, sent.waiting, sent.missing) == (10, 10, 0)
        assert server.count == 0
        server.batches.polls = 1
        early = work.collect()
        assert (early.received, early.waiting, early.complete) == (0, 10, False)
        done = work.collect()
        assert (done.received, done.waiting, done.complete) == (10, 0, True)
        assert server.count == 10
        live = isr.evaluate(**study(), judges=[judge_at(service, server)], cache=tmp_path / "other")
        # A live run with the batch's cache asks nothing: the keys are the same.
        before = server.count
        again = isr.evaluate(**study(), judges=[judge_at(service, server)], cache=work.cache)
        assert server.count == before
    stored = isr.Report.load(work.run)
    for report in (done.report, stored, again):
        assert {j.case_id: j.answer for j in report.judgement_records} == {
            j.case_id: j.answer for j in live.judgement_records
        }
        assert (report.isr, report.bounds, report.excess) == (live.isr, live.bounds, live.excess)
        assert report.comparable_with(live) == []
    assert live.excess is not None
    assert {o.value for o in live.outcomes} == {"success", "failure"}
