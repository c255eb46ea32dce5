"""Running the server: where it may listen, what it logs, the links it prints."""

from __future__ import annotations

import ipaddress
import logging
import re
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, urlsplit

from isr.errors import UsageError

from .app import LOOPBACK_NAMES, create_app
from .store import Store
from .study import Study

__all__ = ["RedactLinks", "Where", "first_links", "run"]

_EVERYWHERE = ("0.0.0.0", "::")  # noqa: S104 - compared, not bound
_LINK = re.compile(r"(/enter/)[^\s?#\"]+")


@dataclass(frozen=True)
class Where:
    """How the server is reached.

    Attributes:
        host, port: where it listens. certfile, keyfile: TLS by this server itself. behind_proxy: a reverse proxy on this machine
            speaks TLS and forwards. public_url: what the raters type, where it differs from host and port.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    certfile: Path | None = None
    keyfile: Path | None = None
    behind_proxy: bool = False
    public_url: str | None = None

    def check(self) -> None:
        """Refuse what would send links, cookies and answers over a network in plain text."""
        if (self.certfile is None) != (self.keyfile is None):
            raise UsageError("certfile, keyfile: TLS needs both")
        for name in (self.certfile, self.keyfile):
            if name is not None and not name.is_file():
                raise UsageError(f"certfile, keyfile: {str(name)!r} is not a file")
        if self.public_url is not None:
            self._check_public_url(urlsplit(self.public_url))
        if self.behind_proxy:
            if self.public_url is None or not self.public_url.startswith("https://"):
                raise UsageError(
                    "behind-proxy: say under which https address the proxy is reached, with --public-url https://…"
                )
            if not _loopback(self.host):
                raise UsageError(
                    "behind-proxy: listen on 127.0.0.1 and let the proxy on this machine forward to it; on another address "
                    "anybody could go around the proxy"
                )
        if self.certfile is not None and self.host in _EVERYWHERE and self.public_url is None:
            raise UsageError(
                f"public-url: with --host {self.host} say under which address raters reach this machine, for example "
                "--public-url https://study.example.org; requests for other names are refused"
            )
        if _loopback(self.host) or self.certfile is not None:
            return
        raise UsageError(
            f"host: {self.host!r} can be reached from other machines, and without TLS links, cookies and answers would cross "
            "the network in plain text. One of these ways:\n"
            f"  - a tunnel: leave --host out, and raters (or you) run  ssh -L {self.port}:127.0.0.1:{self.port} this-machine\n"
            "  - a reverse proxy with TLS on this machine (Caddy, nginx):  --behind-proxy --public-url https://study.example.org\n"
            f"  - a certificate of your own:  --host {self.host} --certfile cert.pem --keyfile key.pem\n"
            "docs/human-study.md shows each of them."
        )

    def check_port(self) -> None:
        """Refuse a taken port before links are made: each is shown only once, and would carry the wrong address."""
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((self.host.strip("[]"), self.port))
            except (OSError, OverflowError) as error:
                raise UsageError(
                    f"host, port: cannot listen on {self.host} port {self.port}: {getattr(error, 'strerror', None) or error}; choose "
                    "another with --port, or stop what uses it"
                ) from error

    def _check_public_url(self, parts: SplitResult) -> None:
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UsageError(f"public-url: expected https://…, got {self.public_url!r}")
        if parts.path not in ("", "/") or parts.query or parts.fragment:
            raise UsageError(
                f"public-url: expected an address without a path, got {self.public_url!r}; the study needs a host name of its own, "
                "for example https://study.example.org"
            )
        if parts.scheme == "http" and not _loopback(parts.hostname):
            raise UsageError(
                f"public-url: {self.public_url!r} would carry links, cookies and answers over the network in plain text; let the "
                "proxy speak TLS and say --behind-proxy --public-url https://…, or use an SSH tunnel and leave --public-url out"
            )
        if parts.scheme == "https" and self.certfile is None and not self.behind_proxy and _loopback(self.host):
            raise UsageError(
                "public-url: an https address without a certificate here means that a proxy on this machine speaks TLS: say "
                "--behind-proxy, so that the limits count the raters' addresses and not the proxy's"
            )

    @property
    def secure(self) -> bool:
        return self.certfile is not None or (self.public_url or "").startswith("https://")

    @property
    def url(self) -> str:
        if self.public_url:
            return self.public_url.rstrip("/")
        name = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.secure else 'http'}://{name}:{self.port}"

    @property
    def hosts(self) -> tuple[str, ...]:
        """Host names that requests may carry."""
        own = urlsplit(self.url).hostname or ""
        own = f"[{own}]" if ":" in own else own
        return tuple(dict.fromkeys((own.lower(), *(LOOPBACK_NAMES if _loopback(self.host) else (self.host.lower(),)))))


def _loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


class RedactLinks(logging.Filter):
    """Takes the secret of a link out of every access-log line."""

    def filter(self, record: logging.LogRecord) -> bool:
        if isinstance(record.args, tuple):
            record.args = tuple(_LINK.sub(r"\1[redacted]", a) if isinstance(a, str) else a for a in record.args)
        record.msg = _LINK.sub(r"\1[redacted]", str(record.msg))
        return True


def first_links(store: Store, base: str, say: Callable[[str], None]) -> None:
    """Make the planned raters where they are missing and say their links; a link that was made before stays as it is (only
    its hash is stored, so it cannot be shown again). The organiser's link is new at every start."""
    known = len(store.raters())
    for _ in range(known, store.study.settings.raters):
        store.add_rater()
    for rater in store.raters():
        if rater.revoked or rater.withdrawn:
            say(f"  {rater.label:10} {'withdrew' if rater.withdrawn else 'revoked'}")
            continue
        state = store.has_link(rater)
        if state == "none":
            say(f"  {rater.label:10} {base}/enter/{store.new_link(rater)}")
        else:
            say(f"  {rater.label:10} link {state if state == 'used' else 'not used yet'}, shown when it was made")
    say(f"  {'organiser':10} {base}/organiser/enter/{store.new_link()}")


def run(
    study: Study,
    where: Where,
    *,
    database: str | None = None,
    say: Callable[[str], None] = print,
    access_log: bool = True,
) -> None:
    """Serve until interrupted. Prints the links, each of which works once.

    Raises:
        UsageError: a public address without TLS, with the ways to go on.
    """
    where.check()
    where.check_port()
    import uvicorn

    store = Store(study, database)
    say(
        f"Study {str(study.folder)!r}: {study.plan()['rating']} items, {study.settings.raters} raters, {store.state()}."
    )
    say("Private links; each works once, in the browser that will be used:")
    first_links(store, where.url, say)
    say("Another link for a rater:  isr study links STUDY --new R1   (ends the old one; or on the organiser's page)")
    say("Stop with Ctrl-C; everything answered is on disk at every moment.")
    app = create_app(study, store, secure=where.secure, public_url=where.public_url, hosts=where.hosts)
    config = uvicorn.Config(
        app, host=where.host, port=where.port, log_config=_logging(), access_log=access_log, server_header=False,
        proxy_headers=where.behind_proxy, forwarded_allow_ips="127.0.0.1" if where.behind_proxy else None,
        ssl_certfile=str(where.certfile) if where.certfile else None, ssl_keyfile=str(where.keyfile) if where.keyfile else None,
        timeout_keep_alive=15, limit_concurrency=1000, h11_max_incomplete_event_size=16 * 1024, timeout_graceful_shutdown=5,
    )  # fmt: skip
    try:
        uvicorn.Server(config).run()
    finally:
        store.close()


def _logging() -> dict[str, Any]:
    from copy import deepcopy

    from uvicorn.config import LOGGING_CONFIG

    settings: dict[str, Any] = deepcopy(LOGGING_CONFIG)
    settings["filters"] = {"redact": {"()": RedactLinks}}
    for handler in settings["handlers"].values():
        handler["filters"] = ["redact"]
    return settings
