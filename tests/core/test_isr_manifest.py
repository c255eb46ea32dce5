"""Manifests: what is read, relative to what, and how every kind of mistake is named."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pandas as pd
import pytest

from isr.errors import MissingExtraError, ProblemsError, UsageError
from isr.manifest import COLUMNS, column_problems, frame_rows, is_manifest, mapping_rows, read_rows

HEAD = "edited,prompt,method,seed\n"


def write(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.write_bytes(text.encode(encoding))
    return path


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize(("name", "delimiter"), [("m.csv", ","), ("m.csv", ";"), ("m.csv", "\t"), ("M.TSV", "\t")])
def test_csv_in_the_ways_spreadsheets_write_it(tmp_path: Path, encoding: str, name: str, delimiter: str) -> None:
    text = (HEAD + 'a.png,"Füge Schnee hinzu",None,007\n').replace(",", delimiter)
    (row,) = read_rows(write(tmp_path / name, text, encoding))
    # every value stays text: no "None" or "007" is turned into something else
    assert row.values == {"edited": "a.png", "prompt": "Füge Schnee hinzu", "method": "None", "seed": "007"}
    assert row.base == tmp_path
    assert row.where.endswith("line 2")


def test_csv_line_numbers_follow_quoted_line_breaks(tmp_path: Path) -> None:
    text = HEAD + 'a.png,"one\ntwo, ""three""",x,\n\nb.png,four,x,1\n'
    first, second = read_rows(write(tmp_path / "m.csv", text))
    assert first.values["prompt"] == 'one\ntwo, "three"'
    assert (first.where[-6:], second.where[-6:]) == ("line 2", "line 5")


def test_csv_mistakes_are_named(tmp_path: Path) -> None:
    path = tmp_path / "m.csv"
    rows = list(read_rows(write(path, HEAD + "a.png,add snow, please,x,1\nb.png,ok,x,2\n")))
    assert rows[0].problem == "5 values for 4 columns; quote values that hold ','"
    assert rows[1].problem is None
    with pytest.raises(UsageError, match=r"not UTF-8 .* save it as UTF-8"):
        list(read_rows(write(path, HEAD + "ü.png,x,y,1\n", "latin-1")))
    with pytest.raises(UsageError, match="line 2: not valid CSV"):
        list(read_rows(write(path, HEAD + 'a.png,"x"y,z,1\n')))
    with pytest.raises(UsageError, match="column 'seed' stands there more than once"):
        list(read_rows(write(path, "edited,prompt,seed,seed\na,b,1,2\n")))
    with pytest.raises(UsageError, match="holds no rows"):
        list(read_rows(write(path, HEAD)))
    with pytest.raises(UsageError, match="is empty"):
        list(read_rows(write(path, "")))
    with pytest.raises(ProblemsError, match=r"'edited' is missing \(is it 'edit'\?\); columns found: edit, prompt"):
        list(read_rows(write(path, "edit,prompt\na,b\n")))
    with pytest.raises(ProblemsError, match="a column without a name"):
        list(read_rows(write(path, "edited,prompt,\na,b,c\n")))


def test_jsonl(tmp_path: Path) -> None:
    lines = [
        json.dumps({"edited": "a.png", "prompt": "ü\n", "seed": 3, "tags": {"steps": 50}}),
        "",
        '{"edited": "a.png", "prompt": "x", "prompt": "y"}',
        '{"edited": "a.png", "prompt": "x", "score": NaN}',
        "[1]",
        "{",
    ]
    first, twice, constant, array, broken = read_rows(write(tmp_path / "m.jsonl", "\n".join(lines)))
    assert first.values == {"edited": "a.png", "prompt": "ü\n", "seed": 3, "tags": {"steps": 50}}
    assert first.where.endswith("m.jsonl line 1")
    assert twice.problem == "not a JSON object: the key 'prompt' stands there twice"
    assert constant.problem == "not a JSON object: NaN is not JSON; leave the value out or write null"
    assert array.problem == "expected a JSON object, got list"
    assert (broken.problem or "").startswith("not a JSON object")
    assert broken.where.endswith("line 6")
    with pytest.raises(ProblemsError, match=r"line 1: unknown column 'promt'; did you mean 'prompt'\?"):
        list(read_rows(write(tmp_path / "m.jsonl", '{"edited": "a", "promt": "b"}')))


def test_parquet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pyarrow")
    path = tmp_path / "m.parquet"
    pd.DataFrame({"edited": ["a.png", "b.png"], "prompt": ["x", "y"], "seed": [1, None]}).to_parquet(path)
    rows = list(read_rows(path))
    assert [row.values["edited"] for row in rows] == ["a.png", "b.png"]
    assert rows[1].where.endswith("row 1")
    assert rows[0].base == tmp_path
    with pytest.raises(UsageError, match="not a readable Parquet file"):
        list(read_rows(write(tmp_path / "bad.parquet", "hello")))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtraError, match=r"pip install '.*\[parquet\]'"):
        list(read_rows(path))


def test_files_that_are_no_manifest(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no such manifest; paths are relative to"):
        next(read_rows(tmp_path / "none.csv"))
    with pytest.raises(UsageError, match=r"a manifest ends in \.csv.*got '\.txt'"):
        next(read_rows(write(tmp_path / "m.txt", "x")))
    assert is_manifest("a/B.CSV")
    assert is_manifest(Path("x.jsonl"))
    assert not is_manifest("a.png")
    assert not is_manifest(b"a.csv")


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("promt", "prompt"), ("prompts", "prompt"), ("Prompt", "prompt"), ("image-id", "image_id"), ("imageid", "image_id"),
        ("Image Id", "image_id"), ("sede", "seed"), ("seeds", "seed"), ("ids", "id"), ("methode", "method"),
        ("categroy", "category"), ("purifer", "purifier"), ("orignal", "original"), ("promptkind", "prompt_kind"),
        ("arms", "arm"), ("controls", "control"),
    ],
)  # fmt: skip
def test_near_misses_of_known_columns(name: str, meant: str) -> None:
    (problem,) = column_problems([name], "m.csv")
    assert problem.what.startswith(f"unknown column {name!r}; did you mean {meant!r}?")


@pytest.mark.parametrize(
    "name", ["steps", "guidance", "seed2", "prompt_2", "strength", "eps", "notes", "editor_version", "lang", "ssim", "tags"]
)  # fmt: skip
def test_other_names_are_tags(name: str) -> None:
    assert column_problems([name], "x") == []


def test_names_of_results_cannot_be_tags() -> None:
    assert column_problems(COLUMNS, "x") == []
    (problem,) = column_problems(["case_id"], "x")
    assert "a name of the results' own" in problem.what


def test_frames_and_mappings() -> None:
    frame = pd.DataFrame({"edited": ["a"], "prompt": ["b"], "x": [1.5]}, index=[17])
    (row,) = frame_rows(frame)
    assert (row.where, row.values) == ("row 0", {"edited": "a", "prompt": "b", "x": 1.5})
    with pytest.raises(UsageError, match="column 'edited' more than once"):
        list(frame_rows(pd.DataFrame([[1, 2]], columns=["edited", "edited"])))
    with pytest.raises(ProblemsError, match="column 'prompt' is missing"):
        list(frame_rows(pd.DataFrame({"edited": ["a"]})))
    with pytest.raises(ProblemsError, match="row 1: unknown column 'sede'"):
        list(mapping_rows([{"edited": "a", "prompt": "b"}, {"edited": "a", "prompt": "b", "sede": 1}]))
    with pytest.raises(UsageError, match="row 1: expected a mapping of columns, got str"):
        list(mapping_rows([{"edited": "a", "prompt": "b"}, "c"]))
