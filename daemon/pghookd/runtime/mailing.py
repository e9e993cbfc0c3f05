"""Runs the mailer for the current settings, and a new one after a reload: one at a time.

A mailer keeps its mail server, templates and rate for life. It finishes the current mail before the next mailer starts.

Never here: what a mailer does with a mail (owner_mail/mailer.py).
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable

from pghookd.egress.tls import trust
from pghookd.owner_mail.mailer import Mailer
from pghookd.owner_mail.message import Letters
from pghookd.owner_mail.smtp import SmtpClient
from pghookd.postgres.client import Session
from pghookd.process import beating
from pghookd.process.context import Context
from pghookd.process.logs import LogEvent
from pghookd.settings.schema import Settings


class Mailing:
    """Holds the current mailer, if a mail server is set."""

    def __init__(
        self,
        session: Session,
        settings: Settings,
        context: Context,
        *,
        wake: asyncio.Event,
        beat: Callable[[], None],
    ) -> None:
        self._session = session
        self._settings = settings
        self._context = context
        self._wake = wake
        self._beat = beat
        self._mailer: Mailer | None = None
        self._changed = asyncio.Event()
        self._stopping = False

    @property
    def sending(self) -> int | None:
        """Return the email_id of the mail that is being sent now; None if there is none."""
        return None if self._mailer is None else self._mailer.sending

    def apply(self, settings: Settings) -> None:
        """Apply new settings after the current mail. Templates and the CA file are read again."""
        self._settings = settings
        self._turn()

    def stop(self) -> None:
        """Start no further mail; `run` ends after the current one."""
        self._stopping = True
        self._turn()

    def _turn(self) -> None:
        self._changed.set()
        if self._mailer is not None:
            self._mailer.stop()

    async def run(self) -> None:
        """Run one mailer after another until stopped or cancelled."""
        while not self._stopping:
            self._changed.clear()
            mailer = await self._make(self._settings)
            if self._changed.is_set():
                continue
            if mailer is None:
                await beating.until_set(self._changed, math.inf, self._beat)
                continue
            self._mailer = mailer
            await mailer.run()
            self._mailer = None

    async def _make(self, settings: Settings) -> Mailer | None:
        """Make a mailer; None without a mail server or a readable CA file. A thread reads it: deliveries continue."""
        if not settings.smtp.host:
            return None
        try:
            context = await asyncio.to_thread(trust, settings.egress.ca_file or None)
        except OSError as error:  # the file was readable when the settings were loaded
            faults = f"no mails: egress.ca_file: {error}"
            self._context.logger.error(LogEvent.SETTINGS_REJECTED, faults=faults)  # noqa: TRY400 - no traceback helps
            return None
        return Mailer(
            self._session,
            SmtpClient(settings.smtp, context=context, monotonic=self._context.monotonic),
            Letters(settings.mail, user_agent=settings.delivery.user_agent),
            self._context,
            settings=settings.mail,
            wake=self._wake,
            beat=self._beat,
        )
