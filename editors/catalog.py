"""Editors by name: what can be said of them before anything is imported, and how each is made.

`isr editors` prints this table. Names reach the registry as entry points (`ip2p = "isr.editors.catalog:ip2p"`).
"""

from __future__ import annotations

import importlib
import importlib.util
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from isr.errors import MissingExtraError, UsageError
from isr.protocols import Editor, Traits

__all__ = ["Entry", "cached_bytes", "entries", "entry", "factory", "make"]

MINIWORLD = "miniworld:"
MINIWORLD_PACKAGE = "isr_miniworld"


@dataclass(frozen=True)
class Entry:
    """One editor of the catalogue; the fields are those of catalog.toml.

    Attributes:
        name: as written in `load_editor(name)`. title: what it is.
        family: as in `Traits`. target: "module:Class" inside isr.editors.
        parameters: of the denoiser, in billions, or None. native_size: the side it was trained at, in pixels.
    """

    name: str
    title: str
    family: str
    target: str
    source: str
    licence: str
    gated: bool = False
    white_box: bool = True
    parameters: float | None = None
    native_size: int | None = None
    gpu_dtype: str = "float32"
    load: Mapping[str, Any] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_mini(self) -> bool:
        return self.source.startswith(MINIWORLD)


@cache
def entries() -> Mapping[str, Entry]:
    """The catalogue, by name; reads one small file."""
    table = tomllib.loads(files(__package__).joinpath("catalog.toml").read_text("utf-8"))
    return {name: Entry(name=name, target=row.pop("class"), **row) for name, row in table.items()}


def entry(name: str) -> Entry:
    """One row; an unknown name lists the known ones."""
    table = entries()
    if name not in table:
        raise UsageError(f"the catalogue has no editor {name!r}; it has: {', '.join(sorted(table))}")
    return table[name]


def miniworld_folder(name: str) -> Path:
    """Where a checkpoint of the MiniWorld distribution lies."""
    if importlib.util.find_spec(MINIWORLD_PACKAGE) is None:
        raise MissingExtraError(
            f"the editor {name!r} needs MiniWorld's weights, which are a distribution of their own. Install them with:  "
            "pip install 'immunization-success-rate[mini]'  (in a source checkout:  pip install ./packages/miniworld)"
        )
    try:
        return Path(importlib.import_module(MINIWORLD_PACKAGE).path(name))
    except LookupError as error:
        raise UsageError(
            f"the installed MiniWorld weights do not hold {name!r} ({error}); update that distribution"
        ) from error


def make(name: str, source: str | None = None, **options: Any) -> Editor:
    """Build a catalogued editor.

    Args:
        name: in the catalogue.
        source: another hub name or folder of the same family (a fine-tune, a local copy). The catalogue knows neither its
            licence nor whether it is gated; say `licence="…"` and `gated=True` where you do.
        options: of the family's class and of loading (device, dtype, batch_size, resolution, revision, offline, …), and
            sampling settings as `defaults={"steps": …}`.
    """
    row = entry(name)
    where = source
    if where is None:
        where = str(miniworld_folder(row.source.removeprefix(MINIWORLD))) if row.is_mini else row.source
    from .loading import check_environment

    check_environment(f"the editor {name!r}")
    from .options import torch_device

    module, _, attribute = row.target.partition(":")
    cls = getattr(importlib.import_module(f".{module}", __package__), attribute)
    on_gpu = torch_device(options.get("device")).type != "cpu"
    merged = {**row.load, "dtype": row.gpu_dtype if on_gpu else "float32", **options}
    if merged["dtype"] is None:
        merged["dtype"] = row.gpu_dtype if on_gpu else "float32"
    merged["defaults"] = {**row.defaults, **(options.get("defaults") or {})}
    own = source is None or source == row.source
    licence = merged.pop("licence", row.licence if own else "")
    gated = merged.pop("gated", row.gated if own else False)
    made = cls.from_pretrained(where, name=name, licence=licence, gated=gated, **merged)
    made.set_traits(
        replace(
            made.traits,
            native_size=row.native_size,
            licence=licence or "unknown",
            gated=gated,
            source=source or row.source,
        )
    )
    editor: Editor = made
    return editor


def factory(name: str) -> Callable[..., Editor]:
    """The registry's factory of a catalogued editor."""

    def create(source: str | None = None, **options: Any) -> Editor:
        return make(name, source, **options)

    create.__name__ = create.__qualname__ = name.replace("-", "_")
    create.__doc__ = f"The editor {name!r} of the catalogue; see `isr.editors.catalog.make`."
    return create


def cached_bytes(row: Entry) -> int | None:
    """Bytes of an editor's files on this machine; None where nothing is (nothing is downloaded to find out)."""
    if row.is_mini:
        try:
            folder = miniworld_folder(row.source.removeprefix(MINIWORLD))
        except (MissingExtraError, UsageError):
            return None
    else:
        if importlib.util.find_spec("huggingface_hub") is None:
            return None
        from huggingface_hub.constants import HF_HUB_CACHE

        folder = Path(HF_HUB_CACHE) / f"models--{row.source.replace('/', '--')}" / "blobs"
    if not folder.is_dir():
        return None
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file() and p.suffix != ".incomplete") or None


def traits_of(row: Entry) -> Traits:
    """What the catalogue knows of an editor before it is loaded (steps and guidance: the family's, see its class)."""
    return Traits(
        white_box=row.white_box,
        native_size=row.native_size,
        family=row.family,
        licence=row.licence,
        source=row.source,
        gated=row.gated,
        steps=row.defaults.get("steps"),
        guidance=row.defaults.get("guidance"),
        image_guidance=row.defaults.get("image_guidance"),
        strength=row.defaults.get("strength"),
    )


ip2p = factory("ip2p")
hq_edit = factory("hq-edit")
sdxl_ip2p = factory("sdxl-ip2p")
sd15_img2img = factory("sd15-img2img")
sdxl_img2img = factory("sdxl-img2img")
sd3 = factory("sd3")
sd35 = factory("sd35")
ultraedit_sd3 = factory("ultraedit-sd3")
kontext = factory("kontext")
qwen_edit = factory("qwen-edit")
mini_ip2p = factory("mini-ip2p")
mini_hq = factory("mini-hq")
mini_sd3 = factory("mini-sd3")
mini_sd3_instruct = factory("mini-sd3-instruct")
