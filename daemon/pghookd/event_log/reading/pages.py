"""Reads pages of the log and makes deliveries of their events; sites without room have theirs deferred.

Never here: when to read (reader), deferred events (refill).
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections import Counter
from collections.abc import AsyncIterator, Callable, Container, Iterator, Mapping, Sequence
from typing import Final, TypeAlias, cast

from pghookd.event_log.position import Difference, EventLog, Page, Position, ShardLog, Snapshot, XidMarks
from pghookd.event_log.reading.deferred import DeferredPart, ids_of
from pghookd.event_log.reading.delivery_maker import DeliveryMaker
from pghookd.event_log.reading.endpoints import Endpoints
from pghookd.event_log.reading.refill import PAUSE_S, Refill
from pghookd.event_log.reading.settled import read_settled
from pghookd.event_log.reading.takers import PAIRS_A_STEP, SITES_A_READ, WHOLE, Takers
from pghookd.event_log.rows import EventRow
from pghookd.postgres.client import Row, Session, query

PAGE: Final = 1000  # events
SKIM: Final = 10_000  # ids read at once while all events are of sites that are behind
ENDPOINTS_AT_ONCE: Final = 5000  # with this many, the sites read so far are processed before more are read
BARE_SITES_MAX: Final = (
    16  # sites behind whose events are read without payload; each is compared with each row
)

# Event ids by site, type and only endpoint (None if the event is for all).
Groups: TypeAlias = dict[tuple[str, str, int | None], list[int]]


@dataclasses.dataclass(slots=True)
class Walk:
    """The progress of reading a long difference.

    Attributes:
        difference: the difference that is read.
        logs: the shards that it is read for.
        only: the numbers of these shards; None if they are all shards.
        newest: no event of the difference has a higher id.
        last_event_id: events up to this id are read.
        ended: True if all events are read.
    """

    difference: Difference
    logs: Mapping[int, ShardLog]
    only: list[int] | None
    newest: int
    last_event_id: int
    ended: bool = False

    @property
    def end(self) -> Position:
        """Return the position in the log up to which the events are read."""
        upto = self.difference.upto
        return Position(upto) if self.ended else Position(self.difference.since, upto, self.last_event_id)


class Pages:
    """Processes the events of a difference, in pages of bounded size."""

    def __init__(
        self,
        session: Session,
        log: EventLog,
        fan_out: DeliveryMaker,
        endpoints: Endpoints,
        refill: Refill,
        *,
        shards: int,
        monotonic: Callable[[], float],
        beat: Callable[[], None],
    ) -> None:
        self._session = session
        self._log = log
        self._fan_out = fan_out
        self._endpoints = endpoints
        self._refill = refill
        self._shards = shards
        self._monotonic = monotonic
        self._beat = beat

    async def read(
        self, at: Position, upto: Snapshot, marks: XidMarks, shards: Sequence[int] | None = None
    ) -> int:
        """Read a long difference in pages, each a short statement; `shards` is given in recovery only."""
        since, last = at.snapshot, at.last_event_id
        floors = (marks.floor(since), marks.front(since))
        last = max(last, await self._session.fetchval(query("find_first_event"), since, upto, *floors))
        newest = await self._session.fetchval(query("read_newest_event_id"))
        logs = self._log.shards if shards is None else {s: self._log.shards[s] for s in shards}
        only = None if shards is None or len(shards) == self._shards else list(shards)
        walk = Walk(Difference(since, upto, again=shards is not None), logs, only, newest, last)
        found = taken = behind = 0
        while not walk.ended:
            # If the last page was all of sites that are behind, many more of their events are likely to follow.
            is_run = taken >= PAGE and behind == taken
            behind = taken = await self._skim(walk) if is_run else 0
            if not taken:
                taken, behind = await self._read_page(walk)
            found += taken
            while self._refill.deferred.is_full:
                self._refill.place()
                if not await self._refill.take():
                    await asyncio.sleep(PAUSE_S)
            await self._fan_out.attend()
            self._beat()
        return found

    async def _read_page(self, walk: Walk) -> tuple[int, int]:
        """Read the next page; return the number of its events, and of those whose sites are behind."""
        since, upto = walk.difference.since, walk.difference.upto
        bare = self._refill.deferred.largest(BARE_SITES_MAX)
        where = (since, upto, walk.last_event_id, walk.newest, PAGE, walk.only, self._shards, bare)
        rows = cast("list[EventRow]", await self._session.fetch(query("read_events_page"), *where))
        walk.ended = len(rows) < PAGE
        walk.last_event_id = rows[-1][0] if rows else walk.last_event_id
        deferred = self._refill.deferred.keys()
        behind = sum(1 for row in rows if row[1] in deferred)
        await self.page(rows, walk.end, walk.logs, walk.difference)
        return len(rows), behind

    async def _skim(self, walk: Walk) -> int:
        """Defer the events up to the first of a site that is not behind, by id only; return their number."""
        since, upto = walk.difference.since, walk.difference.upto
        where = (since, upto, walk.last_event_id, walk.newest, SKIM, walk.only, self._shards)
        rows = await self._session.fetch(query("skim_events"), *where)
        run = _first_run(rows, self._refill.deferred.keys())
        if not run:
            return 0
        of_sites: dict[str, Groups] = {}
        for key, event_ids in run.items():
            of_sites.setdefault(key[0], {})[key] = event_ids
        count = sum(map(len, run.values()))
        walk.last_event_id = max(map(max, run.values()))
        page = Page(walk.logs, walk.end, self._monotonic())
        self._log.rows += count
        sites = list(of_sites)
        for start in range(0, len(sites), SITES_A_READ):
            takers = await self._endpoints.of_sites(dict.fromkeys(sites[start : start + SITES_A_READ], WHOLE))
            ours = {site_id: found for site_id, found in takers.items() if found.shard in walk.logs}
            groups = {key: event_ids for site_id in ours for key, event_ids in of_sites[site_id].items()}
            self._leave_groups(groups, ours, page, walk.difference)
            self._beat()
            await asyncio.sleep(0)
        page.close()
        return count

    # One page -----------------------------------------------------------------------------------------------

    async def page(
        self,
        rows: Sequence[EventRow],
        end: Position,
        shards: Mapping[int, ShardLog],
        difference: Difference,
    ) -> None:
        """Process a page, one group of sites after another; events of sites without room are deferred."""
        page = Page(shards, end, self._monotonic())
        self._log.rows += len(rows)
        async for group, takers in self._groups(rows):
            ours = {site_id: found for site_id, found in takers.items() if found.shard in shards}
            self._leave_at_once(group, ours, page, difference)
            for step in _steps(group, ours):
                await self._deal(step, ours, page, difference)
        page.close()

    async def _groups(
        self, rows: Sequence[EventRow]
    ) -> AsyncIterator[tuple[Sequence[EventRow], dict[str, Takers]]]:
        """Yield the events of a page with the endpoints of their sites, in groups of bounded numbers of endpoints."""
        sites = dict.fromkeys(row[1] for row in rows)
        takers = self._endpoints.known(sites)
        unread = [site_id for site_id in sites if site_id not in takers] if len(takers) < len(sites) else []
        is_first, endpoints = True, 0
        without: set[str] = set()
        for start in range(0, len(unread), SITES_A_READ):
            if endpoints >= ENDPOINTS_AT_ONCE:
                yield [row for row in rows if row[1] in takers], takers
                takers, is_first, endpoints = {}, False, 0
            asked = unread[start : start + SITES_A_READ]
            found = await self._endpoints.of_sites(dict.fromkeys(asked, WHOLE))
            if len(found) < len(asked):
                without.update(site_id for site_id in asked if site_id not in found)
            takers |= found
            endpoints += sum(of_site.count for of_site in found.values())
        yield (rows if is_first else [row for row in rows if row[1] in takers]), takers
        if without:
            self._fan_out.unclaimed.of_sites(row[1] for row in rows if row[1] in without)

    async def _deal(
        self, rows: Sequence[EventRow], takers: Mapping[str, Takers], page: Page, difference: Difference
    ) -> None:
        settled: set[tuple[int, int]] = set()
        # An earlier step of the page may have deferred events of these sites.
        rooms = dict.fromkeys(takers.keys() & self._refill.deferred.keys(), 0)
        if difference.again and (
            roomy := [row[0] for row in rows if row[1] in takers and row[1] not in rooms]
        ):
            settled = await read_settled(self._session, roomy, WHOLE)
        now = self._monotonic()
        dealt = self._fan_out.deal(rows, takers, rooms, page.ticket, settled, now)
        for site_id, event_ids in dealt.left.items():
            weight = -(-dealt.left_pairs[site_id] // len(event_ids))
            self._leave(site_id, event_ids, weight, takers[site_id], page, difference, now)
        await self._fan_out.enter(dealt.work, difference)
        self._beat()
        await asyncio.sleep(0)

    def _leave_at_once(
        self, rows: Sequence[EventRow], takers: dict[str, Takers], page: Page, difference: Difference
    ) -> None:
        """Defer the events of sites that are behind, wide or too early; remove these sites from `takers`.

        Deliveries are not counted one by one here: every event of a site that is behind passes here once more.
        """
        early = self._refill.is_early(recovering=difference.again, ordered=True)
        left = self._refill.deferred.keys()
        at_once = {
            site_id: found
            for site_id, found in takers.items()
            if site_id in left or found.slice_end is not None or (early and found.has_ordered)
        }
        if not at_once:
            return
        for site_id in at_once:
            del takers[site_id]
        groups: Groups = {}
        for event_id, site_id, kind, _, only, *_ in rows:
            if site_id in at_once:
                groups.setdefault((site_id, kind, only), []).append(event_id)
        self._leave_groups(groups, at_once, page, difference)

    def _leave_groups(
        self, groups: Groups, takers: Mapping[str, Takers], page: Page, difference: Difference
    ) -> None:
        """Defer the events that at least one endpoint takes."""
        now = self._monotonic()
        left: dict[str, list[int]] = {}
        pairs: Counter[str] = Counter()
        for (site_id, kind, only), event_ids in groups.items():
            found = takers.get(site_id)
            if found is None:
                continue
            if found.slice_end is not None:
                wanting = found.count
            elif only is None:
                wanting = len(found.of(kind))
            else:
                wanting = 1
            if wanting:
                left.setdefault(site_id, []).extend(event_ids)
                pairs[site_id] += wanting * len(event_ids)
        for site_id, event_ids in left.items():
            weight = -(-pairs[site_id] // len(event_ids))
            self._leave(site_id, sorted(event_ids), weight, takers[site_id], page, difference, now)

    def _leave(
        self,
        site_id: str,
        event_ids: list[int],
        weight: int,
        takers: Takers,
        page: Page,
        difference: Difference,
        now: float,
    ) -> None:
        part = DeferredPart(
            page.ticket(takers.shard),
            difference,
            takers.count,
            weight,
            now,
            ids_of(event_ids),
            recovering=difference.again,
            ordered=takers.has_ordered,
            wide=takers.slice_end is not None,
        )
        self._refill.defer(site_id, part)


def _first_run(rows: Sequence[Row], behind: Container[str]) -> Groups:
    """Return the events before the first of a site that is not behind."""
    end = min((min(event_ids) for site_id, *_, event_ids in rows if site_id not in behind), default=None)
    run: Groups = {}
    for site_id, kind, only, event_ids in rows:
        before = [event_id for event_id in event_ids if end is None or event_id < end]
        if before:
            run[site_id, kind, only] = before
    return run


def _steps(rows: Sequence[EventRow], takers: Mapping[str, Takers]) -> Iterator[Sequence[EventRow]]:
    """Yield the events that endpoints may take, in steps of bounded pairs."""
    if not takers:
        return
    if len(rows) * max(of_site.count for of_site in takers.values()) <= PAIRS_A_STEP:
        yield rows
        return
    step: list[EventRow] = []
    pairs = 0
    for row in rows:
        of_site = takers.get(row[1])
        if of_site is None:
            continue
        wanting = len(of_site.of(row[2])) if row[4] is None else 1
        if not wanting:
            continue
        step.append(row)
        pairs += wanting
        if pairs >= PAIRS_A_STEP:
            yield step
            step, pairs = [], 0
    if step:
        yield step
