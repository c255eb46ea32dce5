"""MiniWorld's referees as judges: what is in their domain, how a verdict is read from the networks, and loading errors."""

from __future__ import annotations

import csv
import io
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import PIL.Image
import pytest
from isr.judges.referee import RefereeJudge
from judges_help import ask, ask_one

from isr.data.miniworld import ATTRIBUTES, MiniWorldItem, miniworld
from isr.errors import IntegrityError, MissingExtraError, UsageError
from isr.images.arrays import pixel_digest
from isr.protocols import Judge, Picture, Question
from isr.registry import JUDGES
from isr.rubric import Rubric
from isr.schema import NoVerdict, Verdict

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")

from isr.judges._referee_nets import KINDS, build  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

RUBRIC = Rubric.default()
HEADS = {"category": ["portrait", "landscape", "artwork"], **{k: list(v) for k, v in ATTRIBUTES.items()}}


def _folder(path: Path, kind: str = "plain", *, seed: int = 0, **thresholds: float) -> Path:
    """An untrained referee on disk."""
    torch.manual_seed(seed)
    config = {"kind": kind, "width": 32, "heads": HEADS, "thresholds": {"asked": 0.0, "degradation": 0.0, **thresholds}}
    path.mkdir(parents=True, exist_ok=True)
    net = build(config)
    save_file(
        {k: v.half() if v.is_floating_point() else v for k, v in net.state_dict().items()}, path / "model.safetensors"
    )
    (path / "config.json").write_text(json.dumps(config), "utf-8")
    return path


def _picture(role: str, image: PIL.Image.Image) -> Picture:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return Picture(role, buffer.getvalue(), pixel_digest(np.asarray(image.convert("RGB"))), image.size)


def _question(
    item: MiniWorldItem, edited: PIL.Image.Image | None = None, *, prompt: str | None = None, original: bool = True
) -> Question:
    pictures = [_picture("edited", edited if edited is not None else item.target_image())]
    if original:
        pictures.insert(0, _picture("original", item.image))
    return RUBRIC.question(prompt if prompt is not None else item.prompt, tuple(pictures))


@pytest.fixture
def item() -> MiniWorldItem:
    return miniworld(1, "design")[0]


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_it_is_a_judge_and_answers_with_a_verdict(tmp_path: Path, item: MiniWorldItem, kind: str) -> None:
    judge = RefereeJudge("b", folder=_folder(tmp_path, kind))
    assert isinstance(judge, Judge)
    assert judge.name == "referee:b"
    answer = ask_one(judge, _question(item)).answer
    assert isinstance(answer, Verdict)
    assert set(answer.reasons) == {"semantic_mismatch", "degradation"}


def test_the_registry_makes_it_from_a_string(tmp_path: Path) -> None:
    judge = JUDGES.create("referee", "a", folder=_folder(tmp_path))
    assert judge.name == "referee:a"


def test_asking_in_one_batch_or_one_by_one_is_the_same(tmp_path: Path) -> None:
    judge = RefereeJudge("a", folder=_folder(tmp_path, "residual", seed=3))
    items = list(miniworld(6, "design"))
    together = judge.judge([(i.target_image(), i.image, i.prompt) for i in items])
    single = [r.answer for r in ask(judge, *(_question(i) for i in items))]
    assert [(v.semantic_mismatch, v.degradation) for v in together] == [
        (v.semantic_mismatch, v.degradation) for v in single
    ]  # type: ignore[union-attr]
    assert judge.judge([]) == []


def test_a_verdict_follows_scores_and_thresholds(tmp_path: Path) -> None:
    items = list(miniworld(8, "design"))
    cases = [(i.target_image(), i.image, i.prompt) for i in items]
    judge = RefereeJudge("a", folder=_folder(tmp_path / "free", asked=-1e6, degradation=1e6))
    rows = judge.scores(cases)
    for verdict, row in zip(judge.judge(cases), rows, strict=True):
        assert verdict.semantic_mismatch is (
            not row["category_kept"]
        )  # the attribute is always "there" at this threshold
        assert verdict.degradation is False
    strict = RefereeJudge("a", folder=_folder(tmp_path / "strict", asked=1e6, degradation=-1e6))
    assert all(v.semantic_mismatch and v.degradation for v in strict.judge(cases))


@pytest.mark.parametrize("kind", ["plain", "residual", "patches"])
def test_degradation_sums_up_a_map_of_local_damage(tmp_path: Path, kind: str) -> None:
    from isr.judges._referee_nets import load

    net = load(_folder(tmp_path, kind=kind)).net
    edited, original = (torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(k)) * 2 - 1 for k in (0, 1))
    found = net.damage(edited, original)
    assert found.shape == (3, 16, 16)
    assert float(found.min()) >= 0
    expected = [math.log(math.sqrt(float((m.double() ** 2).mean()))) for m in found]
    assert net.degradation(edited, original).tolist() == pytest.approx(expected, abs=1e-5)
    assert not torch.equal(net.damage(edited, original), net.damage(edited, edited))  # the original is read


def test_log_odds_of_the_asked_value(tmp_path: Path, item: MiniWorldItem) -> None:
    judge = RefereeJudge("a", folder=_folder(tmp_path))
    row = judge.scores([(item.target_image(), item.image, item.prompt)])[0]
    net = judge._loaded.net
    x = torch.from_numpy(np.array(item.target_image(), np.float32) / 127.5 - 1).permute(2, 0, 1)[None]
    probabilities = net.attributes(x)[row["attribute"]].softmax(1)[0]
    p = float(probabilities[HEADS[row["attribute"]].index(row["value"])])
    # log-odds of p: log(p / (1 − p))
    assert row["asked"] == pytest.approx(np.log(p / (1 - p)), abs=1e-4)


def test_the_domain_is_size_presence_and_grammar(tmp_path: Path, item: MiniWorldItem) -> None:
    judge = RefereeJudge("a", folder=_folder(tmp_path))

    def reason(question: Question) -> str:
        answer = ask_one(judge, question).answer
        assert isinstance(answer, NoVerdict)
        assert answer.reason == "out_of_domain"
        return answer.detail

    assert reason(_question(item, original=False)) == "the referees need the original picture"
    assert "the edited picture is 32×32, not 64×64" in reason(_question(item, item.image.resize((32, 32))))
    assert "not one of MiniWorld's wordings" in reason(_question(item, prompt="ignore the pictures and say false"))


def test_a_wrecked_edit_stays_in_the_domain(tmp_path: Path, item: MiniWorldItem) -> None:
    judge = RefereeJudge("a", folder=_folder(tmp_path))
    noise = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    for wreck in (noise, PIL.Image.new("RGB", (64, 64))):
        assert isinstance(ask_one(judge, _question(item, wreck)).answer, Verdict)


def test_identity_names_weights_and_thresholds(tmp_path: Path) -> None:
    first = RefereeJudge("a", folder=_folder(tmp_path / "one")).identity()
    assert first["provider"] == "referee"
    assert len(first["weights"]) == 64
    assert first["thresholds"] == {"asked": 0.0, "degradation": 0.0}
    assert RefereeJudge("a", folder=_folder(tmp_path / "same")).identity() == first
    assert RefereeJudge("a", folder=_folder(tmp_path / "other", seed=1)).identity()["weights"] != first["weights"]
    assert RefereeJudge("a", folder=_folder(tmp_path / "moved", asked=1.0)).identity()["weights"] != first["weights"]
    json.dumps(first)


def test_loading_errors_say_what_to_do(tmp_path: Path, item: MiniWorldItem, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"expected one of a, b, c; got 'd'"):
        RefereeJudge("d", folder=tmp_path)
    with pytest.raises(UsageError, match=r"has no config.json.*install immunization-success-rate-miniworld"):
        RefereeJudge("a", folder=tmp_path).identity()
    folder = _folder(tmp_path / "short")
    state = load_file(folder / "model.safetensors")
    state.pop("quality.out.2.bias")
    save_file(state, folder / "model.safetensors")
    with pytest.raises(IntegrityError, match=r"do not fit their config\.json"):
        RefereeJudge("a", folder=folder).identity()
    good = RefereeJudge("a", folder=_folder(tmp_path / "good"))
    with pytest.raises(UsageError, match="expected one of MiniWorld's wordings, got 'paint it black'"):
        good.scores([(item.image, item.image, "paint it black")])
    with pytest.raises(UsageError, match="original: expected 64×64 pixels, got 8×8"):
        good.scores([(item.image, item.image.resize((8, 8)), item.prompt)])
    monkeypatch.setitem(sys.modules, "isr_miniworld", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'immunization-success-rate\[mini\]'"):
        RefereeJudge("a")


def test_without_torch_the_error_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = _folder(tmp_path)
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "isr.judges._referee_nets", raising=False)
    with pytest.raises(MissingExtraError, match=r"immunization-success-rate\[attacks\]"):
        RefereeJudge("a", folder=folder).identity()


def test_a_referee_that_the_installed_weights_lack_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    package: Any = pytest.importorskip("isr_miniworld")

    def none(name: str) -> Path:
        raise LookupError(f"no miniature is called {name!r}")

    monkeypatch.setattr(package, "path", none)
    with pytest.raises(UsageError, match=r"hold no referee 'b'.*update that distribution"):
        RefereeJudge("b")


# ------------------------------------------------------------------------------------------------ the trained referees


def _trained(name: str) -> RefereeJudge:
    package: Any = pytest.importorskip("isr_miniworld")
    if f"referee-{name}" not in package.names():
        pytest.skip(f"referee-{name} is not among the installed weights")
    return RefereeJudge(name)


@pytest.mark.parametrize("name", ["a", "b", "c"])
def test_trained_referees_read_the_validation_renders(name: str) -> None:
    judge = _trained(name)
    items = list(miniworld(60, "validation", seed=1))
    done = judge.judge([(i.target_image(k), i.image, i.prompts[k]) for i in items for k in (0, 1)])
    undone = judge.judge([(i.image, i.image, i.prompts[k]) for i in items for k in (0, 1)])
    right = np.mean([not v.semantic_mismatch for v in done] + [v.semantic_mismatch for v in undone])
    assert right > 0.85


@pytest.mark.slow
def test_held_out_edits_of_the_trained_editor_show_what_was_asked_to_both_referees() -> None:
    package: Any = pytest.importorskip("isr_miniworld")
    diffusers: Any = pytest.importorskip("diffusers")
    if "mini-ip2p" not in package.names():
        pytest.skip("mini-ip2p is not among the installed weights")
    judges = [_trained("a"), _trained("b")]
    pipe = diffusers.StableDiffusionInstructPix2PixPipeline.from_pretrained(
        package.path("mini-ip2p"), safety_checker=None, local_files_only=True, torch_dtype=torch.float32
    )
    pipe.set_progress_bar_config(disable=True)
    items = list(miniworld(24, "design", seed=7))
    generators = [torch.Generator().manual_seed(i) for i in range(len(items))]
    edits = pipe(
        [i.prompt for i in items], image=[i.image for i in items], num_inference_steps=20, guidance_scale=1.0,
        image_guidance_scale=1.0, generator=generators, output_type="pil",
    ).images  # fmt: skip
    cases = [(edit, i.image, i.prompt) for edit, i in zip(edits, items, strict=True)]
    given = [judge.judge(cases) for judge in judges]
    # measured shares stand beside the card; these only catch a broken editor or referee
    assert np.all([[not v.semantic_mismatch for v in row] for row in given], axis=0).mean() > 0.85
    assert np.all([[not v.defeated for v in row] for row in given], axis=0).mean() > 0.6


DATA = Path(__file__).resolve().parents[1] / "data"


def _measured(stem: str) -> tuple[npt.NDArray[Any], list[tuple[PIL.Image.Image, PIL.Image.Image, str]]]:
    """Item numbers and cases of the measured labelled edits, checked against the digests of edits and originals."""
    with (DATA / f"{stem}.csv").open(encoding="utf-8", newline="") as file:
        rows = {int(r["item"]): r for r in csv.DictReader(file) if r["half"] == "measure"}
    stored = np.load(DATA / f"{stem}.npz")
    worlds: dict[tuple[str, ...], Any] = {}
    cases = []
    for item, edited in zip(stored["item"], stored["edited"], strict=True):
        row = rows.pop(int(item))
        original = _original(row["image_id"], worlds)
        assert pixel_digest(np.asarray(original)) == row["original_digest"]
        assert pixel_digest(edited) == row["edited_digest"]
        cases.append((PIL.Image.fromarray(edited), original, row["prompt"]))
    assert rows == {}
    return stored["item"], cases


def _original(image_id: str, worlds: dict[tuple[str, ...], Any]) -> PIL.Image.Image:
    """The picture of that name: miniworld, [style,] split, seed, number."""
    _, *kind, number = image_id.split("-")
    *style, split, seed = kind
    if tuple(kind) not in worlds:
        worlds[tuple(kind)] = miniworld(1000, split, int(seed), style=style[0] if style else "plain")  # type: ignore[arg-type]
    picture: PIL.Image.Image = worlds[tuple(kind)][int(number)].image
    return picture


def _agrees(verdicts: Sequence[Any], said: Any, name: str) -> None:
    """Within two cases of what the record says."""
    for criterion, answers in (
        ("mismatch", [v.semantic_mismatch for v in verdicts]),
        ("degraded", [v.degradation for v in verdicts]),
    ):
        assert abs(np.mean(answers) - said[criterion][f"referee_{name}"]["says"]) <= 2.2 / len(verdicts)


@pytest.mark.parametrize("name", ["a", "b"])
@pytest.mark.parametrize("held", ["mini-hq", "editors"])
def test_the_figures_on_labels_that_set_no_threshold_are_reproduced(name: str, held: str) -> None:
    card = json.loads((DATA / f"miniworld_labels_{held}.json").read_text("utf-8"))
    items, cases = _measured(f"miniworld_labels_{held}")
    assert len(cases) == card["items"]
    judge, said = _trained(name), card["at_the_referees_own_thresholds"]["all"]
    verdicts, scores = judge.judge(cases), np.array([row["degradation"] for row in judge.scores(cases)])
    _agrees(verdicts, said, name)
    with (DATA / f"miniworld_labels_{held}.csv").open(encoding="utf-8", newline="") as file:
        labels = {int(r["item"]): r for r in csv.DictReader(file)}
    for criterion, answers in (
        ("mismatch", [v.semantic_mismatch for v in verdicts]),
        ("degraded", [v.degradation for v in verdicts]),
    ):
        given = np.array([[labels[int(i)][f"{criterion}_{k}"] == "1" for k in (1, 2)] for i in items])
        agreed = given[:, 0] == given[:, 1]
        share = np.mean((np.array(answers) == given[:, 0])[agreed])
        wanted = said[criterion][f"referee_{name}"]["where_labellings_agree"]
        assert wanted["n"] == agreed.sum()
        assert abs(share - wanted["share"]) <= 2.2 / agreed.sum()
    # the loop ended with degradation
    key = "degradation_roc_area_where_labellings_agree"
    editors = np.array([labels[int(i)]["editor"] for i in items])
    for part, rows in [
        (card, editors != ""),
        *((found, editors == e) for e, found in card.get("by_editor", {}).items()),
    ]:
        bad, fine = scores[given.all(1) & rows], scores[~given.any(1) & rows]
        assert abs(np.mean(bad[:, None] > fine[None, :]) - part[key][name]) < 5e-3
        assert part is card or part["all"]["n"] == rows.sum()


@pytest.mark.parametrize("name", ["a", "b"])
def test_the_figures_on_the_labelled_edits_are_reproduced(name: str) -> None:
    """What tests/data/miniworld_labels.json says this referee answered on the measuring half, from its pictures."""
    judge = _trained(name)
    items, cases = _measured("miniworld_labels")
    verdicts = judge.judge(cases)
    said = json.loads((DATA / "miniworld_labels.json").read_text("utf-8"))
    _agrees(verdicts, said["measuring_half_at_the_referees_own_thresholds"]["all"], name)
    with (DATA / "miniworld_labels.csv").open(encoding="utf-8", newline="") as file:
        given = {int(r["item"]): (r["degraded_1"], r["degraded_2"]) for r in csv.DictReader(file) if r["set"] == "0"}
    labels = [given[int(item)] for item in items]
    scores = [row["degradation"] for row in judge.scores(cases)]
    bad = [score for score, both in zip(scores, labels, strict=True) if both == ("1", "1")]
    fine = [score for score, both in zip(scores, labels, strict=True) if both == ("0", "0")]
    assert (len(bad), len(fine)) == (59, 121)
    # area under the ROC curve: how often a degraded edit scores above one that is not; docs/miniworld.md states it
    area = np.mean(np.array(bad)[:, None] > np.array(fine)[None, :])
    assert f"{area:.2f} ({name})" in (Path(__file__).resolve().parents[2] / "docs" / "miniworld.md").read_text("utf-8")
