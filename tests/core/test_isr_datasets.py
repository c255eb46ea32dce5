"""Data sets of Hugging Face's `datasets` (the real library) as input: in memory, on disk and streamed."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from evaluate_help import Scripted, picture, text

import isr
from isr.errors import ProblemsError, UsageError
from isr.images import as_image

if TYPE_CHECKING:
    import datasets

pytestmark = pytest.mark.needs("datasets")
N = 5


def by_prompt(name: str = "a") -> Scripted:
    """Says "mismatch" where the prompt ends in an even number."""
    return Scripted(lambda q: text(mismatch=int(q.prompt[-1]) % 2 == 0), name)


@pytest.fixture
def table() -> datasets.Dataset:
    from datasets import Dataset, Features, Image, Value

    columns: dict[str, list[Any]] = {
        "edited": [picture(i) for i in range(N)],
        "original": [picture(100 + i) for i in range(N)],
        "prompt": [f"prompt {i}" for i in range(N)],
        "method": ["m", "m", "m", "n", "n"],
        "seed": list(range(N)),
        "note": [f"note {i}" for i in range(N)],
    }
    kinds = {"edited": Image(), "original": Image(), "seed": Value("int64")}
    features = Features({name: kinds.get(name, Value("string")) for name in columns})
    return Dataset.from_dict(columns, features=features)


def plain() -> isr.Report:
    """The same cases as lists of pictures."""
    return isr.evaluate(
        [picture(i) for i in range(N)], [f"prompt {i}" for i in range(N)], judges=by_prompt(), cache=False, progress=False,
        originals=[picture(100 + i) for i in range(N)],
        columns={"method": ["m", "m", "m", "n", "n"], "seed": list(range(N)), "note": [f"note {i}" for i in range(N)]},
    )  # fmt: skip


def test_a_data_set_gives_what_lists_give(table: datasets.Dataset) -> None:
    report = isr.evaluate(table, judges=by_prompt(), cache=False, progress=False)
    assert [o.value for o in report.outcomes] == ["success", "failure", "success", "failure", "success"]
    assert [c.case_id for c in report.case_records] == [c.case_id for c in plain().case_records]
    assert report.by("note")["n"].sum() == N  # other columns are tags
    assert report.picture(str(report.case_records[0].edited)) is not None


@pytest.mark.parametrize("kind", ["numpy", "pandas", "shuffled", "saved"])
def test_formats_indices_and_files_change_nothing(table: datasets.Dataset, kind: str, tmp_path: Path) -> None:
    from datasets import load_from_disk

    if kind == "saved":
        table.save_to_disk(str(tmp_path / "set"))
        table = load_from_disk(str(tmp_path / "set"))
    elif kind == "shuffled":
        table = table.select([4, 3, 2, 1, 0])
    else:
        table = table.with_format(kind)
    report = isr.evaluate(table, judges=by_prompt(), cache=False, progress=False)
    assert {c.case_id for c in report.case_records} == {c.case_id for c in plain().case_records}
    assert table[0]["edited"] is not None  # and the user's own data set is as it was


def test_a_streamed_data_set_is_never_held_as_a_whole(table: datasets.Dataset) -> None:
    streamed = table.to_iterable_dataset()
    report = isr.evaluate(streamed, judges=by_prompt(), cache=False, progress=False)
    assert {c.case_id for c in report.case_records} == {c.case_id for c in plain().case_records}
    assert report.isr == plain().isr
    assert report.picture(str(report.case_records[0].edited)) is None  # judged as a stream: pictures are not kept
    again = asyncio.run(isr.aevaluate(streamed, judges=by_prompt(), cache=False, progress=False))
    assert again.isr == report.isr


def test_a_stream_over_a_data_set_is_lazy() -> None:
    from datasets import Features, Image, IterableDataset, Value

    made: list[int] = []

    def rows() -> Any:
        for i in range(10_000):
            made.append(i)
            yield {"edited": picture(i), "prompt": f"prompt {i % 10}"}

    endless = IterableDataset.from_generator(rows, features=Features({"edited": Image(), "prompt": Value("string")}))
    results = isr.stream(endless, judges=by_prompt(), cache=False)
    for _ in range(3):
        next(results)
    results.close()
    assert len(made) < 2_000


def test_a_data_set_without_features_and_a_mapped_one(table: datasets.Dataset) -> None:
    mapped = table.to_iterable_dataset().map(lambda row: {"category": "c" + row["method"]})
    assert mapped.features is None  # as datasets leaves it
    report = isr.evaluate(mapped, judges=by_prompt(), cache=False, progress=False)
    assert dict(report.by("category")[["category", "n"]].itertuples(index=False)) == {"cm": 3, "cn": 2}


def test_pictures_of_a_data_set_are_read_as_any_other_file(tmp_path: Path) -> None:
    """16 bits a channel: 257 k → k exactly, 300 → round(300 / 257) = 1, 65 000 → 253; Pillow alone would cut to the high byte."""
    import struct
    import zlib

    from datasets import Dataset, Features, Image, Value

    values = np.array([[[300, 65_000, 257 * 9]] * 16] * 16, dtype=">u2")

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    lines = b"".join(b"\0" + row.tobytes() for row in values)
    header = struct.pack(">IIBBBBB", 16, 16, 16, 2, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    path = tmp_path / "deep.png"
    path.write_bytes(png)
    deep = Dataset.from_dict(
        {"edited": [str(path)], "prompt": ["prompt 0"]},
        features=Features({"edited": Image(), "prompt": Value("string")}),
    )
    report = isr.evaluate(deep, judges=by_prompt(), cache=False, progress=False)
    assert report.case_records[0].edited == as_image(path).digest
    assert as_image(path).array()[0, 0].tolist() == [1, 253, 9]


def test_mistakes_are_named_by_row(table: datasets.Dataset) -> None:
    with pytest.raises(ProblemsError, match=r"promt"):
        isr.evaluate(table.rename_column("prompt", "promt"), judges=by_prompt(), cache=False)
    with pytest.raises(UsageError, match="put originals, controls and columns into the cases"):
        isr.evaluate(table.to_iterable_dataset(), originals=[1], judges=by_prompt(), cache=False)
