"""The guards that every test runs under: no way out of this machine, no keys, no silent skip of browser tests in CI."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import netguard
import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("address", [("192.0.2.1", 80), ("2001:db8::1", 80)])
def test_tools_guard_refuses_connections_to_elsewhere(address: tuple[str, int]) -> None:
    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        with pytest.raises(netguard.NetworkRefusedError, match="may only talk to"):
            sock.connect(address)
        with pytest.raises(netguard.NetworkRefusedError):
            sock.connect_ex(address)
    with pytest.raises(netguard.NetworkRefusedError):
        socket.getaddrinfo("example.org", 443)


def test_tools_guard_lets_loopback_pass() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname(), timeout=5) as client,
    ):
        accepted, _ = server.accept()
        accepted.sendall(b"hello")
        accepted.close()
        assert client.recv(5) == b"hello"
    assert socket.getaddrinfo("localhost", 80)


def test_tools_guard_hides_keys_proxies_and_hubs() -> None:
    env = {"OPENAI_API_KEY": "a", "MY_API_KEY": "b", "HTTPS_PROXY": "c", "http_proxy": "d", "OPENAI_BASE_URL": "e", "HF_TOKEN": "f", "PATH": "kept"}  # fmt: skip
    netguard.quiet_environment(env)
    assert env.pop("PATH") == "kept"
    assert env["HF_HUB_OFFLINE"] == "1"
    assert not set(env.values()) & set("abcdef")


_INNER = """
import os, socket
import pytest

@pytest.mark.browser
def test_in_a_browser():
    pytest.skip("the browser is ill")

@pytest.mark.ray
def test_ray_reaches_its_own_address():
    assert socket.socket.connect.__name__ == "connect"

def test_then_the_guard_is_back():
    assert socket.socket.connect.__name__ == "_guarded_connect"
    assert "OPENAI_API_KEY" not in os.environ

def test_own_deprecations_are_errors():
    import warnings
    with pytest.raises(DeprecationWarning):
        warnings.warn_explicit("old", DeprecationWarning, "isr/x.py", 1, module="isr.x")
    warnings.warn_explicit("old", DeprecationWarning, "diffusers/x.py", 1, module="diffusers.x")
"""


@pytest.mark.parametrize(("required", "summary"), [("0", "3 passed, 1 skipped"), ("1", "1 failed, 3 passed")])
def test_tools_browser_tests_may_skip_here_but_not_where_they_are_required(
    tmp_path: Path, required: str, summary: str
) -> None:
    for name in ("conftest.py", "netguard.py"):
        shutil.copy(ROOT / "tests" / name, tmp_path)
    (tmp_path / "test_inner.py").write_text(_INNER, "utf-8")
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers =\n    browser: x\n    ray: x\n", "utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-rs", "-p", "no:cacheprovider", "test_inner.py"],
        cwd=tmp_path, env=os.environ | {"ISR_REQUIRE_BROWSER": required, "OPENAI_API_KEY": "sk", "PYTEST_ADDOPTS": ""},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert summary in done.stdout, done.stdout
