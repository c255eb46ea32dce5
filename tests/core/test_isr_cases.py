"""From everything a user may hand in to ordered records: forms, columns, controls, ids, streams."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from isr import images
from isr.cases import EditCase, Prepared, iter_prepared, prepare
from isr.errors import ProblemsError, UsageError
from isr.images import BadImage, FileMemo, ImageRef, as_image
from isr.schema import CaseRecord, case_hash


def picture(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (8, 6, 3), dtype=np.uint8)


A = [picture(i) for i in range(12)]
DIGEST = [as_image(a).digest for a in A]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for index, array in enumerate(A):
        Image.fromarray(array).save(tmp_path / f"{index}.png")
    (tmp_path / "broken.png").write_bytes((tmp_path / "0.png").read_bytes()[:-30])
    return tmp_path


def problems(*args: Any, **kwargs: Any) -> list[str]:
    with pytest.raises(ProblemsError) as caught:
        prepare(*args, **kwargs)
    return [str(problem) for problem in caught.value.problems]


def essence(record: CaseRecord) -> dict[str, Any]:
    return record.model_dump(exclude={"edited_name", "original_name"})


# ----------------------------------------------------------------------------------------------------------- forms


def test_every_form_of_the_same_input_gives_the_same_records(folder: Path) -> None:
    pytest.importorskip("pyarrow")
    columns = {"method": ["SIFM", "ACE"], "seed": [1, 2], "id": ["a", "b"], "note": ["x", "y"]}
    prompts = ["add snow", 'say "hi"\nand wave']
    rest: dict[str, Any] = {"originals": A[2:4], "controls": A[4:6], "columns": columns}
    expected = prepare(A[:2], prompts, **rest)
    table = {
        "edited": ["0.png", "1.png"], "prompt": prompts, "original": ["2.png", "3.png"], "control": ["4.png", "5.png"],
        **columns,
    }  # fmt: skip
    frame = pd.DataFrame(table)
    frame.to_csv(folder / "m.csv", index=False)
    frame.to_json(folder / "m.jsonl", orient="records", lines=True)
    frame.to_parquet(folder / "m.parquet")
    absolute = frame.copy()
    for name in ("edited", "original", "control"):
        absolute[name] = [str(folder / value) for value in absolute[name]]
    cases = [
        EditCase(
            A[i], prompts[i], A[2 + i], A[4 + i],
            id="ab"[i], method=["SIFM", "ACE"][i], seed=i + 1, tags={"note": "xy"[i]},
        )
        for i in range(2)
    ]  # fmt: skip
    forms: dict[str, Prepared] = {
        "csv": prepare(folder / "m.csv"),
        "csv by text": prepare(str(folder / "m.csv")),
        "jsonl": prepare(folder / "m.jsonl"),
        "parquet": prepare(folder / "m.parquet"),
        "frame": prepare(absolute),
        "mappings": prepare(absolute.to_dict("records")),
        "cases": prepare(cases),
        "columns as frame": prepare(A[:2], prompts, **{**rest, "columns": pd.DataFrame(columns)}),
        "4-D array": prepare(np.stack(A[:2]), np.array(prompts), **{**rest, "originals": np.stack(A[2:4])}),
        "series": prepare(pd.Series(A[:2]), pd.Series(prompts), **rest),
        "generator": prepare((a for a in A[:2]), iter(prompts), **rest),
    }
    assert [record.arm for record in expected.records] == ["immunized", "immunized", "control", "control"]
    for name, form in forms.items():
        assert [essence(r) for r in form.records] == [essence(r) for r in expected.records], name
    assert forms["csv"].records[0].edited_name == "0.png"
    assert expected.records[0].edited_name == "edits[0]"


def test_one_picture_with_one_prompt() -> None:
    for edit in (A[0], Image.fromarray(A[0]), A[0] / 255):
        (case,) = prepare(edit, "add snow", columns={"method": "SIFM"}).cases
        assert (case.record.edited, case.record.method, case.record.prompt) == (DIGEST[0], "SIFM", "add snow")
    prepared = prepare(A[0], "add snow", originals=A[1], controls=A[2])
    assert [record.arm for record in prepared.records] == ["immunized", "control"]
    (case,) = prepare(EditCase(A[0], "add snow")).cases
    assert isinstance(case.edited, ImageRef)


def test_a_torch_batch_is_a_list_of_pictures() -> None:
    torch = pytest.importorskip("torch")
    batch = torch.stack([torch.from_numpy(a.transpose(2, 0, 1).copy()) for a in A[:2]]) / 255
    assert [r.edited for r in prepare(batch, ["x", "y"]).records] == DIGEST[:2]


@pytest.mark.parametrize(
    ("args", "kwargs", "message"),
    [
        ((A[:2], ["x"]), {}, "lengths differ: edits has 2, prompts has 1"),
        ((A[:2], ["x", "y"]), {"originals": A[:1]}, "edits has 2, originals has 1"),
        ((A[:2], ["x", "y"]), {"columns": {"seed": [1, 2, 3]}}, "edits has 2, seed has 3"),
        ((A[:2], "x"), {}, "prompts is one text but edits is a list of 2"),
        ((A[0], ["x"]), {}, "edits is one picture, so prompts must be one text; got list"),
        ((A[:2], ["x", "y"]), {"originals": A[0]}, "originals is one picture but edits is a list of 2"),
        ((A[0], "x"), {"originals": A[:1]}, "edits is one picture, so originals must be one picture; got list"),
        ((A[:2],), {}, "prompts is missing"),
        (("a.png",), {}, "prompts is missing"),
        (([], []), {}, "edits is empty"),
        (([EditCase(A[0], "x")], ["x"]), {}, "prompts cannot be given beside a table of cases"),
        (("m.csv",), {"originals": A, "columns": {}}, "originals and columns cannot be given beside a table"),
        (([EditCase(A[0], "x"), A[1]],), {}, r"cases\[1\]: expected an EditCase .* got ndarray"),
        (({1, 2}, ["x", "y"]), {}, "edits must be an ordered list, got set"),
        ((3, ["x"]), {}, "edits must be a list with one entry per edit, got int"),
        (({"edited": "a"},), {}, "edits is one mapping"),
        ((A[:1], ["x"]), {"columns": [1]}, "columns must be a dict or a data frame, got list"),
        ((A[:1], ["x"]), {"columns": {"original": A[:1]}}, "give it as the argument originals= instead"),
        ((A[:2], ["x", "y"]), {"originals": [None, None]}, "originals holds no picture at all"),
        ((A[:1], ["x"]), {"on_bad_image": "ignore"}, 'on_bad_image must be "raise" or "skip"'),
        ((A[:1], ["x"]), {"max_side": 0}, "max_side must be a positive whole number"),
    ],
)
def test_arguments_that_do_not_fit_together(args: tuple[Any, ...], kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        prepare(*args, **kwargs)


# ------------------------------------------------------------------------------------------------ all problems at once


def test_everything_wrong_is_listed_at_once_by_name(folder: Path) -> None:
    columns = {
        "seed": [1, "two", 3, True, 5.5, 6],
        "arm": ["noise", "imm", None, "", "noise", "immunized"],
        "prompt_kind": ["original", "new", None, None, None, None],
        "sede": 1,
        "w": [{}, None, 1, 2, 3, float("inf")],
    }
    edits = [folder / "0.png", folder / "broken.png", "missing.png", A[0] * 2.0, None, 3.5]
    assert problems(edits, ["x", "", None, 7, "ok", "ok"], columns=columns) == [
        "columns: unknown column 'sede'; did you mean 'seed'? (rename a tag that is not)",
        "columns['w'][0]: a tag is text, a number or true/false, got dict",
        "prompts[1]: no prompt; every case needs the edit prompt that was used",
        "columns['seed'][1]: expected a whole number, got 'two'",
        "columns['prompt_kind'][1]: expected 'original' or 'unseen', got 'new'",
        "columns['arm'][1]: expected 'immunized' or 'control' or 'noise', got 'imm'",
        "prompts[2]: no prompt; every case needs the edit prompt that was used",
        "prompts[3]: expected text, got int (7)",
        "columns['seed'][3]: expected a whole number, got True",
        "columns['seed'][4]: expected a whole number, got 5.5",
        "edits[4]: no picture was given; every case needs the edit to be judged (other columns found: sede, w)",
        "columns['w'][5]: a tag must be finite, got inf",
        f"edits[1] ({folder / 'broken.png'}): the PNG file is truncated in its IDAT chunk; save or download it again",
        "edits[2] (missing.png): no such file",
        f"edits[3]: expected floats in [0, 1], got values from 0 to {2 * int(A[0].max())}; it looks like 0–255: divide by 255",
        "edits[5]: expected a path, bytes, a PIL image, a numpy array or a torch tensor, got float",
    ]


def test_problems_of_a_manifest_name_its_lines(folder: Path) -> None:
    text = (
        "edited,prompt,seed,arm\n0.png,x,1,immunized\nbroken.png,,x,immunized\n1.png,a,b,c,d\nnone.png,x,1,immunized\n"
    )
    (folder / "m.csv").write_text(text)
    where = f"{folder / 'm.csv'} line"
    assert problems(folder / "m.csv") == [
        f"{where} 4: 5 values for 4 columns; quote values that hold ','",
        f"{where} 3, prompt: no prompt; every case needs the edit prompt that was used",
        f"{where} 3, seed: expected a whole number, got 'x'",
        f"{where} 3, edited (broken.png): the PNG file is truncated in its IDAT chunk; save or download it again",
        f"{where} 5, edited (none.png): no such file",
    ]


def test_prompts_that_cannot_be_sent() -> None:
    assert problems(A[:1], ["\ud800"]) == ["prompts[0]: the prompt cannot be written as UTF-8: surrogates not allowed"]
    assert problems(A[:1], [float("nan")])[0].startswith("prompts[0]: no prompt")
    assert problems(pd.DataFrame({"edited": [A[0]], "prompt": [pd.NA]}))[0].startswith("row 0, prompt: no prompt")


def test_originals_for_all_or_none() -> None:
    assert problems(A[:3], list("xyz"), originals=[A[3], None, A[4]]) == [
        "originals[1]: no original, but 2 of 3 cases have one; judged with and without originals are different "
        "measurements: give all of them or none"
    ]
    with_, without = prepare(A[:1], ["x"], originals=A[1:2]), prepare(A[:1], ["x"])
    assert (with_.has_originals, without.has_originals) == (True, False)
    assert with_.records[0].case_id != without.records[0].case_id


def test_ids() -> None:
    assert problems(A[:3], list("xyz"), columns={"id": ["a", "b", "a"], "image_id": ["1", None, "2"]}) == [
        "columns['image_id'][1]: empty, but 2 of 3 cases have one; give all or none",
        "columns['id'][2]: 'a' is the id of columns['id'][0] too; ids are unique (what repeats per image is image_id)",
    ]


def test_image_id_defaults_to_the_digest_of_the_original() -> None:
    assert prepare(A[:2], ["x", "y"], originals=[A[5], A[5]]).records[1].image_id == DIGEST[5]
    named = prepare(A[:2], ["x", "y"], originals=[A[5], A[5]], columns={"image_id": [7, 8]})
    assert [record.image_id for record in named.records] == ["7", "8"]
    neither = prepare(A[:2], ["x", "y"])
    assert [record.image_id for record in neither.records] == [None, None]
    assert any("cases count as independent" in note for note in neither.notes)


def test_typed_columns_and_tags() -> None:
    columns = pd.DataFrame(
        {
            "seed": [1.0, np.nan], "category": ["a", None], "purifier": ["", "jpeg"], "prompt_kind": ["original", "unseen"],
            "image_id": [1, 2], "steps": [50, 20], "day": pd.to_datetime(["2026-01-02", None]), "flag": [True, False],
            "w": [0.5, np.nan],
        }
    )  # fmt: skip
    first, second = prepare(A[:2], ["x", "y"], columns=columns).records
    assert (first.seed, second.seed, first.category, second.category) == (1, None, "a", None)
    assert (first.purifier, second.purifier, second.prompt_kind) == (None, "jpeg", "unseen")
    assert first.tags == {"steps": 50, "day": "2026-01-02T00:00:00", "flag": True, "w": 0.5}
    assert second.tags == {"steps": 20, "day": None, "flag": False, "w": None}
    assert type(first.tags["steps"]) is int
    assert prepare([EditCase(A[0], "x", seed="12")]).records[0].seed == 12  # type: ignore[arg-type]
    assert problems([EditCase(A[0], "x", tags={"seed": 1, "case_id": "1", 3: 4})]) == [  # type: ignore[dict-item]
        "cases[0].tags: 'seed' is a column of its own, not a tag",
        "cases[0].tags: names of tags are text, got 3",
        "cases[0].tags: the column 'case_id' is a name of the results' own; rename or drop it",
    ]


def test_duplicates_get_an_ordinal_and_none_is_lost() -> None:
    prepared = prepare([A[0], A[1], A[0], A[0], A[0]], ["x", "x", "x", "y", "x"])
    plain = case_hash(edited=DIGEST[0], original=None, prompt="x")
    assert [prepared.records[i].case_id for i in (0, 2, 4)] == [plain, f"{plain}-1", f"{plain}-2"]
    assert len({r.case_id for r in prepared.records}) == 5
    assert any(note.startswith("2 exact duplicates") for note in prepared.notes)


# -------------------------------------------------------------------------------------------------------- controls


def test_methods_share_one_control() -> None:
    prepared = prepare(
        A[:4], ["x", "x", "x", "y"], originals=[A[8]] * 4, controls=[A[9], A[9].copy(), None, A[9]],
        columns={"method": ["SIFM", "ACE", "SDS", "SIFM"], "seed": 3, "id": list("abcd"), "category": "c", "eta": 1},
    )  # fmt: skip
    edits, controls = prepared.records[:4], prepared.records[4:]
    assert [r.prompt for r in controls] == ["x", "y"]  # one per prompt, not one per method
    assert [r.control for r in edits] == [controls[0].case_id, controls[0].case_id, None, controls[1].case_id]
    first = controls[0]
    assert (first.arm, first.edited, first.original, first.seed) == ("control", DIGEST[9], DIGEST[8], 3)
    assert (first.method, first.id, first.control, first.tags, first.category) == (None, None, None, {}, "c")
    assert first.image_id == edits[0].image_id == DIGEST[8]
    assert first.case_id == case_hash(edited=DIGEST[9], original=DIGEST[8], prompt="x", seed=3, arm="control")
    assert "1 of 4 edits have no control; paired figures use the others only." in prepared.notes


def test_each_seed_editor_and_purifier_has_its_own_control() -> None:
    columns = {"seed": [1, 2, 1, 1], "editor": ["e", "e", "f", "e"], "purifier": [None, None, None, "jpeg"]}
    prepared = prepare(A[:4], ["x"] * 4, originals=[A[8]] * 4, controls=[A[9]] * 4, columns=columns)
    assert len({r.control for r in prepared.records[:4]}) == 4
    assert [(r.seed, r.editor, r.purifier) for r in prepared.records[4:]] == [
        (1, "e", None), (2, "e", None), (1, "f", None), (1, "e", "jpeg"),
    ]  # fmt: skip


def explicit(rows: list[dict[str, Any]]) -> pd.DataFrame:
    return pd.DataFrame([{"prompt": "x", "image_id": "i", "seed": 1, **row} for row in rows])


def test_explicit_control_rows_are_paired_wherever_they_stand() -> None:
    prepared = prepare(
        explicit(
            [
                {"edited": A[0], "method": "SIFM"},
                {"edited": A[1], "method": "ACE"},
                {"edited": A[2], "arm": "control"},
                {"edited": A[3], "arm": "noise"},
                {"edited": A[4], "method": "SIFM", "seed": 2},
                {"edited": A[5], "method": "SIFM", "image_id": "j"},
                {"edited": A[6], "method": "SIFM", "prompt": "y"},
            ]
        )
    )
    control = prepared.records[2].case_id
    assert [r.control for r in prepared.records] == [control, control, None, control, None, None, None]
    assert [r.arm for r in prepared.records[:4]] == ["immunized", "immunized", "control", "noise"]
    assert "3 of 6 edits have no control; paired figures use the others only." in prepared.notes


def test_a_control_row_of_the_same_method_is_preferred_and_doubt_is_an_error() -> None:
    rows = [
        {"edited": A[0], "method": "SIFM"}, {"edited": A[1], "method": "ACE"},
        {"edited": A[2], "method": "ACE", "arm": "control"}, {"edited": A[3], "method": "SIFM", "arm": "control"},
    ]  # fmt: skip
    records = prepare(explicit(rows)).records
    assert [r.control for r in records[:2]] == [records[3].case_id, records[2].case_id]
    twice = prepare(explicit([rows[0], {"edited": A[2], "arm": "control"}, {"edited": A[2], "arm": "control"}])).records
    assert twice[0].control == twice[1].case_id
    doubt = problems(explicit([rows[0], {"edited": A[2], "arm": "control"}, {"edited": A[3], "arm": "control"}]))
    assert len(doubt) == 1
    assert doubt[0].startswith("row 0, control: 2 different control rows fit")


def test_control_rows_without_any_image_id_are_not_guessed() -> None:
    prepared = prepare([{"edited": A[0], "prompt": "x"}, {"edited": A[1], "prompt": "x", "arm": "control"}])
    assert prepared.records[0].control is None
    assert "Control rows cannot be paired without image_id or originals." in prepared.notes
    assert problems([{"edited": A[0], "prompt": "x", "arm": "control", "control": A[1]}]) == [
        'row 0, control: a row with arm="control" has no control of its own; leave it empty'
    ]


def test_controls_and_control_rows_that_are_the_same_are_one() -> None:
    prepared = prepare(explicit([{"edited": A[0], "control": A[2]}, {"edited": A[2], "arm": "control"}]))
    assert len(prepared.cases) == 2
    assert prepared.records[0].control == prepared.records[1].case_id


# ------------------------------------------------------------------------------------------------------ bad images


def test_skipped_pictures_keep_their_cases(folder: Path) -> None:
    prepared = prepare(
        [folder / name for name in ("0.png", "broken.png", "1.png")], list("xyz"),
        originals=[A[5], A[6], folder / "none.png"], controls=[folder / "broken.png", A[7], None], on_bad_image="skip",
    )  # fmt: skip
    assert len(prepared.cases) == 5
    good, broken, blind, bad_control, good_control = prepared.cases
    assert good.bad is None
    assert (broken.bad or "").startswith(f"{folder / 'broken.png'}: the PNG file is truncated")
    assert isinstance(broken.edited, BadImage)
    assert (broken.record.edited, broken.record.original) == (None, DIGEST[6])
    assert blind.bad == f"{folder / 'none.png'}: no such file"
    assert (blind.record.edited, blind.record.original) == (DIGEST[1], None)
    assert blind.record.image_id == f"unreadable:{folder / 'none.png'}"
    assert bad_control.record.case_id == good.record.control
    assert bad_control.bad == broken.bad
    assert good_control.bad is None
    # one file, one line: it is named where it was first used
    assert [p.item for p in prepared.bad] == [f"controls[0] ({folder / 'broken.png'})", f"originals[2] ({folder / 'none.png'})"]  # fmt: skip
    assert "2 pictures could not be read; their cases count as no verdict (bad_image)." in prepared.notes


def test_skip_keeps_objects_that_are_no_pictures_and_does_not_hide_other_mistakes() -> None:
    prepared = prepare([A[0], 3.5], ["x", "y"], on_bad_image="skip")
    assert [case.bad is None for case in prepared.cases] == [True, False]
    assert problems([A[0], "none.png"], ["", "x"], on_bad_image="skip")[0].startswith("prompts[0]: no prompt")


# ------------------------------------------------------------------------------------------------- pictures as sent


def test_max_side_shrinks_what_judges_see_and_not_what_is_stored() -> None:
    arguments: dict[str, Any] = {"originals": [A[2], A[2]], "controls": [A[3], None]}
    prepared, plain = prepare(A[:2], ["x", "y"], **arguments, max_side=4), prepare(A[:2], ["x", "y"], **arguments)
    for case in prepared.cases:
        assert isinstance(case.edited, ImageRef)
        assert isinstance(case.edited_sent, ImageRef)
        assert isinstance(case.original_sent, ImageRef)
        assert (case.edited.size, case.edited_sent.size, case.original_sent.size) == ((6, 8), (3, 4), (3, 4))
        assert case.record.edited == case.edited.digest != case.edited_sent.digest
    assert plain.records == prepared.records
    assert plain.cases[0].edited_sent is plain.cases[0].edited
    assert prepared.max_side == 4
    assert any("at most 4 pixels a side" in note for note in prepared.notes)


def test_a_shared_original_is_read_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    plain = images.ref._read_file

    def counted(path: str) -> Any:
        read.append(Path(path).name)
        return plain(path)

    monkeypatch.setattr(images.ref, "_read_file", counted)
    prepared = prepare([folder / f"{i}.png" for i in range(4)], list("wxyz"), originals=[folder / "9.png"] * 4)
    assert sorted(read) == ["0.png", "1.png", "2.png", "3.png", "9.png"]
    assert len({id(case.original) for case in prepared.cases}) == 1


# --------------------------------------------------------------------------------------------------------- streams


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 3), st.sampled_from("xy"), st.sampled_from([None, 4, 5]), st.sampled_from(["SIFM", "ACE"]),
            st.sampled_from(["immunized", "noise"]),
        ),
        min_size=1, max_size=12,
    )
)  # fmt: skip
def test_a_stream_gives_the_records_of_the_whole(rows: list[tuple[Any, ...]]) -> None:
    cases = [
        EditCase(
            A[edit], prompt, original=A[8], control=None if control is None else A[control], method=method, arm=arm
        )
        for edit, prompt, control, method, arm in rows
    ]
    whole = prepare(cases)
    stream = [case.record for case in iter_prepared(iter(cases), threads=2)]
    assert {r.case_id: r for r in stream} == {r.case_id: r for r in whole.records}
    assert len(stream) == len(whole.records)
    assert [r for r in stream if r.arm != "control"] == list(whole.records[: len(cases)])
    seen: set[str] = set()
    for record in stream:
        assert record.control is None or record.control in seen  # a control is out before the edit that needs it
        seen.add(record.case_id)
    assert len(seen) == len(stream)


def test_streams_skip_bad_pictures_and_stop_at_wrong_columns(folder: Path) -> None:
    def cases() -> Iterator[EditCase]:
        yield EditCase(folder / "0.png", "x", original=A[1])
        yield EditCase(folder / "broken.png", "x", original=A[1])
        yield EditCase(folder / "2.png", "x", original=A[1])
        yield EditCase(folder / "3.png", "", original=A[1])

    stream = iter_prepared(cases(), threads=2)
    assert [next(stream).bad is None for _ in range(3)] == [True, False, True]
    with pytest.raises(ProblemsError, match=r"cases\[3\]\.prompt: no prompt"):
        next(stream)
    with pytest.raises(ProblemsError, match="different measurements"):
        list(iter_prepared([EditCase(A[0], "x"), EditCase(A[1], "x", original=A[2])]))
    with pytest.raises(UsageError, match="expected an iterable of EditCases"):
        next(iter_prepared("pictures/"))
    with pytest.raises(ProblemsError, match="row 0: unknown column 'promt'"):
        next(iter_prepared([{"edited": A[0], "promt": "x"}]))


def test_streams_from_manifests_and_with_explicit_controls(folder: Path) -> None:
    frame = explicit([{"edited": "2.png", "arm": "control"}, {"edited": "0.png"}, {"edited": "1.png", "arm": "noise"}])
    frame.to_csv(folder / "m.csv", index=False)
    stream = [case.record for case in iter_prepared(folder / "m.csv")]
    assert [r.control for r in stream] == [None, stream[0].case_id, stream[0].case_id]
    assert stream == list(prepare(folder / "m.csv").records)


def test_a_stream_reads_no_further_than_it_must() -> None:
    drawn: list[int] = []

    def cases() -> Iterator[EditCase]:
        for index in range(1000):
            drawn.append(index)
            yield EditCase(A[index % 12], f"prompt {index}")

    stream = iter_prepared(cases(), threads=2)
    next(stream)
    assert len(drawn) <= 16
    stream.close()  # type: ignore[attr-defined]


@pytest.mark.slow
def test_memory_of_a_stream_does_not_grow_with_its_pictures(folder: Path) -> None:
    memo = FileMemo()

    def run(n: int) -> int:
        cases = (
            EditCase(
                folder / f"{i % 12}.png", f"{i}", original=folder / f"{i % 7}.png", control=folder / f"{i % 5}.png"
            )
            for i in range(n)
        )
        held = 0
        tracemalloc.start()
        for index, _ in enumerate(iter_prepared(cases, memo=memo), 1):
            if index == 2 * n:
                gc.collect()
                held = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        return held

    run(20)  # loads what is loaded once
    per_case = (run(4200) - run(200)) / 4000  # an edit and a control row of its own
    assert per_case < 600  # bytes: under 30 MB for 50,000 edits with 50,000 controls
