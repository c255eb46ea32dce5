"""One self-contained HTML page: no network, no script from elsewhere, everything escaped (Jinja2 autoescape, strict CSP)."""

from __future__ import annotations

import base64
from functools import cache
from html import escape
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import jinja2

from ..schema import NotAsked, NoVerdict, Verdict
from .text import percent, percent_range, summary

if TYPE_CHECKING:
    from ..report import Report
    from ..schema import Judgement

__all__ = ["notebook", "render"]

#: Cases whose pictures are embedded; the rest are listed without (a page of thousands of PNGs opens nowhere).
GALLERY = 60


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: (files("isr.reporting") / name).read_text("utf-8")),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["pct"] = percent
    return environment


def render(report: Report) -> str:
    """The page as text."""
    groups = [
        c for c in ("method", "editor", "prompt_kind", "category", "purifier") if len(set(_column(report, c))) > 1
    ]
    tables = [(c.replace("_", " "), report.by(c).to_dict("records"), c) for c in groups]
    return (
        _environment()
        .get_template("report.html")
        .render(
            title=report.title,
            rate=report.rate,
            interval=report.interval,
            bounds=percent_range(*report.bounds),
            band=percent_range(*report.band),
            lazy=report.lazy,
            judges=report.judges,
            n_no_verdict=report.n_no_verdict,
            no_verdicts=report.no_verdicts.most_common(),
            warnings=report.warnings,
            tables=tables,
            by_judge=report.by_judge().to_dict("records"),
            gallery=_gallery(report),
            lock=report.lock,
            range=percent_range,
            methods=report.methods_text(),
        )
    )


def notebook(report: Report) -> str:
    """A small table for notebooks."""
    return f"<pre>{escape(summary(report))}</pre>" + str(report.by("method").to_html(float_format=lambda v: f"{v:.3f}"))


def _column(report: Report, name: str) -> list[Any]:
    return [getattr(c, name) for c in report.case_records if c.arm == "immunized"]


def _gallery(report: Report) -> list[dict[str, Any]]:
    """Cases worth a look first: disagreements, then missing verdicts, then the rest, in case order."""
    said: dict[str, list[Judgement]] = {}
    for judgement in report.judgement_records:
        said.setdefault(judgement.case_id, []).append(judgement)
    outcome = {o.case_id: o.value for o in report.outcomes}

    def rank(case_id: str) -> int:
        verdicts = [j.answer for j in said.get(case_id, ()) if isinstance(j.answer, Verdict)]
        if len({(v.semantic_mismatch, v.degradation) for v in verdicts}) > 1:
            return 0
        return 1 if any(isinstance(j.answer, NoVerdict) for j in said.get(case_id, ())) else 2

    cases = sorted((c for c in report.case_records if c.arm == "immunized"), key=lambda c: rank(c.case_id))
    shown = []
    for case in cases[:GALLERY]:
        control = next((c for c in report.case_records if c.case_id == case.control), None) if case.control else None
        shown.append(
            {
                "case": case,
                "outcome": outcome[case.case_id],
                "why": ("judges disagree", "a verdict is missing", "")[rank(case.case_id)],
                "pictures": [
                    (label, _data_url(report, digest))
                    for label, digest in (
                        ("original", case.original),
                        ("edit of the unprotected original", control.edited if control else None),
                        ("edit of the immunized image", case.edited),
                    )
                    if digest is not None
                ],
                "answers": [_words(j) for j in said.get(case.case_id, ())],
            }
        )
    return shown


def _data_url(report: Report, digest: str) -> str | None:
    png = report.picture(digest)
    return None if png is None else "data:image/png;base64," + base64.b64encode(png).decode("ascii")


def _words(judgement: Judgement) -> dict[str, Any]:
    answer = judgement.answer
    if isinstance(answer, NoVerdict):
        return {"judge": judgement.judge, "said": f"no verdict: {answer.reason}", "why": [answer.detail]}
    if isinstance(answer, NotAsked):
        return {"judge": judgement.judge, "said": f"not asked: {answer.reason}", "why": []}
    said = [
        w for w, yes in (("semantic mismatch", answer.semantic_mismatch), ("degradation", answer.degradation)) if yes
    ]
    return {
        "judge": judgement.judge,
        "said": " + ".join(said) or "not defeated",
        "why": [answer.observations, *(f"{k}: {v}" for k, v in answer.reasons.items() if v)],
    }
