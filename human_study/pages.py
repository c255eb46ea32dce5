"""The rater's pages: entering, consent, instructions, items with feedback, done, withdrawing; and the pictures."""

from __future__ import annotations

import hashlib
import math
import re
import secrets
import unicodedata
from collections import OrderedDict
from datetime import UTC, datetime
from threading import Lock
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, RedirectResponse, Response
from starlette.concurrency import run_in_threadpool

from isr.errors import UsageError
from isr.store import is_digest

from .results import passed
from .site import Form, RefusedError, Site, wants_json
from .store import SESSION_DAYS, Answer, Assignment, ConflictError, Rater, Session
from .study import StudyItem

__all__ = ["rater_routes"]

MAX_COMMENT = 2000
MAX_SECONDS = 86_400.0
#: Pictures kept in memory, in bytes.
PICTURE_MEMORY = 96 * 2**20
_KEY = re.compile(r"\A[A-Za-z0-9_-]{16,64}\Z")
_SAYS: dict[str, bool | None] = {"yes": True, "no": False, "cannot": None}
_WORDS = {True: "yes", False: "no", None: "cannot"}


class Pictures:
    """PNG bytes by digest, verified when they are read, the recently shown ones kept."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self._kept: OrderedDict[str, bytes] = OrderedDict()
        self._bytes = 0
        self._lock = Lock()

    def get(self, digest: str) -> bytes:
        with self._lock:
            if digest in self._kept:
                self._kept.move_to_end(digest)
                return self._kept[digest]
        data = self.site.study.png(digest)
        with self._lock:
            if digest not in self._kept:
                self._kept[digest] = data
                self._bytes += len(data)
            while self._bytes > PICTURE_MEMORY and len(self._kept) > 1:
                self._bytes -= len(self._kept.popitem(last=False)[1])
        return data

    def size(self, digest: str) -> tuple[int, int]:
        """(width, height) from the PNG header."""
        head = self.get(digest)[16:24]
        return int.from_bytes(head[:4], "big"), int.from_bytes(head[4:], "big")


class RaterPages:
    """What one rater may see, and where they are. All methods are synchronous and run in the thread pool."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.store, self.study = site.store, site.study
        self.pictures = Pictures(site)

    # ------------------------------------------------------------------------------------------------- where to go

    def _rater(self, request: Request) -> tuple[Session, Rater]:
        session = self.site.need(request, "rater")
        assert session.rater is not None  # noqa: S101 - sessions of the role "rater" carry one
        return session, session.rater

    def frontier(self, rater: Rater, done: set[int] | None = None) -> int | None:
        """The first unanswered position, None where all are answered. done: the answered assignments, if they were read."""
        done = self.store.answered(rater.id) if done is None else done
        return next((a.position for a in self.store.assignments(rater.id) if a.id not in done), None)

    def home(self, rater: Rater, done: set[int] | None = None) -> str:
        if not rater.consented:
            return "/consent"
        if not rater.begun:
            return "/instructions"
        position = self.frontier(rater, done)
        return "/done" if position is None else f"/item/{position}"

    def _gate(self, rater: Rater) -> Response | None:
        """A page instead of an item: no consent yet, paused, closed."""
        if not rater.begun or not rater.consented:
            return _go(self.home(rater))
        state = self.store.state()
        if state == "paused":
            return self.site.page(
                "message.html", heading="The study is paused",
                text="Everything you answered is kept. Please come back later; this page leads on as soon as the study goes on.",
                again="/",
            )  # fmt: skip
        if state == "closed":
            return _go("/done")
        return None

    # ------------------------------------------------------------------------------------------------- entering

    def start(self, request: Request) -> Response:
        _, rater = self._rater(request)
        return _go(self.home(rater))

    def enter_page(self, request: Request, role: str, secret: str) -> Response:
        """The page behind a link. It uses nothing up: mail scanners and previews open links too, only a press of the button does."""
        self.site.stranger(request)
        session = self.site.find(request, role)
        if session is not None and self.store.link_of(secret, session):
            return _go("/organiser" if role == "organiser" else "/")
        # Several raters may share a machine: nobody goes on in the session of the one before.
        return self.site.page("enter.html", role=role, other=session is not None and role == "rater")

    def enter(self, request: Request, role: str, secret: str) -> Response:
        self.site.entry_allowed(request)
        session = self.store.exchange(secret, role)
        known = self.site.find(request, role) if session is None else None
        if known is not None and self.store.link_of(secret, known):
            # Pressed twice, or again after going back: this browser is in already.
            return _go("/organiser" if role == "organiser" else "/")
        if session is None:
            self.site.entry_failed(request)
            raise RefusedError(
                403, "This link cannot be used",
                "It was used already, or it was replaced by a newer one. If you began on another device or browser, go on there; "
                "otherwise ask the people who run the study for a new link. Your answers are kept.",
            )  # fmt: skip
        response = _go("/organiser" if role == "organiser" else "/")
        self.site.set_cookie(response, role, session, SESSION_DAYS[role])
        return response

    # ------------------------------------------------------------------------------------------------- before the items

    def consent_page(self, request: Request) -> Response:
        session, rater = self._rater(request)
        return self.site.page(
            "consent.html", prose=self.site.prose("consent.md"), given=rater.consented, csrf=self.site.csrf(session)
        )

    def consent(self, request: Request, form: Form) -> Response:
        session, rater = self._rater(request)
        self.site.check_csrf(session, form)
        if form.get("agree") != "yes":
            return self.site.page(
                "message.html", heading="Thank you",
                text="Without your consent nothing is shown and nothing is stored. You may close this page, or go back and read the "
                "text again.", again="/consent",
            )  # fmt: skip
        if not rater.consented:
            text = self.study.text("consent.md")
            self.store.consent(rater, hashlib.sha256(text.encode("utf-8")).hexdigest())
        return _go("/")

    def instructions_page(self, request: Request) -> Response:
        session, rater = self._rater(request)
        if not rater.consented:
            return _go("/consent")
        return self.site.page(
            "instructions.html", prose=self.site.prose("instructions.md"), questions=self._questions(), begun=rater.begun,
            csrf=self.site.csrf(session), plan=self.study.plan(), places=len(self.store.assignments(rater.id)),
        )  # fmt: skip

    def begin(self, request: Request, form: Form) -> Response:
        session, rater = self._rater(request)
        self.site.check_csrf(session, form)
        if rater.consented and not rater.begun:
            self.store.begin(rater)
        return _go("/")

    # ------------------------------------------------------------------------------------------------- items

    def _place(self, rater: Rater, position: int) -> tuple[Assignment, StudyItem]:
        places = self.store.assignments(rater.id)
        if not 1 <= position <= len(places):
            raise RefusedError(404, "Not here", "There is no such page.")
        place = places[position - 1]
        return place, self.study.by_id[place.item]

    def item_page(self, request: Request, position: int) -> Response:
        session, rater = self._rater(request)
        if (instead := self._gate(rater)) is not None:
            return instead
        place, item = self._place(rater, position)
        done = self.store.answered(rater.id)
        frontier = self.frontier(rater, done)
        if frontier is not None and position > frontier:
            return _go(f"/item/{frontier}")
        return self._item(
            session, rater, place, item, self.store.current(place.id) if place.id in done else None, done=done
        )

    def _item(
        self, session: Session, rater: Rater, place: Assignment, item: StudyItem, answer: Answer | None,
        *, done: set[int] | None = None, status: int = 200, problem: str = "", typed: Form | None = None,
    ) -> Response:  # fmt: skip
        places = self.store.assignments(rater.id)
        done = self.store.answered(rater.id) if done is None else done
        practice = [p for p in places if p.kind == "training"]
        shown = [("original", item.original), ("edited", item.edited)]
        chosen = {} if answer is None else {key: _WORDS[value] for key, value in answer.said.items()}
        comment = "" if answer is None else answer.comment
        if typed is not None:
            chosen = {q.key: typed.get(f"q.{q.key}", "") for q in self.study.questions}
            comment = typed.get("comment", "")
        following = self.study.by_id[places[place.position].item] if place.position < len(places) else None
        return self.site.page(
            "item.html", status, position=place.position, training=place.kind == "training", practice=len(practice),
            number=place.position if place.kind == "training" else place.position - len(practice),
            total=len(places) - len(practice), done=len(done), places=len(places), prompt=item.prompt,
            pictures=[{"role": role, "digest": d, "size": self.pictures.size(d)} for role, d in shown if d is not None],
            questions=self._questions(), chosen=chosen, comment=comment, answered=place.id in done,
            back=None if place.position == 1 else f"/item/{place.position - 1}", home=self.home(rater, done),
            key=secrets.token_urlsafe(24), csrf=self.site.csrf(session), shown=_now(), problem=problem,
            who=hashlib.sha256(f"{self.store.server_key}:{rater.id}".encode()).hexdigest()[:12],
            preload=[] if following is None else [d for d in (following.original, following.edited) if d],
        )  # fmt: skip

    def answer(self, request: Request, position: int, form: Form) -> Response:
        """Commit an answer; only then say where to go next."""
        session, rater = self._rater(request)
        self.site.check_csrf(session, form)
        if not rater.begun or not rater.consented:
            raise RefusedError(403, "Not yet", "Please read the consent text first.", code="consent")
        place, item = self._place(rater, position)
        frontier = self.frontier(rater)
        if frontier is not None and position > frontier:
            raise RefusedError(409, "Not yet", "The items before this one come first.", code="order")
        # After the order check: only places a rater can reach count against the limit.
        self.site.answering(session)
        said, problem = self._said(form)
        key = form.get("key", "")
        if not _KEY.match(key):
            raise RefusedError(
                422, "Reload the page", "The form is incomplete; reload the page and send it again.", code="key"
            )
        if problem:
            if wants_json(request):
                raise RefusedError(422, "Not complete", problem, code="incomplete")
            return self._item(session, rater, place, item, None, status=422, problem=problem, typed=form)
        try:
            stored = self.store.record(rater, place, key, said, comment=_comment(form), seconds=_seconds(form))
        except ConflictError:
            text = "This page already sent another answer. Please check what is selected and save again."
            if wants_json(request):
                raise RefusedError(409, "Check again", text, code="key-used") from None
            return self._item(session, rater, place, item, None, status=409, problem=text, typed=form)
        except UsageError as error:
            if self.store.state() != "closed":
                raise RefusedError(503, "Try again", str(error), code="busy", wait=2) from error
            raise RefusedError(409, "The study is closed", "It was closed before this answer arrived, so the answer does not "
                               "count. Thank you for taking part.", code="closed") from error  # fmt: skip
        follow = self._after(rater, place)
        if wants_json(request):
            return JSONResponse({"next": follow, "revision": stored.revision})
        return _go(follow)

    def _after(self, rater: Rater, place: Assignment) -> str:
        if place.kind == "training":
            return f"/feedback/{place.position}"
        if place.position < len(self.store.assignments(rater.id)):
            return f"/item/{place.position + 1}"
        return self.home(rater)

    def _said(self, form: Form) -> tuple[dict[str, bool | None], str]:
        said: dict[str, bool | None] = {}
        for question in self.study.questions:
            word = form.get(f"q.{question.key}", "")
            if word not in _SAYS:
                return (
                    {},
                    f"Please answer “{question.title}”; “{self.study.rubric.interface.cannot_judge}” is an answer too.",
                )
            said[question.key] = _SAYS[word]
        if len(_comment(form)) > MAX_COMMENT:
            return {}, f"The comment is longer than {MAX_COMMENT} characters."
        return said, ""

    def feedback_page(self, request: Request, position: int) -> Response:
        _, rater = self._rater(request)
        if (instead := self._gate(rater)) is not None:
            return instead
        place, item = self._place(rater, position)
        answer = self.store.current(place.id)
        if place.kind != "training" or answer is None:
            return _go(self.home(rater))
        rows = [
            {"title": q.title, "said": _WORDS[answer.said.get(q.key)],
             "right": None if q.key not in item.expected else _WORDS[item.expected[q.key]]}
            for q in self.study.questions
        ]  # fmt: skip
        return self.site.page(
            "feedback.html", item=item, rows=rows, good=passed(answer.said, item.expected), back=f"/item/{position}",
            follow=f"/item/{position + 1}" if position < len(self.store.assignments(rater.id)) else self.home(rater),
            pictures=[d for d in (item.original, item.edited) if d], number=position,
        )  # fmt: skip

    def done_page(self, request: Request) -> Response:
        _, rater = self._rater(request)
        state = self.store.state()
        if rater.begun and state != "closed" and self.frontier(rater) is not None:
            return _go(self.home(rater))
        last = len(self.store.assignments(rater.id))
        return self.site.page("done.html", closed=state == "closed", last=last, done=len(self.store.answered(rater.id)))

    def withdraw_page(self, request: Request) -> Response:
        session, _ = self._rater(request)
        return self.site.page("withdraw.html", csrf=self.site.csrf(session))

    def withdraw(self, request: Request, form: Form) -> Response:
        session, rater = self._rater(request)
        self.site.check_csrf(session, form)
        if form.get("sure") != "yes":
            return _go("/")
        self.store.withdraw(rater)
        response = self.site.page(
            "message.html", heading="You have withdrawn",
            text="Your answers are left out of everything from now on. If they should also be deleted, tell the people who run the study.",
        )  # fmt: skip
        response.delete_cookie(self.site.cookie_name("rater"), path="/", secure=self.site.secure, httponly=True)
        return response

    # ------------------------------------------------------------------------------------------------- pictures

    def image(self, request: Request, digest: str) -> Response:
        """A picture, to raters who have reached an item that shows it (or whose next item does)."""
        _, rater = self._rater(request)
        if not is_digest(digest) or not rater.begun or not self._may_see(rater, digest):
            raise RefusedError(404, "Not here", "There is no such picture.")
        # Digests never change their pixels; private, so that no shared cache keeps a copy.
        return Response(
            self.pictures.get(digest),
            media_type="image/png",
            headers={"cache-control": "private, max-age=604800, immutable"},
        )

    def _may_see(self, rater: Rater, digest: str) -> bool:
        frontier = self.frontier(rater)
        for place in self.store.assignments(rater.id):
            if frontier is not None and place.position > frontier + 1:
                return False
            item = self.study.by_id[place.item]
            if digest in (item.edited, item.original):
                return True
        return False

    def _questions(self) -> list[dict[str, Any]]:
        """The rubric's questions; guidance lines that begin with "true:" or "false:" stand under the words of the buttons."""
        words = self.study.rubric.interface
        names = {"true:": words.yes, "false:": words.no}
        found = []
        for question in self.study.questions:
            lines = []
            for line in filter(None, (part.strip() for part in question.guidance.splitlines())):
                head = next((mark for mark in names if line.lower().startswith(mark)), None)
                lines.append((names[head], line[len(head) :].strip()) if head else ("", line))
            found.append(
                {"key": question.key, "title": question.title, "question": question.question, "guidance": lines}
            )
        return found


def _go(url: str) -> RedirectResponse:
    return RedirectResponse(url, 303)


def _now() -> str:
    return f"{datetime.now(UTC).timestamp():.3f}"


def _comment(form: Form) -> str:
    """The comment without control characters (a NUL is no text to PostgreSQL); lines end in a line feed."""
    lines = form.get("comment", "").replace("\r\n", "\n").replace("\r", "\n")
    return "".join(c for c in lines if c in "\n\t" or unicodedata.category(c) != "Cc").strip()


def _seconds(form: Form) -> float | None:
    """Seconds on the page: what the browser counted while the page was visible, else since the page was made."""
    for text, since in ((form.get("seconds", ""), False), (form.get("shown", ""), True)):
        try:
            value = float(text)
        except ValueError:
            continue
        if since:
            value = datetime.now(UTC).timestamp() - value
        if math.isfinite(value) and 0 <= value <= MAX_SECONDS:
            return round(value, 2)
    return None


def rater_routes(site: Site) -> APIRouter:
    """All addresses of a rater. Handlers that touch the database run in threads."""
    pages, router = RaterPages(site), APIRouter()

    @router.get("/")
    def start(request: Request) -> Response:
        return pages.start(request)

    @router.get("/enter/{secret}")
    def enter_page(request: Request, secret: str) -> Response:
        return pages.enter_page(request, "rater", secret)

    @router.post("/enter/{secret}")
    async def enter(request: Request, secret: str) -> Response:
        await site.form(request)
        return await run_in_threadpool(pages.enter, request, "rater", secret)

    @router.get("/organiser/enter/{secret}")
    def organiser_page(request: Request, secret: str) -> Response:
        return pages.enter_page(request, "organiser", secret)

    @router.post("/organiser/enter/{secret}")
    async def organiser(request: Request, secret: str) -> Response:
        await site.form(request)
        return await run_in_threadpool(pages.enter, request, "organiser", secret)

    @router.get("/consent")
    def consent_page(request: Request) -> Response:
        return pages.consent_page(request)

    @router.post("/consent")
    async def consent(request: Request) -> Response:
        return await run_in_threadpool(pages.consent, request, await site.form(request))

    @router.get("/instructions")
    def instructions_page(request: Request) -> Response:
        return pages.instructions_page(request)

    @router.post("/instructions")
    async def begin(request: Request) -> Response:
        return await run_in_threadpool(pages.begin, request, await site.form(request))

    @router.get("/item/{position:int}")
    def item_page(request: Request, position: int) -> Response:
        return pages.item_page(request, position)

    @router.post("/item/{position:int}")
    async def answer(request: Request, position: int) -> Response:
        return await run_in_threadpool(pages.answer, request, position, await site.form(request))

    @router.get("/feedback/{position:int}")
    def feedback_page(request: Request, position: int) -> Response:
        return pages.feedback_page(request, position)

    @router.get("/done")
    def done_page(request: Request) -> Response:
        return pages.done_page(request)

    @router.get("/withdraw")
    def withdraw_page(request: Request) -> Response:
        return pages.withdraw_page(request)

    @router.post("/withdraw")
    async def withdraw(request: Request) -> Response:
        return await run_in_threadpool(pages.withdraw, request, await site.form(request))

    @router.get("/image/{digest}")
    def image(request: Request, digest: str) -> Response:
        return pages.image(request, digest)

    return router
