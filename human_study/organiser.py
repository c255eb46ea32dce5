"""The organiser's page: who is where, how fast, which checks failed; pausing, closing, raters, export; agreement after closing."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import RedirectResponse, Response
from starlette.concurrency import run_in_threadpool

from isr.errors import UsageError

from .results import Progress, progress, ratings_table, tidy_table
from .site import Form, RefusedError, Site
from .store import Rater, Session

__all__ = ["agreement_rows", "organiser_routes"]

RESAMPLES = 2000
_CRITERIA = (
    ("semantic_mismatch", "Semantic mismatch"),
    ("degradation", "Quality degradation"),
    ("overall", "Overall success"),
)
_STATISTICS = (("percent", "Percent agreement (mean over pairs)", "human_human"), ("cohen", "Cohen's κ (mean over pairs)", "human_human"),
               ("fleiss", "Fleiss' κ", "human_human"), ("alpha", "Krippendorff's α", "human_human"), ("ac1", "Gwet's AC1", "human_human"))  # fmt: skip


class OrganiserPages:
    """Synchronous page makers; they run in the thread pool."""

    def __init__(self, site: Site) -> None:
        self.site, self.store, self.study = site, site.store, site.study
        # Closing is for good for answers, but raters may still withdraw: the same people, the same table.
        self._agreement = lru_cache(maxsize=1)(lambda _who: agreement_rows(ratings_table(self.store)))

    def _session(self, request: Request) -> Session:
        return self.site.need(request, "organiser")

    def board(self, request: Request, *, link: str = "", label: str = "", problem: str = "") -> Response:
        session = self._session(request)
        return self.site.page(
            "organiser.html", state=self.store.state(), rows=self._rows(), csrf=self.site.csrf(session), link=link, label=label,
            problem=problem, settings=self.study.settings, plan=self.study.plan(),
        )  # fmt: skip

    def table(self, request: Request) -> Response:
        """The table alone, which the page fetches again every few seconds."""
        session = self._session(request)
        return self.site.page("_raters.html", rows=self._rows(), csrf=self.site.csrf(session), state=self.store.state())

    def _rows(self) -> list[dict[str, Any]]:
        return [self._row(p) for p in progress(self.store)]

    def _row(self, p: Progress) -> dict[str, Any]:
        rater = p.rater
        if rater.withdrawn:
            where = "withdrew"
        elif rater.revoked:
            where = "revoked"
        elif p.position is None:
            where = "finished"
        elif not rater.consented:
            where = {"used": "reading the consent text", "unused": "link not used yet"}.get(
                self.store.has_link(rater), "no link yet"
            )
        elif not rater.begun:
            where = "reading the instructions"
        else:
            kind = self.store.assignments(rater.id)[p.position - 1].kind
            where = f"item {p.position}" + (" (practice)" if kind == "training" else "")
        minutes = None if p.last is None else (datetime.now(UTC) - datetime.fromisoformat(p.last)).total_seconds() / 60
        return {"p": p, "where": where, "minutes": minutes, "out": rater.revoked or rater.withdrawn}

    def change_state(self, request: Request, form: Form) -> Response:
        session = self._session(request)
        self.site.check_csrf(session, form)
        wanted = form.get("state", "")
        if wanted not in ("open", "paused", "closed"):
            raise RefusedError(422, "Not understood", "Expected open, paused or closed.")
        if wanted == "closed" and form.get("sure") != "yes":
            return self.board(request, problem="Tick the box beside “Close” first: closing is for good.")
        try:
            self.store.set_state(wanted)  # type: ignore[arg-type]
        except UsageError as error:
            return self.board(request, problem=str(error))
        return RedirectResponse("/organiser", 303)

    def add(self, request: Request, form: Form) -> Response:
        session = self._session(request)
        self.site.check_csrf(session, form)
        if self.store.state() == "closed":
            return self.board(request, problem="The study is closed; nobody can join it any more.")
        known = form.get("known", "")
        rater = self.store.add_rater(known=int(known) if known.isascii() and known.isdigit() else None)
        if rater is None:
            return self.board(
                request, problem="This was sent twice, or somebody else added a rater meanwhile: nobody was added now. “New link” "
                "makes a link for the rater who is there already.",
            )  # fmt: skip
        return self._show_link(request, rater)

    def link(self, request: Request, form: Form) -> Response:
        session = self._session(request)
        self.site.check_csrf(session, form)
        return self._show_link(request, self._named(form))

    def revoke(self, request: Request, form: Form) -> Response:
        session = self._session(request)
        self.site.check_csrf(session, form)
        self.store.revoke(self._named(form))
        return RedirectResponse("/organiser", 303)

    def _named(self, form: Form) -> Rater:
        try:
            return self.store.rater(form.get("rater", ""))
        except UsageError as error:
            raise RefusedError(404, "Nobody of that name", str(error)) from error

    def _show_link(self, request: Request, rater: Rater) -> Response:
        try:
            secret = self.store.new_link(rater)
        except UsageError as error:
            return self.board(request, problem=str(error))
        # Shown once, in the body of this answer only: never in an address, never stored.
        return self.board(request, link=f"{self.site.base_url(request)}/enter/{secret}", label=rater.label)

    def export(self, request: Request, which: str) -> Response:
        from isr.reporting.escape import csv_safe

        self._session(request)
        state = self.store.state()
        self.store.tell("organiser", "export", f"{which} while {state}")
        table = ratings_table(self.store) if which == "ratings" else tidy_table(self.store)
        return Response(
            csv_safe(table).to_csv(index=False), media_type="text/csv; charset=utf-8",
            headers={"content-disposition": f'attachment; filename="{which}.csv"'},
        )  # fmt: skip

    def agreement(self, request: Request) -> Response:
        self._session(request)
        if self.store.state() != "closed":
            raise RefusedError(
                403, "Only after closing",
                "Agreement is computed when the study is closed, so that nobody can watch it and stop at a pleasing moment.",
            )  # fmt: skip
        who = frozenset((p.rater.label, p.done) for p in progress(self.store) if not p.rater.withdrawn)
        rows, notes, n_items = self._agreement(who)
        return self.site.page(
            "agreement.html", rows=rows, notes=notes, n_items=n_items, criteria=[name for _, name in _CRITERIA]
        )


def agreement_rows(ratings: Any) -> tuple[list[dict[str, Any]], tuple[str, ...], int]:
    """Agreement among the people alone, as rows of a page; needs two raters with answers."""
    from isr.agreeing import agreement

    if ratings["rater"].nunique() < 2:
        return [], ("Agreement needs two raters with answers.",), int(ratings["case_id"].nunique())
    found = agreement(human=ratings, n_boot=RESAMPLES)
    rows = []
    for key, name, group in _STATISTICS:
        cells = []
        for criterion, _ in _CRITERIA:
            row = found.row(group, criterion, key)
            value = found.value(group, criterion, key)
            bounds = None if row["low"] != row["low"] else (float(row["low"]), float(row["high"]))
            cells.append({"value": value, "bounds": bounds, "reason": str(row["reason"] or "")})
        rows.append({"name": name, "cells": cells, "percent": key == "percent"})
    return rows, found.notes, found.n_items


def organiser_routes(site: Site) -> APIRouter:
    """All addresses of the organiser."""
    pages, router = OrganiserPages(site), APIRouter(prefix="/organiser")

    @router.get("")
    def board(request: Request) -> Response:
        return pages.board(request)

    @router.get("/table")
    def table(request: Request) -> Response:
        return pages.table(request)

    @router.post("/state")
    async def change_state(request: Request) -> Response:
        return await run_in_threadpool(pages.change_state, request, await site.form(request))

    @router.post("/add")
    async def add(request: Request) -> Response:
        return await run_in_threadpool(pages.add, request, await site.form(request))

    @router.post("/link")
    async def link(request: Request) -> Response:
        return await run_in_threadpool(pages.link, request, await site.form(request))

    @router.post("/revoke")
    async def revoke(request: Request) -> Response:
        return await run_in_threadpool(pages.revoke, request, await site.form(request))

    @router.get("/ratings.csv")
    def ratings(request: Request) -> Response:
        return pages.export(request, "ratings")

    @router.get("/answers.csv")
    def tidy(request: Request) -> Response:
        return pages.export(request, "answers")

    @router.get("/agreement")
    def agreement(request: Request) -> Response:
        return pages.agreement(request)

    return router
