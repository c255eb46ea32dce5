"""Folders of photos: protect each, save and verify it, write it down, and go on where an earlier run stopped."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import re
import time
import unicodedata
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import PIL.PngImagePlugin

from .errors import IntegrityError, Problem, ProblemsError, UsageError
from .images import ImageRef, as_image, check_images
from .images.arrays import pixel_digest
from .immunization import NO_MASKS, check_defined, protect, takes_masks, warn_unchanged, why_still
from .making import make_attack, make_editor
from .masks import grey_mask
from .perturbation import Budget, verify
from .protocols import Immunizer
from .working import check_size

__all__ = ["immunize_photos", "photo_seed", "preview", "read_prompts"]

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
#: Picture files that a folder may hold and that are left out, with a warning.
_UNREAD = frozenset(
    (
        ".arw", ".avif", ".cr2", ".cr3", ".dng", ".gif", ".heic", ".heif", ".hif", ".jp2", ".jxl", ".nef", ".orf", ".psd",
        ".raf", ".raw", ".rw2", ".svg",
    )
)  # fmt: skip
RECORD = "immunized.jsonl"
PREVIEWS, UNFINISHED = "previews", ".unfinished"
#: Half-written files: of `_save` in the folder and its previews, of checkpoints in the folder for unfinished work.
_PARTS = {
    ".": re.compile(r"\..+\.png\.(\d+)\.part"),
    PREVIEWS: re.compile(r"\..+\.png\.(\d+)\.part"),
    UNFINISHED: re.compile(r"[0-9a-f]{32}\.(\d+)\.part"),
}
_EXIF_IFD = 0x8769
#: Make, Model, DateTime; exposure, aperture, ISO, times, flash, focal length, lens. Not Artist and Copyright: free text, which
#: holds names and addresses.
_KEPT_TAGS = (0x010F, 0x0110, 0x0132)
_KEPT_DETAILS = (0x829A, 0x829D, 0x8827, 0x9003, 0x9004, 0x9209, 0x920A, 0xA433, 0xA434)


def immunize_photos(
    photos: Sequence[str | Path],
    out: str | Path,
    *,
    attack: str | Immunizer = "sifm",
    editor: Any = None,
    prompts: str | Path | Mapping[str, str] | None = None,
    masks: str | Path | Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
    seed: int = 0,
    size: int | None = None,
    device: str | None = None,
    eot: bool = False,
    keep_exif: bool = False,
    preview: bool = True,
    batch: int = 1,
    progress: bool = True,
) -> list[dict[str, Any]]:
    """Protect photos into `out/<name>.png`.

    Each saved file is read back, and its pixels' budget verified. `out/immunized.jsonl` gets one row per photo (appended);
    a photo whose row matches pixels, prompt, seed and settings, and whose file is unchanged, is not made again; a photo that
    was interrupted goes on from its checkpoint.

    Args:
        photos: files or folders (not searched further down). out: made if missing.
        prompts: one text for all; a mapping or a CSV (path) from file name to prompt; None: no prompt. A str that ends in .csv
            or names an existing file is such a path.
        masks: a folder with one mask per photo (of the photo's name, any suffix), or a mapping from file name to mask (None:
            everywhere): white where pixels may change, in the size of the photo as it is shown (`isr.masks`). None: everywhere.
        settings: of a registered attack. seed: photo i's seed is `photo_seed(seed, digest)`: it does not depend on the others.
        size: longest side to work at, at least the editor's `size_multiple`.
        device: for editors loaded by name. eot: wrap the attack in expectation over transformations.
        keep_exif: keep camera data; location, names and other free text never are, and orientation is applied to the pixels.
            Else no metadata at all.
        batch: photos per call of the attack (they are saved together; more than 1 pays on a GPU with photos of one size).
        preview: write `out/previews/<name>.png`: original, protected, their difference × 16 on grey.

    Returns:
        One row per photo, in order: file, source, digests, prompt, seed, linf, l2, levels, psnr (None: unchanged), seconds, ….

    Raises:
        ProblemsError: photos or masks that cannot be read, prompts or masks that lack, names that collide. UsageError: `out` is a folder of
            photos or no folder, settings or `size` are wrong, or the attack is not defined for the editor (its `check`). All
            before anything is made.

    Pictures in a folder that are of a kind not read here (HEIC, raw, …), and photos that come out unchanged, are named in
    warnings: neither is protected.
    """
    if batch < 1:
        raise UsageError(f"batch must be at least 1 photo, not {batch!r}")
    folder = Path(out)
    _apart([*photos, masks] if isinstance(masks, str | Path) and str(masks) else photos, folder)
    files = _files(photos)
    refs = [as_image(path, name=path.name) for path in files]
    check_images(refs)
    texts = _texts(files, prompts)
    _collisions(files, folder)
    immunizer = make_attack(attack, **dict(settings or {}))
    if eot:
        immunizer = _with_eot(immunizer)
    given = _masks(files, refs, masks)
    if masks is not None and not takes_masks(immunizer):
        raise UsageError(f"{immunizer.name} {NO_MASKS}")
    made = None if editor is None else make_editor(editor, **({} if device is None else {"device": device}))
    check_defined(immunizer, made, texts)
    check_size(size, made)
    budget = Budget.of(immunizer.settings())
    recorded = {
        "attack": dict(immunizer.settings()),
        "editor": None if made is None else {"name": made.name, **made.settings()},
        "size": size,
    }
    mark = hashlib.sha256(json.dumps(recorded, sort_keys=True, default=str).encode()).hexdigest()[:16]
    items = [
        _Photo(path, ref, text, photo_seed(seed, ref.digest), mark, keep_exif, mask)
        for path, ref, text, mask in zip(files, refs, texts, given, strict=True)
    ]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"out ({folder}) cannot be a folder: {error.strerror}; give another one") from error
    _sweep(folder)
    (folder / RECORD).touch()
    earlier = _done(folder)
    rows = {p.name: row for p in items if (row := _made_before(p, folder, earlier)) is not None}
    pending = [p for p in items if p.name not in rows]
    with _bar(len(items), len(rows), show=progress) as advance:
        for start in range(0, len(pending), batch):
            group = pending[start : start + batch]
            found = _make(group, folder, immunizer=immunizer, editor=made, size=size, progress=progress)
            for photo, row in zip(group, found, strict=True):
                rows[photo.name] = {**photo.key(), **row, **recorded}
                (folder / PREVIEWS / photo.name).unlink(
                    missing_ok=True
                )  # first: a kill in between leaves none, not an old one
                _append(folder / RECORD, rows[photo.name])
                if preview:
                    _save_preview(photo.ref.pil(), folder / photo.name)
            advance(len(group))
    for photo in items if preview else ():
        if not (folder / PREVIEWS / photo.name).is_file():
            _save_preview(photo.ref.pil(), folder / photo.name)
    unchanged = [p for p in items if not rows[p.name]["levels"]]
    still = [p.path.name + why_still(p.grey(), budget) for p in unchanged]
    warn_unchanged(immunizer, still, len(items), budget, stacklevel=3)
    return [rows[photo.name] for photo in items]


@dataclass(frozen=True)
class _Photo:
    """One photo and everything that decides what its protected file will hold."""

    path: Path
    ref: ImageRef
    prompt: str | None
    seed: int
    settings_hash: str
    keep_exif: bool
    mask: _Mask | None

    @property
    def name(self) -> str:
        return f"{self.path.stem}.png"

    def grey(self) -> PIL.Image.Image | None:
        return None if self.mask is None else self.mask.read()

    def key(self) -> dict[str, Any]:
        mask = None if self.mask is None else self.mask.digest
        return {
            "file": self.name, "source_digest": self.ref.digest, "prompt": self.prompt, "seed": self.seed,
            "settings_hash": self.settings_hash, "exif": self.keep_exif, "mask": mask,
        }  # fmt: skip


def _made_before(photo: _Photo, folder: Path, earlier: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """The row of an earlier run whose file is still what that run wrote."""
    key = photo.key()
    for row in earlier:
        if all(row.get(k) == v for k, v in key.items()) and _intact(folder, row):
            return dict(row)
    return None


def _make(
    group: Sequence[_Photo], folder: Path, *, immunizer: Immunizer, editor: Any, size: int | None, progress: bool
) -> list[dict[str, Any]]:
    """Protect, save, read back, verify; one row per photo."""
    started, work = time.perf_counter(), folder / UNFINISHED
    originals = [photo.ref.pil() for photo in group]
    result = protect(
        originals, [photo.prompt for photo in group], [photo.seed for photo in group], [photo.path.name for photo in group],
        immunizer=immunizer, editor=editor, size=size, checkpoint=work, progress=progress,
        masks=[p.grey() for p in group] if any(p.mask is not None for p in group) else None,
    )  # fmt: skip
    rows = []
    for k, photo in enumerate(group):
        target = folder / photo.name
        _save(result[k], target, _exif(photo.path) if photo.keep_exif else None)
        found = verify(originals[k], _read(target), result.budget, name=immunizer.name, item=photo.name)
        rows.append(
            {
                "source": str(photo.path), "digest": as_image(target).digest, "linf": found.linf, "l2": found.l2,
                "levels": found.levels, "psnr": None if found.psnr == float("inf") else found.psnr, "changed": found.changed,
                "width": result[k].width, "height": result[k].height, "working_size": list(result.working_sizes[k]),
                "cut": result.cut[k], "seconds": round((time.perf_counter() - started) / len(group), 3),
            }
        )  # fmt: skip
    for left in work.glob("*"):
        left.unlink()
    if work.is_dir():
        work.rmdir()
    return rows


def _append(record: Path, row: Mapping[str, Any]) -> None:
    """One more line; on a line of its own even if a kill cut the last one off."""
    with record.open("a+b") as stream:
        stream.seek(0, os.SEEK_END)
        if stream.tell():
            stream.seek(-1, os.SEEK_END)
            if stream.read(1) != b"\n":
                stream.write(b"\n")
        stream.write((json.dumps(row, ensure_ascii=False) + "\n").encode())


def photo_seed(seed: int, digest: str) -> int:
    """A photo's own seed from the run's seed and the digest of its pixels, in [0, 2³¹)."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{digest}".encode()).digest()[:4], "big") >> 1


def _read(path: Path) -> PIL.Image.Image:
    """The saved file as a downloader would decode it."""
    with PIL.Image.open(path) as image:
        image.load()
        if image.mode != "RGB":
            raise IntegrityError(
                f"{path} was saved as 8-bit RGB but reads as {image.mode}; was it written to meanwhile?"
            )
        return image.copy()


def _save(image: PIL.Image.Image, target: Path, exif: bytes | None) -> None:
    """Pixels (and EXIF) as PNG, written beside and renamed."""
    beside = target.with_name(f".{target.name}.{os.getpid()}.part")
    clean = PIL.Image.fromarray(np.asarray(image))  # a fresh picture carries no info dictionary
    clean.save(beside, format="PNG", **({} if exif is None else {"exif": exif}))
    beside.replace(target)


def _sweep(folder: Path) -> None:
    """Remove what a killed run left half-written, by the names that runs give; what a process still writes stays."""
    for inside, pattern in _PARTS.items():
        for path in (folder / inside).glob("*.part"):
            if (found := pattern.fullmatch(path.name)) and path.is_file() and not _alive(int(found[1])):
                path.unlink(missing_ok=True)


def _alive(process: int) -> bool:
    """Whether another process of this number runs here. (Windows has no harmless signal: there, none is asked.)"""
    if os.name != "posix" or process == os.getpid():
        return False
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def _exif(source: Path) -> bytes | None:
    """Camera, lens, exposure and time, copied tag by tag: no location, no author, no maker's notes (some hold a place),
    no free text, no thumbnail (it would show the unprotected picture), no orientation (it is in the pixels already)."""
    with PIL.Image.open(source) as image:
        found = image.getexif()
        inner = found.get_ifd(_EXIF_IFD)
        kept = PIL.Image.Exif()
        for tag in _KEPT_TAGS:
            if tag in found:
                kept[tag] = found[tag]
        details = {tag: inner[tag] for tag in _KEPT_DETAILS if tag in inner}
        if details:
            kept.get_ifd(_EXIF_IFD).update(details)
        return kept.tobytes() if kept or details else None


def _files(photos: Sequence[str | Path]) -> list[Path]:
    found: list[Path] = []
    for entry in map(Path, photos):
        if entry.is_dir():
            inside = sorted(
                p
                for p in entry.iterdir()
                if p.suffix.lower() in SUFFIXES and p.is_file() and not p.name.startswith(".")
            )
            if not inside:
                raise UsageError(f"the folder {entry} holds no photos ({', '.join(SUFFIXES)})")
            found += inside
            _name_skipped(entry)
        else:
            found.append(entry)
    if not found:
        raise UsageError("photos must name at least one photo or folder")
    return list(dict.fromkeys(found))


def _apart(photos: Sequence[str | Path], folder: Path) -> None:
    """A folder of photos that is also the output: a second run would protect the first one's pictures. So with masks."""
    for entry in map(Path, photos):
        if entry.is_dir() and folder.exists() and entry.resolve() == folder.resolve():
            raise UsageError(f"out ({folder}) is one of the folders of photos or masks; give another folder")


def _name_skipped(folder: Path) -> None:
    """A warning that names pictures of kinds that cannot be protected: they are easily taken for protected."""
    left = sorted(p.name for p in folder.iterdir() if p.suffix.lower() in _UNREAD and not p.name.startswith("."))
    if left:
        more = f" and {len(left) - 5} more" if len(left) > 5 else ""
        many = f"{len(left)} pictures in {folder} are" if len(left) > 1 else f"1 picture in {folder} is"
        warnings.warn(
            f"{many} not protected (of a kind that is not read here; save as PNG or JPEG): {', '.join(left[:5])}{more}",
            stacklevel=4,
        )


def _collisions(files: Sequence[Path], folder: Path) -> None:
    """Two photos must not share an output, and no photo, nor a file of somebody else's, may be overwritten."""
    problems, seen = [], dict[str, Path]()
    for path in files:
        target = folder / f"{path.stem}.png"
        stem = _composed(path.stem.lower())
        if stem in seen:
            problems.append(
                Problem(str(path), f"would be written to {target.name} as {seen[stem]} is; rename one of them")
            )
        elif target.exists() and target.resolve() == path.resolve():
            problems.append(Problem(str(path), "would be overwritten; give another --out folder"))
        elif target.exists() and not (folder / RECORD).is_file():
            problems.append(
                Problem(str(target), "is there already and no earlier run made it; give another --out folder")
            )
        seen.setdefault(stem, path)
    if problems:
        raise ProblemsError(problems)


def read_prompts(file: str | Path) -> dict[str, str]:
    """A CSV with the columns image and prompt → {file name: prompt}. One prompt per photo."""
    path = Path(file)
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "is not there"
        raise UsageError(f"prompts must be a CSV file with the columns image and prompt, but {path} {what}")
    try:
        text = path.read_text("utf-8-sig")
    except OSError as error:
        raise UsageError(f"prompts: {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{path} is not UTF-8 text ({error.reason} at byte {error.start}); save it as CSV UTF-8"
        ) from error
    try:
        return _prompt_table(path, text)
    except csv.Error as error:
        raise UsageError(f"{path} cannot be read as CSV: {error}") from error


def _prompt_table(path: Path, text: str) -> dict[str, str]:
    with io.StringIO(text, newline="") as stream:
        reader = csv.DictReader(stream)
        if reader.fieldnames is None or not {"image", "prompt"} <= set(reader.fieldnames):
            raise UsageError(
                f"{path} must have the columns image and prompt; it has {', '.join(reader.fieldnames or ()) or 'none'}"
            )
        table: dict[str, str] = {}
        for number, row in enumerate(reader, start=2):
            if None in row:
                raise UsageError(f"{path}, line {number}: more cells than columns; put a prompt with commas in quotes")
            name, prompt = Path((row["image"] or "").strip()).name, (row["prompt"] or "").strip()
            if not name or not prompt:
                raise UsageError(f"{path}, line {number}: image and prompt must both be filled in")
            if table.setdefault(name, prompt) != prompt:
                raise UsageError(
                    f"{path}, line {number}: a second prompt for {name}; a photo takes one (see with_prompts in docs/attacks.md)"
                )
    return table


def _texts(files: Sequence[Path], prompts: str | Path | Mapping[str, str] | None) -> list[str | None]:
    if isinstance(prompts, str) and (prompts.lower().endswith(".csv") or os.path.isfile(prompts)):
        prompts = Path(prompts)  # nobody edits with the name of a file; os.path takes texts too long for a name
    if prompts is None or isinstance(prompts, str):
        return [prompts] * len(files)
    table = read_prompts(prompts) if isinstance(prompts, Path) else dict(prompts)
    table = {_composed(name): prompt for name, prompt in table.items()}
    texts = [table.get(_composed(path.name), table.get(_composed(path.stem))) for path in files]
    if lacking := [
        Problem(path.name, "has no prompt") for path, text in zip(files, texts, strict=True) if text is None
    ]:
        raise ProblemsError(lacking, hint="Add them to the prompts file, or use one prompt for all.")
    return list(texts)


@dataclass(frozen=True)
class _Mask:
    """Where a photo's mask comes from, and what it showed when everything was checked: a folder's masks are not all held."""

    source: Any
    photo: str
    digest: str

    def read(self) -> PIL.Image.Image:
        grey = grey_mask(self.source, f"the mask of {self.photo}")
        if _digest(grey) != self.digest:
            raise IntegrityError(f"the mask of {self.photo} has changed since this run began; start it again")
        return grey


def _digest(grey: PIL.Image.Image) -> str:
    return pixel_digest(np.asarray(grey.convert("RGB")))


def _masks(
    files: Sequence[Path], refs: Sequence[ImageRef], masks: str | Path | Mapping[str, Any] | None
) -> list[_Mask | None]:
    """Each photo's mask: of a folder the file of the photo's name without suffix, of a mapping by file name, else by that.

    Raises:
        UsageError: neither a folder nor a mapping. ProblemsError: masks that lack, cannot be read or are of another size.
    """
    if masks is None:
        return [None] * len(files)
    if isinstance(masks, Mapping):
        table = {_composed(Path(name).name): mask for name, mask in masks.items()}
        keys = [[_composed(path.name), _composed(path.stem)] for path in files]
    else:
        table, keys = _mask_files(files, masks), [[_composed(path.stem)] for path in files]
    found, problems = list[_Mask | None](), list[Problem]()
    for path, ref, names in zip(files, refs, keys, strict=True):
        given = [table[name] for name in names if name in table]
        found.append(None)
        try:
            if not given:
                problems.append(Problem(path.name, "has no mask; where all may change, give a white one"))
            elif given[0] is not None:
                grey = grey_mask(given[0], f"the mask of {path.name}")
                if grey.size != ref.size:
                    shape, own = ("×".join(map(str, size)) for size in (ref.size, grey.size))
                    problems.append(Problem(path.name, f"is {shape}, its mask {own}; a mask has its photo's size"))
                found[-1] = _Mask(given[0], path.name, _digest(grey))
        except UsageError as error:
            problems.append(Problem(path.name, str(error)))
    if problems:
        raise ProblemsError(problems)
    return found


def _mask_files(files: Sequence[Path], masks: str | Path) -> dict[str, Path]:
    """The pictures of a folder of masks by their names without suffix."""
    if not isinstance(masks, str | Path) or not str(masks) or not Path(masks).is_dir():
        raise UsageError(f"masks must be a folder with one mask per photo, or a mapping from file names, not {masks!r}")
    photos = {path.resolve() for path in files}
    table: dict[str, Path] = {}
    for path in sorted(Path(masks).iterdir()):
        if path.suffix.lower() not in SUFFIXES or not path.is_file() or path.name.startswith("."):
            continue
        if path.resolve() in photos:
            raise UsageError(f"masks: {path} is one of the photos; give masks a folder of their own")
        other = table.setdefault(_composed(path.stem), path)
        if other != path:
            raise UsageError(f"masks: {other} and {path} have one name; keep one of them")
    return table


def _composed(name: str) -> str:
    """One spelling of accented letters: some systems name files in letters and accents apart."""
    return unicodedata.normalize("NFC", name)


def _with_eot(immunizer: Immunizer) -> Immunizer:
    wrap = getattr(immunizer, "with_eot", None)
    if not callable(wrap):
        raise UsageError(f"{immunizer.name} cannot be wrapped in transformations; leave --eot out")
    wrapped: Immunizer = wrap()
    return wrapped


def _done(folder: Path) -> list[dict[str, Any]]:
    """Rows of an earlier run, newest first; a last line that was cut off is left out."""
    record = folder / RECORD
    if not record.is_file():
        return []
    rows: list[dict[str, Any]] = []
    for line in record.read_text("utf-8").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            rows.insert(0, row)
    return rows


def _intact(folder: Path, row: Mapping[str, Any]) -> bool:
    path = folder / str(row["file"])
    return path.is_file() and as_image(path).digest == row.get("digest")


def _save_preview(original: PIL.Image.Image, protected: Path) -> None:
    target = protected.parent / PREVIEWS / protected.name
    target.parent.mkdir(exist_ok=True)
    _save(preview(original, _read(protected)), target, None)


def preview(
    original: PIL.Image.Image, protected: PIL.Image.Image, *, side: int = 512, gain: int = 16
) -> PIL.Image.Image:
    """Original, protected, and mid grey + gain × their difference, side by side; each at most `side` pixels long."""
    change = np.asarray(protected).astype(np.int16) - np.asarray(original)
    third = PIL.Image.fromarray(np.clip(128 + gain * change, 0, 255).astype(np.uint8))
    scale = min(1.0, side / max(original.size))
    width, height = max(1, round(original.width * scale)), max(1, round(original.height * scale))
    sheet = PIL.Image.new("RGB", (3 * width + 16, height), (255, 255, 255))
    for i, image in enumerate((original, protected, third)):
        sheet.paste(
            image.resize((width, height), PIL.Image.Resampling.BICUBIC) if scale < 1 else image, (i * (width + 8), 0)
        )
    return sheet


@contextmanager
def _bar(total: int, done: int, *, show: bool) -> Iterator[Callable[[int], None]]:
    """A bar over photos; what an earlier run made counts as done."""
    if not show:
        yield lambda _: None
        return
    from tqdm.auto import tqdm

    with tqdm(total=total, initial=done, desc="immunizing", unit="photo") as bar:

        def advance(n: int) -> None:
            bar.update(n)

        yield advance
