"""Runs the mailer that the settings in force ask for, and another one after a reload: one at a time.

A mailer keeps its mail server, templates and rate for life. The mail that it is sending ends before the next begins.

Never here: what a mailer does with a mail (owner_mail/mailer.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from structlog.typing import FilteringBoundLogger

from pghookd.egress.tls import trust
from pghookd.owner_mail.mailer import Checkpoint, Mailer
from pghookd.owner_mail.message import Letters
from pghookd.owner_mail.smtp import SmtpClient
from pghookd.postgres.client import Session
from pghookd.process.logs import LogEvent
from pghookd.settings.schema import Settings


class Mailing:
    """The mailer of the moment; there is none while no mail server is set."""

    def __init__(
        self,
        session: Session,
        settings: Settings,
        *,
        logger: FilteringBoundLogger,
        monotonic: Callable[[], float],
        wall_us: Callable[[], int],
        wake: asyncio.Event,
        checkpoint: Checkpoint,
    ) -> None:
        self._session = session
        self._settings = settings
        self._logger = logger
        self._monotonic = monotonic
        self._wall_us = wall_us
        self._wake = wake
        self._checkpoint = checkpoint
        self._mailer: Mailer | None = None
        self._changed = asyncio.Event()
        self._stopping = False

    @property
    def sending(self) -> int | None:
        """Return the email_id of the mail that is being sent now, or None."""
        return None if self._mailer is None else self._mailer.sending

    def apply(self, settings: Settings) -> None:
        """Go on with other settings after the mail that is being sent. Templates and authorities are read anew."""
        self._settings = settings
        self._turn()

    def stop(self) -> None:
        """Begin no further mail; `run` ends after the one that is being sent."""
        self._stopping = True
        self._turn()

    def _turn(self) -> None:
        self._changed.set()
        if self._mailer is not None:
            self._mailer.stop()

    async def run(self) -> None:
        """Run one mailer after the other until stopped or cancelled."""
        while not self._stopping:
            self._changed.clear()
            mailer = await self._make(self._settings)
            if self._changed.is_set():
                continue
            if mailer is None:
                await self._changed.wait()
                continue
            self._mailer = mailer
            await mailer.run()
            self._mailer = None

    async def _make(self, settings: Settings) -> Mailer | None:
        """Make a mailer, where there is a mail server. Files are read in a thread: deliveries go on meanwhile."""
        if not settings.smtp.host:
            return None
        try:
            context = await asyncio.to_thread(trust, settings.egress.ca_file or None)
        except OSError as error:  # the file was in order when the settings were loaded
            self._logger.error(LogEvent.SETTINGS_REJECTED, faults=f"no mails: egress.ca_file: {error}")  # noqa: TRY400 - no traceback helps
            return None
        return Mailer(
            self._session,
            SmtpClient(settings.smtp, context=context, monotonic=self._monotonic),
            Letters(settings.mail, user_agent=settings.delivery.user_agent),
            settings=settings.mail,
            logger=self._logger,
            monotonic=self._monotonic,
            wall_us=self._wall_us,
            wake=self._wake,
            beat=lambda: None,
            checkpoint=self._checkpoint,
        )
