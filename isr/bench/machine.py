"""What a machine is, as the result card tells it."""

from __future__ import annotations

import os
import platform
import sys
from typing import Any

__all__ = ["hardware"]


def hardware() -> dict[str, Any]:
    """Processor, cores, memory and GPUs of this machine (GPUs only where torch is loaded already)."""
    found: dict[str, Any] = {
        "machine": platform.machine(), "system": platform.system(), "cores": os.cpu_count(), "processor": platform.processor(),
        "memory_bytes": _memory(),
    }  # fmt: skip
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        found["gpus"] = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return found


def _memory() -> int | None:
    """Bytes of main memory; None where the system does not say (Windows)."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None
