"""Sampling settings and schedulers: checked names and ranges, weights' dtypes, samplers without a past."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any

import torch

from isr.errors import UsageError

__all__ = [
    "check_scheduler",
    "checked_offload",
    "checked_options",
    "checked_settings",
    "fresh_scheduler",
    "scheduler_class",
    "torch_device",
    "torch_dtype",
    "whole_number",
]


def checked_settings(editor: str, known: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Sampling settings of a call: known names only, each of the right kind and range."""
    unknown = sorted(set(settings) - set(known))
    if unknown:
        raise UsageError(
            f"{editor} has no setting {', '.join(map(repr, unknown))}; it takes: {', '.join(sorted(known))}"
        )
    for key, value in settings.items():
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if key in ("steps", "max_sequence_length") and (
            not isinstance(value, int) or isinstance(value, bool) or value < 1
        ):
            raise UsageError(f"{key} must be a whole number of at least 1, got {value!r}")
        if key in ("guidance", "image_guidance", "true_guidance", "eta") and (
            not number or not 0 <= value < float("inf")
        ):
            raise UsageError(f"{key} must be a number of at least 0, got {value!r}")
        if key == "strength" and (not number or not 0 < value <= 1):
            raise UsageError(f"strength must be a number in (0, 1], got {value!r}")
        if key == "negative_prompt" and not isinstance(value, str | type(known[key])):
            raise UsageError(f"negative_prompt must be a text, got {type(value).__name__}")
    return dict(settings)


def checked_options(cls: type, options: Mapping[str, Any]) -> None:
    """Options of an editor's class before anything is downloaded or read: known names, and settings that it has.

    Args:
        cls: with `DEFAULTS`. options: keyword arguments for its constructor.
    """
    made_by_us = {"self", "parts", "pipeline", "origin", "options"}
    known: set[str] = set()
    for base in cls.__mro__:
        if "__init__" in vars(base) and base is not object:
            known |= set(inspect.signature(vars(base)["__init__"]).parameters) - made_by_us
    unknown = sorted(set(options) - known)
    if unknown:
        loading = set(inspect.signature(getattr(cls, "from_pretrained")).parameters) - {"source", *made_by_us}  # noqa: B009
        raise UsageError(
            f"{cls.__name__} has no option {', '.join(map(repr, unknown))}; it takes: {', '.join(sorted(known | loading))}"
        )
    checked_settings(cls.__name__, getattr(cls, "DEFAULTS"), options.get("defaults") or {})  # noqa: B009
    for name, least in (("batch_size", 1), ("resolution", 1), ("max_sequence_length", 0)):
        if name in options and (options[name] is not None or name == "batch_size"):
            whole_number(name, options[name], least)
    checked_offload(cls.__name__, getattr(cls, "OFFLOADS"), options.get("offload"))  # noqa: B009
    if options.get("scheduler") is not None:
        scheduler_class(cls, options["scheduler"])


def whole_number(name: str, value: Any, least: int, why: str = "") -> int:
    """A whole number of at least `least`, as an int; anything else raises."""
    if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
        raise UsageError(f"{name} must be a whole number of at least {least}{why}, got {value!r}")
    return int(value)


def checked_offload(editor: str, known: Sequence[str | None], offload: Any) -> None:
    """Raise for a way of offloading that an editor does not have."""
    if offload not in known:
        raise UsageError(f"offload must be {_either(known)} for {editor}, got {offload!r}")


def _either(values: Sequence[Any]) -> str:
    *first, last = map(repr, values)
    return f"{', '.join(first)} or {last}"


def torch_dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    """A torch dtype from its name."""
    names = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if dtype is None or isinstance(dtype, torch.dtype):
        return dtype
    if dtype not in names:
        raise UsageError(f"dtype must be one of {', '.join(names)}, got {dtype!r}")
    return names[dtype]


def torch_device(device: str | torch.device | None) -> torch.device:
    """A torch device from its name, one that is here; None: CUDA where there is one."""
    cuda = torch.cuda.is_available()
    try:
        made = torch.device(device if device is not None else ("cuda" if cuda else "cpu"))
    except RuntimeError as error:
        raise UsageError(
            f"device must be a device of torch such as 'cpu', 'cuda' or 'cuda:1', got {device!r}"
        ) from error
    if made.type == "cuda" and (not cuda or (made.index or 0) >= torch.cuda.device_count()):
        raise UsageError(
            f"device={str(device)!r} is not here: torch {torch.__version__} sees {torch.cuda.device_count() if cuda else 0} CUDA devices; "
            "use device='cpu', or install a torch built for your GPU"
        )
    if made.type not in ("cpu", "cuda"):
        try:
            here = torch.zeros(1, device=made).cpu().numel() == 1
        except (RuntimeError, AssertionError, ImportError):  # NotImplementedError is a RuntimeError
            here = False
        if not here:
            raise UsageError(
                f"device={str(device)!r} is not here: torch {torch.__version__} cannot use it on this machine; use device='cpu'"
            )
    return made


def scheduler_class(cls: Any, name: Any) -> Any:
    """A scheduler class of diffusers that can sample for an editor's class, by name."""
    import diffusers

    kind = getattr(diffusers, name, None) if isinstance(name, str) and name.endswith("Scheduler") else None
    if kind is None:
        raise UsageError(f"scheduler must be a scheduler class of diffusers such as {cls.SCHEDULER!r}, got {name!r}")
    check_scheduler(cls, kind)
    return kind


def check_scheduler(cls: Any, kind: Any, own: Any = None) -> None:
    """Raise where a scheduler class reads a family's outputs as something else than they are, or cannot run at all.

    Args:
        cls: an editor's class, which says so in `scheduler_problem`. kind: the scheduler's class.
        own: the checkpoint's scheduler, where it is known.
    """
    try:
        problem = cls.scheduler_problem(kind, own)
    except ImportError as error:  # a few schedulers need a package of their own
        problem = f"it needs a package that is not installed: {' '.join(str(error).split())[:200]}"
    if problem:
        raise UsageError(
            f"the scheduler {kind.__name__} cannot sample for {cls.__name__}: {problem}; choose another, e.g. "
            f"scheduler={cls.SCHEDULER!r}"
        )


def fresh_scheduler(scheduler: Any) -> Any:
    """A scheduler of the same configuration without the state of an earlier edit."""
    return type(scheduler).from_config(scheduler.config)
