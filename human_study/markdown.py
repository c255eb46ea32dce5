"""Consent and instructions: Markdown written by the lab, shown without raw HTML, scripts or pictures from elsewhere."""

from __future__ import annotations

from isr.errors import missing_extra

__all__ = ["render"]


def render(text: str) -> str:
    """HTML of CommonMark text. Raw HTML comes out as text, links only lead to http, https, mailto or this site, and
    pictures are not shown (they would call another server)."""
    try:
        from markdown_it import MarkdownIt
    except ImportError as error:
        raise missing_extra("The study server", "study", "markdown-it-py") from error
    reader = MarkdownIt("commonmark", {"html": False, "linkify": False}).disable("image").enable("table")
    return str(reader.render(text))
