"""isr.editors: text-guided editors, from the paper's three families to anyone's function.

`load_editor` is the one way in. Nothing heavy is imported until an editor is made.
"""

from __future__ import annotations

if __name__ == "editors":
    raise ImportError(
        "import isr.editors, not the bare folder name 'editors' (a second copy of every class would exist)"
    )

from collections.abc import Callable
from pathlib import Path
from typing import Any

from isr.errors import UsageError
from isr.protocols import Editor
from isr.registry import EDITORS

__all__ = ["load_editor"]


def load_editor(editor: str | Path | Callable[..., Any] | Editor, **options: Any) -> Editor:
    """An editor from whatever names it.

    Args:
        editor: a registered name ("ip2p", "mini-ip2p", …; `isr editors` lists them), a folder in diffusers layout (its
            model_index.json says the family; one that is called as a registered editor needs "./" before it, or a `Path`),
            a catalogued hub name ("timbrooks/instruct-pix2pix"), a function (image, prompt, seed) → image, or an editor,
            which is returned as it is.
        options: device, dtype, batch_size, resolution, revision, offline, `defaults={"steps": …}`, …: see the family's class.

    Raises:
        RegistryError: no such name (near matches are listed).
        MissingExtraError: torch, diffusers or MiniWorld's weights are not installed.
        loading.EditorLoadError: the weights cannot be had.
    """
    if isinstance(editor, type):
        # A class has all that the protocol asks for, too.
        raise UsageError(
            f"{editor.__name__} is a class, not an editor; call it: load_editor({editor.__name__}(…)), or "
            f"load_editor({editor.__name__}.from_pretrained(…)) where it has that"
        )
    if isinstance(editor, Editor):
        if options:
            raise UsageError(f"{editor.name} is made already; options {sorted(options)} go where it is made")
        return editor
    if isinstance(editor, str | Path):
        return _by_name(editor, options)
    if callable(editor):
        from .function import FunctionEditor

        known = ("name", "restore_size", "seedable", "settings", "traits")
        unknown = sorted(set(options) - set(known))
        if unknown:
            raise UsageError(
                f"an editor that is a function takes no option {', '.join(map(repr, unknown))}; it takes: {', '.join(known)}"
            )
        return FunctionEditor(editor, **options)
    raise UsageError(f"editor must be a name, a folder, a function or an editor, got {type(editor).__name__}")


def _by_name(editor: str | Path, options: dict[str, Any]) -> Editor:
    from .catalog import entries, make

    named = isinstance(editor, str) and any(plugin.name == editor for plugin in EDITORS.list())
    if isinstance(editor, str) and (named or not Path(editor).expanduser().is_dir()):
        for row in entries().values():
            if row.source == editor:
                return make(row.name, **options)
        if editor == "function" and "function" not in options:
            raise UsageError("a function is its own editor: load_editor(my_function), not the name 'function'")
        if "/" not in editor and "\\" not in editor:
            made: Editor = EDITORS.create(editor, **options)
            return made
        raise UsageError(
            f"{editor!r} is neither a folder nor a catalogued hub name. For a checkpoint of a known family give the family's "
            f"name and the checkpoint as source=, e.g. load_editor('ip2p', source={editor!r}); `isr editors` lists the names"
        )
    from .families import class_of
    from .loading import check_environment

    check_environment("a diffusion editor")
    folder = Path(editor).expanduser()
    cls = class_of(folder)
    loaded: Editor = cls.from_pretrained(str(folder), **options)
    target = f"{cls.__module__.rpartition('.')[2]}:{cls.__name__}"
    rows = [
        row for row in entries().values() if row.target == target and not row.is_mini and (row.load or row.defaults)
    ]
    if rows:
        from .hub import log

        log.info(
            "%s is loaded with the settings of the checkpoint and its class. The catalogue's (scheduler, resolution, steps) come "
            "with load_editor(%r, source=…)%s",
            folder, rows[0].name, "".join(f" or {row.name!r}" for row in rows[1:]),
        )  # fmt: skip
    return loaded
