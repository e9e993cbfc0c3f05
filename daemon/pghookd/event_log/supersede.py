"""Keys of events: what is known of dedupe_keys in a difference, and of supersede_keys in memory.

`dedupe_key`: an event is a duplicate where another one of its site and key came before it, at most DEDUPE_DAYS days
apart. "Before" is: visible in the snapshot before the difference, or else a lesser event_id. It does not count what
became of the other one, so that the answer is the same whenever it is asked for. One look answers for all events of a
key, a day and a difference.

`supersede_key`: only deliveries of events that have one are noted, and what is known of a key goes with the last of
them: they alone hold it. What is not in memory is asked for in the database, when its row is taken back.

Never here: SQL, what becomes of a delivery.
"""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Callable
from typing import Final, NamedTuple

from pghookd.model.delivery import Delivery, Event, Newest

DEDUPE_DAYS: Final = 7  # an event is compared with those of its own day and of so many days on either side
DAY_BITS: Final = 32  # of an event_id: what lies above them is the day
FIRSTS_MAX: Final = 10_000  # keys remembered of one difference, some 300 bytes each
AGAIN_MAX: Final = 100  # events of a key whose rows are looked up on the recovery road
NEWER_MAX: Final = 100  # newer events of a supersede_key that are looked through, the newest first
_NO_LIMIT: Final = 2**63 - 1


class DedupeKey(NamedTuple):
    """A dedupe_key of a site, as events of one day see it."""

    site_id: str
    dedupe_key: str
    day: int

    @property
    def from_event_id(self) -> int:
        """The least event_id that counts."""
        return max(0, self.day - DEDUPE_DAYS) << DAY_BITS

    @property
    def to_event_id(self) -> int:
        """The greatest event_id that counts."""
        return (self.day + DEDUPE_DAYS + 1 << DAY_BITS) - 1


def dedupe_key_of(event: Event) -> DedupeKey | None:
    """Return an event's dedupe_key; None if it has none."""
    if event.options is None or event.options.dedupe_key is None:
        return None
    return DedupeKey(event.site_id, event.options.dedupe_key, event.event_id >> DAY_BITS)


class Firsts:
    """The first events of the keys of one difference, as far as they were looked up; the least used is forgotten."""

    def __init__(self, most: int = FIRSTS_MAX) -> None:
        self._most = most
        self._known: OrderedDict[DedupeKey, int] = OrderedDict()

    def __len__(self) -> int:
        """Return how many keys are known."""
        return len(self._known)

    def get(self, key: DedupeKey) -> int | None:
        """Return the event_id of the first; 0 if it lies before the difference, None if it is not known."""
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
        wall_us: microseconds since 1970.
    """

    def __init__(self, payload_bytes_max: int = _NO_LIMIT, wall_us: Callable[[], int] = lambda: 0) -> None:
        self.payload_bytes_max = payload_bytes_max
        self._wall_us = wall_us
        self._newest: weakref.WeakValueDictionary[tuple[int, str], Newest] = weakref.WeakValueDictionary()

    def __len__(self) -> int:
        """Return how many keys are known, at all endpoints."""
        return len(self._newest)

    def note(self, delivery: Delivery) -> None:
        """Take a delivery that is about to be queued for the newest of its key, if it can be delivered.

        Its type has been tested already, and its time has come.
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
    """Return True if a newer event of its key was noted for the same endpoint, and can still be delivered or was."""
    newest = delivery.newest
    return (
        newest is not None
        and newest.event_id > delivery.event.event_id
        and (newest.before_us is None or now_us < newest.before_us)
    )


def note_sent(delivery: Delivery) -> None:
    """Let a delivery that is about to be sent replace older ones although its deliver_before passes."""
    newest = delivery.newest
    if newest is not None and newest.event_id == delivery.event.event_id:
        newest.before_us = None


def _payload_bytes(event: Event) -> int:
    if event.payload is not None:
        return len(event.payload)
    return _NO_LIMIT if event.options is None else event.options.payload_bytes
