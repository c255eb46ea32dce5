"""What the pages share: templates, sessions, forms, refusals."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import jinja2
from markupsafe import Markup
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response

from .limits import ANSWERS, FAILED_ENTRIES, REQUESTS, STRANGERS, Limit, RateLimiter
from .markdown import render
from .store import Session, Store
from .study import Study
from .tokens import form_token, same

__all__ = ["Form", "RefusedError", "Site", "wants_json"]

Form = dict[str, str]
MAX_FIELDS = 60


class RefusedError(Exception):
    """A request that gets no page: status, heading, one sentence, and seconds to wait where that helps."""

    def __init__(
        self, status: int, heading: str, text: str, *, code: str = "refused", wait: float | None = None
    ) -> None:
        super().__init__(heading)
        self.status, self.heading, self.text, self.code, self.wait = status, heading, text, code, wait


def wants_json(request: Request) -> bool:
    return "application/json" in request.headers.get("accept", "")


@dataclass
class Site:
    """The running study. secure: reached through TLS, so cookies are Secure. public_url: for links, where it is known."""

    study: Study
    store: Store
    secure: bool = False
    public_url: str | None = None
    limiter: RateLimiter = field(default_factory=RateLimiter)

    def __post_init__(self) -> None:
        loader = jinja2.FileSystemLoader(Path(__file__).parent / "templates")
        self.env = jinja2.Environment(
            loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
        )

    # ------------------------------------------------------------------------------------------------- answering

    def page(self, name: str, status: int = 200, **context: Any) -> HTMLResponse:
        """A page from a template; everything that is put in is escaped."""
        words = self.study.rubric.interface
        body = self.env.get_template(name).render(
            title=self.study.settings.title, language=self.study.rubric.language, words=words, **context
        )
        return HTMLResponse(body, status)

    def prose(self, name: str) -> Markup:
        """consent.md or instructions.md as safe HTML."""
        return Markup(render(self.study.text(name)))  # noqa: S704 - the renderer escapes raw HTML

    def refusal(self, request: Request, error: RefusedError) -> Response:
        headers = {} if error.wait is None else {"retry-after": str(max(1, round(error.wait)))}
        response: Response
        if wants_json(request):
            response = JSONResponse({"error": error.code, "text": error.text}, error.status)
        else:
            response = self.page("message.html", error.status, heading=error.heading, text=error.text)
        response.headers.update(headers)
        return response

    # ------------------------------------------------------------------------------------------------- who is it

    def cookie_name(self, role: str) -> str:
        return f"__Host-isr-{role}" if self.secure else f"isr-{role}"

    def set_cookie(self, response: Response, role: str, secret: str, days: int) -> None:
        # Lax for raters: following the link in a mail a second time must find the session. No other site can post to us.
        response.set_cookie(
            self.cookie_name(role), secret, max_age=days * 86400, path="/", secure=self.secure, httponly=True,
            samesite="lax" if role == "rater" else "strict",
        )  # fmt: skip

    def find(self, request: Request, role: str) -> Session | None:
        """The session of this request, limited; None for a stranger."""
        session = self.store.session(request.cookies.get(self.cookie_name(role)), role)
        if session is not None:
            self.limit(REQUESTS, session.hash)
        return session

    def need(self, request: Request, role: str) -> Session:
        """The session, or a refusal that says how to get one."""
        session = self.find(request, role)
        if session is None:
            self.limit(STRANGERS, _address(request))
            raise RefusedError(
                401, "This page needs your personal link",
                "Open the link that you were given, on the device where you began. If it was used already, ask the people who run "
                "the study for a new one; your answers are kept.", code="session",
            )  # fmt: skip
        return session

    def stranger(self, request: Request) -> None:
        """Count a request that carries no session."""
        self.limit(STRANGERS, _address(request))

    def entry_failed(self, request: Request) -> None:
        """Count a refused link; too many from one address are refused at once."""
        self.limit(FAILED_ENTRIES, _address(request))

    def entry_allowed(self, request: Request) -> None:
        self.limit(FAILED_ENTRIES, _address(request), take=False)

    def answering(self, session: Session) -> None:
        self.limit(ANSWERS, session.hash)

    def limit(self, limit: Limit, key: str, *, take: bool = True) -> None:
        wait = self.limiter.wait(limit, key, take=take)
        if wait > 0:
            raise RefusedError(
                429,
                "Too many requests",
                f"Please wait {max(1, round(wait))} seconds and try again.",
                code="slow",
                wait=wait,
            )

    # ------------------------------------------------------------------------------------------------- forms

    async def form(self, request: Request) -> Form:
        """The fields of a posted form; files and other encodings are refused, and so are posts from other sites."""
        self._same_site(request)
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/x-www-form-urlencoded":
            raise RefusedError(415, "Not a form", "This address takes plain forms only.")
        try:
            body = (await request.body()).decode("utf-8")
            pairs = parse_qsl(body, keep_blank_values=True, max_num_fields=MAX_FIELDS, errors="strict")
        except ValueError as error:
            raise RefusedError(400, "Not a form", "The form could not be read.") from error
        return dict(pairs)

    def _same_site(self, request: Request) -> None:
        fetched = request.headers.get("sec-fetch-site")
        origin = request.headers.get("origin")
        foreign = fetched is not None and fetched not in ("same-origin", "none")
        # Browsers send "null" for forms under no-referrer; there Sec-Fetch-Site and the form's token decide. A proxy may have
        # put its own name into Host, so the public address counts as well.
        if origin is not None and origin != "null":
            own = {request.headers.get("host", "").lower(), urlsplit(self.public_url or "").netloc.lower()}
            foreign = foreign or urlsplit(origin).netloc.lower() not in own
        if foreign:
            raise RefusedError(403, "Refused", "This request came from another site.", code="csrf")

    def csrf(self, session: Session) -> str:
        return form_token(self.store.server_key, session.hash)

    def check_csrf(self, session: Session, form: Form) -> None:
        if not same(form.get("csrf", ""), self.csrf(session)):
            raise RefusedError(
                403, "Refused", "This form is not from your session. Reload the page and send it again.", code="csrf"
            )

    def base_url(self, request: Request) -> str:
        """Where links lead: the public address, or the (checked) host of this request."""
        return (self.public_url or str(request.base_url)).rstrip("/")


def _address(request: Request) -> str:
    return request.client.host if request.client else "unknown"
