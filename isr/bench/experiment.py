"""What an experiment file may say. TOML; every error names its key; plugins by registered name only, never `module:object`."""

from __future__ import annotations

import hashlib
import json
import re
import tomllib
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    StringConstraints,
    ValidationError,
    ValidationInfo,
    model_validator,
)

from ..errors import IsrError, UsageError
from ..registry import ATTACKS, CONSENSUS, EDITORS, PURIFIERS, Registry
from .similarity import Similarity

__all__ = [
    "METRIC_NAMES", "SET_METRICS", "SHIPPED", "AttackEntry", "DataEntry", "EditorEntry", "Experiment", "JudgingEntry", "PairEntry", "PurifierEntry",
    "canonical_json", "load_experiment", "shipped_text",
]  # fmt: skip

#: Experiment files in the package.
SHIPPED = ("quick", "miniworld", "paper")
#: Image metrics (`isr.metrics.metric_names`; here without torch), and those that have one value for a whole set.
METRIC_NAMES = ("psnr", "ssim", "vifp", "fsim", "fsimc", "lpips", "lpips-vgg", "clip", "fid", "precision")
SET_METRICS = frozenset({"fid", "precision"})
#: Options that decide how a run is made, or that would weaken a safety rule: never from a file.
_REFUSED = frozenset({"allow_pickle", "trust_remote_code", "checkpoint", "checkpoint_every", "progress"})


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


def _registered(registry: Registry, name: str) -> str:
    """A name of the registry; "module:object", paths and unknown names raise."""
    if ":" in name or "/" in name or "\\" in name:
        raise ValueError(
            f"{name!r} is not the name of an installed {registry.noun}; experiment files never name code or paths"
        )
    try:
        return registry.resolve(name)
    except IsrError as error:
        raise ValueError(str(error)) from error


def _name_of(registry: Registry) -> BeforeValidator:
    """A registered name; of a stored run any text, since its plugins need not be installed to read its numbers."""

    def check(value: Any, info: ValidationInfo) -> Any:
        stored = bool(info.context and info.context.get("stored"))
        return value if stored or not isinstance(value, str) else _registered(registry, value)

    return BeforeValidator(check)


def _options(options: Any) -> Any:
    if not isinstance(options, Mapping):
        return options  # pydantic says what it should be
    refused = sorted(_REFUSED & set(options))
    if refused:
        raise ValueError(f"{refused[0]!r} cannot be set from an experiment file")
    return options


Options = Annotated[dict[str, Any], BeforeValidator(_options)]
Label = Annotated[str, StringConstraints(strip_whitespace=True, max_length=80, pattern=r"^[^\x00-\x1f]*$")]


def _metric(name: Any, info: ValidationInfo) -> Any:
    stored = bool(info.context and info.context.get("stored"))
    if isinstance(name, str) and not stored and name not in METRIC_NAMES:
        raise ValueError(f"there is no metric {name!r}; there are {', '.join(METRIC_NAMES)}")
    return name


MetricName = Annotated[str, BeforeValidator(_metric)]


class DataEntry(_Part):
    """Which pictures.

    Attributes:
        source: "miniworld" (procedural, 64×64) or "manifest" (CSV, TSV or JSONL with the columns image, prompt, unseen_1, …
            [image_id, category]; JSONL may hold `unseen` as a list).
        path: of the manifest, relative to the experiment file. limit: take the first so many.
        n, split, seed: of MiniWorld.
    """

    source: Literal["miniworld", "manifest"]
    path: str | None = None
    limit: int | None = Field(default=None, ge=1)
    n: int = Field(default=12, ge=1)
    split: Literal["train", "design", "validation", "test"] = "design"
    seed: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _whole(self) -> DataEntry:
        if self.source == "manifest" and not self.path:
            raise ValueError("source = 'manifest' needs path = 'images.csv'")
        if self.source == "miniworld" and (self.path or self.limit):
            raise ValueError("path and limit belong to source = 'manifest'; MiniWorld takes n")
        return self


class PromptsEntry(_Part):
    """kinds: the original prompt, which immunizers may know, and unseen ones. unseen: how many of these per image."""

    kinds: tuple[Literal["original", "unseen"], ...] = Field(default=("original", "unseen"), min_length=1)
    unseen: int = Field(default=5, ge=1)


class EditorEntry(_Part):
    """name: registered. label: as tables print it. options: of loading (device, source, …). settings: of an edit (steps, …)."""

    name: Annotated[str, _name_of(EDITORS)]
    label: Label = ""
    options: Options = {}
    settings: dict[str, Any] = {}

    @property
    def title(self) -> str:
        return self.label or self.name


class AttackEntry(_Part):
    """name: registered, or the paper's abbreviation. label: as tables print it. options: settings of the attack. table: "main"
    (Tables II–V), or any other word for a table of its own (VI "components", VII "lambda"). also_in: further tables that
    show it. sources, targets: only on and against these editors."""

    name: Annotated[str, _name_of(ATTACKS)]
    label: Label = ""
    options: Options = {}
    table: Label = "main"
    also_in: tuple[Label, ...] = ()
    sources: tuple[str, ...] | None = None
    targets: tuple[str, ...] | None = None

    def takes(self, pair: PairEntry) -> bool:
        """Whether it is made on and tried against these editors."""
        on, against = self.sources, self.targets
        return (on is None or pair.source in on) and (against is None or pair.target in against)

    @property
    def title(self) -> str:
        return self.label or self.name


class PairEntry(_Part):
    """Perturbations made on `source`, edits by `target` (labels of editors). Equal: white box."""

    source: str
    target: str


def _purifier(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


def _purifier_names(text: Any, info: ValidationInfo) -> Any:
    if isinstance(text, str) and not (info.context and info.context.get("stored")):
        for link in re.split(r"\+(?=[A-Za-z])", text):  # a plus inside a number ("1e+2") starts no link
            _registered(PURIFIERS, link.partition(":")[0].strip())
    return text


class PurifierEntry(_Part):
    """name: "jpeg:75", a chain "jpeg:75+resize:0.5", or "vae". editor: label of the editor whose networks it uses."""

    name: Annotated[str, BeforeValidator(_purifier_names)]
    editor: str | None = None
    options: Options = {}

    @property
    def title(self) -> str:
        return self.name if self.editor is None else f"{self.name} ({self.editor})"


class JudgingEntry(_Part):
    """Who judges, as for `isr.evaluate`. judges: strings; empty: pictures and metrics only."""

    judges: tuple[str, ...] = ()
    consensus: Annotated[str, _name_of(CONSENSUS)] = "strict"
    votes: int = Field(default=1, ge=1)
    lazy: bool = False
    max_side: int | None = Field(default=None, ge=1)
    max_cost: float | None = Field(default=None, ge=0)
    rubric: str | None = None

    @model_validator(mode="after")
    def _odd(self) -> JudgingEntry:
        if self.votes % 2 == 0:
            raise ValueError(f"votes must be odd, got {self.votes}")
        return self


class SeedsEntry(_Part):
    """base: all seeds follow from it and the image's id. redraws: edits per (image, prompt), the k of ISR@k."""

    base: int = 0
    redraws: int = Field(default=1, ge=1)


class BatchEntry(_Part):
    """How many pictures go through a model at once. Part of the plan: results do not depend on the number of workers."""

    immunize: int = Field(default=1, ge=1)
    edit: int = Field(default=4, ge=1)
    measure: int = Field(default=32, ge=1)


class NoiseEntry(_Part):
    """The noise arm: random noise of the same budget instead of an immunizer. options: of the attack "noise"."""

    options: Options = {}


class TablesEntry(_Part):
    """reported: further published tables to print beside ours ("II" … "VII"); those of editors with the same name always are."""

    reported: tuple[Literal["II", "III", "IV", "V", "VI", "VII"], ...] = ()


class Experiment(_Part):
    """One experiment.

    Attributes:
        pairs: white-box and transfer pairs; default: every editor against itself.
        purifiers: applied before the edit; no purifier is always among them.
        metrics: of `isr.metrics`, between the edit of the immunized image and the control edit. protection: between the
            immunized image and the original.
        similarity: of an unseen prompt to the optimised one: "words" (words in common) and, where CLIP's weights are in the
            user's cache, "clip-text".
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    about: str = ""
    data: DataEntry
    prompts: PromptsEntry = PromptsEntry()
    editors: tuple[EditorEntry, ...] = Field(min_length=1)
    attacks: tuple[AttackEntry, ...] = Field(min_length=1)
    pairs: tuple[PairEntry, ...] = ()
    purifiers: tuple[Annotated[PurifierEntry, BeforeValidator(_purifier)], ...] = ()
    noise: NoiseEntry | None = None
    seeds: SeedsEntry = SeedsEntry()
    metrics: tuple[MetricName, ...] = ()
    protection: tuple[MetricName, ...] = ()
    similarity: tuple[Similarity, ...] = ("words",)
    judging: JudgingEntry = JudgingEntry()
    batch: BatchEntry = BatchEntry()
    tables: TablesEntry = TablesEntry()
    _folder: Path = PrivateAttr(default=Path())

    @model_validator(mode="after")
    def _fits(self) -> Experiment:
        editors = [e.title for e in self.editors]
        for what, names in {
            "editors": editors,
            "attacks": [a.title for a in self.attacks],
            "purifiers": [p.title for p in self.purifiers],
        }.items():
            twice = sorted({n for n in names if names.count(n) > 1})
            if twice:
                raise ValueError(f"{what}: {twice[0]!r} stands twice; give each a label of its own")
        if "none" in [p.title for p in self.purifiers]:
            raise ValueError("purifiers: 'none' is always there; leave it out")
        whole = sorted(SET_METRICS & set(self.protection))
        if whole:
            raise ValueError(f"protection: {whole[0]!r} is a metric of whole sets of edits; put it under metrics")
        if self.noise is not None and "noise" in [a.title for a in self.attacks]:
            raise ValueError("attacks: 'noise' is the noise arm already ([noise]); label the attack otherwise")

        def known(where: str, name: str) -> None:
            if name not in editors:
                raise ValueError(f"{where}: no editor is labelled {name!r}; there are {', '.join(editors)}")

        for i, pair in enumerate(self.pairs):
            known(f"pairs.{i}.source", pair.source)
            known(f"pairs.{i}.target", pair.target)
        for i, attack in enumerate(self.attacks):
            for source in attack.sources or ():
                known(f"attacks.{i}.sources", source)
            for target in attack.targets or ():
                known(f"attacks.{i}.targets", target)
        for i, purifier in enumerate(self.purifiers):
            if purifier.editor is not None:
                known(f"purifiers.{i}.editor", purifier.editor)
        return self

    # ------------------------------------------------------------------------------------------------ reading

    @property
    def folder(self) -> Path:
        """Where relative paths start."""
        return self._folder

    @property
    def matrix(self) -> tuple[PairEntry, ...]:
        """The pairs, with the default filled in."""
        return self.pairs or tuple(PairEntry(source=e.title, target=e.title) for e in self.editors)

    def editor(self, title: str) -> EditorEntry:
        return next(e for e in self.editors if e.title == title)

    def record(self) -> dict[str, Any]:
        """JSON-able, as kept in the run."""
        return self.model_dump(mode="json")

    @property
    def hash(self) -> str:
        """Of everything the file says (64 hex)."""
        return hashlib.sha256(canonical_json(self.record())).hexdigest()

    @classmethod
    def of(
        cls, table: Mapping[str, Any], *, source: str, folder: Path | None = None, stored: bool = False
    ) -> Experiment:
        """From a parsed file. source: as errors call it. folder: where its relative paths start (default: here).
        stored: of a finished run, whose plugins need not be installed."""
        try:
            made = cls.model_validate(dict(table), context={"stored": stored})
        except ValidationError as error:
            raise UsageError(f"experiment {source}:\n" + "\n".join(_told(e) for e in error.errors())) from error
        made._folder = Path() if folder is None else folder
        return made


def _told(error: Mapping[str, Any]) -> str:
    where = ".".join(map(str, error["loc"])) or "file"
    message = str(error["msg"]).removeprefix("Value error, ")
    if error["type"] == "extra_forbidden":
        message = "no such key"
    elif error["type"] == "missing":
        message = "missing"
    return f"  {where}: {message}"


def canonical_json(value: Any) -> bytes:
    """One spelling per value: what is hashed."""
    return json.dumps(value, sort_keys=True, ensure_ascii=True, separators=(",", ":"), allow_nan=False).encode("ascii")


def shipped_text(name: str) -> str:
    """The text of an experiment file in the package."""
    return (files("isr.bench") / "experiments" / f"{name}.toml").read_text("utf-8")


def load_experiment(where: str | Path) -> Experiment:
    """An experiment from a TOML file, or one of the package by name ("quick", "miniworld", "paper").

    Raises:
        UsageError: not readable, not TOML, or a wrong key; all wrong keys are named.
    """
    path = Path(where)
    if str(where).removesuffix(".toml") in SHIPPED and not path.exists():
        text, folder = shipped_text(str(where).removesuffix(".toml")), Path()
    else:
        try:
            text = path.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(
                f"experiment: cannot read {str(where)!r}: {error}. Shipped with the package: {', '.join(SHIPPED)}"
            ) from error
        folder = path.resolve().parent
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"experiment {str(where)!r}: not valid TOML: {error}") from error
    return Experiment.of(table, source=repr(str(where)), folder=folder)
