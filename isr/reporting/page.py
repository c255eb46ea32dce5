"""What every page of ours shares: Jinja2 with autoescape, styles and script inlined, and a content security policy that
admits exactly these by their SHA-256. No page loads anything from anywhere else."""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import jinja2
from markupsafe import Markup

from .text import percent, percent_range, points

__all__ = ["Inlined", "environment", "inlined", "json_island", "signed"]


def signed(value: float) -> str:
    """A difference in percentage points, with a true minus sign."""
    return points(value).replace("-", "−")


@cache
def environment() -> jinja2.Environment:
    """Templates of this package; every value is escaped, an undefined one is an error."""
    made = jinja2.Environment(
        loader=jinja2.FunctionLoader(_source),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(pct=percent, points=signed)
    made.globals.update(range_of=percent_range)
    return made


def _source(name: str) -> str:
    return (files("isr.reporting") / name).read_text("utf-8")


@dataclass(frozen=True)
class Inlined:
    """Styles and script of a page, and the policy that admits them and nothing else.

    Attributes:
        style, script: texts for `<style>` and `<script>`, byte for byte what was hashed.
        policy: value of Content-Security-Policy.
    """

    style: Markup
    script: Markup
    policy: str


@cache
def inlined(*, styles: tuple[str, ...], scripts: tuple[str, ...], images: str, connect: str = "'none'") -> Inlined:
    """Our own files, joined.

    Args:
        styles, scripts: file names in this package. images: sources of pictures ("data:"). connect: of requests.
    """
    style, script = ("\n".join(_source(name) for name in names) for names in (styles, scripts))
    for text, end in ((style, "</style"), (script, "</script")):
        if end in text.lower():
            raise ValueError(f"a file of the page holds {end!r}, which would end its element")
    policy = "; ".join(
        [
            "default-src 'none'", f"script-src '{_hash(script)}'", f"style-src '{_hash(style)}'", f"img-src {images}",
            f"connect-src {connect}", "base-uri 'none'", "form-action 'none'",
        ]
    )  # fmt: skip
    return Inlined(Markup(style), Markup(script), policy)  # noqa: S704 - package files only, never a user's text


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")


def json_island(value: Any) -> Markup:
    """JSON for a `<script type="application/json">`: no character in it can end the element or start another."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for char in "<>&\u2028\u2029":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return Markup(text)  # noqa: S704 - the replacement above is the escaping for this place
