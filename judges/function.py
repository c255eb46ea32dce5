"""A Python function as the judge."""

from __future__ import annotations

import asyncio
import contextvars
import hashlib
import inspect
import io
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from concurrent.futures import CancelledError as FutureCancelledError
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from types import CodeType, FunctionType, MethodType
from typing import Any

import PIL.Image
from pydantic import ValidationError

from isr.errors import JudgeStoppedError, TransientError, UsageError
from isr.protocols import Ask, JudgeLimits, Question, Reply
from isr.schema import CRITERIA, NoVerdict, Verdict
from isr.secret import environment_secrets, scrub

__all__ = ["FunctionJudge", "JudgeCase", "JudgeResult"]

#: What a judging function may return.
JudgeResult = Verdict | NoVerdict | tuple[bool, bool] | Mapping[str, Any] | str

_WANTED = "return a Verdict, a NoVerdict, (semantic_mismatch, degradation) as two booleans, a dict, or the rubric's JSON as text"


@dataclass(frozen=True)
class JudgeCase:
    """What a judging function is given: one case, as every judge sees it.

    Attributes:
        prompt: the edit prompt. columns: the case's columns (method, category, tags, …).
        question: the whole question (rubric, schema, vote), for functions that want to send it on.
    """

    question: Question = field(repr=False)

    @property
    def prompt(self) -> str:
        return self.question.prompt

    @property
    def columns(self) -> Mapping[str, Any]:
        return self.question.columns

    @cached_property
    def edited(self) -> PIL.Image.Image:
        """The edited picture: 8-bit RGB, a copy of this function's own."""
        return _decode(self.edited_png)

    @cached_property
    def original(self) -> PIL.Image.Image | None:
        """The original picture, or None in an evaluation without originals."""
        png = self.original_png
        return None if png is None else _decode(png)

    @property
    def edited_png(self) -> bytes:
        """The edited picture as lossless PNG, as sent to other judges."""
        picture = self.question.picture("edited")
        if picture is None:
            raise LookupError("this question holds no edited picture")
        return picture.png

    @property
    def original_png(self) -> bytes | None:
        """The original picture as lossless PNG, or None."""
        picture = self.question.picture("original")
        return None if picture is None else picture.png


def _decode(png: bytes) -> PIL.Image.Image:
    with PIL.Image.open(io.BytesIO(png)) as image:
        return image.convert("RGB")


class FunctionJudge:
    """Asks a Python callable about each case.

    Args:
        function: `fn(case: JudgeCase)`, plain or async. It returns a `Verdict`, a `NoVerdict`, two booleans
            (semantic_mismatch, degradation), a dict (with the fields of `Verdict`, or the rubric's reply), or the
            rubric's JSON as text. An exception or another value is `NoVerdict("judge_error")`.
        name: as tables print it; default "function:NAME".
        version: change it when the answers change for a reason that the code does not show (weights, a threshold read
            from a file). Answers are cached across runs only where it is given.
        concurrency: calls at once; default 1 for a plain function (run in threads), 16 for an async one.
    """

    def __init__(
        self,
        function: Callable[[JudgeCase], JudgeResult | Awaitable[JudgeResult]],
        *,
        name: str | None = None,
        version: str | None = None,
        concurrency: int | None = None,
    ) -> None:
        if not callable(function) or isinstance(function, type):
            raise UsageError(f"function: expected something to call with one case, got {function!r}")
        if concurrency is not None and concurrency < 1:
            raise UsageError(f"concurrency: expected an integer ≥ 1, got {concurrency!r}")
        self._function = function
        self._is_async = _is_async(function)
        self._name = name or f"function:{_called(function)}"
        self._version = version
        self._limits = JudgeLimits(concurrency=concurrency or (16 if self._is_async else 1))
        #: Answers may be reused in another run: only where the user vouches for it with a version.
        self.cacheable = version is not None

    @property
    def name(self) -> str:
        return self._name

    @property
    def limits(self) -> JudgeLimits:
        return self._limits

    def identity(self) -> Mapping[str, Any]:
        """Name, version, and a digest of the function's code, defaults and captured plain values."""
        return {
            "provider": "function",
            "name": self._name,
            "version": self._version,
            "code": fingerprint(self._function),
        }

    def __repr__(self) -> str:
        return f"FunctionJudge({self._name!r})"

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[Ask]:
        if self._is_async:
            yield partial(self._ask, None)
            return
        pool = ThreadPoolExecutor(self._limits.concurrency, thread_name_prefix="isr-judge")
        try:
            yield partial(self._ask, pool)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    async def _ask(self, pool: ThreadPoolExecutor | None, question: Question) -> Reply:
        case = JudgeCase(question)
        try:
            if pool is None:
                result: Any = self._function(case)
            else:
                run = partial(contextvars.copy_context().run, _in_thread, self._function, case)
                result = await asyncio.get_running_loop().run_in_executor(pool, run)
            if inspect.isawaitable(result):
                result = await result
        except TransientError as error:
            said = scrub(error, environment_secrets())
            raise TransientError(said, retry_after=error.retry_after, status=error.status) from None
        except JudgeStoppedError as error:
            said = scrub(error, environment_secrets())
            raise JudgeStoppedError(said, judge=error.judge, status=error.status) from None
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            # Nobody cancelled us: the function (or a library it uses) raised it by itself.
            return _failed(error)
        except Exception as error:  # noqa: BLE001 - whatever a user's function raises is a missing verdict, never a score
            return _failed(error)
        return read_result(result)


def _in_thread(function: Callable[[JudgeCase], Any], case: JudgeCase) -> Any:
    """Call a plain function so that whatever it raises arrives at the waiting task: an asyncio future never takes a
    StopIteration (the task would wait for ever), and takes either CancelledError for a cancelled call."""
    try:
        return function(case)
    except (StopIteration, asyncio.CancelledError, FutureCancelledError) as error:
        raise RuntimeError(f"it raised {type(error).__name__}{f': {error}' if str(error) else ''}") from error


def _failed(error: BaseException) -> Reply:
    said = scrub(f"{type(error).__name__}: {error}", environment_secrets())
    return Reply(answer=NoVerdict(reason="judge_error", detail=said), finish="exception")


def read_result(result: Any) -> Reply:
    """The reply in what a judging function returned; anything unexpected is `NoVerdict("judge_error")`."""
    if isinstance(result, Verdict | NoVerdict):
        return Reply(answer=result, finish="return")
    if isinstance(result, str):
        return Reply(text=result, finish="return")
    if isinstance(result, tuple | list):
        booleans = [_boolean(value) for value in result]
        if len(booleans) == len(CRITERIA) and None not in booleans:
            return Reply(answer=Verdict(**dict(zip(CRITERIA, booleans, strict=True))), finish="return")
        kinds = ", ".join(type(value).__name__ for value in result)
        return _wrong(f"it returned ({kinds}), not two booleans")
    if isinstance(result, Mapping):
        return _read_mapping({key: value if (b := _boolean(value)) is None else b for key, value in result.items()})
    return _wrong(f"it returned {type(result).__name__}")


def _read_mapping(table: dict[Any, Any]) -> Reply:
    if set(CRITERIA) <= set(table) <= set(Verdict.model_fields):
        try:
            return Reply(answer=Verdict.model_validate(table), finish="return")
        except ValidationError as error:
            where = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()[:3])
            return _wrong(f"its dict is not a verdict ({where})")
    try:
        return Reply(text=json.dumps(table, ensure_ascii=False, allow_nan=False), finish="return")
    except (TypeError, ValueError) as error:
        return _wrong(f"its dict is not JSON ({error})")


def _wrong(what: str) -> Reply:
    detail = scrub(f"{what}; {_WANTED}", environment_secrets())
    return Reply(answer=NoVerdict(reason="judge_error", detail=detail), finish="return")


def _boolean(value: Any) -> bool | None:
    """A Python or numpy boolean as a Python one; None for everything else (0 and 1 too: a score is not a verdict)."""
    if isinstance(value, bool):
        return value
    if type(value).__module__ == "numpy" and type(value).__name__ in ("bool", "bool_"):
        return bool(value)
    return None


def _is_async(function: Any) -> bool:
    while isinstance(function, partial):
        function = function.func
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(_call_method(function))


def _call_method(value: Any) -> Any:
    """What runs when an object (not a function) is called, or None."""
    return next((vars(kind)["__call__"] for kind in type(value).__mro__ if "__call__" in vars(kind)), None)


def _called(function: Any) -> str:
    while isinstance(function, partial):
        function = function.func
    found = getattr(function, "__qualname__", None) or type(function).__qualname__
    return str(found).replace("<locals>.", "").replace("<lambda>", "lambda")


def fingerprint(function: Any) -> str:
    """Digest (16 hex) of what a callable does, as far as its code shows: bytecode, constants, names, defaults, captured
    and bound plain values. Two lambdas that differ in a captured threshold differ here; code that it calls does not count."""
    return hashlib.sha256(repr(_describe(function, 0)).encode("utf-8", "backslashreplace")).hexdigest()[:16]


def _describe(value: Any, depth: int) -> Any:
    if isinstance(value, bool | int | float | complex | str | bytes | type(None)):
        return value
    if depth > 6:
        return type(value).__qualname__
    if isinstance(value, tuple | list):
        return [type(value).__name__, *(_describe(item, depth + 1) for item in value)]
    if isinstance(value, set | frozenset):
        return [type(value).__name__, *sorted(repr(_describe(item, depth + 1)) for item in value)]
    if isinstance(value, Mapping):
        return ["mapping", *sorted(repr((_describe(k, depth + 1), _describe(v, depth + 1))) for k, v in value.items())]
    if isinstance(value, CodeType):
        return [value.co_code.hex(), list(value.co_names), [_describe(c, depth + 1) for c in value.co_consts]]
    if isinstance(value, partial):
        return ["partial", *(_describe(part, depth + 1) for part in (value.func, value.args, value.keywords))]
    if isinstance(value, MethodType):
        return ["method", _describe(value.__func__, depth + 1), _describe(value.__self__, depth + 1)]
    if isinstance(value, FunctionType):
        return _describe_function(value, depth)
    call = _call_method(value)
    code = _describe(call, depth + 1) if isinstance(call, FunctionType) else None
    state = getattr(value, "__dict__", {})
    return [f"{type(value).__module__}.{type(value).__qualname__}", code, _describe(state, depth + 1)]


def _describe_function(function: FunctionType, depth: int) -> Any:
    captured = []
    for cell in function.__closure__ or ():
        try:
            captured.append(_describe(cell.cell_contents, depth + 1))
        except ValueError:  # a name that is not bound yet
            captured.append("unbound")
    defaults = (function.__defaults__ or (), function.__kwdefaults__ or {})
    return [function.__qualname__, _describe(function.__code__, depth + 1), _describe(defaults, depth + 1), captured]
