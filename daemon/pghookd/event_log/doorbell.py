"""The doorbell: producers pay for a NOTIFY only while a daemon sleeps.

Only a sleeping daemon holds the advisory lock with key 0 exclusively. Once the daemon requests the lock, new producers
notify. The grant proves that all transactions that did not notify have ended. The daemon then reads once more and
sleeps. No row passes through here.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Awaitable, Callable
from typing import Any, Final

from structlog.typing import FilteringBoundLogger

from pghookd.postgres import lock_keys
from pghookd.postgres.client import Session
from pghookd.process.logs import LogEvent

DROWSY_MIN_S: Final = 0.005
DROWSY_MAX_S: Final = 0.05
GIVE_UP_AFTER_S: Final = 1.0  # if rows keep coming this long, stay awake until the next lull
STREAK_ENDS_AFTER_S: Final = 0.25
LOOK_MAX_S: Final = 1.0  # a sleeping daemon beats at least this often, however rarely it polls
ANSWER_WITHIN_S: Final = (
    10.0  # limit of the short statements; the session has no limit, since the lock may take hours
)
NO_KEEPER_S: Final = 0.005  # pause of a reader without the doorbell lock: it polls instead of sleeping

QUEUE_SHARE_MAX: Final = (
    0.1  # share of Postgres's 8 GB notification queue; when it is full, commits that notify fail
)
HOLDERS_NAMED: Final = 3  # sessions with old transactions that a warning names

Read = Callable[[], Awaitable[int]]


class Bell:
    """Hold the doorbell lock on a session of its own: a waiting statement would delay the session's notifications."""

    def __init__(
        self,
        session: Session,
        open_session: Callable[[], Awaitable[Session]],
        end_backend: Callable[[int], Awaitable[None]],
        *,
        wake: asyncio.Event,
        logger: FilteringBoundLogger,
        monotonic: Callable[[], float],
        fallback_s: float,
        beat: Callable[[], None],
    ) -> None:
        self.session = session
        self._open_session = open_session
        self._end_backend = end_backend
        self._wake = wake
        self._logger = logger
        self._monotonic = monotonic
        self._fallback_s = fallback_s
        self._beat = beat
        self._keeps = False
        self._given_up: asyncio.Future[Any] | None = None  # a lock request whose session is being replaced
        self._replace = asyncio.Event()

    def apply(self, fallback_s: float) -> None:
        """Change the polling interval; a sleeping daemon wakes up for it."""
        self._fallback_s = fallback_s
        self._wake.set()

    async def sleep(self, read: Read) -> None:
        """Sleep until a producer notifies or there are rows to read; `read` returns the number of rows it found.

        If no daemon can sleep now, return after a short pause: the reader never waits for another session.
        """
        if self._given_up is not None:
            await asyncio.sleep(NO_KEEPER_S)
            return
        if not self._keeps:
            self._keeps = bool(
                await self.session.fetchval(lock_keys.TRY, lock_keys.BELL_KEEPER, timeout_s=ANSWER_WITHIN_S)
            )
            if not self._keeps:
                await asyncio.sleep(NO_KEEPER_S)
                return
        self._wake.clear()  # before the lock request, so that a later notification is not lost
        ask = asyncio.ensure_future(self.session.fetchval(lock_keys.WAIT, lock_keys.BELL))
        try:
            granted = await self._drowse(ask, read)
        except BaseException:
            ask.cancel()
            with contextlib.suppress(BaseException):
                await ask
            raise
        if not granted:
            self._given_up = ask
            self._replace.set()
            return
        if not await read():
            await self._asleep(read)
        await self.session.fetchval(lock_keys.RELEASE, lock_keys.BELL, timeout_s=ANSWER_WITHIN_S)

    async def _drowse(self, ask: asyncio.Future[Any], read: Read) -> bool:
        """Poll slowly until the lock is granted; return False if rows keep coming."""
        pause = DROWSY_MIN_S
        streak_at = last_at = -1.0
        while not ask.done():
            await self._until(ask, pause)
            self._wake.clear()
            found = await read()
            self._beat()
            now = self._monotonic()
            if not found:
                pause = min(pause * 2, DROWSY_MAX_S)
                continue
            pause = DROWSY_MIN_S
            if last_at < 0 or now - last_at > STREAK_ENDS_AFTER_S:
                streak_at = now
            last_at = now
            if now - streak_at > GIVE_UP_AFTER_S and not ask.done():
                return False
        await ask
        return True

    async def _until(self, ask: asyncio.Future[Any], pause: float) -> None:
        """Wait for the grant, a notification, or the end of the pause."""
        rung = asyncio.ensure_future(self._wake.wait())
        try:
            await asyncio.wait((ask, rung), timeout=pause, return_when=asyncio.FIRST_COMPLETED)
        finally:
            rung.cancel()

    async def _asleep(self, read: Read) -> None:
        self._logger.debug(LogEvent.BELL_SLEPT)
        left_s = poll_s = self._fallback_s or math.inf
        while not self._wake.is_set():
            self._beat()
            wait_s = min(left_s, LOOK_MAX_S)
            try:
                async with asyncio.timeout(wait_s):
                    await self._wake.wait()
            except TimeoutError:
                left_s -= wait_s
                if left_s <= 0:
                    left_s = poll_s
                    if await read():
                        return
        self._logger.debug(LogEvent.BELL_RUNG)

    async def run(self) -> None:
        """Replace the session after each abandoned lock request, beside the reader, until cancelled."""
        while True:
            await self._replace.wait()
            self._replace.clear()
            if self._given_up is not None:
                await self._end(self._given_up)
                self._given_up = None

    async def _end(self, ask: asyncio.Future[Any]) -> None:
        """End the session of an abandoned request, which may have been granted although it was cancelled.

        The new session is the only one opened within an epoch. It carries no snapshot. Its grant only leads to a read
        on the reader's session, and that read fails if the server has changed.
        """
        await self._end_backend(self.session.pid)
        with contextlib.suppress(Exception):  # it was ended on purpose
            await ask
        self.session.terminate()
        self._keeps = False
        self.session = await self._open_session()
