"""What a worker does with one batch: pictures in, pictures and rows out. Reads and writes no files of the run.

One thread per worker and one random generator per picture, so a batch gives the same bytes in whichever worker it lands
(docs/definitions.md, section 12).
"""

from __future__ import annotations

import io
import math
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING, Any

import PIL.Image

from ..errors import UsageError
from ..images import as_image
from ..protocols import Editor
from ..registry import RESOLVERS
from .experiment import canonical_json
from .files import StepRow
from .plan import Step
from .plugins import import_user_plugins

if TYPE_CHECKING:
    from ..metrics import MetricResult

__all__ = ["THREADS", "Batch", "Done", "Worker", "one_thread"]

#: Read once by numerical libraries when they are loaded.
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")


@dataclass(frozen=True)
class Batch:
    """A job with its pictures.

    Attributes:
        number: the job's place in the plan. steps: of one kind and spec.
        pictures: PNG per input of each step (a text's UTF-8).
        resource: the model that a worker has to hold; "" where none. quick: known to take less than a moment (schedule.py).
    """

    number: int
    steps: tuple[Step, ...]
    pictures: tuple[tuple[bytes, ...], ...] = field(repr=False)
    resource: str = ""
    quick: bool = False


@dataclass(frozen=True)
class Done:
    """A finished batch.

    Attributes:
        rows: one per step. pictures: PNG bytes by digest.
        seconds: what the worker took, `loading` of them for importing and loading what the batch needs.
    """

    number: int
    rows: tuple[StepRow, ...]
    pictures: Mapping[str, bytes] = field(repr=False)
    seconds: float = 0.0
    loading: float = 0.0


def one_thread() -> None:
    """One compute thread for this process, whatever is loaded already."""
    for name in THREADS:
        os.environ[name] = "1"
    torch = sys.modules.get("torch")
    if torch is not None and torch.get_num_threads() != 1:
        torch.set_num_threads(1)


class Worker:
    """Holds what is dear to load (one editor, one purifier) between batches."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._editors: dict[bytes, Editor] = {}
        self._purifiers: dict[bytes, Any] = {}
        self._networks: dict[str, Any] = {}
        self._loading = 0.0
        import_user_plugins()

    @contextmanager
    def _loads(self) -> Iterator[None]:
        """What happens once per worker and model, kept apart from the time of the pictures."""
        started = time.perf_counter()
        yield
        self._loading += time.perf_counter() - started

    def do(self, batch: Batch) -> Done:
        """One batch.

        Raises:
            whatever the plugin raises, with a note that names the step's spec.
        """
        one_thread()
        first = batch.steps[0]
        started, self._loading = time.perf_counter(), 0.0
        try:
            if first.kind == "immunize":
                made = self._immunize(batch)
            elif first.kind == "edit":
                made = self._edit(batch)
            else:
                made = self._measure(batch)
        except Exception as error:
            error.add_note(
                f"in the step {first.kind} {canonical_json(first.spec).decode('ascii')[:300]} ({first.key[:12]})"
            )
            raise
        one_thread()
        whole = time.perf_counter() - started
        seconds = (whole - self._loading) / len(batch.steps)
        at = datetime.now(UTC).isoformat(timespec="seconds")
        pictures: dict[str, bytes] = {}
        rows = []
        for step, (picture, purified, result) in zip(batch.steps, made, strict=True):
            rows.append(
                StepRow(
                    key=step.key, kind=step.kind, spec=dict(step.spec), inputs=step.inputs, prompt=step.prompt, seed=step.seed,
                    digest=_keep(picture, pictures), purified=_keep(purified, pictures), result=result, seconds=round(seconds, 4),
                    worker=self.name, at=at,
                )
            )  # fmt: skip
        return Done(batch.number, tuple(rows), pictures, time.perf_counter() - started, self._loading)

    # --------------------------------------------------------------------------------------------------- kinds

    def _immunize(self, batch: Batch) -> list[_Made]:
        spec = batch.steps[0].spec
        with self._loads():
            from ..immunization import immunize

            editor = None if spec["source"] is None else self._editor(spec["source"])
        found = immunize(
            [_open(p[0]) for p in batch.pictures],
            [s.prompt for s in batch.steps],
            attack=spec["attack"],
            editor=editor,
            seeds=[int(s.seed or 0) for s in batch.steps],
            **spec["options"],
        )
        shared = {
            "settings": dict(found.settings),
            "editor": None if found.editor is None else dict(found.editor),
            "budget": None if found.budget is None else found.budget.settings(),
        }
        return [
            (image, None, _plain({**shared, "measured": asdict(m), "working_size": list(size), "cut": cut}))
            for image, m, size, cut in zip(found.images, found.measured, found.working_sizes, found.cut, strict=True)
        ]

    def _edit(self, batch: Batch) -> list[_Made]:
        spec = batch.steps[0].spec
        images = [_open(p[0]) for p in batch.pictures]
        seeds = [int(s.seed or 0) for s in batch.steps]
        told: dict[str, Any] = {}
        purified: Sequence[PIL.Image.Image | None] = [None] * len(images)
        if spec["purifier"] is not None:
            with self._loads():
                purifier = self._purifier(spec["purifier"])
            images = _checked(
                purifier.purify(images, seeds=seeds), images, f"the purifier {purifier.name!r}", same_size=True
            )
            purified = images
            told["purifier"] = dict(purifier.settings())
        with self._loads():
            editor = self._editor(spec["editor"])
        prompts = [str(s.prompt) for s in batch.steps]
        edits = _checked(
            editor.edit(images, prompts, seeds=seeds, **spec["settings"]),
            images,
            f"the editor {editor.name!r}",
            same_size=False,
        )
        told["editor"] = {"name": editor.name, **editor.settings(**spec["settings"])}
        told["seedable"] = editor.traits.seedable
        return [(edit, clean, _plain(told)) for edit, clean in zip(edits, purified, strict=True)]

    def _measure(self, batch: Batch) -> list[_Made]:
        with self._loads():
            from ..metrics import compute

        names = list(batch.steps[0].spec["metrics"])
        if batch.steps[0].spec.get("against") == "prompt":
            return self._measure_prompts(batch)
        if batch.steps[0].spec.get("set"):
            return [self._measure_set(names, pictures) for pictures in batch.pictures]
        out: list[dict[str, Any]] = [{} for _ in batch.steps]
        pairs = [(_open(p[0]), _open(p[1])) for p in batch.pictures]
        # Pictures of different sizes have no pairwise metric: said per pair, never resized silently.
        good = [i for i, (a, b) in enumerate(pairs) if a.size == b.size]
        for i in set(range(len(pairs))) - set(good):
            a, b = pairs[i]
            out[i] = {n: {"value": None, "reason": f"sizes differ: {a.size} and {b.size}"} for n in names}
        if good:
            results = compute(
                names,
                [pairs[i][0] for i in good],
                [pairs[i][1] for i in good],
                prompts=[str(batch.steps[i].prompt) for i in good],
                loaded=self._networks,
            )
            for name, found in results.items():
                for place, i in enumerate(good):
                    out[i][name] = _measured(found, place)
        return [(None, None, {"metrics": one}) for one in out]

    def _measure_prompts(self, batch: Batch) -> list[_Made]:
        from .similarity import clip_text

        found = clip_text(
            [p[0].decode("utf-8") for p in batch.pictures], [str(s.prompt) for s in batch.steps], loaded=self._networks
        )
        missing = {"reason": found["reason"], "lacking": found["lacking"]}
        return [
            (None, None, {"metrics": {"clip-text": {
                "value": v, **(missing if v is None else {}), "convention": found["convention"], "higher_is_closer": True,
            }}})
            for v in found["values"]
        ]  # fmt: skip

    def _measure_set(self, names: list[str], pictures: Sequence[bytes]) -> _Made:
        from ..metrics import compute

        half = len(pictures) // 2
        a, b = [_open(p) for p in pictures[:half]], [_open(p) for p in pictures[half:]]
        results = compute(names, a, b, loaded=self._networks)
        return None, None, {"metrics": {name: _measured(found, 0) for name, found in results.items()}}

    # ------------------------------------------------------------------------------------------------- plugins

    def _editor(self, record: Mapping[str, Any]) -> Editor:
        key = canonical_json(record)
        if key not in self._editors:
            self._editors.clear()  # one at a time: a pipeline fills a GPU
            self._editors[key] = _load_editor(record)
        return self._editors[key]

    def _purifier(self, record: Mapping[str, Any]) -> Any:
        key = canonical_json(record)
        if key not in self._purifiers:
            self._purifiers.clear()  # one at a time; with its editor, where that is not the one that edits
            options = dict(record["options"])
            if record["editor"] is not None:
                held = self._editors.get(canonical_json(record["editor"]))
                options["editor"] = _load_editor(record["editor"]) if held is None else held
            self._purifiers[key] = RESOLVERS.load("purifiers")(record["name"], **options)
        return self._purifiers[key]


def _load_editor(record: Mapping[str, Any]) -> Editor:
    made: Editor = RESOLVERS.load("editors")(record["name"], **record["options"])
    return made


_Made = tuple[PIL.Image.Image | None, PIL.Image.Image | None, dict[str, Any]]


def _open(png: bytes) -> PIL.Image.Image:
    image = PIL.Image.open(io.BytesIO(png))
    image.load()
    return image


def _keep(image: PIL.Image.Image | None, pictures: dict[str, bytes]) -> str | None:
    """The digest of a picture; its PNG goes into `pictures`."""
    if image is None:
        return None
    ref = as_image(image, name="result")
    pictures.setdefault(ref.digest, ref.png())
    return ref.digest


def _measured(found: MetricResult, place: int) -> dict[str, Any]:
    """One value of a metric as a row keeps it; where there is none, why, and whether it can be there another time."""
    value = found.to_json()["values"][place]
    told: dict[str, Any] = {"value": value, "convention": found.convention, "higher_is_closer": found.higher_is_better}
    if value is None:
        missing: Any = found.values[place]
        told |= {"reason": missing.reason, "lacking": missing.lacking}
    return told


def _checked(
    returned: Sequence[Any], given: Sequence[PIL.Image.Image], what: str, *, same_size: bool
) -> list[PIL.Image.Image]:
    """The framework verifies what a plugin returns: count, mode, size."""
    if len(returned) != len(given):
        raise UsageError(f"{what} returned {len(returned)} pictures for {len(given)}; it must return one per picture")
    for i, (image, before) in enumerate(zip(returned, given, strict=True)):
        if not isinstance(image, PIL.Image.Image) or image.mode != "RGB":
            came = f"mode {image.mode}" if isinstance(image, PIL.Image.Image) else type(image).__name__
            raise UsageError(f"{what} must return 8-bit RGB PIL images; picture {i} is {came}")
        if same_size and image.size != before.size:
            raise UsageError(f"{what} changed the size of picture {i}: {before.size} → {image.size}")
    return list(returned)


def _nameless(source: Any) -> Any:
    """Where weights came from, without this machine's folders: a run moves to others. The fingerprint says which they are."""
    local = isinstance(source, str) and (PurePosixPath(source).is_absolute() or PureWindowsPath(source).is_absolute())
    return PureWindowsPath(source).name if local else _plain(source)


def _plain(value: Any) -> Any:
    """JSON-able: infinite and undefined numbers as words, tuples as lists."""
    if isinstance(value, Mapping):
        return {str(k): _nameless(v) if k == "source" else _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, str | int | float | bool):
        return value
    return str(value)
