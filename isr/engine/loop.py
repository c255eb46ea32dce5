"""Run a coroutine from anywhere: a script, a thread, pytest, or a notebook whose loop is already running."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

__all__ = ["run_anywhere"]

T = TypeVar("T")


def run_anywhere(work: Coroutine[Any, Any, T]) -> T:
    """The coroutine's result. With a loop already running in this thread, the work runs in a loop of its own in a second
    thread (a nested `asyncio.run` is impossible, and API clients must not cross loops). Ctrl-C cancels the work first."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)

    outcome: list[T] = []
    failure: list[BaseException] = []
    holder: list[tuple[asyncio.AbstractEventLoop, asyncio.Task[T]]] = []
    started = threading.Event()

    async def main() -> T:
        task = asyncio.ensure_future(work)
        holder.append((asyncio.get_running_loop(), task))
        started.set()
        return await task

    def body() -> None:
        try:
            outcome.append(asyncio.run(main()))
        except BaseException as error:  # noqa: BLE001 - carried to the calling thread and raised there
            failure.append(error)
        finally:
            started.set()

    thread = threading.Thread(target=body, name="isr-evaluate", daemon=True)
    thread.start()
    try:
        thread.join()
    except BaseException:  # Ctrl-C in the calling thread: stop the work, then let it through
        started.wait()
        for loop, task in holder:
            loop.call_soon_threadsafe(task.cancel)
        thread.join()
        raise
    if failure:
        raise failure[0]
    return outcome[0]
