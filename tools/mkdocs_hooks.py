"""MkDocs hook: a fence "```python no-run" (see tools/run_docs.py) is shown as ordinary Python."""

from __future__ import annotations

import re
from typing import Any


def on_page_markdown(markdown: str, **_: Any) -> str:
    return re.sub(r"^(\s*`{3,}python) no-run\s*$", r"\1", markdown, flags=re.MULTILINE)
