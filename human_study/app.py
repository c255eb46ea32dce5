"""The application: `create_app(study, store)`."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.responses import Response
from starlette.exceptions import HTTPException
from starlette.staticfiles import StaticFiles

from isr.errors import IsrError

from .middleware import Guard
from .organiser import organiser_routes
from .pages import rater_routes
from .site import RefusedError, Site
from .store import Store
from .study import Study

__all__ = ["LOOPBACK_NAMES", "create_app"]

_log = logging.getLogger("uvicorn.error")
LOOPBACK_NAMES = ("127.0.0.1", "localhost", "[::1]")


def create_app(
    study: Study,
    store: Store,
    *,
    secure: bool = False,
    public_url: str | None = None,
    hosts: Iterable[str] = LOOPBACK_NAMES,
) -> FastAPI:
    """The study's web application.

    Args:
        secure: it is reached through TLS: cookies are Secure and HSTS is sent. public_url: what links begin with.
        hosts: names by which it may be called; other Host headers are refused.
    """
    site = Site(study, store, secure=secure, public_url=public_url)
    # No schema and no interactive documentation: they would list the addresses and load scripts from elsewhere.
    app = FastAPI(title=study.settings.title, openapi_url=None, docs_url=None, redoc_url=None)
    app.state.site = site

    @app.exception_handler(RefusedError)
    async def refused(request: Request, error: RefusedError) -> Response:
        return site.refusal(request, error)

    @app.exception_handler(IsrError)
    async def broken(request: Request, error: IsrError) -> Response:
        _log.error("%s: %s", request.url.path if "/enter/" not in request.url.path else "/enter", error)
        return site.refusal(
            request,
            RefusedError(
                500, "Something is wrong here", "Please tell the people who run the study. Your answers are kept."
            ),
        )

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> Response:
        text = "There is no such page." if error.status_code == 404 else str(error.detail)
        return site.refusal(request, RefusedError(error.status_code, "Not here", text))

    app.include_router(rater_routes(site))
    app.include_router(organiser_routes(site))
    app.mount("/static", StaticFiles(directory=Path(__file__).parent / "static"), name="static")
    app.add_middleware(Guard, hosts=tuple(hosts), secure=secure)
    return app
