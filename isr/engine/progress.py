"""Progress in terminal and notebook (tqdm chooses), with a line of what went wrong so far."""

from __future__ import annotations

from collections import Counter
from types import TracebackType
from typing import Any, Self

from ..schema import Judgement, NotAsked, NoVerdict

__all__ = ["Progress"]


class Progress:
    """Counts judgements; silent when `show` is False.

    Args:
        total: judgements expected, or None for a stream. show: True, False, or None (only where a person watches).
    """

    def __init__(self, total: int | None, *, show: bool | None = None) -> None:
        self._bar: Any = None
        self._missing: Counter[str] = Counter()
        self._cached = 0
        if show is not False:
            from tqdm.auto import tqdm

            self._bar = tqdm(
                total=total,
                desc="judging",
                unit="judgement",
                disable=None if show is None else False,
                dynamic_ncols=True,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def tell(self, judgement: Judgement) -> None:
        if self._bar is None:
            return
        if isinstance(judgement.answer, NoVerdict):
            self._missing[judgement.answer.reason] += 1
        self._cached += bool(judgement.calls) and all(c.cached for c in judgement.calls)
        note = {"cached": self._cached} if self._cached else {}
        note.update(dict(self._missing.most_common(3)))
        if isinstance(judgement.answer, NotAsked):
            note.setdefault("not asked", 0)
        self._bar.set_postfix(note, refresh=False)
        self._bar.update(1)
