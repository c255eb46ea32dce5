"""State of an unfinished batch on disk: safetensors (no pickle), written beside and renamed, so a kill leaves the old one."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from isr.errors import IntegrityError, missing_extra

__all__ = ["Checkpoint", "fingerprint"]


def fingerprint(parts: Mapping[str, Any], pictures: Tensor) -> str:
    """32 hex digits over the settings and the pixels; another picture, seed or setting never resumes this state."""
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode())
    digest.update(str(tuple(pictures.shape)).encode())
    digest.update(pictures.detach().to("cpu", torch.float32).contiguous().numpy().tobytes())
    return digest.hexdigest()[:32]


class Checkpoint:
    """One file for one batch.

    Args:
        folder: made if missing. name: the batch's fingerprint.
    """

    def __init__(self, folder: str | Path, name: str) -> None:
        self.path = Path(folder) / f"{name}.safetensors"

    def save(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Tensors, and JSON-able state."""
        save_file = _safetensors().save_file
        self.path.parent.mkdir(parents=True, exist_ok=True)
        beside = self.path.with_suffix(f".{os.getpid()}.part")
        cpu = {k: v.detach().to("cpu").contiguous() for k, v in tensors.items()}
        save_file(cpu, str(beside), metadata={"state": json.dumps(state)})
        beside.replace(self.path)

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """What was saved, or None. A damaged file raises."""
        if not self.path.is_file():
            return None
        library = _safetensors()
        try:
            with library.safe_open(str(self.path), framework="pt") as file:
                state = json.loads((file.metadata() or {})["state"])
                return {k: file.get_tensor(k) for k in file.keys()}, state  # noqa: SIM118 - not a mapping
        except (library.SafetensorError, KeyError, ValueError, OSError) as error:
            raise IntegrityError(
                f"the checkpoint {self.path} cannot be read ({error}); delete it to start afresh"
            ) from error

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)


def _safetensors() -> Any:
    try:
        import safetensors
        import safetensors.torch
    except ImportError as error:
        raise missing_extra("Checkpoints of attacks", "attacks", "safetensors") from error

    class Library:
        safe_open = staticmethod(safetensors.safe_open)
        save_file = staticmethod(safetensors.torch.save_file)
        SafetensorError = safetensors.SafetensorError

    return Library
