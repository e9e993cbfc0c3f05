"""Notes what outcomes mean for endpoints: incidents that begin, continue or may be over. Always after the outcomes.

Others may lock rows of `endpoints` and `incidents` for any time: an owner's console, a long migration. So a note never
waits. Notes on locked rows stay here, merged by endpoint, and are tried again. Noting an incident a second later does
no harm, and one lost in a crash is noted at the next failure.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from structlog.typing import FilteringBoundLogger

from pghookd.delivery.recording.batch import Trouble, failures, successes
from pghookd.postgres.client import DatabaseError, Session, columns, query
from pghookd.process.logs import LogEvent

NOTES_MAX: Final = 1000  # endpoints whose notes wait; beyond this those that waited longest are dropped
AGAIN_S: Final = 1.0  # least time between two tries while a row is locked
NOTED_AT_ONCE: Final = 500  # endpoints in one statement

FAILURE_COLUMNS: Final = 11
SUCCESS_COLUMNS: Final = 4


class Notes:
    """The waiting notes, and the endpoints in trouble, whose successes are noted."""

    def __init__(self, session: Session, *, logger: FilteringBoundLogger) -> None:
        self._session = session
        self._logger = logger
        self._troubles: dict[int, Trouble] = {}
        self._again_at = 0.0
        self.watched: dict[int, int] = {}  # endpoints in trouble; their latest failure, us since 1970

    def __contains__(self, endpoint_id: object) -> bool:
        """Return True if successes of the endpoint must be noted."""
        return endpoint_id in self.watched or endpoint_id in self._troubles

    def __len__(self) -> int:
        return len(self.watched) + len(self._troubles)

    async def begin(self) -> None:
        """Read which endpoints are in trouble."""
        rows = await self._session.fetch(query("read_watched"))
        self.watched = {row["endpoint_id"]: row["last_failure_at"] for row in rows}

    def unwatch(self, endpoint_id: int, last_failure_us: int) -> None:
        """Forget an endpoint whose trouble is over, unless it has failed again."""
        if self.watched.get(endpoint_id) == last_failure_us:
            del self.watched[endpoint_id]

    def take(self, troubles: Mapping[int, Trouble]) -> None:
        """Take the troubles of a durable batch."""
        for endpoint_id, trouble in troubles.items():
            waiting = self._troubles.get(endpoint_id)
            if waiting is not None:
                waiting.then(trouble)
                continue
            if len(self._troubles) >= NOTES_MAX:
                del self._troubles[next(iter(self._troubles))]
            self._troubles[endpoint_id] = trouble

    def is_due(self, now: float) -> bool:
        """Return True if there is something to note, and it is time."""
        return bool(self._troubles) and now >= self._again_at

    async def write(self, now: float) -> bool:
        """Write waiting notes, except those on locked rows; return True if an endpoint has failed."""
        page = dict(list(self._troubles.items())[:NOTED_AT_ONCE])
        try:
            failing = await self._note(page, now)
        except DatabaseError as error:
            self._logger.warning(LogEvent.DATABASE_REFUSED, error=str(error), notes=len(page))
            self._again_at = now + AGAIN_S
            if not error.is_about_data:
                return False
            failing = False
            for endpoint_id, trouble in page.items():  # find the bad row: the others are valid
                failing |= await self._note_alone(endpoint_id, trouble, now)
        return failing

    async def _note_alone(self, endpoint_id: int, trouble: Trouble, now: float) -> bool:
        """Note one endpoint's trouble; drop a note that Postgres rejects."""
        try:
            return await self._note({endpoint_id: trouble}, now)
        except DatabaseError as error:
            self._logger.warning(LogEvent.DATABASE_REFUSED, error=str(error), endpoint_id=endpoint_id)
            if error.is_about_data:
                self._troubles.pop(endpoint_id, None)
            return False

    async def _note(self, page: Mapping[int, Trouble], now: float) -> bool:
        failing = False
        locked: set[int] = set()
        if rows := failures(page):
            for row in await self._session.fetch(query("note_failures"), *columns(rows, FAILURE_COLUMNS)):
                if row["last_failure_at"] is None:
                    locked.add(row["endpoint_id"])
                else:
                    self.watched[row["endpoint_id"]] = row["last_failure_at"]
                    failing = True
        if rows := successes(page):
            for row in await self._session.fetch(query("note_successes"), *columns(rows, SUCCESS_COLUMNS)):
                locked.add(row["endpoint_id"])
        for endpoint_id, trouble in page.items():
            del self._troubles[endpoint_id]
            if endpoint_id in locked:  # after the others
                self._troubles[endpoint_id] = trouble
        if locked:
            self._again_at = now + AGAIN_S
        return failing
