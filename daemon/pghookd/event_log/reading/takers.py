"""The endpoints of one site by the types they take, so that an event costs only its takers, not all endpoints.

Exact types and prefixes (`order_*`, `*`) have separate dictionaries. A type is looked up once and remembered.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import Final, TypeAlias

from pghookd.model.delivery import Delivery, Endpoint, reserved_from

ENDPOINT_ID_MAX: Final = 2**63 - 1
SITES_A_READ: Final = 100  # sites whose endpoints one statement reads
PAIRS_A_STEP: Final = (
    1000  # pairs of event and endpoint processed between two turns of the other tasks; about 10 us each
)
KNOWN_MAX: Final = 1000  # types remembered per site: a producer may put an id into each type

Pair: TypeAlias = tuple[Endpoint, Delivery]


@dataclasses.dataclass(frozen=True, slots=True)
class Span:
    """A range of a site's endpoint ids: above `after`, up to `upto` if it is not None."""

    after: int = 0
    upto: int | None = None


WHOLE: Final = Span()  # all endpoints; compared by identity


@dataclasses.dataclass(slots=True)
class Dealt:
    """The result of dealing some events.

    Attributes:
        work: deliveries to be offered, each with its endpoint.
        left: per site, the events for which it had no room, by ascending id.
        left_pairs: per site, how many deliveries those would make.
        pairs: how many deliveries the other events make.
    """

    work: list[Pair] = dataclasses.field(default_factory=list)
    left: dict[str, list[int]] = dataclasses.field(default_factory=dict)
    left_pairs: Counter[str] = dataclasses.field(default_factory=Counter)
    pairs: int = 0


class Takers:
    """The endpoints of a site, or one slice of them by ascending id.

    Attributes:
        endpoints: all endpoints of the slice, at least one.
        count: the number of these endpoints.
        shard: the shard of the site.
        has_ordered: True if one of them is ordered.
        slice_end: the last endpoint id of the slice; None if no endpoint comes after it.
        is_whole: True if these are all endpoints of the site.
    """

    def __init__(
        self, endpoints: Sequence[Endpoint], slice_end: int | None = None, *, is_whole: bool = True
    ) -> None:
        self.endpoints = endpoints
        self.count = len(endpoints)
        self.shard = endpoints[0].shard
        self.has_ordered = any(each.options is not None and each.options.ordered for each in endpoints)
        self.slice_end = slice_end
        self.is_whole = is_whole
        self._exact: dict[str, list[Endpoint]] = {}
        self._prefixed: dict[str, list[Endpoint]] = {}
        self._known: dict[str, list[Endpoint]] = {}
        for endpoint in endpoints:
            for wanted in endpoint.event_types:
                if wanted.endswith("*"):
                    self._prefixed.setdefault(wanted[:-1], []).append(endpoint)
                else:
                    self._exact.setdefault(wanted, []).append(endpoint)
        self._lengths = sorted({len(prefix) for prefix in self._prefixed})

    def of(self, event_type: str) -> list[Endpoint]:
        """Return the endpoints that take a type, each once, by ascending id; Endpoint.takes is the rule."""
        found = self._known.get(event_type)
        if found is None:
            if len(self._known) >= KNOWN_MAX:
                self._known.clear()
            found = self._known[event_type] = self._find(event_type)
        return found

    def only(self, endpoint_id: int) -> list[Endpoint]:
        """Return the endpoint with an id, whatever types it takes; an empty list if the slice does not have it."""
        return [endpoint for endpoint in self.endpoints if endpoint.endpoint_id == endpoint_id]

    def _find(self, event_type: str) -> list[Endpoint]:
        found = {endpoint.endpoint_id: endpoint for endpoint in self._exact.get(event_type, ())}
        least = reserved_from(event_type)
        for length in self._lengths:
            if least <= length <= len(event_type):
                for endpoint in self._prefixed.get(event_type[:length], ()):
                    found[endpoint.endpoint_id] = endpoint
        return [found[endpoint_id] for endpoint_id in sorted(found)]
