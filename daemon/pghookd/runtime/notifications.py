"""Notifications of Postgres, and which loops they concern."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Final

ID_CHARS_A_SECOND: Final = 100_000  # in notifications about endpoints; reading them takes 5 ms


class NotificationRouter:
    """Routes notifications. Any role can send on the channel, so a notification only triggers a check.

    Ids are read up to a number of characters a second. Beyond that a list stands for any endpoint, which needs no
    reading, and the listeners pause between two checks of all endpoints.
    """

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._second = 0.0  # when the current second began
        self._chars = 0  # characters read in it
        self.echo = asyncio.Event()
        self.wake = asyncio.Event()
        self._due: Callable[[], None] = lambda: None
        self._replay: Callable[[], None] = lambda: None
        self._endpoints: Sequence[Callable[[list[int] | None], None]] = ()

    def route(
        self,
        *,
        due: Callable[[], None],
        replay: Callable[[], None],
        endpoints: Sequence[Callable[[list[int] | None], None]],
    ) -> None:
        """Route notifications to these functions from now on; `endpoints` get ids, or None for any endpoint."""
        self._due, self._replay, self._endpoints = due, replay, endpoints

    def __call__(self, payload: str) -> None:
        """Handle one notification."""
        self.wake.set()
        if payload == "echo":
            self.echo.set()
        elif payload == "due":
            self._due()
        elif payload == "replay":
            self._replay()
        elif payload == "endpoints":
            self._endpoints_changed(None)
        elif payload.startswith("endpoints:"):
            self._endpoints_changed(self._read(payload[len("endpoints:") :]))

    def _endpoints_changed(self, ids: list[int] | None) -> None:
        for changed in self._endpoints:
            changed(ids)

    def _read(self, text: str) -> list[int] | None:
        """Return the ids of a list, skipping invalid ones; None if more was sent than is read in a second."""
        now = self._monotonic()
        if now - self._second >= 1.0:
            self._second, self._chars = now, 0
        self._chars += len(text)
        if self._chars > ID_CHARS_A_SECOND:
            return None
        return [int(i) for i in text.split(",") if i.isascii() and i.isdecimal() and len(i) < 19]  # noqa: PLR2004 - a bigint
