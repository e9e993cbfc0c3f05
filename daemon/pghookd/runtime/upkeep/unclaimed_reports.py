"""Writes down the events that nobody took, and logs each unknown site and type once an hour."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from structlog.typing import FilteringBoundLogger

from pghookd.event_log.reading.unclaimed import Unclaimed
from pghookd.postgres.client import DatabaseError, Session, columns, query
from pghookd.process.logs import LogEvent

REMIND_S: Final = 3600.0
REMEMBERED_MAX: Final = 1000  # names whose last line is remembered; beyond them no line is written


class UnclaimedReports:
    """Reports the counts of the reader.

    Args:
        session: writes them; in no transaction.
        logger: logs unknown names.
        monotonic: returns seconds.
    """

    def __init__(
        self, session: Session, logger: FilteringBoundLogger, monotonic: Callable[[], float]
    ) -> None:
        self._session = session
        self._logger = logger
        self._monotonic = monotonic
        self._logged: dict[tuple[str, str], float] = {}  # name, and when it may be logged again

    async def write(self, unclaimed: Unclaimed) -> None:
        """Write the counts since the last call; if Postgres refuses them, they are lost and the error is logged."""
        counted = unclaimed.take()
        if not counted:
            return
        try:
            rows = await self._session.fetch(query("note_unclaimed"), *columns(counted, 3))
        except DatabaseError as error:
            self._logger.info(LogEvent.DATABASE_REFUSED, error=str(error), statement="note_unclaimed")
            return
        now = self._monotonic()
        self._logged = {name: due for name, due in self._logged.items() if due > now}
        for row in rows:
            name = (row["what"], row["name"])
            if name not in self._logged and len(self._logged) < REMEMBERED_MAX:
                self._logged[name] = now + REMIND_S
                self._logger.warning(
                    LogEvent.EVENT_UNCLAIMED,
                    **{name[0]: name[1]},
                    nearest=row["nearest"],
                    events=row["events"],
                )
