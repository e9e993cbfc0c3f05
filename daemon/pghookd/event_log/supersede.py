"""Keys of events: the dedupe_keys known in a difference, and the supersede_keys in memory.

`dedupe_key`: an event is a duplicate if another event of its site and key came before it, at most DEDUPE_DAYS days
apart. "Before" means visible in the snapshot before the difference, or else with a lower event_id. The outcome of the
other event does not count, so the result is the same at any time. One query answers for all events of a key, a day and
a difference.

`supersede_key`: only deliveries of events with such a key are noted. They alone hold the knowledge about the key, and
it ends with the last of them. For keys not in memory the database is queried when a row is taken back.

Never here: SQL, the fate of a delivery.
"""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Callable
from typing import Final, NamedTuple

from pghookd.model.delivery import Delivery, Event, Newest

DEDUPE_DAYS: Final = 7  # an event is compared with those of its own day and of this many days on either side
DAY_BITS: Final = 32  # low bits of an event_id; the bits above them are the day
FIRSTS_MAX: Final = 10_000  # keys remembered per difference, about 300 bytes each
AGAIN_MAX: Final = 100  # events of a key whose rows are looked up in recovery
NEWER_MAX: Final = 100  # newer events of a supersede_key that are examined, the newest first
_NO_LIMIT: Final = 2**63 - 1


class DedupeKey(NamedTuple):
    """A dedupe_key of a site, for the events of one day."""

    site_id: str
    dedupe_key: str
    day: int

    @property
    def from_event_id(self) -> int:
        """Return the lowest event_id that counts."""
        return max(0, self.day - DEDUPE_DAYS) << DAY_BITS

    @property
    def to_event_id(self) -> int:
        """Return the highest event_id that counts."""
        return (self.day + DEDUPE_DAYS + 1 << DAY_BITS) - 1


def dedupe_key_of(event: Event) -> DedupeKey | None:
    """Return the dedupe_key of an event; None if it has none."""
    if event.options is None or event.options.dedupe_key is None:
        return None
    return DedupeKey(event.site_id, event.options.dedupe_key, event.event_id >> DAY_BITS)


class Firsts:
    """The known first events of the keys of one difference; the least recently used key is forgotten."""

    def __init__(self, most: int = FIRSTS_MAX) -> None:
        self._most = most
        self._known: OrderedDict[DedupeKey, int] = OrderedDict()

    def __len__(self) -> int:
        """Return the number of known keys."""
        return len(self._known)

    def get(self, key: DedupeKey) -> int | None:
        """Return the event_id of the first event; 0 if it lies before the difference, None if it is not known."""
        first = self._known.get(key)
        if first is not None:
            self._known.move_to_end(key)
        return first

    def put(self, key: DedupeKey, first: int) -> None:
        """Remember the first event of a key."""
        self._known[key] = first
        if len(self._known) > self._most:
            self._known.popitem(last=False)


class Keys:
    """The supersede_keys of the deliveries in memory.

    Args:
        payload_bytes_max: an event with a larger payload can never be delivered.
        wall_us: returns microseconds since 1970.
    """

    def __init__(self, payload_bytes_max: int = _NO_LIMIT, wall_us: Callable[[], int] = lambda: 0) -> None:
        self.payload_bytes_max = payload_bytes_max
        self._wall_us = wall_us
        self._newest: weakref.WeakValueDictionary[tuple[int, str], Newest] = weakref.WeakValueDictionary()

    def __len__(self) -> int:
        """Return the number of known keys, over all endpoints."""
        return len(self._newest)

    def note(self, delivery: Delivery) -> None:
        """Note a delivery that is about to be queued as the newest of its key, if it can be delivered.

        Its type is already checked, and its delivery time has come.
        """
        options = delivery.event.options
        if options is None or options.supersede_key is None:
            return
        before_us = options.deliver_before_us
        if _payload_bytes(delivery.event) > self.payload_bytes_max or (
            before_us is not None and self._wall_us() >= before_us
        ):
            return
        key = delivery.endpoint_id, options.supersede_key
        newest = self._newest.get(key)
        if newest is None:
            newest = self._newest[key] = Newest()
        if delivery.event.event_id > newest.event_id:
            newest.event_id, newest.before_us = delivery.event.event_id, before_us
        delivery.newest = newest


def is_superseded(delivery: Delivery, now_us: int) -> bool:
    """Return True if a newer event of its key was noted for the endpoint, and was or can still be delivered."""
    newest = delivery.newest
    return (
        newest is not None
        and newest.event_id > delivery.event.event_id
        and (newest.before_us is None or now_us < newest.before_us)
    )


def note_sent(delivery: Delivery) -> None:
    """Allow a delivery that is about to be sent to replace older ones even after its deliver_before."""
    newest = delivery.newest
    if newest is not None and newest.event_id == delivery.event.event_id:
        newest.before_us = None


def _payload_bytes(event: Event) -> int:
    if event.payload is not None:
        return len(event.payload)
    return _NO_LIMIT if event.options is None else event.options.payload_bytes
