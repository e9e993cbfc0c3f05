"""Fail points: named places at which a test interrupts the daemon, as a crash would. Otherwise they do nothing.

The function that is called there belongs to the context in which it was given, and to the tasks started from it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeAlias

Interrupt: TypeAlias = Callable[[str], Awaitable[None]]

_interrupt: ContextVar[Interrupt | None] = ContextVar("fail_points", default=None)


@contextmanager
def interrupted_by(interrupt: Interrupt) -> Iterator[None]:
    """Await a function at every fail point within a `with` block, with the name of the fail point."""
    token = _interrupt.set(interrupt)
    try:
        yield
    finally:
        _interrupt.reset(token)


async def reached(name: str) -> None:
    """Mark a place; the name is that of the loop and of the step that is done."""
    interrupt = _interrupt.get()
    if interrupt is not None:
        await interrupt(name)
