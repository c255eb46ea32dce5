"""The reply cache: keys, round trip, nothing evicted, nothing unpickled, no file touched."""

from __future__ import annotations

import os
import pickle
import sqlite3
import stat
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isr.engine.cache import CacheKeys, DiskCache, MemoryCache, default_cache_dir
from isr.errors import IntegrityError, UsageError
from isr.schema import Attempt, Call, NoVerdict, Usage, Verdict

KEY = "a" * 64


def call(key: str = KEY, **changes: object) -> Call:
    fields: dict[str, object] = {
        "text": '{"x": "ü"}',
        "finish": "STOP",
        "answer": Verdict(semantic_mismatch=True, degradation=False, reasons={"degradation": "none"}),
        "served_model": "m-001",
        "usage": Usage(input_tokens=3, output_tokens=4),
        "latency_s": 0.25,
        "attempts": (Attempt(seconds=0.25, ended="ok"),),
        "key": key,
        "received_at": "2026-01-01T00:00:00.000+00:00",
    }
    return Call.model_validate({**fields, **changes})


BASE: dict[str, object] = {
    "identity": {"provider": "p", "host": "h", "path": "/v1", "model": "m", "settings": {"temperature": 0}},
    "rubric_hash": "r",
    "asked": ["observations", "semantic_mismatch"],
    "prompt": "make it night",
    "pictures": [("original", "d1"), ("edited", "d2")],
    "codec": "png",
    "vote": 0,
    "ask": 0,
}


def key_of(**changes: object) -> str:
    fields: dict[str, Any] = {**BASE, **changes}
    keys = CacheKeys(
        fields.pop("identity"), fields.pop("rubric_hash"), asked=fields.pop("asked"), codec=fields.pop("codec")
    )
    return keys.key(**fields)


@pytest.mark.parametrize(
    "change",
    [
        {"identity": {**BASE["identity"], "model": "m2"}},  # type: ignore[dict-item]
        {"identity": {**BASE["identity"], "host": "h2"}},  # type: ignore[dict-item]
        {"identity": {**BASE["identity"], "path": "/v2"}},  # type: ignore[dict-item]
        {"identity": {**BASE["identity"], "settings": {"temperature": 1}}},  # type: ignore[dict-item]
        {"rubric_hash": "r2"},
        {"asked": ["observations", "semantic_mismatch", "overall"]},
        {"prompt": "make it night "},
        {"pictures": [("edited", "d2")]},
        {"pictures": [("original", "d2"), ("edited", "d1")]},
        {"codec": "png;max_side=512"},
        {"vote": 1},
        {"ask": 1},
    ],
)
def test_everything_that_could_change_an_answer_changes_the_key(change: dict[str, object]) -> None:
    assert key_of(**change) != key_of()


def test_key_does_not_depend_on_dict_order() -> None:
    identity = dict(reversed(list(BASE["identity"].items())))  # type: ignore[attr-defined]
    assert key_of(identity=identity) == key_of()


@given(st.text(), st.text())
def test_different_prompts_never_share_a_key(a: str, b: str) -> None:
    def safe(text: str) -> str:
        return key_of(prompt=text)

    assert (safe(a) == safe(b)) == (a == b)


@pytest.mark.parametrize("kind", ["disk", "memory"])
def test_round_trip_is_exact(tmp_path: Path, kind: str) -> None:
    cache = DiskCache(tmp_path / "c") if kind == "disk" else MemoryCache()
    assert cache.get(KEY) is None
    stored = call()
    cache.put(KEY, stored)
    assert cache.get(KEY) == stored
    blocked = call(key="b" * 64, text=None, failure=NoVerdict(reason="blocked"), answer=NoVerdict(reason="blocked"))
    cache.put("b" * 64, blocked)
    assert cache.get("b" * 64) == blocked


def test_many_are_read_at_once(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path)
    keys = [f"{i:064x}" for i in range(1203)]
    for key in keys[::2]:
        cache.put(key, call(key=key))
    cache.put(keys[0], call(key=keys[0], text="again"))
    found = cache.get_many(keys)
    assert found == {key: call(key=key, **({"text": "again"} if key == keys[0] else {})) for key in keys[::2]}
    assert cache.get_many([]) == {}
    assert len(cache) == len(found)
    memo = cache.memo()
    memo.update({"x": [1], "y": {"z": None}})
    assert (dict(memo), memo.get_many(["y", "w"])) == ({"x": [1], "y": {"z": None}}, {"y": {"z": None}})  # type: ignore[attr-defined]
    with pytest.raises(KeyError):
        memo["w"]


def test_survives_reopening_and_is_private(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "cache"
    DiskCache(folder).put(KEY, call())
    assert DiskCache(folder).get(KEY) == call()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_an_open_folder_is_closed_to_others(tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    folder.mkdir(mode=0o755)
    folder.chmod(0o755)
    DiskCache(folder)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_nothing_is_evicted(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path)
    big = "x" * 50_000
    for i in range(200):
        cache.put(f"{i:064x}", call(key=f"{i:064x}", text=big))
    assert all(cache.get(f"{i:064x}") is not None for i in range(200))
    assert sorted(p.name for p in tmp_path.iterdir() if not p.name.startswith("cache.db")) == []


class Bomb:
    """Unpickling this writes a file: the proof that code ran."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.path}",)


def plant(folder: Path, key: str, raw: int, mode: int, filename: str | None, value: object) -> None:
    with sqlite3.connect(folder / "cache.db") as con:
        con.execute("DELETE FROM Cache WHERE key = ?", (key,))
        con.execute(
            "INSERT INTO Cache(key, raw, store_time, expire_time, access_time, access_count, tag, size, mode, filename, value) "
            "VALUES (?, ?, 0, NULL, 0, 0, NULL, 0, ?, ?, ?)",
            (key, raw, mode, filename, value),
        )


@pytest.mark.parametrize("mode", [2, 3, 4])
@pytest.mark.parametrize("as_file", [False, True])
def test_planted_pickle_is_refused_and_never_run(tmp_path: Path, mode: int, as_file: bool) -> None:
    proof = tmp_path / "ran"
    folder = tmp_path / "cache"
    cache = DiskCache(folder)
    payload = pickle.dumps(Bomb(proof))
    (folder / "planted.val").write_bytes(payload)
    plant(folder, f"call:{KEY}", 1, mode, "planted.val" if as_file else None, None if as_file else payload)
    with pytest.raises(IntegrityError, match="not plain text"):
        cache.get(KEY)
    with pytest.raises(IntegrityError, match="not plain text"):
        cache.get_many(["b" * 64, KEY])
    plant(folder, "memo:m", 1, mode, "planted.val" if as_file else None, None if as_file else payload)
    with pytest.raises(IntegrityError, match="not plain text"):
        cache.memo().get("m")
    assert not proof.exists()


def test_planted_pickled_key_is_never_run(tmp_path: Path) -> None:
    proof = tmp_path / "ran"
    cache = DiskCache(tmp_path / "cache")
    plant(tmp_path / "cache", pickle.dumps(Bomb(proof)), 0, 1, None, "x")  # type: ignore[arg-type]
    with pytest.raises(IntegrityError, match="a key that is not text"):
        list(cache.memo())
    assert not proof.exists()


def test_planted_file_name_is_never_deleted(tmp_path: Path) -> None:
    precious = tmp_path / "precious.txt"
    precious.write_text("keep")
    cache = DiskCache(tmp_path / "cache")
    plant(tmp_path / "cache", f"call:{KEY}", 1, 1, "../precious.txt", "{}")
    with pytest.raises(IntegrityError, match="names a file"):
        cache.put(KEY, call())
    assert precious.read_text() == "keep"


def test_planted_settings_change_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    DiskCache(folder).put(KEY, call())
    with sqlite3.connect(folder / "cache.db") as con:
        for name, value in (
            ("cull_limit", 1000),
            ("size_limit", 1),
            ("eviction_policy", "least-recently-used"),
            ("disk_min_file_size", 0),
        ):
            con.execute("INSERT OR REPLACE INTO Settings VALUES (?, ?)", (name, value))
    cache = DiskCache(folder)
    for i in range(50):
        cache.put(f"{i:064x}", call(key=f"{i:064x}"))
    assert len(cache) == 51
    assert not list(folder.rglob("*.val"))


def test_unreadable_and_misfiled_rows_are_errors(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path / "cache")
    plant(tmp_path / "cache", f"call:{KEY}", 1, 1, None, "not json")
    with pytest.raises(IntegrityError, match="unreadable reply"):
        cache.get(KEY)
    plant(tmp_path / "cache", f"call:{KEY}", 1, 1, None, call(key="c" * 64).model_dump_json())
    with pytest.raises(IntegrityError, match="wrong key"):
        cache.get(KEY)


def test_a_folder_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    blocker = tmp_path / "file"
    blocker.write_text("")
    with pytest.raises(UsageError, match="cannot use the folder"):
        DiskCache(blocker / "cache")


def test_default_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ISR_CACHE", str(tmp_path / "x"))
    assert default_cache_dir() == tmp_path / "x"
    monkeypatch.delenv("ISR_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert default_cache_dir() == tmp_path / "xdg" / "isr"
