"""The rater's way through a study, without a browser: order, blinding, going back, training, checks, pausing, withdrawing."""

from __future__ import annotations

import hashlib
import io
import re
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import PIL.Image
import pytest
from isr.human_study.examples import made_from
from isr.human_study.making import draft_study, new_study
from isr.human_study.results import progress
from isr.human_study.store import Store
from isr.human_study.study import Study
from starlette.testclient import TestClient
from study_help import (
    SECRET_NAMES,
    answer_fields,
    app_client,
    csrf,
    enter,
    key,
    make_run,
    make_study,
    organiser,
    rate_all,
)

import isr
from isr.errors import IntegrityError, UsageError

Site = tuple[Study, Store, TestClient]


@pytest.fixture
def site(tmp_path: Path) -> Site:
    study, store = make_study(tmp_path / "study")
    return study, store, app_client(study, store)


def test_a_whole_study_in_the_rubrics_order(site: Site) -> None:
    study, store, client = site
    rater = store.raters()[0]
    enter(client, store, rater)
    page = client.get("/item/1").text
    texts = [re.sub(r"\s+", " ", q.question) for q in study.questions]
    places = [page.index(text.replace("'", "&#39;")) for text in texts]
    assert places == sorted(places)
    assert [q.key for q in study.questions] == ["semantic_mismatch", "degradation", "overall"]
    visited = rate_all(client)
    assert visited == [f"/item/{i}" for i in range(1, 12)]  # 1 training, 8 items, 1 repeat, 1 attention check
    assert len(store.history()) == 11
    assert "All 11 answers are stored" in client.get("/done").text


def test_nothing_gives_the_method_away(site: Site) -> None:
    study, store, client = site
    enter(client, store, store.raters()[0])
    seen = []
    page = client.get("/item/1")
    while page.url.path.startswith("/item/"):
        seen.append(page)
        seen += [client.get(f"/image/{d}") for d in re.findall(r"/image/([0-9a-f]{64})", page.text)]
        page = client.post(page.url.path, data=answer_fields(page.text))
        seen.append(page)
        if page.url.path.startswith("/feedback/"):
            page = client.get("/")
    hidden = [
        *SECRET_NAMES,
        *(i.case_id for i in study.items if i.case_id),
        *(i.id for i in study.items),
        "repeat",
        "attention",
        "stratum",
    ]
    for response in seen:
        text = unquote(str(response.url)) + str(response.headers) + response.content.decode("latin-1")
        assert not [name for name in hidden if name and name in text], response.url


def test_orders_differ_and_stay(site: Site) -> None:
    study, store, _ = site
    one, two = (store.assignments(r.id) for r in store.raters())
    assert [a.item for a in one] != [a.item for a in two]
    assert [a.item for a in Store(study).assignments(1)] == [a.item for a in one]


def test_back_change_and_history(site: Site) -> None:
    _, store, client = site
    rater = store.raters()[0]
    enter(client, store, rater)
    first = client.get("/item/1")
    client.post("/item/1", data=answer_fields(first.text, "yes", comment="blurred edge"))
    again = client.get("/item/1").text
    assert re.search(r'name="q.semantic_mismatch" value="yes"[^>]*checked', again)
    assert "blurred edge" in again
    assert "Save the change" in again
    client.post("/item/1", data=answer_fields(again, "no"))
    history = store.history()
    assert [(a.revision, a.said["semantic_mismatch"], a.comment) for a in history] == [
        (1, True, "blurred edge"),
        (2, False, ""),
    ]
    current = store.current(store.assignments(rater.id)[0].id)
    assert current is not None
    assert current.revision == 2


def test_no_item_is_reachable_before_the_ones_before_it(site: Site) -> None:
    _, store, client = site
    enter(client, store, store.raters()[0])
    assert client.get("/item/5").url.path == "/item/1"
    assert client.get("/item/999").status_code == 404
    page = client.get("/item/1")
    refused = client.post("/item/3", data=answer_fields(page.text))
    assert refused.status_code == 409
    assert store.history() == []


def test_incomplete_answers_come_back_with_what_was_typed(site: Site) -> None:
    _, store, client = site
    enter(client, store, store.raters()[0])
    fields = answer_fields(client.get("/item/1").text, comment="keep <me>")
    del fields["q.degradation"]
    page = client.post("/item/1", data=fields)
    assert page.status_code == 422
    assert "Quality degradation" in page.text
    assert "keep &lt;me&gt;" in page.text
    assert re.search(r'name="q.overall" value="yes"[^>]*checked', page.text)
    plain = client.post("/item/1", data=fields, headers={"accept": "application/json"})
    assert (plain.status_code, plain.json()["error"]) == (422, "incomplete")
    assert store.history() == []


def test_a_double_click_is_one_answer(site: Site) -> None:
    _, store, client = site
    enter(client, store, store.raters()[0])
    fields = answer_fields(client.get("/item/1").text)
    replies = [client.post("/item/1", data=fields, headers={"accept": "application/json"}).json() for _ in range(3)]
    assert replies == [{"next": "/feedback/1", "revision": 1}] * 3
    assert len(store.history()) == 1
    changed = client.post("/item/1", data=fields | {"q.overall": "no"}, headers={"accept": "application/json"})
    assert (changed.status_code, changed.json()["error"]) == (409, "key-used")


def test_two_windows_lose_nothing(site: Site) -> None:
    _, store, client = site
    enter(client, store, store.raters()[0])
    one, two = client.get("/item/1").text, client.get("/item/1").text
    assert key(one) != key(two)
    client.post("/item/1", data=answer_fields(one, "yes"))
    client.post("/item/1", data=answer_fields(two, "no"))
    client.post(
        "/item/1", data=answer_fields(one, "yes")
    )  # the first window sends again: acknowledged, nothing changes
    assert [(a.revision, a.said["semantic_mismatch"]) for a in store.history()] == [(1, True), (2, False)]


def test_training_explains_and_is_no_rating(site: Site) -> None:
    study, store, client = site
    enter(client, store, store.raters()[0])
    page = client.post("/item/1", data=answer_fields(client.get("/item/1").text, "yes", "yes", "yes"))
    assert page.url.path == "/feedback/1"
    assert study.by_id["training-0"].feedback in page.text
    assert "Please compare" in page.text  # the black-and-white picture is what was asked for: no, no, no
    page = client.post("/item/1", data=answer_fields(client.get("/item/1").text, "no", "no", "no"))
    assert "That is what we see, too" in page.text
    assert client.get("/feedback/2").url.path == "/item/2"


def test_failed_checks_and_repeats_reach_the_organiser(site: Site) -> None:
    study, store, client = site
    rater = store.raters()[0]
    kinds = {a.position: a for a in store.assignments(rater.id)}
    enter(client, store, rater)

    def say(position: int) -> dict[str, str]:
        place = kinds[position]
        if place.kind == "attention":  # the opposite of every known answer
            expected = study.by_id[place.item].expected
            return {f"q.{k}": "no" if v else "yes" for k, v in expected.items()}
        return {"q.degradation": "cannot", "seconds": "0.4"} if place.kind == "repeat" else {}

    rate_all(client, say)
    row = progress(store)[0]
    assert (row.checks, row.repeats) == ((0, 1), (0, 1))
    assert (row.fast, row.cannot, row.seconds) == (1, 1, 3.5)
    boss = app_client(study, store)
    organiser(boss, store)
    assert "1 of 1" in boss.get("/organiser").text
    assert "finished" in boss.get("/organiser/table").text


def test_consent_comes_first_and_its_words_are_recorded(site: Site) -> None:
    study, store, client = site
    rater = store.raters()[0]
    (study.folder / "consent.md").write_text(
        "# Please agree\n\n<script>alert(1)</script> **Lab** ![x](http://else.where/x.png)"
    )
    client.post(f"/enter/{store.new_link(rater)}", data={"x": ""})
    for path in ("/item/1", "/instructions", "/"):
        assert client.get(path).url.path == "/consent"
    page = client.get("/consent")
    assert "&lt;script&gt;" in page.text
    assert "<script>alert" not in page.text
    assert "<strong>Lab</strong>" in page.text
    assert "<img" not in page.text
    no = client.post("/consent", data={"csrf": csrf(page.text), "agree": "no"})
    assert "nothing is stored" in no.text
    assert not store.rater("R1").consented
    item = study.by_id[store.assignments(rater.id)[0].item]
    assert client.get(f"/image/{item.edited}").status_code == 404
    client.post("/consent", data={"csrf": csrf(page.text), "agree": "yes"})
    digest = hashlib.sha256((study.folder / "consent.md").read_bytes()).hexdigest()
    assert [(w, d) for _, who, w, d in store.events() if who == "R1" and w == "consented"] == [("consented", digest)]


def test_pause_and_close(site: Site) -> None:
    study, store, client = site
    enter(client, store, store.raters()[0])
    open_page = client.get("/item/1").text
    boss = app_client(study, store)
    token = organiser(boss, store)
    boss.post("/organiser/state", data={"csrf": token, "state": "paused"})
    assert "paused" in client.get("/item/1").text
    # what was on screen when the pause came is kept
    client.post("/item/1", data=answer_fields(open_page))
    assert len(store.history()) == 1
    refused = boss.post("/organiser/state", data={"csrf": token, "state": "closed"})
    assert "Tick the box" in refused.text
    assert boss.get("/organiser/agreement").status_code == 403
    boss.post("/organiser/state", data={"csrf": token, "state": "closed", "sure": "yes"})
    late = client.post(
        "/item/1", data=answer_fields(open_page, "no", key="k" * 32), headers={"accept": "application/json"}
    )
    assert (late.status_code, late.json()["error"]) == (409, "closed")
    # a retry of an answer that was stored before is still acknowledged
    assert (
        client.post("/item/1", data=answer_fields(open_page), headers={"accept": "application/json"}).status_code == 200
    )
    assert len(store.history()) == 1
    assert client.get("/").url.path == "/done"
    with pytest.raises(UsageError, match="closed for good"):
        store.set_state("open")


def test_agreement_after_closing(site: Site) -> None:
    study, store, _ = site
    for rater in store.raters():
        client = app_client(study, store)
        enter(client, store, rater)
        rate_all(client)
    boss = app_client(study, store)
    token = organiser(boss, store)
    boss.post("/organiser/state", data={"csrf": token, "state": "closed", "sure": "yes"})
    page = boss.get("/organiser/agreement")
    assert page.status_code == 200
    assert "100 %" in page.text  # both said the same everywhere
    assert "Krippendorff" in page.text


def test_who_withdraws_after_closing_leaves_the_agreement_too(tmp_path: Path) -> None:
    study, store = make_study(tmp_path / "s", raters=3)
    clients = []
    for rater in store.raters():
        clients.append(app_client(study, store))
        enter(clients[-1], store, rater)
        no = {"mismatch": "no", "overall": "no"}
        rate_all(clients[-1], lambda _p, say=no if rater.label == "R3" else {}: say)  # type: ignore[misc]
    boss = app_client(study, store)
    organiser(boss, store)
    store.set_state("closed")
    assert "33 %" in boss.get("/organiser/agreement").text  # of three pairs one agrees
    page = clients[2].get("/withdraw")
    clients[2].post("/withdraw", data={"csrf": csrf(page.text), "sure": "yes"})
    page = boss.get("/organiser/agreement")
    assert "33 %" not in page.text
    assert "100 %" in page.text


def test_adding_a_rater_twice_by_a_double_click_adds_one(site: Site) -> None:
    study, store, _ = site
    boss = app_client(study, store)
    organiser(boss, store)
    page = boss.get("/organiser")
    known = re.search(r'name="known" value="(\d+)"', page.text)[1]  # type: ignore[index]
    fields = {"csrf": csrf(page.text), "known": known}
    assert "/enter/" in boss.post("/organiser/add", data=fields).text
    again = boss.post("/organiser/add", data=fields)
    assert "nobody was added" in again.text
    assert [r.label for r in store.raters()] == ["R1", "R2", "R3"]


def test_comments_in_any_script_and_without_control_characters(site: Site) -> None:
    _, store, client = site
    enter(client, store, store.raters()[0])
    said = "  žluťoučký 马 👩‍👩‍👧 \u202eabc\r\nsecond\x00 line\x1b[31m\t.  "
    client.post("/item/1", data=answer_fields(client.get("/item/1").text, comment=said))
    assert store.history()[0].comment == "žluťoučký 马 👩‍👩‍👧 \u202eabc\nsecond line[31m\t."


def test_withdrawing_takes_answers_out_and_erasing_deletes_them(site: Site) -> None:
    study, store, client = site
    enter(client, store, store.raters()[0])
    rate_all(client)
    page = client.get("/withdraw")
    client.post("/withdraw", data={"csrf": csrf(page.text), "sure": "yes"})
    assert client.get("/").status_code == 401
    boss = app_client(study, store)
    organiser(boss, store)
    assert "human:R1" not in boss.get("/organiser/ratings.csv").text
    assert "human:R1" not in boss.get("/organiser/answers.csv").text
    assert len(store.history()) == 11
    assert store.erase(store.rater("R1")) == 11
    assert store.history() == []
    assert "11 answers" in str(store.events())


def test_without_originals_there_is_one_picture(tmp_path: Path) -> None:
    study, store = make_study(tmp_path / "s", make_run(originals=False))
    client = app_client(study, store)
    enter(client, store, store.raters()[0])
    page = client.get("/item/1").text
    assert page.count("<img") == 1
    assert 'data-count="1"' in page


def test_each_item_by_some_of_the_raters(tmp_path: Path) -> None:
    _study, store = make_study(tmp_path / "s", raters=4, per_item=2, repeats=0)
    counts: dict[str, int] = {}
    for rater in store.raters():
        for place in store.assignments(rater.id):
            if place.kind == "rating":
                counts[place.item] = counts.get(place.item, 0) + 1
    assert set(counts.values()) == {2}
    assert len(counts) == 8
    store.revoke(store.rater("R2"))
    late = store.add_rater()
    lost = {p.item for p in store.assignments(2) if p.kind == "rating"}
    assert {p.item for p in store.assignments(late.id) if p.kind == "rating"} == lost


def test_the_folder_is_checked(tmp_path: Path) -> None:
    run = make_run()
    study = new_study(tmp_path / "s", run, 4, ["method", "prompt_kind"])
    with pytest.raises(UsageError, match="not empty"):
        new_study(tmp_path / "s", run, 4)
    path = study.folder / "study.json"
    path.write_text(path.read_text().replace("Does the edited picture", "Would the edited picture"))
    with pytest.raises(IntegrityError, match="rubric was changed"):
        Study(study.folder)
    with pytest.raises(UsageError, match=r"no study\.json"):
        Study(tmp_path)
    run.save(tmp_path / "small", images=False)
    with pytest.raises(UsageError, match="saved without its pictures"):
        new_study(tmp_path / "t", tmp_path / "small", 4)
    with pytest.raises(UsageError, match="no case of the arm 'noise'"):
        new_study(tmp_path / "t", run, 4, arm="noise")
    assert not (tmp_path / "t").exists()


def test_own_training_and_picked_cases(tmp_path: Path) -> None:
    from study_help import picture

    run = make_run()
    picture(5).save(tmp_path / "e.png")
    picture(6).save(tmp_path / "o.png")
    (tmp_path / "t.csv").write_text(
        "edited,original,prompt,semantic_mismatch,feedback\ne.png,o.png,do it,yes,because\n"
    )
    case = run.case_records[0].case_id
    study = new_study(
        tmp_path / "s", run, 4, ["method", "prompt_kind"], training=tmp_path / "t.csv", attention=0, picked=[case]
    )
    taught = study.by_id["training-0"]
    assert (taught.expected, taught.feedback, taught.prompt) == ({"semantic_mismatch": True}, "because", "do it")
    drawn = {i.case_id: i.inclusion_probability for i in study.items if i.kind == "rating"}
    assert case in drawn
    assert sum(p is not None for p in drawn.values()) == 4
    (tmp_path / "bad.csv").write_text("edited,original,prompt,semantic_mismatch\nnone.png,,x,yes\ne.png,,x,\n")
    with pytest.raises(UsageError, match=r"(?s)row 1.*row 2: no known answer"):
        new_study(tmp_path / "u", run, 4, training=tmp_path / "bad.csv")


def _png(pixels: np.ndarray) -> bytes:
    data = io.BytesIO()
    PIL.Image.fromarray(pixels.astype(np.uint8)).save(data, "PNG")
    return data.getvalue()


def test_made_checks_have_an_answer_that_a_rater_can_see() -> None:
    y, x = np.mgrid[0:32, 0:32]
    coloured = _png(np.stack([8 * x, 4 * y, 255 - 8 * x], axis=-1))
    symmetric = _png(np.stack([8 * y, 0 * y, 255 - 8 * y], axis=-1))
    grey = _png(np.repeat((8 * x)[..., None], 3, axis=2))
    prompts = lambda pngs, **o: [i.prompt.split()[0] for i in made_from(pngs, 6, "attention", seed=0, **o)[0]]  # noqa: E731
    assert set(prompts([coloured], with_originals=True)) == {"Turn", "Mirror"}
    # left and right cannot be told without the original: only the noise is asked about, and its mismatch is left open
    for item in made_from([coloured], 8, "attention", with_originals=False, seed=0)[0]:
        assert item.prompt.startswith("Turn") or item.expected == {"degradation": True, "overall": True}
    # nor of a picture that is its own mirror image; nor whether colours are gone of a grey picture
    for item in made_from([symmetric], 8, "attention", with_originals=True, seed=0)[0]:
        assert item.prompt.startswith("Turn") or item.expected == {"degradation": True, "overall": True}
    assert set(prompts([grey], with_originals=True)) == {"Mirror"}
    for pngs, originals in (([grey], False), ([_png(np.full((8, 8, 3), 90))], True)):
        with pytest.raises(UsageError, match=r"no example with a known answer .*--training 0 --attention 0"):
            made_from(pngs, 2, "attention", with_originals=originals, seed=0)
        assert made_from(pngs, 0, "attention", with_originals=originals, seed=0) == ([], {})


def test_a_lazy_run_is_warned_of_before_anybody_rates(tmp_path: Path) -> None:
    from study_help import Fixed, picture

    run = isr.evaluate(
        [picture(i) for i in range(6)], [f"do number {i}" for i in range(6)], originals=[picture(9)] * 6, lazy=True,
        judges=[Fixed("a", lambda i: (i % 2 == 0, False)), Fixed("b", lambda _: (True, False))], cache=False, progress=False,
    )  # fmt: skip
    assert any("lazy=True" in line and "refuse" in line for line in draft_study(run, 4).advice)
    with pytest.raises(UsageError, match="seed: expected 0 or more, got -1"):
        draft_study(run, 4, seed=-1)
