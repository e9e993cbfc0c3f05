"""`run --sink`: sends every request to a receiver in this process, which shows it; for development and staging.

The requests are unchanged, including signature and `host`, and URLs are judged as usual. But no name is resolved, and
the only connections are to this receiver. No mail is sent either.

Never here: a decision about which events are delivered.
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Self

from pghookd.cli.devtools.printing_receiver import Printer, Received
from pghookd.egress.sender import Sender
from pghookd.settings.schema import Settings, SmtpSettings


class Sink(Sender):
    """A sender with its own receiver."""

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
    """Return the settings without a mail server: owners in a copied database must get no mails."""
    return settings.model_copy(update={"smtp": SmtpSettings()})
