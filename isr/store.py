"""The run directory: one versioned layout for every report, study, bridge, review and benchmark store.

    run.json            versions, judge lock, settings (replaced atomically)
    cases.jsonl         one `CaseRecord` per line       } append-only; rows join on case_id; for one (case_id, judge)
    judgements.jsonl    one `Judgement` per line        } the last row stands
    images/<digest>.png canonical pixels (left out with images=False)

A run may come from a stranger: digests are checked before they become paths, contents are hashed again, links are
refused, sizes are bounded (docs/definitions.md, sections 13 and 14).
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from .errors import IntegrityError, UsageError
from .schema import CaseRecord, Judgement, Record

__all__ = ["LAYOUT", "RunFiles", "is_digest", "write_atomic"]

LAYOUT = 1
MAX_LINE = 16 * 2**20
MAX_RUN_JSON = 64 * 2**20
MAX_IMAGE_FILE = 256 * 2**20
_DIGEST = re.compile(r"\A[0-9a-f]{64}\Z")

R = TypeVar("R", bound=Record)


def is_digest(text: object) -> bool:
    """64 lower-case hex digits: the only thing that may become a file name in images/."""
    return isinstance(text, str) and bool(_DIGEST.match(text))


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file so that a reader (or a crash) sees the old or the new content, never a part."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


@dataclass(frozen=True)
class RunFiles:
    """Reading and writing of one run directory."""

    folder: Path

    @classmethod
    def at(cls, folder: str | Path) -> RunFiles:
        return cls(Path(folder))

    @property
    def images(self) -> Path:
        return self.folder / "images"

    def exists(self) -> bool:
        return (self.folder / "run.json").is_file()

    # ------------------------------------------------------------------------------------------------- writing

    def write_lock(self, lock: Mapping[str, Any]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomic(self.folder / "run.json", json.dumps(lock, indent=2, ensure_ascii=False).encode("utf-8") + b"\n")

    def append(self, name: str, rows: Iterable[Record]) -> int:
        """Append rows to cases.jsonl or judgements.jsonl; a torn last line (a crash while writing) is cut off first."""
        path = self._plain(name)
        self.folder.mkdir(parents=True, exist_ok=True)
        lines = [row.model_dump_json().encode("utf-8") + b"\n" for row in rows]
        if any(len(line) > MAX_LINE for line in lines):
            raise UsageError(
                f"{path}: a row is longer than {MAX_LINE} bytes, which could not be read back; shorten its prompt or tags"
            )
        blob = b"".join(lines)
        with open(path, "ab") as file:
            torn = _torn_bytes(path)
            if torn:
                file.truncate(file.tell() - torn)
            file.write(blob)
            file.flush()
            os.fsync(file.fileno())
        return len(lines)

    def put_image(self, digest: str, png: bytes) -> None:
        path = self.image_path(digest)
        if not path.exists():
            self.images.mkdir(parents=True, exist_ok=True)
            write_atomic(path, png)

    # ------------------------------------------------------------------------------------------------- reading

    def read_lock(self) -> dict[str, Any]:
        path = self._plain("run.json")
        if not path.is_file():
            raise UsageError(f"run: {str(self.folder)!r} holds no run.json, so it is not a run directory")
        if path.stat().st_size > MAX_RUN_JSON:
            raise IntegrityError(f"{path}: larger than {MAX_RUN_JSON} bytes")
        try:
            lock = json.loads(path.read_text("utf-8"))
        except (ValueError, UnicodeDecodeError) as error:
            raise IntegrityError(f"{path}: not valid JSON ({error})") from error
        if not isinstance(lock, dict) or lock.get("layout") != LAYOUT:
            found = lock.get("layout") if isinstance(lock, dict) else type(lock).__name__
            raise IntegrityError(f"{path}: run layout {found!r}, this version of isr reads layout {LAYOUT}")
        return lock

    def cases(self) -> list[CaseRecord]:
        """All cases in file order; a case that stands twice must stand twice alike."""
        found: dict[str, CaseRecord] = {}
        for row in self.case_rows():
            if found.setdefault(row.case_id, row) != row:
                raise IntegrityError(f"{self.folder}/cases.jsonl: case {row.case_id} stands twice and differs")
        return list(found.values())

    def case_rows(self) -> Iterator[CaseRecord]:
        """Every row of cases.jsonl, one at a time."""
        for row in self._rows("cases.jsonl", CaseRecord):
            for digest in (row.edited, row.original):
                if digest is not None and not is_digest(digest):
                    raise IntegrityError(f"{self.folder}/cases.jsonl: {digest!r} is not a digest (64 hex digits)")
            yield row

    def judgements(self) -> list[Judgement]:
        """The standing judgement of every (case, judge), in order of first appearance."""
        found: dict[tuple[str, str], Judgement] = {}
        for row in self._rows("judgements.jsonl", Judgement):
            found[row.case_id, row.judge] = row
        return list(found.values())

    def image_path(self, digest: str) -> Path:
        if not is_digest(digest):
            raise IntegrityError(f"{digest!r} is not a digest (64 hex digits), so it names no picture of a run")
        return self.images / f"{digest}.png"

    def image_bytes(self, digest: str) -> bytes | None:
        """The PNG of a digest, or None where the run was saved without pictures. The caller hashes the pixels."""
        path = self.image_path(digest)
        if path.is_symlink() or self.images.is_symlink():
            raise IntegrityError(f"{path}: a link, which a run never holds")
        if not path.is_file():
            return None
        if path.stat().st_size > MAX_IMAGE_FILE:
            raise IntegrityError(f"{path}: larger than {MAX_IMAGE_FILE} bytes")
        return path.read_bytes()

    def _plain(self, name: str) -> Path:
        path = self.folder / name
        if path.is_symlink():
            raise IntegrityError(f"{path}: a link, which a run never holds")
        return path

    def _rows(self, name: str, kind: type[R]) -> Iterator[R]:
        path = self._plain(name)
        if not path.is_file():
            return
        with open(path, "rb") as file:
            number = 0
            while line := file.readline(MAX_LINE + 1):
                number += 1
                if len(line) > MAX_LINE:
                    raise IntegrityError(f"{path}:{number}: a row longer than {MAX_LINE} bytes")
                if not line.endswith(b"\n"):
                    return  # torn by a crash while it was written; it will be written again
                try:
                    yield kind.model_validate_json(line)
                except ValidationError as error:
                    first = error.errors()[0]
                    where = ".".join(map(str, first["loc"]))
                    raise IntegrityError(f"{path}:{number}: {where}: {first['msg']}") from error


def _torn_bytes(path: Path) -> int:
    """How many bytes follow the last newline."""
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        if size == 0:
            return 0
        step = min(size, MAX_LINE)
        file.seek(size - step)
        tail = file.read(step)
    return len(tail) - (tail.rfind(b"\n") + 1)
