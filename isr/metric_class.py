"""The metric as an object with update, compute and reset, in the manner of torchmetrics (without importing torch)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .cases import EditCase, prepare
from .cases.forms import drafts_of
from .errors import UsageError
from .images import BadImage
from .report import Report

__all__ = ["ImmunizationSuccessRate"]


class ImmunizationSuccessRate:
    """Collects edits batch by batch and judges them all in `compute()`.

    `update` stores pictures losslessly (so a tensor that is reused afterwards changes nothing); no judge is asked before
    `compute`. There is no distributed gather: judge on one process, or use shards (`shard=`, `isr merge`).

    Args:
        arguments: of `isr.evaluate` that decide how to judge: judges, consensus, cache, …

    >>> metric = ImmunizationSuccessRate(judges=[my_judge])  # doctest: +SKIP
    >>> metric.update(edits, prompts, originals=originals)   # doctest: +SKIP
    >>> metric.compute()                                     # doctest: +SKIP
    0.58
    """

    higher_is_better = True
    is_differentiable = False
    full_state_update = False

    def __init__(self, **arguments: Any) -> None:
        self._arguments = arguments
        self._cases: list[EditCase] = []
        self._with_originals: bool | None = None
        self._report: Report | None = None

    def update(
        self, edits: Any, prompts: Any = None, *, originals: Any = None, controls: Any = None, columns: Any = None
    ) -> None:
        """Add a batch, control rows (arm="control") too; arguments as of `evaluate` (tensors (N, 3, H, W) or arrays (N, H, W, 3) are batches of N).

        Raises:
            UsageError: bad pictures or columns of this batch; the batches before it are kept.
        """
        if isinstance(edits, Iterator):
            edits = list(edits)
        if isinstance(prompts, Iterator):
            prompts = list(prompts)
        batch = prepare(edits, prompts, originals=originals, controls=controls, columns=columns)
        if self._with_originals not in (None, batch.has_originals):
            raise UsageError(
                "update: some updates came with originals and some without; the two are different measurements"
            )
        # The user's own rows come first, explicit control rows among them; behind them stand those made from controls.
        given = drafts_of(edits, prompts, originals=None, controls=None, columns=None, problems=[])
        count = sum(1 for _ in given)
        made = {case.record.case_id: case for case in batch.cases[count:]}
        added = []
        for case in batch.cases[:count]:
            record = case.record
            control = made.get(record.control or "")
            added.append(
                EditCase(
                    _png(case.edited),
                    record.prompt,
                    original=None if case.original is None else _png(case.original),
                    control=None if control is None else _png(control.edited),
                    tags=record.tags,
                    **record.model_dump(
                        include={
                            "id",
                            "image_id",
                            "method",
                            "editor",
                            "prompt_kind",
                            "category",
                            "seed",
                            "purifier",
                            "arm",
                        }
                    ),
                )
            )
        self._with_originals = batch.has_originals
        self._cases += added
        self._report = None

    def compute(self) -> float:
        """ISR of everything since the last reset, as a fraction; the whole `Report` stands in `report`."""
        return self.report.isr

    @property
    def report(self) -> Report:
        """The report behind `compute()`; judged on first use after an update."""
        if not self._cases:
            raise UsageError("compute: nothing to judge yet; call update(edits, prompts) first")
        if self._report is None:
            from .evaluation import evaluate

            self._report = evaluate(list(self._cases), **self._arguments)
        return self._report

    def reset(self) -> None:
        """Forget all batches (answers stay in the cache)."""
        self._cases = []
        self._with_originals = None
        self._report = None


def _png(image: Any) -> bytes:
    if isinstance(image, BadImage):
        raise UsageError(f"update: {image.name}: {image.problem}")
    png: bytes = image.png()
    return png
