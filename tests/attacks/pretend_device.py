"""A device that is not there: everything runs on the CPU, but tensors are labelled as a GPU would hold them.

Inside `PretendDevice()`, `device="cuda"` is taken, `.device` answers it, and what a GPU would refuse or be held up by is
noted: operations on tensors of two devices (`mixed`), and waits for results on the CPU (`waits`: .item(), bool(), .tolist(),
.cpu(), and blocking copies to the device). A label belongs to a tensor's storage, so views share it.
"""

from __future__ import annotations

import traceback
from collections import Counter
from pathlib import Path
from typing import Any

import torch
import torch.utils.checkpoint as checkpointing
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

ROOT = Path(__file__).resolve().parents[2]
GPU = "cuda"
aten: Any = torch.ops.aten
#: Where one CPU tensor among GPU tensors is allowed: as an index, or as the source of a copy.
_INDEXED = {
    aten.index.Tensor: 1, aten.index_put_.default: 1, aten.index_put.default: 1, aten._index_put_impl_.default: 1,
    aten.copy_.default: 2, aten._to_copy.default: 1,
}  # fmt: skip
_READS = {aten._local_scalar_dense.default, aten.equal.default, aten.nonzero.default, aten.masked_select.default}


def label(x: Tensor) -> str:
    """The device that a tensor is said to be on, or "" for what PyTorch made for itself (it follows its neighbours)."""
    return getattr(x.untyped_storage(), "pretend", "")


def relabel(x: Tensor, name: str) -> Tensor:
    x.untyped_storage().pretend = name  # type: ignore[attr-defined]
    return x


def here() -> str:
    """The innermost line of the package itself that is running."""
    for frame in reversed(traceback.extract_stack()):
        path = Path(frame.filename)
        if (
            path.is_relative_to(ROOT / "attacks")
            or path.is_relative_to(ROOT / "editors")
            or path.is_relative_to(ROOT / "isr")
        ):
            return f"{path.relative_to(ROOT)}:{frame.lineno} {frame.line}"
    return "elsewhere"


def carry(editor: Any) -> None:
    """Put a loaded editor on the pretended device (inside `PretendDevice()`)."""
    for part in editor.parts.values():
        if isinstance(part, torch.nn.Module):
            for tensor in (*part.parameters(), *part.buffers()):
                relabel(tensor, GPU)
    editor._device = torch.device(GPU)


class PretendDevice:
    """Context manager. `mixed` and `waits`: Counters of places; `clear()` forgets what was noted so far."""

    def __init__(self) -> None:
        self.mixed: Counter[str] = Counter()
        self.waits: Counter[str] = Counter()
        self._modes: tuple[Any, Any] = (_Names(self), _Kernels(self))

    def clear(self) -> None:
        self.mixed.clear()
        self.waits.clear()

    def __enter__(self) -> PretendDevice:
        # A checkpoint would compare devices, whose labels the autograd engine cannot see.
        self._checks = dict(checkpointing._allowed_determinism_checks_to_fns)
        checkpointing._allowed_determinism_checks_to_fns["default"] = self._checks["none"]
        for mode in reversed(self._modes):
            mode.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        for mode in self._modes:
            mode.__exit__(*error)
        checkpointing._allowed_determinism_checks_to_fns.update(self._checks)


def _is_gpu(value: Any) -> bool:
    return (isinstance(value, torch.device) and value.type == GPU) or (
        isinstance(value, str) and value.split(":")[0] == GPU
    )


def _known(value: Any) -> Any:
    return relabel(value, "cpu") if isinstance(value, Tensor) and not label(value) else value


class _Names(TorchFunctionMode):
    """Python's side: device names in calls, and reads that leave the device."""

    def __init__(self, owner: PretendDevice) -> None:
        super().__init__()
        self.owner = owner

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = getattr(function, "__name__", "")
        if function is torch.autograd.grad:
            return self._grad(*args, **kwargs)
        x = args[0] if args and isinstance(args[0], Tensor) else None
        if name == "__get__" and x is not None and getattr(function, "__self__", None) is torch.Tensor.device:
            return torch.device(GPU) if label(x) == GPU else torch.device("cpu")
        if x is not None and name in ("to", "cpu", "cuda"):
            return self._moved(x, name, args[1:], kwargs)
        if x is not None and name in ("tolist", "numpy") and label(x) == GPU:
            self.owner.waits[here()] += 1
        if function is torch.device:
            return function(*args, **kwargs)
        wanted = _is_gpu(kwargs.get("device")) or any(_is_gpu(a) for a in args)
        if not wanted:
            return tree_map(_known, function(*args, **kwargs))
        args = tuple(torch.device("cpu") if _is_gpu(a) else a for a in args)
        if _is_gpu(kwargs.get("device")):
            kwargs["device"] = torch.device("cpu")
        if name in ("tensor", "as_tensor"):
            self.owner.waits[here()] += 1
        return tree_map(lambda v: relabel(v, GPU) if isinstance(v, Tensor) else v, function(*args, **kwargs))

    def _grad(
        self, outputs: Any, inputs: Any, grad_outputs: Any = None, retain_graph: Any = None, create_graph: bool = False,
        allow_unused: Any = None, **_rest: Any,
    ) -> Any:  # fmt: skip
        """torch.autograd.grad with this mode on, so that what a checkpoint recomputes is seen too."""
        outputs = (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)
        inputs = (inputs,) if isinstance(inputs, Tensor) else tuple(inputs)
        with self:
            if grad_outputs is None:
                grad_outputs = tuple(torch.ones_like(o) for o in outputs)
            elif isinstance(grad_outputs, Tensor):
                grad_outputs = (grad_outputs,)
            return torch.autograd.graph._engine_run_backward(
                outputs,
                tuple(grad_outputs),
                bool(retain_graph),
                create_graph,
                inputs,
                bool(allow_unused),
                accumulate_grad=False,
            )

    def _moved(self, x: Tensor, name: str, args: Any, kwargs: dict[str, Any]) -> Tensor:
        target = GPU if name == "cuda" else "cpu" if name == "cpu" else None
        values = [*args, *kwargs.values()]
        for value in values:
            if _is_gpu(value):
                target = GPU
            elif isinstance(value, Tensor):
                target = label(value)
            elif isinstance(value, torch.device) or value == "cpu":
                target = "cpu"
        dtype = next((v for v in values if isinstance(v, torch.dtype)), None)
        dtype = dtype or next((v.dtype for v in values if isinstance(v, Tensor)), x.dtype)
        if target is None or target == (label(x) or "cpu"):
            return x if dtype == x.dtype else relabel(x.to(dtype=dtype), label(x))
        if target == "cpu" or not kwargs.get("non_blocking", False):
            self.owner.waits[here()] += 1
        with torch.utils._python_dispatch._disable_current_modes():
            moved = x.to(dtype=dtype, copy=True)
        return relabel(moved, target)


class _Kernels(TorchDispatchMode):
    """Below autograd: forward and backward kernels, and what they are given."""

    def __init__(self, owner: PretendDevice) -> None:
        super().__init__()
        self.owner = owner

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch._C.DisableTorchFunction():
            return self._run(function, args, kwargs or {})

    def _run(self, function: Any, args: Any, kwargs: Any) -> Any:
        inputs = [v for v in tree_leaves((args, kwargs)) if isinstance(v, Tensor)]
        found = {label(v) for v in inputs if v.ndim} - {""}
        first = label(inputs[0]) if inputs else "cpu"
        if len(found) > 1 and not (function in _INDEXED and first == GPU):
            self.owner.mixed[f"{function} at {here()}"] += 1
        if not found and inputs:
            found = {GPU} if any(label(v) == GPU for v in inputs) else {"cpu"}
        if function in _READS and GPU in found | {label(v) for v in inputs}:
            self.owner.waits[here()] += 1
        out = function(*args, **kwargs)
        name = GPU if GPU in found or any(label(v) == GPU for v in inputs) else "cpu" if found else ""
        for value in tree_leaves(out):
            if name and isinstance(value, Tensor) and not label(value):
                relabel(value, name)
        return out
