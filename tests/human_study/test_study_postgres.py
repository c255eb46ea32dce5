"""The same promises on PostgreSQL. Needs ISR_TEST_POSTGRES=postgresql+psycopg://user@host/name, an empty database."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from isr.human_study.results import ratings_table
from isr.human_study.schema import metadata
from isr.human_study.store import Store
from sqlalchemy import create_engine, text
from sqlalchemy.exc import DBAPIError
from study_help import answer_fields, app_client, enter, make_study, rate_all

URL = os.environ.get("ISR_TEST_POSTGRES", "")
pytestmark = pytest.mark.skipif(not URL, reason="set ISR_TEST_POSTGRES to the URL of an empty PostgreSQL database")
SAID: dict[str, bool | None] = {"semantic_mismatch": True, "degradation": False, "overall": None}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    study, _ = make_study(tmp_path / "study")
    made = Store(study, URL)
    made.add_rater()
    made.add_rater()
    yield made
    made.close()
    engine = create_engine(URL)
    metadata.drop_all(engine)
    engine.dispose()


def test_many_at_once_are_one_link_one_answer_and_numbered_revisions(store: Store) -> None:
    one, _ = store.raters()
    link, place = store.new_link(one), store.assignments(one.id)[0]
    with ThreadPoolExecutor(8) as pool:
        assert sum(s is not None for s in pool.map(lambda _: store.exchange(link, "rater"), range(16))) == 1
        same = list(pool.map(lambda _: store.record(one, place, "k" * 20, SAID), range(16)))
        assert sum(not r.again for r in same) == 1
        list(pool.map(lambda i: store.record(one, place, f"other-{i}" * 3, SAID), range(16)))
        assert len({r.label for r in pool.map(lambda _: store.add_rater(), range(8))}) == 8
    assert sorted(a.revision for a in store.history()) == list(range(1, 18))


def test_a_study_runs_and_its_history_is_append_only(store: Store) -> None:
    one = store.raters()[0]
    client = app_client(store.study, store)
    enter(client, store, one)
    client.post("/item/1", data=answer_fields(client.get("/item/1").text, comment="a\x00b 😀"))
    rate_all(client)
    assert store.history()[0].comment == "ab 😀"
    assert len(ratings_table(store)) == 8
    for sql in ("UPDATE answers SET comment = ''", "DELETE FROM answers", "DELETE FROM events"):
        with pytest.raises(DBAPIError, match="append-only"), store.engine.begin() as connection:
            connection.execute(text(sql))
    again = Store(store.study, URL)  # as after a restart
    assert len(again.history()) == 11
    assert again.erase(one) == 11
    assert ratings_table(again).empty
    again.close()
