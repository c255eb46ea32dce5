"""What the judges behind an HTTP service share: name, key, settings, limits, and the check of who answered."""

from __future__ import annotations

import ssl
import warnings
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from isr.errors import JudgeStoppedError, UsageError
from isr.protocols import JudgeLimits
from isr.schema import NoVerdict
from isr.secret import REMOVED, Secret, find_key, scrub

from .endpoint import Endpoint, parse_endpoint
from .models import accepted
from .served import same_model

if TYPE_CHECKING:
    import httpx2

__all__ = ["ServiceJudge", "Unset"]

Unset = Literal["unset"]

#: Sent to servers that want no key: the clients refuse an empty one.
NO_KEY = "no-key"


class ServiceJudge:
    """Base of the judges that speak to a service over HTTP. It asks once: cache, retry, pace, votes and the reading of
    the reply belong to the engine.

    Args:
        model: as the service names it.
        base_url: another server that speaks the same protocol; see `endpoint.parse_endpoint` for what is allowed.
        api_key: the key itself. key_env: the environment variable that holds it. With neither, the service's own
            variables are read where `base_url` is not given, and no key is sent where it is.
        name: as tables print it; default "provider:model", with "@url" where a URL was given.
        temperature: default 0 where the model accepts one; "unset" sends none.
        top_p, seed, max_output_tokens: sent only where given and accepted. Vote i of a case is sent seed + i.
        timeout: seconds for one call, waiting for a connection included.
        concurrency, rpm, tpm: see `JudgeLimits`. max_request_bytes: default is the provider's documented limit.

    Raises:
        UsageError: an argument that can never work. Keys are looked up when the judge connects, so that planning,
            cached reruns and replays need none.
    """

    provider: ClassVar[str]
    default_url: ClassVar[str]
    key_variables: ClassVar[tuple[str, ...]]
    inline_limit: ClassVar[int]
    default_max_output_tokens: ClassVar[int] = 16_384

    def __init__(
        self,
        model: str,
        *,
        base_url: str | None = None,
        api_key: str | None = None,
        key_env: str | None = None,
        name: str | None = None,
        temperature: float | Unset | None = None,
        top_p: float | None = None,
        seed: int | None = None,
        max_output_tokens: int | None = None,
        timeout: float = 180.0,
        concurrency: int = 16,
        rpm: float | None = None,
        tpm: float | None = None,
        max_request_bytes: int | None = None,
    ) -> None:
        if not isinstance(model, str) or not model.strip():
            raise UsageError(f"model: expected the service's name of a model, got {model!r}")
        if api_key is not None and key_env is not None:
            raise UsageError("api_key and key_env: give one of them, not both")
        if api_key is not None and not api_key.strip():
            raise UsageError("api_key: it is empty; leave it out to use the environment, or pass the key")
        if not timeout > 0:
            raise UsageError(f"timeout: expected seconds > 0, got {timeout!r}")
        if concurrency < 1:
            raise UsageError(f"concurrency: expected an integer ≥ 1, got {concurrency!r}")
        self.model = model
        self.by_url = base_url is not None
        self.endpoint: Endpoint = parse_endpoint(
            base_url if base_url is not None else self.default_url, key_env=key_env
        )
        self.timeout = float(timeout)
        self._given_key = Secret(api_key.strip()) if api_key is not None else None
        self._key: Secret | None = self._given_key
        default_name = f"{self.provider}:{model}" + (f"@{self.endpoint.url}" if self.by_url else "")
        self._name = name or default_name
        limit = max_request_bytes if max_request_bytes is not None else (None if self.by_url else self.inline_limit)
        self._limits = JudgeLimits(concurrency=concurrency, rpm=rpm, tpm=tpm, max_request_bytes=limit)
        self.accepts = accepted(self.provider, model, by_url=self.by_url)
        if max_output_tokens is None and not self.by_url:
            max_output_tokens = self.default_max_output_tokens
        self.settings: dict[str, Any] = {}
        self.not_sent: dict[str, Any] = {}
        if temperature is None and "temperature" in self.accepts:
            self.settings["temperature"] = 0.0
        elif temperature is not None and temperature != "unset":
            self._set("temperature", float(temperature))
        self._set("top_p", top_p)
        self._set("seed", seed)
        self._set("max_output_tokens", max_output_tokens)
        self._warned_model = False

    def _set(self, setting: str, value: Any) -> None:
        """Record a setting as sent, or as not sent with a warning where the model does not accept it."""
        if value is None:
            return
        if setting in self.accepts:
            self.settings[setting] = value
            return
        self.not_sent[setting] = value
        warnings.warn(
            f"{self._name}: {setting}={value!r} is not sent, because this model does not accept it (isr/judges/models.toml)",
            UserWarning,
            stacklevel=4,
        )

    @property
    def name(self) -> str:
        return self._name

    @property
    def limits(self) -> JudgeLimits:
        return self._limits

    def identity(self) -> Mapping[str, Any]:
        """Provider, host and path, model, and everything that is sent besides the question. Never a key."""
        return {
            "provider": self.provider,
            "host": self.endpoint.host,
            "path": self.endpoint.path,
            "model": self.model,
            "settings": dict(sorted(self.settings.items())),
        }

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._name!r})"

    # ------------------------------------------------------------------------------------------ for the transports

    def _find_key(self) -> Secret | None:
        """The key to send, or None for a server that was given by URL without one.

        Raises:
            JudgeStoppedError: a key is needed and there is none.
        """
        if self._given_key is not None:
            return self._given_key
        variables = (self.endpoint.key_env,) if self.endpoint.key_env else (() if self.by_url else self.key_variables)
        self._key = find_key(variables)
        if self._key is None and variables:
            raise JudgeStoppedError(
                f"{self._name} needs a key: set the environment variable {' or '.join(variables)} and run again. "
                "Without a key you can still use a server of your own (openai:MODEL@http://127.0.0.1:8000/v1), a stored "
                "run (replay:RUN) or a Python function as the judge.",
                judge=self._name,
                status=401,
            )
        return self._key

    def scrub(self, text: object) -> str:
        return scrub(text, (self._key,))

    def clean(self, body: str) -> str:
        """A received body without the key: a server may echo it into a reply, and replies are stored and printed."""
        return body.replace(self._key.reveal(), REMOVED) if self._key is not None else body

    def _http_client(self) -> httpx2.AsyncClient:
        """Our own client: no redirects (a key never follows one), as many connections as calls may be under way, and
        for a server given by URL no header that the client libraries add from the environment."""
        import httpx2

        count = self._limits.concurrency
        hooks = {"request": [self._only_our_headers]} if self.by_url else {}
        return httpx2.AsyncClient(
            limits=httpx2.Limits(max_connections=count, max_keepalive_connections=count, keepalive_expiry=30.0),
            timeout=httpx2.Timeout(self.timeout),
            verify=self._verify(),
            follow_redirects=False,
            trust_env=not self.endpoint.loopback,
            event_hooks=hooks,
        )

    def _verify(self) -> ssl.SSLContext | bool:
        """The certificates of https, loaded once per process; plain http (to this machine only) needs none."""
        return _tls() if self.endpoint.url.startswith("https:") else False

    async def _only_our_headers(self, request: httpx2.Request) -> None:
        key = (self._key.reveal() if self._key else NO_KEY).encode()
        for header in list(request.headers):
            if header in _PLAIN_HEADERS or header.startswith(
                ("x-stainless-", "x-goog-api-client", "x-goog-upload-", "x-server-timeout")
            ):
                continue
            if header in ("authorization", "x-goog-api-key"):
                sent = request.headers[header].encode()
                if sent in (key, b"Bearer " + key):
                    continue
            del request.headers[header]

    def _check_served(self, served: str | None) -> NoVerdict | None:
        """`model_substituted` where another model answered; for servers given by URL a warning, once."""
        if same_model(self.model, served):
            return None
        said = f"asked for {self.model!r}, answered by {scrub(served, (self._key,), limit=120)!r}"
        if not self.by_url:
            return NoVerdict(reason="model_substituted", detail=f"{said}; name the model that shall answer")
        if not self._warned_model:
            self._warned_model = True
            warnings.warn(f"{self._name}: {said}; its answers are counted as this judge's", UserWarning, stacklevel=2)
        return None

    def _wire_seed(self, vote: int) -> int | None:
        seed = self.settings.get("seed")
        return None if seed is None else int(seed) + vote


_PLAIN_HEADERS = frozenset(
    [
        "host",
        "accept",
        "accept-encoding",
        "connection",
        "content-type",
        "content-length",
        "user-agent",
        "x-server-timeout",
        "transfer-encoding",
    ]
)


@cache
def _tls() -> ssl.SSLContext:
    import httpx2

    return httpx2.create_ssl_context()
