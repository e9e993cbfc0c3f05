"""Beats for the watchdog while a loop waits: for work that may take long, or for an event.

Only work that must not bring the daemon down is waited for in this way: a slow statement, mail server or template
delays its own loop, and must not make systemd end the deliveries.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

BEAT_S: Final = 1.0
T = TypeVar("T")


async def while_working(work: Awaitable[T], beat: Callable[[], None]) -> T:
    """Await some work, and beat meanwhile; the work is cancelled together with its caller."""
    task = asyncio.ensure_future(work)
    try:
        while not task.done():
            beat()
            await asyncio.wait((task,), timeout=BEAT_S)
        return await task
    finally:
        if not task.done():
            task.cancel()
            await asyncio.wait((task,))


async def until_set(event: asyncio.Event, within_s: float, beat: Callable[[], None]) -> None:
    """Wait until an event is set, for `within_s` seconds at most, and beat meanwhile."""
    left_s = within_s
    while left_s > 0 and not event.is_set():
        beat()
        try:
            async with asyncio.timeout(min(left_s, BEAT_S)):
                await event.wait()
        except TimeoutError:
            left_s -= BEAT_S
