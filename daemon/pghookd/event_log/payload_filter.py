"""Evaluates payload filters in Postgres within 50 ms, or goes on without the result.

Only for endpoints that have a filter. Only an event for which the filter is clearly false is excluded. An event is
delivered if its payload cannot be examined or the filter is neither true nor false. A receiver can ignore an unwanted
event but cannot notice a missing one. Filters use the caller's session, and no filter delays the caller beyond a limit.

Filters that are not in doubt are evaluated together, within half the limit. If that takes too long, all of them are in
doubt, and their deliveries are parked. After that the reader skips them; the backlog evaluates each one alone, until it
has answered in time. A filter that is too slow for a single delivery rests, longer each time. A filter with a known
cost is evaluated by the reader for only a few of its deliveries.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Final, TypeAlias

from structlog.typing import FilteringBoundLogger

from pghookd.model.delivery import Delivery, Endpoint, Reason
from pghookd.postgres.client import DatabaseError, Row, Session, columns, query
from pghookd.process.logs import LogEvent

LIMIT_S: Final = 0.05  # for one evaluation by the backlog
GLANCE_S: Final = 0.025  # the same for the reader, since other events wait behind it
LEAST_S: Final = 0.005  # with less time left, no further statement is sent
FREE_S: Final = 0.005  # time that one reader evaluation spends on filters with a known cost
LEAST_COST_S: Final = 0.001  # for a delivery; a lower cost counts as none
REST_MIN_S: Final = 30.0  # rest of a filter that used up the limit, unless it is changed
REST_MAX_S: Final = 600.0  # each rest is twice as long as the one before, up to this
FORGIVEN_AFTER_S: Final = 900.0  # not slow for this long after a rest: the next rest is the shortest
PAUSE_S: Final = 1.0  # after a statement that took too long, no filter in doubt is evaluated
CHUNK: Final = 100  # deliveries in one statement
SAY_EVERY_S: Final = 3600.0  # how often a filter that is neither true nor false is logged
_CANCELLED: Final = "57014"  # query_canceled, by statement_timeout

Key: TypeAlias = tuple[int, int]  # event_id, endpoint_id
Asked: TypeAlias = tuple[Endpoint, Delivery]


@dataclasses.dataclass(frozen=True, slots=True)
class Sifted:
    """The results of filters.

    Attributes:
        left_out: deliveries that the filters exclude.
        unknown: deliveries that the filters did not judge in time.
    """

    left_out: set[Key] = dataclasses.field(default_factory=set)
    unknown: set[Key] = dataclasses.field(default_factory=set)


@dataclasses.dataclass(slots=True)
class _Doubt:
    """A filter that was slow once, or was evaluated together with a slow one."""

    filter: str | None
    rests_until: float = 0.0
    rest_s: float = 0.0  # its latest rest; 0 if it was not slow with a single delivery
    cleared: bool = False  # it has since answered in time
    each_s: float = 0.0  # its latest cost for each delivery

    @property
    def cost_s(self) -> float:
        """The cost that the reader assumes; less than a millisecond may be only the round trip to Postgres."""
        return self.each_s if self.each_s >= LEAST_COST_S else 0.0


def filter_of(endpoint: Endpoint) -> str | None:
    """Return the filter of an endpoint; None if it has none."""
    return None if endpoint.options is None else endpoint.options.filter


class Filters:
    """Evaluates filters and remembers the slow ones; the reader and the backlog share one instance."""

    def __init__(self, *, logger: FilteringBoundLogger, monotonic: Callable[[], float]) -> None:
        self._logger = logger
        self._monotonic = monotonic
        self._doubts: dict[int, _Doubt] = {}
        self._paused_until = 0.0
        self._stopped: dict[int, int] = {}  # per endpoint, the first event of a page that was not judged
        self._said: dict[int, float] = {}  # per endpoint, when an undecided filter may be logged again
        self._planned: set[int] = set()  # sessions in which the statement is planned

    def rests_until(self, endpoint_id: int) -> float:
        """Return when the filter of an endpoint may be evaluated; a time in the past means now."""
        doubt = self._doubts.get(endpoint_id)
        return 0.0 if doubt is None or doubt.cleared else max(doubt.rests_until, self._paused_until)

    def renew(self, endpoint_id: int, text: str | None) -> bool:
        """Forget the doubt about an endpoint's filter if the filter has changed; return True if so."""
        doubt = self._doubts.get(endpoint_id)
        if doubt is None or doubt.filter == text:
            return False
        del self._doubts[endpoint_id]
        self._said.pop(endpoint_id, None)
        return True

    async def sift(self, session: Session, asked: Iterable[Asked], *, aside: bool = False) -> Sifted:
        """Evaluate the filters of deliveries; `aside`: for the backlog, where no other event waits behind them."""
        sifted, clear = Sifted(), list[Asked]()
        alone: dict[int, list[Asked]] = {}
        left_s = FREE_S
        for pair in asked:
            doubt = self._doubt(pair[0])
            if doubt is None:
                clear.append(pair)
            elif aside and self.rests_until(pair[0].endpoint_id) <= self._monotonic():
                alone.setdefault(pair[0].endpoint_id, []).append(pair)
            elif not aside and doubt.cleared and doubt.cost_s <= left_s:
                left_s -= doubt.cost_s
                clear.append(pair)
            else:
                sifted.unknown.add(_key(pair))
        if (clear or alone) and id(session) not in self._planned:
            await session.fetch(query("match_filter"), [], [])  # plan it before the limit starts
            self._planned.add(id(session))
        end = self._monotonic() + (LIMIT_S if aside else GLANCE_S)
        for start in range(0, len(clear), CHUNK):
            await self._ask(session, clear[start : start + CHUNK], end, sifted)
        for pairs in alone.values():
            await self._reconsider(session, pairs, end, sifted)
        if aside and sifted.unknown:
            self._stopped = {
                endpoint_id: event_id for event_id, endpoint_id in sorted(sifted.unknown, reverse=True)
            }
        return sifted

    def passed(self, endpoint_id: int, last: int) -> int:
        """Return the event after which to continue in an endpoint's parked rows; `last` is the last one evaluated.

        It is the first event that was not judged: a filter that is slow with that event must not block the later ones.
        """
        return self._stopped.pop(endpoint_id, last)

    async def _reconsider(self, session: Session, pairs: Sequence[Asked], end: float, sifted: Sifted) -> None:
        """Evaluate a filter in doubt for one delivery, then for ever more, as far as time permits.

        It starts with one since a single delivery may be the slow one.
        """
        doubt, start, size = self._doubts[pairs[0][0].endpoint_id], 0, 1
        while size and start < len(pairs):
            piece, began = pairs[start : start + size], self._monotonic()
            if not await self._ask(session, piece, end, sifted):
                break
            now = self._monotonic()
            doubt.cleared, doubt.each_s = True, max(1e-6, (now - began) / len(piece))
            start, size = start + size, min(2 * size, CHUNK, int((end - now) / 2 / doubt.each_s))
        sifted.unknown.update(map(_key, pairs[start:]))

    def _doubt(self, endpoint: Endpoint) -> _Doubt | None:
        doubt = self._doubts.get(endpoint.endpoint_id)
        return None if doubt is None or doubt.filter != filter_of(endpoint) else doubt

    async def _ask(self, session: Session, pairs: Sequence[Asked], end: float, sifted: Sifted) -> bool:
        """Evaluate filters in one statement; return True if it answered."""
        within_s = end - self._monotonic()
        rows = None if within_s < LEAST_S else await self._fetch(session, pairs, within_s)
        if rows is None:
            sifted.unknown.update(map(_key, pairs))
            return False
        sifted.left_out.update((row["event_id"], row["endpoint_id"]) for row in rows if row["says"] is False)
        for row in rows:
            if row["says"] is None:
                self._note_silent(row["endpoint_id"], row["event_id"])
        return True

    async def _fetch(self, session: Session, pairs: Sequence[Asked], within_s: float) -> list[Row] | None:
        """Return the excluded and the undecided deliveries; None if it took too long."""
        endpoints = list({pair[0].endpoint_id: pair[0] for pair in pairs}.values())
        await session.execute(f"set statement_timeout = {max(1, round(within_s * 1e3))}")
        try:
            return await session.fetch(query("match_filter"), *columns(list(map(_key, pairs)), 2))
        except DatabaseError as error:
            if error.sqlstate != _CANCELLED:
                self._logger.warning(LogEvent.DATABASE_REFUSED, error=str(error), statement="match_filter")
                if len(endpoints) == 1:
                    return []
            self._paused_until = self._monotonic() + PAUSE_S
            # Other filters, or the number of deliveries, may have used the time.
            if len(pairs) == 1 and within_s >= 0.8 * LIMIT_S:
                self._note_slow(endpoints[0])
            else:
                self._suspect(endpoints)
            return None
        finally:
            await session.execute("reset statement_timeout")

    def _suspect(self, endpoints: Iterable[Endpoint]) -> None:
        for endpoint in endpoints:
            doubt = self._doubts.get(endpoint.endpoint_id)
            if doubt is None or doubt.filter != filter_of(endpoint):
                self._doubts[endpoint.endpoint_id] = _Doubt(filter_of(endpoint))
            else:
                doubt.cleared = False

    def _note_slow(self, endpoint: Endpoint) -> None:
        now = self._monotonic()
        before = self._doubts.get(endpoint.endpoint_id)
        rest_s = REST_MIN_S
        if before is not None and before.rest_s and now < before.rests_until + FORGIVEN_AFTER_S:
            rest_s = min(2 * before.rest_s, REST_MAX_S)
        self._doubts[endpoint.endpoint_id] = _Doubt(filter_of(endpoint), now + rest_s, rest_s)
        self._logger.warning(
            LogEvent.DELIVERY_PARKED,
            endpoint_id=endpoint.endpoint_id,
            site_id=endpoint.site_id,
            reason=Reason.FILTER_SLOW.value,
            rest_s=rest_s,
        )

    def _note_silent(self, endpoint_id: int, event_id: int) -> None:
        now = self._monotonic()
        if now >= self._said.get(endpoint_id, now):
            self._said[endpoint_id] = now + SAY_EVERY_S
            self._logger.warning(LogEvent.FILTER_UNDECIDED, endpoint_id=endpoint_id, event_id=event_id)


def _key(pair: Asked) -> Key:
    return pair[1].event.event_id, pair[0].endpoint_id
