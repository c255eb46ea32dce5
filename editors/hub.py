"""Where a checkpoint comes from: a folder as it is, or a hub name, with licence and terms shown before a download."""

from __future__ import annotations

import fnmatch
import importlib
import importlib.util
import json
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isr.errors import IsrError, UsageError, missing_extra

__all__ = ["PICKLED", "WEIGHTS", "EditorLoadError", "Location", "Part", "check_environment", "lacking", "locate"]

log = logging.getLogger("isr.editors")

WEIGHTS = ("*.safetensors",)
#: further copies of the same weights, left on the hub unless asked for as variant=
COPIES = ("fp16", "bf16", "non_ema", "ema_only")
PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")
#: files that a tokenizer's words come from; one of these sets must be there
VOCABULARIES = (("tokenizer.json",), ("vocab.json", "merges.txt"), ("spiece.model",))


class EditorLoadError(IsrError):
    """An editor's weights cannot be had; the message says why and what to do."""


@dataclass(frozen=True)
class Part:
    """One component of a checkpoint in diffusers' folder layout.

    Attributes:
        role: sub-folder and key of model_index.json ("unet").
        library: "diffusers" or "transformers". classes: class names allowed there; empty: any scheduler of diffusers.
        weights: holds network weights (False: a tokenizer or scheduler).
        optional: may be absent: null in model_index.json, or left out on request (`without`).
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


def locate(
    source: str | Path,
    parts: Sequence[Part],
    *,
    revision: str | None = None,
    variant: str | None = None,
    allow_pickle: bool = False,
    offline: bool = False,
    licence: str = "",
    gated: bool = False,
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
        licence, gated: shown before a download (gated: the hub asks for accepted terms).
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
        gated=gated,
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
    gated: bool,
    cache_dir: str | Path | None,
) -> Location:
    if importlib.util.find_spec("huggingface_hub") is None:
        raise missing_extra(f"loading {name!r} from the hub", "attacks", "huggingface_hub")
    import huggingface_hub
    from huggingface_hub import errors

    wanted: dict[str, Any] = {
        "revision": revision, "cache_dir": cache_dir, "allow_patterns": _patterns(parts, variant, allow_pickle),
        "ignore_patterns": [pattern for copy in COPIES if copy != variant for pattern in _named(copy)],
    }  # fmt: skip
    try:
        cached = Path(huggingface_hub.snapshot_download(name, local_files_only=True, **wanted))
        if _complete(cached, parts, variant, allow_pickle):
            return Location(cached, name, cached.name)
    except errors.HFValidationError as error:
        raise EditorLoadError(f"{name!r} is not a hub name ({error}); write 'owner/name'") from error
    except (errors.LocalEntryNotFoundError, ValueError):
        pass  # not cached, or not completely
    if offline:
        raise EditorLoadError(
            f"{name!r} is not (completely) in the cache and offline=True; load it once without offline"
        )
    page = f"https://huggingface.co/{name}"
    gate = "; gated: its terms must be accepted on that page first" if gated else ""
    log.warning("downloading %s (licence: %s, terms: %s%s)", name, licence or "see its page", page, gate)
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
            f"{name!r} is not cached and could not be downloaded ({type(error).__name__}: {_without_secrets(error)}); check "
            "the network, or download the folder elsewhere and give its path"
        ) from error
    return Location(folder, name, folder.name)


def _without_secrets(error: Exception) -> str:
    """What an error says, cut short, without tokens and without names in addresses."""
    said = re.sub(r"//[^/\s@]+@", "//…@", " ".join(str(error).split()))
    return re.sub(r"(hf_|Bearer )[\w.-]+", r"\1…", said)[:300]


def _complete(folder: Path, parts: Sequence[Part], variant: str | None, allow_pickle: bool) -> bool:
    """All of the parts are there: an earlier load may have left some out, and a download may have been cut off."""
    try:
        index = json.loads((folder / "model_index.json").read_text("utf-8"))
    except (OSError, ValueError):
        return False
    wanted = (p for p in parts if not p.optional or (index.get(p.role) or [None, None])[1] is not None)
    return all(_present(folder / part.role, part, variant, allow_pickle) for part in wanted)


def _named(copy: str) -> list[str]:
    """Patterns of the weights of a variant, whole and in shards."""
    return [f"*.{copy}{mark}*" for mark in ".-"]


def lacking(sub: Path, part: Part) -> str:
    """What a part's folder lacks besides weights: without it a library would stop, or make an empty tokenizer. "" if nothing."""
    if part.role.startswith("tokenizer"):
        if any(all((sub / name).is_file() for name in names) for names in VOCABULARIES):
            return ""
        return f"vocabulary ({'; or '.join(' and '.join(names) for names in VOCABULARIES)})"
    if part.role == "scheduler" or part.weights:
        name = "config.json" if part.weights else "scheduler_config.json"
        return "" if (sub / name).is_file() else name
    return "" if sub.is_dir() and next(sub.iterdir(), None) is not None else "file"


def _present(sub: Path, part: Part, variant: str | None, allow_pickle: bool) -> bool:
    if lacking(sub, part):
        return False
    if not part.weights:
        return True
    kinds = WEIGHTS + (PICKLED if allow_pickle else ())
    names = [path.name for kind in kinds for path in sub.glob(kind)]
    marked = {n for copy in ([variant] if variant else COPIES) for p in _named(copy) for n in fnmatch.filter(names, p)}
    if not (marked if variant else set(names) - marked):
        return False
    for listing in sub.glob(f"*.safetensors.index.{variant}.json" if variant else "*.safetensors.index.json"):
        try:
            shards = set(json.loads(listing.read_text("utf-8"))["weight_map"].values())
        except (OSError, ValueError, KeyError):
            return False
        if any(not (sub / shard).is_file() for shard in shards):
            return False
    return True
