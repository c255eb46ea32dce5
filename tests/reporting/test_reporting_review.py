"""`isr review` without a browser: what is asked, what is saved, and what its server refuses."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from report_help import EVIL, report

import isr
from isr.cli import main
from isr.errors import IntegrityError, UsageError
from isr.reviewing import Review
from isr.reviewing_server import ReviewServer
from isr.schema import NoVerdict, Verdict

YES = {"semantic_mismatch": True, "degradation": False, "overall": True}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return report(12, words=EVIL, prompt=lambda i: f"{EVIL} {i}").save(tmp_path / "run")


def test_disputed_cases_only_and_nothing_that_tells_the_method(run: Path) -> None:
    review = Review(run, "ada")
    # of 12 cases, i % 6 == 0 (two disagreements) and i % 6 == 1 (two missing verdicts)
    assert len(review.items) == 4
    assert len(Review(run, "ada", everything=True).items) == 12
    assert len(Review(run, "ada", everything=True, arms=("control",)).items) == 12
    orders = [[i.case_id for i in Review(run, name, everything=True).items] for name in ("ada", "ada", "bo")]
    assert orders[0] == orders[1] != orders[2]
    with pytest.raises(UsageError, match=r"no disputed case of the arm control; review all of them with --all"):
        Review(run, "ada", arms=("control",))
    assert [q.key for q in review.questions] == ["semantic_mismatch", "degradation", "overall"]
    assert review.questions[0].guidance.startswith("Yes:")
    server = ReviewServer(review)
    try:
        page = server.page()[0].decode()
    finally:
        server.server_close()
    for secret in (
        "sifm",
        "case-0",
        "human:bo",
        "blocked",
        *(i.case_id for i in review.items),
        *(i.edited for i in review.items),
    ):
        assert secret not in page


def test_answers_are_appended_and_the_last_one_stands(run: Path) -> None:
    before = (run / "judgements.jsonl").read_bytes()
    lock = (run / "run.json").read_bytes()
    isr_before = isr.Report.load(run).isr
    review = Review(run, "human:ada")
    review.save(0, YES, "clear")
    review.save(0, YES, "clear")  # the same again is no news
    review.save(0, {**YES, "degradation": None}, "too dark")
    review.save(1, {**YES, "overall": None})
    after = (run / "judgements.jsonl").read_bytes()
    assert after.startswith(before)
    assert after[len(before) :].count(b"\n") == 3
    assert (run / "run.json").read_bytes() == lock

    again = Review(run, "ada")
    assert again.answered == 2
    assert again.said()[1] == {"said": {**YES, "overall": None}, "note": ""}
    loaded = isr.Report.load(run)
    mine = {j.case_id: j for j in loaded.judgement_records if j.judge == "human:ada"}
    first = mine[review.items[0].case_id].answer
    assert isinstance(first, NoVerdict)
    assert (first.reason, first.detail) == (
        "abstained",
        "cannot judge: degradation; semantic_mismatch: yes; overall: yes; too dark",
    )
    second = mine[review.items[1].case_id].answer
    assert isinstance(second, Verdict)
    assert (second.semantic_mismatch, second.degradation, second.overall) == (True, False, None)
    assert loaded.judges == ("a", "b")
    assert loaded.isr == isr_before


def test_a_reviewed_run_works_everywhere(run: Path, tmp_path: Path) -> None:
    plain = isr.Report.load(run)
    review = Review(run, "ada")
    for number in range(len(review.items)):
        review.save(number, YES)
    loaded = isr.Report.load(run)
    assert loaded.by("method").equals(plain.by("method"))
    assert loaded.summary() == plain.summary()
    assert set(loaded.judgements["judge"]) == {"a", "b", "human:ada"}
    assert not [d for d in isr.replay(run).differences if "human:ada" in d]
    assert isr.Report.load(loaded.save(tmp_path / "copy")).judgement_records == loaded.judgement_records
    assert "human:ada" in loaded.to_html()


def test_disputed_cases_are_no_sample_for_agreement(run: Path) -> None:
    before = isr.agreement(isr.Report.load(run), n_boot=50)
    review = Review(run, "ada")
    for number in range(len(review.items)):
        review.save(number, YES)
    after = isr.agreement(isr.Report.load(run), n_boot=50)
    assert after.value("mllm_mllm", "overall_derived") == before.value("mllm_mllm", "overall_derived")
    assert "human:ada" not in set(after.raters["rater"])
    assert "human:ada: reviewed disputed cases only" in after.notes[-1]
    review = Review(run, "ada", everything=True)
    for number in range(len(review.items)):
        review.save(number, YES)
    whole = isr.agreement(isr.Report.load(run), n_boot=50)
    assert "human:ada" in set(whole.raters["rater"])
    assert whole.n_items == 12


def test_what_cannot_be_reviewed(run: Path, tmp_path: Path) -> None:
    for name in ("", "a b", "../x", "x" * 65, "<script>"):
        with pytest.raises(UsageError, match="who: expected 1 to 64"):
            Review(run, name)
    with pytest.raises(UsageError, match="arm: expected some of"):
        Review(run, "ada", arms=("original",))
    with pytest.raises(UsageError, match="one of the judges of this run"):
        Review(report(6, judges=("human:ada", "b")).save(tmp_path / "h"), "ada")
    with pytest.raises(UsageError, match="saved without pictures"):
        Review(report(6).save(tmp_path / "bare", images=False), "ada")
    lock = json.loads((run / "run.json").read_text())
    lock["rubric"]["criteria"][0]["question"] = "Is it nice?"
    (run / "run.json").write_text(json.dumps(lock))
    with pytest.raises(IntegrityError, match="hashes to"):
        Review(run, "ada")


@pytest.mark.parametrize(
    ("number", "said", "note", "message"),
    [
        (99, YES, "", "item: expected a number from 0 to 3, got 99"),
        (-1, YES, "", "item: expected"),
        (True, YES, "", "item: expected"),
        ("0", YES, "", "item: expected"),
        (0, {"semantic_mismatch": True}, "", "one answer for each of"),
        (0, {**YES, "extra": True}, "", "one answer for each of"),
        (0, {**YES, "degradation": 1}, "", "'degradation' must be true, false or null"),
        (0, [True], "", "one answer for each of"),
        (0, YES, "x" * 2001, "at most 2000 characters"),
        (0, YES, None, "at most 2000 characters"),
    ],
)
def test_wrong_answers_are_not_saved(run: Path, number: Any, said: Any, note: Any, message: str) -> None:
    before = (run / "judgements.jsonl").read_bytes()
    with pytest.raises(UsageError, match=message):
        Review(run, "ada").save(number, said, note)
    assert (run / "judgements.jsonl").read_bytes() == before


@pytest.fixture
def server(run: Path) -> Iterator[ReviewServer]:
    with ReviewServer(Review(run, "ada")) as made:
        thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield made
        made.shutdown()
        thread.join(10)


def ask(
    server: ReviewServer, method: str, path: str, body: bytes | None = None, **headers: str
) -> tuple[int, bytes, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=20)
    connection.request(method, path, body=body, headers={k.replace("_", "-"): v for k, v in headers.items()})
    reply = connection.getresponse()
    result = reply.status, reply.read(), reply.headers
    connection.close()
    return result


def post(server: ReviewServer, where: str, value: Any, **headers: str) -> tuple[int, bytes, Any]:
    given = {"Origin": f"http://127.0.0.1:{server.server_port}", "Content_Type": "application/json", **headers}
    body = value if isinstance(value, bytes) else json.dumps(value).encode()
    return ask(server, "POST", f"/{server.token}/{where}", body, **given)


def test_the_page_and_its_pictures(server: ReviewServer) -> None:
    assert server.server_address[0] == "127.0.0.1"
    status, page, headers = ask(server, "GET", f"/{server.token}/")
    assert status == 200
    assert b"alert(1)</script>" not in page
    policy = headers["Content-Security-Policy"]
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert headers["Cache-Control"] == "no-store"
    assert headers["Referrer-Policy"] == "no-referrer"
    item = server.review.items[0]
    status, png, _ = ask(server, "GET", f"/{server.token}/picture/0/edited")
    assert (status, png) == (200, server.review.report.picture(item.edited))
    assert ask(server, "GET", f"/{server.token}/picture/0/original")[0] == 200


@pytest.mark.parametrize(
    "path",
    ["/", "/x/", "/{t}", "/{t}x/", "/{t}/run.json", "/{t}/../run.json", "/{t}/picture/99/edited", "/{t}/picture/-1/edited",
     "/{t}/picture/0/../edited", "/{t}/picture/0/%2e%2e", "/{t}/picture/٣/edited", "/{t}/picture/0/control"],
)  # fmt: skip
def test_nothing_else_is_served(server: ReviewServer, path: str) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=20)
    connection._encode_request = lambda request: request.encode("utf-8")  # type: ignore[attr-defined]
    connection._validate_path = lambda url: None  # type: ignore[attr-defined]
    connection.request("GET", path.format(t=server.token))
    reply = connection.getresponse()
    assert reply.status == 404
    assert b"judges" not in reply.read()


def test_answers_from_elsewhere_are_refused(server: ReviewServer) -> None:
    good = {"item": 0, "said": YES, "note": ""}
    host = f"127.0.0.1:{server.server_port}"
    assert post(server, "answer", good, Origin="http://evil.example")[0] == 403
    assert post(server, "answer", good, Origin="null")[0] == 403
    assert ask(server, "POST", f"/{server.token}/answer", b"{}", Content_Type="application/json")[0] == 403  # no Origin
    assert post(server, "answer", good, Host="evil.example", Origin="http://evil.example")[0] == 421
    assert ask(server, "GET", f"/{server.token}/", Host="evil.example")[0] == 421
    assert post(server, "answer", good, Content_Type="text/plain")[0] == 415
    assert post(server, "answer", b"x" * 70_000)[0] == 413
    assert post(server, "answer", b"[1]")[0] == 400
    assert post(server, "answer", b"{")[0] == 400
    assert post(server, "answer", {"item": 0, "said": {}})[0] == 400
    assert post(server, "elsewhere", good)[0] == 404
    assert (
        ask(server, "POST", "/wrong/answer", b"{}", Origin=f"http://{host}", Content_Type="application/json")[0] == 404
    )
    assert ask(server, "PUT", f"/{server.token}/answer", b"{}")[0] == 501
    assert server.review.answered == 0
    status, body, _ = post(server, "answer", good)
    assert (status, json.loads(body)) == (200, {"answered": 1})


def test_a_port_that_is_taken(server: ReviewServer, run: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot listen on 127\.0\.0\.1"):
        ReviewServer(server.review, server.server_port)
    with pytest.raises(UsageError, match=r"cannot listen on 127\.0\.0\.1:99999"):
        ReviewServer(server.review, 99999)


def test_the_command_ends_when_the_person_does(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[ReviewServer] = []
    serve = ReviewServer.serve_forever

    def answer_and_finish(self: ReviewServer, poll_interval: float = 0.5) -> None:
        started.append(self)

        def person() -> None:
            assert post(self, "answer", {"item": 0, "said": YES, "note": "n"})[0] == 200
            assert post(self, "finish", {})[0] == 200

        thread = threading.Thread(target=person)
        thread.start()
        serve(self, 0.02)
        thread.join(10)

    monkeypatch.setattr(ReviewServer, "serve_forever", answer_and_finish)
    assert main(["review", str(run), "--who", "ada"]) == 0
    out = capsys.readouterr().out
    assert started[0].url in out
    assert "1 of 4 answered; they stand as human:ada" in out
    assert main(["review", str(run), "--who", "a b"]) == 1
