"""Experiment files: what they may say, and errors that name the key."""

from __future__ import annotations

from pathlib import Path

import pytest
from bench_help import plan_of, toy

from isr.bench.dataset import load_items
from isr.bench.experiment import SHIPPED, Experiment, load_experiment
from isr.errors import ProblemsError, UsageError


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_files_are_valid_and_name_registered_plugins(name: str) -> None:
    experiment = load_experiment(name)
    assert experiment.name == name
    assert experiment.judging.judges


def test_quick_plans_without_weights() -> None:
    experiment = load_experiment("quick")
    plan = plan_of(experiment)
    # 6 pictures × (2 attacks + noise); edits: 6 pictures × 2 prompts × (control + 3).
    assert (plan.count("immunize"), plan.count("edit"), len(plan.cases)) == (18, 48, 36)


def test_paper_has_the_protocol_of_the_paper() -> None:
    experiment = load_experiment("paper")
    main = [a.title for a in experiment.attacks if a.table == "main"]
    assert main == ["PhotoGE", "PhotoGD", "ED", "ACE", "SDS", "MIST", "SA", "SIFM"]
    assert [(p.source, p.target) for p in experiment.matrix] == [
        ("sd3", "sd3"), ("ip2p", "ip2p"), ("hq-edit", "hq-edit"), ("ip2p", "sd3"), ("sd3", "ip2p"),
    ]  # fmt: skip
    assert [a.options["lam"] for a in experiment.attacks if a.table == "lambda"] == [
        0.001,
        0.01,
        1.0,
        10.0,
        100.0,
        1000.0,
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"editors": [{"name": "mymodule:Editor"}]}, r"editors\.0\.name: 'mymodule:Editor' is not the name"),
        ({"attacks": [{"name": "sifmm"}]}, r"attacks\.0\.name: no attack is called 'sifmm'. Did you mean 'sifm'"),
        ({"editors": [{"name": "ip2p", "options": {"allow_pickle": True}}]}, r"editors\.0\.options: 'allow_pickle' cannot be set"),
        ({"attacks": [{"name": "sifm", "options": {"checkpoint": "/x"}}]}, r"attacks\.0\.options: 'checkpoint' cannot be set"),
        ({"attacks": [{"name": "sifm", "options": 3}]}, r"attacks\.0\.options: Input should be a valid dictionary"),
        ({"purifiers": ["os:system"]}, r"purifiers\.0\.name: no purifier is called 'os'"),
        ({"judging": {"judges": [], "votes": 2}}, r"judging: votes must be odd, got 2"),
        ({"judging": {"consensus": "best"}}, r"judging\.consensus: no consensus policy is called 'best'"),
        ({"colour": "red"}, r"colour: no such key"),
        ({"pairs": [{"source": "toy", "target": "toi"}]}, r"pairs\.0\.target: no editor is labelled 'toi'"),
        ({"attacks": [{"name": "toy-shift"}] * 2}, r"attacks: 'toy-shift' stands twice"),
        ({"data": {"source": "manifest"}}, r"data: source = 'manifest' needs path"),
        ({"editors": []}, r"editors: Tuple should have at least 1 item"),
        ({"name": "../x"}, r"name: String should match"),
    ],
)  # fmt: skip
def test_errors_name_the_key(changes: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        toy(**changes)


def test_every_wrong_key_is_named_at_once() -> None:
    with pytest.raises(UsageError, match=r"(?s)seeds\.redraws.*batch\.edit"):
        toy(seeds={"redraws": 0}, batch={"edit": 0})


def test_a_file_that_is_not_there_lists_the_shipped_ones(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot read .*Shipped with the package: quick, miniworld, paper"):
        load_experiment(tmp_path / "nothing.toml")
    (tmp_path / "broken.toml").write_text("name = ")
    with pytest.raises(UsageError, match="not valid TOML"):
        load_experiment(tmp_path / "broken.toml")


def test_judges_of_a_file_need_allow_host() -> None:
    from isr.bench.judging import experiment_judges

    experiment = toy(judging={"judges": ["openai:m@https://somewhere.example/v1"]})
    with pytest.raises(UsageError, match="allow-host"):
        experiment_judges(experiment)
    assert len(experiment_judges(experiment, ["somewhere.example"])) == 1


def test_a_stored_experiment_is_read_without_its_plugins() -> None:
    record = toy().record() | {"editors": [{"name": "not-installed"}]}
    with pytest.raises(UsageError, match="no editor is called"):
        Experiment.of(record, source="x")
    assert Experiment.of(record, source="x", stored=True).editors[0].name == "not-installed"
    assert Experiment.of(toy().record(), source="x", stored=True).hash == toy().hash


def test_manifests_list_everything_that_is_wrong(tmp_path: Path) -> None:
    import PIL.Image

    PIL.Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "images.csv").write_text(
        "image,prompt,unseen_1\na.png,make it snow,make it rain\nb.png,x,y\na.png,z,\n,p,q\n", "utf-8"
    )
    base = toy(data={"source": "manifest", "path": "images.csv"}).record()
    experiment = Experiment.of(base, source="x", folder=tmp_path)
    with pytest.raises(ProblemsError) as caught:
        load_items(experiment)
    text = str(caught.value)
    assert "row 2" in text
    assert "row 3: has 0 unseen prompts, the experiment wants 1" in text
    assert "row 4: needs the columns" in text
    (tmp_path / "images.csv").write_text(
        "image,prompt,unseen_1,category\na.png,make it snow,make it rain,art\n", "utf-8"
    )
    (item,) = load_items(experiment)
    assert (item.prompt, item.prompts[1], item.category) == ("make it snow", ("unseen", "make it rain"), "art")


def test_miniworld_has_five_unseen_prompts_and_no_more() -> None:
    with pytest.raises(
        UsageError, match=r"prompts\.unseen: 6 are wanted, and MiniWorld has 5 unseen prompts per picture"
    ):
        load_items(toy(prompts={"unseen": 6}))
    assert len(load_items(toy(prompts={"unseen": 5}))[0].prompts) == 6
    assert load_items(toy(prompts={"kinds": ["original"], "unseen": 9}))
