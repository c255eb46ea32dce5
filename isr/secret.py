"""Keys: held so that nothing prints them, and cut out of whatever a service or a library says."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from typing import NoReturn

__all__ = ["REMOVED", "Secret", "environment_secrets", "find_key", "scrub"]

#: Stands where a key was.
REMOVED = "[key removed]"
_SECRET_NAME = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL)S?\Z")
#: Shorter values would cut ordinary words out of messages.
_SHORTEST = 8


class Secret:
    """A key that shows itself only through `reveal()`: not in repr, str, format, comparison messages or pickles."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        """The key itself; call it only where it is put on the wire."""
        return self._value

    def __repr__(self) -> str:
        return "Secret(…)"

    def __format__(self, spec: str) -> str:
        return "Secret(…)"

    def __copy__(self) -> Secret:
        return self

    def __deepcopy__(self, memo: object) -> Secret:
        return self

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("a key is never pickled; make the judge in the other process from its string instead")


def scrub(text: object, secrets: Iterable[Secret | str | None] = (), *, limit: int = 500) -> str:
    """`text` on one line, with every secret cut out, at most `limit` characters."""
    line = " ".join(str(text).split())
    for secret in secrets:
        value = secret.reveal() if isinstance(secret, Secret) else secret
        if value:
            line = line.replace(value, REMOVED)
    return line if len(line) <= limit else line[: limit - 1] + "…"


def environment_secrets(environ: Mapping[str, str] | None = None) -> tuple[str, ...]:
    """Values of environment variables whose names say that they hold a secret, longest first."""
    found = {
        value
        for name, value in (os.environ if environ is None else environ).items()
        if _SECRET_NAME.search(name.upper()) and len(value) >= _SHORTEST
    }
    return tuple(sorted(found, key=len, reverse=True))


def find_key(variables: Iterable[str], environ: Mapping[str, str] | None = None) -> Secret | None:
    """The key of the first of `variables` that is set to something, or None."""
    env = os.environ if environ is None else environ
    for name in variables:
        value = env.get(name, "").strip()
        if value:
            return Secret(value)
    return None
