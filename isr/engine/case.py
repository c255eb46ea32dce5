"""What the engine needs of a case: its record, and its pictures on demand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from ..protocols import Picture
from ..schema import CaseRecord

__all__ = ["JudgeableCase"]


class JudgeableCase(Protocol):
    """A case whose pictures were checked. Digests are known without pixels; PNG bytes are read when a call needs them."""

    @property
    def record(self) -> CaseRecord: ...

    def problem(self) -> str | None:
        """Why this case cannot be judged (a bad image that was skipped), or None."""
        ...

    def digests(self) -> Sequence[tuple[str, str]]:
        """(role, digest) of each picture as sent, the original first."""
        ...

    def pictures(self) -> tuple[Picture, ...]:
        """The pictures themselves. Raises IntegrityError where a file changed since it was checked, OSError where it is gone."""
        ...

    def columns(self) -> Mapping[str, Any]:
        """Columns a local judge may look at."""
        ...
