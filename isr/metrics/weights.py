"""Where the weights of learned metrics may already lie on this machine. Nothing here ever downloads."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

import torch

from ..errors import IntegrityError
from .result import NotAvailable

__all__ = ["find_hub_file", "load_hub_state"]


def find_hub_file(name: str, source: str) -> Path | NotAvailable:
    """A file of torch's hub cache (`torch.hub.get_dir()/checkpoints`), or why not, with where to get it."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / name
    if path.is_file():
        return path
    return NotAvailable(
        f"the weights {name} are not in torch's hub cache (folder checkpoints of torch.hub.get_dir()); put the file there once ({source})",
        lacking=True,
    )


def load_hub_state(path: Path) -> dict[str, Any]:
    """The state dict in a hub checkpoint.

    These files are published as pickles only. Two things stand in for safetensors: the content must have the digest that
    the file's own name carries (torch hub's convention: name-<sha256 prefix>.pth), and torch's restricted loader reads it
    (tensors and plain containers, no code).

    Raises:
        IntegrityError: the name holds no digest, or the content is another file's.
    """
    match = re.search(r"-([0-9a-f]{8,64})\.", path.name)
    if match is None:
        raise IntegrityError(
            f"{path.name} carries no digest in its name, so its content cannot be checked; it is not loaded"
        )
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if not digest.startswith(match[1]):
        raise IntegrityError(
            f"{path} is not the file its name claims (sha256 starts with {digest[:8]}, not {match[1]}); delete it and fetch it again"
        )
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return state
