"""Batches of both services, with the real clients against imitations of them: the report is that of a live run, nothing is
paid twice, and every step can be cut off and repeated."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from batch_help import SERVICES, Batch, at, judge_at, study, warned
from isr.judges.gemini_batch import GeminiBatch
from isr.judges.openai_batch import OpenAIBatch
from servers.batch_wire import Job

import isr
from isr import batching
from isr.engine.batches import Sender
from isr.engine.journal import JOURNAL, exclusive
from isr.engine.waiting import WaitingRunner
from isr.errors import IntegrityError, JudgeStoppedError, UsageError
from isr.protocols import BatchLimits
from isr.schema import NoVerdict, Verdict
from isr.store import RunFiles

BOTH = ("gemini", "openai")
CLIENTS: dict[str, Any] = {"gemini": GeminiBatch, "gemini-inline": GeminiBatch, "openai": OpenAIBatch}


class Killed(BaseException):
    """In the place of a SIGKILL: nothing in the package catches it."""


def reasons(report: isr.Report) -> list[str]:
    return [j.answer.reason for j in report.judgement_records if isinstance(j.answer, NoVerdict)]


def answers(report: isr.Report) -> dict[str, Any]:
    return {j.case_id: j.answer for j in report.judgement_records}


# ------------------------------------------------------------------------------------------------ the same measurement


@pytest.mark.parametrize("service", SERVICES)
def test_a_batch_gives_the_report_of_a_live_run(service, tmp_path: Path) -> None:
    with at(service) as server:
        work = Batch(tmp_path, service, server)
        sent = work.begin()
        assert (sent.sent, sent.waiting, sent.missing) == (10, 10, 0)
        assert server.count == 0
        server.batches.polls = 2
        assert work.status().jobs[0].open
        early = work.collect()
        assert (early.received, early.waiting, early.complete) == (0, 10, False)
        done = work.collect()
        assert (done.received, done.waiting, done.complete) == (10, 0, True)
        assert server.count == 10
        assert work.submit().sent == 0
        batched = [(s.system, s.text, s.pictures, s.schema, s.settings) for s in server.seen]
        live = isr.evaluate(**study(), judges=[judge_at(service, server)], cache=tmp_path / "other")
        # What a model is shown is the same, byte for byte.
        single = [(s.system, s.text, s.pictures, s.schema, s.settings) for s in server.seen[10:]]
        assert sorted(batched, key=repr) == sorted(single, key=repr)
        # A live run with the batch's cache asks nothing: the keys are the same.
        again = isr.evaluate(**study(), judges=[judge_at(service, server)], cache=work.cache)
        assert server.count == 20
    for report in (done.report, isr.Report.load(work.run), again):
        assert answers(report) == answers(live)
        assert (report.isr, report.bounds, report.excess) == (live.isr, live.bounds, live.excess)
        assert report.comparable_with(live) == []
    assert live.excess is not None
    assert {o.value for o in live.outcomes} == {"success", "failure"}
    assert isr.replay(work.run).differences == ()


@pytest.mark.parametrize("service", SERVICES)
def test_chunks_hold_no_more_than_a_service_takes(service, tmp_path: Path, monkeypatch) -> None:
    with at(service) as server:
        work = Batch(tmp_path, service, server)
        monkeypatch.setattr(CLIENTS[service], "limits", BatchLimits(max_bytes=10**7, max_requests=4))
        sent = work.begin()
        assert [job.requests for job in sent.jobs] == [4, 4, 2]
        assert [len(j.requests) for j in server.batches.jobs.values()] == [4, 4, 2]
        assert work.collect().complete
        one = (
            max(len(line) for f in server.batches.files.values() for line in f.split(b"\n"))
            if service != "gemini-inline"
            else 6000
        )
        monkeypatch.setattr(CLIENTS[service], "limits", BatchLimits(max_bytes=3 * one + 9, max_requests=99))
        other = Batch(tmp_path / "b", service, server)
        sizes = [job.requests for job in other.begin().jobs]
        assert len(sizes) > 1
        assert sum(sizes) == 10
        monkeypatch.setattr(CLIENTS[service], "limits", BatchLimits(max_bytes=50, max_requests=99))
        with pytest.raises(UsageError, match=r"takes [\d,]+ bytes, a batch at most 50; use max_side="):
            Batch(tmp_path / "c", service, server).begin()


def test_votes_and_the_reask_of_an_unreadable_reply_are_calls_of_their_own(tmp_path: Path) -> None:
    with at("openai", ["prose", "good"]) as server:
        work = Batch(tmp_path, "openai", server, n=1)
        assert work.begin(votes=3).sent == 6  # a case and its control, three votes each
        first = work.collect()
        # The first reply was unreadable: one re-ask is due, for that vote only.
        assert (first.received, first.waiting, first.missing) == (6, 0, 1)
        assert work.submit().sent == 1
        last = work.collect()
        assert (last.received, last.complete) == (1, True)
        assert server.count == 7
    calls = [[(c.vote, c.ask) for c in j.calls] for j in last.report.judgement_records]
    assert sorted(calls, key=len) == [[(0, 0), (1, 0), (2, 0)], [(0, 0), (0, 1), (1, 0), (2, 0)]]


def test_no_verdicts_are_asked_again_only_on_request(tmp_path: Path) -> None:
    with at("openai", ["refusal", "good"]) as server:
        work = Batch(tmp_path, "openai", server, n=1)
        work.begin()
        done = work.collect()
        assert reasons(done.report) == ["refused"]
        assert work.submit().sent == 0
        assert work.submit(retry_no_verdicts=True).sent == 1
        assert work.submit(retry_no_verdicts=True).sent == 0  # under way
        assert reasons(work.collect().report) == []
        assert server.count == 3


@pytest.mark.parametrize("service", BOTH)
def test_another_model_that_answers_is_no_verdict(service, tmp_path: Path) -> None:
    with at(service, "other_model=someone-else") as server:
        kind = type("Own", (type(judge_at(service, server)),), {"default_url": server.url})
        judge = kind("m-1", api_key=server.key, max_output_tokens=64)
        work = Batch(tmp_path, service, server, n=1)
        work.judges = lambda: [judge]  # type: ignore[method-assign]
        work.begin()
        done = work.collect()
    assert reasons(done.report) == ["model_substituted"] * 2
    assert done.complete


def test_cases_added_to_a_run_are_the_only_ones_sent(tmp_path: Path) -> None:
    with at("openai") as server:
        Batch(tmp_path, "openai", server, n=2).begin()
        more = Batch(tmp_path, "openai", server, n=3)
        assert more.begin().sent == 2  # one case and its control
        assert more.collect().complete
        assert server.count == 6


def test_pictures_are_shrunk_as_in_a_live_run(tmp_path: Path) -> None:
    with at("openai") as server:
        work = Batch(tmp_path, "openai", server)
        work.begin(max_side=8)
        done = work.collect()
        again = isr.evaluate(**study(), judges=[judge_at("openai", server)], cache=work.cache, max_side=8)
        assert server.count == 10
    assert answers(done.report) == answers(again)


# ------------------------------------------------------------------------------------------------- cut off and repeated


@pytest.mark.parametrize("service", SERVICES)
@pytest.mark.parametrize("step", ["submit", "collect"])
def test_a_job_that_was_accepted_before_a_crash_is_found_and_not_sent_again(
    service, step, tmp_path: Path, monkeypatch
) -> None:
    real = CLIENTS[service].submit

    async def killed(self: Any, *args: Any) -> str:
        await real(self, *args)
        raise Killed

    with at(service) as server:
        work = Batch(tmp_path, service, server)
        with monkeypatch.context() as patch:
            patch.setattr(CLIENTS[service], "submit", killed)
            with pytest.raises(Killed):
                work.begin()
        # Newer jobs of others push it off the first page of the list.
        for i in range(3):
            other = Job(f"batches/other{i}" if service != "openai" else f"batch_o{i}", "x", [], "m-1")
            server.batches.jobs[other.id] = other
        if step == "submit":
            assert work.submit().sent == 0
        done = work.collect()
        assert (done.received, done.complete) == (10, True)
        assert server.count == 10
        assert server.batches.listed >= 2


@pytest.mark.parametrize("service", BOTH)
def test_a_crash_before_the_service_got_anything_sends_it_once(service, tmp_path: Path, monkeypatch) -> None:
    async def killed(self: Any, *args: Any) -> str:
        raise Killed

    with at(service) as server:
        work = Batch(tmp_path, service, server)
        with monkeypatch.context() as patch:
            patch.setattr(CLIENTS[service], "submit", killed)
            with pytest.raises(Killed):
                work.begin()
        assert work.collect().missing == 10
        assert work.submit().sent == 10
        assert work.collect().complete
        assert len(server.batches.jobs) == 1


def test_a_crash_between_two_chunks_loses_neither(tmp_path: Path, monkeypatch) -> None:
    real = Sender._flush
    flushed: list[int] = []

    async def killed(self: Any, path: Any, items: Any) -> None:
        if flushed:
            raise Killed
        flushed.append(1)
        await real(self, path, items)

    monkeypatch.setattr(OpenAIBatch, "limits", BatchLimits(max_bytes=10**7, max_requests=6))
    with at("openai") as server:
        work = Batch(tmp_path, "openai", server)
        with monkeypatch.context() as patch:
            patch.setattr(Sender, "_flush", killed)
            with pytest.raises(Killed):
                work.begin()
        assert work.submit().sent == 4
        assert work.collect().complete
        assert server.count == 10


@pytest.mark.parametrize("service", SERVICES)
def test_a_crash_while_collecting_stores_no_reply_twice(service, tmp_path: Path, monkeypatch) -> None:
    real, count = WaitingRunner.receive, []

    def killed(self: Any, *args: Any) -> Any:
        if len(count) == 3:
            raise Killed
        count.append(1)
        return real(self, *args)

    with at(service) as server:
        work = Batch(tmp_path, service, server)
        work.begin()
        with monkeypatch.context() as patch:
            patch.setattr(WaitingRunner, "receive", killed)
            with pytest.raises(Killed):
                work.collect()
        assert work.submit().sent == 0  # the job is still open, so nothing is sent again
        done = work.collect()
        assert (done.received, done.complete, server.count) == (10, True, 10)
    assert len({c.key for j in done.report.judgement_records for c in j.calls}) == 10


def test_a_crash_before_the_judgements_are_written_is_made_good(tmp_path: Path, monkeypatch) -> None:
    def killed(*args: Any, **more: Any) -> Any:
        raise Killed

    with at("openai") as server:
        work = Batch(tmp_path, "openai", server)
        work.begin()
        with monkeypatch.context() as patch:
            patch.setattr(batching._Work, "_append", killed)
            with pytest.raises(Killed):
                work.collect()
        assert isr.Report.load(work.run).judgement_records == ()
        assert (work.collect().received, server.count) == (0, 10)
    assert len(isr.Report.load(work.run).judgement_records) == 10


def test_replies_are_found_in_the_run_when_the_cache_is_gone(tmp_path: Path) -> None:
    with at("openai") as server:
        work = Batch(tmp_path, "openai", server)
        work.begin()
        work.collect()
        work.cache = tmp_path / "new"
        assert work.submit().sent == 0


@pytest.mark.parametrize("service", BOTH)
def test_an_accepted_job_whose_answer_was_lost_is_not_sent_again(service, tmp_path: Path) -> None:
    with at(service) as server:
        server.batches.swallow = 1
        work = Batch(tmp_path, service, server)
        assert work.begin().sent == 10
        assert len(server.batches.jobs) == 1
        assert work.collect().complete
        assert server.count == 10


def test_one_process_at_a_time(tmp_path: Path) -> None:
    with at("openai") as server:
        work = Batch(tmp_path, "openai", server, n=1)
        work.begin()
        with exclusive(RunFiles.at(work.run)), pytest.raises(UsageError, match="another process is working on"):
            work.collect()


# --------------------------------------------------------------------------------------------------- what can go wrong


@pytest.mark.parametrize("service", BOTH)
@pytest.mark.parametrize("final", ["expired", "cancelled"])
def test_a_job_that_ended_early_gives_what_it_has(service, final, tmp_path: Path) -> None:
    with at(service) as server:
        server.batches.final, server.batches.answered = final, 3
        work = Batch(tmp_path, service, server)
        work.begin()
        part = work.collect()
        assert (part.received, part.waiting, part.missing) == (3, 0, 7)
        assert reasons(part.report) == ["expired"] * 7
        stored = isr.Report.load(work.run)
        assert reasons(stored) == ["expired"] * 7
        low, high = stored.bounds
        assert high > low
        server.batches.final, server.batches.answered = "succeeded", None
        assert work.submit().sent == 7
        done = work.collect()
        assert (done.received, done.complete, server.count) == (7, True, 10)
    assert reasons(isr.Report.load(work.run)) == []


@pytest.mark.parametrize("service", BOTH)
@pytest.mark.parametrize("final", ["failed", "expired"])
def test_a_job_without_any_answer_leaves_all_calls_open(service, final, tmp_path: Path) -> None:
    with at(service) as server:
        server.batches.final, server.batches.answered = final, 0
        work = Batch(tmp_path, service, server)
        work.begin()
        none = work.collect()
        assert (none.received, none.missing) == (0, 10)
        assert any("left 10 of 10 calls open" in note for note in none.notes)
        if final == "failed":
            assert "The input file cannot be read." in none.jobs[0].state
            assert "The input file cannot be read." in str(none)
        assert server.count == 0


@pytest.mark.parametrize("service", BOTH)
def test_errors_of_single_requests_leave_these_open(service, tmp_path: Path) -> None:
    with at(service) as server:
        bad = iter(["status=500", "status=429", None])
        server.batches.item = lambda _: next(bad, None)
        work = Batch(tmp_path, service, server)
        work.begin()
        part = work.collect()
        assert (part.received, part.missing) == (8, 2)
        details = [j.answer.detail for j in part.report.judgement_records if isinstance(j.answer, NoVerdict)]
        assert all("This request failed." in d for d in details)
        assert work.submit().sent == 2
        assert work.collect().complete


@pytest.mark.parametrize("service", BOTH)
def test_a_job_whose_every_request_is_refused_stops_the_judge(service, tmp_path: Path) -> None:
    with at(service) as server:
        server.batches.item = lambda _: "status=400"
        work = Batch(tmp_path, service, server)
        work.begin()
        with pytest.raises(JudgeStoppedError, match="This request failed"):
            work.collect()
        server.batches.item = lambda _: None
        assert work.submit().sent == 10
        assert work.collect().complete


def test_verdicts_on_a_case_are_kept_and_bad_pictures_are_not(tmp_path: Path) -> None:
    with at("openai", ["code=content_policy_violation", "bad_picture", "finish=length", "good"]) as server:
        work = Batch(tmp_path, "openai", server, n=2)
        work.begin()
        done = work.collect()
    assert sorted(reasons(done.report)) == ["bad_image", "blocked", "truncated"]
    assert (done.received, done.missing) == (3, 1)


def test_results_are_matched_by_key_and_never_by_position(tmp_path: Path) -> None:
    for service in SERVICES:
        with at(service) as server:
            server.batches.edit = lambda rows: rows[::-1]
            work = Batch(tmp_path / service, service, server)
            work.begin()
            done = work.collect()
            live = isr.evaluate(**study(), judges=[judge_at(service, server)], cache=False)
            assert answers(done.report) == answers(live)


def test_inline_results_without_their_key_are_not_used(tmp_path: Path) -> None:
    with at("gemini-inline") as server:
        server.batches.edit = lambda rows: (
            [{k: v for k, v in r.items() if k != "metadata"} for r in rows[:4]] + rows[4:]
        )
        work = Batch(tmp_path, "gemini-inline", server)
        work.begin()
        with warned() as said:
            part = work.collect()
    assert (part.received, part.missing) == (6, 4)
    assert any("4 results of batches/b0 came without the key" in text for text in said)


@pytest.mark.parametrize("service", BOTH)
def test_unknown_twice_and_broken_results_change_nothing(service, tmp_path: Path) -> None:
    with at(service) as server:

        def edit(rows: list[Any]) -> list[Any]:
            name = "key" if service == "gemini" else "custom_id"
            stranger = {**rows[0], name: "f" * 64}
            changed = json.loads(json.dumps(rows[1]).replace("true", "false"))
            return [rows[0], stranger, *rows[1:9], changed]

        server.batches.edit = edit
        server.batches.lines = [b"{", b"[1]", b"", b"\xff\xfe", b'{"no": "key"}', b"nan"]
        work = Batch(tmp_path, service, server)
        work.begin()
        with warned() as said:
            part = work.collect()
        live = answers(isr.evaluate(**study(), judges=[judge_at(service, server)], cache=False))
    assert (part.received, part.missing) == (9, 1)
    assert any("1 results for calls that were not in it; ignored" in text for text in said)
    assert any("1 second results for one call; ignored" in text for text in said)
    assert any("4 lines of a batch result cannot be read" in text for text in said)
    got = {k: v for k, v in answers(part.report).items() if isinstance(v, Verdict)}
    assert got == {k: live[k] for k in got}
    assert len(got) == 9


def test_line_separators_inside_a_reply_do_not_cut_it(tmp_path: Path) -> None:
    text = json.dumps(
        {
            "observations": "a\u2028b\u0085c", "reason_semantic_mismatch": "\u2029", "reason_degradation": "r",
            "semantic_mismatch": True, "degradation": False,
        }, ensure_ascii=False,
    )  # fmt: skip
    for service in BOTH:
        with at(service, answer=lambda _: text) as server:
            work = Batch(tmp_path / service, service, server, n=1)
            work.begin()
            done = work.collect()
        assert done.complete
        found = [j.answer for j in done.report.judgement_records]
        assert all(isinstance(a, Verdict) and a.observations == "a\u2028b\u0085c" for a in found)


@pytest.mark.parametrize("service", BOTH)
def test_a_busy_service_is_tried_again_and_then_the_step_can_be_repeated(service, tmp_path: Path) -> None:
    with at(service) as server:
        server.batches.refuse = ["rate_limit=0", "status=503"]
        work = Batch(tmp_path, service, server)
        assert work.begin().sent == 10
        server.batches.refuse = ["rate_limit=0", "drop", "status=500"]
        other = Batch(tmp_path / "b", service, server)
        with pytest.raises(JudgeStoppedError, match=r"the batch service does not answer .* run the same command again"):
            other.begin()
        assert other.submit().sent == 10
        assert len(server.batches.jobs) == 2


@pytest.mark.parametrize("service", BOTH)
def test_a_refused_key_stops_every_step(service, tmp_path: Path) -> None:
    with at(service) as server:
        work = Batch(tmp_path, service, server)
        wrong = [judge_at(service, server, api_key="wrong-key-123")]
        with pytest.raises(JudgeStoppedError, match="key was refused"):
            work.begin(judges=wrong)
        assert work.submit().sent == 10
        for step in (work.collect, work.status):
            with pytest.raises(JudgeStoppedError, match="key was refused"):
                step(judges=wrong)
        assert work.collect().complete


@pytest.mark.parametrize("service", BOTH)
def test_a_job_that_is_gone_can_be_given_up(service, tmp_path: Path) -> None:
    with at(service) as server:
        work = Batch(tmp_path, service, server)
        job = work.begin().jobs[0].job
        server.batches.jobs.clear()
        with pytest.raises(
            JudgeStoppedError, match=f"does not know the job {job} or its results .any more.*forget RUN {job}"
        ):
            work.collect()
        batching.forget(work.run, job)
        with pytest.raises(UsageError, match="no open job"):
            batching.forget(work.run, job)
        assert work.submit().sent == 10
        assert work.collect().complete


@pytest.mark.parametrize("service", BOTH)
def test_a_result_file_that_is_gone_says_how_to_go_on(service, tmp_path: Path, monkeypatch) -> None:
    with at(service) as server:
        work = Batch(tmp_path, service, server, n=1)
        job = work.begin().jobs[0].job
        monkeypatch.setattr(server.batches, f"{service}_download", lambda *_: server.batches._error(404, "gone"))
        with pytest.raises(
            JudgeStoppedError, match=f"does not know the job {job} or its results .any more.*forget RUN {job}"
        ):
            work.collect()
    assert batching.Journal(RunFiles.at(work.run)).held()


def test_bad_pictures_that_were_skipped_are_never_sent(tmp_path: Path) -> None:
    made = study(2)
    made["edits"][1] = b"no picture"
    with at("openai") as server:
        work = Batch(tmp_path, "openai", server)
        edits, prompts = made.pop("edits"), made.pop("prompts")
        sent = work.step("submit", edits, prompts, out=work.run, on_bad_image="skip", **made)
        assert sent.sent == 3
        done = work.collect()
    assert (done.complete, reasons(done.report)) == (True, ["bad_image"])


@pytest.mark.parametrize("job", ["batches/../files", "x/../../v1/files", "batches/a?b", "a b"])
@pytest.mark.parametrize("service", BOTH)
def test_a_strange_job_id_in_the_journal_is_never_put_into_a_path(service, job, tmp_path: Path) -> None:
    with at(service) as server:
        work = Batch(tmp_path, service, server, n=1)
        real = work.begin().jobs[0].job
        journal = work.run / JOURNAL
        journal.write_text(journal.read_text().replace(f'"job":"{real}"', f'"job":{json.dumps(job)}'))
        with pytest.raises(JudgeStoppedError, match="is no job"):
            work.collect()


# ------------------------------------------------------------------------------------------------- arguments and money


def test_wrong_arguments_are_named_before_anything_is_sent(tmp_path: Path) -> None:
    made = study(1)
    edits, prompts = made.pop("edits"), made.pop("prompts")
    given: dict[str, Any] = {"out": tmp_path / "run", "cache": tmp_path / "cache", **made}
    with at("openai") as server:
        good = [judge_at("openai", server)]
        with pytest.raises(UsageError, match="lazy: a batch asks all judges at once"):
            isr.batch.submit(edits, prompts, judges=good, lazy=True, **given)
        with pytest.raises(UsageError, match="cache: the replies of a batch are kept in it"):
            isr.batch.submit(edits, prompts, judges=good, **{**given, "cache": False})
        with pytest.raises(UsageError, match="out: a batch needs a run directory"):
            isr.batch.submit(edits, prompts, judges=good, **{**given, "out": None})
        with pytest.raises(
            UsageError, match=r"function:f cannot be asked in batches. Batch the others, then run isr.evaluate"
        ):
            isr.batch.submit(edits, prompts, judges=[*good, f], **given)
        assert not (tmp_path / "run").exists()
        isr.batch.submit(edits, prompts, judges=good, **given)
        with pytest.raises(UsageError, match="votes: fixed when the run"):
            isr.batch.submit(tmp_path / "run", judges=good, votes=3)
        with pytest.raises(UsageError, match=r"was begun with others:\n  - .*openai:other"):
            isr.batch.collect(
                tmp_path / "run", judges=[judge_at("openai", server, name="openai:other")], cache=tmp_path / "cache"
            )
        with pytest.raises(UsageError, match="settings of judge openai:m-1"):
            isr.batch.collect(tmp_path / "run", judges=[judge_at("openai", server, seed=3)], cache=tmp_path / "cache")
        with pytest.raises(UsageError, match="was judged differently"):
            isr.batch.submit(edits, prompts, judges=good, votes=3, **given)
        with pytest.raises(UsageError, match=r"holds no run.json"):
            isr.batch.status(tmp_path / "nothing")
        assert len(server.batches.jobs) == 1


def f(edited: Any, prompt: str) -> dict[str, bool]:
    return {"semantic_mismatch": True, "degradation": False}


def test_a_run_of_someone_else_never_names_the_server(tmp_path: Path) -> None:
    with at("openai") as server:
        work = Batch(tmp_path, "openai", server, n=1)
        work.judges = lambda: [judge_at("openai", server, name=None)]  # type: ignore[method-assign]
        work.begin()
        with pytest.raises(UsageError, match=r"names a server of its own .* name the judges again"):
            isr.batch.collect(work.run, cache=work.cache)
        assert work.collect().complete


def test_a_batch_costs_what_the_price_file_says(tmp_path: Path) -> None:
    prices = tmp_path / "prices.toml"
    prices.write_text(
        'written = 2026-11-20\n[[price]]\nmodel = "openai:m-1"\ninput = 10.0\noutput = 100.0\nbatch = 0.25\n'
    )
    with at("openai") as server:
        work = Batch(tmp_path, "openai", server, n=1)
        work.begin(prices=prices)
        done = work.collect(prices=prices)
    # 300 + 2 · 765 tokens in, 40 + 17 out: (1830 · 10 + 57 · 100) / 10^6 = 0.024; a quarter of it is 0.006 per call.
    assert [c.cost for j in done.report.judgement_records for c in j.calls] == pytest.approx([0.006, 0.006])
    assert done.report.costs()["cost"].tolist() == pytest.approx([0.012])


def test_what_does_not_fit_under_the_cap_is_not_sent(tmp_path: Path) -> None:
    prices = tmp_path / "prices.toml"
    # Only output costs: 100 $/10^6 · 1000 tokens · 0.5 = 0.05 $ per call at worst.
    prices.write_text(
        'written = 2026-11-20\n[[price]]\nmodel = "openai:m-1"\ninput = 0.0\noutput = 100.0\nbatch = 0.5\n'
    )
    with at("openai") as server:
        work = Batch(tmp_path, "openai", server)
        work.judges = lambda: [judge_at("openai", server, max_output_tokens=1000)]  # type: ignore[method-assign]
        some = work.begin(prices=prices, max_cost=0.2)
        assert (some.sent, some.over_cap, some.missing) == (4, 6, 6)
        assert "6 of them do not fit under max_cost" in str(some)
        assert work.submit(prices=prices).sent == 6


def test_a_picture_that_was_exchanged_in_the_run_is_not_sent(tmp_path: Path) -> None:
    with at("openai") as server:
        work = Batch(tmp_path, "openai", server, n=1)
        server.batches.final, server.batches.answered = "expired", 0
        work.begin()
        work.collect()
        first, second, *_ = sorted((work.run / "images").iterdir())
        first.write_bytes(second.read_bytes())
        with pytest.raises(IntegrityError, match="is not the one of its name"):
            work.submit()
        first.unlink()
        first.symlink_to(second)
        with pytest.raises(IntegrityError, match=r"missing .or a link."):
            work.submit()


def test_a_journal_that_was_torn_or_changed(tmp_path: Path) -> None:
    with at("openai") as server:
        work = Batch(tmp_path, "openai", server, n=1)
        work.begin()
        journal = work.run / JOURNAL
        whole = journal.read_bytes()
        journal.write_bytes(whole + b'{"event": "coll')
        assert work.collect().complete  # a torn row did not happen
        for line, message in (
            (b"{}\n", r"batches.jsonl:\d+:"),
            (b'{"event": "collected", "label": "x"}\n', "never planned"),
            (whole.splitlines()[0] + b"\n", "stands twice"),
            (b'{"event": "planned", "label": "x", "items": [["../x", 0, 0]]}\n', "64 hex digits"),
        ):
            journal.write_bytes(whole + line)
            with pytest.raises(IntegrityError, match=message):
                work.status()
        journal.unlink()
        journal.symlink_to(work.run / "run.json")
        with pytest.raises(IntegrityError, match="a link"):
            work.status()


# ------------------------------------------------------------------------------------------------ keys and command line


@pytest.mark.parametrize("service", BOTH)
def test_the_key_is_nowhere(service, tmp_path: Path, caplog, capsys) -> None:
    key = "sk-planted-KEY-0a1b2c3d4e5f"
    said: list[str] = []
    with (
        at(service, ["good", f"text={key}", f"other_model={key}", f"finish_text={key}"], key=key) as server,
        warned() as heard,
    ):
        server.batches.lines = [json.dumps({"key": key, "custom_id": key}).encode()]
        work = Batch(tmp_path, service, server)
        said.append(repr(work.begin()))
        said += [str(work.status()), str(work.collect())]
        with pytest.raises(JudgeStoppedError) as caught:
            Batch(tmp_path / "b", service, server).begin(judges=[judge_at(service, server, api_key=key[:-1] + "x")])
        said += [repr(caught.value), repr(caught.value.__cause__), repr(caught.value.__context__)]
    said += [*heard, caplog.text, *capsys.readouterr()]
    assert server.count >= 10
    assert key not in "\n".join(said)
    assert key[:-1] + "x" not in "\n".join(said)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert JOURNAL in {path.name for path in files}
    assert [path for path in files if key.encode() in path.read_bytes()] == []


def test_the_command_line(tmp_path: Path, capsys, monkeypatch) -> None:
    from evaluate_help import pictures

    from isr.cli import main

    monkeypatch.setenv("ISR_CACHE", str(tmp_path / "cache"))
    rows = []
    for i, image in enumerate(pictures(3)):
        image.save(tmp_path / f"{i}.png")
        rows.append({"edited": f"{i}.png", "prompt": f"p {i}", "image_id": str(i)})
    manifest = tmp_path / "m.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = str(tmp_path / "run")
    with at("compatible") as server:
        judge = ["--judge", f"openai:m-1@{server.url}"]
        assert main(["batch", "submit", str(manifest), *judge, "--out", run]) == 0
        assert "3 calls sent; 3 calls wait for an answer" in capsys.readouterr().out
        assert main(["batch", "status", run, *judge]) == 0
        assert main(["batch", "submit", run, *judge, "--votes", "3"]) == 1
        assert "votes: fixed when the run" in capsys.readouterr().err
        assert main(["batch", "submit", run, *judge]) == 0
        assert main(["batch", "collect", run, *judge, "--wait", "--every", "0.01"]) == 0
        out = capsys.readouterr().out
        assert "3 replies received" in out
        assert "Defeated edits, single judge" in out
        assert main(["batch", "forget", run, "nothing"]) == 1
        assert main(["report", run]) == 0
    assert server.count == 3
