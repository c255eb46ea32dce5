"""What isr.immunize and `isr immunize` refuse or say aloud: budgets too small to change a pixel, sizes, prompts, values of
--set, and pictures that come back as they were."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from immunize_toys import Plain

from isr.cli import main
from isr.cli.immunize import _setting
from isr.errors import UsageError
from isr.immunization import immunize
from isr.making import make_attack
from isr.perturbation import Budget
from isr.photos import immunize_photos, read_prompts
from isr.registry import ATTACKS
from isr.working import working_size


class Adder:
    """Adds `levels` to every value of a picture that is not black; black ones come back as they are."""

    name = "adder"

    def __init__(
        self, levels: int = 5, *, eps: float = 0.03, norm: str = "linf", why_not: str = "", flag: Any = None
    ) -> None:
        self.levels, self.why_not, self.flag, self.budget = levels, why_not, flag, {"norm": norm, "eps": eps}
        self.seen: list[str | None] = []

    def check(self, editor: Any) -> None:
        if self.why_not:
            raise UsageError(self.why_not)

    def immunize(
        self,
        images: Sequence[PIL.Image.Image],
        prompts: Sequence[str | None],
        *,
        editor: Any = None,
        seeds: Sequence[int],
        masks: Any = None,
    ) -> list[PIL.Image.Image]:
        self.seen += prompts
        out = []
        for image in images:
            levels = np.asarray(image).astype(int)
            out.append(PIL.Image.fromarray((levels + self.levels * bool(levels.any())).clip(0, 255).astype(np.uint8)))
        return out

    def settings(self) -> Mapping[str, Any]:
        return {"attack": "adder", "flag": self.flag, "budget": self.budget}


GREY, BLACK = PIL.Image.new("RGB", (16, 16), (128, 128, 128)), PIL.Image.new("RGB", (16, 16))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    (tmp_path / "photos").mkdir()
    GREY.save(tmp_path / "photos" / "a.png")
    BLACK.save(tmp_path / "photos" / "b.png")
    return tmp_path / "photos"


@pytest.fixture
def made() -> Iterator[list[Adder]]:
    """Adders that were made under the name "adder"."""
    found: list[Adder] = []

    def adder(**settings: Any) -> Adder:
        found.append(Adder(**settings))
        return found[-1]

    adder.__signature__ = inspect.signature(Adder)  # type: ignore[attr-defined]
    ATTACKS.register("adder", adder)
    yield found
    ATTACKS.unregister("adder")


# --------------------------------------------------------------------------------- budgets that change nothing


def test_a_budget_below_one_level_is_refused() -> None:
    # 0.003 · 255 = 0.765 levels, and an 8-bit value changes by whole ones; 1/255 is one level exactly.
    for norm in ("linf", "l2"):
        with pytest.raises(UsageError, match=r"eps 0\.003 .*less than one of 255 levels .*at least 1/255"):
            Budget(norm, 0.003)  # type: ignore[arg-type]
        assert Budget(norm, 1 / 255).levels == 1  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="at least 1/255"):
        make_attack("noise", eps=0.003)
    with pytest.raises(UsageError, match="at least 1/255"):
        immunize([GREY], attack=Adder(eps=0.003))


def test_command_refuses_a_budget_below_one_level(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "o"
    assert main(["immunize", str(photos), "--attack", "noise", "--eps", "0.003", "--out", str(out), "--quiet"]) == 1
    told = capsys.readouterr()
    assert "at least 1/255" in told.err
    assert told.out == ""
    assert not out.exists()


# --------------------------------------------------------------------------------- pictures that were not changed


def test_unchanged_pictures_are_named_and_counted() -> None:
    with pytest.warns(UserWarning, match=r"adder left 2 of 3 pictures as they were.*: images\[0\], images\[2\]"):
        immunize([BLACK, GREY, BLACK], attack=Adder())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        immunize([GREY], attack=Adder())
        immunize([], attack=Adder())


def test_an_l2_budget_that_rounding_takes_back_is_explained() -> None:
    # 0.03 · 255 = 7.65 levels for the whole picture of 768 values: 0.28 levels each, which round to none.
    with pytest.warns(UserWarning, match=r"adder left 1 of 1 picture as it was.*L2 budget of 0\.03 .*images\[0\]"):
        immunize([GREY], attack=Adder(norm="l2"), over_budget="project")


def test_a_black_mask_is_the_reason_that_is_given() -> None:
    masks = [PIL.Image.new("L", (16, 16), v) for v in (0, 255, 20)]
    with pytest.warns(
        UserWarning, match=r"images\[0\] \(its mask is black\), images\[2\] \(its mask lets no level change\)"
    ):
        immunize([GREY] * 3, attack=Adder(), masks=masks)


def test_photos_that_were_not_changed_are_named_once_in_every_run(photos: Path, tmp_path: Path) -> None:
    BLACK.resize((8, 8)).save(photos / "c.png")
    for _ in range(2):  # the second run finds them in the record
        with pytest.warns(UserWarning, match=r"adder left 2 of 3 pictures as they were.*: b\.png, c\.png$") as told:
            immunize_photos([photos], tmp_path / "o", attack=Adder(), progress=False)
        assert len(told) == 1


@pytest.mark.usefixtures("made")
def test_command_does_not_call_unchanged_photos_protected(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--attack", "adder", "--out", str(tmp_path / "o"), "--quiet"]
    assert main(["immunize", str(photos), *arguments]) == 1
    told = capsys.readouterr()
    assert "1 photo protected, 1 photo NOT protected" in told.out
    assert "isr immunize: adder left 1 of 2 pictures as they were" in told.err
    assert "b.png" in told.err
    assert main(["immunize", str(photos / "a.png"), *arguments]) == 0
    assert "NOT" not in capsys.readouterr().out


# -------------------------------------------------------------------------------------------------------- sizes


@pytest.mark.parametrize("size", [-3, 0, 3, 7, True, 64.0, "64"])
def test_sizes_below_the_editors_multiple_are_refused(size: Any, photos: Path, tmp_path: Path) -> None:
    match = r"size must be a whole number of at least 8 pixels \(size_multiple of 'plain'\), not "
    with pytest.raises(UsageError, match=match):
        working_size(64, 64, Plain(), size)
    attack = Adder()
    with pytest.raises(UsageError, match=match):
        immunize([GREY], attack=attack, editor=Plain(), size=size)
    with pytest.raises(UsageError, match=match):
        immunize_photos([photos], tmp_path / "o", attack=attack, editor=Plain(), size=size, progress=False)
    assert attack.seen == []
    assert not (tmp_path / "o").exists()


def test_a_size_is_checked_without_an_editor_too() -> None:
    with pytest.raises(UsageError, match="size must be a whole number of at least 1 pixel, not -3"):
        immunize([GREY], attack="noise", size=-3)
    assert working_size(64, 64, Plain(), 8) == (8, 8)
    assert working_size(64, 64, Plain(), np.int64(16)) == (16, 16)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------- before anything is made


def test_nothing_is_made_before_the_attack_agrees(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "o"
    with pytest.raises(UsageError, match="no image condition"):
        immunize_photos([photos], out, attack=Adder(why_not="no image condition"), editor=Plain(), progress=False)
    with pytest.raises(UsageError, match="at least 1/255"):
        immunize_photos([photos], out, attack=Adder(eps=0.001), progress=False)
    assert not out.exists()


def test_an_output_that_cannot_be_a_folder_is_one_clear_error(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UsageError, match=r"out \(.*file.*\) cannot be a folder"):
            immunize_photos([photos], out, attack=Adder(), progress=False)


# ------------------------------------------------------------------------------------------------------ prompts


@pytest.mark.usefixtures("made")
def test_a_text_that_is_a_path_is_read_as_one(
    photos: Path, tmp_path: Path, made: list[Adder], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / "b.png").unlink()
    monkeypatch.chdir(tmp_path)
    for name in ("prompts.csv", "prompts.txt"):
        Path(name).write_text("image,prompt\na.png,make it red\n")
        (row,) = immunize_photos([photos], tmp_path / f"of {name}", attack="adder", prompts=name, progress=False)
        assert row["prompt"] == "make it red"
    with pytest.raises(UsageError, match=r"prompts must be a CSV file .* missing\.CSV is not there"):
        immunize_photos([photos], tmp_path / "o", attack="adder", prompts="missing.CSV", progress=False)
    long = "make it red, " * 100  # longer than a file name may be
    (row,) = immunize_photos([photos], tmp_path / "long", attack="adder", prompts=long, progress=False)
    assert row["prompt"] == long
    out = ["--attack", "adder", "--out", str(tmp_path / "o"), "--quiet"]
    assert main(["immunize", str(photos), "--prompt", "missing.csv", *out]) == 1
    assert "missing.csv is not there" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (
            b"image,prompt\na.png,make it red, please\n",
            "line 2: more cells than columns; put a prompt with commas in quotes",
        ),
        (b'image,prompt\na.png,"' + b"x" * 200_000 + b'"\n', r"p\.csv cannot be read as CSV"),
        (b"\xff\xfe\x00", "is not UTF-8 text"),
    ],
)
def test_prompt_files_that_are_wrong_are_one_clear_error(content: bytes, match: str, tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_bytes(content)
    with pytest.raises(UsageError, match=match):
        read_prompts(tmp_path / "p.csv")
    with pytest.raises(UsageError, match="is not there"):
        read_prompts(tmp_path / "none.csv")
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(UsageError, match="is a folder"):
        read_prompts(tmp_path / "folder.csv")


# -------------------------------------------------------------------------------------------------------- --set


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("False", False), ("false", False), ("no", False), ("True", True), ("TRUE", True), ("yes", True), ("None", None),
        ("null", None), ("none", None), ('"none"', "none"), ("3", 3), ("0.5", 0.5), ("[1, 2]", [1, 2]), ("sum", "sum"), ("", ""),
        ("a=b", "a=b"),
    ],
)  # fmt: skip
def test_values_of_set(text: str, value: Any, photos: Path, tmp_path: Path, made: list[Adder]) -> None:
    arguments = ["immunize", str(photos / "a.png"), "--attack", "adder", "--out", str(tmp_path / "o"), "--quiet"]
    assert main([*arguments, "--set", f"flag={text}"]) == 0
    assert made[-1].flag == value
    assert type(made[-1].flag) is type(value)


def test_false_reaches_a_real_attack() -> None:
    assert _setting("reclip=False") == ("reclip", False)
    pytest.importorskip("torch")
    assert make_attack("sifm", **dict([_setting("reclip=False")])).settings()["pgd"]["reclip"] is False


@pytest.mark.usefixtures("made")
@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["--set", "flag"], "--set takes NAME=VALUE"),
        (["--set", "=3"], "--set takes NAME=VALUE"),
        (["--set", "flag=[a, b]"], "--set flag: [a, b] begins like JSON but is not"),
        (["--set", "flags=3"], "attack 'adder' takes no setting 'flags'; it takes levels, eps, norm, why_not, flag"),
        (["--set", "attack=noise"], "attack 'adder' takes no setting 'attack'"),
        (["--prompts", "missing.csv"], "missing.csv is not there"),
        (["--prompts", "."], "is a folder"),
        (["--size", "0"], "size must be a whole number of at least 1 pixel, not 0"),
        (["--attack", "noise", "--set", "kind=no"], "kind must be 'uniform' or 'sign', not False"),
        (["--attack", "noise", "--set", "eps=lots"], "eps must be a positive number"),
        (["--attack", "noise", "--set", "eps=NaN"], "eps must be a positive number"),
        (["--attack", "sifm", "--set", "attack=x"], "sifm has no setting 'attack'"),
    ],
)
def test_wrong_values_are_one_clear_line(
    arguments: list[str], match: str, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if "sifm" in arguments:
        pytest.importorskip("torch")
    out = tmp_path / "o"
    assert main(["immunize", str(photos), "--attack", "adder", "--out", str(out), "--quiet", *arguments]) == 1
    told = capsys.readouterr()
    assert match in told.err
    assert told.err.startswith("isr immunize: ")
    assert told.err.count("\n") == 1
    assert not out.exists()
