"""From a hub name or a folder to frozen models on a device; every way of failing says what to do.

Only named classes of diffusers and transformers are ever built (a checkpoint cannot bring code), and only safetensors
are read unless `allow_pickle=True`.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import json
import pickle
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from isr.errors import IsrError

from .hub import PICKLED, EditorLoadError, Location, Part, check_environment, lacking, locate

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


class EditorMemoryError(IsrError):
    """The device ran out of memory; the message lists what makes an edit smaller."""


# -------------------------------------------------------------------------------------------------------- loading


def read_index(folder: Path, *, pipelines: Sequence[str] = (), editor: str = "this editor") -> dict[str, Any]:
    """model_index.json of a folder, checked for being a checkpoint of the right family."""
    index = folder / "model_index.json"
    if not folder.is_dir():
        what = "is a file; give the folder that contains model_index.json" if folder.exists() else ""
        raise EditorLoadError(f"{str(folder)!r} {what}" if what else f"there is no folder {str(folder)!r}")
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
            if part.optional and cls is not None:
                # An editor without its third text encoder would edit, differently and without a word.
                raise EditorLoadError(
                    f"{str(folder)!r} lists a {part.role!r} part that is not there; the download is incomplete. Complete it, "
                    f"or leave the part out on purpose: without=[{part.role!r}, …]"
                )
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
    what, again = (
        f"the {part.role!r} part of {str(folder)!r}",
        "the files are incomplete or damaged: download them again",
    )
    options: dict[str, Any] = {"local_files_only": True}
    if missing := lacking(folder / part.role, part):
        raise EditorLoadError(f"{what} has no {missing}; {again}")
    if part.weights:
        options |= {
            "output_loading_info": True,
            "use_safetensors": _safetensors(folder / part.role, part, allow_pickle),
        }
        if variant:
            options["variant"] = variant
        if dtype is not None:
            options["torch_dtype" if library == "diffusers" else "dtype"] = dtype
    damage = _damage()
    known: tuple[type[Exception], ...] = (*damage, *_DAMAGE_OR_VERSION, MemoryError)
    try:
        made = kind.from_pretrained(str(folder / part.role), **options)
    except ImportError as error:
        raise EditorLoadError(f"{what} needs a package that is not installed: {str(error)[:300]}") from error
    except known as error:
        said = f"({type(error).__name__}: {str(error)[:300]})"
        if isinstance(error, MemoryError) or "allocate memory" in str(error) or "out of memory" in str(error):
            raise EditorMemoryError(
                f"there is no memory for {what} {said}; free some, or load it with dtype='bfloat16' (or 'float16')"
            ) from error
        if not isinstance(error, damage):
            again += f", or the installed {library} does not fit them: pip install -U {library}"
        raise EditorLoadError(f"{what} cannot be read {said}; {again}") from error
    if not part.weights:
        return made
    model, found = made
    absent = sorted(map(str, [*found["missing_keys"], *found["mismatched_keys"]]))
    if absent:
        # Both libraries would fill the gap with random numbers.
        more = f" and {len(absent) - 5} more" if len(absent) > 5 else ""
        raise EditorLoadError(f"{what} lacks {', '.join(absent[:5])}{more} among its weights; {again}")
    return model.requires_grad_(False).eval()


#: What both a damaged file and another version's configuration raise.
_DAMAGE_OR_VERSION = (ValueError, LookupError, RuntimeError, TypeError, AttributeError)


def _damage() -> tuple[type[Exception], ...]:
    """What the libraries raise for files that are cut off or of another kind."""
    from safetensors import SafetensorError

    return (OSError, EOFError, pickle.UnpicklingError, SafetensorError)


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
            f"{editor} ran out of device memory ({str(error).partition(chr(10))[0][:160]}). Try, in this order: batch_size=1, "
            "dtype='bfloat16' (or 'float16'), vae_slicing=True and vae_tiling=True, checkpointing=True for attacks, a smaller "
            "resolution=, offload='text', offload='model' (edits only), or another GPU"
        ) from error
