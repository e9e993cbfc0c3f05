"""Finds the deliveries of a page that must not go out: duplicates, and those that filters exclude.

Never here: how they are given up or settled (event_log/fan_out).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from pghookd.event_log.payload_filter import Filters
from pghookd.event_log.position import Difference
from pghookd.event_log.reading.takers import Pair
from pghookd.event_log.supersede import AGAIN_MAX, DedupeKey, dedupe_key_of
from pghookd.model.delivery import Delivery, Event
from pghookd.postgres.client import Session, columns, query
from pghookd.scheduling.ordering import is_ordered


@dataclasses.dataclass(frozen=True, slots=True)
class Sieved:
    """The verdict of filters on some deliveries.

    Attributes:
        kept: those that may go out, and those of `unjudged`, in their order; each with its endpoint.
        excluded: deliveries that filters exclude.
        late: deliveries that were not judged in time.
        unjudged: likewise, but of ordered endpoints.
    """

    kept: list[Pair] = dataclasses.field(default_factory=list)
    excluded: list[Delivery] = dataclasses.field(default_factory=list)
    late: list[Delivery] = dataclasses.field(default_factory=list)
    unjudged: set[Delivery] = dataclasses.field(default_factory=set)


class Sieve:
    """Asks Postgres about deliveries, on the reader's session."""

    def __init__(self, session: Session, filters: Filters) -> None:
        self._session = session
        self._filters = filters

    async def part(self, work: Sequence[Pair], difference: Difference) -> tuple[list[Pair], list[Delivery]]:
        """Part deliveries: those of the first event of their dedupe_key or without one, and the duplicates.

        Args:
            work: deliveries, each with its endpoint.
            difference: the difference in which their events were read.
        """
        keys = {d.event: key for _, d in work if (key := dedupe_key_of(d.event)) is not None}
        firsts = await self._find_firsts(keys, difference)
        for event, key in keys.items():
            if event.options is not None:
                event.options.duplicate = firsts[key] != event.event_id
        others: list[Pair] = []
        duplicates: list[Delivery] = []
        for endpoint, delivery in work:
            options = delivery.event.options
            if options is not None and options.duplicate:
                duplicates.append(delivery)
            else:
                others.append((endpoint, delivery))
        return others, duplicates

    async def _find_firsts(
        self, keys: Mapping[Event, DedupeKey], difference: Difference
    ) -> dict[DedupeKey, int]:
        """Return the event_id of the first event of each key; 0 if it came before the difference."""
        firsts: dict[DedupeKey, int] = {}
        unknown: dict[DedupeKey, int] = {}  # with the least event_id of the page
        for event, key in keys.items():
            if key in firsts:
                continue
            first = difference.firsts.get(key)
            if first is not None:
                firsts[key] = first
            else:
                unknown[key] = min(event.event_id, unknown.get(key, event.event_id))
        if unknown:
            for key, first in (await self._look_up_firsts(list(unknown), difference)).items():
                firsts[key] = unknown[key] if first is None else first
                difference.firsts.put(key, firsts[key])
        return firsts

    async def _look_up_firsts(
        self, keys: list[DedupeKey], difference: Difference
    ) -> dict[DedupeKey, int | None]:
        columns_of_keys = columns([(*key[:2], key.from_event_id, key.to_event_id) for key in keys], 4)
        least, greatest = min(columns_of_keys[2]), max(columns_of_keys[3])
        arguments = (*columns_of_keys, least, greatest, difference.since, difference.upto)
        if difference.again:
            rows = await self._session.fetch(query("find_firsts_again"), *arguments, AGAIN_MAX)
        else:
            rows = await self._session.fetch(query("find_firsts"), *arguments)
        return dict.fromkeys(keys) | {keys[row["n"] - 1]: row["first_event_id"] for row in rows}

    async def judge(self, work: Sequence[Pair]) -> Sieved:
        """Evaluate the filters of endpoints; an event for one endpoint alone passes its filter."""
        asked = [(endpoint, d) for endpoint, d in work if d.event.endpoint_id is None]
        sifted = await self._filters.sift(self._session, asked)
        judged = Sieved()
        for endpoint, delivery in work:
            key = delivery.event.event_id, delivery.endpoint_id
            if key in sifted.left_out:
                judged.excluded.append(delivery)
            elif key in sifted.unknown and not is_ordered(endpoint):
                judged.late.append(delivery)
            else:
                judged.kept.append((endpoint, delivery))
                if key in sifted.unknown:
                    judged.unjudged.add(delivery)
        return judged
