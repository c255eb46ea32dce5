"""The verbs that others implement: judges, immunizers, editors, purifiers, consensus policies. Imports nothing heavy.

Pictures that pass between rooms are 8-bit sRGB `PIL.Image`s (what an attacker downloads); tensors stay inside a room.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from .errors import IsrError
from .schema import Answer, NoVerdict, OutcomeValue, Usage, Verdict

if TYPE_CHECKING:
    import PIL.Image
    import torch

__all__ = [
    "Ask",
    "AskJudge",
    "BatchClient",
    "BatchItem",
    "BatchJudge",
    "BatchLimits",
    "BatchState",
    "Consensus",
    "Editor",
    "Immunizer",
    "Judge",
    "JudgeLimits",
    "Picture",
    "Prediction",
    "Purifier",
    "Question",
    "Reply",
    "Traits",
    "WhiteBoxEditor",
]


# ---------------------------------------------------------------------------------------------------------- judges


@dataclass(frozen=True)
class Picture:
    """One picture of a question.

    Attributes:
        role: "original" or "edited".
        png: lossless PNG of the canonical pixels (8-bit sRGB).
        digest: of the pixels as sent (sha256, 64 hex).
        size: (width, height) in pixels, as sent.
    """

    role: str
    png: bytes = field(repr=False)
    digest: str
    size: tuple[int, int]


@dataclass(frozen=True)
class Question:
    """One call to a judge: what the rubric asks about one case, ready to send.

    Attributes:
        instructions: the rubric's wording. Never contains a word of the case.
        data: a JSON object (one line) with the edit prompt: the case's own words, as data.
        pictures: in the order in which the instructions name them.
        schema: JSON schema of the reply. schema_name: an identifier for services that want one.
        prompt: the edit prompt itself, for judges that are functions.
        vote, ask: indices of this call (see `schema.Call`).
        columns: case columns a *local* judge may look at (category, tags); never sent to a service.
    """

    instructions: str
    data: str
    pictures: tuple[Picture, ...]
    schema: Mapping[str, Any]
    schema_name: str
    prompt: str
    vote: int = 0
    ask: int = 0
    columns: Mapping[str, Any] = field(default_factory=dict)

    def picture(self, role: str) -> Picture | None:
        """The picture in a role, or None (an evaluation without originals has no "original")."""
        return next((p for p in self.pictures if p.role == role), None)


@dataclass(frozen=True)
class Reply:
    """What came back from one call.

    Give exactly one of `text` (the rubric reads it) or `answer` (a judge that speaks in verdicts, or the transport's
    classification of a reply without readable text: blocked, refused, truncated, empty, …).
    """

    text: str | None = None
    answer: Verdict | NoVerdict | None = None
    finish: str | None = None
    served_model: str | None = None
    response_id: str | None = None
    usage: Usage = field(default_factory=Usage)


Ask = Callable[[Question], Awaitable[Reply]]


@dataclass(frozen=True)
class JudgeLimits:
    """How hard a judge may be driven. None means no limit of that kind.

    Attributes:
        concurrency: calls under way at once. rpm, tpm: requests and (input + output) tokens per minute.
        max_request_bytes: the provider's inline limit for one request (base64 pictures included), checked in planning.
    """

    concurrency: int = 16
    rpm: float | None = None
    tpm: float | None = None
    max_request_bytes: int | None = None


@runtime_checkable
class Judge(Protocol):
    """Something that answers the rubric about a case. Everything around one call (cache, retry, limits, votes, parsing)
    belongs to the engine; a judge only carries the question over and brings the reply back.

    `ask` raises `errors.TransientError` where another try may help and `errors.JudgeStoppedError` where none will
    (bad key, unknown model, malformed request). Any other exception becomes `NoVerdict("judge_error")`.
    """

    @property
    def name(self) -> str:
        """As tables print it, e.g. "gemini:gemini-3.8-flash"; unique within a run."""
        ...

    @property
    def limits(self) -> JudgeLimits: ...

    def identity(self) -> Mapping[str, Any]:
        """JSON-able settings that can change an answer (provider, host and path, model, API version, sampling settings
        as sent). Goes into cache key, fingerprint and judge lock; never a key or token."""
        ...

    def connect(self) -> Any:
        """An async context manager that yields an `Ask`. Clients are made inside, in the run's own event loop."""
        ...


class AskJudge:
    """Convenience base for a judge that needs no connection: give it a name and an `async def ask(question)`.

    Its answers are kept across runs only where you say what they depend on: set `version` (and change it when the answers
    change), or define `identity()`. Otherwise a changed judge would be answered from the cache of the old one.
    """

    name: str = "judge"
    version: str | None = None
    limits: JudgeLimits = JudgeLimits()

    @property
    def cacheable(self) -> bool:
        """Whether replies may be reused in another run."""
        return self.version is not None or type(self).identity is not AskJudge.identity

    def identity(self) -> Mapping[str, Any]:
        kind = f"{type(self).__module__}.{type(self).__qualname__}"
        return {"provider": kind, "name": self.name, "version": self.version}

    async def ask(self, question: Question) -> Reply:  # noqa: ARG002 - the signature to override
        raise TypeError(f"{type(self).__qualname__} must define `async def ask(self, question) -> Reply`")

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[Ask]:
        yield self.ask


# ------------------------------------------------------------------------------------------- judges that work in batches


@dataclass(frozen=True)
class BatchItem:
    """One request of a batch.

    Attributes:
        key: its name within the job, 64 hex digits (the cache key of the call); the service sends it back with the reply.
        question: what is asked.
    """

    key: str
    question: Question


@dataclass(frozen=True)
class BatchLimits:
    """What one job may hold.

    Attributes:
        max_bytes: of all encoded requests together, line ends included. max_requests: how many.
    """

    max_bytes: int
    max_requests: int


@dataclass(frozen=True)
class BatchState:
    """Where a job stands.

    Attributes:
        ended: nothing more will come; what there is can be collected (also of expired, cancelled and failed jobs).
        word: the service's own word. detail: why it failed, or "". total, answered, failed: its counts, or None.
    """

    ended: bool
    word: str
    detail: str = ""
    total: int | None = None
    answered: int | None = None
    failed: int | None = None


class BatchClient(Protocol):
    """An open connection to a batch API. Every method may raise `TransientError` (try again later) or `JudgeStoppedError`."""

    @property
    def limits(self) -> BatchLimits: ...

    def encode(self, item: BatchItem) -> bytes:
        """The request as one line of JSON, without a line end; its length is what `limits` counts."""
        ...

    async def submit(self, label: str, requests: Path, count: int) -> str:
        """Start a job of `count` encoded requests, one per line of a file; returns the job's id."""
        ...

    async def find(self, label: str) -> str | None:
        """The id of the job that was started under a label, or None where the service has none."""
        ...

    async def poll(self, job: str) -> BatchState: ...

    def collect(self, job: str) -> AsyncIterator[tuple[str, Reply | IsrError]]:
        """Every result of an ended job in any order: the reply, or why there is none (`TransientError`: it may be asked
        again; `JudgeStoppedError`: the request itself was refused). Results without a key that can be read are left out
        with a warning, never matched by position."""
        ...


@runtime_checkable
class BatchJudge(Judge, Protocol):
    """A judge whose questions can be sent in batches too; its answers are the same measurement as live ones."""

    def connect_batch(self) -> AbstractAsyncContextManager[BatchClient]: ...


# ------------------------------------------------------------------------------------------------------- consensus


class Consensus(Protocol):
    """A policy from the judges' answers on one case to its outcome. A pure function; `NoVerdict` and `NotAsked` reach it
    as they are. Answers come in the order of the judges."""

    def __call__(self, answers: Sequence[Answer], /) -> OutcomeValue: ...


# ------------------------------------------------------------------------------------- editors, immunizers, purifiers


@dataclass(frozen=True)
class Traits:
    """What can be known of a plugin before it is loaded.

    Attributes:
        white_box: has the differentiable surface. seedable: same seed, same bytes.
        size_multiple: sides are brought to a multiple of this; native_size: the side it was trained at (None: any).
        family: "unet", "mmdit", "flux-kontext", "qwen-edit", "api", "function", "mini", …
        licence: SPDX id or the licence's own name. source: hub id or folder. gated: asks for accepted terms.
        steps, guidance, image_guidance, strength: the defaults used where a call gives none; None: does not apply.
    """

    white_box: bool = False
    seedable: bool = True
    size_multiple: int = 8
    native_size: int | None = None
    family: str = ""
    licence: str = "unknown"
    source: str = ""
    gated: bool = False
    steps: int | None = None
    guidance: float | None = None
    image_guidance: float | None = None
    strength: float | None = None


@runtime_checkable
class Editor(Protocol):
    """Edits pictures by text."""

    @property
    def name(self) -> str: ...

    @property
    def traits(self) -> Traits: ...

    def edit(
        self, images: Sequence[PIL.Image.Image], prompts: Sequence[str], *, seeds: Sequence[int], **settings: Any
    ) -> list[PIL.Image.Image]:
        """One edit per image: 8-bit RGB in, 8-bit RGB out, one random generator per image (seed i belongs to image i).

        Args:
            images: N pictures. prompts: N prompts. seeds: N integers.
            settings: steps, guidance, …; unknown names raise.
        """
        ...

    def settings(self, **overrides: Any) -> Mapping[str, Any]:
        """Everything that decides an edit besides image, prompt and seed, as recorded with every result (JSON-able)."""
        ...


#: What a denoiser's output is: the noise ε, v = a·ε − b·z, the clean scaled latents z themselves, or a flow's ε − z.
Prediction = Literal["epsilon", "v_prediction", "sample", "flow"]


@runtime_checkable
class WhiteBoxEditor(Editor, Protocol):
    """The small differentiable surface that attacks see (docs/definitions.md, section 11).

    Pixels `x` are float tensors (B, 3, H, W) in [0, 1]; latents (B, C, h, w); `t` are (B,) tensors of the model's own
    timesteps. Weights never require gradients. Several timesteps of B pictures go in one pass as K·B rows, timestep-major;
    text and condition may then have K·B rows or B (which are repeated).

    Used where an editor has them: `word_columns(prompt, word=None)`, the text columns of a word for `attention`;
    `condition_of(raw)`, the condition from latents at hand; `levels(t)`, (a, b) of noisy = a·z + b·noise; `undefined`, names
    of this surface that the editor cannot offer (a sequence, or a mapping from name to why), which methods then refuse.
    """

    @property
    def prediction(self) -> Prediction: ...

    @property
    def device(self) -> torch.device: ...

    def latents(self, x: torch.Tensor) -> torch.Tensor:
        """Raw encoder mean, unscaled (B, C, h, w)."""
        ...

    def scaled(self, z: torch.Tensor) -> torch.Tensor:
        """What the denoiser works on: (z − shift) · scale, as the pipeline of this family does it."""
        ...

    def condition(self, x: torch.Tensor) -> torch.Tensor | None:
        """What the image adds to the denoiser's input (unscaled mode for InstructPix2Pix, a scaled latent for Kontext, which
        makes tokens of it), or None where the image enters through the noisy latent only."""
        ...

    def embed(self, prompts: Sequence[str]) -> Any:
        """Text conditioning of B prompts, opaque to attacks; passed back to `predict` and friends."""
        ...

    def timesteps(self, n: int) -> torch.Tensor:
        """The timesteps that an n-step edit visits, from noisy to clean: (n,), or fewer for image-to-image, which starts
        at its strength."""
        ...

    def noisy(self, z: torch.Tensor, t: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """The scaled latent z at timestep t: √ᾱ z + √(1−ᾱ) noise (VP), or (1−σ) z + σ noise (flow)."""
        ...

    def predict(self, noisy: torch.Tensor, t: torch.Tensor, text: Any, cond: torch.Tensor | None) -> torch.Tensor:
        """The denoiser's raw output (of kind `prediction`), conditional branch only, (B, C, h, w)."""
        ...

    def layers(self) -> tuple[str, ...]:
        """Names `features` understands, from shallow to deep in order of the forward pass."""
        ...

    def default_layers(self) -> tuple[str, ...]:
        """The layers an attack uses where the user names none (mid block and later up blocks, or the family's like)."""
        ...

    def features(
        self, noisy: torch.Tensor, t: torch.Tensor, text: Any, cond: torch.Tensor | None, layers: Sequence[str]
    ) -> dict[str, torch.Tensor]:
        """Outputs of the named layers (image tokens only where text is joint); stops after the deepest one asked for."""
        ...

    def attention(
        self,
        noisy: torch.Tensor,
        t: torch.Tensor,
        text: Any,
        cond: torch.Tensor | None,
        columns: Sequence[int] | None = None,
    ) -> dict[str, torch.Tensor]:
        """Cross-attention probabilities per layer, head mean, (B, image tokens, text columns asked for)."""
        ...

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        """Pixels in [0, 1] (not clamped) of a *scaled* latent, (B, 3, H, W)."""
        ...

    def rollout(
        self, x: torch.Tensor, prompts: Sequence[str], steps: int, *, seeds: Sequence[int], **settings: Any
    ) -> torch.Tensor:
        """A differentiable edit of `steps` steps: pixels (B, 3, H, W), not rounded; equals `edit` at the same steps.

        Optional: an argument `checkpoint` (default True: each denoiser pass is recomputed during backward); False keeps them.
        """
        ...


@runtime_checkable
class Immunizer(Protocol):
    """Protects pictures. The framework (not the plugin) verifies size, mode and budget on the saved 8-bit file."""

    @property
    def name(self) -> str: ...

    def immunize(
        self,
        images: Sequence[PIL.Image.Image],
        prompts: Sequence[str | None],
        *,
        editor: Editor | None = None,
        seeds: Sequence[int],
    ) -> list[PIL.Image.Image]:
        """One protected picture per image, same size, 8-bit RGB."""
        ...

    def settings(self) -> Mapping[str, Any]:
        """JSON-able settings as recorded; `budget` holds {"norm": "linf" | "l2", "eps": …} on [0, 1] pixels, or None."""
        ...


@runtime_checkable
class Purifier(Protocol):
    """What an attacker may do to a downloaded picture before editing it."""

    @property
    def name(self) -> str: ...

    def purify(self, images: Sequence[PIL.Image.Image], *, seeds: Sequence[int]) -> list[PIL.Image.Image]: ...

    def settings(self) -> Mapping[str, Any]: ...
