"""Items → records in order: ordinals, image ids, shared controls, pairs, and the notes for the report."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..errors import Problem, ProblemsError
from ..images import BadImage, ImageRef
from ..schema import CaseRecord, case_hash
from .items import Item
from .shelf import settled
from .types import Loaded, Prepared, PreparedCase

__all__ = ["Builder", "build"]


class Builder:
    """Records in order: ordinals of exact duplicates, default image ids, shared controls, pairing."""

    def __init__(self, max_side: int | None) -> None:
        self._max_side = max_side
        # All that grows with a stream: keys are 64 bits of a hash.
        self._seen: set[int] = set()
        self._again: dict[int, int] = {}
        self._made: dict[int, str] = {}
        self._pairs: dict[int, list[tuple[str | None, str | None, str]]] = {}
        self.duplicates = 0
        self.clash: list[Problem] = []

    def add(self, item: Item) -> tuple[PreparedCase | None, PreparedCase]:
        """The case, and the control row made for it where that is new."""
        made: PreparedCase | None = None
        control: str | None = None
        edited, original = settled(item.edited), None
        if item.original is not None:
            original = settled(item.original)
        columns = dict(item.columns)
        if columns["image_id"] is None and original is not None:
            columns["image_id"] = original.digest if isinstance(original, ImageRef) else f"unreadable:{original.name}"
        if item.control is not None:
            made, control = self._control(item, settled(item.control), original, columns)
        elif columns["arm"] != "control":
            control = self._paired(item, columns)
        case = self._case(
            edited,
            original,
            item.prompt,
            columns,
            tags=item.tags,
            control=control,
            names=(item.names["edited"], item.names["original"]),
        )
        if columns["arm"] == "control":
            record = case.record
            self._pairs.setdefault(_pair_key(record.prompt, columns), []).append(
                (record.method, record.edited, record.case_id)
            )
            self._made.setdefault(_share_key(edited, original, item.prompt, columns), record.case_id)
        return made, case

    def _control(
        self, item: Item, picture: Loaded, original: Loaded | None, columns: dict[str, Any]
    ) -> tuple[PreparedCase | None, str]:
        shared = {**columns, "id": None, "method": None, "arm": "control"}
        key = _share_key(picture, original, item.prompt, shared)
        if key in self._made:
            return None, self._made[key]
        made = self._case(
            picture,
            original,
            item.prompt,
            shared,
            tags={},
            control=None,
            names=(item.names["control"], item.names["original"]),
        )
        self._made[key] = made.record.case_id
        return made, made.record.case_id

    def _paired(self, item: Item, columns: dict[str, Any]) -> str | None:
        if columns["image_id"] is None:
            return None
        candidates = self._pairs.get(_pair_key(item.prompt, columns), [])
        candidates = [c for c in candidates if c[0] == columns["method"]] or candidates
        if not candidates:
            return None
        if len({digest for _, digest, _ in candidates}) > 1:
            self.clash.append(
                Problem(
                    item.label("control"),
                    f"{len(candidates)} different control rows fit (same image_id, prompt, editor, seed, purifier and "
                    "prompt_kind); keep one, or name the control's picture in the column control",
                )
            )
            return None
        return candidates[0][2]

    def _case(
        self,
        edited: Loaded,
        original: Loaded | None,
        prompt: str,
        columns: dict[str, Any],
        *,
        tags: dict[str, Any],
        control: str | None,
        names: tuple[str, str],
    ) -> PreparedCase:
        digests: dict[str, Any] = {"edited": _digest(edited), "original": _digest(original)}
        named = {name: columns[name] for name in ("method", "editor", "seed", "purifier", "prompt_kind", "arm")}
        # Made on another editor than the one that edits: two sources may well give equal pixels, and are two cases.
        source = tags.get("source")
        named["source"] = source if isinstance(source, str) and source != columns["editor"] else None
        case_id = case_hash(prompt=prompt, **digests, **named)
        key = int(case_id[:16], 16)
        if key in self._seen:
            self._again[key] = self._again.get(key, 0) + 1
            self.duplicates += 1
            case_id = case_hash(prompt=prompt, **digests, **named, ordinal=self._again[key])
        self._seen.add(key)
        record = CaseRecord(
            case_id=case_id,
            prompt=prompt,
            **digests,
            edited_name=names[0],
            original_name="" if original is None else names[1],
            control=control,
            tags=tags,
            **columns,
        )
        return PreparedCase(
            record, edited, original, self._sent(edited), None if original is None else self._sent(original)
        )

    def _sent(self, image: Loaded) -> Loaded:
        return image if self._max_side is None or isinstance(image, BadImage) else image.shrunk(self._max_side)


def build(items: Sequence[Item], max_side: int | None, bad: tuple[Problem, ...]) -> Prepared:
    """All records of a run whose pictures have been checked."""
    builder = Builder(max_side)
    cases: list[PreparedCase | None] = [None] * len(items)
    made: list[PreparedCase] = []
    # Explicit control rows first, so that a row may stand before the control that it is paired with.
    order = sorted(range(len(items)), key=lambda index: items[index].columns["arm"] != "control")
    for index in order:
        control, case = builder.add(items[index])
        cases[index] = case
        if control is not None:
            made.append(control)
    if builder.clash:
        raise ProblemsError(builder.clash)
    done = tuple([case for case in cases if case is not None] + made)
    return Prepared(
        cases=done,
        has_originals=items[0].original is not None,
        max_side=max_side,
        notes=tuple(_notes(items, done, builder, max_side, len(bad))),
        bad=bad,
    )


def _notes(
    items: Sequence[Item], cases: Sequence[PreparedCase], builder: Builder, max_side: int | None, bad: int
) -> Iterator[str]:
    edits = [case.record for case in cases if case.record.arm != "control"]
    if cases[0].original is None:
        yield "Judged without originals: another measurement than with them."
    if cases[0].record.image_id is None:
        yield "Neither image_id nor originals were given: cases count as independent."
    explicit = any(item.columns["arm"] == "control" for item in items)
    if explicit and cases[0].record.image_id is None:
        yield "Control rows cannot be paired without image_id or originals."
    paired = sum(record.control is not None for record in edits)
    if (explicit or paired) and paired < len(edits):
        yield f"{len(edits) - paired} of {len(edits)} edits have no control; paired figures use the others only."
    if builder.duplicates:
        yield f"{builder.duplicates} exact duplicates of other cases are judged as cases of their own."
    if max_side is not None:
        shrunk = sum(case.edited_sent is not case.edited for case in cases)
        yield f"Judges see pictures of at most {max_side} pixels a side (Lanczos); {shrunk} edits were shrunk."
    if bad:
        yield f"{bad} pictures could not be read; their cases count as no verdict (bad_image)."


def _pair_key(prompt: str, columns: Mapping[str, Any]) -> int:
    return _key(columns["image_id"], prompt, *(columns[name] for name in ("editor", "seed", "purifier", "prompt_kind")))


def _share_key(edited: Loaded, original: Loaded | None, prompt: str, columns: Mapping[str, Any]) -> int:
    """What makes two controls the same measurement: same pictures and columns (an unreadable one goes by its name)."""
    pictures = [_digest(i) or ("bad", i.name if i is not None else "") for i in (edited, original)]
    return _key(*pictures, _pair_key(prompt, columns))


def _key(*parts: Any) -> int:
    return int.from_bytes(hashlib.blake2b(repr(parts).encode("utf-8", "backslashreplace"), digest_size=8).digest())


def _digest(image: Loaded | None) -> str | None:
    return image.digest if isinstance(image, ImageRef) else None
