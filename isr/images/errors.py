"""The one error of this package: a picture that cannot be judged."""

from __future__ import annotations

from ..errors import UsageError

__all__ = ["ImageError"]


class ImageError(UsageError):
    """A picture cannot be read, or its pixels have no agreed meaning.

    Attributes:
        name: how the user called the picture.
        what: what is wrong and what to do, without the name.
    """

    def __init__(self, what: str, *, name: str = "") -> None:
        super().__init__(f"{name}: {what}" if name else what)
        self.name = name
        self.what = what
