"""`run --sink`: every request of a developer's or staging database goes to a receiver in this process and is shown.

Requests are as they would have been, signature, `host` and all, and URLs are judged as ever; but no name is asked
for, and no connection is opened but to this receiver. No mail goes out either.

Never here: a decision about what is delivered.
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Self

from pghookd.cli.devtools.printing_receiver import Printer, Received
from pghookd.egress.sender import Sender
from pghookd.settings.schema import Settings, SmtpSettings


class Sink(Sender):
    """A sender that brings its own receiver."""

    def __init__(self, settings: Settings, show: Callable[[Received], None]) -> None:
        super().__init__(
            policy=settings.egress.policy(),
            connections_max=settings.delivery.concurrency,
            connect_timeout_s=settings.delivery.connect_timeout_s,
            response_bytes_max=settings.delivery.response_bytes_max,
        )
        self._printer = Printer(show)

    async def __aenter__(self) -> Self:
        await self._printer.__aenter__()
        self.diverted_to = self._printer.port
        return await super().__aenter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        await super().__aexit__(kind, exc, trace)
        await self._printer.__aexit__(kind, exc, trace)


def without_mails(settings: Settings) -> Settings:
    """Return the settings with no mail server: owners of a copied database must hear nothing of it."""
    return settings.model_copy(update={"smtp": SmtpSettings()})
