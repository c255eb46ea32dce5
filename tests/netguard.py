"""Refuses every connection that would leave this machine, and hides keys. Used by conftest.py and by the page runner."""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import MutableMapping
from typing import Any

#: Names that hold secrets or send traffic elsewhere. Removed before any test, so that a developer's keys are never spent.
_HIDDEN = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "GOOGLE_APPLICATION_CREDENTIALS", "GOOGLE_CLOUD_PROJECT", "GOOGLE_GENAI_USE_VERTEXAI")  # fmt: skip
_HIDDEN_SUFFIXES = ("_API_KEY", "_BASE_URL", "_PROXY", "_ORG_ID", "_ORGANIZATION", "_PROJECT_ID")

_connect = socket.socket.connect
_connect_ex = socket.socket.connect_ex
_getaddrinfo = socket.getaddrinfo


class NetworkRefusedError(RuntimeError):
    """A test tried to leave the machine. Not an OSError: nothing that retries network trouble may swallow it."""


def _is_local(host: object) -> bool:
    if host is None or host in ("", b"", "localhost", b"localhost"):
        return True
    text = host.decode("ascii", "replace") if isinstance(host, bytes | bytearray) else str(host)
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return text.endswith(".localhost")
    return address.is_loopback or address.is_unspecified


def _refuse(host: object) -> None:
    raise NetworkRefusedError(
        f"a test tried to reach {host!r}; tests may only talk to 127.0.0.1 (start a server from tests/servers there)"
    )


def _check(sock: socket.socket, address: Any) -> None:
    if sock.family in (socket.AF_INET, socket.AF_INET6) and not _is_local(address[0]):
        _refuse(address[0])


def _guarded_connect(self: socket.socket, address: Any, /) -> None:
    _check(self, address)
    _connect(self, address)


def _guarded_connect_ex(self: socket.socket, address: Any, /) -> int:
    _check(self, address)
    return _connect_ex(self, address)


def _guarded_getaddrinfo(host: Any, *args: Any, **kwargs: Any) -> Any:
    if not _is_local(host) and host != socket.gethostname():
        _refuse(host)
    return _getaddrinfo(host, *args, **kwargs)


def install() -> None:
    """Guard this process. Connections to loopback and Unix sockets stay as they are."""
    socket.socket.connect = _guarded_connect  # type: ignore[method-assign, assignment]
    socket.socket.connect_ex = _guarded_connect_ex  # type: ignore[method-assign, assignment]
    socket.getaddrinfo = _guarded_getaddrinfo


def uninstall() -> None:
    """Take the guard off (for engines that reach this machine by its own outside address)."""
    socket.socket.connect = _connect  # type: ignore[method-assign]
    socket.socket.connect_ex = _connect_ex  # type: ignore[method-assign]
    socket.getaddrinfo = _getaddrinfo


def quiet_environment(env: MutableMapping[str, str] = os.environ) -> None:
    """Remove keys, proxies and other services' addresses; keep model libraries from looking for a hub; one thread."""
    for name in list(env):
        if name.upper() in _HIDDEN or name.upper().endswith(_HIDDEN_SUFFIXES):
            del env[name]
    env.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", HF_DATASETS_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1")
    env.update(MPLBACKEND="Agg", TOKENIZERS_PARALLELISM="false", PYTHONHASHSEED=env.get("PYTHONHASHSEED", "0"))
    for threads in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        env.setdefault(threads, "1")
