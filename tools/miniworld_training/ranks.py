"""Data-parallel training with single-thread ranks.

Two ranks of one thread each lose only their share when another job takes a core; one process with two threads waits at
every operator and becomes many times slower.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch
import torch.distributed as dist

__all__ = ["Ranks"]


class Ranks:
    """This process's place among the ranks (RANK and WORLD_SIZE, as torchrun sets them); alone when they are unset.

    device: where its models and batches live; a graphics processor is used by one rank alone.
    """

    def __init__(self, device: str = "cpu") -> None:
        torch.set_num_threads(1)
        self.device = torch.device(device)
        if self.device.type == "cuda":
            torch.set_float32_matmul_precision("high")
            torch.backends.cudnn.allow_tf32 = True
            torch.backends.cudnn.benchmark = True
        self.rank = int(os.environ.get("RANK", "0"))
        self.world = int(os.environ.get("WORLD_SIZE", "1"))
        if self.world > 1:
            dist.init_process_group("gloo")

    @property
    def gpu(self) -> bool:
        return self.device.type == "cuda"

    @property
    def first(self) -> bool:
        return self.rank == 0

    def average_gradients(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        """Replace each gradient by the mean over ranks: one flat all-reduce per step."""
        if self.world < 2:
            return
        flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).reshape(-1) for p in parameters])
        dist.all_reduce(flat)
        flat /= self.world
        at = 0
        for p in parameters:
            share = flat[at : at + p.numel()].view_as(p)
            p.grad = torch.empty_like(p).copy_(share)  # in the parameter's own memory format
            at += p.numel()

    def barrier(self) -> None:
        """Wait for the other ranks."""
        if self.world > 1:
            dist.barrier()

    def agree(self, value: float) -> float:
        """Rank 0's value on every rank (so that all stop at the same step)."""
        if self.world < 2:
            return value
        shared = torch.tensor([value], dtype=torch.float64)
        dist.broadcast(shared, 0)
        return float(shared.item())
