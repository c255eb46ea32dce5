"""A prepared case as the engine asks about it: digests without pixels, PNG bytes only when a call needs them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping
from typing import Any

from ..cases import PreparedCase
from ..images import BadImage, ImageRef
from ..protocols import Picture
from ..schema import CaseRecord

__all__ = ["JudgeableCase"]


class JudgeableCase:
    """One case on its way to the judges."""

    __slots__ = ("_held", "_images", "_loading", "_reading", "prepared")

    def __init__(self, prepared: PreparedCase) -> None:
        self.prepared = prepared
        self._held: tuple[Picture, ...] | None = None
        self._loading: asyncio.Task[tuple[Picture, ...]] | None = None
        self._reading = threading.Lock()
        pairs = (("original", prepared.original_sent), ("edited", prepared.edited_sent))
        self._images = tuple((role, image) for role, image in pairs if isinstance(image, ImageRef))

    @property
    def record(self) -> CaseRecord:
        return self.prepared.record

    def problem(self) -> str | None:
        """Why this case cannot be judged (a bad image that was skipped), or None."""
        return self.prepared.bad

    def digests(self) -> tuple[tuple[str, str], ...]:
        """(role, digest) of each picture as sent, the original first."""
        return tuple((role, image.digest) for role, image in self._images)

    def sizes(self) -> tuple[tuple[int, int], ...]:
        """(width, height) of each picture as sent."""
        return tuple(image.size for _, image in self._images)

    def pictures(self) -> tuple[Picture, ...]:
        """The pictures themselves; read once for all judges of the case, and held until `release`.

        Raises:
            IntegrityError: a file changed since it was checked, or is gone.
        """
        with self._reading:
            if self._held is None:
                self._held = tuple(Picture(role, image.png(), image.digest, image.size) for role, image in self._images)
            return self._held

    async def load(self) -> tuple[Picture, ...]:
        """`pictures` in a thread, one for all judges that wait for them."""
        if self._held is not None:
            return self._held
        if self._loading is None:
            self._loading = asyncio.create_task(asyncio.to_thread(self.pictures))
        return await asyncio.shield(self._loading)

    def release(self) -> None:
        """Let go of the pictures: the case is judged."""
        self._held = self._loading = None

    def columns(self) -> Mapping[str, Any]:
        """What a *local* judge may look at: what kind of picture and prompt it is, never how it was made (no method, arm
        or file name: judges are blind to them)."""
        record = self.record
        return {"category": record.category, "prompt_kind": record.prompt_kind, "tags": dict(record.tags)}

    def images_by_digest(self) -> dict[str, ImageRef]:
        """Canonical (unshrunk) pictures for keeping and showing."""
        pairs = ((self.record.edited, self.prepared.edited), (self.record.original, self.prepared.original))
        return {d: i for d, i in pairs if d is not None and i is not None and not isinstance(i, BadImage)}
