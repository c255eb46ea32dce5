"""The reply cache: every received reply, keyed by everything that could change it. No eviction, no pickle.

An evicted answer would be paid for twice, and a shared cache folder must not be able to run code: diskcache unpickles
rows by their stored mode (its JSONDisk too), so `_TextDisk` refuses every row that is not plain text.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import stat
import time
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, Protocol

import diskcache
from pydantic import ValidationError

from ..errors import IntegrityError, UsageError
from ..schema import Call

__all__ = ["CACHE_ENV", "CacheKeys", "DiskCache", "MemoryCache", "ReplyCache", "default_cache_dir"]

CACHE_ENV = "ISR_CACHE"
_NEVER_A_FILE = 2**62
#: Part of every key; raised when the meaning of a key changes, so that an old answer is never taken for a new one.
KEY_VERSION = 1


def default_cache_dir() -> Path:
    """$ISR_CACHE, else the user's cache folder (`~/.cache/isr`, or %LOCALAPPDATA%\\isr\\cache on Windows)."""
    if os.environ.get(CACHE_ENV):
        return Path(os.environ[CACHE_ENV]).expanduser()
    if os.name == "nt" and os.environ.get("LOCALAPPDATA"):
        return Path(os.environ["LOCALAPPDATA"]) / "isr" / "cache"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").expanduser() / "isr"


class CacheKeys:
    """Makes the cache keys of one judge in one run (docs/definitions.md, section 6).

    A key is sha256 (64 hex) over judge identity (provider, host and path, model, API version, settings as sent), rubric, keys
    asked for and codec — hashed once — and prompt, (role, digest) of each picture as sent, vote and ask index.
    """

    def __init__(self, identity: Mapping[str, Any], rubric_hash: str, *, asked: Sequence[str], codec: str) -> None:
        fixed = {"v": KEY_VERSION, "identity": identity, "rubric": rubric_hash, "asked": list(asked), "codec": codec}
        # JSON texts are self-delimiting, so the two parts cannot run into each other.
        self._fixed = hashlib.sha256(json.dumps(fixed, sort_keys=True).encode("ascii"))

    def key(self, *, prompt: str, pictures: Sequence[tuple[str, str]], vote: int, ask: int) -> str:
        """The key of one call."""
        state = self._fixed.copy()
        state.update(json.dumps([prompt, [list(p) for p in pictures], vote, ask]).encode("ascii"))
        return state.hexdigest()


class ReplyCache(Protocol):
    """What the engine needs of a cache."""

    def get(self, key: str) -> Call | None: ...

    def put(self, key: str, call: Call) -> None: ...

    def memo(self) -> MutableMapping[str, Any] | None:
        """Where image digests by file hash may be kept, or None."""
        ...


class MemoryCache:
    """A cache that lives as long as the object (`cache=False`): still asks no question twice within a run."""

    def __init__(self) -> None:
        self._calls: dict[str, Call] = {}
        self._memo: dict[str, Any] = {}

    def get(self, key: str) -> Call | None:
        return self._calls.get(key)

    def put(self, key: str, call: Call) -> None:
        self._calls[key] = call

    def memo(self) -> MutableMapping[str, Any]:
        return self._memo


class _TextDisk(diskcache.Disk):  # type: ignore[misc]
    """Stores and reads text rows only. Nothing is ever unpickled; no file beside the database is opened or removed."""

    def __init__(self, directory: str, **_: Any) -> None:
        # Settings come from the (possibly shared) database; none of them may change how rows are read.
        super().__init__(directory, min_file_size=_NEVER_A_FILE, pickle_protocol=0)

    def put(self, key: Any) -> tuple[str, bool]:
        if not isinstance(key, str):
            raise UsageError(f"key: expected text, got {type(key).__name__}")
        return key, True

    def get(self, key: Any, raw: Any) -> str:
        if not raw or not isinstance(key, str):
            self._refuse("a key that is not text")
        return key

    def store(self, value: Any, read: bool, key: Any = None) -> tuple[int, int, None, str]:  # noqa: ARG002 - diskcache's signature
        if read or not isinstance(value, str):
            raise UsageError(f"value: expected text, got {type(value).__name__}")
        return 0, diskcache.core.MODE_RAW, None, value

    def fetch(self, mode: int, filename: str | None, value: Any, read: bool) -> str:
        if mode != diskcache.core.MODE_RAW or filename is not None or read or not isinstance(value, str):
            self._refuse("a row that is not plain text")
        return value

    def remove(self, file_path: str) -> None:
        if file_path:
            self._refuse("a row that names a file")

    def _refuse(self, what: str) -> NoReturn:
        raise IntegrityError(
            f"the cache folder {self._directory!r} holds {what}, which this package never writes; "
            "someone or something else wrote to it. Move it away, or give another folder with cache=."
        )


class DiskCache:
    """The cache on disk (SQLite through diskcache), safe for several processes, folder mode 0700.

    Args:
        folder: where; created when missing.

    Raises:
        UsageError: the folder cannot be used. IntegrityError (on reading): it holds rows we never write.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        self.folder = Path(folder).expanduser() if folder is not None else default_cache_dir()
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            if os.name == "posix" and stat.S_IMODE(self.folder.stat().st_mode) & 0o077:
                self.folder.chmod(0o700)
            self._store = diskcache.Cache(
                str(self.folder),
                disk=_TextDisk,
                eviction_policy="none",
                cull_limit=0,
                size_limit=2**62,
                statistics=0,
                tag_index=0,
            )
        except OSError as error:
            raise UsageError(
                f"cache: cannot use the folder {str(self.folder)!r}: {error}. Give another one with cache=, or set {CACHE_ENV}."
            ) from error
        #: What two runs of one process share their questions under.
        self.space = str(self.folder.resolve())

    def get(self, key: str) -> Call | None:
        return self.get_many([key]).get(key)

    def get_many(self, keys: Sequence[str]) -> dict[str, Call]:
        """The stored replies among these keys, read in one go."""
        rows = _read_rows(self._store, [f"call:{key}" for key in keys])
        return {(key := name.removeprefix("call:")): self._call(key, text) for name, text in rows.items()}

    def _call(self, key: str, text: str) -> Call:
        try:
            call = Call.model_validate_json(text)
        except ValidationError as error:
            raise IntegrityError(
                f"the cache folder {str(self.folder)!r} holds an unreadable reply under {key}"
            ) from error
        if call.key != key:
            raise IntegrityError(f"the cache folder {str(self.folder)!r} holds a reply under the wrong key ({key})")
        return call

    def put(self, key: str, call: Call) -> None:
        try:
            _write_row(self._store, f"call:{key}", call.model_dump_json())
        except (sqlite3.Error, diskcache.Timeout) as error:
            raise OSError(f"{self.folder}: {error or 'the database stayed locked'}") from error

    def memo(self) -> MutableMapping[str, Any]:
        return _Memo(self._store)

    def close(self) -> None:
        """Close this thread's connection."""
        self._store.close()

    def __len__(self) -> int:
        return len(self._store)

    def __repr__(self) -> str:
        return f"DiskCache({str(self.folder)!r})"


#: Rows asked for in one statement; older SQLite takes 999 values at most.
_AT_ONCE = 500


def _read_rows(store: diskcache.Cache, names: Sequence[str]) -> dict[str, str]:
    """Names → texts of the rows that exist. One statement where `Cache.get` would need one per row; each row passes through
    the same `_TextDisk`, so nothing is unpickled and no file is opened."""
    found: dict[str, str] = {}
    for start in range(0, len(names), _AT_ONCE):
        some = names[start : start + _AT_ONCE]
        marks = ",".join("?" * len(some))
        rows = store._sql(
            f"SELECT key, mode, filename, value FROM Cache WHERE raw = 1 AND key IN ({marks})",  # noqa: S608 - marks only
            some,
        )
        for name, mode, filename, value in rows:
            found[name] = store.disk.fetch(mode, filename, value, False)
    return found


def _write_row(store: diskcache.Cache, name: str, text: str) -> None:
    """The row that `Cache.set` would write, in one statement that is a transaction of its own. When this returns, the row
    survives the end of the process."""
    now = time.time()
    written = store._sql(
        "INSERT INTO Cache (key, raw, store_time, expire_time, access_time, access_count, tag, size, mode, filename, value)"
        " VALUES (?, 1, ?, NULL, ?, 0, NULL, 0, ?, NULL, ?) ON CONFLICT (key, raw) DO UPDATE SET store_time = ?2,"
        " expire_time = NULL, size = 0, mode = ?4, value = ?5 WHERE filename IS NULL",
        (name, now, now, diskcache.core.MODE_RAW, text),
    )
    if not written.rowcount:
        store.disk.remove("a file")  # refuses


class _Memo(MutableMapping[str, Any]):
    """Small JSON values (what one look at a picture established) in the same store."""

    def __init__(self, store: Any) -> None:
        self._store = store

    def __getitem__(self, key: str) -> Any:
        return self.get_many([key])[key]

    def get_many(self, keys: Sequence[str]) -> dict[str, Any]:
        """The values of those keys that exist, read in one go."""
        rows = _read_rows(self._store, [f"memo:{key}" for key in keys])
        return {name.removeprefix("memo:"): json.loads(text) for name, text in rows.items()}

    def __setitem__(self, key: str, value: Any) -> None:
        _write_row(self._store, f"memo:{key}", json.dumps(value))

    def __delitem__(self, key: str) -> None:
        del self._store[f"memo:{key}"]

    def __iter__(self) -> Iterator[str]:
        return (k.removeprefix("memo:") for k in self._store.iterkeys() if k.startswith("memo:"))

    def __len__(self) -> int:
        return sum(1 for _ in self)
