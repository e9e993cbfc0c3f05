"""The endpoints of sites, for the reader: read after the events, built from rows once, and shared by all callers.

Each statement's rows are compared with the previous ones; unchanged rows are not converted again. A site that was read
since the last snapshot of the log is not queried again unless endpoints have changed. That read already saw every
endpoint committed before an event of the snapshot.

Never here: which events an endpoint takes (event_log/reading/takers), lanes.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from typing import Final, NamedTuple

from pghookd.event_log.reading.takers import ENDPOINT_ID_MAX, WHOLE, Span, Takers
from pghookd.event_log.rows import endpoint_of
from pghookd.model.delivery import Endpoint
from pghookd.postgres.client import Row, Session, query

SLICE: Final = 500  # endpoints of one site processed at once; a site with more is processed in slices
YIELD_EVERY: Final = 500  # endpoints built from rows between two turns of the other tasks; about 3 us each
KNOWN_MAX: Final = 20_000  # endpoints remembered; about 1 KB each
FRESH_FOR_S: Final = 1.0  # then a site is read again: only reading shows the end of a rotation


class Known(NamedTuple):
    """The endpoints read of a site."""

    rows: list[Row]
    takers: Takers
    asked: int  # the number of the request that read it


class Endpoints:
    """Reads the endpoints of sites."""

    def __init__(self, session: Session, *, shards: int, monotonic: Callable[[], float]) -> None:
        self._session = session
        self._shards = shards
        self._monotonic = monotonic
        self._known: OrderedDict[str, Known] = OrderedDict()  # sites of one slice; the latest read at the end
        self._count = 0  # number of their endpoints
        self._asked = 0  # number of the current request; sites read for it or later are fresh
        self._fresh_until = 0.0

    def ask_again(self) -> None:
        """Expire all that were read: a new snapshot of the log was taken, or endpoints have changed."""
        self._asked += 1

    def known(self, site_ids: Iterable[str]) -> dict[str, Takers]:
        """Return the endpoints of those of the sites that need no query."""
        now = self._monotonic()
        if now >= self._fresh_until:
            self.ask_again()
            self._fresh_until = now + FRESH_FOR_S
        asked, known = self._asked, self._known.get
        return {
            site_id: found.takers
            for site_id in site_ids
            if (found := known(site_id)) is not None and found.asked == asked
        }

    async def of_sites(self, spans: Mapping[str, Span]) -> dict[str, Takers]:
        """Return at most SLICE endpoints of each of at most SITES_A_READ sites; a site without endpoints is missing."""
        found = self.known(site_id for site_id, span in spans.items() if span is WHOLE)
        unread = {site_id: span for site_id, span in spans.items() if site_id not in found}
        if unread:
            found |= await self._read(unread)
        return found

    async def again(self, endpoint_ids: list[int]) -> dict[int, Endpoint | None]:
        """Read endpoints by their ids, None for one that was deleted; no older read of a site may replace this one."""
        self.ask_again()
        rows = await self._session.fetch(query("read_endpoints"), endpoint_ids, self._shards)
        found = {row["endpoint_id"]: endpoint_of(row) for row in rows}
        return {endpoint_id: found.get(endpoint_id) for endpoint_id in endpoint_ids}

    async def _read(self, spans: Mapping[str, Span]) -> dict[str, Takers]:
        asked = self._asked  # a change while the statement runs makes its result stale
        after = [span.after for span in spans.values()]
        upto = [ENDPOINT_ID_MAX if span.upto is None else span.upto for span in spans.values()]
        sql = query("read_endpoints_of_sites")
        rows = await self._session.fetch(sql, list(spans), self._shards, after, upto, SLICE)
        of_site: dict[str, list[Row]] = {}
        for row in rows:
            of_site.setdefault(row["site_id"], []).append(row)
        self._forget(spans.keys() - of_site.keys())
        found: dict[str, Takers] = {}
        made = 0
        for site_id, some in of_site.items():
            known = self._known.get(site_id)
            if known is not None and known.rows == some and spans[site_id] is WHOLE:
                takers = known.takers
            else:
                takers = _takers_of(some, spans[site_id])
                made += len(some)
            found[site_id] = takers
            self._remember(site_id, Known(some, takers, asked), spans[site_id])
            if made >= YIELD_EVERY:
                made = 0
                await asyncio.sleep(0)
        return found

    def _remember(self, site_id: str, known: Known, span: Span) -> None:
        self._forget((site_id,))
        if span is not WHOLE or known.takers.slice_end is not None:
            return
        self._known[site_id] = known
        self._count += len(known.rows)
        while self._count > KNOWN_MAX:
            self._forget((next(iter(self._known)),))

    def _forget(self, site_ids: Iterable[str]) -> None:
        for site_id in site_ids:
            known = self._known.pop(site_id, None)
            if known is not None:
                self._count -= len(known.rows)


def _takers_of(rows: list[Row], span: Span) -> Takers:
    endpoints = [endpoint_of(row) for row in rows]
    slice_end = span.upto or (endpoints[-1].endpoint_id if len(endpoints) == SLICE else None)
    return Takers(endpoints, slice_end, is_whole=span is WHOLE and slice_end is None)
