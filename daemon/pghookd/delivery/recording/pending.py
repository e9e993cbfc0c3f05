"""Writes that are not durable yet: outcomes first, then all others, and those set aside for now.

An outcome is the result of a request; until it is durable, a crash repeats the request. Any other write (a row for a
delivery that was not sent) can wait at no cost. So outcomes go first, and only they count for the gate.

A write whose row is locked, or that Postgres rejects, is set aside by its endpoint and tried again later. Later writes
about the same delivery stay behind it. Nothing here decides when; there is no clock and no I/O.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Final

from pghookd.model.delivery import Delivery
from pghookd.model.outcome import AttemptWrite, Write

OTHERS_LEAST: Final = 50  # rows of a batch that outcomes leave to other writes, so that these never starve
BATCH_BYTES_MAX: Final = (
    100_000  # of responses and evidence in a batch: a statement that a socket takes at once
)
OUTCOMES_ASIDE_MAX: Final = 2000  # requests that a crash would repeat; beyond this no request starts
ASIDE_MAX: Final = 20_000  # writes of any kind set aside, as many as deliveries fit in memory


class DelayedOutcomes(enum.StrEnum):
    """The reasons to set a write aside."""

    LOCKED = "locked"  # another session holds its row, or the table
    REFUSED = "refused"  # Postgres rejects this row, and no other


@dataclasses.dataclass(slots=True, eq=False)
class SetAside:
    """The writes set aside for one endpoint.

    Attributes:
        reason: the reason of the latest try.
        again_at: monotonic seconds from which they are tried again.
        writes: in the order in which they came.
        outcomes: how many of them are outcomes.
    """

    reason: DelayedOutcomes
    again_at: float
    writes: list[Write] = dataclasses.field(default_factory=list)
    outcomes: int = 0


class Pending:
    """Two queues, and the writes set aside.

    Attributes:
        others_rest: True if other writes wait, since a table they need is locked.
        aside: number of writes set aside.
        outcomes_aside: how many of them are outcomes.
    """

    def __init__(self) -> None:
        self._outcomes: list[AttemptWrite] = []
        self._put_at: list[float] = []  # when each outcome was put
        self._others: dict[int, tuple[Write, float]] = {}  # by delivery: the latest write only
        self._aside: dict[int, SetAside] = {}  # by endpoint
        self._stuck: set[int] = set()  # deliveries that have a write set aside
        self.others_rest = False
        self.aside = 0
        self.outcomes_aside = 0

    # In ---------------------------------------------------------------------------------------------------------------

    def put(self, write: Write, now: float) -> None:
        """Add a write; an earlier write about the same delivery stays before it, or is replaced."""
        delivery = write.delivery
        if self._stuck and id(delivery) in self._stuck:
            self._add_aside(self._aside[delivery.endpoint_id], write)
        elif isinstance(write, AttemptWrite):
            if self._others:
                self._others.pop(id(delivery), None)
            self._outcomes.append(write)
            self._put_at.append(now)
        else:
            self._others[id(delivery)] = (write, now)

    def put_back(self, writes: Iterable[Write], now: float) -> None:
        """Put other writes back at the front of their queue, except where a newer write exists."""
        front = {id(write.delivery): (write, now) for write in writes}
        self._others = {**front, **self._others}

    # Out --------------------------------------------------------------------------------------------------------------

    def take(self, most: int) -> list[Write]:
        """Take the next batch: outcomes, then others, at most `most` rows and BATCH_BYTES_MAX."""
        others = 0 if self.others_rest else len(self._others)
        count = self._fitting(most - min(others, OTHERS_LEAST, most // 2))
        taken: list[Write] = [*self._outcomes[:count]]
        del self._outcomes[:count], self._put_at[:count]
        keys = list(islice(self._others, min(others, most - count)))
        taken += [self._others.pop(key)[0] for key in keys]
        return taken

    def _fitting(self, most: int) -> int:
        """Return how many outcomes fit into a batch: at least one, if there is one."""
        size = 0
        for number, write in enumerate(islice(self._outcomes, most)):
            if write.response is not None or write.evidence is not None:
                size += len(write.response or b"") + len(write.evidence or "")
                if size > BATCH_BYTES_MAX and number:
                    return number
        return min(most, len(self._outcomes))

    # How much ---------------------------------------------------------------------------------------------------------

    @property
    def outcomes(self) -> int:
        """Return the number of outcomes that wait for a batch."""
        return len(self._outcomes)

    @property
    def others(self) -> int:
        """Return the number of other writes that wait for a batch."""
        return len(self._others)

    @property
    def takeable(self) -> int:
        """Return the number of writes that the next batches may take."""
        return len(self._outcomes) + (0 if self.others_rest else len(self._others))

    @property
    def oldest_outcome_at(self) -> float | None:
        """Return when the oldest outcome was put; None if there is none."""
        return self._put_at[0] if self._put_at else None

    @property
    def oldest_at(self) -> float | None:
        """Return when the oldest write was put, except those set aside; None if there is none."""
        first = next(iter(self._others.values()), None)
        times = [*self._put_at[:1], *(() if first is None else first[1:])]
        return min(times, default=None)

    def deliveries(self) -> Iterator[Delivery]:
        """Yield the deliveries that still have a write pending."""
        yield from (write.delivery for write in self._outcomes)
        yield from (write.delivery for write, _ in self._others.values())
        yield from (write.delivery for entry in self._aside.values() for write in entry.writes)

    # Set aside --------------------------------------------------------------------------------------------------------

    def set_aside(self, write: Write, reason: DelayedOutcomes, again_at: float) -> bool:
        """Set a write aside behind the others of its endpoint; return True if it is the endpoint's first."""
        endpoint_id = write.delivery.endpoint_id
        entry = self._aside.get(endpoint_id)
        if new := entry is None:
            entry = self._aside[endpoint_id] = SetAside(reason, again_at)
        entry.reason, entry.again_at = reason, again_at
        self._add_aside(entry, write)
        return new

    def _add_aside(self, entry: SetAside, write: Write) -> None:
        is_outcome = isinstance(write, AttemptWrite)
        entry.writes.append(write)
        entry.outcomes += is_outcome
        self.aside += 1
        self.outcomes_aside += is_outcome
        self._stuck.add(id(write.delivery))

    def ready(self, now: float, most: int) -> list[int]:
        """Return up to `most` endpoints whose writes may be tried again, those tried longest ago first."""
        return list(islice((i for i, entry in self._aside.items() if entry.again_at <= now), most))

    def retry(self, endpoint_id: int, most: int) -> list[Write]:
        """Return the oldest writes set aside for an endpoint; they stay there until `retried` is called."""
        return self._aside[endpoint_id].writes[:most]

    def retried(
        self, endpoint_id: int, tried: int, stay: Iterable[Write], reason: DelayedOutcomes, again_at: float
    ) -> bool:
        """Keep those of the oldest `tried` writes that could not be written; return True if none is left.

        The endpoint goes to the end of the queue.
        """
        before = self._aside.pop(endpoint_id)
        self.aside -= len(before.writes)
        self.outcomes_aside -= before.outcomes
        self._stuck.difference_update(id(write.delivery) for write in before.writes)
        for write in (*stay, *before.writes[tried:]):
            self.set_aside(write, reason, again_at)
        return endpoint_id not in self._aside

    def is_aside(self, endpoint_id: int) -> bool:
        """Return True if an outcome of the endpoint is set aside: until it is written, the endpoint is sent nothing."""
        entry = self._aside.get(endpoint_id)
        return entry is not None and entry.outcomes > 0

    @property
    def endpoints_aside(self) -> int:
        """Return the number of endpoints that have writes set aside."""
        return len(self._aside)

    @property
    def is_full(self) -> bool:
        """Return True if no more may be set aside, so that no request may start."""
        return self.outcomes_aside >= OUTCOMES_ASIDE_MAX or self.aside >= ASIDE_MAX
