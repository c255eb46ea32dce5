"""How options are written down: JSON-able, and the same in every process where that is sure (a checkpoint is found by them)."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import inspect
import numbers
import sys
import uuid
import weakref
from collections.abc import Mapping
from types import FunctionType
from typing import Any

import numpy as np
import PIL.Image
import torch

__all__ = ["plain"]

#: By id: what nothing is known about is one thing in this process, and another in the next.
_TOKENS: dict[int, str] = {}
_KEPT: list[Any] = []


def plain(value: Any) -> Any:
    """A JSON-able record. Two things that may act differently never have the same one.

    Objects with `settings()` are recorded by class and settings, dataclasses by class and fields, pictures, arrays and tensors
    by a digest, functions that stand in a module by their name and a digest of the module. Anything else (a lambda, a closure,
    an object with state of its own) gets a token that belongs to this very object in this process.
    """
    if value is None or isinstance(value, str | bool):
        return value
    if isinstance(value, numbers.Real):
        return int(value) if isinstance(value, numbers.Integral) else float(value)
    if isinstance(value, tuple | list):
        return [plain(v) for v in value]
    if isinstance(value, Mapping):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, PIL.Image.Image):
        return f"picture:{_digest(value.size, value.convert('RGB').tobytes())}"
    if isinstance(value, torch.Tensor):
        flat = value.detach().cpu().resolve_conj().resolve_neg().reshape(-1)
        return f"tensor:{_digest(value.dtype, tuple(value.shape), flat.view(torch.uint8).numpy().tobytes())}"
    if isinstance(value, np.ndarray | np.generic) and not value.dtype.hasobject:
        return f"array:{_digest(value.dtype, value.shape, value.tobytes())}"
    if not isinstance(value, type):
        if callable(settings := getattr(value, "settings", None)):
            return {"class": _name(type(value)), "settings": plain(settings())}
        if dataclasses.is_dataclass(value):
            fields = {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
            return {"class": _name(type(value)), "fields": fields}
    if type(value) is functools.partial:
        return {"function": plain(value.func), "arguments": [plain(value.args), plain(value.keywords)]}
    return _function(value) or _token(value)


def _function(value: Any) -> str | None:
    """Name and digest of a function that its module holds under that name and that closes over nothing; else None.

    The digest is over the module's source, with helpers and constants, and over the numbers and texts that it reads from there
    as they are now. A function that reads other variables, or has no source (a notebook's), is not sure to be the same again.
    """
    if (
        not isinstance(value, FunctionType)
        or value.__closure__
        or (module := sys.modules.get(value.__module__)) is None
    ):
        return None
    held: Any = module
    for name in value.__qualname__.split("."):
        held = getattr(held, name, None)
    if held is not value:
        return None
    try:
        source = inspect.getsource(module)
    except (OSError, TypeError):
        return None
    read = {k: v for k, v in inspect.getclosurevars(value).globals.items() if not (callable(v) or inspect.ismodule(v))}
    if not all(v is None or isinstance(v, str | int | float) for v in read.values()):
        return None
    return f"{_name(value)}#{_digest(source, sorted(read.items()))}"


def _token(value: Any) -> str:
    key = id(value)
    if key not in _TOKENS:
        _TOKENS[key] = uuid.uuid4().hex
        try:
            weakref.finalize(value, _TOKENS.pop, key, None)
        except TypeError:  # cannot be watched: kept, so that no other object gets its id
            _KEPT.append(value)
    return f"{_name(type(value))}#{_TOKENS[key]}"


def _name(value: Any) -> str:
    return f"{value.__module__}.{value.__qualname__}"


def _digest(*parts: Any) -> str:
    return hashlib.sha256(b"\0".join(p if isinstance(p, bytes) else repr(p).encode() for p in parts)).hexdigest()[:16]
