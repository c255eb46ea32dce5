"""Nobody gets in: a test for each line of what the study server protects."""

from __future__ import annotations

import logging
import re
import socket
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from isr.human_study.limits import Limit, RateLimiter
from isr.human_study.middleware import MAX_BODY
from isr.human_study.serve import RedactLinks, Where, first_links, run
from isr.human_study.store import Store
from isr.human_study.study import Study
from isr.human_study.tokens import good_secret, new_secret
from starlette.testclient import TestClient
from study_help import answer_fields, app_client, csrf, enter, make_study, organiser

from isr.errors import UsageError

Site = tuple[Study, Store, TestClient]
EVERYWHERE = "0.0.0.0"  # noqa: S104 - named, never bound


@pytest.fixture
def site(tmp_path: Path) -> Site:
    study, store = make_study(tmp_path / "study")
    return study, store, app_client(study, store)


# ------------------------------------------------------------------------------------------------- links and cookies


def test_secrets_are_256_random_bits() -> None:
    found = {new_secret() for _ in range(200)}
    assert len(found) == 200
    assert all(good_secret(s) and len(s) == 43 for s in found)
    assert not good_secret("' OR 1=1 --")
    assert not good_secret(None)


def test_a_link_works_once_and_looking_does_not_use_it(site: Site) -> None:
    study, store, client = site
    secret = store.new_link(store.raters()[0])
    for _ in range(3):  # mail scanners and previews open links
        assert "Begin" in app_client(study, store).get(f"/enter/{secret}").text
    assert client.post(f"/enter/{secret}", data={"x": ""}).url.path == "/consent"
    other = app_client(study, store)
    second = other.post(f"/enter/{secret}", data={"x": ""})
    assert second.status_code == 403
    assert "used already" in second.text
    assert other.get("/").status_code == 401
    # the first browser may open the link again
    assert client.get(f"/enter/{secret}").url.path == "/consent"


def test_a_new_link_ends_the_old_one_and_the_session(site: Site) -> None:
    study, store, client = site
    rater = store.raters()[0]
    old = store.new_link(rater)
    enter(client, store, rater)
    assert app_client(study, store).post(f"/enter/{old}", data={"x": ""}).status_code == 403
    store.new_link(rater)
    assert client.get("/item/1").status_code == 401
    store.revoke(rater)
    with pytest.raises(UsageError, match="revoked"):
        store.new_link(store.rater("R1"))


def test_cookie_flags(site: Site) -> None:
    study, store, _ = site
    for secure in (False, True):
        client = app_client(study, store, secure=secure)
        for role, link in (
            ("rater", f"/enter/{store.new_link(store.raters()[0])}"),
            ("organiser", f"/organiser/enter/{store.new_link()}"),
        ):
            cookie = client.post(link, data={"x": ""}, follow_redirects=False).headers["set-cookie"]
            assert "HttpOnly" in cookie
            assert f"SameSite={'lax' if role == 'rater' else 'strict'}" in cookie
            assert "Path=/" in cookie
            assert ("Secure" in cookie) is secure
            assert cookie.startswith("__Host-isr-" if secure else "isr-")
            assert "Domain" not in cookie


def test_the_database_holds_hashes_only(site: Site) -> None:
    study, store, client = site
    secret = store.new_link(store.raters()[0])
    cookie = client.post(f"/enter/{secret}", data={"x": ""}, follow_redirects=False).cookies["isr-rater"]
    store.engine.dispose()
    everything = b"".join(p.read_bytes() for p in study.folder.glob("study.sqlite*"))
    assert secret.encode() not in everything
    assert cookie.encode() not in everything
    assert (study.folder.stat().st_mode & 0o777) == 0o700


def test_expired_and_forged_cookies(site: Site) -> None:
    study, store, client = site
    enter(client, store, store.raters()[0])
    with sqlite3.connect(study.folder / "study.sqlite") as raw:
        raw.execute("UPDATE sessions SET expires = '2020-01-01T00:00:00.000+00:00'")
    assert client.get("/item/1").status_code == 401
    for forged in ("x", new_secret(), "a" * 5000):
        assert app_client(study, store).get("/item/1", headers={"cookie": f"isr-rater={forged}"}).status_code == 401


def test_rater_and_organiser_secrets_are_apart(site: Site) -> None:
    study, store, client = site
    rater_link, organiser_link = store.new_link(store.raters()[0]), store.new_link()
    assert client.post(f"/organiser/enter/{rater_link}", data={"x": ""}).status_code == 403
    assert client.post(f"/enter/{organiser_link}", data={"x": ""}).status_code == 403
    enter(client, store, store.raters()[0])
    for path in (
        "/organiser",
        "/organiser/table",
        "/organiser/ratings.csv",
        "/organiser/answers.csv",
        "/organiser/agreement",
    ):
        assert client.get(path).status_code == 401
    cookie = client.cookies["isr-rater"]
    assert app_client(study, store).get("/organiser", headers={"cookie": f"isr-organiser={cookie}"}).status_code == 401
    boss = app_client(study, store)
    organiser(boss, store)
    assert boss.get("/item/1").status_code == 401


def test_links_are_redacted_in_access_logs() -> None:
    record = logging.LogRecord(
        "uvicorn.access", logging.INFO, "", 0, '%s - "%s %s HTTP/%s" %d',
        ("127.0.0.1:5", "POST", "/organiser/enter/abcDEF_123-x?y=1", "1.1", 303), None,
    )  # fmt: skip
    assert RedactLinks().filter(record)
    assert record.getMessage() == '127.0.0.1:5 - "POST /organiser/enter/[redacted]?y=1 HTTP/1.1" 303'


# ------------------------------------------------------------------------------------------------- headers


@pytest.mark.parametrize("path", ["/", "/item/1", "/enter/x", "/static/study.css", "/nothing", "/image/zz"])
def test_headers_on_every_answer(site: Site, path: str) -> None:
    _, store, client = site
    enter(client, store, store.raters()[0])
    headers = client.get(path).headers
    policy = dict(part.strip().split(" ", 1) for part in headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == "'self'"
    assert policy["frame-ancestors"] == "'none'"
    assert "unsafe" not in headers["content-security-policy"]
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["x-content-type-options"] == "nosniff"
    assert "server" not in headers


def test_pages_hold_no_inline_script_style_or_outside_address(site: Site) -> None:
    study, store, client = site
    enter(client, store, store.raters()[0])
    boss = app_client(study, store)
    organiser(boss, store)
    pages = [client.get(p).text for p in ("/item/1", "/consent", "/instructions", "/withdraw")] + [
        boss.get("/organiser").text
    ]
    for text in pages:
        assert not re.search(r"<script(?![^>]*\bsrc=\"/static/)", text)
        assert not re.search(r"\son\w+\s*=|\sstyle\s*=|javascript:", text)
        assert not re.search(r"(src|href|action)=\"(?!/|#)", text)
    here = Path(__file__).resolve().parents[2] / "human_study" / "static"
    for file in [*here.glob("*.js"), *here.glob("*.css")]:
        assert "http://" not in file.read_text()
        assert "https://" not in file.read_text()


def test_pages_are_not_kept_by_caches(site: Site) -> None:
    study, store, client = site
    enter(client, store, store.raters()[0])
    assert client.get("/item/1").headers["cache-control"] == "no-store"
    item = study.by_id[store.assignments(1)[0].item]
    assert client.get(f"/image/{item.edited}").headers["cache-control"].startswith("private")


def test_hsts_behind_tls_only(site: Site) -> None:
    study, store, client = site
    assert "strict-transport-security" not in client.get("/").headers
    assert "strict-transport-security" in app_client(study, store, secure=True).get("/").headers


def test_no_list_of_addresses(site: Site) -> None:
    _, _, client = site
    for path in (
        "/openapi.json",
        "/docs",
        "/redoc",
        "/static/",
        "/static/../app.py",
        "/static/%2e%2e/app.py",
        "/images/",
    ):
        assert client.get(path).status_code == 404


# ------------------------------------------------------------------------------------------------- forms


def test_forms_need_their_token(site: Site) -> None:
    study, store, client = site
    enter(client, store, store.raters()[0])
    other = app_client(study, store)
    enter(other, store, store.raters()[1])
    page = client.get("/item/1").text
    for token in ("", "0" * 64, csrf(other.get("/item/1").text)):
        refused = client.post("/item/1", data=answer_fields(page) | {"csrf": token})
        assert refused.status_code == 403
    boss = app_client(study, store)
    organiser(boss, store)
    for path in ("/organiser/state", "/organiser/add", "/organiser/link", "/organiser/revoke"):
        assert boss.post(path, data={"state": "closed", "sure": "yes", "rater": "R1"}).status_code == 403
    for path in ("/consent", "/instructions", "/withdraw"):
        assert client.post(path, data={"agree": "yes", "sure": "yes"}).status_code == 403
    assert store.history() == []
    assert store.state() == "open"
    assert len(store.raters()) == 2


@pytest.mark.parametrize(
    "headers", [{"origin": "https://evil.example"}, {"sec-fetch-site": "cross-site"}, {"sec-fetch-site": "same-site"}]
)
def test_posts_from_other_sites_are_refused(site: Site, headers: dict[str, str]) -> None:
    _, store, client = site
    enter(client, store, store.raters()[0])
    fields = answer_fields(client.get("/item/1").text)
    assert client.post("/item/1", data=fields, headers=headers).status_code == 403
    assert store.history() == []
    good = {"origin": "null", "sec-fetch-site": "same-origin"}
    assert client.post("/item/1", data=fields, headers=good).status_code == 200


def test_a_proxy_that_renames_the_host_keeps_forms_working(site: Site) -> None:
    study, store, _ = site
    client = app_client(study, store, secure=True, public_url="https://study.example.org")
    enter(client, store, store.raters()[0])
    fields = answer_fields(client.get("/item/1").text)
    for origin, status in (("https://evil.example", 403), ("https://study.example.org", 200)):
        assert client.post("/item/1", data=fields, headers={"origin": origin}).status_code == status


def test_foreign_host_names_are_refused(site: Site) -> None:
    _, _, client = site
    assert client.get("/", headers={"host": "evil.example"}).status_code == 400
    assert client.get("/", headers={"host": "testserver:8080"}).status_code == 401


def test_sizes_are_bounded(site: Site) -> None:
    _, store, client = site
    enter(client, store, store.raters()[0])
    fields = answer_fields(client.get("/item/1").text)
    assert client.post("/item/1", data=fields | {"comment": "x" * (MAX_BODY + 1)}).status_code == 413
    assert client.post("/item/1", data=fields | {"comment": "x" * 2001}).status_code == 422

    def stream() -> object:  # no Content-Length: counted while it comes
        for _ in range(100):
            yield b"a=" + b"x" * 1000

    kind = {"content-type": "application/x-www-form-urlencoded"}
    assert client.post("/item/1", content=stream(), headers=kind).status_code == 413  # type: ignore[arg-type]
    many = fields | {f"f{i}": "1" for i in range(100)}
    assert client.post("/item/1", data=many).status_code == 400
    assert client.post("/item/1", files={"f": b"x"}).status_code == 415
    assert client.post("/item/1", json=fields).status_code == 415
    assert client.post("/item/1", content=b"key=\xff%ff", headers=kind).status_code == 400
    for bad in ("short", "x" * 65, "sp ace" * 5):
        assert client.post("/item/1", data=fields | {"key": bad}).status_code == 422
    assert store.history() == []


@pytest.mark.parametrize(
    ("seconds", "kept"), [("nan", None), ("-5", None), ("inf", None), ("1e9", None), ("2.25", 2.25)]
)
def test_nonsense_times_are_not_kept(site: Site, seconds: str, kept: float | None) -> None:
    _, store, client = site
    enter(client, store, store.raters()[0])
    client.post("/item/1", data=answer_fields(client.get("/item/1").text) | {"seconds": seconds, "shown": ""})
    assert store.history()[0].seconds == kept


# ------------------------------------------------------------------------------------------------- pictures


def test_pictures_go_to_raters_who_have_reached_them(site: Site) -> None:
    study, store, client = site
    rater = store.raters()[0]
    enter(client, store, rater)
    places = store.assignments(rater.id)
    now_, soon, far = (study.by_id[places[i].item].edited for i in (0, 1, 8))
    assert client.get(f"/image/{now_}").status_code == 200
    assert client.get(f"/image/{soon}").status_code == 200  # the next one is fetched ahead
    assert client.get(f"/image/{far}").status_code == 404
    assert app_client(study, store).get(f"/image/{now_}").status_code == 401
    boss = app_client(study, store)
    organiser(boss, store)
    assert boss.get(f"/image/{now_}").status_code == 401


def test_pictures_of_items_of_others_are_refused(tmp_path: Path) -> None:
    study, store = make_study(tmp_path / "s", raters=2, per_item=1, repeats=0, training=0, attention=0)
    client = app_client(study, store)
    enter(client, store, store.raters()[0])
    own = {p.item for p in store.assignments(1)}
    foreign = next(i for i in study.items if i.id not in own)
    assert client.get(f"/image/{foreign.edited}").status_code == 404


@pytest.mark.parametrize(
    "name",
    ["../study.json", "..%2fstudy.json", "%2e%2e/study.json", "a" * 64, "A" * 64, "0" * 63, "/etc/passwd", "x.png"],
)
def test_no_request_makes_a_path(site: Site, name: str) -> None:
    _, store, client = site
    enter(client, store, store.raters()[0])
    assert client.get(f"/image/{name}").status_code == 404


def test_a_changed_picture_is_not_shown(site: Site) -> None:
    study, store, client = site
    item = study.by_id[store.assignments(1)[0].item]
    path = study.folder / "images" / f"{item.edited}.png"
    path.write_bytes(path.read_bytes() + b"x")
    client.post(f"/enter/{store.new_link(store.raters()[0])}", data={"x": ""})
    client.post("/consent", data={"csrf": csrf(client.get("/consent").text), "agree": "yes"})
    client.post("/instructions", data={"csrf": csrf(client.get("/instructions").text)})
    answer = client.get(f"/image/{item.edited}")
    assert answer.status_code == 500
    assert answer.headers["content-type"].startswith("text/html")
    assert item.edited not in answer.text


# ------------------------------------------------------------------------------------------------- rates


def test_token_bucket_by_hand() -> None:
    clock = [0.0]
    limiter, limit = RateLimiter(lambda: clock[0]), Limit("x", rate=2.0, burst=3)
    assert [limiter.wait(limit, "a") for _ in range(4)] == [0.0, 0.0, 0.0, 0.5]
    assert limiter.wait(limit, "b") == 0.0
    clock[0] = 0.5  # one token has come back
    assert limiter.wait(limit, "a", take=False) == 0.0
    assert limiter.wait(limit, "a") == 0.0
    assert limiter.wait(limit, "a") == 0.5


def test_guessing_links_is_slowed_down(site: Site) -> None:
    _study, store, client = site
    codes = [client.post(f"/enter/{new_secret()}", data={"x": ""}).status_code for _ in range(12)]
    assert codes == [403] * 10 + [429] * 2
    # and so is the right one from there, for a while
    blocked = client.post(f"/enter/{store.new_link(store.raters()[0])}", data={"x": ""})
    assert blocked.status_code == 429
    assert int(blocked.headers["retry-after"]) >= 1


def test_answers_faster_than_any_person_are_slowed_down(site: Site) -> None:
    _, store, client = site
    enter(client, store, store.raters()[0])
    fields = answer_fields(client.get("/item/1").text)
    json_ = {"accept": "application/json"}
    codes = [client.post("/item/1", data=fields, headers=json_).status_code for _ in range(60)]
    assert codes[0] == 200
    assert 429 in codes
    assert len(store.history()) == 1


# ------------------------------------------------------------------------------------------------- where it listens


def test_loopback_by_default() -> None:
    where = Where()
    where.check()
    assert (where.host, where.url, where.secure) == ("127.0.0.1", "http://127.0.0.1:8080", False)


@pytest.mark.parametrize("host", [EVERYWHERE, "192.168.1.5", "::", "study.example.org"])
def test_a_public_bind_without_tls_says_what_to_do(host: str) -> None:
    with pytest.raises(UsageError, match=r"(?s)plain text.*ssh -L.*--behind-proxy.*--certfile"):
        Where(host).check()


def test_ways_to_go_public(tmp_path: Path) -> None:
    cert, private = tmp_path / "c.pem", tmp_path / "k.pem"
    with pytest.raises(UsageError, match="needs both"):
        Where(EVERYWHERE, certfile=cert).check()
    with pytest.raises(UsageError, match="not a file"):
        Where(EVERYWHERE, certfile=cert, keyfile=private).check()
    cert.write_text("c")
    private.write_text("k")
    with pytest.raises(UsageError, match="under which address raters reach"):
        Where(EVERYWHERE, 443, cert, private).check()
    own = Where(EVERYWHERE, 443, cert, private, public_url="https://study.example.org")
    own.check()
    assert own.secure
    assert "study.example.org" in own.hosts
    with pytest.raises(UsageError, match="--public-url https"):
        Where(behind_proxy=True).check()
    with pytest.raises(UsageError, match="go around the proxy"):
        Where(EVERYWHERE, behind_proxy=True, public_url="https://a.example").check()
    proxy = Where(behind_proxy=True, public_url="https://a.example/")
    proxy.check()
    assert (proxy.secure, proxy.url) == (True, "https://a.example")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://study.example.org", "plain text.*--behind-proxy"),
        ("https://study.example.org/study", "without a path"),
        ("https://study.example.org", "say --behind-proxy"),
        ("study.example.org", "expected https"),
        ("https://", "expected https"),
    ],
)
def test_public_addresses_that_would_not_be_safe_or_work(url: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Where(public_url=url).check()
    Where(public_url="http://localhost:9000").check()  # the other end of a tunnel


def test_pressing_begin_twice_does_not_lock_anybody_out(site: Site) -> None:
    study, store, client = site
    link = f"/enter/{store.new_link(store.raters()[0])}"
    assert "once.js" in client.get(link).text
    for _ in range(2):
        assert client.post(link, data={"x": ""}).url.path == "/consent"
    assert app_client(study, store).post(link, data={"x": ""}).status_code == 403


def test_the_next_rater_at_the_same_machine_is_not_the_one_before(site: Site) -> None:
    _, store, client = site
    one, two = store.raters()
    mine, other = store.new_link(one), store.new_link(two)
    client.post(f"/enter/{mine}", data={"x": ""})
    page = client.get(f"/enter/{other}")
    assert page.url.path == f"/enter/{other}"
    assert "Another person is working" in page.text
    assert client.post(f"/enter/{other}", data={"x": ""}).url.path == "/consent"
    page = client.get("/consent")
    client.post("/consent", data={"csrf": csrf(page.text), "agree": "yes"})
    assert [r.consented for r in store.raters()] == [False, True]
    # a used link of somebody else opens nothing, and does not lead on as the person who is in
    assert client.get(f"/enter/{mine}").url.path == f"/enter/{mine}"
    assert client.post(f"/enter/{mine}", data={"x": ""}).status_code == 403


def test_a_taken_port_is_found_before_links_are_made(site: Site) -> None:
    study, store, _ = site
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UsageError, match=f"cannot listen on 127.0.0.1 port {port}: .*--port"):
            run(study, Where(port=port), say=pytest.fail)
    assert {store.has_link(r) for r in store.raters()} == {"none"}


def test_a_database_elsewhere_is_for_its_owner_only(site: Site, tmp_path: Path) -> None:
    path = tmp_path / "elsewhere.sqlite"
    Store(site[0], f"sqlite:///{path}").add_rater()
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_link_used_by_many_at_once_opens_one_session(site: Site) -> None:
    _, store, _ = site
    secret = store.new_link(store.raters()[0])
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: store.exchange(secret, "rater"), range(16)))
    assert sum(f is not None for f in found) == 1


def test_a_new_link_for_the_organiser_signs_out(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    from isr.cli import main

    study, store, client = site
    organiser(client, store)
    first_links(Store(study), "http://h", print)  # another start of the server does not
    assert client.get("/organiser").status_code == 200
    assert main(["study", "links", str(study.folder), "--new", "organiser"]) == 0
    assert "/organiser/enter/" in capsys.readouterr().out
    assert client.get("/organiser").status_code == 401


def test_links_are_said_once_and_new_starts_break_none(site: Site) -> None:
    study, store, client = site
    said: list[str] = []
    first_links(store, "http://h", said.append)
    assert sum("/enter/" in line for line in said) == 3
    link = next(line.split("http://h")[1] for line in said if line.strip().startswith("R1"))
    again: list[str] = []
    first_links(Store(study), "http://h", again.append)
    assert sum("/enter/" in line for line in again) == 1  # the organiser's
    assert client.post(link, data={"x": ""}).url.path == "/consent"
