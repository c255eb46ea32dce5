"""The database: exactly once under threads, append-only, other URLs, crashes between commit and acknowledgement."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from isr.human_study.store import ConflictError, Store
from isr.human_study.study import Study
from sqlalchemy import create_engine, inspect, text
from sqlalchemy.exc import DatabaseError
from study_help import make_study

from isr.errors import UsageError

YES: dict[str, bool | None] = {"semantic_mismatch": True, "degradation": None, "overall": True}
NO: dict[str, bool | None] = {"semantic_mismatch": False, "degradation": False, "overall": False}


@pytest.fixture
def made(tmp_path: Path) -> tuple[Study, Store]:
    return make_study(tmp_path / "study")


def test_the_same_key_from_many_threads_is_one_row(made: tuple[Study, Store]) -> None:
    _, store = made
    rater = store.raters()[0]
    place = store.assignments(rater.id)[0]
    found = []
    barrier = threading.Barrier(8)

    def send() -> None:
        barrier.wait()
        found.append(store.record(rater, place, "k" * 20, YES))

    threads = [threading.Thread(target=send) for _ in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert sorted(f.again for f in found) == [False] + [True] * 7
    assert {f.revision for f in found} == {1}
    assert len(store.history()) == 1


def test_many_windows_make_numbered_revisions(made: tuple[Study, Store]) -> None:
    _, store = made
    rater = store.raters()[0]
    place = store.assignments(rater.id)[0]
    barrier = threading.Barrier(6)
    found = []

    def send(i: int) -> None:
        barrier.wait()
        found.append(store.record(rater, place, f"key-number-{i:010}", YES if i % 2 else NO).revision)

    threads = [threading.Thread(target=send, args=(i,)) for i in range(6)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert sorted(found) == [1, 2, 3, 4, 5, 6]
    current = store.current(place.id)
    assert current is not None
    assert current.revision == 6


def test_history_is_append_only(made: tuple[Study, Store]) -> None:
    study, store = made
    rater = store.raters()[0]
    store.record(rater, store.assignments(rater.id)[0], "k" * 20, YES, comment="c", seconds=1.5)
    raw = create_engine(study.database)
    for line in (
        "UPDATE answers SET said = '{}'",
        "DELETE FROM answers",
        "UPDATE events SET what = 'nothing'",
        "DELETE FROM events",
    ):
        with pytest.raises(DatabaseError, match="append-only"), raw.begin() as connection:
            connection.execute(text(line))
    [row] = store.history()
    assert (row.said, row.comment, row.seconds) == (YES, "c", 1.5)


def test_a_key_is_for_one_answer(made: tuple[Study, Store]) -> None:
    _, store = made
    one, two = store.raters()
    places = store.assignments(one.id)
    store.record(one, places[0], "k" * 20, YES)
    with pytest.raises(ConflictError):
        store.record(one, places[0], "k" * 20, NO)
    with pytest.raises(ConflictError):
        store.record(one, places[1], "k" * 20, YES)
    store.record(two, store.assignments(two.id)[0], "k" * 20, NO)  # another person's key is another key
    assert len(store.history()) == 2


def test_unique_constraints_and_settings_of_the_database(made: tuple[Study, Store]) -> None:
    _, store = made
    found = {tuple(u["column_names"]) for u in inspect(store.engine).get_unique_constraints("answers")}
    assert found == {("rater_id", "key"), ("assignment_id", "revision")}
    with store.engine.connect() as connection:
        assert connection.execute(text("PRAGMA journal_mode")).scalar_one() == "wal"
        assert connection.execute(text("PRAGMA synchronous")).scalar_one() == 2  # FULL
        assert connection.execute(text("PRAGMA foreign_keys")).scalar_one() == 1


def test_reopening_finds_everything(made: tuple[Study, Store]) -> None:
    study, store = made
    rater = store.raters()[0]
    store.record(rater, store.assignments(rater.id)[0], "k" * 20, YES)
    store.set_state("paused")
    again = Store(study)
    assert again.server_key == store.server_key
    assert again.state() == "paused"
    assert again.record(rater, again.assignments(rater.id)[0], "k" * 20, YES).again
    assert again.answered(rater.id) == {store.assignments(rater.id)[0].id}


def test_another_database_by_url(made: tuple[Study, Store], tmp_path: Path) -> None:
    study, store = made
    other = Store(study, f"sqlite:///{tmp_path / 'elsewhere.sqlite'}")
    other.add_rater("alice")
    assert [r.label for r in other.raters()] == ["alice"]
    assert len(store.raters()) == 2
    with pytest.raises(UsageError, match=r"database: cannot use the URL given .*postgresql\+psycopg"):
        Store(study, "nosuchdatabase://user:hunter2@host/x")
    with pytest.raises(UsageError, match=r"^(?!.*hunter2)"):
        Store(study, "nosuchdatabase://user:hunter2@host/x")
    with pytest.raises(UsageError, match="already a rater called 'alice'"):
        other.add_rater("alice")
    with pytest.raises(UsageError, match="nobody is called 'bob'; there are alice"):
        other.rater("bob")


def test_a_database_of_another_study_is_refused(made: tuple[Study, Store], tmp_path: Path) -> None:
    from isr.rubric import Rubric

    study, _ = made
    other, _ = make_study(tmp_path / "other", n=4)
    other.rubric = Rubric.model_validate({**study.rubric.model_dump(), "version": "2"})
    with pytest.raises(UsageError, match="belongs to another study"):
        Store(other, study.database)


def test_two_studies_never_share_a_database(made: tuple[Study, Store], tmp_path: Path) -> None:
    # Same rubric, same item names: R1's answer to item-0 of one study would be read as one to item-0 of the other.
    study, store = made
    other, _ = make_study(tmp_path / "other", n=8, seed=1)
    assert other.rubric.hash == study.rubric.hash
    assert {i.id for i in other.items} == {i.id for i in study.items}
    with pytest.raises(UsageError, match=r"belongs to another study \(other items"):
        Store(other, study.database)
    assert Store(study).raters() == store.raters()


@pytest.mark.parametrize("url", ["sqlite:////nonexistent/x.sqlite", "sqlite:////proc/version"])
def test_a_database_that_cannot_be_opened_is_one_sentence(made: tuple[Study, Store], url: str) -> None:
    with pytest.raises(UsageError, match="database: it cannot be opened"):
        Store(made[0], url)


def test_erased_answers_leave_no_trace_in_the_file(made: tuple[Study, Store]) -> None:
    study, store = made
    rater = store.raters()[0]
    store.record(rater, store.assignments(rater.id)[0], "k" * 20, YES, comment="my name is Rumpelstilzchen")
    store.erase(rater)
    store.close()  # the last connection folds the write-ahead log into the file
    for path in study.folder.glob("study.sqlite*"):
        assert b"Rumpelstilzchen" not in path.read_bytes()
