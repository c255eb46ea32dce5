"""A small judged run, a study of it, and a rater who clicks through pages without a browser."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from isr.human_study.app import create_app
from isr.human_study.making import new_study
from isr.human_study.store import Rater, Store
from isr.human_study.study import Study
from starlette.testclient import TestClient

import isr
from isr.protocols import AskJudge, Question, Reply

SECRET_NAMES = ("secretmethod", "secreteditor", "secretcategory")


class Fixed(AskJudge):
    """A judge that answers by a function of the prompt's number."""

    def __init__(self, name: str, says: Callable[[int], tuple[bool, bool]]) -> None:
        self.name = name
        self.says = says

    async def ask(self, question: Question) -> Reply:
        mismatch, degradation = self.says(int(question.prompt.split()[-1]))
        said = {"observations": "", "reason_semantic_mismatch": "", "reason_degradation": ""}
        return Reply(text=json.dumps(said | {"semantic_mismatch": mismatch, "degradation": degradation}))


def picture(seed: int, side: int = 16) -> PIL.Image.Image:
    rng = np.random.default_rng(seed)
    return PIL.Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8))


@lru_cache(maxsize=1)
def default_run() -> isr.Report:
    return make_run()


def make_run(
    n: int = 24, *, originals: bool = True, methods: int = 2, **judges: Callable[[int], tuple[bool, bool]]
) -> isr.Report:
    """n cases: method i % methods, prompt kind alternating in blocks, four edits an image."""
    columns = {
        "method": [f"secretmethod{i % methods}" for i in range(n)],
        "editor": ["secreteditor"] * n,
        "prompt_kind": ["original" if (i // methods) % 2 else "unseen" for i in range(n)],
        "category": ["secretcategory"] * n,
        "image_id": [f"image{i // 4}" for i in range(n)],
        "id": [f"row{i}" for i in range(n)],
    }
    says = judges or {"a": lambda i: (i % 2 == 0, False), "b": lambda i: (i % 3 == 0, False)}
    return isr.evaluate(
        [picture(i) for i in range(n)], [f"do number {i}" for i in range(n)],
        originals=[picture(1000 + i // 4) for i in range(n)] if originals else None, columns=columns,
        judges=[Fixed(name, f) for name, f in says.items()], cache=False, progress=False,
    )  # fmt: skip


_made: dict[str, tuple[Path, tempfile.TemporaryDirectory[str]]] = {}


def make_study(folder: Path, run: isr.Report | None = None, n: int = 8, **options: Any) -> tuple[Study, Store]:
    """A study of the default run (made once per process and copied) or of the one given, with its raters."""
    settings: dict[str, Any] = {"training": 1, "attention": 1, "repeats": 1, "raters": 2} | options
    by = ["method", "prompt_kind"]
    if run is not None:
        study = new_study(folder, run, n, by, **settings)
    else:
        name = repr((n, sorted(settings.items())))
        if name not in _made:
            keep = tempfile.TemporaryDirectory()
            new_study(Path(keep.name) / "study", default_run(), n, by, **settings)
            _made[name] = (Path(keep.name) / "study", keep)
        shutil.copytree(_made[name][0], folder)
        study = Study(folder)
    store = Store(study)
    for _ in range(study.settings.raters):
        store.add_rater()
    return study, store


def app_client(study: Study, store: Store, **options: Any) -> TestClient:
    """A browser without pages: cookies, no scripts. Its Host header is `testserver`."""
    app = create_app(study, store, **{"hosts": ["testserver"], **options})
    base = "https://testserver" if options.get("secure") else "http://testserver"
    return TestClient(app, base_url=base)


def csrf(html: str) -> str:
    return re.search(r'name="csrf" value="([0-9a-f]{64})"', html)[1]  # type: ignore[index]


def key(html: str) -> str:
    return re.search(r'name="key" value="([^"]+)"', html)[1]  # type: ignore[index]


def answer_fields(
    html: str, mismatch: str = "yes", degradation: str = "no", overall: str = "yes", **more: str
) -> dict[str, str]:
    return {
        "csrf": csrf(html), "key": key(html), "seconds": "3.5", "comment": "", "q.semantic_mismatch": mismatch,
        "q.degradation": degradation, "q.overall": overall,
    } | more  # fmt: skip


def enter(client: TestClient, store: Store, rater: Rater) -> None:
    """Link, consent, instructions."""
    page = client.post(f"/enter/{store.new_link(rater)}", data={"x": ""})
    assert page.url.path == "/consent", page.text
    page = client.post("/consent", data={"csrf": csrf(page.text), "agree": "yes"})
    assert page.url.path == "/instructions"
    page = client.post("/instructions", data={"csrf": csrf(page.text)})
    assert page.url.path == "/item/1"


def rate_all(client: TestClient, say: Callable[[int], dict[str, str]] = lambda _position: {}) -> list[str]:
    """Answer everything from the first open item on; returns the addresses visited."""
    visited = []
    page = client.get("/")
    while page.url.path.startswith("/item/"):
        visited.append(page.url.path)
        page = client.post(page.url.path, data=answer_fields(page.text, **say(int(page.url.path.split("/")[-1]))))
        if page.url.path.startswith("/feedback/"):
            page = client.get("/")
    assert page.url.path == "/done", page.text
    return visited


def organiser(client: TestClient, store: Store) -> str:
    """Enter as organiser; returns the form token."""
    page = client.post(f"/organiser/enter/{store.new_link()}", data={"x": ""})
    assert page.url.path == "/organiser", page.text
    return csrf(page.text)
