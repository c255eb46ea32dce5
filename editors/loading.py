"""From a hub name or a folder to frozen models on a device; every way of failing says what to do.

Only named classes of diffusers and transformers are ever built (a checkpoint cannot bring code), and only safetensors
are read unless `allow_pickle=True`.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isr.errors import IsrError, UsageError, missing_extra

__all__ = [
    "EditorLoadError",
    "EditorMemoryError",
    "Location",
    "Part",
    "check_environment",
    "fingerprint",
    "load_parts",
    "locate",
    "memory_hint",
]

log = logging.getLogger("isr.editors")

WEIGHTS = ("*.safetensors",)
PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")


class EditorLoadError(IsrError):
    """An editor's weights cannot be had; the message says why and what to do."""


class EditorMemoryError(IsrError):
    """The device ran out of memory; the message lists what makes an edit smaller."""


@dataclass(frozen=True)
class Part:
    """One component of a checkpoint in diffusers' folder layout.

    Attributes:
        role: sub-folder and key of model_index.json ("unet").
        library: "diffusers" or "transformers". classes: class names allowed there; empty: any scheduler of diffusers.
        weights: holds network weights (False: a tokenizer or scheduler).
        optional: may be absent (null in model_index.json, or no such folder).
    """

    role: str
    library: str
    classes: tuple[str, ...] = ()
    weights: bool = True
    optional: bool = False


@dataclass(frozen=True)
class Location:
    """Where a checkpoint lies: `folder` on this disk, and what it was called (`source`, `revision`: commit hash or "")."""

    folder: Path
    source: str
    revision: str = ""


def check_environment(feature: str = "a diffusion editor") -> None:
    """Raise where torch, diffusers or transformers is missing, or where a broken torchvision would stop every import."""
    for package in ("torch", "diffusers", "transformers", "safetensors"):
        if importlib.util.find_spec(package) is None:
            raise missing_extra(feature, "attacks", package)
    if importlib.util.find_spec("torchvision") is None:
        return  # absent is fine: image processors fall back to Pillow, and none is needed here
    try:
        importlib.import_module("torchvision")
    except (ImportError, RuntimeError, OSError, AttributeError) as error:
        raise EditorLoadError(
            "the installed torchvision does not match the installed torch, which makes every import of diffusers fail "
            f"({type(error).__name__}: {error}). Remove it (it is not needed):  pip uninstall torchvision"
        ) from error


# ------------------------------------------------------------------------------------------------------- locating


def locate(
    source: str | Path,
    parts: Sequence[Part],
    *,
    revision: str | None = None,
    variant: str | None = None,
    allow_pickle: bool = False,
    offline: bool = False,
    licence: str = "",
    cache_dir: str | Path | None = None,
) -> Location:
    """A folder as it is, or a hub name downloaded to (or found in) the hub's cache.

    Args:
        source: a folder in diffusers layout, or "owner/name".
        parts: what is needed; nothing else is downloaded.
        revision: branch, tag or commit of a hub name.
        variant: "fp16", …: weights named so.
        allow_pickle: also fetch pickled weights.
        offline: use only what is cached.
        licence: shown before a download.
        cache_dir: instead of the hub's own cache.

    Raises:
        EditorLoadError: wrong folder, unknown or gated name, no network, unknown revision.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        if revision is not None:
            raise UsageError(
                f"revision={revision!r} goes with a hub name, but {str(source)!r} is a folder; leave it out"
            )
        return Location(path, str(source))
    if (
        isinstance(source, Path)
        or path.is_absolute()
        or str(source).startswith((".", "~"))
        or str(source).count("/") != 1
    ):
        raise EditorLoadError(
            f"there is no folder {str(source)!r}; give a folder with a model_index.json, or a hub name like 'owner/name'"
        )
    return _from_hub(
        str(source),
        parts,
        revision,
        variant,
        allow_pickle=allow_pickle,
        offline=offline,
        licence=licence,
        cache_dir=cache_dir,
    )


def _patterns(parts: Sequence[Part], variant: str | None, allow_pickle: bool) -> list[str]:
    names = WEIGHTS + (PICKLED if allow_pickle else ())
    if variant:
        names = tuple(n.replace("*.", f"*.{variant}.") for n in names) + tuple(f"*.{variant}-*{n[1:]}" for n in names)
    patterns = ["model_index.json"]
    for part in parts:
        patterns += [f"{part.role}/*.json", f"{part.role}/*.txt", f"{part.role}/*.model"]
        if part.weights:
            patterns += [f"{part.role}/{name}" for name in names]
    return patterns


def _from_hub(
    name: str,
    parts: Sequence[Part],
    revision: str | None,
    variant: str | None,
    *,
    allow_pickle: bool,
    offline: bool,
    licence: str,
    cache_dir: str | Path | None,
) -> Location:
    if importlib.util.find_spec("huggingface_hub") is None:
        raise missing_extra(f"loading {name!r} from the hub", "attacks", "huggingface_hub")
    import huggingface_hub
    from huggingface_hub import errors

    wanted: dict[str, Any] = {
        "revision": revision, "cache_dir": cache_dir, "allow_patterns": _patterns(parts, variant, allow_pickle),
    }  # fmt: skip
    try:
        cached = Path(huggingface_hub.snapshot_download(name, local_files_only=True, **wanted))
        if (cached / "model_index.json").is_file() and all(_present(cached, part, allow_pickle) for part in parts):
            return Location(cached, name, cached.name)
    except (errors.LocalEntryNotFoundError, ValueError):
        pass
    if offline:
        raise EditorLoadError(
            f"{name!r} is not (completely) in the cache and offline=True; load it once without offline"
        )
    page = f"https://huggingface.co/{name}"
    log.warning("downloading %s (licence: %s, terms: %s)", name, licence or "see its page", page)
    try:
        folder = Path(huggingface_hub.snapshot_download(name, **wanted))
    except errors.GatedRepoError as error:
        raise EditorLoadError(
            f"{name!r} is gated: accept its terms at {page} with your account, then log in on this machine with:  hf auth login"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise EditorLoadError(f"{name!r} has no revision {revision!r}; see {page}/commits") from error
    except errors.RepositoryNotFoundError as error:
        raise EditorLoadError(
            f"the hub knows no {name!r} (or it is private); check the name, or log in with:  hf auth login"
        ) from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, errors.HfHubHTTPError, OSError) as error:
        raise EditorLoadError(
            f"{name!r} is not cached and could not be downloaded ({type(error).__name__}); check the network, or download "
            "the folder elsewhere and give its path"
        ) from error
    return Location(folder, name, folder.name)


def _present(folder: Path, part: Part, allow_pickle: bool) -> bool:
    sub = folder / part.role
    if part.optional:
        return True
    if not sub.is_dir():
        return False
    kinds = WEIGHTS + (PICKLED if allow_pickle else ())
    return not part.weights or any(next(sub.glob(kind), None) for kind in kinds)


# -------------------------------------------------------------------------------------------------------- loading


def read_index(folder: Path, *, pipelines: Sequence[str] = (), editor: str = "this editor") -> dict[str, Any]:
    """model_index.json of a folder, checked for being a checkpoint of the right family."""
    index = folder / "model_index.json"
    if not index.is_file():
        inside = sorted(p.name for p in folder.iterdir())[:8]
        raise EditorLoadError(
            f"{str(folder)!r} is not a diffusers checkpoint: it has no model_index.json (it holds: {', '.join(inside) or 'nothing'}). "
            "Give the folder that contains model_index.json"
        )
    try:
        table: dict[str, Any] = json.loads(index.read_text("utf-8"))
    except ValueError as error:
        raise EditorLoadError(f"{str(index)!r} is not valid JSON ({error}); download the checkpoint again") from error
    found = table.get("_class_name", "nothing")
    if pipelines and found not in pipelines:
        raise EditorLoadError(
            f"{str(folder)!r} holds a {found}, but {editor} loads {' or '.join(pipelines)}; choose the editor of its family "
            "(`isr editors` lists them)"
        )
    return table


def load_parts(
    folder: Path,
    parts: Sequence[Part],
    *,
    pipelines: Sequence[str] = (),
    editor: str = "this editor",
    dtype: Any = None,
    dtypes: Mapping[str, Any] | None = None,
    variant: str | None = None,
    allow_pickle: bool = False,
    index: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Build the parts of a local checkpoint, weights frozen and in evaluation mode, on the CPU.

    Args:
        folder: in diffusers layout. parts: what to build. pipelines: class names of model_index.json that are welcome.
        dtype: of all weights; dtypes: of single roles instead.
        variant: file variant of the weights. allow_pickle: read pickled weights where there are no safetensors.
        index: model_index.json where the caller has read it already.

    Returns:
        role → object; optional parts that are absent map to None.

    Raises:
        EditorLoadError: another family's folder, a class that is not allowed, missing or unreadable weights.
    """
    table = dict(index) if index is not None else read_index(folder, pipelines=pipelines, editor=editor)
    built: dict[str, Any] = {}
    for part in parts:
        library, cls = (table.get(part.role) or [None, None])[:2]
        if cls is None or not (folder / part.role).is_dir():
            if not part.optional:
                raise EditorLoadError(
                    f"{str(folder)!r} has no {part.role!r} part, which {editor} needs; the download is incomplete or it is another model"
                )
            built[part.role] = None
            continue
        built[part.role] = _build(
            folder, part, library, cls, (dtypes or {}).get(part.role, dtype), variant=variant, allow_pickle=allow_pickle
        )
    return built


def _build(
    folder: Path, part: Part, library: str, cls: str, dtype: Any, *, variant: str | None, allow_pickle: bool
) -> Any:
    allowed = cls in part.classes if part.classes else (library == "diffusers" and cls.endswith("Scheduler"))
    if library not in ("diffusers", "transformers") or not allowed:
        raise EditorLoadError(
            f"{str(folder)!r} asks for {library}.{cls} as its {part.role!r}, expected {part.library}."
            f"{' or '.join(part.classes) or '…Scheduler'}; code that comes with a checkpoint is never run"
        )
    kind = getattr(importlib.import_module(library), cls, None)
    if kind is None:
        raise EditorLoadError(f"the installed {library} has no {cls}; update it:  pip install -U {library}")
    options: dict[str, Any] = {"local_files_only": True}
    if part.weights:
        options |= {"use_safetensors": _safetensors(folder / part.role, part, allow_pickle)}
        if variant:
            options["variant"] = variant
        if dtype is not None:
            options["torch_dtype" if library == "diffusers" else "dtype"] = dtype
    try:
        made = kind.from_pretrained(str(folder / part.role), **options)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise EditorLoadError(
            f"the {part.role!r} part of {str(folder)!r} cannot be read ({type(error).__name__}: {str(error)[:300]}); "
            "the files are incomplete or damaged: download them again"
        ) from error
    return made.requires_grad_(False).eval() if part.weights else made


def _safetensors(sub: Path, part: Part, allow_pickle: bool) -> bool:
    if next(sub.glob("*.safetensors"), None):
        return True
    pickled = sorted(p.name for kind in PICKLED for p in sub.glob(kind))
    if not pickled:
        raise EditorLoadError(
            f"missing weights: {str(sub)!r} holds no *.safetensors for {part.role!r}; the download is incomplete"
        )
    if not allow_pickle:
        raise EditorLoadError(
            f"{str(sub)!r} holds only pickled weights ({', '.join(pickled[:3])}), which can run code when loaded; convert them to "
            "safetensors, or pass allow_pickle=True if you trust their source"
        )
    return False


# ---------------------------------------------------------------------------------------------- identity and memory

_WHOLE = 64 * 2**20
_EDGE = 2**20


def fingerprint(folder: Path, parts: Sequence[Part]) -> str:
    """Sha256 (64 hex) that tells two checkpoints apart without reading gigabytes: names, sizes and contents of all files
    up to 64 MiB, and the first and last MiB of larger ones."""
    digest = hashlib.sha256()
    files = [folder / "model_index.json"]
    files += [p for part in parts for p in sorted((folder / part.role).glob("*")) if p.is_file()]
    for path in files:
        size = path.stat().st_size
        digest.update(f"{path.relative_to(folder).as_posix()}\0{size}\0".encode())
        with path.open("rb") as stream:
            if size <= _WHOLE:
                digest.update(stream.read())
            else:
                digest.update(stream.read(_EDGE))
                stream.seek(-_EDGE, 2)
                digest.update(stream.read())
    return digest.hexdigest()


@contextmanager
def memory_hint(editor: str) -> Iterator[None]:
    """Turn the device's out-of-memory error into one that says what to change."""
    import torch

    try:
        yield
    except torch.OutOfMemoryError as error:
        raise EditorMemoryError(
            f"{editor} ran out of device memory ({str(error).splitlines()[0][:160]}). Try, in this order: batch_size=1, "
            "dtype='bfloat16' (or 'float16'), vae_slicing=True and vae_tiling=True, checkpointing=True for attacks, a smaller "
            "resolution=, offload='text', offload='model' (edits only), or another GPU"
        ) from error
