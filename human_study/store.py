"""What a study knows of its raters and their answers. Every method is one transaction; an answer that was returned as
recorded is on disk."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any, Literal, overload

from sqlalchemy import Connection, Engine, Row, and_, delete, func, insert, select, update
from sqlalchemy.exc import IntegrityError as DatabaseIntegrityError

from isr.errors import UsageError

from .orders import rater_order, share_items
from .schema import answers, assignments, connect, events, links, meta, raters, sessions
from .study import Study
from .tokens import good_secret, hashed, new_secret

__all__ = ["Answer", "Assignment", "ConflictError", "Rater", "Recorded", "Session", "State", "Store"]

State = Literal["open", "paused", "closed"]
SESSION_DAYS = {"rater": 60, "organiser": 7}


class ConflictError(Exception):
    """The same idempotency key came with another answer."""


@dataclass(frozen=True)
class Rater:
    id: int
    label: str
    consented: bool
    begun: bool
    revoked: bool
    withdrawn: bool


@dataclass(frozen=True)
class Session:
    """Who a cookie belongs to. hash: of the cookie's secret; rater: None for the organiser."""

    role: str
    hash: str
    rater: Rater | None


@dataclass(frozen=True)
class Assignment:
    """One place in a rater's list (positions start at 1). kind: training, rating, repeat or attention."""

    id: int
    position: int
    item: str
    kind: str


@dataclass(frozen=True)
class Answer:
    """One row of the history. said: criterion → True, False or None (cannot judge)."""

    rater_id: int
    assignment_id: int
    revision: int
    said: dict[str, bool | None]
    comment: str
    seconds: float | None
    received: str


@dataclass(frozen=True)
class Recorded:
    """The acknowledgement. again: this key was stored before, nothing new was written."""

    revision: int
    again: bool


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


class Store:
    """The database of one study.

    Args:
        study: its items and settings. url: another database than the SQLite file in the folder.
    """

    def __init__(self, study: Study, url: str | None = None) -> None:
        self.study = study
        self.engine: Engine = connect(url or study.database)
        self._assignments = lru_cache(maxsize=4096)(self._read_assignments)
        with self._write() as connection:
            self.server_key = self._once(connection, "server_key", new_secret())
            known = {
                "rubric": self._once(connection, "rubric_hash", study.rubric.hash) == study.rubric.hash,
                # Items are called item-0, item-1, … in every study: answers of one must never be read as another's.
                "items": self._once(connection, "items_hash", study.items_hash) == study.items_hash,
            }
            self._once(connection, "state", "open")
        if not all(known.values()):
            differ = ", ".join(name for name, same in known.items() if not same)
            raise UsageError(
                f"database: it belongs to another study (other {differ} than in {str(study.folder)!r}); one database holds one "
                "study, so name another database, or the folder that this one was made for"
            )

    def close(self) -> None:
        self.engine.dispose()

    @contextmanager
    def _write(self) -> Iterator[Connection]:
        with self.engine.connect().execution_options(write=True) as connection, connection.begin():
            yield connection

    @contextmanager
    def _read(self) -> Iterator[Connection]:
        with self.engine.connect() as connection, connection.begin():
            yield connection

    @staticmethod
    def _once(connection: Connection, key: str, value: str) -> str:
        found = connection.execute(select(meta.c.value).where(meta.c.key == key)).scalar_one_or_none()
        if found is None:
            connection.execute(insert(meta).values(key=key, value=value))
            return value
        return str(found)

    @staticmethod
    def _tell(connection: Connection, who: str, what: str, detail: str = "") -> None:
        connection.execute(insert(events).values(at=now(), who=who, what=what, detail=detail))

    # ------------------------------------------------------------------------------------------------- the study

    def state(self) -> State:
        with self._read() as connection:
            return self._state(connection)

    @staticmethod
    def _state(connection: Connection) -> State:
        value: State = connection.execute(select(meta.c.value).where(meta.c.key == "state")).scalar_one()
        return value

    def set_state(self, state: State, who: str = "organiser") -> None:
        """Open, pause or close. Closing is for good: agreement becomes visible, so no answer may come afterwards."""
        with self._write() as connection:
            if self._state(connection) == "closed":
                raise UsageError(
                    "study: it is closed for good; answers after the agreement was visible would not count"
                )
            connection.execute(update(meta).where(meta.c.key == "state").values(value=state))
            self._tell(connection, who, f"study {state}")

    # ------------------------------------------------------------------------------------------------- raters

    def raters(self) -> list[Rater]:
        with self._read() as connection:
            return [_rater(row) for row in connection.execute(select(raters).order_by(raters.c.id))]

    def rater(self, label: str) -> Rater:
        with self._read() as connection:
            row = connection.execute(select(raters).where(raters.c.label == label)).one_or_none()
        if row is None:
            raise UsageError(
                f"rater: nobody is called {label!r}; there are {', '.join(r.label for r in self.raters())}"
            )
        return _rater(row)

    @overload
    def add_rater(self, label: str | None = None) -> Rater: ...

    @overload
    def add_rater(self, label: str | None = None, *, known: int | None) -> Rater | None: ...

    def add_rater(self, label: str | None = None, *, known: int | None = None) -> Rater | None:
        """A new rater with a list of their own; the list never changes afterwards.

        Args:
            known: how many raters the caller has seen; where there are others, nobody is added (None), so that a request that
                comes twice adds one person.
        """
        study, settings = self.study, self.study.settings
        with self._write() as connection:
            index = int(connection.execute(select(func.count()).select_from(raters)).scalar_one())
            if known is not None and known != index:
                return None
            name = label or f"R{index + 1}"
            if connection.execute(select(raters.c.id).where(raters.c.label == name)).first():
                raise UsageError(f"rater: there is already a rater called {name!r}")
            rater_id = int(
                connection.execute(insert(raters).values(label=name, created=now()).returning(raters.c.id)).scalar_one()
            )
            rating = study.of_kind("rating")
            if index < settings.raters:
                own = share_items(rating, index, settings.raters, settings.per_item, settings.seed)
            else:
                own = self._least_rated(connection, rating)
            order = rater_order(
                own, seed=settings.seed, rater=index, training=study.of_kind("training"), attention=study.of_kind("attention"),
                repeats=settings.repeats,
            )  # fmt: skip
            rows = [
                {"rater_id": rater_id, "position": place, "item": slot.item, "kind": slot.kind}
                for place, slot in enumerate(order, 1)
            ]
            connection.execute(insert(assignments), rows)
            self._tell(connection, name, "added", f"{len(own)} items")
            row = connection.execute(select(raters).where(raters.c.id == rater_id)).one()
        return _rater(row)

    def _least_rated(self, connection: Connection, items: list[str]) -> list[str]:
        """Items of a rater who joins later: all, or as many as the others have, of those with the fewest living raters."""
        settings = self.study.settings
        if settings.per_item is None:
            return items
        living = and_(raters.c.id == assignments.c.rater_id, raters.c.revoked.is_(None), raters.c.withdrawn.is_(None))
        counts: dict[str, int] = {
            str(item): int(count)
            for item, count in connection.execute(
                select(assignments.c.item, func.count())
                .join(raters, living)
                .where(assignments.c.kind == "rating")
                .group_by(assignments.c.item)
            )
        }
        share = -(-len(items) * settings.per_item // settings.raters)
        return sorted(items, key=lambda item: (counts.get(item, 0), item))[:share]

    def revoke(self, rater: Rater) -> None:
        """Ends sessions and links; what was answered stays, marked."""
        with self._write() as connection:
            connection.execute(update(raters).where(raters.c.id == rater.id).values(revoked=now()))
            self._end_access(connection, rater.id)
            self._tell(connection, rater.label, "revoked")

    def consent(self, rater: Rater, text_hash: str) -> None:
        with self._write() as connection:
            connection.execute(
                update(raters).where(raters.c.id == rater.id).values(consented=now(), consent_hash=text_hash)
            )
            self._tell(connection, rater.label, "consented", text_hash)

    def begin(self, rater: Rater) -> None:
        with self._write() as connection:
            connection.execute(update(raters).where(raters.c.id == rater.id).values(begun=now()))
            self._tell(connection, rater.label, "began")

    def withdraw(self, rater: Rater) -> None:
        """The rater takes the consent back: out of every table and export from now on, and no way in any more."""
        with self._write() as connection:
            connection.execute(update(raters).where(raters.c.id == rater.id).values(withdrawn=now()))
            self._end_access(connection, rater.id)
            self._tell(connection, rater.label, "withdrew")

    def erase(self, rater: Rater) -> int:
        """Delete the answers of a rater who asked for it; the only way in which answers ever leave. Returns how many."""
        with self._write() as connection:
            connection.execute(insert(meta).values(key="erasing", value=rater.label))
            gone = connection.execute(delete(answers).where(answers.c.rater_id == rater.id)).rowcount
            connection.execute(delete(meta).where(meta.c.key == "erasing"))
            connection.execute(
                update(raters).where(raters.c.id == rater.id, raters.c.withdrawn.is_(None)).values(withdrawn=now())
            )
            self._end_access(connection, rater.id)
            self._tell(connection, rater.label, "erased", f"{gone} answers")
        return int(gone)

    def _end_access(self, connection: Connection, rater_id: int) -> None:
        for table in (links, sessions):
            connection.execute(
                update(table).where(table.c.rater_id == rater_id, table.c.ended.is_(None)).values(ended=now())
            )

    # ------------------------------------------------------------------------------------------------- access

    def new_link(self, rater: Rater | None = None, *, sign_out: bool = False) -> str:
        """The secret of a new one-time link (None: the organiser's). Older links of that person, and a rater's sessions, end;
        the organiser's sessions only with `sign_out`, because every start of the server makes a link for the organiser."""
        secret, role = new_secret(), "organiser" if rater is None else "rater"
        if rater is not None and (rater.revoked or rater.withdrawn):
            raise UsageError(f"rater: {rater.label} was revoked or withdrew; add another rater instead")
        with self._write() as connection:
            if rater is not None:
                self._end_access(connection, rater.id)
            else:
                unused = (links.c.role == "organiser") & links.c.used.is_(None)
                connection.execute(update(links).where(unused).values(ended=now()))
                if sign_out:
                    live = (sessions.c.role == "organiser") & sessions.c.ended.is_(None)
                    connection.execute(update(sessions).where(live).values(ended=now()))
            connection.execute(
                insert(links).values(
                    secret_hash=hashed(secret), role=role, rater_id=None if rater is None else rater.id, created=now()
                )
            )
            self._tell(connection, role if rater is None else rater.label, "link made")
        return secret

    def has_link(self, rater: Rater) -> Literal["none", "unused", "used"]:
        with self._read() as connection:
            rows = list(
                connection.execute(select(links.c.used).where(links.c.rater_id == rater.id, links.c.ended.is_(None)))
            )
        return "none" if not rows else "used" if any(row.used for row in rows) else "unused"

    def link_of(self, secret: str, session: Session) -> bool:
        """Whether a link, used or not, was made for the person whom this session belongs to."""
        if not good_secret(secret):
            return False
        query = select(links.c.rater_id).where(links.c.secret_hash == hashed(secret), links.c.role == session.role)
        with self._read() as connection:
            row = connection.execute(query).one_or_none()
        return row is not None and row.rater_id == (None if session.rater is None else session.rater.id)

    def exchange(self, secret: str, role: str) -> str | None:
        """Use up a one-time link: the secret of a new session, or None where the link is unknown, used or ended."""
        if not good_secret(secret):
            return None
        session = new_secret()
        with self._write() as connection:
            row = connection.execute(
                select(links).where(links.c.secret_hash == hashed(secret), links.c.role == role)
            ).one_or_none()
            if row is None:
                return None
            # The condition stands in the update itself: on any database, of many at once only one uses the link up.
            free = (links.c.id == row.id) & links.c.used.is_(None) & links.c.ended.is_(None)
            if connection.execute(update(links).where(free).values(used=now())).rowcount != 1:
                return None
            expires = datetime.now(UTC) + timedelta(days=SESSION_DAYS[role])
            connection.execute(
                insert(sessions).values(
                    secret_hash=hashed(session), role=role, rater_id=row.rater_id, created=now(),
                    expires=expires.isoformat(timespec="milliseconds"),
                )
            )  # fmt: skip
            self._tell(connection, role if row.rater_id is None else str(row.rater_id), "entered")
        return session

    def session(self, secret: str | None, role: str) -> Session | None:
        """Who this cookie belongs to; None where it is unknown, ended, expired, or of the other role."""
        if not good_secret(secret):
            return None
        digest = hashed(str(secret))
        with self._read() as connection:
            row = connection.execute(
                select(sessions, raters)
                .select_from(sessions.outerjoin(raters, raters.c.id == sessions.c.rater_id))
                .where(sessions.c.secret_hash == digest, sessions.c.role == role)
            ).one_or_none()
        if row is None or row._mapping[sessions.c.ended] or row._mapping[sessions.c.expires] < now():
            return None
        rater = None
        if role == "rater":
            rater = _rater_from({c.name: row._mapping[c] for c in raters.c})
            if rater.revoked or rater.withdrawn:
                return None
        return Session(role, digest, rater)

    # ------------------------------------------------------------------------------------------------- answers

    def _read_assignments(self, rater_id: int) -> tuple[Assignment, ...]:
        query = select(assignments).where(assignments.c.rater_id == rater_id).order_by(assignments.c.position)
        with self._read() as connection:
            return tuple(Assignment(r.id, r.position, r.item, r.kind) for r in connection.execute(query))

    def assignments(self, rater_id: int) -> tuple[Assignment, ...]:
        """The rater's list, in order. It never changes, so it is remembered."""
        return self._assignments(rater_id)

    def answered(self, rater_id: int) -> set[int]:
        """Assignment ids with an answer."""
        with self._read() as connection:
            found = connection.execute(select(answers.c.assignment_id).where(answers.c.rater_id == rater_id).distinct())
            return {int(row[0]) for row in found}

    def current(self, assignment_id: int) -> Answer | None:
        """The standing answer: the last revision."""
        query = select(answers).where(answers.c.assignment_id == assignment_id).order_by(answers.c.revision.desc())
        with self._read() as connection:
            row = connection.execute(query.limit(1)).one_or_none()
        return None if row is None else _answer(row)

    def record(
        self,
        rater: Rater,
        assignment: Assignment,
        key: str,
        said: Mapping[str, bool | None],
        *,
        comment: str = "",
        seconds: float | None = None,
    ) -> Recorded:
        """Commit an answer. The same key again is acknowledged without a second row; another answer to the same item is the
        next revision.

        Raises:
            ConflictError: this key was used for another answer. UsageError: the study is closed.
        """
        text = json.dumps(dict(said), sort_keys=True)
        for _ in range(20):
            try:
                return self._record(rater, assignment, key, text, comment, seconds)
            except DatabaseIntegrityError:
                # Another window took this revision, or the same key came twice at once: look again.
                continue
        raise UsageError("answer: it could not be stored because of many simultaneous writes; send it again")

    def _record(
        self, rater: Rater, assignment: Assignment, key: str, said: str, comment: str, seconds: float | None
    ) -> Recorded:
        with self._write() as connection:
            known = connection.execute(
                select(answers).where(answers.c.rater_id == rater.id, answers.c.key == key)
            ).one_or_none()
            if known is not None:
                if (known.assignment_id, known.said, known.comment) != (assignment.id, said, comment):
                    raise ConflictError(key)
                return Recorded(known.revision, again=True)
            if self._state(connection) == "closed":
                raise UsageError("answer: the study is closed")
            last = connection.execute(
                select(answers)
                .where(answers.c.assignment_id == assignment.id)
                .order_by(answers.c.revision.desc())
                .limit(1)
            ).one_or_none()
            revision = 1 if last is None else last.revision + 1
            connection.execute(
                insert(answers).values(
                    assignment_id=assignment.id, rater_id=rater.id, revision=revision, key=key, said=said, comment=comment,
                    seconds=seconds, received=now(),
                )
            )  # fmt: skip
        return Recorded(revision, again=False)

    # ------------------------------------------------------------------------------------------------- reading all

    def history(self) -> list[Answer]:
        """Every answer ever recorded, in order."""
        with self._read() as connection:
            return [_answer(row) for row in connection.execute(select(answers).order_by(answers.c.id))]

    def events(self) -> list[tuple[str, str, str, str]]:
        """(at, who, what, detail) of everything that happened around the answers."""
        with self._read() as connection:
            return [(r.at, r.who, r.what, r.detail) for r in connection.execute(select(events).order_by(events.c.id))]

    def tell(self, who: str, what: str, detail: str = "") -> None:
        """Add to the log of events."""
        with self._write() as connection:
            self._tell(connection, who, what, detail)


def _rater(row: Row[Any]) -> Rater:
    return _rater_from({str(key): value for key, value in row._mapping.items()})


def _rater_from(row: Mapping[str, Any]) -> Rater:
    return Rater(
        id=row["id"], label=row["label"], consented=bool(row["consented"]), begun=bool(row["begun"]),
        revoked=bool(row["revoked"]), withdrawn=bool(row["withdrawn"]),
    )  # fmt: skip


def _answer(row: Row[Any]) -> Answer:
    return Answer(
        row.rater_id, row.assignment_id, row.revision, json.loads(row.said), row.comment, row.seconds, row.received
    )
