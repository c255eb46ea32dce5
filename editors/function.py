"""Anyone's editor: a plain function from (picture, prompt, seed) to a picture."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import PIL.Image

from isr.errors import UsageError
from isr.protocols import Traits

__all__ = ["FunctionEditor"]


class FunctionEditor:
    """A function as an editor: `FunctionEditor(lambda image, prompt, seed: my_model(image, prompt, seed))`.

    The function gets an 8-bit RGB picture of its own (it may draw on it), the prompt and the seed, and returns an 8-bit
    RGB picture. With `seedable=False` it is called as (picture, prompt), and the run counts as unpaired noise.

    Args:
        function: does one edit.
        name: as tables print it; default: the function's own name.
        seedable: same seed, same bytes. Not verified here.
        restore_size: an edit of another size is brought to the input's (Lanczos); False: returned as it came.
        settings: JSON-able choices that decide an edit, recorded with every result.
        traits: further traits (licence, source, native size). A function is never white-box, and seedable only where both
            `seedable` and the traits say so.
    """

    def __init__(
        self,
        function: Callable[..., PIL.Image.Image],
        *,
        name: str | None = None,
        seedable: bool = True,
        restore_size: bool = True,
        settings: Mapping[str, Any] | None = None,
        traits: Traits | None = None,
    ) -> None:
        if not callable(function):
            raise UsageError(
                f"an editor needs a function (image, prompt, seed) -> image, got {type(function).__name__}"
            )
        own = getattr(function, "__name__", type(function).__name__)
        _check_shape(function, own, seedable=seedable)
        self._function = function
        self._name = name or (own if own != "<lambda>" else "function")
        self._restore = restore_size
        self._settings = dict(settings or {})
        ours = sorted(set(self._settings) & {"editor", "family", "restore_size", "seedable"})
        if ours:
            raise UsageError(
                f"settings of the editor {self._name!r} must not name {', '.join(map(repr, ours))}, which are recorded "
                "anyway; the editor's name is name=, seedable and restore_size are arguments of their own"
            )
        told = traits or Traits(size_multiple=1)
        self._traits = replace(
            told, white_box=False, seedable=seedable and told.seedable, family=told.family or "function"
        )
        self._seedable = seedable

    @property
    def name(self) -> str:
        return self._name

    @property
    def traits(self) -> Traits:
        return self._traits

    def settings(self, **overrides: Any) -> Mapping[str, Any]:
        if overrides:
            raise UsageError(
                f"{self.name} is a plain function and takes no settings, got {', '.join(map(repr, overrides))}"
            )
        return {
            "editor": self.name, "family": "function", "restore_size": self._restore, "seedable": self._traits.seedable, **self._settings,
        }  # fmt: skip

    def edit(
        self, images: Sequence[PIL.Image.Image], prompts: Sequence[str], *, seeds: Sequence[int], **settings: Any
    ) -> list[PIL.Image.Image]:
        from .checks import check_call

        check_call(images, prompts, seeds, bounded=False)
        self.settings(**settings)
        edits = []
        for index, (image, prompt, seed) in enumerate(zip(images, prompts, seeds, strict=True)):
            given = (image.copy(), prompt, int(seed)) if self._seedable else (image.copy(), prompt)
            try:
                edited = self._function(*given)
            except Exception as error:
                error.add_note(f"raised by the editor {self.name!r} on images[{index}]")
                raise
            edits.append(self._verified(edited, image, index))
        return edits

    def _verified(self, edited: object, image: PIL.Image.Image, index: int) -> PIL.Image.Image:
        what = f"the editor {self.name!r} must return an 8-bit RGB PIL.Image for images[{index}]"
        if not isinstance(edited, PIL.Image.Image):
            raise UsageError(f"{what}, got {type(edited).__name__}")
        if edited.mode != "RGB":
            raise UsageError(f"{what}, got mode {edited.mode}; end the function with .convert('RGB')")
        if min(edited.size) < 1:
            raise UsageError(f"{what}, got an empty picture of size {edited.size}")
        edited.load()
        if self._restore and edited.size != image.size:
            return edited.resize(image.size, PIL.Image.Resampling.LANCZOS)
        return edited


def _check_shape(function: Callable[..., Any], name: str, *, seedable: bool) -> None:
    """Refuse a function that cannot take what it will be given, where its signature says so."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return  # written in C: it shows when it is called
    wanted = ("image", "prompt", "seed") if seedable else ("image", "prompt")
    try:
        signature.bind(*wanted)
    except TypeError as error:
        hint = "one that takes no seed is loaded with seedable=False" if seedable else "leave seedable=False out"
        raise UsageError(
            f"the editor {name!r} cannot be called as ({', '.join(wanted)}): {error}; change the function, or {hint}"
        ) from error
