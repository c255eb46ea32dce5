"""isr immunize, isr attacks"""

from __future__ import annotations

import argparse
import inspect
import json
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import Subparsers

__all__ = ["register"]


def register(commands: Subparsers) -> None:
    immunize = commands.add_parser(
        "immunize",
        help="protect photos against text-guided editing",
        description="Writes one PNG per photo, in its own resolution, with the budget verified on the saved file. All metadata is "
        "left out, location included. The same command goes on where an interrupted one stopped. Exit status 1 where a photo came "
        "out unchanged.",
    )
    immunize.add_argument("photos", type=Path, nargs="+", metavar="PHOTOS", help="photos, or folders of photos")
    immunize.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where protected photos go")
    immunize.add_argument("--attack", default="sifm", metavar="NAME", help="see `isr attacks` (default: sifm)")
    immunize.add_argument(
        "--editor", metavar="NAME", help="see `isr editors`, or a folder; needed by every attack but noise"
    )
    prompts = immunize.add_mutually_exclusive_group()
    prompts.add_argument("--prompts", type=Path, metavar="CSV", help="columns image (file name) and prompt")
    prompts.add_argument("--prompt", metavar="TEXT", help="one prompt for all photos")
    immunize.add_argument(
        "--masks", type=Path, metavar="FOLDER", help="one mask per photo, of its name: white where it may change"
    )
    immunize.add_argument("--preset", metavar="NAME", help="settings of the attack: paper (default), native, …")
    immunize.add_argument("--eps", type=float, metavar="E", help="budget on [0, 1] pixels (the paper: 0.03)")
    immunize.add_argument("--iterations", type=int, metavar="N")
    immunize.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="any other setting of the attack: a number, true, false, none, text, or JSON",
    )
    immunize.add_argument(
        "--seed", type=int, default=0, metavar="S", help="each photo's own seed follows from it and its pixels"
    )
    immunize.add_argument(
        "--size", type=int, metavar="PX", help="longest side to make the perturbation at (default: the editor's)"
    )
    immunize.add_argument("--device", metavar="NAME", help="cuda, cpu, … (default: CUDA where there is one)")
    immunize.add_argument("--batch", type=int, default=1, metavar="N", help="photos at once (more pays on a GPU)")
    immunize.add_argument(
        "--eot", action="store_true", help="make it survive JPEG, resizing, blur, noise, cropping, rotation"
    )
    immunize.add_argument(
        "--keep-exif", action="store_true", help="keep camera data (never location, names, free text)"
    )
    immunize.add_argument("--no-preview", action="store_true", help="no side-by-side pictures")
    immunize.add_argument("--quiet", action="store_true", help="no progress bar")
    immunize.set_defaults(run=_immunize)

    attacks = commands.add_parser("attacks", help="attacks that are installed")
    attacks.add_argument("name", nargs="?", help="one attack in full: what it does, its source, options and presets")
    attacks.set_defaults(run=_attacks)


def _immunize(options: argparse.Namespace) -> int:
    from ..photos import RECORD, immunize_photos

    settings: dict[str, Any] = {**dict(_setting(text) for text in options.set)}
    for name in ("preset", "eps", "iterations"):
        if getattr(options, name) is not None:
            settings[name] = getattr(options, name)
    record = options.out / RECORD
    before = record.read_bytes().count(b"\n") if record.is_file() else 0
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: print(f"isr immunize: {message}", file=sys.stderr)
        done = immunize_photos(
        options.photos, options.out, attack=options.attack, editor=options.editor, prompts=options.prompt or options.prompts,
        masks=options.masks, settings=settings, seed=options.seed, size=options.size, device=options.device, eot=options.eot,
        keep_exif=options.keep_exif, batch=options.batch, preview=not options.no_preview, progress=not options.quiet,
    )  # fmt: skip
    width = max((len(row["file"]) for row in done), default=4)
    print(f"{'file':{width}}  {'PSNR/dB':>8}  {'L-inf':>8}  {'levels':>6}  {'size':>11}")
    for row in done:
        psnr = "inf" if row["psnr"] is None else f"{row['psnr']:.2f}"
        print(
            f"{row['file']:{width}}  {psnr:>8}  {row['linf']:8.5f}  {row['levels']:6d}  {row['width']:5d}×{row['height']:<5d}"
        )
    old = len(done) - (record.read_bytes().count(b"\n") - before)
    earlier = f" ({old} of them by an earlier run)" if old > 0 else ""
    still = sum(row["levels"] == 0 for row in done)
    unlike = f", {_photos(still)} NOT protected (unchanged)" if still else ""
    print(f"{_photos(len(done) - still)} protected{unlike}{earlier} in {options.out}; records in {record}")
    return 1 if still else 0


_WORDS = {"true": True, "yes": True, "false": False, "no": False, "none": None, "null": None}


def _setting(text: str) -> tuple[str, Any]:
    """NAME=VALUE with VALUE as JSON where it is JSON; true, yes, false, no, none, null in any case; else as text."""
    from ..errors import UsageError

    name, sign, value = text.partition("=")
    if not sign or not name:
        raise UsageError(f"--set takes NAME=VALUE, not {text!r}")
    if value.strip().lower() in _WORDS:
        return name, _WORDS[value.strip().lower()]
    try:
        return name, json.loads(value)
    except ValueError:
        if value.lstrip()[:1] in ("[", "{", '"'):
            raise UsageError(
                f"--set {name}: {value} begins like JSON but is not; write texts inside it in double quotes"
            ) from None
        return name, value


def _attacks(options: argparse.Namespace) -> int:
    from ..errors import IsrError
    from ..registry import ATTACKS

    if options.name:
        factory, name = ATTACKS.load(options.name), ATTACKS.resolve(options.name)
        print(f"{name}\n\n{inspect.getdoc(factory) or 'no description'}\n")
        presets = tuple(getattr(factory, "presets", ()))
        made = [ATTACKS.create(name, preset=preset).settings() for preset in presets]
        if presets:
            print(_values(presets, [_flat(settings) for settings in made]))
            print(f"\nOther values: isr immunize … --attack {name} --preset {presets[-1]} --set NAME=VALUE")
        return 0
    short: dict[str, list[str]] = {}
    for alias, name in ATTACKS.aliases.items():
        if alias != name:
            short.setdefault(name, []).append(alias)
    for plugin in ATTACKS.list():
        try:
            factory = ATTACKS.load(plugin.name)
            text = getattr(factory, "summary", "") or next(iter((factory.__doc__ or "").strip().splitlines()), "")
        except IsrError as error:
            print(f"{plugin.name:22} not available: {error}", file=sys.stderr)
            text = "(not available here)"
        also = f" [{', '.join(sorted(short[plugin.name]))}]" if plugin.name in short else ""
        print(f"{plugin.name + also:34} {text}")
    print("\nOne of them in full, with its settings: isr attacks NAME. In brackets: the paper's short form.")
    return 0


def _flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings under the names that --set takes: options of the method first, then those of the optimiser."""
    if "pgd" in settings:
        return {**settings.get("objective", {}), **settings["pgd"]}
    own = {k: v for k, v in settings.items() if k not in ("attack", "preset", "budget")}
    budget = settings.get("budget")
    return own | ({"eps": budget["eps"]} if isinstance(budget, Mapping) else {})


def _values(presets: Sequence[str], columns: Sequence[Mapping[str, Any]]) -> str:
    """A table of settings by preset; numbers to three digits."""

    def shown(value: Any) -> str:
        if isinstance(value, float):
            return f"{value:.3g}"
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)

    names = list(dict.fromkeys(name for column in columns for name in column))
    rows = [["setting", *presets], *([n, *(shown(c[n]) if n in c else "" for c in columns)] for n in names)]
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def _photos(count: int) -> str:
    return "1 photo" if count == 1 else f"{count} photos"
