"""Judges endpoints that are new or have changed: whether requests to them could be made, without making one.

The page of an owner shows the answer within a second (columns ready, why, judged_at). The checks are those that a
request would meet: the options, the secrets, the URL, and every address that its name resolves to.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterable
from typing import Final, TypeAlias

from structlog.typing import FilteringBoundLogger

from pghookd.event_log.rows import endpoint_of
from pghookd.model.delivery import Endpoint
from pghookd.postgres.client import DatabaseError, Row, Session, columns, query
from pghookd.process.logs import LogEvent
from pghookd.webhook.prepared import Defaults, PreparedEndpoint

PAGE: Final = 50  # endpoints judged at once; each may wait for DNS
LOOK_EVERY_S: Final = 60.0  # besides the notifications
WHY_MAX: Final = 500  # characters
PAUSE_S: Final = 0.1  # after each page

Obstacle: TypeAlias = Callable[[str], Awaitable[str | None]]


class Readiness:
    """Judges endpoints, page by page.

    Args:
        session: reads endpoints and writes the answers.
        shards: number of shards.
        defaults: values of options that an endpoint does not set, and its decryption.
        obstacle: returns why a request to a URL could not be made (Sender.obstacle).
        logger: logs statements that Postgres refuses.
    """

    def __init__(
        self,
        session: Session,
        shards: int,
        *,
        defaults: Defaults,
        obstacle: Obstacle,
        logger: FilteringBoundLogger,
    ) -> None:
        self._session = session
        self._shards = shards
        self._logger = logger
        self._wake = asyncio.Event()
        self._defaults, self._obstacle = defaults, obstacle

    def apply(self, defaults: Defaults, obstacle: Obstacle) -> None:
        """Judge by new settings from now on; earlier judgements stay."""
        self._defaults, self._obstacle = defaults, obstacle

    def endpoints_changed(self, _endpoint_ids: Iterable[int] | None) -> None:
        """Judge new and changed endpoints at once."""
        self._wake.set()

    async def run(self) -> None:
        """Judge endpoints until cancelled."""
        while True:
            self._wake.clear()
            try:
                while await self.step():  # noqa: ASYNC110 - a pause, no wait
                    await asyncio.sleep(PAUSE_S)
            except DatabaseError as error:
                self._logger.info(LogEvent.DATABASE_REFUSED, error=str(error), statement="note_readiness")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), LOOK_EVERY_S)

    async def step(self) -> int:
        """Judge a page of endpoints; return their number. A page that a reload interrupts is judged again."""
        rows = await self._session.fetch(query("find_unjudged"), PAGE, self._shards)
        obstacle = self._obstacle
        judged = await asyncio.gather(*(self._judged(row) for row in rows))
        if judged and obstacle is self._obstacle:
            await self._session.execute(query("note_readiness"), *columns(judged, 3))
        return len(rows)

    async def _judged(self, row: Row) -> tuple[object, ...]:
        why = await self.why_not(endpoint_of(row))
        return row["endpoint_id"], row["version"], why if why is None else why[:WHY_MAX]

    async def why_not(self, endpoint: Endpoint) -> str | None:
        """Return why no request to an endpoint could be made; None if it is ready. Quotes no secret."""
        try:
            prepared = PreparedEndpoint.of(endpoint, self._defaults)
        except ValueError as error:
            return str(error)
        if prepared.fault is not None:
            return f"its {prepared.fault.error} cannot be decrypted"
        obstacle = await self._obstacle(endpoint.url)
        return None if obstacle is None else f"url: {obstacle}"
