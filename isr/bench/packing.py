"""`isr pack`: one file for reviewers, with everything that can be checked and nothing that identifies the machine."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from pathlib import Path

from ..errors import UsageError
from .card import write_card
from .files import ExperimentFiles
from .results import Results
from .tables import write_tables

__all__ = ["pack_run"]

#: The same bytes for the same content.
_WHEN = (1980, 1, 1, 0, 0, 0)
_ROWS = ("run.json", "cases.jsonl", "judgements.jsonl", "experiment.json", "steps.jsonl", "card.json")


def pack_run(folder: str | Path, out: str | Path, *, images: bool = True) -> Path:
    """Write a ZIP of a run: its rows, its pictures by digest, the tables in every format, and SHA256SUMS.

    Args:
        images: False leaves the pictures out (figures can still be recomputed; `isr check` says which are missing).

    Raises:
        UsageError: no experiment run there, or `out` exists.
    """
    files = ExperimentFiles.at(folder)
    results = Results(folder)
    target = Path(out)
    if target.exists():
        raise UsageError(f"out: {str(target)!r} exists; give another name")
    if not (files.folder / "card.json").is_file():  # of a run that was killed before its end
        write_card(results)
    parts: dict[str, Path] = {n: files.folder / n for n in _ROWS if (files.folder / n).is_file()}
    for table in write_tables(results, files.folder / "tables"):
        parts[f"tables/{table.name}"] = table
    if images:
        wanted = {d for r in results.steps.values() for d in (r.digest, r.purified) if d is not None}
        wanted |= {
            i.removeprefix("picture:") for r in results.steps.values() for i in r.inputs if i.startswith("picture:")
        }
        for digest in sorted(wanted):
            path = files.run.image_path(digest)
            if path.is_file() and not path.is_symlink():
                parts[f"images/{digest}.png"] = path
    sums: dict[str, str] = {}
    name_of_run = files.folder.resolve().name or "run"
    temporary = target.with_name(target.name + ".part")
    with zipfile.ZipFile(temporary, "w") as archive:
        for name, path in parts.items():
            data = path.read_bytes()
            sums[name] = hashlib.sha256(data).hexdigest()
            _add(archive, f"{name_of_run}/{name}", data, stored=name.endswith(".png"))
        listing = io.StringIO()
        for name, digest in sums.items():
            listing.write(f"{digest}  {name}\n")
        _add(archive, f"{name_of_run}/SHA256SUMS", listing.getvalue().encode("utf-8"))
        readme = {
            "what": "a run of isr; unpack it and run: isr check FOLDER, isr tables FOLDER, isr report FOLDER",
            "files": len(sums),
        }
        _add(archive, f"{name_of_run}/README.json", json.dumps(readme, indent=2).encode("utf-8"))
    temporary.replace(target)
    return target


def _add(archive: zipfile.ZipFile, name: str, data: bytes, *, stored: bool = False) -> None:
    info = zipfile.ZipInfo(name, _WHEN)
    info.compress_type = zipfile.ZIP_STORED if stored else zipfile.ZIP_DEFLATED
    info.external_attr = 0o644 << 16
    archive.writestr(info, data)
