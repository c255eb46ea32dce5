"""A hundred raters, ten SIGKILLs: every acknowledged answer is there exactly once."""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path

import pytest
from study_load import LoadRater, Server, free_port, make_raters, seconds_from_environment

sys.path.append(str(Path(__file__).resolve().parents[1] / "human_study"))

from isr.human_study.making import new_study
from isr.human_study.store import Store
from study_help import make_run

pytestmark = pytest.mark.load

RATERS = 100
KILLS = 10
#: Seconds of answering; ISR_LOAD_SECONDS=300 brings about 8,000 answers.
SECONDS = 90.0
PACE = (2.0, 5.0)


async def _under_fire(server: Server, raters: list[LoadRater], seconds: float) -> int:
    killed = 0
    begun = time.monotonic()

    def over() -> bool:
        return killed >= KILLS and time.monotonic() - begun > seconds

    await server.ready()
    tasks = [asyncio.create_task(rater.live(over)) for rater in raters]
    # A link whose answer is lost in a kill is used up, and the organiser makes another; so everybody comes in first.
    inside = asyncio.gather(*(rater.entered.wait() for rater in raters))
    await asyncio.wait([inside, *tasks], return_when=asyncio.FIRST_COMPLETED)
    while killed < KILLS and not all(t.done() for t in tasks):
        await asyncio.sleep(max(0.5, (seconds - PACE[1]) / KILLS * 0.6))
        server.kill()
        killed += 1
        server.start()
        await server.ready()
    await asyncio.gather(*tasks)
    return killed


def test_every_acknowledged_answer_is_there_exactly_once(tmp_path: Path) -> None:
    study = new_study(
        tmp_path / "study", make_run(96), 80, ["method"], raters=RATERS, training=1, attention=1, repeats=2
    )
    store = Store(study)
    server = Server(tmp_path / "study", free_port())
    raters = make_raters(store, RATERS, server.port, PACE)
    links = [r.link for r in raters]
    server.start()
    try:
        killed = asyncio.run(_under_fire(server, raters, seconds_from_environment(SECONDS)))
    finally:
        server.kill()
    assert killed == KILLS

    people = {r.id: rater for r, rater in zip(store.raters(), raters, strict=True)}
    positions = {p.id: p.position for i in people for p in store.assignments(i)}
    with store.engine.connect() as connection:
        rows = connection.exec_driver_sql("SELECT rater_id, key, assignment_id, revision, said FROM answers").fetchall()
    stored = {(row.rater_id, row.key): row for row in rows}
    assert len(stored) == len(rows)
    acknowledged = sum(len(r.acknowledged) for r in raters)
    print(
        f"\n{acknowledged} answers acknowledged, {len(rows)} stored, {sum(r.retries for r in raters)} requests sent again"
    )
    assert acknowledged >= RATERS
    assert sum(r.retries for r in raters) > 0, "no request met a dead server, so this run proved nothing"
    words = {"true": "yes", "false": "no", "null": "cannot"}
    for rater_id, rater in people.items():
        lost = [k for k in rater.acknowledged if (rater_id, k) not in stored]
        assert not lost, f"rater {rater.number}: {len(lost)} acknowledged answers are gone"
    for (rater_id, key), row in stored.items():
        position, said = people[rater_id].sent[key]  # nothing that nobody sent
        assert positions[row.assignment_id] == position
        for name, word in said.items():
            assert f'"{name.removeprefix("q.")}": ' in row.said
            assert any(f'"{name.removeprefix("q.")}": {raw}' in row.said for raw, w in words.items() if w == word)
    # every item was answered with one key, so there is one row for it: no duplicate under any number of retries
    assert len({row.assignment_id for row in rows}) == len(rows)
    assert {row.revision for row in rows} == {1}
    logs = "".join(log.read_text() for log in server.log)
    assert "/enter/[redacted]" in logs
    assert not [link for link in links if link in logs]
